"""The miniature world in the frameworks' own formats.

For each split: PNG images, COCO JSON (boxes and masks), mmseg label maps, LAVIS retrieval JSON and
class folders of single objects. And, as a store, scenes with their exact masks: what the attention
masks would be if the generator knew its objects perfectly.
"""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Iterator

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from freeatm_mm.files import atomic_write
from freeatm_mm.store import Sample, StoreWriter

from .compose import compose_scenes
from .scenes import SIDE, Scene, noun_probabilities
from .sources import NOUNS, load_cutouts

__all__ = ['export_exact_store', 'export_world', 'same_object_share']


def export_world(sources: str | Path, out: str | Path, counts: dict[str, int], seed: int = 0,
                 workers: int | None = None) -> Path:
    """Write ``<out>/<split>/`` for each split; a split that is there already is kept.

    Each split's folder holds ``images/*.png``, ``coco.json`` (category ids from 1, in the order of
    :data:`~freeatm_mm.miniature.sources.NOUNS`), ``labels/*.png`` (0 is background, else the
    category id), ``retrieval.json`` (LAVIS: ``image``, ``caption``, ``image_id``) and
    ``objects/<noun>/*.png`` (each object's box, cut from its scene).

    Args:
        sources: What :func:`~freeatm_mm.miniature.sources.fetch_sources` returned.
        out: The world's folder.
        counts: Split -> number of scenes.
        seed: Number of the world.
        workers: Processes; one per core by default.

    Raises:
        ValueError: If a split is there with another number of scenes or another seed.
    """
    out = Path(out)
    for split, count in counts.items():
        folder, wanted = out / split, {'split': split, 'scenes': count, 'seed': seed}
        if (folder / 'world.json').exists():
            found = json.loads((folder / 'world.json').read_text())
            if found != wanted:
                raise ValueError(f'{folder} holds {found}, not {wanted}: choose another folder, or '
                                 'delete this one')
            continue
        scratch = out / f'.{split}.tmp'
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        _write_split(scratch, split, compose_scenes(sources, split, count, seed, workers))
        (scratch / 'world.json').write_text(json.dumps(wanted))
        os.replace(scratch, folder)
    return out


def _write_split(folder: Path, split: str, scenes: Iterator[Scene]) -> None:
    for name in ('images', 'labels', *(f'objects/{noun}' for noun in NOUNS)):
        (folder / name).mkdir(parents=True)
    coco = {'info': {'description': f'freeatm_mm miniature world, {split}'},
            'categories': [{'id': i, 'name': noun} for i, noun in enumerate(NOUNS, 1)],
            'images': [], 'annotations': []}
    retrieval = []
    for image_id, scene in enumerate(scenes):
        name = f'{image_id:06d}.png'
        Image.fromarray(scene.image).save(folder / 'images' / name)
        coco['images'].append({'id': image_id, 'file_name': name, 'width': SIDE, 'height': SIDE})
        label_map = np.zeros((SIDE, SIDE), np.uint8)
        for k, (noun, mask) in enumerate(zip(scene.record.nouns, scene.masks)):
            category = NOUNS.index(noun.category) + 1
            label_map[mask] = category
            annotation = _annotation(mask)
            if annotation is None:  # covered entirely by the objects in front
                continue
            coco['annotations'].append({'id': len(coco['annotations']) + 1, 'iscrowd': 0,
                                        'image_id': image_id, 'category_id': category,
                                        **annotation})
            x, y, w, h = annotation['bbox']
            Image.fromarray(scene.image[y:y + h, x:x + w]).save(
                folder / 'objects' / noun.category / f'{image_id:06d}_{k}.png')
        Image.fromarray(label_map).save(folder / 'labels' / name)
        caption = scene.record.prompt
        retrieval.append({'image': f'images/{name}', 'image_id': image_id,
                          'caption': caption if split == 'train' else [caption]})
    (folder / 'coco.json').write_text(json.dumps(coco))
    (folder / 'retrieval.json').write_text(json.dumps(retrieval))


def _annotation(mask: np.ndarray) -> dict | None:
    """COCO's box (x, y, w, h), area and run-length mask; ``None`` for an empty mask."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {'bbox': [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1),
                     int(rows[-1] - rows[0] + 1)],
            'area': int(mask.sum()),
            'segmentation': {'size': encoded['size'], 'counts': encoded['counts'].decode()}}


def export_exact_store(sources: str | Path, out: str | Path, count: int, seed: int = 1,
                       mask_side: int = 8, workers: int | None = None,
                       samples_per_shard: int = 1000) -> Path:
    """Write scenes of the training split as a store with exact masks.

    Args:
        sources: What :func:`~freeatm_mm.miniature.sources.fetch_sources` returned.
        out: The store's folder; one that is there already is kept.
        count: Scenes.
        seed: Number of the world; not the one that the judging scenes come from.
        mask_side: Side of the masks; each cell holds the share of it that the object covers.
        workers: Processes; one per core by default.
        samples_per_shard: Samples a shard.
    """
    writer = StoreWriter(out, samples_per_shard,
                         {'scenes': count, 'seed': seed, 'mask_side': mask_side})
    shards = range((count + samples_per_shard - 1) // samples_per_shard)
    if not all(writer.is_complete(shard) for shard in shards):
        scenes = compose_scenes(sources, 'train', count, seed, workers)
        for shard in shards:
            part = [_exact_sample(next(scenes), mask_side)
                    for _ in range(min(samples_per_shard, count - shard * samples_per_shard))]
            if not writer.is_complete(shard):
                writer.write_shard(shard, part)
    writer.finish(count)
    return Path(out)


def _exact_sample(scene: Scene, side: int) -> Sample:
    cells = scene.masks.reshape(len(scene.masks), side, SIDE // side, side, SIDE // side)
    shares = cells.mean((2, 4))
    return Sample.from_image(
        scene.record.id, Image.fromarray(scene.image), image_format='png',
        caption=scene.record.prompt, nouns=scene.record.nouns,
        masks=np.round(255 * shares).astype(np.uint8),
        scales=np.tile(np.array([[0, 1]], np.float32), (len(shares), 1)),
        meta={'source': 'composed scene with exact masks', 'objects': list(scene.objects)})


def same_object_share(sources: str | Path, split: str = 'train') -> float:
    """Return how often two random instances show the very same photo.

    The share of an instance's negatives that are, in truth, the same object.
    """
    cutouts = load_cutouts(sources, split)
    photos = {**{noun: len(stamps) for noun, stamps in cutouts.stamps.items()},
              **{noun: len(array) for noun, array in cutouts.garments.items()}}
    return float(sum(p * p / photos[noun] for noun, p in zip(NOUNS, noun_probabilities())))
