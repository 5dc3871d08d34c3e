"""Where a downstream run starts from: random weights, supervised ones, or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from freeatm_mm.checkpoints import Match, find_backbone, fit, fit_positions
from freeatm_mm.configs import check_init
from freeatm_mm.errors import InputError, MissingFileError

__all__ = ['InitialWeightsHook', 'load_backbone']


_OPTIONAL = ('cls_token', 'ln1.')


def load_backbone(
    model: nn.Module,
    checkpoint: str | Path,
    modules: Iterable[str] = ('backbone',),
    new: Iterable[str] = (),
) -> Match:
    """Fill parts of a model from a checkpoint's backbone, each name at most once, and count.

    A position embedding of another grid is resized. Batch counters of normalisation layers, which
    old checkpoints lack, are filled where they can be but don't count; nor does a ViT's class token
    or last norm if the model does without.

    Args:
        model: The model, changed in place.
        checkpoint: See `find_backbone`.
        modules: Parts of the model whose names inside them are the backbone's: ``backbone``, and
            for C4 detectors ``roi_head.shared_head``, which is the backbone's last stage.
        new: Regular expressions for names inside the modules that no pretraining has, such as
            ``rel_pos_``; they don't count.

    Returns:
        What was loaded and what was not.
    """
    match = fit(model, find_backbone(checkpoint), modules, new, fit_positions)
    match.load(model)
    return replace(
        match, unused=tuple(name for name in match.unused if not name.startswith(_OPTIONAL))
    )


@HOOKS.register_module()
class InitialWeightsHook(Hook):
    """Loads what the config's ``init`` names when a run starts, and stops it if little fits.

    ``init`` is ``random`` (nothing is loaded), ``supervised``, or a checkpoint of any pretraining.
    It does the same for mmpretrain, mmdet and mmseg, whose own ways (``init_cfg``, ``pretrained``)
    load what fits and go on with a warning, or without one. A resumed run is left as it is.

    Args:
        supervised: Checkpoint of the supervised weights.
        modules: See `load_backbone`.
        new: See `load_backbone`.
        minimum: Share of the model's tensors that must be filled, and of the checkpoint's that
            must be used.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self,
        supervised: str | None = None,
        modules: Iterable[str] = ('backbone',),
        new: Iterable[str] = (),
        minimum: float = 0.95,
    ) -> None:
        self.supervised, self.modules = supervised, tuple(modules)
        self.new, self.minimum = tuple(new), minimum

    def before_train(self, runner: Runner) -> None:
        """Load; see the class.

        Raises:
            InputError: If ``init`` isn't set, less than ``minimum`` fits, a shape differs, or the
                first layer isn't there, naming what doesn't fit.
            MissingFileError: If the checkpoint isn't there.
        """
        if runner.iter > 0:
            return
        check_init(dict(init=runner.cfg.get('init')))
        init = runner.cfg.init
        if init == 'random':
            runner.logger.info('The backbone starts from random weights.')
            return
        if init == 'supervised':
            if not self.supervised:
                raise InputError('this config has no supervised checkpoint: set init=CHECKPOINT')
            init = self.supervised
            if '://' not in init and not Path(init).is_file():
                raise MissingFileError(
                    f'there is no checkpoint {init} of supervised weights: '
                    'train it first, or set init=CHECKPOINT'
                )
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        match = load_backbone(model, init, self.modules, self.new)
        if not match.is_same_network(self.modules, self.minimum):
            raise InputError(
                f'{init} does not fit {" and ".join(self.modules)} of this config: '
                f'{match.describe()}. At least {self.minimum:.0%} must fit both ways, the first '
                'layer among them, and every shape: is it the checkpoint of the same architecture?'
            )
        runner.logger.info(f'The backbone starts from {init}: {match.describe()}.')
        runner.message_hub.update_info('initial_weights', match.describe())
