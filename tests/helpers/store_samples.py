"""Small samples for tests of the store, and of what reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from freeatm_mm.prompts import Noun
from freeatm_mm.store import Sample


def make_sample(number: int, nouns: int = 2, image_format: str = 'png', size: int = 16) -> Sample:
    """A sample that is a function of its number alone."""
    rng = np.random.default_rng(number)
    words = ['bird', 'dress', 'sand'][:nouns]
    caption = f'{number}: ' + ' '.join(words)
    spans = tuple(
        Noun(word, caption.index(word), caption.index(word) + len(word), word) for word in words
    )
    image = Image.fromarray(rng.integers(0, 256, (size, size + 4, 3), np.uint8))
    return Sample.from_image(
        f'{number:06d}',
        image,
        image_format=image_format,
        caption=caption,
        nouns=spans,
        masks=rng.integers(0, 256, (nouns, 8, 6), np.uint8),
        scales=rng.random((nouns, 2), np.float32),
        meta={'seed': number},
    )


def varied_sample(number: int) -> Sample:
    """Like `make_sample`, with all numbers of nouns and both image formats among them."""
    return make_sample(number, 0 if number == 4 else 1 + number % 3, 'jpg' if number % 2 else 'png')


def assert_same(first: Sample, second: Sample) -> None:
    """Every field of two samples is equal, the image byte for byte."""
    for field in ('key', 'image_bytes', 'image_format', 'caption', 'nouns', 'meta'):
        assert getattr(first, field) == getattr(second, field)
    for field in ('masks', 'scales'):
        left, right = getattr(first, field), getattr(second, field)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Name and content of every file in a folder."""
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
