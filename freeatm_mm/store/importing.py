"""Own images with own masks as a store: COCO instances, pictures of masks, label maps, SAM's JSON.

The inverse of `freeatm_mm.store.export`. Images stay as they are encoded wherever a store can hold
that. Masks are brought to a small size by area, each to its own range, as those of a generation.

Nothing of the data is run, names of files stay within the folders that were given, and sizes are
compared before anything is drawn.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from freeatm_mm.errors import InputError, MissingFileError, counted
from freeatm_mm.files import file_sha256, path_inside, read_bytes, read_json, read_text
from freeatm_mm.prompts import Noun
from freeatm_mm.store.layout import MANIFEST
from freeatm_mm.store.pictures import PICTURE_FORMATS, decode_picture
from freeatm_mm.store.sample import Sample, encode_image

__all__ = [
    'READERS',
    'ImportReport',
    'Picture',
    'fingerprint',
    'import_samples',
    'read_rle',
    'shrink_mask',
    'stretch_masks',
]

#: Larger annotation files are refused: COCO's instances_train2017.json has 450 MB.
_MOST_JSON = 1 << 32
#: An image of more masks is refused: each is drawn at the image's size. SA-1B has about 100.
_MOST_MASKS = 10_000
_LONGEST_NAME = 200
_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
#: In label maps: pixels that don't count, as mmseg has it.
_IGNORED = 255


class Picture(NamedTuple):
    """An image and how to get its masks.

    Args:
        path: Of the image.
        masks: Given the image's (height, width), yields name and booleans (height, width).
        size: The (height, width) that the masks' source says it has; `None` where it says nothing.
        problem: Why it can't be used; `''` where nothing is known to be wrong.
        name: Its path in the folder of images, with '/'; `''`: the name in `path`.
    """

    path: Path
    masks: Callable[[tuple[int, int]], Iterable[tuple[str, np.ndarray]]]
    size: tuple[int, int] | None = None
    problem: str = ''
    name: str = ''


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
        encoded_anew: Images taken whose bytes a store can't hold as they are.
        passed_over: Files, of images and of masks, that the format doesn't read, linked folders of
            images, and folders that can't be listed.
        unmatched: Masks, or folders of them, that belong to no image.
        unlisted: Images left out as COCO's or SAM's JSON doesn't name them.
        ignored: Label maps of 8 bits with 255, though there is a class of that number.
        unusable: Images left out, each with the reason.
    """

    images: int = 0
    masks: int = 0
    bare: int = 0
    empty: int = 0
    surplus: int = 0
    crowds: int = 0
    encoded_anew: int = 0
    passed_over: int = 0
    unmatched: int = 0
    unlisted: int = 0
    ignored: int = 0
    unusable: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f'{counted(self.images, "image")} with {counted(self.masks, "mask")}']
        for count, noun, text in (
            (self.bare, 'image', 'without a mask'),
            (self.empty, 'mask', 'left out: without a pixel'),
            (self.surplus, 'mask', 'left out: the smallest of images that have many (--most)'),
            (self.crowds, 'annotation', 'left out: of crowds'),
            (
                self.encoded_anew,
                'image',
                'encoded anew: a store holds upright RGB or grey JPEG, PNG',
            ),
            (
                self.passed_over,
                'other entry',
                "skipped: linked folders, folders that can't be listed, and files that this format "
                f"doesn't read (images: {', '.join(_SUFFIXES)}; label maps: .png; SAM's masks: "
                '.json, not in subfolders)',
            ),
            (self.unmatched, 'name', 'of masks, or folders of them, left out: no image has it'),
            (self.unlisted, 'image', "left out: not named in the masks' JSON"),
            (
                self.ignored,
                'label map',
                'of 8 bits with pixels of 255, which are ignored: class 255 needs maps of 16 bits',
            ),
            (len(self.unusable), 'image', 'left out: not usable'),
        ):
            if count:
                lines.append(f'{counted(count, noun)} {text}')
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
    taken: dict[str, int] = {}
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
    picture: Picture, report: ImportReport, mask_size: int, most: int, taken: dict[str, int]
) -> Sample:
    """One image; raises `InputError` if it can't be used."""
    if picture.problem:
        raise InputError(picture.problem)
    data = read_bytes(picture.path)
    image, image_format, changed = decode_picture(data)
    height, width = image.height, image.width
    turned = ' turned upright, as its EXIF says,' if changed == 'turned upright' else ''
    if picture.size not in (None, (height, width)):
        told = f'{picture.size[1]}x{picture.size[0]}' if picture.size else ''
        raise InputError(
            f'its annotations are of an image of {told} pixels, and it{turned} has {width}x{height}'
        )
    if changed:
        image_format = 'jpg' if changed.startswith(('JPEG', 'MPO', 'turned')) else 'png'
        data = encode_image(image, image_format)
    found, empty = [], 0
    for name, mask in picture.masks((height, width)):
        if mask.shape != (height, width):
            raise InputError(
                f'the mask of {name!r} has {mask.shape[1]}x{mask.shape[0]} pixels and the image'
                f'{turned} {width}x{height}'
            )
        area = int(mask.sum())
        empty += not area
        if area:
            found.append((area, name, shrink_mask(mask, mask_size)))
        if len(found) + empty > _MOST_MASKS:
            raise InputError(f'it has more than {_MOST_MASKS:,} masks')
    largest = sorted(range(len(found)), key=lambda number: -found[number][0])[:most]
    surplus = len(found) - len(largest)
    found = [found[number] for number in sorted(largest)]

    caption, nouns = 'a photo', []
    for number, (_, name, _) in enumerate(found):
        caption += ', ' if number else ' of '
        nouns.append(Noun(name, len(caption), len(caption) + len(name), name.lower()))
        caption += name
    masks, scales = stretch_masks([mask for _, _, mask in found])
    sample = Sample(
        _key(picture.name or picture.path.name, taken),
        data,
        image_format,
        caption=caption,
        nouns=tuple(nouns),
        masks=masks,
        scales=scales,
        meta={'file': _text(picture.name or picture.path.name)},
    )
    # Counted of images that are taken alone.
    report.empty += empty
    report.surplus += surplus
    report.encoded_anew += bool(changed)
    return sample


def shrink_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Bring booleans (height, width) to a longer side of at most `size` cells.

    Returns:
        float64 in [0, 1]: the share of each cell that the mask covers.
    """
    height, width = mask.shape
    scale = min(1.0, size / max(height, width))
    # In floats: in bytes, a few pixels of a large image would be none.
    small = Image.fromarray(mask.astype(np.float32)).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX
    )
    cover = np.asarray(small, np.float64)
    return np.where(cover > 1 - 1e-6, 1.0, cover)  # but for rounding, all of the cell


def stretch_masks(masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Stretch each mask to its own range, as a store has them; the range stays beside it.

    Args:
        masks: K float64 masks (h, w) in [0, 1], not empty.

    Returns:
        uint8 (K, h, w), and float32 (K, 2) the lowest and highest value of each.
    """
    if not masks:
        return np.zeros((0, 0, 0), np.uint8), np.zeros((0, 2), np.float32)
    values = np.stack(masks)
    lowest, highest = values.min((1, 2)), values.max((1, 2))
    # But for the rounding of shares, which stretched would be a mask of noise.
    flat = highest - lowest <= 1e-6 * highest
    spread = np.maximum(highest - lowest, 1e-12)[:, None, None]
    stretched = (values - lowest[:, None, None]) / spread
    stretched[flat] = (highest[flat] > 0)[:, None, None]  # a mask of the whole image, or none
    return (
        np.rint(255 * stretched).astype(np.uint8),
        np.stack([np.where(flat, 0, lowest), highest], axis=1).astype(np.float32),
    )


def _key(name: str, taken: dict[str, int]) -> str:
    """A key of a file's name: what a key may not hold becomes '-', doubles get a number.

    `taken` says of each key how many were made of it.
    """
    path = Path(name)
    whole = str(path.with_suffix(''))
    # A long path would be cut to its folders, which others share.
    start = re.sub(r'[^A-Za-z0-9_-]', '-', whole if len(whole) <= 70 else path.stem)[:70] or 'image'
    key = start
    while key in taken:
        taken[start] += 1
        key = f'{start}-{taken[start]}'
    taken[key] = 1
    return key


def _text(name: str) -> str:
    """A file's name as text that can be stored.

    Raises:
        InputError: If it isn't UTF-8.
    """
    try:
        # Where the locale's encoding is another, Python has the bytes as halves of characters.
        return name.encode('utf-8', 'surrogateescape').decode()
    except UnicodeError:
        raise InputError(f'the name {name!r} is not UTF-8: rename the file') from None


def _noun(name: str, otherwise: str) -> str:
    """A class as a noun of a caption, on one line; `otherwise` where it has no name.

    Raises:
        InputError: If it is too long for a name, or isn't UTF-8.
    """
    name = ' '.join(_text(name).split())
    if len(name) > _LONGEST_NAME:
        raise InputError(f'the name {name[:40]!r}... has more than {_LONGEST_NAME} characters')
    return name or otherwise


def fingerprint(images: Path, masks: Path, out: Path) -> str:
    """Return a digest that other sources lack: of JSON, classes, and names and sizes of files.

    Args:
        images: The folder of images.
        masks: The folder or the file of masks.
        out: The store that is made of them. Stores may lie among them and don't count.

    Raises:
        InputError: If one of them isn't there, can't be listed, or is `out`.
    """
    digest = hashlib.sha256()
    places = (masks / 'classes.txt', masks.parent / 'classes.txt')
    classes = [path for path in places if path.is_file()]
    for source in (images, masks, *classes):
        if source.is_file():
            digest.update(file_sha256(source).encode())
            continue
        if source.resolve() == out.resolve():
            raise InputError(f"{out} holds what is imported and can't be the store: name another")
        for where, folders, names in _walk(source, ImportReport()):
            folders[:] = [name for name in folders if Path(where, name).resolve() != out.resolve()]
            for name in names:
                path = Path(where, name)
                size = path.stat().st_size if path.exists() else -1
                digest.update(os.fsencode(f'{path.relative_to(source)}\0{size}\0'))
        digest.update(b'/')
    return digest.hexdigest()


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise MissingFileError(f'there is no folder {path}')
    return path


def _walk(folder: Path, report: ImportReport) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, by name, without hidden entries and stores.

    Folders that can't be listed are counted.

    Raises:
        InputError: If the folder itself is none, or can't be listed.
    """

    def pass_over(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise InputError(f"the folder {folder} can't be listed ({error.strerror})")
        report.passed_over += 1

    for where, folders, names in os.walk(_folder(folder), onerror=pass_over):
        folders[:] = sorted(
            name
            for name in _visible(folders)
            if not os.path.exists(os.path.join(where, name, MANIFEST))
        )
        yield where, folders, sorted(_visible(names))


def _visible(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if not name.startswith('.'))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def _images(folder: Path, masks: Path, report: ImportReport) -> list[str]:
    """The images in a folder and the folders in it, by name, but for that of masks.

    Returns:
        Their paths in the folder, with '/'.

    Raises:
        InputError: If there is none, one is a link that leads out of the folder, or the folder
            can't be listed.
    """
    found = []
    for where, folders, names in _walk(folder, report):
        own = [Path(where, name) for name in folders]
        report.passed_over += sum(path.is_symlink() for path in own)
        folders[:] = [path.name for path in own if path.resolve() != masks.resolve()]
        pictures = [name for name in names if _is_picture(Path(name))]
        report.passed_over += len(names) - len(pictures)
        found += [Path(where, name).relative_to(folder).as_posix() for name in pictures]
    for name in found:
        path_inside(folder, name)
    if not found:
        raise InputError(f'{folder} holds no image ({", ".join(_SUFFIXES)})')
    return sorted(found)


def _bare(name: str) -> str:
    """A path without its ending: what the masks of an image are called by."""
    return Path(name).with_suffix('').as_posix()


def _open_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """A picture of a mask or of labels, of the image's (height, width)."""
    try:
        image = Image.open(BytesIO(read_bytes(path)), formats=PICTURE_FORMATS)
        if image.size != size[::-1]:
            raise InputError(
                f'{path.name} has {image.width}x{image.height} pixels and the image '
                f'{size[1]}x{size[0]}'
            )
        image.load()
        return image
    except InputError:
        raise
    except Exception as error:  # Pillow raises whatever a broken picture leads it to
        raise InputError(f'{path.name} is no readable image ({error})') from None


# --- the formats --------------------------------------------------------------------------------


def read_masks(images: Path, masks: Path, report: ImportReport, noun: str) -> Iterator[Picture]:
    """Masks as pictures: `MASKS/<image>/NOUN.png`, white where the noun is; `dog_2.png` a second.

    Images may be in folders of their own: the masks of `a/b.jpg` are in `MASKS/a/b`. Pictures
    whose name is a number, as SAM's own program writes them, are `noun`.

    Raises:
        InputError: If no image has a folder of masks.
    """
    pictures = _images(images, masks, report)
    folders = set()
    for where, inner, names in _walk(masks, report):
        held = [name for name in names if _is_picture(Path(name))]
        report.passed_over += len(names) - len(held)
        if held or not inner:
            folders.add(Path(where).relative_to(masks).as_posix())
    known = {_bare(name) for name in pictures}
    if not folders & known:
        raise InputError(
            f'{masks} holds no folder named as an image of {images}: the masks of {pictures[0]} '
            f'belong in {masks / _bare(pictures[0])}'
        )
    report.unmatched += len(folders - known)
    for picture in pictures:

        def find(
            size: tuple[int, int], own: str = _bare(picture)
        ) -> Iterator[tuple[str, np.ndarray]]:
            folder = masks / own
            for file in sorted(folder.iterdir() if folder.is_dir() else ()):
                if _is_picture(file) and not file.name.startswith('.'):
                    mask = _open_mask(path_inside(masks, f'{own}/{file.name}'), size)
                    name = re.sub(r'_\d+$', '', file.stem).replace('_', ' ')
                    yield _noun('' if name.isdecimal() else name, noun), _white(mask)

        yield Picture(images / picture, find, name=picture)


def _white(mask: Image.Image) -> np.ndarray:
    """Where a picture of a mask is white: booleans (height, width).

    White is the upper half of its range, or whatever isn't 0 where there is one other value.
    Colours are seen as they look, whatever their number in a palette; alpha alone says nothing.

    Raises:
        InputError: If nothing is white in what isn't black.
    """
    if mask.mode in ('P', 'PA', 'CMYK', 'YCbCr', 'LAB', 'HSV'):
        mask = mask.convert('RGB')
    pixels = np.asarray(mask)
    if pixels.ndim == 3:
        pixels = pixels[..., : 1 if mask.mode in ('LA', 'La') else 3].max(2)
    highest = pixels.max(initial=0)
    if ((pixels == 0) | (pixels == highest)).all():
        return pixels > 0
    half = 0.5 if mask.mode == 'F' else 32767 if highest > 255 else 127
    if not highest > half:
        raise InputError(f'a mask has many values and none above {half}: make it black and white')
    return pixels > half


def read_labels(images: Path, masks: Path, report: ImportReport, noun: str) -> Iterator[Picture]:
    """Label maps, as mmseg has them: `MASKS/<image>.png`, and names in `classes.txt` beside them.

    Images may be in folders of their own: the labels of `a/b.jpg` are `MASKS/a/b.png`.

    A pixel's value is the number of its class, from 0; nor does a class called background count,
    nor 255, but in maps of 16 bits with more than 255 classes. One mask a class.

    Raises:
        InputError: If the names are missing, or one of them.
    """
    candidates = [_folder(masks) / 'classes.txt', masks.parent / 'classes.txt']
    names = next((path for path in candidates if path.is_file()), None)
    if names is None:
        raise MissingFileError(f'there is no {candidates[0]} with a class on each line')
    lines = [line.strip() for line in read_text(names).rstrip().splitlines()]
    if '' in lines:
        raise InputError(
            f'{names}: line {lines.index("") + 1} is empty, and lines are counted: write a name, '
            'or "background"'
        )
    classes = [_noun(line, noun) for line in lines]
    pictures = _images(images, masks, report)
    files = [
        Path(where, name).relative_to(masks)
        for where, _, inner in _walk(masks, report)
        for name in inner
        if name != 'classes.txt'
    ]
    labelled = {_bare(path.as_posix()) for path in files if path.suffix == '.png'}
    report.passed_over += sum(path.suffix != '.png' for path in files)
    report.unmatched += len(labelled - {_bare(name) for name in pictures})
    for picture in pictures:

        def find(
            size: tuple[int, int], own: str = f'{_bare(picture)}.png'
        ) -> Iterator[tuple[str, np.ndarray]]:
            labels = np.asarray(_open_mask(path_inside(masks, own), size))
            if labels.ndim != 2 or labels.dtype.kind == 'f':
                raise InputError(f'{own} is a picture in colours, not of labels')
            for number in np.unique(labels).astype(int).tolist():
                if number == _IGNORED and (len(classes) <= number or labels.dtype == np.uint8):
                    report.ignored += len(classes) > number
                    continue
                if not 0 <= number < len(classes):
                    raise InputError(
                        f'{own} has the label {number}, and {names} {len(classes)} names'
                    )
                if classes[number].lower() != 'background':
                    yield classes[number], labels == number

        yield Picture(images / picture, find, name=picture)


_IMAGE = {'file_name': str, 'height?': (int, None), 'width?': (int, None)}
_COCO = {
    'images': [{'id': int, **_IMAGE}],
    'annotations': [{'image_id': int, 'category_id': int}],
    'categories': [{'id': int, 'name': str}],
}


def read_coco(images: Path, masks: Path, report: ImportReport, noun: str) -> Iterator[Picture]:
    """COCO's instances: `MASKS` is the JSON; polygons and run lengths, crowds left out.

    When all are read, images that it doesn't name are counted.

    Raises:
        InputError: If it isn't COCO's JSON.
    """
    content = read_json(masks, _MOST_JSON, _COCO)
    for field_name in ('images', 'categories'):
        ((number, count),) = Counter(entry['id'] for entry in content[field_name]).most_common(
            1
        ) or [(0, 0)]
        if count > 1:
            raise InputError(f'{masks}: {field_name}: the id {number} is there {count} times')
    names = {entry['id']: _noun(entry['name'], noun) for entry in content['categories']}
    annotations: dict[int, list[dict[str, Any]]] = {}
    for number, entry in enumerate(content['annotations']):
        if entry['category_id'] not in names:
            raise InputError(f'{masks}: annotations[{number}] has a category that is not listed')
        if entry.get('iscrowd'):
            report.crowds += 1
        else:
            annotations.setdefault(entry['image_id'], []).append(entry)
    unknown = annotations.keys() - {entry['id'] for entry in content['images']}
    if unknown:
        raise InputError(f'{masks}: annotations of image {min(unknown)}, which is not listed')
    listed = set()
    for entry in content['images']:
        own = annotations.get(entry['id'], [])

        def find(
            size: tuple[int, int], own: list[dict[str, Any]] = own
        ) -> Iterator[tuple[str, np.ndarray]]:
            for each in own:
                yield names[each['category_id']], _segmentation(each.get('segmentation'), size)

        path = path_inside(_folder(images), entry['file_name'])
        name = Path(os.path.relpath(path, images)).as_posix()
        listed.add(name)
        yield Picture(path, find, _size_of(entry), name=name)
    _count_unlisted(images, listed, report)


def _count_unlisted(images: Path, listed: set[str], report: ImportReport) -> None:
    """Count the images that the masks' JSON doesn't name; `listed` are the paths that it names."""
    for where, _, names in _walk(images, report):
        pictures = [Path(where, name) for name in names if _is_picture(Path(name))]
        report.unlisted += sum(
            path.relative_to(images).as_posix() not in listed for path in pictures
        )


_SAM = {'image': _IMAGE, 'annotations': [{'segmentation': object}]}


def read_sam(images: Path, masks: Path, report: ImportReport, noun: str) -> Iterator[Picture]:
    """SAM's masks as SA-1B has them: `MASKS/<image>.json` with run lengths; all of them are `noun`.

    Images may lie among them. When all are read, images that no JSON names are counted.

    Raises:
        InputError: If the folder holds no JSON.
    """
    files = []
    among_images = masks.resolve().is_relative_to(images.resolve())
    for where, folders, names in _walk(masks, report):
        folders[:] = [name for name in folders if Path(where, name).resolve() != images.resolve()]
        for file in (Path(where, name) for name in names):
            if file.suffix == '.json' and file.parent == masks:
                files.append(file)
            elif not (among_images and _is_picture(file)):  # these are looked at as images
                report.passed_over += 1
    if not files:
        raise InputError(f'{masks} holds no .json')
    listed = set()
    for file in files:
        try:
            content = read_json(path_inside(masks, file.name), shape=_SAM)
            image = content['image']
            path = path_inside(_folder(images), image['file_name'])
        except InputError as error:
            yield Picture(file, lambda size: (), problem=str(error))
            continue

        def find(
            size: tuple[int, int], entries: Sequence[Any] = content['annotations']
        ) -> Iterator[tuple[str, np.ndarray]]:
            for each in entries:
                yield noun, _segmentation(each['segmentation'], size)

        name = Path(os.path.relpath(path, images)).as_posix()
        listed.add(name)
        yield Picture(path, find, _size_of(image), name=name)
    _count_unlisted(images, listed, report)


#: Name of a format -> its reader.
READERS: dict[str, Callable[[Path, Path, ImportReport, str], Iterator[Picture]]] = {
    'coco': read_coco,
    'masks': read_masks,
    'labels': read_labels,
    'sam': read_sam,
}


def _size_of(entry: dict[str, Any]) -> tuple[int, int] | None:
    """The (height, width) that annotations say an image has."""
    height, width = entry.get('height'), entry.get('width')
    return (height, width) if height and width else None


def _segmentation(value: Any, size: tuple[int, int]) -> np.ndarray:
    """Polygons or run lengths as booleans (height, width)."""
    if isinstance(value, dict):
        if value.get('size') != list(size):
            raise InputError(f'a mask has the size {value.get("size")} and the image {list(size)}')
        return read_rle(value.get('counts'), size)
    if not isinstance(value, list):
        raise InputError('an annotation has no segmentation')
    mask: np.ndarray = np.zeros(size, bool)
    for polygon in value:
        try:
            points: np.ndarray = np.array(polygon, np.float64).reshape(-1, 2)
        except (TypeError, ValueError, OverflowError):
            raise InputError('a polygon is no list of x, y, x, y, ...') from None
        if len(points) < 3 or not np.isfinite(points).all():
            raise InputError('a polygon has fewer than three points, or one that is no number')
        _fill(mask, points.clip(-1e7, 1e7))
    return mask


def _fill(mask: np.ndarray, points: np.ndarray) -> None:
    """Set the pixels whose centres a polygon (N, 2) holds; their corners are at whole numbers.

    Pillow's and OpenCV's polygons hold their outline, too: half a pixel more on every side.
    """
    height, width = mask.shape
    (left, top), (right, bottom) = np.floor(points.min(0)), np.ceil(points.max(0))
    left, right = (int(min(max(edge, 0), width)) for edge in (left, right))
    top, bottom = (int(min(max(edge, 0), height)) for edge in (top, bottom))
    # Along a row, what is inside changes wherever an edge is crossed.
    changes: np.ndarray = np.zeros((bottom - top, right - left + 1), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0)):
        first, last = (
            int(min(max(np.ceil(y - 0.5), top), bottom)) for y in (min(y0, y1), max(y0, y1))
        )
        if first < last:
            rows = np.arange(first, last)
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            columns = np.ceil(x - 0.5).clip(left, right).astype(int)
            changes[rows - top, columns - left] ^= True
    mask[top:bottom, left:right] |= np.logical_xor.accumulate(changes, 1)[:, :-1]


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
