"""The list of a source's images: made once, shared by all workers, and what a run goes by.

It lies beside the store, ``OUT.images.jsonl``: a prompt record for each image, with the place of
the image besides, so that a shard's samples are the same whoever looks and whenever. Beside it,
``OUT.images.json`` says what the list was made from and what was counted.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from freeatm_mm.addresses import local_folder
from freeatm_mm.attention.words import places_of
from freeatm_mm.errors import InputError, counted
from freeatm_mm.files import atomic_write, file_sha256, read_json
from freeatm_mm.generation.images import Found, find_images
from freeatm_mm.generation.plan import PromptFile
from freeatm_mm.prompts import Noun, PromptRecord
from freeatm_mm.prompts.nouns import NounFinder, TextBlobTagger
from freeatm_mm.prompts.record import LONGEST_PROMPT
from freeatm_mm.prompts.seen import SeenTexts
from freeatm_mm.prompts.text import clean_text, has_half_character
from freeatm_mm.store.locking import locked_write

__all__ = ['ImageFile', 'ImageList', 'ImageRecord', 'list_images', 'list_path']

_FORMAT = 'freeatm-images'
_SHAPE = {'format': str, 'settings': dict, 'sha256': str, 'images': int, 'counts': dict}
#: So many images that can't be used are named.
_MOST_MESSAGES = 10
#: Captions tagged at once.
_BATCH = 1000


@dataclass(frozen=True)
class ImageRecord(PromptRecord):
    """A prompt record that has an image already.

    Args:
        place: Where `freeatm_mm.generation.images.ImageReader` finds it.
        name: Where it is, in words.
    """

    place: dict[str, Any] = field(default_factory=dict)
    name: str = ''

    @classmethod
    def from_json(cls, value: dict) -> ImageRecord:
        """Make a record from a line of a list.

        Raises:
            ValueError: If a field is missing, of the wrong type, or a span is wrong.
        """
        record = PromptRecord.from_json(value)
        image = value.get('image')
        if not isinstance(image, dict) or not isinstance(image.get('name'), str):
            raise ValueError(f'the record {record.id!r} says no place of its image')
        place = {key: item for key, item in image.items() if key != 'name'}
        return cls(record.id, record.prompt, record.nouns, record.source, place, image['name'])


class ImageFile(PromptFile):
    """The image records of a list by number, without holding them in memory."""

    record_class = ImageRecord


@dataclass(frozen=True)
class ImageList:
    """What `list_images` made, or found there.

    Args:
        path: The JSON Lines file of image records.
        sha256: Of that file.
        images: Records in it.
        counts: What was seen on the way, by name.
    """

    path: Path
    sha256: str
    images: int
    counts: dict[str, int]

    def __str__(self) -> str:
        lines = [f'{counted(self.images, "image")} listed in {self.path}']
        lines += [f'{what}: {count:,}' for what, count in self.counts.items() if count]
        return '\n'.join(lines)


def list_images(
    source: str | Path,
    out: str | Path,
    *,
    captions: str | Path | None = None,
    every_caption: bool = False,
    without_nouns: str = 'keep',
    limit: int | None = None,
    concrete: bool = True,
    warn: Any = None,
) -> ImageList:
    """List the images of a source beside the store that their masks will go to, once.

    A list that is there already is taken as it is, whatever became of the source since. Several
    processes that begin together make one list.

    Args:
        source: See `freeatm_mm.generation.images`.
        out: The store's folder.
        captions: A caption file that names the images of the folder ``source``.
        every_caption: A record for each caption of an image, rather than for the first.
        without_nouns: ``'keep'`` images without nouns, which get no masks, or ``'skip'`` them.
        limit: List the first ``limit`` images only.
        concrete: Keep only nouns of what one can see; has no effect on nouns that are given.
        warn: Called with a sentence for each of the first images that can't be used.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If nothing of it can be used, or a list made otherwise is there.
        ImportError: If textblob, or what reads the format, is not installed.
    """
    if without_nouns not in ('keep', 'skip'):
        raise InputError(f'without_nouns must be "keep" or "skip", got {without_nouns!r}')
    if limit is not None and limit < 1:
        raise InputError(f'limit must be at least 1, got {limit}')
    path = list_path(local_folder(out))
    note = path.with_suffix('.json')
    settings = {
        'source': Path(source).resolve().name.encode(errors='backslashreplace').decode(),
        'captions': None if captions is None else Path(captions).name,
        'every_caption': every_caption,
        'without_nouns': without_nouns,
        'limit': limit,
        'concrete': concrete,
    }
    found = _read_note(path, note, settings)
    if found is not None:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked_write(note) as file:
        found = _read_note(path, note, settings)  # made by another process in the meantime
        if found is None:
            counts: Counter[str] = Counter()
            records = _records(find_images(source, captions), settings, counts, warn)
            number = 0
            with atomic_write(path) as lines:
                for record, image in islice(records, limit):
                    line = record.to_json() | {'image': image}
                    lines.write((json.dumps(line, ensure_ascii=False) + '\n').encode())
                    number += 1
                if not number:
                    seen = '; '.join(f'{what}: {count:,}' for what, count in counts.items())
                    raise InputError(
                        f'{source} holds no image that masks can be added to'
                        + (f': {seen}' if seen else '')
                    )
            found = ImageList(path, file_sha256(path), number, dict(counts))
        text = {
            'format': _FORMAT,
            'settings': settings,
            'sha256': found.sha256,
            'images': found.images,
            'counts': found.counts,
        }
        file.write((json.dumps(text, ensure_ascii=False, indent=2) + '\n').encode())
    return found


def list_path(out: Path) -> Path:
    """Return where the list of a store's images lies."""
    out = Path(os.path.abspath(out))  # '.' and '..' are no names that anything could be beside
    return out.with_name(out.name + '.images.jsonl')


def _read_note(path: Path, note: Path, settings: dict[str, Any]) -> ImageList | None:
    """The list that is there, if it is whole."""
    if not note.exists() or not path.exists():
        return None
    content = read_json(note, shape=_SHAPE)
    differing = sorted(
        name for name, value in settings.items() if content['settings'].get(name) != value
    )
    if differing:
        name = differing[0]
        raise InputError(
            f'{path} lists images chosen otherwise: {name} is '
            f'{content["settings"].get(name)!r} there and {settings[name]!r} here; use the same '
            'settings to go on, or another folder'
        )
    if file_sha256(path) != content['sha256']:
        raise InputError(f'{path} is not the list that {note} speaks of: remove both to list anew')
    return ImageList(path, content['sha256'], content['images'], content['counts'])


def _records(
    images: Iterator[Found], settings: dict[str, Any], counts: Counter[str], warn: Any
) -> Iterator[tuple[PromptRecord, dict[str, Any]]]:
    """The records of a source's images, and where each image is."""
    finder: NounFinder | None = None
    told = 0
    with SeenTexts(fold=False) as ids:
        while chunk := list(islice(images, _BATCH)):
            kept: list[tuple[Found, str, Any]] = []
            for image in chunk:
                each = image.nouns_of_each or (image.nouns,) * len(image.captions)
                said = [
                    (text, nouns)
                    for text, nouns in zip(map(clean_text, image.captions), each, strict=True)
                    if text
                ]
                problem = image.problem or ('' if said else 'it has no caption')
                if not problem and has_half_character(image.name):
                    problem = 'its name is not UTF-8: rename the file'
                if problem:
                    counts[
                        "places where an image should be can't be used"
                        if image.problem or said
                        else 'images have no caption and are left out'
                    ] += 1
                    if warn is not None and told < _MOST_MESSAGES:
                        told += 1
                        warn(f'{image.name}: {problem}; passed over')
                    continue
                if len(said) > 1 and not settings['every_caption']:
                    counts['further captions of the same images are left out'] += len(said) - 1
                    said = said[:1]
                if cut := sum(len(text) > LONGEST_PROMPT for text, _ in said):
                    counts['captions are too long, and cut'] += cut
                kept += [(image, text[:LONGEST_PROMPT], nouns) for text, nouns in said]
            asked = [text for _, text, nouns in kept if nouns is None]
            if asked and finder is None:
                finder = NounFinder(TextBlobTagger(), settings['concrete'])
            nouns_of = iter(_found_nouns(finder, asked, counts))
            for image, text, given in kept:
                nouns = next(nouns_of) if given is None else _given_nouns(given, text, counts)
                if not nouns:
                    if settings['without_nouns'] == 'skip':
                        counts['captions have no noun; their images are left out'] += 1
                        continue
                    counts['captions have no noun; their images get no masks'] += 1
                record_id = _id(image.name, ids)
                yield (
                    PromptRecord(record_id, text, nouns, settings['source']),
                    {'name': image.name, **image.place},
                )


def _found_nouns(
    finder: NounFinder | None, texts: list[str], counts: Counter[str]
) -> Iterable[tuple[Noun, ...]]:
    if finder is None:
        return []
    found = list(finder(texts))
    for number, text in enumerate(texts):
        if not finder.can_read(text):
            found[number] = ()
            counts['captions are not in English, so no nouns are found in them'] += 1
    return found


def _given_nouns(given: Any, text: str, counts: Counter[str]) -> tuple[Noun, ...]:
    """Nouns that a source names: objects with their span, or words, at all their places."""
    found: dict[tuple[int, int], Noun] = {}
    for noun in given if isinstance(given, list) else [given]:
        places: list[Noun] = []
        if isinstance(noun, str):
            places = [
                Noun(text[start:end], start, end, noun.lower())
                for start, end in places_of(noun, text)
            ]
        elif isinstance(noun, dict):
            try:
                own = Noun.from_json(noun)
                if text[own.start : own.end] == own.text and own.text:
                    places = [own]
            except ValueError:
                pass
        if not places:
            counts['nouns that were given are not in their captions'] += 1
        for item in places:
            found.setdefault((item.start, item.end), item)
    return tuple(found[span] for span in sorted(found))


def _id(name: str, ids: SeenTexts) -> str:
    """A key for the store that is made of an image's place, and that no other image has."""
    plain = re.sub(r'\.(tar/|[A-Za-z]{3,5}$)', '-', name).strip('-')
    safe = re.sub(r'[^A-Za-z0-9_-]+', '-', plain).strip('-')
    own = safe
    number = 0
    while own != plain or len(own) > 80 or not ids.add(own):
        digest = blake2b(f'{name}/{number}'.encode(), digest_size=6).hexdigest()
        plain = own = f'{safe[:60]}-{digest}'.lstrip('-')
        number += 1
    return own
