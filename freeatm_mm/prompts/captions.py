"""Captions as their data sets are distributed, one at a time, and prompt records made of them.

========== ================================================== =================================
data set   file                                               record
========== ================================================== =================================
COCO       ``captions_train2017.json``                        ``coco-<annotation id>``
Visual     ``region_descriptions.json`` (or its ``.zip``)     ``vg-<region id>``
Genome
CC3M       ``Train_GCC-training.tsv``: caption, address       ``cc3m-<line>``
CC12M      ``cc12m.tsv``: address, caption                    ``cc12m-<line>``
SBU        ``SBU_captioned_photo_dataset_captions.txt``, or   ``sbu-<number>``
           ``sbu-captions-all.json``, or a JSON list of
           objects with ``caption``
========== ================================================== =================================

Every file may be packed with gzip, or be the one file of its kind in a zip archive.
"""
from __future__ import annotations

import gzip
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from .journal import Batch, SeenTexts
from .nouns import NounFinder
from .record import PromptRecord

__all__ = ['Caption', 'READERS', 'caption_batches', 'open_packed', 'read_cc', 'read_coco',
           'read_sbu', 'read_visual_genome']

#: The longest line or text that is taken for a caption at all, in characters.
LONGEST_LINE = 100_000


@dataclass(frozen=True)
class Caption:
    """A caption and its place in its data set.

    Args:
        id: The id that its prompt record will have.
        text: The caption as it stands in the file.
    """

    id: str
    text: str


@contextmanager
def open_packed(path: str | Path, ending: str) -> Iterator[BinaryIO]:
    """Open a file, looking through gzip and zip.

    Args:
        path: A plain file, ``.gz``, or ``.zip`` with exactly one member that fits.
        ending: How that member's name ends (``'.json'``).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an archive holds no such member, or several, is damaged or locked.
    """
    path = Path(path)
    with _named(path):
        if path.suffix == '.zip':
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(ending)]
                if len(names) != 1:
                    raise ValueError(f'{path} holds {len(names)} files that end with {ending}, '
                                     'not one; unpack it and name the file')
                try:
                    file = archive.open(names[0])
                except RuntimeError as error:  # a password, or a method that Python doesn't know
                    raise ValueError(f"{path} can't be unpacked: {error}") from None
                with file:
                    yield file
        elif path.suffix == '.gz':
            with gzip.open(path) as file:
                yield file
        else:
            with path.open('rb') as file:
                yield file


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file is missing or damaged."""
    if not path.is_file():
        raise FileNotFoundError(f'there is no caption file {path}')
    try:
        yield
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f'{path} is damaged: {error}') from None


def read_coco(path: str | Path, name: str = 'coco') -> Iterator[Caption]:
    """Yield the captions of a COCO captions file (``annotations`` with ``id`` and ``caption``).

    Raises:
        ValueError: If the file is no such JSON; names the annotation.
    """
    for number, item in _json_items(path, 'annotations.item', 'annotation'):
        yield Caption(f'{name}-{_integer(path, "annotation", number, item, "id")}',
                      _string(path, 'annotation', number, item, 'caption'))


def read_visual_genome(path: str | Path, name: str = 'vg') -> Iterator[Caption]:
    """Yield the phrases of Visual Genome's region descriptions.

    Raises:
        ValueError: If the file is no such JSON; names the region.
    """
    for number, item in _json_items(path, 'item.regions.item', 'region'):
        field = 'region_id' if not isinstance(item, dict) or 'region_id' in item else 'id'
        yield Caption(f'{name}-{_integer(path, "region", number, item, field)}',
                      _string(path, 'region', number, item, 'phrase'))


def read_cc(path: str | Path, name: str | None = None) -> Iterator[Caption]:
    """Yield the captions of Conceptual Captions: lines of a caption and an address, tab between.

    CC3M has the caption first, CC12M the address; either is told by the ``http`` it begins with.

    Args:
        path: The TSV file.
        name: What ids begin with; by the columns' order where not given.

    Raises:
        ValueError: If a line has no two columns, or no address; names file and line.
    """
    with open_packed(path, '.tsv') as file:
        for number, line in _lines(path, file):
            columns = line.split('\t')
            addresses = [column.startswith(('http://', 'https://')) for column in columns]
            if len(columns) != 2 or not any(addresses):
                raise ValueError(f'{path}, line {number}: must be a caption and an address with '
                                 f'a tab between, and has {len(columns)} '
                                 f'column{"s" * (len(columns) != 1)}')
            first = 0 if addresses[1] else 1
            yield Caption(f'{name or ("cc3m", "cc12m")[first]}-{number}', columns[first])


def read_sbu(path: str | Path, name: str = 'sbu') -> Iterator[Caption]:
    """Yield SBU's captions: lines of text, or JSON with ``captions`` or objects with ``caption``.

    Raises:
        ValueError: If the file is none of these; names the line or the number of the caption.
    """
    names = str(path).removesuffix('.gz').removesuffix('.zip')
    ending = '.json' if names.endswith('.json') else '.txt'
    if str(path).endswith('.zip') and ending == '.txt':
        with _named(Path(path)), zipfile.ZipFile(path) as archive:
            ending = '.json' if any(n.endswith('.json') for n in archive.namelist()) else '.txt'
    with open_packed(path, ending) as file:
        if ending == '.txt':
            for number, line in _lines(path, file):
                yield Caption(f'{name}-{number}', line)
            return
        start = file.read(64).lstrip()[:1]
    prefix = 'item' if start == b'[' else 'captions.item'
    for number, item in _json_items(path, prefix, 'caption'):
        text = item if isinstance(item, str) else _string(path, 'caption', number, item, 'caption')
        yield Caption(f'{name}-{number}', text)


#: The reader of each data set, by the name that the tool gives it.
READERS: dict[str, Callable[..., Iterator[Caption]]] = {
    'coco': read_coco, 'visual-genome': read_visual_genome, 'cc': read_cc, 'sbu': read_sbu}


def caption_batches(captions: Iterable[Caption], finder: NounFinder, *,
                    skip: int = 0, seen: SeenTexts | None = None, max_words: int = 60,
                    keep_without_nouns: bool = False, batch_size: int = 1000) -> Iterator[Batch]:
    """Make batches of prompt records of captions.

    Spaces and line breaks in a row become one space, and CC12M's ``<PERSON>`` becomes "person".
    What gives no record is counted by its reason. A record's source is what its id begins with.

    Args:
        captions: The captions of one data set.
        finder: Finds their nouns.
        skip: Captions at the beginning that an earlier run has done.
        seen: Texts so far, to leave out captions that come again; none are left out without it.
        max_words: Longer captions are left out.
        keep_without_nouns: Make records without nouns too.
        batch_size: Captions a batch.
    """
    remaining = islice(captions, skip, None)
    while chunk := list(islice(remaining, batch_size)):
        counts: Counter = Counter()
        kept: list[Caption] = []
        for caption in chunk:
            text = ' '.join(caption.text.replace('<PERSON>', 'person').split())
            if not text:
                counts['skipped: empty'] += 1
            elif any('\ud800' <= character <= '\udfff' for character in text):
                counts['skipped: half a character'] += 1
            elif text.count(' ') >= max_words:
                counts[f'skipped: more than {max_words} words'] += 1
            else:
                kept.append(Caption(caption.id, text))
        records = []
        for caption, nouns in zip(kept, finder(caption.text for caption in kept), strict=True):
            if not nouns and not keep_without_nouns:
                counts['skipped: no noun'] += 1
                continue
            if seen is not None and not seen.add(caption.text):
                counts['skipped: said before'] += 1
                continue
            counts['nouns'] += len(nouns)
            records.append(PromptRecord(caption.id, caption.text, nouns,
                                        caption.id.rpartition('-')[0]))
        yield Batch(len(chunk), tuple(records), dict(counts))


def _lines(path: str | Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, with their numbers."""
    number = 0
    while line := file.readline(4 * LONGEST_LINE):
        number += 1
        if len(line) >= 4 * LONGEST_LINE:
            raise ValueError(f'{path}, line {number}: longer than any caption; is this a file of '
                             'captions?')
        try:
            text = line.decode('utf-8').rstrip('\r\n')
        except UnicodeDecodeError as error:
            raise ValueError(f'{path}, line {number}: not UTF-8 ({error.reason})') from None
        if text:
            yield number, text


def _json_items(path: str | Path, prefix: str, what: str) -> Iterator[tuple[int, Any]]:
    """Yield a JSON file's items under a prefix, numbered from 1, without reading it whole."""
    try:
        import ijson
    except ImportError:
        raise ImportError('reading captions from JSON needs ijson: pip install ijson, or '
                          './run setup prompts') from None
    number = 0
    with open_packed(path, '.json') as file:
        try:
            for item in ijson.items(file, prefix, use_float=True):
                number += 1
                yield number, item
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = (str(error).strip().splitlines() or ['cut off'])[0]
            raise ValueError(f'{path}, after {what} {number}: not valid JSON ({reason})') from None
    if number == 0:
        raise ValueError(f'{path} holds no {what}; is it the file that the data set distributes?')


def _string(path: str | Path, what: str, number: int, item: Any, field: str) -> str:
    value = item.get(field) if isinstance(item, dict) else None
    if not isinstance(value, str):
        raise ValueError(f'{path}, {what} {number}: has no string {field!r}')
    return value


def _integer(path: str | Path, what: str, number: int, item: Any, field: str) -> int:
    value = item.get(field) if isinstance(item, dict) else None
    if type(value) is not int:
        raise ValueError(f'{path}, {what} {number}: has no integer {field!r}')
    return value
