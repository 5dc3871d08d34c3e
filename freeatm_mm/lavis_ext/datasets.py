"""Image-text pairs with objects, from stores and from LAVIS's caption files; retrieval sets.

All files are read and checked when a dataset is made (`freeatm_mm.lavis_ext.annotations`).
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lavis.datasets.datasets.base_dataset import BaseDataset
from lavis.datasets.datasets.retrieval_datasets import RetrievalDataset, RetrievalEvalDataset
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from freeatm_mm.errors import InputError, MissingFileError
from freeatm_mm.lavis_ext.annotations import (
    UnreadableImage,
    check_detected,
    check_pictures,
    open_picture,
    pass_over_unreadable,
    read_captions,
    read_detections,
    read_retrieval,
)
from freeatm_mm.ops.nouns import UNKNOWN_NOUN, noun_id
from freeatm_mm.ops.position import (
    WHOLE_VIEW,
    PlacedObject,
    cover_in_view,
    object_from_box,
    objects_from_masks,
)
from freeatm_mm.store import Store, StoreError
from freeatm_mm.store.errors import UnreachableStoreError

__all__ = [
    'CaptionFile',
    'FreeATMPretrainDataset',
    'FreeATMRetrievalDataset',
    'FreeATMRetrievalEvalDataset',
    'StorePairs',
    'batch_items',
]


#: So many pairs are drawn to find another one with objects.
_DRAWS = 20


def _boxes(
    found: Sequence[dict[str, Any]], size: tuple[int, int], where: str
) -> list[PlacedObject]:
    """The objects of a list of `name` and `box`."""
    try:
        return [object_from_box(thing['name'], thing['box'], size) for thing in found]
    except ValueError as error:
        raise InputError(f'{where}: {error}') from None


class StorePairs:
    """The pairs of a store; objects come from its masks, or from detections.

    Args:
        path: The store's folder.
        detections: A file of detections in the masks' place.
        threshold: What counts as foreground of a stretched mask.

    Attributes:
        gives_objects: Whether a pair of it may have objects.

    Raises:
        StoreError: If there is no store, or an unfinished or damaged one.
        InputError: If the detections can't be read, or lack an image.
    """

    def __init__(self, path: str | Path, detections: str | Path | None, threshold: float) -> None:
        self.store = Store(path)
        self.threshold = threshold
        self.detections: dict[str, Any] | None = None
        self.detected_in = detections
        self.gives_objects = self.store.has_nouns
        if detections is not None:
            self.detections = read_detections(detections)
            check_detected(
                self.store.sample_keys(),
                self.detections,
                detections,
                path,
                'sample',
            )
            self.gives_objects = any(self.detections[key] for key in self.store.sample_keys())

    def __len__(self) -> int:
        return len(self.store)

    def load(self, index: int, with_objects: bool) -> tuple[Image.Image, str, list[PlacedObject]]:
        """RGB picture, caption and objects of a pair.

        Raises:
            UnreadableImage: If the sample is damaged, or its image or masks can't be decoded.
            UnreachableStoreError: If its server can't be reached.
            InputError: If a detected box lies outside its image, or the masks are of regions that
                have no noun.
        """
        try:
            raw = self.store.read(index)
        except UnreachableStoreError:  # which says nothing of the sample
            raise
        except StoreError as error:
            raise UnreadableImage(str(error)) from None
        image = open_picture(io.BytesIO(raw.image_bytes), f'{self.store.path}: sample {raw.key!r}')
        objects = []
        if with_objects and self.detections is not None:
            objects = _boxes(
                self.detections[raw.key], image.size, f'{self.detected_in}, {raw.key!r}'
            )
        elif with_objects and raw.info['nouns']:
            try:
                names, masks = raw.names(), raw.masks()
            except StoreError as error:
                raise UnreadableImage(f'{self.store.path}: {error}') from None
            unnamed = [name for name in names if noun_id(name) == UNKNOWN_NOUN]
            if unnamed:
                raise InputError(
                    f'{self.store.path}: sample {raw.key!r} has masks of regions without a noun '
                    f'({unnamed[0]!r}), and position prompts and model.mask_loss need nouns: take '
                    'the store that the regions were made from, or train without objects'
                )
            objects = [
                replace(thing, word=noun['text'])
                for thing, noun in zip(
                    objects_from_masks(names, masks, self.threshold), raw.info['nouns']
                )
            ]
        return image, raw.info['caption'], objects


class CaptionFile:
    """The pairs of LAVIS's caption JSON: a list of `image`, `caption` and, optionally, `objects`.

    `objects` is a list of `name` and `box` (x1, y1, x2, y2 in pixels).

    Args:
        path: The JSON file.
        images: Folder that the images' paths start from.
        detections: A file of detections, by the images' paths, in the place of `objects`.
        pass_over: Leave out pairs whose picture isn't there.

    Attributes:
        missing: How many pairs were left out.
        gives_objects: Whether a pair of it has objects.

    Raises:
        MissingFileError: If there is no such file or folder.
        InputError: If an entry of the file can't be used, or its picture isn't there.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path,
        detections: str | Path | None,
        pass_over: bool = False,
    ) -> None:
        self.path, self.images = Path(path), Path(images)
        if not self.images.is_dir():
            raise MissingFileError(f'there is no image folder {self.images}')
        rows = read_captions(self.path)
        self.annotations = check_pictures(rows, self.images, self.path, pass_over)
        self.missing = len(rows) - len(self.annotations)
        self.detections: dict[str, Any] | None = None
        self.detected_in = detections
        if detections is not None:
            self.detections = read_detections(detections)
            check_detected(
                (row['image'] for row in self.annotations),
                self.detections,
                detections,
                path,
                'image',
            )
        self.gives_objects = any(
            row.get('objects') if self.detections is None else self.detections[row['image']]
            for row in self.annotations
        )

    def __len__(self) -> int:
        return len(self.annotations)

    def load(self, index: int, with_objects: bool) -> tuple[Image.Image, str, list[PlacedObject]]:
        """RGB picture, caption and objects of a pair.

        Raises:
            InputError: If the image can't be read, or a box lies outside its image; names file and
                image.
        """
        row = self.annotations[index]
        image = open_picture(self.images / row['image'], str(self.path))
        objects = []
        if with_objects and self.detections is not None:
            objects = _boxes(
                self.detections[row['image']], image.size, f'{self.detected_in}, {row["image"]!r}'
            )
        elif with_objects:
            objects = _boxes(row.get('objects', ()), image.size, f'{self.path}, {row["image"]!r}')
        return image, row['caption'], objects


class FreeATMPretrainDataset(BaseDataset):
    """Image-text pairs for pretraining, with the objects' positions in the view joined to the text.

    Args:
        vis_processor: `freeatm_image_train`, or any of LAVIS's where no position is needed.
        text_processor: `freeatm_caption`, or any of LAVIS's.
        sources: `StorePairs` and `CaptionFile`, one after the other.
        share: Use this share of the pairs, in (0, 1], drawn at random and the same in every run.
        pass_over: Take the next pair for one whose picture can't be read, and count it.
        mask_grid: Also give the objects' masks in the view, on so many cells along each side, for
            a model that compares them with its attention; ``None``: give none.

    Raises:
        ValueError: If there are no pairs, `share` is out of range, prompts or masks are asked for
            and no pair has objects, or they are to follow the view and the image processor can't
            say what it shows.
    """

    def __init__(
        self,
        vis_processor,
        text_processor,
        sources: Sequence[StorePairs | CaptionFile],
        share: float = 1.0,
        pass_over: bool = False,
        mask_grid: int | None = None,
    ) -> None:
        super().__init__(vis_processor, text_processor)
        self.mask_grid = mask_grid
        if not 0 < share <= 1:
            raise ValueError(f'share must be above 0 and at most 1, got {share}')
        self.sources, self.pass_over = list(sources), pass_over
        self.ends = np.cumsum([len(source) for source in self.sources])
        total = int(self.ends[-1]) if self.sources else 0
        if not total:
            raise ValueError(
                'there are no image-text pairs to train on: name a store or a '
                'caption file that holds some'
            )
        self.chosen: np.ndarray = np.arange(total)
        if share < 1:
            # At random, as sources may be sorted.
            drawn = np.random.default_rng(0).permutation(total)[: max(round(share * total), 1)]
            self.chosen = np.sort(drawn)
        self.with_objects = getattr(text_processor, 'wants_objects', False)
        self.with_others = getattr(text_processor, 'wants_others', False)
        self.tracks = hasattr(vis_processor, 'with_view')
        asked = {'position prompts': self.with_objects, 'masks (mask_grid)': mask_grid is not None}
        needing = [what for what, wanted in asked.items() if wanted]
        if needing and not any(source.gives_objects for source in self.sources):
            raise InputError(
                f'{" and ".join(needing)} are of objects, and no pair has any, so that the plain '
                'baseline would be trained: name a store with nouns, a caption file with '
                '"objects", or files of detections; for the baseline set '
                'text_processor.train.preset=none, mask_grid=null and model.mask_loss=0'
            )
        for what, wanted in (
            ('position prompts that follow', getattr(text_processor, 'wants_view', False)),
            ('masks of (mask_grid)', mask_grid is not None),
        ):
            if wanted and not self.tracks:
                raise ValueError(
                    f'{what} the view need the image processor freeatm_image_train; '
                    f'{type(vis_processor).__name__} does not say what its view shows'
                )

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image`, float tensor (3, h, w), and `text_input`, the text for the model.

        With position prompts also `prompted`, 1 if the text holds one, else 0. With ``pass_over``
        also `unreadable`, how many pairs were passed over for this one. With ``mask_grid`` also
        `nouns`, how the text may write each of the objects' K nouns, `noun_masks`, (K, grid, grid)
        shares of the view's cells that its objects cover, as no text says which of several dogs it
        means, and `noun_spans`, start and end of each part of the text that may write them: the
        caption, and the objects' names in position prompts.
        """
        (image, caption, objects), passed = pass_over_unreadable(
            self._load, int(index), len(self), self.pass_over
        )
        view = WHOLE_VIEW
        if self.tracks:
            image, view = self.vis_processor.with_view(image)
        else:
            image = self.vis_processor(image)
        given: list[Any] = [caption]
        if self.with_objects:
            given += [objects, view]
        if self.with_others:
            given.append(self._other_objects(int(index)))
        if self.mask_grid is None:
            item = {'image': image, 'text_input': self.text_processor(*given)}
        else:
            text, spans = self._with_spans(*given)
            item = {'image': image, 'text_input': text, 'noun_spans': spans}
            item.update(self._masks(objects, view, self.mask_grid))
        if self.with_objects:
            given[1] = []  # for which nothing is drawn
            item['prompted'] = int(item['text_input'] != self.text_processor(*given))
        return {**item, 'unreadable': passed} if self.pass_over else item

    def _with_spans(self, *given: Any) -> tuple[str, list[tuple[int, int]]]:
        """The text, and what `__getitem__` says of its parts, of any processor."""
        if hasattr(self.text_processor, 'with_spans'):
            return self.text_processor.with_spans(*given)
        text = self.text_processor(*given)
        before = getattr(self.text_processor, 'prompt', '')  # LAVIS's, before every caption
        return text, [(len(before) if text.startswith(before) else 0, len(text))]

    def _masks(
        self, objects: Sequence[PlacedObject], view: np.ndarray, grid: int
    ) -> dict[str, Any]:
        """What `__getitem__` says of the objects' masks."""
        written = getattr(self.text_processor, 'pre_caption', str.lower)
        named: dict[str, list[PlacedObject]] = {}
        for thing in objects:
            named.setdefault(written(thing.name), []).append(thing)
        nouns, covers = [], np.zeros((len(named), grid, grid), np.float32)
        for cover, (name, things) in zip(covers, named.items()):
            words = [written(thing.word) for thing in things]
            nouns.append([word for word in dict.fromkeys([*words, name]) if word])
            parts = np.concatenate([thing.parts for thing in things])
            if len(things) > 1:
                parts = np.unique(parts, axis=0)  # masks may share cells
            cover[:] = cover_in_view(parts, view, grid)
        return {'nouns': nouns, 'noun_masks': torch.from_numpy(covers)}

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of items, LAVIS's where there are no masks.

        Otherwise `nouns` and `noun_masks` are those of all items, one after the other,
        `noun_samples`, an int tensor, says which item each of them is of, and `noun_spans` has one
        list an item.
        """
        apart = ('nouns', 'noun_masks', 'noun_spans')
        batch = super().collater(
            [{key: value for key, value in item.items() if key not in apart} for item in samples]
        )
        if all('noun_masks' in item for item in samples):
            batch['nouns'] = [words for item in samples for words in item['nouns']]
            batch['noun_spans'] = [item['noun_spans'] for item in samples]
            batch['noun_masks'] = torch.cat([item['noun_masks'] for item in samples])
            counts = torch.tensor([len(item['nouns']) for item in samples])
            batch['noun_samples'] = torch.arange(len(samples)).repeat_interleave(counts)
        return batch

    @contextmanager
    def at_hand(self, indices: Sequence[int]) -> Iterator[None]:
        """Have pairs of stores at addresses fetched several at a time: see `Store.at_hand`."""
        wanted: dict[int, set[int]] = {}
        for index in indices:
            source, number = self._locate(int(index))
            wanted.setdefault(source, set()).add(number)
        with ExitStack() as held:
            for source, numbers in wanted.items():
                pairs = self.sources[source]
                if isinstance(pairs, StorePairs):
                    held.enter_context(pairs.store.at_hand(sorted(numbers)))
            yield

    def _other_objects(self, index: int) -> list[PlacedObject]:
        """The objects of another pair, drawn anew each time from Python's own generator."""
        for _ in range(_DRAWS):
            other = random.randrange(len(self))
            if other != index:
                pair, _ = pass_over_unreadable(self._load, other, len(self), self.pass_over)
                if pair[2]:
                    return pair[2]
        return []

    def _load(self, index: int) -> tuple[Image.Image, str, list[PlacedObject]]:
        source, number = self._locate(index)
        wanted = self.with_objects or self.mask_grid is not None
        return self.sources[source].load(number, wanted)

    def _locate(self, index: int) -> tuple[int, int]:
        """Number of a pair's source, and its number in there."""
        number = int(self.chosen[index])
        source = int(np.searchsorted(self.ends, number, side='right'))
        return source, number - (int(self.ends[source - 1]) if source else 0)


def batch_items(dataset: Dataset, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Return the items of a batch, those of stores at addresses fetched several at a time.

    Where several datasets are joined and one counts prompts, or pictures that are passed over, all
    items say how many, as LAVIS keeps only what all of a batch have.

    Args:
        dataset: A dataset, or what LAVIS makes of several, a `ConcatDataset`.
        indices: Numbers of the items.
    """
    parts, ends = [dataset], [0]
    if isinstance(dataset, ConcatDataset):
        parts, ends = dataset.datasets, [0, *dataset.cumulative_sizes]
    with ExitStack() as held:
        for number, part in enumerate(parts):
            if isinstance(part, FreeATMPretrainDataset):
                first, end = ends[number], ends[number] + len(part)
                own = [index - first for index in indices if first <= index < end]
                held.enter_context(part.at_hand(own))
        items = [dataset[index] for index in indices]
    none = {
        name: 0
        for name, counts in (('unreadable', 'pass_over'), ('prompted', 'with_objects'))
        if any(getattr(part, counts, False) for part in parts)
    }
    return [{**none, **item} for item in items] if none else items


# --- retrieval ------------------------------------------------------------------------------------


class _CheckedRows(BaseDataset):
    """Stands in for LAVIS's `BaseDataset`, which reads annotations unchecked."""

    def __init__(self, vis_processor, text_processor, vis_root: str, ann_paths: list) -> None:
        super().__init__(vis_processor, text_processor, vis_root, [])
        self.annotation = ann_paths
        self._add_instance_ids()

    def _view(self, index: int) -> Tensor:
        """The view of an entry's picture, which LAVIS reads without naming it in an error."""
        path = os.path.join(self.vis_root, self.annotation[index]['image'])
        return self.vis_processor(open_picture(path, str(self.path)))


class FreeATMRetrievalDataset(RetrievalDataset, _CheckedRows):
    """LAVIS's retrieval dataset for training, of a file that is checked.

    Args:
        vis_processor: As LAVIS's.
        text_processor: As LAVIS's.
        images: Folder that the images' paths start from.
        path: The annotations.
        pass_over: Leave out entries whose picture isn't there; take the next one for one whose
            picture can't be read, and count it.

    Raises:
        InputError: If an entry can't be used, or its picture isn't there.
    """

    def __init__(
        self,
        vis_processor,
        text_processor,
        images: str | Path,
        path: str | Path,
        pass_over: bool = False,
    ) -> None:
        self.path, self.pass_over = path, pass_over
        rows = read_retrieval(path, train=True)
        there = check_pictures(rows, images, path, pass_over)
        self.missing = len(rows) - len(there)
        super().__init__(vis_processor, text_processor, str(images), there)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As LAVIS's; with ``pass_over`` also `unreadable`, how many entries were passed over."""
        item, passed = pass_over_unreadable(self._load, int(index), len(self), self.pass_over)
        return {**item, 'unreadable': passed} if self.pass_over else item

    def _load(self, index: int) -> dict[str, Any]:
        row = self.annotation[index]
        return {
            'image': self._view(index),
            'text_input': self.text_processor(row['caption']),
            'image_id': self.img_ids[row['image_id']],
            'instance_id': row['instance_id'],
        }


class FreeATMRetrievalEvalDataset(RetrievalEvalDataset, _CheckedRows):
    """LAVIS's retrieval dataset for validation and test, of a file and pictures that are checked.

    Args:
        vis_processor: As LAVIS's.
        text_processor: As LAVIS's.
        images: Folder that the images' paths start from.
        path: The annotations.

    Raises:
        InputError: If an entry can't be used, or its picture isn't there or doesn't begin as one.
    """

    def __init__(self, vis_processor, text_processor, images: str | Path, path: str | Path) -> None:
        self.path, rows = path, read_retrieval(path, train=False)
        super().__init__(
            vis_processor,
            text_processor,
            str(images),
            check_pictures(rows, images, path, open_each=True),
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As LAVIS's."""
        return {'image': self._view(index), 'index': index}
