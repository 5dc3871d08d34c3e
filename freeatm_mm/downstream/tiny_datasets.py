"""Tiny data sets in the layouts that the downstream configs expect, to try a config out.

Each image shows one or two coloured rectangles on noise; boxes, masks and label maps are exact.
They are for seeing that everything runs, not for results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:  # the names of the layouts are needed before anything is installed
    import numpy as np

__all__ = ['LAYOUTS', 'Layout', 'make_tiny_dataset']

_Box = tuple[int, int, int, int, int]


def make_tiny_dataset(
    layout: str, out: str | Path, images: int = 4, side: int = 64, seed: int = 0
) -> Path:
    """Write a tiny data set.

    Args:
        layout: One of `LAYOUTS`.
        out: Its folder, made if missing; what a config's ``data_root`` should be.
        images: In each split (imagenet: in each split in all, two classes in turn).
        side: Height of the images; their width is 5/4 of it.
        seed: Of what they show.

    Returns:
        The folder.

    Raises:
        ValueError: If the layout is unknown.
    """
    if layout not in LAYOUTS:
        raise ValueError(f'layout {layout!r} is unknown: use one of {", ".join(LAYOUTS)}')
    import numpy as np

    out = Path(out)
    LAYOUTS[layout].write(out, images, side, np.random.default_rng(seed))
    return out


def _scenes(
    count: int, side: int, classes: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, list[_Box]]]:
    """Pixels (side, 5/4 side, 3) uint8, and rectangles (x, y, w, h, class)."""
    import numpy as np

    width = side * 5 // 4
    for number in range(count):
        pixels = rng.integers(90, 160, (side, width, 3)).astype(np.uint8)
        boxes = []
        for place in range(1 + number % 2):
            w, h = rng.integers(side // 2, side * 3 // 5, 2)
            x = int(rng.integers(0, max(width // 2 - w, 1))) + place * width // 2
            y = int(rng.integers(0, side - h))
            w = min(int(w), width // 2 - 2)
            label = int(rng.integers(classes))
            pixels[y : y + h, x : x + w] = rng.integers(0, 256, 3)
            boxes.append((x, y, w, int(h), label))
        yield pixels, boxes


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _write_voc(out: Path, count: int, side: int, rng: np.random.Generator) -> None:
    from mmdet.datasets import VOCDataset

    classes = VOCDataset.METAINFO['classes']
    for year, split in (('2007', 'trainval'), ('2007', 'test'), ('2012', 'trainval')):
        folder, names = out / f'VOC{year}', []
        for number, (pixels, boxes) in enumerate(_scenes(count, side, len(classes), rng)):
            name = f'{year}_{split}_{number:06d}'
            names.append(name)
            _save(pixels, folder / f'JPEGImages/{name}.jpg')
            root = ElementTree.Element('annotation')
            size = ElementTree.SubElement(root, 'size')
            for tag, value in zip(('height', 'width', 'depth'), pixels.shape):
                ElementTree.SubElement(size, tag).text = str(value)
            for x, y, w, h, label in boxes:
                thing = ElementTree.SubElement(root, 'object')
                ElementTree.SubElement(thing, 'name').text = classes[label]
                ElementTree.SubElement(thing, 'difficult').text = '0'
                box = ElementTree.SubElement(thing, 'bndbox')
                for tag, value in zip(
                    ('xmin', 'ymin', 'xmax', 'ymax'), (x + 1, y + 1, x + w, y + h)
                ):
                    ElementTree.SubElement(box, tag).text = str(value)
            path = folder / f'Annotations/{name}.xml'
            path.parent.mkdir(parents=True, exist_ok=True)
            ElementTree.ElementTree(root).write(path)
        path = folder / f'ImageSets/Main/{split}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('\n'.join(names) + '\n')


def _write_coco(out: Path, count: int, side: int, rng: np.random.Generator) -> None:
    from mmdet.datasets import CocoDataset

    classes = CocoDataset.METAINFO['classes']
    for split in ('train2017', 'val2017'):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (pixels, boxes) in enumerate(_scenes(count, side, len(classes), rng), 1):
            name = f'{number:012d}.jpg'
            _save(pixels, out / split / name)
            images.append(
                {
                    'id': number,
                    'file_name': name,
                    'height': pixels.shape[0],
                    'width': pixels.shape[1],
                }
            )
            for x, y, w, h, label in boxes:
                annotations.append(
                    {
                        'id': len(annotations) + 1,
                        'image_id': number,
                        'category_id': label + 1,
                        'bbox': [x, y, w, h],
                        'area': w * h,
                        'iscrowd': 0,
                        'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        path = out / f'annotations/instances_{split}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(
                {
                    'images': images,
                    'annotations': annotations,
                    'categories': [{'id': i, 'name': name} for i, name in enumerate(classes, 1)],
                }
            )
        )


def _label_map(shape: tuple[int, int], boxes: list[_Box], rest: int) -> np.ndarray:
    import numpy as np

    labels = np.full(shape, rest, np.uint8)
    for x, y, w, h, label in boxes:
        labels[y : y + h, x : x + w] = label
    return labels


def _write_cityscapes(out: Path, count: int, side: int, rng: np.random.Generator) -> None:
    for split in ('train', 'val'):
        for number, (pixels, boxes) in enumerate(_scenes(count, side, 19, rng)):
            name = f'tiny_{number:06d}_000019'
            _save(pixels, out / f'leftImg8bit/{split}/tiny/{name}_leftImg8bit.png')
            # The training ids that mmseg's converter writes; 255 is ignored.
            _save(
                _label_map(pixels.shape[:2], boxes, 255),
                out / f'gtFine/{split}/tiny/{name}_gtFine_labelTrainIds.png',
            )


def _write_ade20k(out: Path, count: int, side: int, rng: np.random.Generator) -> None:
    for split in ('training', 'validation'):
        for number, (pixels, boxes) in enumerate(_scenes(count, side, 150, rng), 1):
            name = f'ADE_{"train" if split == "training" else "val"}_{number:08d}'
            _save(pixels, out / f'images/{split}/{name}.jpg')
            # Classes from 1; 0 is what belongs to none of them.
            labels = _label_map(
                pixels.shape[:2], [(x, y, w, h, label + 1) for x, y, w, h, label in boxes], 0
            )
            _save(labels, out / f'annotations/{split}/{name}.png')


def _write_imagenet(out: Path, count: int, side: int, rng: np.random.Generator) -> None:
    for split in ('train', 'val'):
        lines = []
        for number, (pixels, _) in enumerate(_scenes(count, side, 2, rng)):
            label = number % 2
            name = f'{("n01440764", "n01443537")[label]}/{split}_{number:08d}.JPEG'
            lines.append(f'{name} {label}\n')
            _save(pixels, out / split / name)
        # mmpretrain reads a list if there is one; without, it insists on a folder for every class.
        path = out / f'meta/{split}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(''.join(lines))


@dataclass(frozen=True)
class Layout:
    """A data set's layout.

    Attributes:
        folder: Its name below the folder of all data sets.
        write: Writes a tiny one: folder, images in each split, height, random numbers.
    """

    folder: str
    write: Callable[[Path, int, int, np.random.Generator], None]


LAYOUTS: dict[str, Layout] = {
    'voc': Layout('VOCdevkit', _write_voc),
    'coco': Layout('coco', _write_coco),
    'cityscapes': Layout('cityscapes', _write_cityscapes),
    'ade20k': Layout('ADEChallengeData2016', _write_ade20k),
    'imagenet': Layout('imagenet', _write_imagenet),
}
"""The layouts: VOCdevkit, COCO 2017, Cityscapes, ADEChallengeData2016, ImageNet-1k in folders."""
