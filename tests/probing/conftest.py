"""A tiny world in COCO's format: coloured shapes on noise, one noun a colour and shape."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

COLOURS = ((220, 40, 40), (40, 200, 60), (60, 80, 230), (230, 200, 40))
NOUNS = ('dress', 'leaf', 'bag', 'lemon')


def write_split(folder, count, seed, size=32, nouns=NOUNS):
    """Write ``count`` scenes of one or two shapes; returns their exact (K, size, size) masks."""
    rng = np.random.default_rng(seed)
    (folder / 'images').mkdir(parents=True)
    images, annotations, exact = [], [], []
    rows, columns = np.mgrid[:size, :size]
    for image_id in range(1, count + 1):
        pixels = rng.integers(90, 160, (size, size, 3))
        owner = np.full((size, size), -1)
        chosen = rng.permutation(len(nouns))[: rng.integers(1, 3)]
        for number, noun in enumerate(chosen):
            y, x = rng.integers(size // 4, 3 * size // 4, 2)
            radius = rng.integers(size // 8, size // 4)
            if noun % 2:
                inside = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
            else:
                inside = (abs(rows - y) <= radius) & (abs(columns - x) <= radius)
            owner[inside] = number
            pixels[inside] = np.array(COLOURS[noun % 4]) + rng.integers(-15, 15, 3)
        masks = np.stack([owner == number for number in range(len(chosen))])
        exact.append(masks)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            folder / 'images' / f'{image_id:06d}.png'
        )
        images.append(
            {'id': image_id, 'file_name': f'{image_id:06d}.png', 'width': size, 'height': size}
        )
        for noun, mask in zip(chosen, masks):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': int(noun) * 3 + 1,
                    'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode()},
                    'bbox': coco_mask.toBbox(rle).tolist(),
                    'area': int(mask.sum()),
                    'iscrowd': 0,
                }
            )
    categories = [{'id': index * 3 + 1, 'name': name} for index, name in enumerate(nouns)]
    (folder / 'coco.json').write_text(
        json.dumps({'images': images, 'annotations': annotations, 'categories': categories})
    )
    return exact


@pytest.fixture(scope='session')
def make_split():
    """The function that writes one split."""
    return write_split


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    """A world of 160 train, 60 val and 80 test scenes of 32x32 pixels."""
    folder = tmp_path_factory.mktemp('world')
    for seed, (split, count) in enumerate((('train', 160), ('val', 60), ('test', 80))):
        write_split(folder / split, count, seed)
    return folder
