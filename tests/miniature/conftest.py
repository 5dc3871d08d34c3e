"""A stand-in for the source photos: the same folders and formats, made here in a second."""

from __future__ import annotations

import gzip
import hashlib
import struct

import numpy as np
import pytest
from PIL import Image

from freeatm_mm.miniature import sources

STEMS = {
    'bird': 'animals/birds/{}',
    'flower': 'plants/flowers/{}',
    'fruit': 'food/fruit/{}',
    'guitar': 'hobbies/music/string/{}',
    'planet': 'space/planets/1{}',
    'mushroom': 'plants/mushrooms/{}',
    'car': 'vehicles/auto/{}',
    'mammal': 'animals/mammals/bovines/{}',
    'tool': 'household/tools/wrench{}',
}


@pytest.fixture(scope='session')
def source_folder(tmp_path_factory):
    """A folder like the unpacked packages: opaque magenta discs, grey garments, green photos."""
    root = tmp_path_factory.mktemp('sources')
    rng = np.random.default_rng(0)
    for noun, patterns in sources.STAMPS.items():
        if noun in STEMS:
            stems = [STEMS[noun].format(letter) for letter in 'abc']
        else:
            stems = [pattern.replace('*', 'a') for pattern in patterns][:3]
        for stem in stems:
            path = root / 'usr/share/tuxpaint/stamps' / f'{stem}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            size = rng.integers(40, 120, 2)
            rows, columns = np.ogrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
            pixels = np.full((*size, 4), (255, 0, 255, 255), np.uint8)
            pixels[rows**2 + columns**2 > 1, 3] = 0
            Image.fromarray(pixels).save(path)
    folder = root / 'usr/share/datasets/fashion-mnist'
    folder.mkdir(parents=True)
    for prefix, count in (('train', 51000), ('t10k', 40)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 4:24, 8:20] = 150
        with gzip.open(folder / f'{prefix}-images-idx3-ubyte.gz', 'wb', 1) as file:
            file.write(struct.pack('>4i', 2051, count, 28, 28) + images.tobytes())
        with gzip.open(folder / f'{prefix}-labels-idx1-ubyte.gz', 'wb', 1) as file:
            file.write(
                struct.pack('>2i', 2049, count) + (np.arange(count) % 10).astype(np.uint8).tobytes()
            )
    folder = root / 'usr/share/backgrounds/mate/nature'
    folder.mkdir(parents=True)
    for name in sources.BACKGROUNDS:
        # The column is written into the red channel, so that a crop tells where it comes from.
        pixels = np.zeros((256, 400, 3), np.uint8)
        pixels[..., 0] = np.linspace(0, 100, 400).astype(np.uint8)
        pixels[..., 1] = 120
        Image.fromarray(pixels).save(folder / f'{name}.jpg', quality=95)
    return root


@pytest.fixture
def known_sources(source_folder, monkeypatch):
    """The stand-in, with checksums that fit it."""
    table = {
        name: hashlib.sha256((source_folder / name).read_bytes()).hexdigest()
        for name in sources.source_files(source_folder)
    }
    monkeypatch.setattr(sources, 'checksum_table', lambda: table)
    return source_folder
