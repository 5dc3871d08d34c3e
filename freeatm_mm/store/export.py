"""A store in the formats that others read: COCO, mmseg, class folders, Parquet.

Images are written as they were encoded once, never anew. Soft masks become binary ones where a
format needs it: resized to the image, in [0, 1] of each mask's own range, at or above a threshold
(the paper's 0.45, its section 4). Each export appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from freeatm_mm.addresses import local_folder
from freeatm_mm.errors import counted, listed, pip_install
from freeatm_mm.paper import THRESHOLD
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.locking import new_folder
from freeatm_mm.store.reader import Store
from freeatm_mm.store.sample import Sample, decode_sample

__all__ = [
    'ExportReport',
    'binary_masks',
    'coco_annotation',
    'export_class_folders',
    'export_coco',
    'export_mmseg',
    'export_parquet',
    'store_categories',
]

#: mmseg reads label maps as bytes, and 255 says that a pixel doesn't count.
MAX_LABELS = 255

_FOLDER_NAME = re.compile(r"[^\W_][\w ,.'()&+-]{0,119}")


@dataclass
class ExportReport:
    """What an export wrote.

    Args:
        images: Images of which a file was written.
        instances: Nouns with a mask, box, crop or class in the export.
        empty: Masks left out because nothing of them reaches the threshold.
        unlisted: Nouns left out because their category is none of those asked for.
        left_out: Images of which no file was written as none of their nouns is in the export.
        categories: The categories, in the order of their numbers.
        unused: Those of them without any instance.
    """

    images: int = 0
    instances: int = 0
    empty: int = 0
    unlisted: int = 0
    left_out: int = 0
    categories: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f'{counted(self.images, "image")}, {counted(self.instances, "instance")} of '
            f'{counted(len(self.categories), "category")}'
        ]
        if self.empty:
            lines.append(f'{counted(self.empty, "mask")} left out: nowhere at the threshold')
        if self.unlisted:
            lines.append(f'{counted(self.unlisted, "noun")} left out: of a category not asked for')
        if self.left_out:
            lines.append(
                f'{counted(self.left_out, "image")} left out: without a noun in the export'
            )
        if self.unused:
            lines.append(
                f'{counted(len(self.unused), "category")} without any instance: '
                + listed([repr(name) for name in self.unused])
            )
        return '\n'.join(lines)


def store_categories(store: Store) -> list[str]:
    """All categories of a store, sorted; nothing is read but the samples' JSON."""
    return sorted({name for raw in store.texts() for name in raw.names()})


def binary_masks(sample: Sample, threshold: float = THRESHOLD) -> np.ndarray:
    """The masks of a sample as foreground and background, at the size of its image.

    Args:
        sample: The sample, with masks (K, h, w).
        threshold: Smallest foreground value, in [0, 1] of each mask's own range.

    Returns:
        Booleans (K, height, width).
    """
    return _soft_masks(sample) >= threshold


def _soft_masks(sample: Sample) -> np.ndarray:
    """float32 (K, height, width) in [0, 1]."""
    from freeatm_mm.ops.masks import resize

    width, height = sample.image.size
    if not len(sample.masks):
        return np.zeros((0, height, width), np.float32)
    return resize(sample.masks.astype(np.float32) / 255, (height, width))


def coco_annotation(mask: np.ndarray) -> dict[str, Any] | None:
    """COCO's box (x, y, w, h), area and run-length mask; ``None`` for an empty mask.

    Args:
        mask: Booleans (h, w).
    """
    coco_mask = _coco_mask()
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        'bbox': [
            int(columns[0]),
            int(rows[0]),
            int(columns[-1] - columns[0] + 1),
            int(rows[-1] - rows[0] + 1),
        ],
        'area': int(mask.sum()),
        'segmentation': {'size': encoded['size'], 'counts': encoded['counts'].decode()},
    }


def _coco_mask() -> Any:
    """Pycocotools' module of run-length masks.

    Raises:
        StoreError: If it isn't installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise StoreError(f'COCO needs pycocotools: {pip_install("export")}') from None
    return mask


def export_coco(
    path: str | Path,
    out: str | Path,
    *,
    categories: Sequence[str] | None = None,
    threshold: float = THRESHOLD,
) -> ExportReport:
    """Write ``images/`` and ``coco.json`` with run-length masks; category ids count from 1.

    Annotations are streamed to disk; memory doesn't grow with the store.

    Args:
        path: The store.
        out: The folder to make.
        categories: The categories to write, in order; all, sorted, by default.
        threshold: Smallest foreground value of a mask, in [0, 1].

    Raises:
        StoreError: If ``out`` is there, a sample can't be read, or there is no instance to export.
        ValueError: If ``threshold`` is out of range, or there are no categories.
    """
    _coco_mask()  # asked for before anything is made
    with _export(path, out, categories, threshold) as run:
        (run.folder / 'images').mkdir()
        images, annotations = run.folder / '.images', run.folder / '.annotations'
        with (
            images.open('w', encoding='utf-8') as image_file,
            annotations.open('w', encoding='utf-8') as annotation_file,
        ):
            for image_id, sample in enumerate(run.samples()):
                name = f'{sample.key}.{sample.image_format}'
                _write_new(run.folder / 'images' / name, sample.image_bytes)
                run.report.images += 1
                width, height = sample.image.size
                _write_item(
                    image_file,
                    {'id': image_id, 'file_name': name, 'width': width, 'height': height},
                )
                for number, mask in run.instances(sample, binary_masks(sample, threshold)):
                    annotation = coco_annotation(mask)
                    assert annotation is not None  # empty ones are no instances
                    _write_item(
                        annotation_file,
                        {
                            'id': run.report.instances,
                            'image_id': image_id,
                            'category_id': number + 1,
                            'iscrowd': 0,
                            **annotation,
                        },
                    )
        with (run.folder / 'coco.json').open('w', encoding='utf-8') as file:
            head = {
                'info': {
                    'description': 'exported from the store '
                    + Path(path).name.encode('utf-8', 'replace').decode()
                },
                'categories': [
                    {'id': number, 'name': name}
                    for number, name in enumerate(run.report.categories, 1)
                ],
            }
            file.write(json.dumps(head, ensure_ascii=False)[:-1])
            for name, part in (('images', images), ('annotations', annotations)):
                file.write(f', "{name}": [\n')
                with part.open(encoding='utf-8') as source:
                    shutil.copyfileobj(source, file)
                file.write(']')
                part.unlink()
            file.write('}\n')
    return run.report


def export_mmseg(
    path: str | Path,
    out: str | Path,
    *,
    categories: Sequence[str] | None = None,
    threshold: float = THRESHOLD,
) -> ExportReport:
    """Write ``images/``, ``labels/*.png`` and ``classes.txt`` for semantic segmentation.

    In a label map 0 is background, else the number of the category, counted from 1. Where nouns
    overlap, the one whose mask is strongest there, each in its own range, has the pixel. With
    mmseg's ``BaseSegDataset``: ``data_prefix=dict(img_path='images', seg_map_path='labels')``,
    ``reduce_zero_label=False`` and the lines of ``classes.txt`` as ``classes``.

    Raises:
        StoreError: If ``out`` is there, a sample can't be read, or there is no instance to export.
        StoreError: If a category is called 'background' or isn't one line.
        ValueError: If there are more categories than a label map can hold, or see
            `export_coco`.
    """
    with _export(path, out, categories, threshold) as run:
        names = ['background', *run.report.categories]
        if len(names) > MAX_LABELS:
            raise ValueError(
                f'a label map holds at most {MAX_LABELS - 1} categories, the store '
                f'has {len(names) - 1}: name those to export'
            )
        for name in run.report.categories:
            if name == 'background' or [name] != name.strip().splitlines():
                raise StoreError(
                    f"the category {name!r} can't be a line of its own in classes.txt: leave it "
                    'out of those to export'
                )
        (run.folder / 'classes.txt').write_text('\n'.join(names) + '\n', encoding='utf-8')
        for name in ('images', 'labels'):
            (run.folder / name).mkdir()
        for sample in run.samples():
            _write_new(
                run.folder / 'images' / f'{sample.key}.{sample.image_format}', sample.image_bytes
            )
            run.report.images += 1
            soft = _soft_masks(sample)
            best = np.full(soft.shape[1:], threshold, np.float32)
            labels = np.zeros(soft.shape[1:], np.uint8)
            for number, mask in run.instances(sample, soft, lambda mask: mask >= threshold):
                wins = mask >= best
                labels[wins], best[wins] = number + 1, mask[wins]
            Image.fromarray(labels).save(run.folder / 'labels' / f'{sample.key}.png')
    return run.report


def export_class_folders(
    path: str | Path,
    out: str | Path,
    *,
    categories: Sequence[str] | None = None,
    crop: bool = False,
    threshold: float = THRESHOLD,
) -> ExportReport:
    """Write ``CATEGORY/KEY.jpg``, which mmpretrain's CustomDataset and torchvision read.

    Args:
        path: The store.
        out: The folder to make.
        categories: As for `export_coco`.
        crop: Write the box round each noun's mask, as PNG, instead of the whole image once for
            each category in it.
        threshold: Smallest foreground value of a mask, in [0, 1]; for ``crop``.

    Raises:
        StoreError: If a category can't be the name of a folder; and see `export_coco`.
        ValueError: See `export_coco`.
    """
    with _export(path, out, categories, threshold) as run:
        for name in run.report.categories:
            if not _FOLDER_NAME.fullmatch(name) or name.endswith((' ', '.')):
                raise StoreError(f"the category {name!r} can't be the name of a folder")
            _make_category(run.folder / name)
        for sample in run.samples():
            before = run.report.instances
            if crop:
                _write_crops(run, sample, threshold)
            else:
                for name in run.listed(sample):
                    file = run.folder / name / f'{sample.key}.{sample.image_format}'
                    _write_new(file, sample.image_bytes)
                    run.take(name)
            written = run.report.instances > before
            run.report.images += written
            run.report.left_out += not written
        for name in run.unused():
            (run.folder / name).rmdir()  # torchvision refuses a class without an image
    return run.report


def _write_crops(run: _Run, sample: Sample, threshold: float) -> None:
    """Write the box round each noun's mask into the folder of its category."""
    for number, mask in run.instances(sample, binary_masks(sample, threshold)):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top, right, bottom = map(int, (columns[0], rows[0], columns[-1], rows[-1]))
        sample.image.crop((left, top, right + 1, bottom + 1)).save(
            run.folder / run.report.categories[number] / f'{sample.key}_{run.report.instances}.png'
        )


def _parquet_schema(pa: Any) -> Any:
    """The columns of `export_parquet`, with what Hugging Face ``datasets`` reads of them."""
    picture = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    noun = pa.struct(
        [
            ('text', pa.string()),
            ('start', pa.int32()),
            ('end', pa.int32()),
            ('category', pa.string()),
            ('lo', pa.float32()),
            ('hi', pa.float32()),
        ]
    )
    schema = pa.schema(
        [
            ('key', pa.string()),
            ('image', picture),
            ('caption', pa.string()),
            ('nouns', pa.list_(noun)),
            ('masks', picture),
            ('mask_height', pa.int32()),
            ('mask_width', pa.int32()),
            ('meta', pa.string()),
        ]
    )
    features: dict[str, Any] = {
        item.name: _value_feature(item) for item in schema if item.name != 'nouns'
    }
    features |= {
        'image': {'_type': 'Image'},
        'masks': {'_type': 'Image'},
        'nouns': [{item.name: _value_feature(item) for item in noun}],
    }
    return schema.with_metadata({'huggingface': json.dumps({'info': {'features': features}})})


def export_parquet(
    path: str | Path,
    out: str | Path,
    *,
    rows_per_group: int = 100,
    rows_per_file: int | None = None,
) -> ExportReport:
    """Write ``data/train-*.parquet``, which Hugging Face ``datasets`` and its hub load with images.

    Columns: ``key``, ``image``, ``caption``, ``nouns`` (text, start, end, category, lo, hi),
    ``masks`` (one grey picture with the K masks below each other, none without nouns),
    ``mask_height``, ``mask_width`` and ``meta`` (JSON). Nothing is decoded, nothing is lost.

    Args:
        path: The store.
        out: The folder to make.
        rows_per_group: Samples read and written at a time.
        rows_per_file: Samples in a file; the default is the store's in a shard.

    Raises:
        StoreError: If ``out`` is there, or a sample can't be read.
        StoreError: If pyarrow isn't installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise StoreError(f'Parquet needs pyarrow: {pip_install("export")}') from None
    schema = _parquet_schema(pa)
    noun_fields = [item.name for item in schema.field('nouns').type.value_type]

    def row(index: int) -> dict[str, Any]:
        raw = store.read(index)
        decode_sample(raw)  # checks what is passed on as it is
        info = raw.info
        report.images += 1
        report.instances += len(info['nouns'])
        names.update(raw.names())
        return {
            'key': raw.key,
            'caption': info['caption'],
            'nouns': [
                {'category': None} | {key: item[key] for key in noun_fields if key in item}
                for item in info['nouns']
            ],
            'image': {'bytes': raw.image_bytes, 'path': f'{raw.key}.{raw.image_format}'},
            'masks': {'bytes': raw.masks_bytes, 'path': f'{raw.key}.masks.png'}
            if raw.masks_bytes
            else None,
            'mask_height': info['masks']['height'],
            'mask_width': info['masks']['width'],
            'meta': json.dumps(info['meta'], ensure_ascii=False),
        }

    store, report = Store(path), ExportReport()
    names: set[str] = set()
    each = rows_per_file or store.manifest['samples_per_shard']
    count = -(-len(store) // each)
    with new_folder(local_folder(out)) as folder:
        (folder / 'data').mkdir()
        for number in range(count):
            file = folder / 'data' / f'train-{number:05d}-of-{count:05d}.parquet'
            with parquet.ParquetWriter(file, schema) as writer:
                last = min((number + 1) * each, len(store))
                for first in range(number * each, last, rows_per_group):
                    rows = [row(index) for index in range(first, min(first + rows_per_group, last))]
                    writer.write_table(pa.Table.from_pylist(rows, schema))
    report.categories = sorted(names)
    return report


class _Run:
    """What the exports with masks have in common."""

    def __init__(self, store: Store, folder: Path, categories: Sequence[str] | None) -> None:
        self.store = store
        self.folder = folder
        names = list(store_categories(store) if categories is None else categories)
        if categories is None and not names:
            raise StoreError(f'no image of the store {store.path} has a noun: nothing to export')
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f'the categories to export must be different, and at least one; got {names}'
            )
        self.report = ExportReport(categories=names)
        self.numbers = {name: number for number, name in enumerate(names)}
        self._used: set[str] = set()

    def samples(self) -> Iterator[Sample]:
        """All samples, one at a time."""
        for index in range(len(self.store)):
            yield decode_sample(self.store.read(index))

    def listed(self, sample: Sample) -> list[str]:
        """The categories of a sample, each once; counts nouns that are left out."""
        names = [noun.name for noun in sample.nouns]
        self.report.unlisted += sum(name not in self.numbers for name in names)
        return [name for name in dict.fromkeys(names) if name in self.numbers]

    def instances(
        self,
        sample: Sample,
        masks: np.ndarray,
        foreground: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number of the category and mask of each noun to export; counts all."""
        for noun, mask in zip(sample.nouns, masks):
            number = self.numbers.get(noun.name)
            if number is None:
                self.report.unlisted += 1
            elif not foreground(mask).any():
                self.report.empty += 1
            else:
                self.take(noun.name)
                yield number, mask

    def take(self, name: str) -> None:
        """Count an instance of a category."""
        self.report.instances += 1
        self._used.add(name)

    def unused(self) -> list[str]:
        """The categories without any instance so far."""
        return [name for name in self.report.categories if name not in self._used]


@contextmanager
def _export(
    path: str | Path, out: str | Path, categories: Sequence[str] | None, threshold: float
) -> Iterator[_Run]:
    if not 0 < threshold <= 1:
        raise ValueError(f'threshold must be above 0 and at most 1, got {threshold}')
    store = Store(path)
    with new_folder(local_folder(out)) as folder:
        run = _Run(store, folder, categories)
        yield run
        run.report.unused = run.unused()
        if not run.report.instances:
            raise StoreError(
                f'no noun of the store {store.path} can be exported: '
                f'{run.report.unlisted:,} of a category not asked for, '
                f'{run.report.empty:,} with a mask nowhere at the threshold'
            )


def _write_new(file: Path, content: bytes) -> None:
    """Write a file of an export.

    Raises:
        StoreError: If it is there: another sample has that key, or one that this disk takes for
            the same, as those do on which A and a are one name.
    """
    try:
        with file.open('xb') as opened:
            opened.write(content)
    except FileExistsError:
        raise StoreError(
            f'two samples would be the file {file.parent.name}/{file.name}: the store '
            'holds a key twice (freeatm verify names it), or this disk takes '
            'two keys for one'
        ) from None


def _make_category(folder: Path) -> None:
    """Make the folder of a category.

    Raises:
        StoreError: If this disk or locale can't have a folder of that name.
    """
    try:
        folder.mkdir()
    except FileExistsError:
        raise StoreError(
            f'the category {folder.name!r} has the name of another one, as this disk sees it'
        ) from None
    except (OSError, UnicodeEncodeError) as error:
        raise StoreError(
            f"the category {folder.name!r} can't be the name of a folder here ({error})"
        ) from None


def _value_feature(column: Any) -> dict[str, str]:
    """How ``datasets`` describes a column of plain values."""
    kind = str(column.type)
    return {'dtype': {'float': 'float32'}.get(kind, kind), '_type': 'Value'}


def _write_item(file: Any, item: dict[str, Any]) -> None:
    """Write an element of a JSON list, after a comma unless it is the first."""
    file.write((',\n' if file.tell() else '') + json.dumps(item, ensure_ascii=False))
