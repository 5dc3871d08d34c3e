"""Own images with own masks as a store: COCO instances, pictures of masks, label maps, SAM's JSON.

The inverse of `freeatm_mm.store.export`. Images stay as they are encoded wherever a store can hold
that. Masks are brought to a small size by area, each to its own range, as those of a generation.

Nothing of the data is run, names of files stay within the folders that were given, and sizes are
compared before anything is drawn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from freeatm_mm.errors import InputError, MissingFileError
from freeatm_mm.files import read_bytes, read_json, read_text
from freeatm_mm.prompts import Noun
from freeatm_mm.store.sample import MAX_PIXELS, Sample, encode_image

__all__ = ['READERS', 'ImportReport', 'Picture', 'import_samples', 'read_rle']

#: Larger annotation files are refused: COCO's instances_train2017.json has 450 MB.
_MOST_JSON = 1 << 32
_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
_KEPT = {'JPEG': 'jpg', 'PNG': 'png'}
#: In label maps: pixels that don't count, as mmseg has it.
_IGNORED = 255


class Picture(NamedTuple):
    """An image and how to get its masks.

    Args:
        path: Of the image.
        masks: Given the image's (height, width), yields name and booleans (height, width).
    """

    path: Path
    masks: Callable[[tuple[int, int]], Iterable[tuple[str, np.ndarray]]]


@dataclass
class ImportReport:
    """What an import took and what it left.

    Attributes:
        images: Taken.
        masks: Taken.
        bare: Images taken that have no mask.
        empty: Masks left out as they have no pixel.
        surplus: Masks left out as the image has more than are wanted: the smallest.
        crowds: Annotations of crowds, left out.
        unusable: Images left out, each with the reason.
    """

    images: int = 0
    masks: int = 0
    bare: int = 0
    empty: int = 0
    surplus: int = 0
    crowds: int = 0
    unusable: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f'{self.images} images with {self.masks} masks']
        for count, text in (
            (self.bare, 'images have no mask'),
            (self.empty, 'masks left out: no pixel in them'),
            (self.surplus, 'masks left out: the smallest of images that have many (--most)'),
            (self.crowds, 'annotations left out: crowds'),
            (len(self.unusable), 'images left out: they could not be used'),
        ):
            if count:
                lines.append(f'{count} {text}')
        return '\n'.join(lines)


def import_samples(
    pictures: Iterable[Picture],
    report: ImportReport,
    *,
    mask_size: int = 64,
    most: int = 20,
    max_bad: int = 0,
) -> Iterator[Sample]:
    """Yield samples for `freeatm_mm.store.write_store`.

    Args:
        pictures: Of one of the readers.
        report: What is counted goes there.
        mask_size: Longer side of the masks that are kept, in cells.
        most: Masks kept of an image: the largest.
        max_bad: How many images may turn out to be unusable and be left out.

    Raises:
        InputError: If there are more of them, or settings are out of range.
    """
    if min(mask_size, most) < 1:
        raise InputError(f'mask_size and most must be at least 1, got {mask_size} and {most}')
    taken: set[str] = set()
    for picture in pictures:
        try:
            sample = _sample(picture, report, mask_size, most, taken)
        except (InputError, OSError) as error:
            report.unusable.append(f'{picture.path}: {error}')
            if len(report.unusable) > max_bad:
                raise InputError(
                    f'{picture.path}: {error} (--max-bad N leaves out up to N such images)'
                ) from None
            continue
        report.images += 1
        report.masks += len(sample.nouns)
        report.bare += not sample.nouns
        yield sample


def _sample(
    picture: Picture, report: ImportReport, mask_size: int, most: int, taken: set[str]
) -> Sample:
    """One image; raises `InputError` if it can't be used."""
    data, image_format, (height, width) = _read_image(picture.path)
    found = []
    for name, mask in picture.masks((height, width)):
        if mask.shape != (height, width):
            raise InputError(
                f'the mask of {name!r} has {mask.shape[1]}x{mask.shape[0]} pixels and the image '
                f'{width}x{height}'
            )
        area = int(mask.sum())
        if not area:
            report.empty += 1
            continue
        found.append((area, name, _small(mask, mask_size)))
    largest = sorted(range(len(found)), key=lambda number: -found[number][0])[:most]
    report.surplus += len(found) - len(largest)
    found = [found[number] for number in sorted(largest)]

    caption, nouns = 'a photo', []
    for number, (_, name, _) in enumerate(found):
        caption += ', ' if number else ' of '
        nouns.append(Noun(name, len(caption), len(caption) + len(name), name.lower()))
        caption += name
    masks = np.stack([mask for _, _, mask in found]) if found else np.zeros((0, 0, 0))
    # Each to its own range, as a store has them; the range stays beside it.
    lowest = masks.reshape(len(found), -1).min(1) if found else np.zeros(0)
    highest = masks.reshape(len(found), -1).max(1) if found else np.zeros(0)
    spread = np.maximum(highest - lowest, 1e-12)[:, None, None]
    stretched = (masks - lowest[:, None, None]) / spread if found else masks
    flat = highest == lowest  # a mask of the whole image
    if flat.any():
        stretched[flat] = 1.0
    return Sample(
        _key(picture.path.stem, taken),
        data,
        image_format,
        caption=caption,
        nouns=tuple(nouns),
        masks=np.rint(255 * stretched).astype(np.uint8),
        scales=np.stack([np.where(flat, 0, lowest), highest], axis=1).astype(np.float32),
        meta={'file': picture.path.name},
    )


def _read_image(path: Path) -> tuple[bytes, str, tuple[int, int]]:
    """Encoded image, its format, (height, width); encoded anew only where a store can't hold it."""
    data = read_bytes(path)
    try:
        image = Image.open(BytesIO(data))
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise InputError(f'{width}x{height} are more than {MAX_PIXELS} pixels')
        image.load()
    except InputError:
        raise
    except Exception as error:  # Pillow raises whatever a broken picture leads it to
        raise InputError(f'it is no readable image ({error})') from None
    if image.format in _KEPT and image.mode in ('RGB', 'L'):
        return data, _KEPT[image.format], (height, width)
    image_format = 'jpg' if image.format == 'JPEG' else 'png'
    return encode_image(image.convert('RGB'), image_format), image_format, (height, width)


def _small(mask: np.ndarray, size: int) -> np.ndarray:
    """Booleans (height, width) as shares of larger cells, float64 in [0, 1]."""
    height, width = mask.shape
    scale = min(1.0, size / max(height, width))
    small = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX
    )
    return np.asarray(small) / 255


def _key(stem: str, taken: set[str]) -> str:
    """A key of a file's name: what a key may not hold becomes '-', doubles get a number."""
    start = re.sub(r'[^A-Za-z0-9_-]', '-', stem)[:70] or 'image'
    key, number = start, 1
    while key in taken:
        number += 1
        key = f'{start}-{number}'
    taken.add(key)
    return key


def _inside(folder: Path, name: str) -> Path:
    """The path of a file that data names, within a folder.

    Raises:
        InputError: If it leads out of it.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f'the name {name!r} leads out of {folder}')
    return path


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise MissingFileError(f'there is no folder {path}')
    return path


def _images(folder: Path) -> list[Path]:
    """The images of a folder, by name."""
    found = sorted(path for path in _folder(folder).iterdir() if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise InputError(f'{folder} holds no image ({", ".join(_SUFFIXES)})')
    return found


def _open_mask(path: Path, size: tuple[int, int], grey: bool = False) -> np.ndarray:
    """A picture of a mask or of labels as it is: (height, width) or (height, width, channels).

    With `grey`, a palette of greys is looked up: black need not be its number 0.
    """
    try:
        image: Image.Image = Image.open(BytesIO(read_bytes(path)))
        if image.size != size[::-1]:
            raise InputError(
                f'{path.name} has {image.width}x{image.height} pixels and the image '
                f'{size[1]}x{size[0]}'
            )
        if image.mode == 'LA':  # else two channels, of which one is opaque everywhere
            image = image.convert('L')
        elif grey and image.mode == 'P':
            colours = np.asarray(image.convert('RGB'))
            if (colours[..., :1] == colours).all():
                return colours[..., 0]
        return np.asarray(image)
    except InputError:
        raise
    except Exception as error:  # as of images
        raise InputError(f'{path.name} is no readable image ({error})') from None


# --- the formats --------------------------------------------------------------------------------


def read_masks(images: Path, masks: Path, report: ImportReport, noun: str) -> Iterator[Picture]:
    """Masks as pictures: `MASKS/<image>/NOUN.png`, white where the noun is; `dog_2.png` a second.

    Pictures whose name is a number, as SAM's own program writes them, are `noun`.

    Raises:
        InputError: If no image has a folder of masks.
    """
    pictures = _images(images)
    if not any((_folder(masks) / path.stem).is_dir() for path in pictures):
        raise InputError(f'{masks} holds no folder named as an image of {images}')
    for path in pictures:

        def find(size: tuple[int, int], path: Path = path) -> Iterator[tuple[str, np.ndarray]]:
            for file in sorted((masks / path.stem).glob('*.png')):
                pixels = _open_mask(_inside(masks, f'{path.stem}/{file.name}'), size, grey=True)
                if pixels.ndim == 3:  # a mask in colours; alpha alone says nothing
                    pixels = pixels[..., :3].max(2)
                name = re.sub(r'_\d+$', '', file.stem)
                name = noun if name.isdecimal() else name.replace('_', ' ')
                yield name, pixels > (0 if pixels.max(initial=0) == 1 else 127)

        yield Picture(path, find)


def read_labels(images: Path, masks: Path, report: ImportReport, noun: str) -> Iterator[Picture]:
    """Label maps, as mmseg has them: `MASKS/<image>.png`, and names in `classes.txt` beside them.

    A pixel's value is the number of its class, from 0; 255 doesn't count, nor does a class called
    background. One mask a class.

    Raises:
        InputError: If the names are missing.
    """
    candidates = [_folder(masks) / 'classes.txt', masks.parent / 'classes.txt']
    names = next((path for path in candidates if path.is_file()), None)
    if names is None:
        raise MissingFileError(f'there is no {candidates[0]} with a class on each line')
    classes = [line.strip() for line in read_text(names).splitlines() if line.strip()]
    for path in _images(images):

        def find(size: tuple[int, int], path: Path = path) -> Iterator[tuple[str, np.ndarray]]:
            labels = _open_mask(_inside(masks, f'{path.stem}.png'), size)
            if labels.ndim != 2:
                raise InputError(f'{path.stem}.png is a picture in colours, not of labels')
            for number in np.unique(labels):
                if number == _IGNORED:
                    continue
                if number >= len(classes):
                    raise InputError(
                        f'{path.stem}.png has the label {number}, and {names} {len(classes)} names'
                    )
                if classes[number].lower() != 'background':
                    yield classes[number], labels == number

        yield Picture(path, find)


def read_coco(images: Path, masks: Path, report: ImportReport, noun: str) -> Iterator[Picture]:
    """COCO's instances: `MASKS` is the JSON; polygons and run lengths, crowds left out.

    Raises:
        InputError: If it isn't COCO's JSON.
    """
    content = read_json(masks, limit=_MOST_JSON)
    shape = {
        'images': [{'id': int, 'file_name': str}],
        'annotations': [{'image_id': int, 'category_id': int}],
        'categories': [{'id': int, 'name': str}],
    }
    _check(content, shape, masks)
    for name in ('images', 'categories'):
        ids = [entry['id'] for entry in content[name]]
        if len(set(ids)) < len(ids):
            double = next(number for number, count in Counter(ids).items() if count > 1)
            raise InputError(f'{masks}: two of the {name} have the id {double}')
    names = {entry['id']: entry['name'].strip() or noun for entry in content['categories']}
    annotations: dict[int, list[dict[str, Any]]] = {}
    for number, entry in enumerate(content['annotations']):
        if entry['category_id'] not in names:
            raise InputError(f'{masks}: annotations.{number} has a category that is not listed')
        if entry.get('iscrowd'):
            report.crowds += 1
        else:
            annotations.setdefault(entry['image_id'], []).append(entry)
    unknown = annotations.keys() - {entry['id'] for entry in content['images']}
    if unknown:
        raise InputError(f'{masks}: annotations of image {min(unknown)}, which is not listed')
    for entry in content['images']:
        own = annotations.get(entry['id'], [])

        def find(
            size: tuple[int, int], own: list[dict[str, Any]] = own
        ) -> Iterator[tuple[str, np.ndarray]]:
            for each in own:
                yield names[each['category_id']], _segmentation(each.get('segmentation'), size)

        yield Picture(_inside(_folder(images), entry['file_name']), find)


def read_sam(images: Path, masks: Path, report: ImportReport, noun: str) -> Iterator[Picture]:
    """SAM's masks as SA-1B has them: `MASKS/<image>.json` with run lengths; all of them are `noun`.

    Raises:
        InputError: If the folder holds no JSON.
    """
    files = sorted(_folder(masks).glob('*.json'))
    if not files:
        raise InputError(f'{masks} holds no .json')
    for file in files:
        content = read_json(file)
        _check(content, {'image': {'file_name': str}, 'annotations': list}, file)

        def find(
            size: tuple[int, int], entries: Sequence[Any] = content['annotations']
        ) -> Iterator[tuple[str, np.ndarray]]:
            for each in entries:
                if not isinstance(each, dict):
                    raise InputError('an annotation is no object')
                yield noun, _segmentation(each.get('segmentation'), size)

        yield Picture(_inside(_folder(images), content['image']['file_name']), find)


#: Name of a format -> its reader.
READERS: dict[str, Callable[[Path, Path, ImportReport, str], Iterator[Picture]]] = {
    'coco': read_coco,
    'masks': read_masks,
    'labels': read_labels,
    'sam': read_sam,
}


def _check(content: Any, shape: Any, path: Path) -> None:
    """Refuse JSON of another form; names beyond those asked for are allowed."""
    if not isinstance(content, dict):
        raise InputError(f'{path} is no JSON object')
    for name, expected in shape.items():
        value = content.get(name)
        if isinstance(expected, dict):
            _check(value, expected, path)
        elif isinstance(expected, list):
            if not isinstance(value, list):
                raise InputError(f'{path} has no list {name!r}')
            for number, entry in enumerate(value):
                if not isinstance(entry, dict):
                    raise InputError(f'{path}: {name}.{number} is no object')
                for key, kind in expected[0].items():
                    if not isinstance(entry.get(key), kind):
                        raise InputError(f'{path}: {name}.{number} has no {key}')
        elif not isinstance(value, expected):
            raise InputError(f'{path} has no {name!r}')


def _segmentation(value: Any, size: tuple[int, int]) -> np.ndarray:
    """Polygons or run lengths as booleans (height, width)."""
    if isinstance(value, dict):
        if value.get('size') != list(size):
            raise InputError(f'a mask has the size {value.get("size")} and the image {list(size)}')
        return read_rle(value.get('counts'), size)
    if not isinstance(value, list):
        raise InputError('an annotation has no segmentation')
    height, width = size
    image = Image.new('1', (width, height))
    draw = ImageDraw.Draw(image)
    for polygon in value:
        try:
            points: np.ndarray = np.array(polygon, np.float64).reshape(-1, 2)
        except (TypeError, ValueError):
            raise InputError('a polygon is no list of x, y, x, y, ...') from None
        if len(points) < 3 or not np.isfinite(points).all():
            raise InputError('a polygon has fewer than three points, or one that is no number')
        # COCO's pixels have their corners at whole numbers, Pillow's their centres.
        points = np.clip(points, [-width, -height], [2 * width, 2 * height]) - 0.5
        draw.polygon([tuple(point) for point in points], fill=1)
    return np.array(image)


def read_rle(counts: Any, size: tuple[int, int]) -> np.ndarray:
    """Decode COCO's run lengths, as numbers or compressed.

    Args:
        counts: Lengths of runs of 0 and 1 in turn, column by column; or their compressed text.
        size: (height, width).

    Returns:
        Booleans (height, width).

    Raises:
        InputError: If the runs aren't as long as the mask together.
    """
    if isinstance(counts, str):
        counts = _lengths(counts)
    if not isinstance(counts, list) or not all(
        isinstance(count, int) and count >= 0 for count in counts
    ):
        raise InputError('run lengths are no list of numbers')
    if sum(counts) != size[0] * size[1]:
        raise InputError(f'run lengths of {sum(counts)} pixels for a mask of {size[0] * size[1]}')
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, np.array(counts, np.int64)).reshape(size[::-1]).T


def _lengths(text: str) -> list[int]:
    """Run lengths from COCO's text: 5 bits a character, each number less the last but one."""
    counts: list[int] = []
    number = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 40:
            raise InputError('compressed run lengths are broken')
        number |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                number -= 1 << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    if shift:
        raise InputError('compressed run lengths are cut off')
    return counts
