"""Captions as their data sets are distributed, one at a time, and prompt records made of them.

`READERS` lists the data sets; each reader takes every format of
`freeatm_mm.prompts.tables`: a copy of COCO in Parquet is read as well as its JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from freeatm_mm.errors import counted
from freeatm_mm.prompts.journal import Batch, SeenTexts
from freeatm_mm.prompts.nouns import NounFinder
from freeatm_mm.prompts.record import PromptRecord
from freeatm_mm.prompts.tables import TEXT_FIELDS, read_rows
from freeatm_mm.prompts.text import clean_text, has_half_character

__all__ = ['READERS', 'Caption', 'CaptionSource', 'caption_batches', 'read_captions']

#: The longest caption that becomes a prompt, in characters; scripts without spaces have no words.
LONGEST_PROMPT = 1000
#: So many captions that can't be read are no reason to stop, however few were read before.
FEW = 20
#: So many of them are told with their place.
MOST_MESSAGES = 10


@dataclass(frozen=True)
class Caption:
    """A caption and its place in its data set.

    Args:
        id: The id that its prompt record will have.
        text: The caption as it stands in the file, or ``None`` where it can't be read.
        problem: Why not, in a few words.
        place: The file and the line or number, for messages.
    """

    id: str
    text: str | None
    problem: str = ''
    place: str = ''


def read_captions(
    path: str | Path,
    name: str | None = None,
    *,
    default: str = 'captions',
    ids: tuple[str, ...] = (),
) -> Iterator[Caption]:
    """Yield the captions of a file, or of a folder of them.

    A caption stands in the first of an object's fields that has one of the names in
    `freeatm_mm.prompts.tables.TEXT_FIELDS`, in any case; a list of captions gives
    ``<id>_1``, ``<id>_2`` and so on. So do several regions or sentences without ids of their own on
    one line of JSON Lines, in one row of Parquet or in one file of a tar. A row that can't be read
    is a caption without text.

    Args:
        path: The file.
        name: What ids begin with; ``default`` where not given.
        default: The data set's name. ``'cc'`` is ``'cc3m'`` where the caption comes before the
            address and ``'cc12m'`` where it comes after, in columns without names.
        ids: Fields that hold a whole number to make the id of; the row's number where there is
            none of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of no known format, damaged, or no regular file.
        ImportError: If a package that reads the format is not installed.
    """
    row = None
    for row in read_rows(path):
        prefix = name or (
            default if default != 'cc' or row.order is None else ('cc3m', 'cc12m')[row.order]
        )
        own = str(row.number) if row.part is None else f'{row.number}_{row.part}'
        number: Any = own
        problem = row.problem
        value: Any = row.value
        if isinstance(value, dict):
            fields = {key.lower(): field for key, field in value.items() if isinstance(key, str)}
            given = next((fields[key] for key in ids if fields.get(key) is not None), None)
            if given is not None:
                number = _whole(given)
                if number is None:
                    problem = 'an id that is no whole number'
            value = next((fields[key] for key in TEXT_FIELDS if fields.get(key) is not None), None)
        texts = [] if problem else list(_texts(value))
        if not texts:
            problem = problem or (
                'no caption in it' if value is None or value == [] else 'a caption that is no text'
            )
            yield Caption(f'{prefix}-{own}', None, problem, row.place)
        for index, text in enumerate(texts, 1):
            ending = f'_{index}' if isinstance(value, list) and len(texts) > 1 else ''
            yield Caption(f'{prefix}-{number}{ending}', text, '', row.place)
    if row is None:
        raise ValueError(f'{path} holds no captions')


def _whole(value: Any) -> int | None:
    """A whole number of at most 18 digits, also as a string or a float."""
    if isinstance(value, float) and value.is_integer():
        value = int(value) if abs(value) < 1e18 else None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        value = int(value)
    return value if type(value) is int and 0 <= value < 10**18 else None


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """The texts in a field: itself, its items, or what stands in its items' own fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode('utf-8', 'replace')
    elif isinstance(value, list) and depth < 3:
        for item in value[:1000]:
            yield from _texts(item, depth + 1)
    elif isinstance(value, dict) and depth < 3:
        yield from _texts(
            next((value[key] for key in TEXT_FIELDS if value.get(key)), None), depth + 1
        )


@dataclass(frozen=True)
class CaptionSource:
    """A data set of captions.

    Attributes:
        text: What its captions are, for the tool's help.
        file: The file, as it is distributed, in Markdown.
        ids: The ids that its prompt records get, in Markdown.
        read: Yields its captions: of a path, and the ``name`` that ids begin with, if one is given.
    """

    text: str
    file: str
    ids: str
    read: Callable[..., Iterator[Caption]] = read_captions

    @property
    def help(self) -> str:
        """The file, as a command line's help says it."""
        return self.file.replace('`', '').replace('%', '%%')

    def __call__(self, path: str | Path, name: str | None = None) -> Iterator[Caption]:
        """Yield the captions of a file, or of a folder of them; see `read_captions`."""
        return self.read(path, name=name)


READERS: dict[str, CaptionSource] = {
    'coco': CaptionSource(
        'captions of COCO',
        '`captions_train2017.json`',
        '`coco-<annotation>`',
        partial(read_captions, default='coco', ids=('id', 'sentid')),
    ),
    'visual-genome': CaptionSource(
        'region descriptions of Visual Genome',
        '`region_descriptions.json` or its `.zip`',
        '`vg-<region>`',
        partial(read_captions, default='vg', ids=('region_id', 'id')),
    ),
    'cc': CaptionSource(
        'captions of CC3M or CC12M',
        '`Train_GCC-training.tsv` (CC3M) or `cc12m.tsv`, recognised by the column of the URL',
        '`cc3m-<line>`, `cc12m-<line>`; `cc-<line>` where a header names the columns',
        partial(read_captions, default='cc'),
    ),
    'sbu': CaptionSource(
        'captions of SBU',
        '`SBU_captioned_photo_dataset_captions.txt`, `sbu-captions-all.json`, or a list of objects '
        'with `caption`',
        '`sbu-<number>`',
        partial(read_captions, default='sbu'),
    ),
    'captions': CaptionSource(
        'captions of any data set',
        'a JSON, JSON Lines, CSV, TSV, text, Parquet or tar file, or a folder of them, as '
        '`img2dataset` writes it',
        '`captions-<number>` (`--name` changes it)',
    ),
}
"""The data sets by the names that the tool gives them."""


def _problem(text: str, finder: NounFinder, max_words: int) -> str | None:
    """Why a cleaned caption gives no prompt; `None` if it does."""
    if not text:
        return 'empty'
    if has_half_character(text):
        return 'half a character'
    if text.count(' ') >= max_words:
        return f'more than {counted(max_words, "word")}'
    if len(text) > LONGEST_PROMPT:
        return f'more than {LONGEST_PROMPT:,} characters'
    return None if finder.can_read(text) else 'not English'


def caption_batches(
    captions: Iterable[Caption],
    finder: NounFinder,
    *,
    skip: int = 0,
    seen: SeenTexts | None = None,
    max_words: int = 60,
    keep_without_nouns: bool = False,
    batch_size: int = 1000,
    max_unreadable: float = 0.01,
    unreadable: int = 0,
) -> Iterator[Batch]:
    """Make batches of prompt records of captions.

    A prompt is the caption as `freeatm_mm.prompts.text.clean_text` returns it, and its
    nouns' spans are the prompt's. What gives no record is counted by its reason. A record's source
    is what its id begins with.

    Args:
        captions: The captions of one data set.
        finder: Finds their nouns.
        skip: Captions at the beginning that an earlier run has done.
        seen: Texts so far, to leave out captions that come again; none are left out without it.
        max_words: Longer captions are left out, as are those of more than 1,000 characters.
        keep_without_nouns: Make records without nouns too.
        batch_size: Captions a batch.
        max_unreadable: The share of captions that can't be read above which the file is taken for
            another; up to 20 are always allowed, but not all of them.
        unreadable: Those of an earlier run.

    Raises:
        ValueError: If more captions can't be read.
    """
    remaining = islice(captions, skip, None)
    read, told = skip, 0
    while chunk := list(islice(remaining, batch_size)):
        counts: Counter = Counter()
        kept: list[tuple[str, str]] = []  # ids and texts
        messages: list[str] = []
        for caption in chunk:
            read += 1
            if caption.text is None:
                unreadable += 1
                counts[f'unreadable: {caption.problem}'] += 1
                if told < MOST_MESSAGES:
                    told += 1
                    messages.append(f'{caption.place}: {caption.problem}; passed over')
                if unreadable > max(FEW, max_unreadable * read):
                    raise ValueError(_too_many(unreadable, read, caption))
                continue
            text = clean_text(caption.text)
            problem = _problem(text, finder, max_words)
            if problem is None:
                kept.append((caption.id, text))
            else:
                counts[f'skipped: {problem}'] += 1
        if unreadable == read:
            raise ValueError(_too_many(unreadable, read, chunk[-1]))
        records = []
        for (name, text), nouns in zip(kept, finder(text for _, text in kept), strict=True):
            if not nouns and not keep_without_nouns:
                counts['skipped: no noun'] += 1
                continue
            if seen is not None and not seen.add(text):
                counts['skipped: duplicates'] += 1
                continue
            counts['nouns'] += len(nouns)
            records.append(PromptRecord(name, text, nouns, name.rpartition('-')[0]))
        yield Batch(len(chunk), tuple(records), dict(counts), tuple(messages))


def _too_many(unreadable: int, read: int, last: Caption) -> str:
    return (
        f'{last.place}: {last.problem}; that is {unreadable:,} of {read:,} captions that '
        "can't be read. Is it the file that the data set distributes, in UTF-8? A larger "
        '--max-unreadable goes on'
    )
