"""The miniature world in the frameworks' own formats.

For each split: PNG images, COCO JSON (boxes and masks), mmseg label maps, LAVIS retrieval JSON and
class folders of single objects. Also scenes with captions that tell where things are, for LAVIS
retrieval. And, as a store, scenes with their exact masks: what the attention
masks would be if the generator knew its objects perfectly.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from freeatm_mm.miniature.compose import compose_scenes
from freeatm_mm.miniature.scenes import SIDE, Scene, noun_probabilities
from freeatm_mm.miniature.sources import NOUNS, load_cutouts
from freeatm_mm.prompts import PromptRecord
from freeatm_mm.store import Sample, StoreWriter, write_store
from freeatm_mm.store.export import coco_annotation

__all__ = [
    'BLOCK_NAMES',
    'export_exact_store',
    'export_positions',
    'export_world',
    'same_object_share',
]

#: What the 3 x 3 blocks of a picture are called, row by row.
BLOCK_NAMES = (
    'at the top left',
    'at the top',
    'at the top right',
    'at the left',
    'in the middle',
    'at the right',
    'at the bottom left',
    'at the bottom',
    'at the bottom right',
)


def export_world(
    sources: str | Path,
    out: str | Path,
    counts: dict[str, int],
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Write ``<out>/<split>/`` for each split; a split that is there already is kept.

    Each split's folder holds ``images/*.png``, ``coco.json`` (category ids from 1, in the order of
    `freeatm_mm.miniature.sources.NOUNS`), ``labels/*.png`` (0 is background, else the
    category id), ``retrieval.json`` (LAVIS: ``image``, ``caption``, ``image_id``) and
    ``objects/<noun>/*.png`` (each object's box, cut from its scene).

    Args:
        sources: What `freeatm_mm.miniature.sources.fetch_sources` returned.
        out: The world's folder.
        counts: Split -> number of scenes.
        seed: Number of the world.
        workers: Processes; one per core by default.

    Raises:
        ValueError: If a split is there with another number of scenes or another seed.
    """
    return _export_splits(_write_split, sources, out, counts, seed, workers)


def export_positions(
    sources: str | Path,
    out: str | Path,
    counts: dict[str, int],
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Write ``<out>/<split>/`` for each split: pairs that only identity *and* position tell apart.

    Every scene is there twice, as it is and mirrored: the same objects, colours and place, so that
    only where things are decides which caption belongs to which. Captions name the block of each
    object, where the centre of its visible part is: "a red dress at the top left with a bird at
    the right is on the grass". A scene whose caption another one has already, or that mirroring
    leaves with the same caption, is left out: every caption belongs to one picture.

    Each split's folder holds ``images/*.png`` and, as LAVIS's retrieval datasets read them (paths
    start from ``out``), ``words.json`` and ``blocks.json``; in the latter positions are told by
    the paper's prompts instead: "... on the grass. The dress is in block 0." Training captions
    are strings, those of the other splits lists; ``mirrored`` is the number of the mirrored pair.

    Args:
        sources: What `freeatm_mm.miniature.sources.fetch_sources` returned.
        out: Folder; a split that is there already is kept.
        counts: Split -> number of scenes to compose; up to twice as many pairs come of it.
        seed: Number of the world.
        workers: Processes; one per core by default.

    Raises:
        ValueError: If a split is there with another number of scenes or another seed.
    """
    return _export_splits(_write_positions, sources, out, counts, seed, workers)


def _export_splits(
    write: Callable[[Path, str, Iterator[Scene]], None],
    sources: str | Path,
    out: str | Path,
    counts: dict[str, int],
    seed: int,
    workers: int | None,
) -> Path:
    """Write each split that isn't there, whole or not at all."""
    out = Path(out)
    for split, count in counts.items():
        folder, wanted = out / split, {'split': split, 'scenes': count, 'seed': seed}
        if (folder / 'world.json').exists():
            found = json.loads((folder / 'world.json').read_text())
            if found != wanted:
                raise ValueError(
                    f'{folder} holds {found}, not {wanted}: choose another folder, or '
                    'delete this one'
                )
            continue
        scratch = out / f'.{split}.tmp'
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        write(scratch, split, compose_scenes(sources, split, count, seed, workers))
        (scratch / 'world.json').write_text(json.dumps(wanted))
        os.replace(scratch, folder)
    return out


def _write_split(folder: Path, split: str, scenes: Iterator[Scene]) -> None:
    for name in ('images', 'labels', *(f'objects/{noun}' for noun in NOUNS)):
        (folder / name).mkdir(parents=True)
    coco: dict[str, Any] = {
        'info': {'description': f'freeatm_mm miniature world, {split}'},
        'categories': [{'id': i, 'name': noun} for i, noun in enumerate(NOUNS, 1)],
        'images': [],
        'annotations': [],
    }
    retrieval = []
    for image_id, scene in enumerate(scenes):
        name = f'{image_id:06d}.png'
        Image.fromarray(scene.image).save(folder / 'images' / name)
        coco['images'].append({'id': image_id, 'file_name': name, 'width': SIDE, 'height': SIDE})
        label_map = np.zeros((SIDE, SIDE), np.uint8)
        for k, (noun, mask) in enumerate(zip(scene.record.nouns, scene.masks)):
            category = NOUNS.index(noun.category) + 1
            label_map[mask] = category
            annotation = coco_annotation(mask)
            if annotation is None:  # covered entirely by the objects in front
                continue
            coco['annotations'].append(
                {
                    'id': len(coco['annotations']) + 1,
                    'iscrowd': 0,
                    'image_id': image_id,
                    'category_id': category,
                    **annotation,
                }
            )
            x, y, w, h = annotation['bbox']
            Image.fromarray(scene.image[y : y + h, x : x + w]).save(
                folder / f'objects/{noun.category}/{image_id:06d}_{k}.png'
            )
        Image.fromarray(label_map).save(folder / 'labels' / name)
        caption = scene.record.prompt
        retrieval.append(
            {
                'image': f'images/{name}',
                'image_id': image_id,
                'caption': caption if split == 'train' else [caption],
            }
        )
    (folder / 'coco.json').write_text(json.dumps(coco))
    (folder / 'retrieval.json').write_text(json.dumps(retrieval))


def _write_positions(folder: Path, split: str, scenes: Iterator[Scene]) -> None:
    (folder / 'images').mkdir(parents=True)
    rows: dict[str, list[dict[str, Any]]] = {'words': [], 'blocks': []}
    taken: set[str] = set()
    for number, scene in enumerate(scenes):
        if not scene.masks.any((1, 2)).all():  # an object that can't be seen has no place
            continue
        views = [(scene.image, scene.masks), (scene.image[:, ::-1], scene.masks[:, :, ::-1])]
        texts = [_position_captions(scene.record, masks) for _, masks in views]
        captions = {text['words'] for text in texts}
        if len(captions) < len(views) or captions & taken:
            continue
        taken |= captions
        for (image, _), text, ending in zip(views, texts, ('', '-mirrored')):
            name = f'{number:06d}{ending}.png'
            Image.fromarray(np.ascontiguousarray(image)).save(folder / 'images' / name)
            for wording, caption in text.items():
                rows[wording].append(
                    {
                        'image': f'{split}/images/{name}',
                        'image_id': len(rows[wording]),
                        'caption': caption if split == 'train' else [caption],
                        'mirrored': len(rows[wording]) ^ 1,
                    }
                )
    for wording, pairs in rows.items():
        (folder / f'{wording}.json').write_text(json.dumps(pairs))


def _position_captions(record: PromptRecord, masks: np.ndarray) -> dict[str, str]:
    """The caption with the objects' places, in words and in the paper's prompts."""
    words = record.prompt
    blocks = [_block(mask) for mask in masks]
    # From the end, so that the spans before stay true.
    for noun, block in sorted(zip(record.nouns, blocks), key=lambda pair: -pair[0].end):
        words = f'{words[: noun.end]} {BLOCK_NAMES[block]}{words[noun.end :]}'
    prompts = [f'The {noun.text} is in block {block}.' for noun, block in zip(record.nouns, blocks)]
    return {'words': words, 'blocks': ' '.join([f'{record.prompt}.', *prompts])}


def _block(mask: np.ndarray) -> int:
    """Which of 3 x 3 blocks, from 0, row by row, holds the centre of the box round a mask."""
    annotation = coco_annotation(mask)
    assert annotation is not None
    x, y, w, h = annotation['bbox']
    return 3 * int(3 * (y + h / 2) / SIDE) + int(3 * (x + w / 2) / SIDE)


def export_exact_store(
    sources: str | Path,
    out: str | Path,
    count: int,
    seed: int = 1,
    mask_side: int = 8,
    workers: int | None = None,
    samples_per_shard: int = 1000,
) -> Path:
    """Write scenes of the training split as a store with exact masks.

    Args:
        sources: What `freeatm_mm.miniature.sources.fetch_sources` returned.
        out: The store's folder; one that is there already is kept.
        count: Scenes.
        seed: Number of the world; not the one that the evaluation scenes come from.
        mask_side: Side of the masks; each cell holds the share of it that the object covers.
        workers: Processes; one per core by default.
        samples_per_shard: Samples a shard.
    """
    config = {'scenes': count, 'seed': seed, 'mask_side': mask_side}
    writer = StoreWriter(out, samples_per_shard, config)
    if all(writer.is_complete(shard) for shard in range(-(-count // samples_per_shard))):
        writer.finish(count)
    else:
        scenes = compose_scenes(sources, 'train', count, seed, workers)
        samples = (_exact_sample(scene, mask_side) for scene in scenes)
        write_store(out, samples, samples_per_shard, config)
    return Path(out)


def _exact_sample(scene: Scene, side: int) -> Sample:
    cells = scene.masks.reshape(len(scene.masks), side, SIDE // side, side, SIDE // side)
    shares = cells.mean((2, 4))
    return Sample.from_image(
        scene.record.id,
        Image.fromarray(scene.image),
        image_format='png',
        caption=scene.record.prompt,
        nouns=scene.record.nouns,
        masks=np.round(255 * shares).astype(np.uint8),
        scales=np.tile(np.array([[0, 1]], np.float32), (len(shares), 1)),
        meta={'source': 'composed scene with exact masks', 'objects': list(scene.objects)},
    )


def same_object_share(sources: str | Path, split: str = 'train') -> float:
    """Return how often two random instances show the very same photo.

    The share of an instance's negatives that are, in truth, the same object.
    """
    cutouts = load_cutouts(sources, split)
    photos = {
        **{noun: len(stamps) for noun, stamps in cutouts.stamps.items()},
        **{noun: len(array) for noun, array in cutouts.garments.items()},
    }
    return float(sum(p * p / photos[noun] for noun, p in zip(NOUNS, noun_probabilities())))
