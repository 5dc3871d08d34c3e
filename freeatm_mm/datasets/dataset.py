"""The dataset that mmengine trains on: stores with masks, plain image folders without."""
from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmpretrain.datasets.base_dataset import BaseDataset
from mmpretrain.registry import DATASETS

from freeatm_mm.datasets.transforms import check_tracked
from freeatm_mm.store import RawSample, Store, StoreError

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


class ImageFolder:
    """The images below a folder, in the order of their paths, read like a store without masks.

    The paths are kept as one block of bytes: millions of Python strings would be copied into
    every worker process as their reference counts change.

    Args:
        path: The folder; images are looked for in all folders below it, linked ones included.

    Raises:
        StoreError: If the folder doesn't exist, holds no image, or one below can't be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise StoreError(f'there is no store and no image folder at {self.path}: no such '
                             'folder')
        names = sorted(self._find())
        if not names:
            raise StoreError(f'{self.path} is empty: it holds neither a store (no store.json) nor '
                             f'an image ({", ".join(IMAGE_SUFFIXES)})')
        encoded = [name.encode() for name in names]
        self._names = np.frombuffer(b''.join(encoded), np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded])

    def _find(self) -> Iterator[str]:
        """Paths of the images below the folder, relative to it; nothing is asked of each file."""
        def refuse(error: OSError) -> None:
            raise StoreError(f"the folder {error.filename} can't be read ({error.strerror})")

        for folder, below, files in os.walk(self.path, onerror=refuse, followlinks=True):
            real = os.path.realpath(folder)
            # A link to a folder above would lead round in circles.
            below[:] = [name for name in below if not os.path.islink(os.path.join(folder, name))
                        or not Path(real).is_relative_to(
                            os.path.realpath(os.path.join(folder, name)))]
            start = Path(folder).relative_to(self.path)
            yield from ((start / name).as_posix() for name in files
                        if name.lower().endswith(IMAGE_SUFFIXES))

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, index: int) -> RawSample:
        """Image number `index`, not decoded; a :class:`RawSample` without caption and nouns.

        Raises:
            StoreError: If the file can't be read.
        """
        start = self._ends[index - 1] if index else 0
        name = self._names[start:self._ends[index]].tobytes().decode()
        path = self.path / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"the image {path} can't be read ({error.strerror})") from None
        return RawSample(name, data, path.suffix[1:].lower(), {'caption': '', 'nouns': []}, b'')


def open_source(path: str | Path) -> Store | ImageFolder:
    """Opens a folder as the store that it is, or else as a plain image folder.

    Raises:
        StoreError: If it is neither, or an unfinished, damaged or empty one.
    """
    return Store(path) if (Path(path) / 'store.json').exists() else ImageFolder(path)


def check_stores(config: Any) -> None:
    """Opens every store that a config names, so that a wrong path is told before training.

    Args:
        config: A config, or any part of one.

    Raises:
        StoreError: If a store doesn't exist, is empty or damaged.
    """
    if isinstance(config, Mapping):
        if config.get('type') in ('FreeATMDataset', 'mmpretrain.FreeATMDataset', FreeATMDataset):
            FreeATMDataset(store=config['store'])
        for value in config.values():
            check_stores(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_stores(value)


@DATASETS.register_module()
class FreeATMDataset(BaseDataset):
    """Images, with one mask per noun where there is one, from one or several stores or folders.

    Index-based: nothing is kept per sample, so that millions of samples cost no memory and no time
    to open, in the main process and in the workers. Sources are joined one after the other;
    samples with and without masks mix.

    An item may be asked for by number, or by (number, seed) as the samplers of this package do:
    then all random choices of the pipeline follow from the seed alone.

    Args:
        store: Folder of a store or of plain images (real data, without masks), or a list of them.
        masks: Whether to hand over the masks. False gives the baseline on the same images.
        pipeline: Transforms, beginning with `LoadFromStore`.
        photometric: With masks every transform must be known to move no pixels, or to move the
            masks with them; here are the names of further ones that leave every pixel in place.
        indices: Use the first so many samples, or exactly the numbered ones. Defaults to all.
        share: Use this share of the samples, in (0, 1], drawn at random and the same in every run;
            0.5 is how real and generated images are mixed half and half.
        metainfo: As in mmengine.
        test_mode: As in mmengine.
        lazy_init: As in mmengine.

    Raises:
        StoreError: If a source doesn't exist, is empty, unfinished or damaged.
        ValueError: If a transform would move the image and not its masks, or `share` is out of
            range.
    """

    def __init__(self,
                 store: str | Path | Sequence[str | Path],
                 masks: bool = True,
                 pipeline: Sequence = (),
                 photometric: Sequence[str] = (),
                 indices: int | Sequence[int] | None = None,
                 share: float = 1.0,
                 metainfo: dict | None = None,
                 test_mode: bool = False,
                 lazy_init: bool = False) -> None:
        paths = [store] if isinstance(store, (str, Path)) else list(store)
        if not paths:
            raise StoreError('FreeATMDataset got an empty list of stores: name at least one')
        if not 0 < share <= 1:
            raise ValueError(f'FreeATMDataset: share {share!r} must be above 0 and at most 1.')
        self.stores = [str(path) for path in paths]
        self.masks = masks
        self.share = share
        super().__init__(
            ann_file='', metainfo=metainfo, indices=indices, serialize_data=False,
            pipeline=pipeline, test_mode=test_mode, lazy_init=lazy_init)
        if masks:
            check_tracked(self.pipeline.transforms, photometric)

    def load_data_list(self) -> Sequence[int]:
        """Opens the sources; the 'list' is the range of their samples' numbers."""
        self.sources = [open_source(path) for path in self.stores]
        self._ends = np.cumsum([len(source) for source in self.sources])
        return range(int(self._ends[-1]))

    def full_init(self) -> None:
        """Opens the sources and applies `indices` and `share`, once."""
        if self._fully_initialized:
            return
        super().full_init()
        if not isinstance(self.data_list, range):
            self.data_list = np.asarray(self.data_list, dtype=np.int64)
        if self.share < 1:
            # At random, as sources are sorted by class or prompt.
            count = max(round(self.share * len(self.data_list)), 1)
            chosen = np.random.default_rng(0).permutation(len(self.data_list))[:count]
            self.data_list = np.asarray(self.data_list, dtype=np.int64)[np.sort(chosen)]

    def get_data_info(self, idx: int) -> dict:
        """What the pipeline starts from: where the sample is, nothing read yet.

        Args:
            idx: Number of the sample; negative numbers count from the end.

        Returns:
            `sample_idx`, `source` (what to read from), `source_idx` (the number in there) and
            `with_masks`.
        """
        self.full_init()
        number = int(self.data_list[idx])
        source = int(np.searchsorted(self._ends, number, side='right'))
        start = int(self._ends[source - 1]) if source else 0
        return dict(sample_idx=idx % len(self), source=self.sources[source],
                    source_idx=number - start, with_masks=self.masks)

    def __getitem__(self, idx: int | tuple[int, int]) -> dict:
        """The sample after the pipeline; see the class for (number, seed)."""
        if isinstance(idx, tuple):
            idx, seed = idx
            random.seed(seed)
            np.random.seed(seed)
            # Not `torch.manual_seed`: it would also queue a call, with a stack trace, for CUDA.
            torch.default_generator.manual_seed(seed)
        return super().__getitem__(idx)

    def extra_repr(self) -> list[str]:
        """Lines of `repr`."""
        return [f'Stores: \t{", ".join(self.stores)}', f'Masks: \t{self.masks}',
                f'Share: \t{self.share:g}']
