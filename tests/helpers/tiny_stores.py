"""Small stores for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from freeatm_mm.prompts import Noun
from freeatm_mm.store import Sample, write_store

NOUNS = ('dog', 'bird', 'shoe', 'lamp', 'boat', 'drum')


def make_store(
    path: Path,
    count: int = 12,
    size: tuple[int, int] = (24, 32),
    nouns: tuple[int, ...] = (0, 1, 2, 3),
    mask_size: tuple[int, int] = (8, 8),
    seed: int = 0,
    config: dict | None = None,
) -> Path:
    """Writes a store of random images whose i-th has `nouns[i % len(nouns)]` nouns.

    Each mask is one bright blob on a dark ground.
    """
    random = np.random.default_rng(seed)

    def sample(number: int) -> Sample:
        names = [NOUNS[(number + k) % len(NOUNS)] for k in range(nouns[number % len(nouns)])]
        caption, spans = 'a photo of', []
        for name in names:
            spans.append(Noun(name, len(caption) + 3, len(caption) + 3 + len(name), name))
            caption += f' a {name}'
        masks = random.integers(0, 40, (len(names), *mask_size), dtype=np.uint8)
        for mask in masks:
            y, x = random.integers(0, mask_size[0] - 3), random.integers(0, mask_size[1] - 3)
            mask[y : y + 4, x : x + 4] = 255
        scales = np.sort(random.uniform(0.001, 0.02, (len(names), 2)), axis=1).astype(np.float32)
        image = Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
        return Sample.from_image(
            f'{number:06d}',
            image,
            image_format='png',
            caption=caption,
            nouns=tuple(spans),
            masks=masks,
            scales=scales,
        )

    samples = (sample(number) for number in range(count))
    write_store(path, samples, samples_per_shard=5, config=config)
    return path


def make_store_of_spellings(path: Path) -> tuple[Path, list[str]]:
    """Writes one sample whose nouns are written in four ways; also what they are called."""
    spellings = [('Dog', None), ('dogs', 'dog'), ('dog', 'dog'), ('Cat', 'domestic cat')]
    caption = ' '.join(text for text, _ in spellings)
    nouns, start = [], 0
    for text, category in spellings:
        nouns.append(Noun(text, start, start + len(text), category))
        start += len(text) + 1
    masks = np.zeros((4, 6, 6), np.uint8)
    masks[:, :3] = 255
    sample = Sample.from_image(
        'spellings',
        Image.new('RGB', (12, 12)),
        caption=caption,
        nouns=tuple(nouns),
        masks=masks,
        scales=np.array([[0, 1]] * 4, np.float32),
    )
    write_store(path, [sample])
    return path, ['dog', 'dog', 'dog', 'domestic cat']
