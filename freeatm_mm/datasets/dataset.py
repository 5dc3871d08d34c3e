"""The dataset that mmengine trains on: stores with masks, plain image folders without."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmpretrain.datasets.base_dataset import BaseDataset
from mmpretrain.registry import DATASETS

from freeatm_mm.addresses import is_address
from freeatm_mm.datasets.batches import BatchPipeline
from freeatm_mm.datasets.samplers import seed_draw
from freeatm_mm.datasets.transforms import (
    LoadFromStore,
    PackFreeATMInputs,
    check_loading,
    check_tracked,
)
from freeatm_mm.errors import InputError, counted
from freeatm_mm.files import read_json
from freeatm_mm.ops.choices import check_choice
from freeatm_mm.ops.nouns import UNKNOWN_NOUN, noun_id
from freeatm_mm.store import RawSample, Store, StoreError
from freeatm_mm.store.errors import UnreachableStoreError

MASK_SOURCES = ('own', 'other')

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')

#: Options of transforms that are for masks, and whose they are.
_OF_MASKS = {
    'centred_box': 'LoadFromStore',
    'trust': 'LoadFromStore',
    'object_crops': 'FreeATMMultiView',
    'one_noun': 'PackFreeATMInputs',
}

#: Samples whose files are read before the first of their images is decoded.
DRAWN_TOGETHER = 32


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
            raise StoreError(
                f'there is no store and no image folder at {self.path}: no such folder'
            )
        names = sorted(self._find())
        if not names:
            raise StoreError(
                f'{self.path} is empty: it holds neither a store (no store.json) nor '
                f'an image ({", ".join(IMAGE_SUFFIXES)})'
            )
        encoded = [os.fsencode(name) for name in names]  # whatever bytes they are
        self._names = np.frombuffer(b''.join(encoded), np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded])

    def _find(self) -> Iterator[str]:
        """Paths of the images below the folder, relative to it; nothing is asked of each file."""

        def refuse(error: OSError) -> None:
            raise StoreError(f"the folder {error.filename} can't be read ({error.strerror})")

        for folder, below, files in os.walk(self.path, onerror=refuse, followlinks=True):
            real = os.path.realpath(folder)
            # A link to a folder above would lead round in circles.
            below[:] = [
                name
                for name in below
                if not os.path.islink(os.path.join(folder, name))
                or not Path(real).is_relative_to(os.path.realpath(os.path.join(folder, name)))
            ]
            start = Path(folder).relative_to(self.path)
            yield from (
                (start / name).as_posix() for name in files if name.lower().endswith(IMAGE_SUFFIXES)
            )

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, index: int) -> RawSample:
        """Image number `index`, not decoded; a `RawSample` without caption and nouns.

        Raises:
            StoreError: If the file can't be read.
        """
        start = self._ends[index - 1] if index else 0
        name = os.fsdecode(self._names[start : self._ends[index]].tobytes())
        path = self.path / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"the image {path} can't be read ({error.strerror})") from None
        return RawSample(name, data, path.suffix[1:].lower(), {'caption': '', 'nouns': []}, b'')


def open_source(path: str | Path) -> Store | ImageFolder:
    """Open a folder or an address as the store that it is, or a folder as one of plain images.

    Raises:
        StoreError: If it is neither, or an unfinished, damaged or empty one.
    """
    is_store = is_address(path) or (Path(path) / 'store.json').exists()
    return Store(path) if is_store else ImageFolder(path)


@DATASETS.register_module()
class FreeATMDataset(BaseDataset):
    """Images, with one mask per noun where there is one, from one or several stores or folders.

    Index-based: nothing is kept per sample, so that millions of samples cost no memory and no time
    to open, in the main process and in the workers. Sources are joined one after the other;
    samples with and without masks mix.

    An item may be asked for by number, or by (number, seed) as the samplers of this package do:
    then all random choices of the pipeline follow from the seed alone.

    Args:
        data_root: Folder or address (`s3://...`) of a store, or folder of plain images (real data,
            without masks), or a list of such.
        masks: Whether to hand over the masks. False gives the baseline on the same images.
        pipeline: Transforms, beginning with `LoadFromStore`.
        photometric: With masks every transform must be known to move no pixels, or to move the
            masks with them; here are the names of further ones that leave every pixel in place.
        indices: Use the first so many samples, or exactly the numbered ones: a list, an array, or
            the path of a JSON file with a list. Defaults to all.
        share: Use this share of the samples, in (0, 1], drawn at random and the same in every run;
            0.5 is how real and generated images are mixed half and half.
        max_unreadable: Share of the samples, in [0, 1), that may turn out to be unreadable, on
            disk or when decoded. Each is warned of, with its name and the count so far, and another
            one takes its place, the same in every run; with one more the training stops. Of several
            processes each counts what it met. By default none may. A store whose server can't be
            reached stops the training.
        mask_source: 'own', or, as a control, 'other': each image of a store gets the masks and
            nouns of another one, by a permutation without fixed points over all that are used. It
            stays the same over epochs, workers and resumes.
        mask_source_seed: Of that permutation.
        in_memory: Decode all samples once and make whole batches at a time, several times faster
            for small pictures: see `freeatm_mm.datasets.batches.BatchPipeline` for what it can do.
            For `SeededSampler` and `SeededInfiniteSampler`, without wrappers, with num_workers=0.
        device: Where the pictures are kept with `in_memory`, such as 'cuda' (with
            pin_memory=False).
        metainfo: As in mmengine.
        test_mode: As in mmengine.
        lazy_init: As in mmengine.

    Raises:
        StoreError: If a source doesn't exist, is empty, unfinished or damaged, nothing is left of
            it, or there are no masks to exchange.
        ValueError: If a transform would move the image and not its masks, an argument is out of
            range, masks are to be exchanged that aren't handed over, or an option of the pipeline
            has no effect without masks.
    """

    data_list: Sequence[int] | np.ndarray

    def __init__(
        self,
        data_root: str | Path | Sequence[str | Path] = (),
        masks: bool = True,
        pipeline: Sequence = (),
        photometric: Sequence[str] = (),
        indices: int | Sequence[int] | str | Path | None = None,
        share: float = 1.0,
        max_unreadable: float = 0.0,
        mask_source: str = 'own',
        mask_source_seed: int = 0,
        in_memory: bool = False,
        device: str = 'cpu',
        metainfo: dict | None = None,
        test_mode: bool = False,
        lazy_init: bool = False,
    ) -> None:
        paths = [data_root] if isinstance(data_root, (str, Path)) else list(data_root)
        if not all(map(str, paths)) or not paths:
            raise StoreError(
                'FreeATMDataset has no data_root: name a store, an image folder, or a list of them'
            )
        if not 0 < share <= 1:
            raise ValueError(f'FreeATMDataset: share {share!r} must be above 0 and at most 1.')
        if not 0 <= max_unreadable < 1:
            raise ValueError(
                f'FreeATMDataset: max_unreadable {max_unreadable!r} must be a share '
                'from 0 to below 1.'
            )
        check_choice('FreeATMDataset: mask_source', mask_source, MASK_SOURCES)
        if mask_source != 'own' and not masks:
            raise ValueError(f'FreeATMDataset: mask_source={mask_source!r} needs masks=True.')
        if in_memory and max_unreadable:
            raise ValueError(
                'FreeATMDataset: in_memory reads all samples: leave max_unreadable out.'
            )
        if device != 'cpu' and not in_memory:
            raise ValueError(f'FreeATMDataset: device={device!r} needs in_memory=True.')
        self.in_memory = in_memory
        self.device = device
        self.data_roots = [str(path) for path in paths]
        self.masks = masks
        self.share = share
        self.max_unreadable = max_unreadable
        self.mask_source = mask_source
        self.mask_source_seed = mask_source_seed
        super().__init__(
            ann_file='',
            metainfo=metainfo,
            indices=_as_indices(indices),
            serialize_data=False,
            pipeline=pipeline,
            test_mode=test_mode,
            lazy_init=lazy_init,
        )
        check_loading(self.pipeline.transforms)
        if masks:
            check_tracked(self.pipeline.transforms, photometric)
        else:
            self._refuse('masks=True', *_OF_MASKS)
        if not all(getattr(step, 'with_masks', True) for step in self.pipeline.transforms):
            self._refuse('with_masks=True of PackFreeATMInputs', 'trust', 'one_noun')

    def _refuse(self, needed: str, *options: str) -> None:
        """Refuse options of the pipeline that have no effect without something else."""
        for option in options:
            if any(getattr(step, option, None) for step in self.pipeline.transforms):
                raise ValueError(f'FreeATMDataset: {option} of {_OF_MASKS[option]} needs {needed}.')

    def load_data_list(self) -> Sequence[int]:
        """Open the sources; the 'list' is the range of their samples' numbers."""
        self.sources = [open_source(path) for path in self.data_roots]
        self._ends = np.cumsum([len(source) for source in self.sources])
        count, indices = int(self._ends[-1]), self._indices
        wanted = (
            [] if indices is None else ([abs(indices) - 1] if isinstance(indices, int) else indices)
        )
        beyond = [index for index in wanted if not -count <= index < count]
        if beyond:
            raise StoreError(
                f'{", ".join(self.data_roots)}: indices asks for {beyond[0]}, counted '
                f'from 0, and the number of samples is {count}'
            )
        return range(count)

    def full_init(self) -> None:
        """Open the sources and apply `indices`, `share` and `mask_source`, once."""
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

        if not len(self.data_list):
            raise StoreError(
                f'no sample is left of the {self._ends[-1]} in '
                f'{", ".join(self.data_roots)}: indices={self._indices!r} takes none'
            )
        stores = [source for source in self.sources if isinstance(source, Store)]
        if self.masks and stores and not any(store.has_nouns for store in stores):
            print_log(
                f'{", ".join(str(store.path) for store in stores)}: no sample has a noun, so '
                'every image is treated whole, as in the baseline',
                'current',
                logging.WARNING,
            )
        if self.max_unreadable:
            # One byte a sample, shared with the worker processes.
            self._unreadable = torch.zeros(int(self._ends[-1]), dtype=torch.uint8).share_memory_()
        if self.mask_source == 'other':
            self._exchange_masks()

    @property
    def gives_masks(self) -> bool:
        """Whether a model gets masks of this data set: of a store that has nouns."""
        self.full_init()
        return (
            self.masks
            and all(getattr(step, 'with_masks', True) for step in self.pipeline.transforms)
            and any(isinstance(source, Store) and source.has_nouns for source in self.sources)
        )

    def get_subset(self, indices: int | Sequence[int]) -> FreeATMDataset:
        """Return a subset, as mmengine does for `KFoldDataset`; `mask_source` stays within it."""
        subset = super().get_subset(indices)
        subset._settle()
        return subset

    def get_subset_(self, indices: int | Sequence[int]) -> None:
        """Keep a subset alone; see `get_subset`."""
        super().get_subset_(indices)
        self._settle()

    def _settle(self) -> None:
        """Bring what depends on the samples used, or is shared with workers, to a subset."""
        if not isinstance(self.data_list, range):
            self.data_list = np.asarray(self.data_list, dtype=np.int64)
        self.__dict__.pop('_batches', None)
        if self.max_unreadable:
            self._unreadable.share_memory_()
        if self.mask_source == 'other':
            self._exchange_masks()

    def _exchange_masks(self) -> None:
        """Draw the permutation: one cycle through all samples of stores, in random order."""
        numbers = np.unique(np.asarray(self.data_list, dtype=np.int64))
        of_store = np.array([isinstance(source, Store) for source in self.sources])
        numbers = numbers[of_store[np.searchsorted(self._ends, numbers, side='right')]]
        if len(numbers) < 2:
            raise StoreError(
                f"{', '.join(self.data_roots)}: mask_source='other' exchanges masks among "
                f'samples of stores, and there are {len(numbers)} of them'
            )
        cycle = np.random.default_rng(self.mask_source_seed).permutation(numbers)
        order = cycle.argsort()
        self._exchanging, self._masks_of = cycle[order], np.roll(cycle, -1)[order]

    def _locate(self, number: int) -> tuple[Store | ImageFolder, int]:
        """Where a sample lies, of all in all sources: its source, and its number in there."""
        source = int(np.searchsorted(self._ends, number, side='right'))
        return self.sources[source], number - (int(self._ends[source - 1]) if source else 0)

    def get_data_info(self, idx: int) -> dict:
        """What the pipeline starts from: where the sample is, nothing read yet.

        Args:
            idx: Number of the sample; negative numbers count from the end.

        Returns:
            `sample_idx`, `source` (what to read from), `source_idx` (the number in there) and
            `with_masks`; `mask_source` and `mask_source_idx` where the masks are another sample's.

        Raises:
            IndexError: If there is no such sample.
            TypeError: If `idx` is no whole number.
        """
        self.full_init()
        try:
            number = int(self.data_list[operator.index(idx)])
        except IndexError:
            raise IndexError(f'sample {idx} of a data set that has {len(self)}') from None
        except TypeError:
            raise TypeError(f'samples are chosen by their number, got {idx!r}') from None
        source, source_idx = self._locate(number)
        info = dict(
            sample_idx=idx % len(self), source=source, source_idx=source_idx, with_masks=self.masks
        )
        if self.mask_source == 'other' and isinstance(source, Store):
            other = int(self._masks_of[np.searchsorted(self._exchanging, number)])
            info['mask_source'], info['mask_source_idx'] = self._locate(other)
        return info

    def get_cat_ids(self, idx: int) -> list[int]:
        """Numbers of an image's nouns, for `ClassBalancedDataset`; none where they have no names.

        Args:
            idx: Number of the sample.

        Raises:
            StoreError: If the sample can't be read.
        """
        self.full_init()
        source, number = self._locate(int(self.data_list[idx]))
        if isinstance(source, ImageFolder):
            return []
        # Of every sample before the first step; what is read of them then is proved by all of it.
        numbers = [noun_id(name) for name in source.names(number)]
        return [number for number in numbers if number != UNKNOWN_NOUN]

    def prepare_data(self, idx: int) -> dict | None:
        """The sample after the pipeline, or None where it is unreadable and may be passed over.

        Raises:
            StoreError: If it is unreadable, and so are more samples than may be; or if the server
                of a store can't be reached, which says nothing of the sample.
        """
        try:
            return super().prepare_data(idx)
        except UnreachableStoreError:
            raise
        except StoreError as error:
            if not self.max_unreadable or self.test_mode:
                raise StoreError(
                    f'{error} (max_unreadable of FreeATMDataset, a share, passes over as many)'
                ) from error
            self._count_unreadable(int(self.data_list[idx]), error)
            return None

    def _count_unreadable(self, number: int, error: StoreError) -> None:
        known = bool(self._unreadable[number])
        self._unreadable[number] = 1
        count, most = int(self._unreadable.sum()), int(self.max_unreadable * len(self))
        if count > most:
            raise StoreError(
                f"{error}; with it {counted(count, 'sample')} of {len(self)} can't be read, and "
                f'max_unreadable={self.max_unreadable:g} allows {most}'
            ) from error
        if not known:
            print_log(
                f'{error}; another sample takes its place (unreadable so far: {count} of '
                f'{len(self)}, at most {most})',
                'current',
                logging.WARNING,
            )

    def __getitem__(self, idx: int | tuple[int, int]) -> dict:
        """The sample after the pipeline; see the class for (number, seed)."""
        if isinstance(idx, tuple):
            idx, seed = idx
            seed_draw(seed)
        if self.in_memory:
            raise ValueError(
                'FreeATMDataset: in_memory makes whole batches, and was asked for one sample: use '
                'SeededSampler or SeededInfiniteSampler, and no wrapper around the data set.'
            )
        return super().__getitem__(idx)

    def draw_batch(self, draws: Sequence[tuple[int, int]]) -> list[dict]:
        """Return the samples of some draws (number, seed) after the pipeline.

        The same as one after the other, and faster: all files are read first, then all masks
        decoded, then all images made to views, and at last the masks brought to these. Work on
        small arrays takes a third of the time if nothing else fills the processor's caches between.

        Raises:
            StoreError: If a sample can't be read, and so are more than may be; with `in_memory`,
                the first time.
            ValueError: If the pipeline can't be done for whole batches, with `in_memory`.
        """
        self.full_init()
        transforms = self.pipeline.transforms
        if self.in_memory:
            if not hasattr(self, '_batches'):
                samples = (transforms[0](self.get_data_info(idx)) for idx in range(len(self)))
                self._batches = BatchPipeline(transforms, samples, len(self), self.device)
            numbers, seeds = zip(*draws)
            return self._batches(numbers, seeds)
        ends = [type(transform) for transform in (*transforms[:1], *transforms[1:][-1:])]
        if type(self) is not FreeATMDataset or ends != [LoadFromStore, PackFreeATMInputs]:
            return [self[draw] for draw in draws]
        items = []
        for start in range(0, len(draws), DRAWN_TOGETHER):
            items += self._draw_together(draws[start : start + DRAWN_TOGETHER])
        return items

    def _draw_together(self, draws: Sequence[tuple[int, int]]) -> list[dict]:
        """Run the pipeline in stages, each for all draws."""
        load, *middle, pack = self.pipeline.transforms

        def stage(function: Callable[[dict], dict | None], results: dict | None) -> dict | None:
            try:
                return None if results is None else function(results)
            except StoreError:
                return None

        def views(results: dict) -> dict | None:
            for transform in (load.decode_image, *middle):
                results = transform(results)
                if results is None:
                    return None
            results['packed'] = pack.pack_image(results)
            results.pop(pack.input_key, None)  # it was copied
            return results

        read = self._read_together(load, draws)
        ready = [stage(load.decode_masks, results) for results in read]
        drawn = []
        for results, (_, seed) in zip(ready, draws):
            seed_draw(seed)
            drawn.append(stage(views, results))
        for results in drawn:
            if results is not None and 'stored_masks' in results:
                pack.pack_masks(results, results['packed']['data_samples'])
        # Once more, alone: what is told of a sample that can't be read, and which takes its place.
        return [
            self[draw] if results is None else results['packed']
            for results, draw in zip(drawn, draws)
        ]

    def _read_together(
        self, load: LoadFromStore, draws: Sequence[tuple[int, int]]
    ) -> list[dict | None]:
        """Read the samples of some draws, from an address several at a time.

        None stands for one that can't be read and may be passed over.
        """
        infos = [self.get_data_info(number) for number, _ in draws]
        wanted: dict[Store, set[int]] = {}
        for info in infos:
            for which in ('', 'mask_'):
                if isinstance(source := info.get(f'{which}source'), Store):
                    wanted.setdefault(source, set()).add(info[f'{which}source_idx'])
        read: list[dict | None] = []
        with ExitStack() as held:
            for source, numbers in wanted.items():
                held.enter_context(source.at_hand(sorted(numbers)))
            for draw, info in zip(draws, infos):
                try:
                    read.append(load.read(info))
                except StoreError as error:
                    if not self.max_unreadable or isinstance(error, UnreachableStoreError):
                        self[draw]  # says so; a server that doesn't answer isn't asked for the rest
                    read.append(None)
        return read

    def extra_repr(self) -> list[str]:
        """Lines of `repr`."""
        return [
            f'Data roots: \t{", ".join(self.data_roots)}',
            f'Masks: \t{self.masks}',
            f'Share: \t{self.share:g}',
        ]


def _as_indices(indices: Any) -> int | list[int] | None:
    """Return `indices` as mmengine takes them, of arrays, tensors and files too.

    Raises:
        InputError: If they are no numbers of samples.
    """
    if indices is None:
        return None
    if isinstance(indices, (str, Path)):
        return _read_indices(indices)
    plain = indices.tolist() if hasattr(indices, 'tolist') else indices
    numbers = plain if isinstance(plain, Sequence) else [plain]
    if not all(type(number) is int for number in numbers):
        raise InputError(
            'FreeATMDataset: indices must be a number of samples, a list of their numbers, or the '
            f'path of a JSON file with one, got {indices!r:.60}'
        )
    return list(numbers) if isinstance(plain, Sequence) else plain


def _read_indices(path: str | Path) -> list[int]:
    """Read the numbers of samples from a JSON file."""
    indices = read_json(path)
    if not isinstance(indices, list) or not all(type(index) is int for index in indices):
        raise InputError(f'{path} must be a list of the numbers of samples')
    return indices
