"""A test set of thousands of different objects: the photos of garments, each in a scene of its own.

The scenes of the split ``test`` show a few dozen stamps over and over; of garments each photo is
another object. ``test`` has all of Fashion-MNIST's own test photos of the eight nouns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from freeatm_mm.errors import InputError
from freeatm_mm.files import atomic_write
from freeatm_mm.miniature.compose import compose_scenes
from freeatm_mm.miniature.scenes import SIDE
from freeatm_mm.miniature.sources import GARMENTS
from freeatm_mm.probing.features import SPLITS, Scenes

__all__ = ['GARMENT_COUNTS', 'export_garments', 'load_garments']

#: Photos of each noun, by split.
GARMENT_COUNTS = {'train': 500, 'val': 125, 'test': 1000}


def export_garments(
    sources: str | Path,
    out: str | Path,
    counts: dict[str, int] | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Write ``<out>/<split>.npz`` for each split; one that is there is kept.

    Args:
        sources: What `freeatm_mm.miniature.sources.fetch_sources` returned.
        out: Folder.
        counts: Photos of each noun, by split; by default `GARMENT_COUNTS`.
        seed: Number of the world.
        workers: Processes; one per core by default.
    """
    out = Path(out)
    for split, count in (counts or GARMENT_COUNTS).items():
        path, total = out / f'{split}.npz', count * len(GARMENTS)
        if path.exists():
            continue
        images = np.empty((total, SIDE, SIDE, 3), np.uint8)
        masks = np.empty((total, SIDE, SIDE), bool)
        scenes = compose_scenes(sources, split, total, seed, workers, garments=True)
        for number, scene in enumerate(scenes):
            images[number], masks[number] = scene.image, scene.masks[0]
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.savez_compressed(file, images=images, masks=np.packbits(masks, axis=-1))
    return out


def load_garments(folder: str | Path) -> dict[str, Scenes]:
    """Read what `export_garments` wrote, as scenes with one object each.

    Raises:
        InputError: If a split is missing, or is no such file.
    """
    found = {}
    for split in SPLITS:
        path = Path(folder) / f'{split}.npz'
        if not path.is_file():
            raise InputError(
                f'{path} is missing: make it with tools/miniature/make_world.py --garments'
            )
        try:
            with np.load(path) as file:
                images, masks = file['images'], np.unpackbits(file['masks'], axis=-1).astype(bool)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f'{path} holds no garments ({error}): delete it and make it again'
            ) from None
        rows, columns = np.any(masks, axis=2), np.any(masks, axis=1)
        boxes = [
            np.argmax(columns, 1),
            np.argmax(rows, 1),
            SIDE - np.argmax(np.flip(columns, 1), 1),
            SIDE - np.argmax(np.flip(rows, 1), 1),
        ]
        number = np.arange(len(images))
        found[split] = Scenes(
            images, tuple(GARMENTS), number, number % len(GARMENTS), masks, np.stack(boxes, 1)
        )
    return found
