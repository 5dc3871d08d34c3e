"""Runs that train nothing, lose themselves in NaN, or are resumed as another run: told, not run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler, pseudo_collate
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import (
    BaseLoop,
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
    find_latest_checkpoint,
)
from torch import nn

from freeatm_mm.checkpoints import check_fills, fit, weights_of
from freeatm_mm.datasets.dataset import FreeATMDataset
from freeatm_mm.datasets.samplers import SeededSampler
from freeatm_mm.engine.hooks import SeedEachIterationHook, batches_had
from freeatm_mm.errors import InputError, counted, listed
from freeatm_mm.ops.losses import NEGATIVES, POSITIVES

__all__ = ['CheckTrainingHook', 'describe_schedule']

#: Losses in a row that may be no numbers under loss scaling, which leaves out such steps, or 0.
_PATIENCE = 20


def describe_schedule(cfg: Mapping, world_size: int = 1) -> dict[str, Any]:
    """What a resumed run must have in common with the run that it goes on from.

    Args:
        cfg: A training config.
        world_size: Number of processes.

    Returns:
        By key of the config: plain values, which a checkpoint can hold.
    """
    wrapper, loop = cfg.get('optim_wrapper') or {}, cfg.get('train_cfg') or {}
    schedulers = _plain(cfg.get('param_scheduler')) or []
    schedulers = [schedulers] if isinstance(schedulers, Mapping) else schedulers
    for scheduler in schedulers:  # mmengine's default
        length = 'max_epochs' if scheduler.get('by_epoch', True) else 'max_iters'
        if loop.get(length):
            scheduler.setdefault('end', loop[length])
    scale = _plain(cfg.get('auto_scale_lr')) or {}
    batch = (cfg.get('train_dataloader') or {}).get('batch_size')
    images = batch * world_size if isinstance(batch, int) else None
    if scale.get('enable'):
        scale['images_per_iteration'] = images
    # The rest of the wrapper (precision, clipping) is the resumed run's own.
    return dict(
        optim_wrapper={
            name: _plain(wrapper[name])
            for name in ('optimizer', 'paramwise_cfg', 'accumulative_counts')
            if wrapper.get(name)
        },
        param_scheduler=schedulers,
        auto_scale_lr=scale if scale.get('enable') else {},
        images_per_iteration=images,
    )


def _describe_settings(cfg: Mapping) -> dict[str, Any]:
    """Describe model and data set, on which the weights depend besides; no paths of files."""

    def without(value: Any, names: tuple[str, ...]) -> Any:
        if isinstance(value, Mapping):
            parts = {name: without(part, names) for name, part in value.items()}
            return {name: part for name, part in parts.items() if name not in names}
        return [without(part, names) for part in value] if isinstance(value, list) else value

    dataset = (cfg.get('train_dataloader') or {}).get('dataset')
    return dict(
        model=without(_plain(cfg.get('model')), ('init_cfg', 'pretrained')),
        dataset=without(_plain(dataset), ('ann_file', 'data_prefix', 'data_root', 'store')),
    )


def _plain(value: Any) -> Any:
    """Return a value of a config in types that a checkpoint can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def _differences(old: Any, new: Any, key: str = '') -> Iterator[str]:
    """Each entry in which two nested values differ, as ``key: old, now new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f'{key}.{name}'.lstrip('.'))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, parts in enumerate(zip(old, new)):
            yield from _differences(*parts, f'{key}.{number}')
    elif old != new:
        yield f'{key} (was {old}, is {new})'


@HOOKS.register_module()
class CheckTrainingHook(Hook):
    """Stops a run that would train nothing, one whose loss is no number, and a false resumption.

    mmengine goes on in all three cases: for no iteration at all, saving random weights; with NaN in
    all weights, deleting the last good checkpoint; with the rate and schedule that the checkpoint
    holds, in the place of those that were asked for.
    """

    priority = 'ABOVE_NORMAL'  # before checkpoints are written, and older ones deleted

    def __init__(self) -> None:
        self._bad = self._idle = 0

    def before_train(self, runner: Runner) -> None:
        """Count samples, batches and steps.

        Raises:
            InputError: If there are too few for one step, or if a resumed run would lose gradients
                that were accumulated before it was stopped, or begin an epoch anew; if the model
                is to go by nouns and no data set has any; or if batches
                come in a form that the model's preprocessor can't take, or would be of one image
                where the model normalises by its batch. In the first iteration, if what
                `activation_checkpointing` names would get no gradients.
        """
        loader, loop = runner.train_dataloader, runner.train_loop
        processes = get_world_size()
        batch = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
        samples = len(loader.dataset)
        infinite = isinstance(loader.sampler, InfiniteSampler)
        each = f'{batch} on each of {processes} processes' if processes > 1 else str(batch)
        if (
            not samples
            or len(loader) == 0
            and not infinite
            # An endless sampler would fill a batch with the same samples again and again.
            or infinite
            and loader.drop_last
            and samples < batch * processes
        ):
            raise InputError(
                f'nothing would be trained: the data set holds {counted(samples, "sample")}, and '
                f'a batch is {each}: take more samples (train_dataloader.dataset), or a smaller '
                'train_dataloader.batch_size'
            )
        if loop.max_iters < 1:
            raise InputError(
                'nothing would be trained: the config asks for '
                f'{counted(loop.max_epochs, "epoch")} and {counted(loop.max_iters, "iteration")}: '
                'set train_cfg.max_epochs or train_cfg.max_iters'
            )
        counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if counts > loop.max_iters:
            raise InputError(
                f'no step would be made before the end: a step takes '
                f'optim_wrapper.accumulative_counts={counts} batches, and the whole run has '
                f'{loop.max_iters}: take a smaller number, or train longer'
            )
        if runner.iter % counts and runner.iter < loop.max_iters:
            raise InputError(
                f'{_source(runner)} was saved within a step: of its '
                f'optim_wrapper.accumulative_counts={counts} batches {runner.iter % counts} had '
                'been seen, and their gradients are not in the checkpoint: resume from one whose '
                f'number of iterations, here {runner.iter}, is a multiple of {counts}'
            )
        self._check_epoch(runner)
        _check_nouns(runner)
        _check_collation(runner)
        _check_last_batch(runner, batch, infinite)
        _watch_recomputed(runner)
        if counts > 1 and not isinstance(loop, IterBasedTrainLoop) and len(loader) % counts:
            every = counts // math.gcd(len(loader), counts)
            runner.logger.warning(
                f'An epoch of {len(loader)} batches is no multiple of '
                f'accumulative_counts={counts}: this run can be resumed from the checkpoint of '
                f'every {every}th epoch alone.'
            )

    def _check_epoch(self, runner: Runner) -> None:
        """Refuse a resumption within an epoch that can't go on there; see `before_train`."""
        loader, had = runner.train_dataloader, batches_had(runner)
        if not 0 <= had <= len(loader):
            raise InputError(
                f'{_source(runner)} was saved after {counted(runner.iter, "iteration")} in epoch '
                f'{runner.epoch + 1}, and an epoch has {counted(len(loader), "batch")} now: '
                f'{_OTHER_IMAGES}'
            )
        if (
            had
            and runner.epoch < runner.train_loop.max_epochs
            and not (
                isinstance(loader.sampler, SeededSampler)
                and loader.batch_size
                and any(isinstance(hook, SeedEachIterationHook) for hook in runner.hooks)
            )
        ):
            raise InputError(
                f'{_source(runner)} was saved within an epoch, after {had} of its '
                f'{counted(len(loader), "batch")}, and mmengine would begin the epoch anew: resume '
                "from a checkpoint of an epoch's end (default_hooks.checkpoint.by_epoch=True "
                'writes such), or pretrain with SeededSampler and SeedEachIterationHook, which go '
                'on with the next batch'
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Look at the losses, and before a checkpoint at the weights.

        Raises:
            InputError: If a loss is infinite or no number. Under loss scaling, which leaves such
                steps out, only after 20 in a row. If the loss is exactly 0 in 20 in a row, or in
                all of a shorter run.
        """
        values = {
            name: float(torch.as_tensor(value).detach())
            for name, value in (outputs or {}).items()
            if 'loss' in name and _is_scalar(value)
        }
        bad = [f'{name} = {value}' for name, value in values.items() if not math.isfinite(value)]
        self._bad = self._bad + 1 if bad else 0
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        scaled = scaler is not None and scaler.is_enabled()
        if bad and (not scaled or self._bad >= _PATIENCE):
            row = f', the {self._bad}th time in a row' if scaled else ''
            raise InputError(
                f'iteration {runner.iter + 1} (epoch {runner.epoch + 1}): '
                f'{", ".join(bad)}{row}. {_ADVICE}'
            )
        self._idle = self._idle + 1 if values.get('loss') == 0 else 0
        if self._idle and self._idle >= min(_PATIENCE, runner.train_loop.max_iters):
            raise InputError(
                f'nothing is trained: the loss was exactly 0 in {self._idle} iterations in a row. '
                'A contrastive loss has nothing to tell apart in a batch of one image, or where '
                "all instances are of one noun (model.negatives='other_nouns') or no mask can be "
                'trusted (trust of LoadFromStore): take a larger train_dataloader.batch_size, or '
                'leave out that option'
            )
        if any(
            not hook.by_epoch
            and (hook.every_n_train_iters(runner, hook.interval) or hook.is_last_train_iter(runner))
            for hook in _checkpoint_hooks(runner)
        ):
            _check_weights(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Look at the weights, since a checkpoint may be written now; raise likewise."""
        if any(hook.by_epoch for hook in _checkpoint_hooks(runner)):
            _check_weights(runner, runner.iter)  # already counted

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note in the checkpoint's ``meta`` how the run trains, as `describe_schedule` has it."""
        checkpoint['meta']['schedule'] = describe_schedule(runner.cfg, get_world_size())
        checkpoint['meta']['processes'] = get_world_size()
        checkpoint['meta']['data'] = _describe_data(runner)
        checkpoint['meta']['settings'] = _describe_settings(runner.cfg)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare a resumed run with the one it goes on from, and a model with its weights.

        On another number of processes with as many images an iteration, epochs, rates and order of
        the images stay as they were; only what each process draws and normalises by is another.

        Raises:
            InputError: If optimizer, rates or their schedule differ, naming what does, or if
                iterations have another number of images, or epochs another one of batches; if the
                checkpoint doesn't fill the model or, without a resumption, no part of it.
        """
        _check_weights_fit(runner, checkpoint)
        meta, processes = checkpoint.get('meta', {}), get_world_size()
        noted = meta.get('schedule')
        if not runner._resume or noted is None:
            return
        now = describe_schedule(runner.cfg, processes)
        images = now['images_per_iteration']
        before = noted.get('images_per_iteration', images)  # not in older checkpoints
        if before != images:
            raise InputError(
                f'{_source(runner)} is of a run with {counted(before, "image")} an iteration '
                f'(processes: {meta.get("processes", "?")}), and this one has {images} '
                f'(processes: {processes}): its iterations, epochs and rates would be counted '
                'wrongly. Resume with processes and train_dataloader.batch_size whose product is '
                f'{before}, or without --resume begin a new run with its weights '
                '(load_from=CHECKPOINT)'
            )
        data = _describe_data(runner)
        before = meta.get('data', data)  # not in older checkpoints
        if ('batches_per_epoch' in before) != ('batches_per_epoch' in data):
            kinds = 'epochs', 'iterations'
            had, has = kinds if 'batches_per_epoch' in before else kinds[::-1]
            raise InputError(
                f'{_source(runner)} is of a run that counts {had}, and this one counts {has}: '
                'resume with the train_cfg that it had, or without --resume begin a new run with '
                'its weights (load_from=CHECKPOINT)'
            )
        if before.get('batches_per_epoch') != data.get('batches_per_epoch'):
            raise InputError(
                f'{_source(runner)} is of a run with '
                f'{counted(before["batches_per_epoch"], "batch")} an epoch, and this one has '
                f'{data["batches_per_epoch"]}: {_OTHER_IMAGES}'
            )
        if before != data:
            runner.logger.warning(
                f'{_source(runner)} is of a run on {counted(before["samples"], "sample")}, and '
                f'this one has {data["samples"]}: they come in another order, and it does not end '
                'bit-equal.'
            )
        settings = _describe_settings(runner.cfg)
        differ = list(_differences(meta.get('settings', settings), settings))
        if differ:
            runner.logger.warning(
                f'{_source(runner)} is of a run with other settings: {"; ".join(differ)}. From '
                'here on it is trained by those of this run.'
            )
        if meta.get('processes', processes) != processes:
            runner.logger.warning(
                f'{_source(runner)} was written by {counted(meta["processes"], "process")}, and '
                f'is resumed by {processes}: as many images an iteration, but not bit-equal.'
            )
        differ = list(_differences({**noted, 'images_per_iteration': images}, now))
        if differ:
            raise InputError(
                f'{_source(runner)} is of a run that trains otherwise: {"; ".join(differ)}. A '
                'resumed run takes optimizer, rates and schedule from its checkpoint: give it the '
                'settings that it had, or without --resume begin a new run with its weights '
                '(load_from=CHECKPOINT)'
            )


_OTHER_IMAGES = (
    'with another number of images epochs and rates would be counted wrongly. Resume with the data '
    'set that the run had (train_dataloader.dataset), or without --resume begin a new run with its '
    'weights (load_from=CHECKPOINT)'
)

_ADVICE = (
    'The training is stopped, and the checkpoints written before are kept. The usual causes '
    'are a learning rate that is too high (optim_wrapper.optimizer.lr, --auto-scale-lr), '
    'half precision (--amp), or damaged images: begin anew, or from the last checkpoint '
    '(load_from=CHECKPOINT), with one of them changed'
)


def _check_nouns(runner: Runner) -> None:
    """Refuse options that go by nouns where none come: the plain baseline would be trained."""
    model = getattr(runner.model, 'module', runner.model)
    asked = [
        f'model.{name}={value}'
        for name, known in (('positives', POSITIVES), ('negatives', NEGATIVES))
        if (value := getattr(model, name, None)) in known[1:]
    ]
    if asked and not any(map(_may_give_masks, _parts(runner.train_dataloader.dataset))):
        raise InputError(
            f'{" and ".join(asked)} goes by the nouns of masks, and no data set of this training '
            'gives masks: leave it out for the baseline without masks, or train on a store with '
            'nouns and masks=True of FreeATMDataset; for nouns as labels of whole images, set '
            'centred_box=1.0 of LoadFromStore (docs/pretraining.md, "Controls")'
        )


def _parts(dataset: Any) -> Iterator[Any]:
    """The data sets that a data set wraps or joins, or itself."""
    inner = getattr(dataset, 'datasets', None) or getattr(dataset, 'dataset', None)
    if inner is None:
        yield dataset
    else:
        for part in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from _parts(part)


def _may_give_masks(dataset: Any) -> bool:
    """Whether masks come from a data set; of one that is not ours they may."""
    return not isinstance(dataset, FreeATMDataset) or dataset.gives_masks


def _check_collation(runner: Runner) -> None:
    """Refuse mmengine's default, with which self-supervised models fail on a tuple."""
    collate = runner.train_dataloader.collate_fn
    if getattr(collate, 'func', collate) is not pseudo_collate:
        return
    from mmpretrain.models import SelfSupDataPreprocessor

    model = getattr(runner.model, 'module', runner.model)
    if isinstance(model.data_preprocessor, SelfSupDataPreprocessor):
        raise InputError(
            "train_dataloader's collate_fn is pseudo_collate, which is mmengine's default and "
            "stacks no images: set train_dataloader.collate_fn=dict(type='default_collate')"
        )


def _check_last_batch(runner: Runner, batch: int, infinite: bool) -> None:
    """Refuse batches of one image where each view's features are normalised by their batch alone.

    With masks an image may have several instances; that every last one has, no run can rely on.
    """
    loader = runner.train_dataloader
    last = batch
    if loader.batch_size and not loader.drop_last and not infinite:
        last = (len(loader.sampler) - 1) % batch + 1
    if last > 1 or batch > 1 and runner.train_loop.max_iters < len(loader):  # ends before it
        return
    from mmpretrain.models import BYOL, BarlowTwins, DenseCL, MoCo, MoCoV3, SimSiam, SwAV

    from freeatm_mm.models.necks import normalises_batch
    from freeatm_mm.models.two_view import InstanceViews

    model = getattr(runner.model, 'module', runner.model)
    # The others, as SimCLR, normalise the features of all views together.
    apart = isinstance(model, (BYOL, BarlowTwins, DenseCL, MoCo, MoCoV3, SimSiam, InstanceViews))
    parts = [getattr(model, name, None) for name in ('neck', 'head')]
    if (
        not apart
        or isinstance(model, SwAV)
        or not any(isinstance(part, nn.Module) and normalises_batch(part) for part in parts)
    ):
        return
    raise InputError(
        f'{type(model).__name__} normalises the features of each view by their batch (BatchNorm), '
        f'which takes two images at least, and with train_dataloader.batch_size={batch} '
        + (
            f'the last batch of an epoch of {counted(len(loader.sampler), "sample")} has one: set '
            'train_dataloader.drop_last=True, or another batch_size'
            if batch > 1
            else 'each batch has one: set a larger one'
        )
    )


def _source(runner: Runner) -> str:
    """Name the checkpoint; mmengine doesn't keep what it finds in the work directory."""
    found = runner._load_from or runner._resume and find_latest_checkpoint(runner.work_dir)
    return str(found or 'the checkpoint')


def _check_weights_fit(runner: Runner, checkpoint: Mapping) -> None:
    """Refuse weights of another model, of which mmengine would warn; see the hook."""
    model = getattr(runner.model, 'module', runner.model)
    source = _source(runner)
    weights = weights_of(checkpoint, source)
    if runner._resume:
        check_fills(model, weights, source)
        return
    match = fit(model, weights)
    if not match.matched:
        raise InputError(
            f'{source} holds nothing of this model, which would be trained from random weights: '
            f'{match.describe()}'
        )
    runner.logger.info(f'{source}: {match.describe()}.')


def _watch_recomputed(runner: Runner) -> None:
    """Refuse checkpointed modules that mmengine would recompute without gradients, when they run.

    It uses torch's reentrant checkpoint, which gives none to weights if no input asks for any: so
    to a whole backbone, whose input is images.
    """
    names = runner.cfg.get('activation_checkpointing') or []
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    handles: dict[str, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        module = model.get_submodule(name)
        if not any(weight.requires_grad for weight in module.parameters()):
            continue

        def look(module: nn.Module, args: tuple, name: str = name) -> None:
            if not torch.is_grad_enabled():
                return
            if not any(torch.is_tensor(value) and value.requires_grad for value in args):
                raise InputError(
                    f'activation_checkpointing: {name} would not be trained, as it is given images '
                    'or other inputs without gradients, and mmengine then gives it none: name '
                    'parts of it that come later, such as backbone.layer1 of a ResNet or '
                    'backbone.layers.1 of a ViT'
                )
            handles[name].remove()

        handles[name] = module.register_forward_pre_hook(look)


def _describe_data(runner: Runner) -> dict[str, int]:
    """Count what a resumed run must have in common with the run that it goes on from."""
    loop: Any = runner._train_loop
    if not isinstance(loop, BaseLoop):  # not built, as nothing is trained
        return {}
    data = dict(samples=len(loop.dataloader.dataset))
    if isinstance(loop, EpochBasedTrainLoop):
        data['batches_per_epoch'] = len(loop.dataloader)
    return data


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) or torch.is_tensor(value) and value.numel() == 1


def _checkpoint_hooks(runner: Runner) -> list[CheckpointHook]:
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]


def _check_weights(runner: Runner, iteration: int) -> None:
    """Raise an InputError if a parameter or running statistic is infinite or no number."""
    bad = [name for name, value in _learned(runner.model) if not bool(value.isfinite().all())]
    if bad:
        raise InputError(
            f'iteration {iteration} (epoch {runner.epoch + 1}): the loss is a number, '
            'but these weights are not: '
            f'{listed(bad)}. {_ADVICE}'
        )


def _learned(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((name, value.detach()) for name, value in model.named_parameters())
    yield from ((name, value) for name, value in model.named_buffers() if '.running_' in name)
