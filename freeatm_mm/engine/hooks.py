"""Hooks: exact resuming, memory layout, pictures of what is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmpretrain.registry import HOOKS
from PIL import Image

from freeatm_mm import compat
from freeatm_mm.datasets.samplers import SeededInfiniteSampler, SeededSampler, mix_seed
from freeatm_mm.origins import note_pretraining


def batches_had(runner: Runner) -> int:
    """Count the batches that an epoch has had at its start: 0, but in a run resumed within it."""
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return 0
    return runner.iter - runner.epoch * len(runner.train_dataloader)


@HOOKS.register_module()
class SeedEachIterationHook(Hook):
    """Seeds Python, NumPy and torch before each training iteration from (seed, iteration, rank).

    mmengine's checkpoints hold weights, optimiser and schedules, but no random state: what a model
    draws (MoCo's shuffle, MAE's masks, stochastic depth) would go differently after a resume. With
    this hook, and a sampler of `freeatm_mm.datasets.samplers` for the data, weights and queue
    end bit-equal.

    mmengine begins an epoch anew that a run is resumed in. With `SeededSampler` it goes on with the
    next batch.

    A run without a given seed draws one; resumed, mmengine takes it from the checkpoint, and this
    hook passes it on to the sampler, which was built before.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Give the sampler the run's seed; see the class."""
        note_pretraining(runner)
        loader = runner.train_dataloader
        sampler = loader.sampler
        if hasattr(sampler, 'seed'):
            # The sampler's seed must be the same in all processes.
            differs = runner.cfg.get('randomness', {}).get('diff_rank_seed', False)
            sampler.seed = runner.seed - (get_rank() if differs else 0)
        if runner.iter and not isinstance(sampler, (SeededSampler, SeededInfiniteSampler)):
            runner.logger.warning(
                f'{type(sampler).__name__} gives draws no seed: the images are cropped and '
                'coloured otherwise than in a run that was never stopped (use SeededSampler, or '
                'SeededInfiniteSampler with an IterBasedTrainLoop).'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Pass over the batches that the epoch has had, where a run is resumed within it."""
        loader = runner.train_dataloader
        if isinstance(loader.sampler, SeededSampler) and loader.batch_size:
            loader.sampler.pass_over(batches_had(runner) * loader.batch_size)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seeds; the batch is loaded by then, so that its loading can't interfere."""
        seed = mix_seed(runner.seed, runner.iter, get_rank())
        random.seed(seed)
        np.random.seed(seed)
        # `torch.manual_seed` would queue a call for CUDA each time where CUDA isn't in use.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keeps convolution weights, and so feature maps, in channels-last order.

    Convolutions run faster so: a third on CPUs, and on GPUs with `--amp`, whose tensor cores want
    that order. Results agree up to rounding. Strided 1x1 convolutions of fewer than 16 channels
    keep the usual order: see `freeatm_mm.compat.avoid_strided_pointwise_fault`.
    """

    def before_train(self, runner: Runner) -> None:
        """Reorder the weights in place, after they were loaded."""
        runner.model.to(memory_format=torch.channels_last)
        compat.avoid_strided_pointwise_fault(runner.model)


@HOOKS.register_module()
class LogViewsHook(Hook):
    """Logs a picture of the first images of a batch: their views, and each instance's mask on them.

    It goes to the visualizer as ``views``, and so to whatever that writes to: files in the work
    directory, TensorBoard, Weights & Biases. Masks are shown on the grid that the model gets them
    on, each from its lowest to its highest value in all views. The first iteration is logged, and
    then each that completes an interval. It changes nothing of the training.

    Args:
        interval: Iterations between two pictures.
        images: Images in a picture.
        nouns: Most masks shown of an image.
        size: Longer side of a view in the picture, in pixels.

    Raises:
        ValueError: If a number is not above 0.
    """

    def __init__(
        self, interval: int = 500, images: int = 4, nouns: int = 3, size: int = 160
    ) -> None:
        for name, value in dict(interval=interval, images=images, nouns=nouns, size=size).items():
            if not value > 0:
                raise ValueError(f'LogViewsHook: {name} must be above 0, got {value}.')
        self.interval, self.images, self.nouns, self.size = interval, images, nouns, size

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Log a picture of this batch, if it is time for one."""
        # The first of a run, resumed or not; runner.iter counts those that are done.
        due = batch_idx == 0 and runner.iter == 0 or (runner.iter + 1) % self.interval == 0
        if not due or not is_main_process():
            return
        from freeatm_mm.attention.overlay import contact_sheet

        model = getattr(runner.model, 'module', runner.model)
        swapped = getattr(model.data_preprocessor, '_channel_conversion', False)
        views = [*self._views(data_batch, swapped)]
        number = len(views) // min(self.images, len(data_batch['data_samples']))
        sheet = contact_sheet(views, columns=number, size=self.size)
        runner.visualizer.add_image('views', np.asarray(sheet), step=runner.iter + 1)

    def _views(self, batch: Mapping[str, Any], swapped: bool) -> Iterator[_View]:
        """Image by image its views, with the masks on them."""
        inputs = batch['inputs']
        views = [inputs] if torch.is_tensor(inputs) else list(inputs)
        for image, sample in enumerate(batch['data_samples'][: self.images]):
            masks = sample.get('instance_masks')
            for number, view in enumerate(views):
                pixels = view[image].detach().cpu().clamp(0, 255).byte().numpy()
                pixels = pixels[::-1] if swapped else pixels
                shown = np.zeros((0, 1, 1), np.float32)
                if masks is not None:
                    part = masks[:, : self.nouns].detach().cpu().float().numpy()
                    lowest = part.min((0, 2, 3), keepdims=True)
                    highest = part.max((0, 2, 3), keepdims=True)
                    shown = ((part - lowest) / (highest - lowest).clip(1e-12))[number].clip(0, 1)
                yield _View(
                    f'image {image + 1}, view {number + 1}',
                    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))),
                    [_Label(f'noun {place + 1}') for place in range(len(shown))],
                    shown,
                )


class _Label(NamedTuple):
    text: str


class _View(NamedTuple):
    """A view as `freeatm_mm.attention.overlay.contact_sheet` takes it."""

    caption: str
    image: Image.Image
    nouns: Sequence[_Label]
    masks: np.ndarray

    @property
    def key(self) -> str:
        """Its name."""
        return self.caption
