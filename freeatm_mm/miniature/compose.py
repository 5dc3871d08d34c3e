"""Composing many scenes at once, over worker processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from freeatm_mm.miniature.scenes import Scene, SceneMaker
from freeatm_mm.progress import progress_bar

__all__ = ['compose_scenes']

_maker: SceneMaker | None = None


def compose_scenes(
    sources: str | Path,
    split: str,
    count: int,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    garments: bool = False,
) -> Iterator[Scene]:
    """Yield scenes 0, 1, ..., ``count`` - 1 of a split, in order.

    Args:
        sources: What `freeatm_mm.miniature.sources.fetch_sources` returned.
        split: ``'train'``, ``'val'`` or ``'test'``.
        count: How many.
        seed: Number of the world.
        workers: Processes; one per core by default. The scenes don't depend on it.
        progress: Whether to show a progress bar.
        garments: Make the scenes with one garment each instead
            (`freeatm_mm.miniature.scenes.SceneMaker.garment`).
    """
    workers = workers or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(  # unlike a Pool it raises when its workers can't start
        workers, multiprocessing.get_context('spawn'), _start_worker, (str(sources), split, seed)
    ) as pool:
        scenes = pool.map(_make_garment if garments else _make_scene, range(count), chunksize=64)
        yield from progress_bar(
            scenes, f'{split} scenes', count, disable=not progress, unit='scene', mininterval=1.0
        )


def _start_worker(sources: str, split: str, seed: int) -> None:
    global _maker
    _maker = SceneMaker(sources, split, seed)


def _make_scene(index: int) -> Scene:
    assert _maker is not None
    return _maker.scene(index)


def _make_garment(index: int) -> Scene:
    assert _maker is not None
    return _maker.garment(index)
