"""The photos that the miniature world is made of: fetched, checked and loaded.

Three Debian packages bring them: Tux Paint's stamps (photo cut-outs with alpha, GPL-2),
Fashion-MNIST (garment photos, MIT) and MATE's backgrounds (nature photos, GPL-2+). They are
downloaded by ``apt-get`` and unpacked by ``dpkg`` into a cache folder, never installed and never
committed. Where apt is missing, a folder that holds the same files does.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from freeatm_mm.errors import RunError

__all__ = [
    'BACKGROUNDS',
    'COLOURS',
    'GARMENTS',
    'NOUNS',
    'STAMPS',
    'Cutout',
    'Cutouts',
    'fetch_sources',
    'load_cutouts',
    'source_files',
]

PACKAGES = ('tuxpaint-stamps-default', 'dataset-fashion-mnist', 'mate-backgrounds')
_STAMP_FOLDER = 'usr/share/tuxpaint/stamps'
_GARMENT_FOLDER = 'usr/share/datasets/fashion-mnist'
_BACKGROUND_FOLDER = 'usr/share/backgrounds/mate/nature'
_GARMENT_FILES = {'train': 'train', 'test': 't10k'}

#: Noun -> Fashion-MNIST label. ``shirt`` is its "T-shirt/top"; its own "Shirt" and "Coat" are left
#: out because at 28 pixels people can't tell them from T-shirt and pullover either.
GARMENTS = {
    'shirt': 0,
    'trouser': 1,
    'pullover': 2,
    'dress': 3,
    'sandal': 5,
    'sneaker': 7,
    'bag': 8,
    'boot': 9,
}

#: Noun -> files below Tux Paint's stamps (shell patterns); photos only, drawings left out.
STAMPS = {
    'bird': ('animals/birds/*',),
    'fish': tuple(
        f'animals/fish/{name}'
        for name in (
            'bluegroper',
            'butterflyfish',
            'clownfish',
            'coraltrout',
            'dolphinfish',
            'moonwrasse',
            'stripedfish',
        )
    ),
    'insect': tuple(
        f'animals/insects/{name}'
        for name in ('bee', 'fly', 'grasshopper', 'hornet', 'hoverfly', 'mantis', 'xanthia')
    ),
    'mammal': tuple(
        f'animals/mammals/{name}'
        for name in (
            'badger',
            'bears/*bear',
            'bovines/*',
            'camel/*',
            'cats/*',
            'deer/*',
            'dogs/*',
            'elephant',
            'equines/*',
            'hippopotamus',
            'pig*',
            'rhino_black',
            'rodents/[bcms]*',
            'rodents/rat',
            'wildboar',
        )
    ),
    'flower': ('plants/flowers/*',),
    'fruit': ('food/fruit/*',),
    'mushroom': ('plants/mushrooms/*', 'food/vegetables/mushroom'),
    'tree': (
        'plants/trees/birch',
        'plants/trees/holm_oak',
        'plants/trees/liberia-palm',
        'plants/trees/tree336',
    ),
    'guitar': ('hobbies/music/string/*',),
    'planet': ('space/planets/[1-9]*', 'space/moon/moon_full', 'space/moon/moon_3qt'),
    'ball': tuple(
        f'sports/{name}'
        for name in (
            'australian_rules_football',
            'basketball',
            'cricketball',
            'football',
            'soccer',
            'tennis_ball',
        )
    ),
    'car': (
        'vehicles/auto/*',
        'vehicles/emergency/*',
        'vehicles/garbagetruck',
        'vehicles/masstransit/green_korean_bus',
        'vehicles/race/indycar',
    ),
    'tool': (
        'household/arttools/scissors*',
        'household/dishes/utensils/nutcracker',
        'household/tools/hammer',
        'household/tools/mallet_metal',
        'household/tools/p*',
        'household/tools/s*',
        'household/tools/wrench*',
    ),
}

#: Every noun of the world, in the order of its class numbers.
NOUNS = (*GARMENTS, *STAMPS)

#: Background photo -> the words for it in a caption.
BACKGROUNDS = {
    'Aqua': 'in the water',
    'Blinds': 'on a leaf',
    'Dune': 'on the dune',
    'GreenMeadow': 'on the grass',
    'RainDrops': 'in the rain',
    'Storm': 'on the road',
    'Wood': 'on the wood',
}

#: Names and RGB values of the colours that garments are tinted with.
COLOURS = {
    'red': (220, 40, 40),
    'yellow': (235, 205, 50),
    'green': (50, 160, 60),
    'blue': (50, 90, 215),
    'purple': (150, 60, 180),
    'white': (245, 245, 245),
}

_LONGEST_SIDE = 72  # cut-outs are kept no larger than a scene can show them
_BACKGROUND_HEIGHT = 256
_TRAIN_WIDTH = 0.6  # share of each background photo's width that training crops come from


class Cutout(NamedTuple):
    """One object without its background.

    Args:
        name: The file it comes from, or the garment's number.
        pixels: uint8 array (h, w, 4): colour and alpha.
    """

    name: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Cutouts:
    """The objects and backgrounds of one split.

    Args:
        stamps: Noun -> its photo cut-outs.
        garments: Noun -> uint8 array (N, 28, 28), grey, black where there is no garment.
        backgrounds: Words of the place -> uint8 array (h, w, 3).
    """

    stamps: dict[str, list[Cutout]]
    garments: dict[str, np.ndarray]
    backgrounds: dict[str, np.ndarray]


def fetch_sources(cache: str | Path, folder: str | Path | None = None) -> Path:
    """Bring the source photos, once, and check every file against its checksum.

    Args:
        cache: Where to unpack the Debian packages.
        folder: A folder that already holds the packages' files (with ``usr/share/...`` in it);
            nothing is fetched then.

    Returns:
        The folder that holds ``usr/share/...``.

    Raises:
        RunError: If the packages can't be fetched; says what to do.
        FileNotFoundError: If a file is missing from ``folder``.
        ValueError: If a file isn't the one this world is made of.
    """
    if folder is not None:
        _check_files(Path(folder))
        return Path(folder)
    cache = Path(cache)
    root = cache / 'sources'
    if not root.is_dir():
        _download(cache, root)
    _check_files(root)
    return root


def _download(cache: Path, root: Path) -> None:
    for program in ('apt-get', 'dpkg-deb'):
        if shutil.which(program) is None:
            raise RunError(
                f"{program} is missing, so the Debian packages {', '.join(PACKAGES)} can't be "
                'fetched: unpack them elsewhere and give the folder that holds their usr/share '
                'with --sources'
            )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='sources-', dir=cache) as folder:
        scratch = Path(folder)
        lists = scratch / 'lists'
        (lists / 'partial').mkdir(parents=True)
        # Package lists of our own: a fresh machine may have none, and root isn't needed this way.
        options = [
            '-q',
            '-o',
            f'Dir::State::Lists={lists}',
            '-o',
            f'Dir::Cache={scratch}',
            '-o',
            'APT::Sandbox::User=',
        ]
        for command in (
            ['apt-get', *options, 'update'],
            ['apt-get', *options, 'download', *PACKAGES],
        ):
            result = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
            if result.returncode:
                raise RunError(
                    f'"{" ".join(command[-4:])}" failed: {result.stderr.strip()[-300:]} - check '
                    "the network and that apt's sources name a Debian or Ubuntu mirror, or give "
                    'the unpacked packages with --sources'
                )
        unpacked = scratch / 'unpacked'
        for package in sorted(scratch.glob('*.deb')):
            subprocess.run(['dpkg-deb', '-x', package, unpacked], check=True)
        kept = scratch / 'kept'
        for name in source_files(unpacked):  # a tenth of what the packages unpack to
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(unpacked / name, kept / name)
        os.replace(kept, root)


def source_files(root: Path) -> list[str]:
    """List the files below ``root`` that the world is made of, sorted, as relative paths."""
    stamps = [
        f'{_STAMP_FOLDER}/{stem}.png' for stems in _stamp_stems(root).values() for stem in stems
    ]
    garments = [
        f'{_GARMENT_FOLDER}/{prefix}-{kind}-ubyte.gz'
        for prefix in _GARMENT_FILES.values()
        for kind in ('images-idx3', 'labels-idx1')
    ]
    backgrounds = [f'{_BACKGROUND_FOLDER}/{name}.jpg' for name in BACKGROUNDS]
    return sorted(stamps + garments + backgrounds)


def checksum_table() -> dict[str, str]:
    """Return relative path -> SHA-256 of every source file."""
    lines = (Path(__file__).parent / 'sources.sha256').read_text().splitlines()
    return {name: digest for digest, name in (line.split('  ', 1) for line in lines)}


def _check_files(root: Path) -> None:
    for name, digest in checksum_table().items():
        path = root / name
        if not path.is_file():
            raise FileNotFoundError(
                f'{path} is missing: the folder must hold the files of the '
                f'Debian packages {", ".join(PACKAGES)}'
            )
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(
                f'{path} is not the file this world is made of (its SHA-256 differs): '
                'fetch the package again'
            )


def _stamp_stems(root: Path) -> dict[str, list[str]]:
    folder = root / _STAMP_FOLDER
    stems = sorted(
        path.relative_to(folder).with_suffix('').as_posix() for path in folder.rglob('*.png')
    )
    stems = [
        stem for stem in stems if not stem.endswith(('_mirror', '_flip')) and 'cartoon' not in stem
    ]
    return {
        noun: [
            stem
            for stem in stems
            if any(fnmatch.fnmatchcase(stem, pattern) for pattern in patterns)
        ]
        for noun, patterns in STAMPS.items()
    }


def load_cutouts(root: str | Path, split: str) -> Cutouts:
    """Load one split's objects and backgrounds.

    A third of each noun's stamps (at least one) belongs to ``test``, the rest to ``train``;
    garments follow Fashion-MNIST's own split; backgrounds are cut, ``train`` takes the left 60 %.
    ``val`` shares the stamps and background crops of ``train`` and has garments of its own.

    Args:
        root: What `fetch_sources` returned.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        ValueError: If there is no such split.
    """
    if split not in ('train', 'val', 'test'):
        raise ValueError(f'there is no split {split!r}; known are train, val and test')
    root = Path(root)
    stamps = {}
    for noun, stems in _stamp_stems(root).items():
        order = np.random.default_rng(20230814).permutation(len(stems))
        test = max(1, len(stems) // 3)
        chosen = order[:test] if split == 'test' else order[test:]
        stamps[noun] = [
            Cutout(stems[i], _read_stamp(root / _STAMP_FOLDER / f'{stems[i]}.png'))
            for i in sorted(chosen)
        ]
    return Cutouts(stamps, _read_garments(root, split), _read_backgrounds(root, split))


def _read_stamp(path: Path) -> np.ndarray:
    image = Image.open(path).convert('RGBA')
    image = image.crop(image.getchannel('A').point(lambda alpha: 255 * (alpha > 8)).getbbox())
    scale = min(1.0, _LONGEST_SIDE / max(image.size))
    size = [max(1, round(side * scale)) for side in image.size]
    # Premultiplied alpha: transparent pixels' colours must not bleed into the edge.
    return np.asarray(image.convert('RGBa').resize(size, Image.Resampling.LANCZOS).convert('RGBA'))


def _read_garments(root: Path, split: str) -> dict[str, np.ndarray]:
    prefix = _GARMENT_FILES['test' if split == 'test' else 'train']
    folder = root / _GARMENT_FOLDER
    with gzip.open(folder / f'{prefix}-images-idx3-ubyte.gz') as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f'{prefix}-labels-idx1-ubyte.gz') as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    garments = {noun: images[labels == label] for noun, label in GARMENTS.items()}
    if split != 'test':
        garments = {
            noun: array[:5000] if split == 'train' else array[5000:]
            for noun, array in garments.items()
        }
    return garments


def _read_backgrounds(root: Path, split: str) -> dict[str, np.ndarray]:
    backgrounds = {}
    for name, place in BACKGROUNDS.items():
        image = Image.open(root / _BACKGROUND_FOLDER / f'{name}.jpg').convert('RGB')
        width = round(image.width * _BACKGROUND_HEIGHT / image.height)
        pixels = np.asarray(image.resize((width, _BACKGROUND_HEIGHT), Image.Resampling.LANCZOS))
        edge = round(width * _TRAIN_WIDTH)
        backgrounds[place] = pixels[:, edge:] if split == 'test' else pixels[:, :edge]
    return backgrounds


def cut_garment(grey: np.ndarray, colour: str) -> np.ndarray:
    """Cut a garment photo out and tint it.

    Args:
        grey: uint8 array (28, 28), black where there is no garment.
        colour: One of `COLOURS`.

    Returns:
        uint8 array (h, w, 4), cropped to the garment.
    """
    inside = ndimage.binary_fill_holes(grey > 8)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    light = 0.25 + 0.75 * grey[box].astype(np.float32) / 255  # dark cloth keeps its colour
    pixels = np.empty((*light.shape, 4), np.uint8)
    pixels[..., :3] = light[..., None] * np.asarray(COLOURS[colour], np.float32)
    pixels[..., 3] = 255 * inside[box]
    return pixels
