"""What pretraining with masks costs, against the same code without masks in the same run.

Each case is measured as pairs: baseline, ours, baseline, ours ..., turning the order each time, so
that a machine that gets busy or warm slows both. Each side's figure is the median of its times. On
a CPU they are processor time of one thread, which other processes on the machine change less than
the clock; on a GPU they are the clock's.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from freeatm_mm.prompts import Noun
from freeatm_mm.store import Sample, write_store

TARGETS = {
    'step-simclr': 1.05,
    'step-mocov2': 1.05,
    'step-mae': 1.02,
    'memory-simclr': 1.05,
    'memory-mocov2': 1.05,
    'memory-mae': 1.05,
    'loading-mocov2': 1 / 0.95,
    'loading-mae': 1 / 0.95,
    'mask-generator-256': 1 / 20,
}
"""The largest ratio, ours to the baseline, that each case should have."""

WORDS = ('dog', 'bird', 'shoe', 'lamp', 'boat', 'drum')


@dataclass(frozen=True)
class Shapes:
    """How large everything is; the defaults are the paper's, but for the batch.

    Args:
        batch: Images of a training step.
        image: Side of the stored images, in pixels.
        mask: Side of the stored masks.
        loaded: Images that one turn of the loading cases loads.
        generated: Images of a batch of the mask generator.
        repeats: Pairs of each case.
    """

    batch: int = 8
    image: int = 512
    mask: int = 64
    loaded: int = 24
    generated: int = 256
    repeats: int = 5


def make_benchmark_store(path: Path, shapes: Shapes) -> Path:
    """Write a store of pictures with the detail of photos, one to three nouns each.

    Args:
        path: Where; must not exist.
        shapes: `image`, `mask`, and as many images as the cases need.
    """
    random = np.random.default_rng(0)

    def sample(number: int) -> Sample:
        rough = Image.fromarray(
            random.integers(0, 256, (shapes.image // 16,) * 2 + (3,), dtype=np.uint8)
        )
        picture = np.asarray(rough.resize((shapes.image, shapes.image), Image.Resampling.BICUBIC))
        noise = random.normal(0, 3, picture.shape)
        image = Image.fromarray(np.clip(picture + noise, 0, 255).astype(np.uint8))
        caption, nouns = 'a photo of', []
        for count in range(1 + number % 3):
            word = WORDS[(number + count) % len(WORDS)]
            nouns.append(Noun(word, len(caption) + 3, len(caption) + 3 + len(word), word))
            caption += f' a {word}'
        grid = np.mgrid[: shapes.mask, : shapes.mask] / shapes.mask
        centres = random.uniform(0.25, 0.75, (len(nouns), 2, 1, 1))
        blobs = np.exp(-((grid - centres) ** 2).sum(1) / 0.05) + random.uniform(
            0, 0.02, (len(nouns), shapes.mask, shapes.mask)
        )
        masks = (255 * (blobs - blobs.min()) / (blobs.max() - blobs.min())).astype(np.uint8)
        return Sample.from_image(
            f'{number:06d}',
            image,
            image_format='jpg',
            caption=caption,
            nouns=tuple(nouns),
            masks=masks,
            scales=np.tile(np.float32([0.001, 0.03]), (len(nouns), 1)),
        )

    write_store(path, (sample(number) for number in range(max(shapes.batch, shapes.loaded))))
    return path


def alternate(
    baseline: Callable[[], Any], ours: Callable[[], Any], repeats: int, device: str = 'cpu'
) -> tuple[float, float]:
    """Median seconds of two things done by turns, after each was done once to warm up.

    Args:
        baseline: The one.
        ours: The other.
        repeats: How often each is measured.
        device: 'cpu' measures processor time, 'cuda' the clock until the GPU has finished.

    Returns:
        Seconds of the baseline and of ours.
    """

    def measure(function: Callable[[], Any]) -> float:
        if device == 'cpu':
            start = time.process_time()
            function()
            return time.process_time() - start
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    sides, times = (baseline, ours), ([], [])
    for turn in range(-1, repeats):
        for side in (0, 1) if turn % 2 else (1, 0):
            seconds = measure(sides[side])
            if turn >= 0:
                times[side].append(seconds)
    return statistics.median(times[0]), statistics.median(times[1])


class Training:
    """A config's model and optimiser, and one batch with and without masks.

    Args:
        config: Path of a pretraining config with masks.
        store: A store of `make_benchmark_store`.
        shapes: `batch`.
        device: Where to train.
    """

    def __init__(self, config: Path, store: Path, shapes: Shapes, device: str) -> None:
        from mmengine.config import Config
        from mmengine.dataset import default_collate
        from mmengine.logging import MMLogger
        from mmengine.model import revert_sync_batchnorm
        from mmengine.optim import build_optim_wrapper
        from mmengine.registry import init_default_scope
        from mmpretrain.registry import DATASETS, MODELS

        init_default_scope('mmpretrain')
        MMLogger.get_current_instance().setLevel('WARNING')  # not each parameter's learning rate
        cfg = Config.fromfile(config)
        if device == 'cpu':
            cfg.optim_wrapper.type = 'OptimWrapper'  # mmengine has no mixed precision on CPUs
            cfg.optim_wrapper.pop('loss_scale', None)
        if 'mask_generator' in cfg.model:
            cfg.model.mask_generator.schedule = 'constant'  # at its ceiling, where it does most
        torch.manual_seed(0)
        # Alone a process has nobody to share batch statistics with.
        self.model = revert_sync_batchnorm(MODELS.build(cfg.model)).to(device).train()
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.datasets, self.batches = {}, {}
        for masks in (False, True):
            dataset = copy.deepcopy(cfg.train_dataloader.dataset)
            dataset.update(data_root=str(store), masks=masks)
            self.datasets[masks] = dataset = DATASETS.build(dataset)
            self.batches[masks] = default_collate(
                [dataset[number, number] for number in range(shapes.batch)]
            )

    def step(self, masks: bool) -> None:
        """One training step, from the loaded batch to the changed weights."""
        with self.optimizer.optim_context(self.model):
            data = self.model.data_preprocessor(self.batches[masks], True)
            loss = self.model(**data, mode='loss')['loss']
        self.optimizer.update_params(loss)

    def load(self, masks: bool, count: int) -> None:
        """Load so many images as one batch of a worker: read, decoded, two views or one, packed."""
        self.datasets[masks].draw_batch([(number, number) for number in range(count)])


def _memory(name: str) -> int:
    """A line of this process's status (`VmRSS`, `VmHWM`) in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no {name}: memory is measured on Linux only')


def _training_memory(config: Path, store: Path, shapes: Shapes, masks: bool) -> int:
    """Run in a process of its own: bytes that two training steps take at most."""
    import freeatm_mm.openmmlab  # noqa: F401

    torch.set_num_threads(1)

    before = _memory('VmRSS')
    training = Training(config, store, shapes, 'cpu')
    for _ in range(2):
        training.step(masks)
    return _memory('VmHWM') - before


def peak_memory(config: Path, store: Path, shapes: Shapes, device: str) -> tuple[float, float]:
    """Peak memory of a training step in MiB, without masks and with.

    On a CPU each is measured in a process of its own, above what the imports took.
    """
    if device == 'cpu':
        context = multiprocessing.get_context('spawn')
        peaks = []
        with mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**16)):
            # glibc then gives freed tensors back at once; otherwise chance decides what it keeps.
            for masks in (False, True):
                with context.Pool(1) as pool:
                    peaks.append(pool.apply(_training_memory, (config, store, shapes, masks)))
    else:
        training = Training(config, store, shapes, device)
        peaks = []
        for masks in (False, True):
            training.step(masks)  # the optimiser's state is there from now on
            torch.cuda.reset_peak_memory_stats()
            training.step(masks)
            peaks.append(torch.cuda.max_memory_allocated())
    return peaks[0] / 2**20, peaks[1] / 2**20


def _row(case: str, baseline: float, ours: float, unit: str) -> dict[str, Any]:
    target = TARGETS.get(case)
    return {
        'case': case,
        'ratio': ours / baseline,
        'baseline': baseline,
        'ours': ours,
        'unit': unit,
        **({'target': round(target, 3)} if target else {}),
    }


def benchmark_pretraining(
    configs: dict[str, Path],
    folder: Path,
    shapes: Shapes = Shapes(),
    device: str = 'cpu',
    cases: Sequence[str] = ('mask-generator', 'loading', 'step', 'memory'),
) -> Iterator[dict[str, Any]]:
    """Measure what masks cost, case by case.

    Args:
        configs: For each method (simclr, mocov2, mae) its pretraining config with masks.
        folder: An empty folder for the store; about 0.1 MB an image.
        shapes: How large everything is.
        device: 'cpu' or 'cuda'.
        cases: Which kinds: step, memory, loading, mask-generator.

    Yields:
        Rows of a result file: case, ratio (ours to the baseline), both, their unit and the target.
    """
    if device == 'cpu':
        torch.set_num_threads(1)
    if 'mask-generator' in cases:
        from freeatm_mm.models import AttentionGuidedMaskGenerator

        generator = AttentionGuidedMaskGenerator()
        scores = torch.rand(shapes.generated, 196, device=device)
        singles = scores.split(1)
        baseline, ours = alternate(
            lambda: torch.cat([generator(single, 147, 0.4) for single in singles]),
            lambda: generator(scores, 147, 0.4),
            max(shapes.repeats, 15),
            device,
        )
        yield _row(f'mask-generator-{shapes.generated}', 1e3 * baseline, 1e3 * ours, 'ms')

    store = make_benchmark_store(folder / 'store', shapes)
    unit = 's of one CPU thread' if device == 'cpu' else 's'
    for method, config in configs.items():
        if 'step' in cases or 'loading' in cases:
            training = Training(config, store, shapes, device)
            # SimCLR loads as MoCo v2 does: two views of 224 pixels, much the same colour changes.
            if 'loading' in cases and method != 'simclr':
                baseline, ours = (
                    seconds / shapes.loaded
                    for seconds in alternate(
                        partial(training.load, False, shapes.loaded),
                        partial(training.load, True, shapes.loaded),
                        3 * shapes.repeats,
                    )
                )
                yield _row(
                    f'loading-{method}', 1e3 * baseline, 1e3 * ours, 'ms of one CPU thread an image'
                )
            if 'step' in cases:
                yield _row(
                    f'step-{method}',
                    *alternate(
                        partial(training.step, False),
                        partial(training.step, True),
                        shapes.repeats,
                        device,
                    ),
                    unit,
                )
            del training
        if 'memory' in cases:
            yield _row(f'memory-{method}', *peak_memory(config, store, shapes, device), 'MiB')
