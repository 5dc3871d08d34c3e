"""Annotation files, checked entry by entry when they are opened: before anything is trained.

Captions for pretraining are LAVIS's: a list of `image`, `caption` and, optionally, `objects`.
Retrieval's have an `image_id` as well in training, and a list of captions in the other splits.
Detections are one object ::

    {"images": {"000000": [{"name": "dog", "box": [x1, y1, x2, y2], "score": 0.9}, ...], ...}}

with boxes in pixels and an entry for every image, empty where nothing was found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from freeatm_mm.compat import refuse_truncated_images
from freeatm_mm.errors import InputError, MissingFileError, listed
from freeatm_mm.files import check_json, read_json
from freeatm_mm.store.pictures import PICTURE_FORMATS

__all__ = [
    'MAX_BYTES',
    'UnreadableImage',
    'check_pictures',
    'mirrored_pairs',
    'open_picture',
    'pass_over_unreadable',
    'read_captions',
    'read_detections',
    'read_retrieval',
]

#: An annotation file of more bytes is refused; detections in 0.3 M images take some 1.6 GB.
MAX_BYTES = 1 << 32
#: A list of fewer pictures is looked for one by one, instead of listing their folder.
_FEW = 1000
#: So many unreadable pictures one after the other are no accident.
_MOST_UNREADABLE = 100

T = TypeVar('T')


class UnreadableImage(InputError):
    """A picture that isn't there or can't be decoded, or a damaged sample of a store."""


# --- files ----------------------------------------------------------------------------------------


def _read(path: str | Path, what: str, hint: str = '') -> Any:
    if not os.path.lexists(path):
        raise MissingFileError(f'there is no {what} {path}{hint}')
    return read_json(path, MAX_BYTES)


def _rows(path: str | Path, what: str, shape: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a file that is a list of them."""
    rows = _read(path, what)
    check_json(rows, [dict], str(path))
    if not rows:
        raise InputError(f'{path} holds no image')
    check_json(rows, [shape], str(path))
    for number, row in enumerate(rows):
        name = row['image']
        if not name.strip() or '\0' in name:
            raise InputError(f'{path}[{number}]: image must be the path of a picture, got {name!r}')
        if '..' in Path(name).parts:
            raise InputError(
                f'{path}[{number}]: the image {name!r} leads out of the folder of images'
            )
    return rows


def _check_caption(caption: Any, where: str) -> None:
    if not isinstance(caption, str):
        more = (
            '; an entry that has several captions belongs in a set to be searched, and in '
            'training has an entry for each'
            if isinstance(caption, list)
            else ''
        )
        raise InputError(f'{where} must be text, got {_short(caption)}{more}')
    if not caption.strip():
        raise InputError(f'{where} is empty')


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f'{shown[:57]}...'


def _check_objects(found: Any, where: str) -> None:
    """Check that each of a list of objects has a name and a box.

    Whether boxes lie in their image shows when it is opened.
    """
    if not isinstance(found, list):
        raise InputError(f'{where} must be a list of objects, got {_short(found)}')
    for number, thing in enumerate(found):
        if not isinstance(thing, dict) or 'name' not in thing or 'box' not in thing:
            raise InputError(
                f'{where}[{number}]: an object needs "name" and "box", got {_short(thing)}'
            )
        name, box = thing['name'], thing['box']
        if not isinstance(name, str) or not name.strip():
            raise InputError(f'{where}[{number}]: name must be text, got {_short(name)}')
        if (
            not isinstance(box, list)
            or len(box) != 4
            or any(
                isinstance(edge, bool) or not isinstance(edge, (int, float)) or abs(edge) > 1e9
                for edge in box
            )
        ):
            raise InputError(
                f'{where}[{number}]: the box of {name!r} must be four numbers x1, y1, '
                f'x2, y2, got {_short(box)}'
            )
        if not (max(box[0], 0) < box[2] and max(box[1], 0) < box[3]):
            raise InputError(
                f'{where}[{number}]: the box {box} of {name!r} is empty or lies outside its image'
            )


def read_captions(path: str | Path) -> list[dict[str, Any]]:
    """LAVIS's caption JSON for pretraining.

    Returns:
        Its entries: `image`, `caption` and, where there are some, `objects` (`name` and `box`).

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is no such file; names the entry.
    """
    rows = _rows(path, 'caption file', {'image': str, 'caption': object})
    for number, row in enumerate(rows):
        _check_caption(row['caption'], f'{path}[{number}]: caption')
        if 'objects' in row:
            _check_objects(row['objects'], f'{path}[{number}]: objects')
    return rows


def read_retrieval(path: str | Path, train: bool) -> list[dict[str, Any]]:
    """LAVIS's retrieval JSON.

    Args:
        path: The file.
        train: Whether it is trained on: an entry is one caption and has an `image_id`. Otherwise
            an entry is one image with all its captions.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is no such file, an image is there twice, or two share an id; names the
            entry.
    """
    shape = {'image': str, 'caption': object}
    rows = _rows(path, 'annotation file', {**shape, 'image_id': object} if train else shape)
    images: dict[str, tuple[int, Any]] = {}
    ids: dict[Any, str] = {}
    for number, row in enumerate(rows):
        where, image = f'{path}[{number}]', os.path.normpath(row['image'])  # as ./x.png is x.png
        if train:
            _check_caption(row['caption'], f'{where}: caption')
            key = row['image_id']
            if isinstance(key, bool) or not isinstance(key, (int, str)):
                raise InputError(f'{where}: image_id must be a number or text, got {_short(key)}')
            if ids.setdefault(key, image) != image:
                raise InputError(
                    f'{where}: image_id {key!r} is that of two images, {ids[key]!r} and {image!r}'
                )
            if images.setdefault(image, (number, key))[1] != key:
                raise InputError(
                    f'{where}: the image {image!r} has two ids, {images[image][1]!r} and {key!r}'
                )
            continue
        if not isinstance(row['caption'], list):
            raise InputError(
                f'{where}: caption must be a list of texts, the captions of this '
                f'image, got {_short(row["caption"])}'
            )
        if not row['caption']:
            raise InputError(f'{where}: caption is an empty list')
        for place, caption in enumerate(row['caption']):
            _check_caption(caption, f'{where}: caption[{place}]')
        if images.setdefault(image, (number, None))[0] != number:
            raise InputError(
                f'{where}: the image {image!r} is that of entry {images[image][0]}, '
                'too: one entry holds all captions of an image'
            )
    if not train:
        mirrored_pairs(rows, str(path))
    return rows


def mirrored_pairs(rows: Sequence[dict[str, Any]], where: str) -> np.ndarray | None:
    """The number of each entry's mirrored pair, (N,) ints; ``None`` where there are none.

    Raises:
        InputError: If only some entries have one, one has several captions, or the numbers don't
            lead back.
    """
    if not any('mirrored' in row for row in rows):
        return None
    for number, row in enumerate(rows):
        other = row.get('mirrored')
        if type(other) is not int or len(row['caption']) != 1:
            raise InputError(
                f'{where}[{number}]: a retrieval set with mirrored pairs must have '
                'one caption and a "mirrored" in every annotation'
            )
    for number, row in enumerate(rows):
        other = row['mirrored']
        if not (0 <= other < len(rows) and rows[other]['mirrored'] == number):
            raise InputError(
                f'{where}[{number}]: mirrored is {other}, whose own does not lead back'
            )
    return np.array([row['mirrored'] for row in rows])


def read_detections(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """What a detector found, by image.

    Args:
        path: A JSON file of `tools/convert/detect_objects.py`, or one like it.

    Returns:
        Key of the image (or its path, as a caption file has it) -> its objects, each with `name`
        and `box`.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is not such a file; names the image.
    """
    content = _read(path, 'file of detections', ': make it with tools/convert/detect_objects.py')
    check_json(content, dict, str(path))
    images = content.get('images')
    if not isinstance(images, dict):
        raise InputError(f'{path} must hold an object "images": image -> list of objects')
    for image, found in images.items():
        _check_objects(found, f'{path}: images[{image!r}]')
    return images


# --- pictures -------------------------------------------------------------------------------------


def check_pictures(
    rows: Sequence[dict[str, Any]],
    images: str | Path,
    where: str | Path,
    pass_over: bool = False,
    open_each: bool = False,
) -> list[dict[str, Any]]:
    """Look for the pictures that a list of annotations names.

    Args:
        rows: The annotations.
        images: Folder that their paths start from.
        where: Name of the file, for messages.
        pass_over: Leave out the entries whose picture isn't there, instead of raising.
        open_each: Look into each one as well: whether it begins as a picture does.

    Returns:
        The entries whose picture is there.

    Raises:
        UnreadableImage: If one is missing; names the first, and says how many are.
    """
    folders: dict[str, list[tuple[int, str]]] = {}
    root = os.path.abspath(images)
    for number, row in enumerate(rows):
        head, tail = os.path.split(row['image'])
        if os.path.isabs(head) and os.path.commonpath([root, head]) != root:
            raise InputError(
                f'{where}[{number}]: the image {row["image"]!r} lies outside the '
                f'folder of images {images}'
            )
        folders.setdefault(head, []).append((number, tail))
    missing = []
    for head, wanted in folders.items():
        folder = os.path.join(images, head)
        if len(wanted) < _FEW:
            missing += [
                number for number, tail in wanted if not os.path.isfile(os.path.join(folder, tail))
            ]
            continue
        try:
            with os.scandir(folder) as entries:
                there = {entry.name for entry in entries if entry.is_file()}
        except OSError:
            there = set()
        missing += [number for number, tail in wanted if tail not in there]
    if missing and not pass_over:
        first = min(missing)
        raise UnreadableImage(
            f'{where}[{first}]: there is no picture {rows[first]["image"]!r} in {images}'
            + (f' ({len(missing)} of {len(rows)} entries lack theirs)' if missing[1:] else '')
        )
    if open_each:
        for number, row in enumerate(rows):
            open_picture(Path(images, row['image']), f'{where}[{number}]', decode=False)
    if not missing:
        return list(rows)
    lost = set(missing)
    kept = [row for number, row in enumerate(rows) if number not in lost]
    if not kept:
        raise UnreadableImage(f'{where}: none of its {len(rows)} pictures is in {images}')
    return kept


def open_picture(source: Any, where: str, decode: bool = True) -> Image.Image:
    """Open a picture.

    Args:
        source: A path, or a file in memory.
        where: What names it, for the message.
        decode: Decode it, to RGB; otherwise only its beginning is read.

    Raises:
        UnreadableImage: If it isn't one.
    """
    shown = f' {str(source)!r}' if isinstance(source, (str, Path)) else ''
    try:
        if shown and not os.path.isfile(source):
            raise OSError('there is no such file')
        with refuse_truncated_images(), Image.open(source, formats=PICTURE_FORMATS) as image:
            return image.convert('RGB') if decode else image
    except MemoryError:
        raise
    except Exception as error:  # of many kinds, for damaged files
        reason = str(error).replace(f' {str(source)!r}', '').splitlines() or [type(error).__name__]
        raise UnreadableImage(f"{where}: the image{shown} can't be read ({reason[0]})") from None


def pass_over_unreadable(
    load: Callable[[int], T], index: int, total: int, pass_over: bool
) -> tuple[T, int]:
    """What ``load`` gives for a number, or for the next one whose picture can be read.

    Args:
        load: Called with a number below ``total``.
        index: The first number.
        total: How many there are.
        pass_over: Otherwise the first unreadable picture is an error.

    Returns:
        What was loaded, and how many pictures were passed over.

    Raises:
        UnreadableImage: If one can't be read and isn't to be passed over, or a hundred can't.
    """
    for passed in range(min(_MOST_UNREADABLE, total)):
        try:
            return load((index + passed) % total), passed
        except UnreadableImage as error:
            if not pass_over:
                raise
            last = error
    raise UnreadableImage(
        f"{passed + 1} pictures one after the other can't be read, the last one: {last}"
    )


def check_detected(
    names: Iterable[str],
    detections: dict[str, Any],
    detected_in: str | Path,
    source: str | Path,
    what: str,
) -> None:
    """Whether a file of detections has an entry for every image.

    Raises:
        InputError: If it hasn't; names the first, and says how many it lacks.
    """
    lacking = [name for name in names if name not in detections]
    if lacking:
        raise InputError(
            f'{detected_in} has no entry for {what} {listed(map(repr, lacking), 1)} of {source}: '
            'detect objects in all its images'
        )
