"""Image-text pairs with objects, from stores and from LAVIS's caption files.

Detections (:func:`read_detections`) may take the place of a store's masks: one JSON file ::

    {"images": {"000000": [{"name": "dog", "box": [x1, y1, x2, y2], "score": 0.9}, ...], ...}}

with boxes in pixels and an entry for every image, empty where nothing was found.
"""
from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lavis.datasets.datasets.base_dataset import BaseDataset
from PIL import Image

from freeatm_mm.lavis_ext.position import (
    WHOLE_VIEW,
    PlacedObject,
    object_from_box,
    objects_from_masks,
)
from freeatm_mm.store import Store, StoreError, decode_masks

__all__ = ['CaptionFile', 'FreeATMPretrainDataset', 'StorePairs', 'read_detections']


def read_detections(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """What a detector found, by image.

    Args:
        path: A JSON file of `tools/detect_objects.py`, or one like it.

    Returns:
        Key of the image (or its path, as a caption file has it) -> its objects, each with `name`
        and `box`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no file of detections {path}: make it with '
                                'tools/detect_objects.py')
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f'{path} is not JSON ({error})') from None
    images = content.get('images') if isinstance(content, dict) else None
    if not isinstance(images, dict) or not all(isinstance(found, list)
                                               for found in images.values()):
        raise ValueError(f'{path} must hold an object "images": image -> list of objects')
    return images


def _boxes(found: Sequence[dict[str, Any]], size: tuple[int, int],
           where: str) -> list[PlacedObject]:
    """The objects of a list of `name` and `box`."""
    try:
        return [object_from_box(thing['name'], thing['box'], size) for thing in found]
    except (KeyError, TypeError) as error:
        raise ValueError(f'{where}: an object needs "name" and "box" ({error!r})') from None
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from None


class StorePairs:
    """The pairs of a store; objects come from its masks, or from detections.

    Args:
        path: The store's folder.
        detections: A file of detections in the masks' place.
        threshold: What counts as foreground of a stretched mask.

    Raises:
        StoreError: If there is no store, or an unfinished or damaged one.
        FileNotFoundError, ValueError: If the detections can't be read.
    """

    def __init__(self, path: str | Path, detections: str | Path | None,
                 threshold: float) -> None:
        self.store = Store(path)
        self.threshold = threshold
        self.detections = None if detections is None else read_detections(detections)
        self.detected_in = detections

    def __len__(self) -> int:
        return len(self.store)

    def load(self, index: int, with_objects: bool) -> tuple[Image.Image, str, list[PlacedObject]]:
        """RGB picture, caption and objects of a pair.

        Raises:
            StoreError: If the sample can't be read.
            ValueError: If the detections lack the sample or hold a box outside the image.
        """
        raw = self.store.read(index)
        try:
            image = Image.open(io.BytesIO(raw.image_bytes)).convert('RGB')
        except OSError as error:
            raise StoreError(f"{self.store.path}: the image of sample {raw.key!r} can't be "
                             f'decoded ({error})') from None
        objects = []
        if with_objects and self.detections is not None:
            if raw.key not in self.detections:
                raise ValueError(f'{self.detected_in} has no entry for sample {raw.key!r} of '
                                 f'{self.store.path}: detect objects in all its images')
            objects = _boxes(self.detections[raw.key], image.size,
                             f'{self.detected_in}, {raw.key!r}')
        elif with_objects and raw.info['nouns']:
            nouns, size = raw.info['nouns'], raw.info['masks']
            try:
                masks = decode_masks(raw.masks_bytes, len(nouns), size['height'], size['width'])
            except StoreError as error:
                raise StoreError(f'{self.store.path}: sample {raw.key!r}: the picture '
                                 f'{error}') from None
            objects = objects_from_masks([noun['text'] for noun in nouns], masks, self.threshold)
        return image, raw.info['caption'], objects


class CaptionFile:
    """The pairs of LAVIS's caption JSON: a list of `image`, `caption` and, optionally, `objects`.

    `objects` is a list of `name` and `box` (x1, y1, x2, y2 in pixels).

    Args:
        path: The JSON file.
        images: Folder that the images' paths start from.
        detections: A file of detections, by the images' paths, in the place of `objects`.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If the file is not such a list.
    """

    def __init__(self, path: str | Path, images: str | Path,
                 detections: str | Path | None) -> None:
        self.path, self.images = Path(path), Path(images)
        if not self.path.is_file():
            raise FileNotFoundError(f'there is no caption file {self.path}')
        if not self.images.is_dir():
            raise FileNotFoundError(f'there is no image folder {self.images}')
        try:
            self.annotations = json.loads(self.path.read_bytes())
        except ValueError as error:
            raise ValueError(f'{self.path} is not JSON ({error})') from None
        if not isinstance(self.annotations, list) or not all(
                isinstance(row, dict) and isinstance(row.get('image'), str)
                and isinstance(row.get('caption'), str) for row in self.annotations):
            raise ValueError(f'{self.path} must be a list of objects, each with the strings '
                             '"image" and "caption"')
        self.detections = None if detections is None else read_detections(detections)
        self.detected_in = detections

    def __len__(self) -> int:
        return len(self.annotations)

    def load(self, index: int, with_objects: bool) -> tuple[Image.Image, str, list[PlacedObject]]:
        """RGB picture, caption and objects of a pair.

        Raises:
            ValueError: If the image can't be read, or a box is no box or lies outside its image;
                names file and image.
        """
        row = self.annotations[index]
        try:
            image = Image.open(self.images / row['image']).convert('RGB')
        except OSError as error:
            raise ValueError(f"{self.path}: the image {row['image']!r} can't be read in "
                             f'{self.images} ({error})') from None
        objects = []
        if with_objects and self.detections is not None:
            if row['image'] not in self.detections:
                raise ValueError(f'{self.detected_in} has no entry for {row["image"]!r} of '
                                 f'{self.path}: detect objects in all its images')
            objects = _boxes(self.detections[row['image']], image.size,
                             f'{self.detected_in}, {row["image"]!r}')
        elif with_objects:
            objects = _boxes(row.get('objects', ()), image.size, f'{self.path}, {row["image"]!r}')
        return image, row['caption'], objects


class FreeATMPretrainDataset(BaseDataset):
    """Image-text pairs for pretraining, with the objects' positions in the view joined to the text.

    Args:
        vis_processor: `freeatm_image_train`, or any of LAVIS's where no position is needed.
        text_processor: `freeatm_caption`, or any of LAVIS's.
        sources: :class:`StorePairs` and :class:`CaptionFile`, one after the other.
        share: Use this share of the pairs, in (0, 1], drawn at random and the same in every run.

    Raises:
        ValueError: If there are no pairs, `share` is out of range, or prompts are to follow the
            view and the image processor can't say what it shows.
    """

    def __init__(self, vis_processor, text_processor, sources: Sequence[StorePairs | CaptionFile],
                 share: float = 1.0) -> None:
        super().__init__(vis_processor, text_processor)
        if not 0 < share <= 1:
            raise ValueError(f'share must be above 0 and at most 1, got {share}')
        self.sources = list(sources)
        self.ends = np.cumsum([len(source) for source in self.sources])
        total = int(self.ends[-1]) if self.sources else 0
        if not total:
            raise ValueError('there are no image-text pairs to train on: name a store or a '
                             'caption file that holds some')
        self.chosen = np.arange(total)
        if share < 1:
            # At random, as sources may be sorted.
            drawn = np.random.default_rng(0).permutation(total)[:max(round(share * total), 1)]
            self.chosen = np.sort(drawn)
        self.with_objects = getattr(text_processor, 'wants_objects', False)
        self.tracks = hasattr(vis_processor, 'with_view')
        if getattr(text_processor, 'wants_view', False) and not self.tracks:
            raise ValueError(f'position prompts that follow the view need the image processor '
                             f'freeatm_image_train; {type(vis_processor).__name__} does not say '
                             'what its view shows')

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image`, float tensor (3, h, w), and `text_input`, the text for the model."""
        number = int(self.chosen[index])
        source = int(np.searchsorted(self.ends, number, side='right'))
        start = int(self.ends[source - 1]) if source else 0
        image, caption, objects = self.sources[source].load(number - start, self.with_objects)
        view = WHOLE_VIEW
        if self.tracks:
            image, view = self.vis_processor.with_view(image)
        else:
            image = self.vis_processor(image)
        if self.with_objects:
            text = self.text_processor(caption, objects, view)
        else:
            text = self.text_processor(caption)
        return {'image': image, 'text_input': text}
