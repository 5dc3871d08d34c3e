"""Writing prompt files of any length so that a killed run goes on where it was.

While a run goes on, its records lie in a journal beside the file to write, one JSON object a line:
first the run's settings, then a line for each batch, with the batch's records, what was counted,
and how far the source has been read. A line is written and flushed to disk as a whole; a torn last
line is cut off. Only when the source has ended are the records copied to the file itself, at once.
"""
from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from freeatm_mm.files import atomic_write

from .record import PromptRecord

__all__ = ['Batch', 'Report', 'SeenTexts', 'journal_path', 'write_batches']


@dataclass(frozen=True)
class Batch:
    """What one step of a source gave.

    Args:
        read: Items of the source read by this step.
        records: The records made of them.
        counts: Whatever else is to be counted (``{'skipped: no noun': 2}``).
    """

    read: int
    records: tuple[PromptRecord, ...] = ()
    counts: dict[str, float] = field(default_factory=dict)


@dataclass
class Report:
    """What a finished run did.

    Args:
        path: The file written.
        read: Items read from the source.
        records: Records written.
        resumed: Items that an earlier, interrupted run had read already.
        counts: The sum of the batches' counts.
    """

    path: Path
    read: int
    records: int
    resumed: int
    counts: Counter

    def __str__(self) -> str:
        lines = [f'{self.records:,} prompts in {self.path}, from {self.read:,} read'
                 + (f' ({self.resumed:,} of them before an interruption)' if self.resumed else '')]
        for name, number in sorted(self.counts.items()):
            text = f'{number:,.4f}' if isinstance(number, float) else f'{number:,}'
            lines.append(f'  {name}: {text}')
        return '\n'.join(lines)


class SeenTexts:
    """Which texts have come before, kept in SQLite's temporary storage: millions take no memory.

    What doesn't fit into its small cache lies in a nameless file in the folder for temporary files
    (``SQLITE_TMPDIR`` or ``TMPDIR``), about 20 bytes a text, gone when the process ends.

    Args:
        fold: Take texts for the same that differ only in case or in spaces at their ends.
    """

    def __init__(self, fold: bool = True) -> None:
        self._fold = fold
        self._database = sqlite3.connect('', isolation_level=None)
        self._database.execute('CREATE TABLE seen (hash INTEGER PRIMARY KEY) WITHOUT ROWID')
        self._database.execute('BEGIN')

    def add(self, text: str) -> bool:
        """Remember a text and return whether it is new."""
        text = text.strip().casefold() if self._fold else text
        digest = blake2b(text.encode(), digest_size=8).digest()
        cursor = self._database.execute('INSERT OR IGNORE INTO seen VALUES (?)',
                                        (int.from_bytes(digest, 'big', signed=True),))
        return cursor.rowcount == 1

    def close(self) -> None:
        """Forget all texts."""
        self._database.close()

    def __enter__(self) -> SeenTexts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def journal_path(path: str | Path) -> Path:
    """Return where the journal of an unfinished file lies."""
    path = Path(path)
    return path.with_name(path.name + '.journal')


def write_batches(path: str | Path, settings: dict[str, Any],
                  batches: Callable[[int, SeenTexts, Counter], Iterable[Batch]],
                  overwrite: bool = False) -> Report:
    """Write a prompt file from batches, going on with an interrupted run's journal.

    Args:
        path: The JSON Lines file to write.
        settings: What decides the result, as JSON values; a journal of other settings is refused.
        batches: Called with the number of source items that a journal holds already, the texts
            seen so far (those of the journal's records are in it) and the journal's counts; gives
            the remaining batches in order.
        overwrite: Replace a finished file; without it, one that exists is refused.

    Returns:
        What was done, interrupted runs included.

    Raises:
        FileExistsError: If the file is there already.
        ValueError: If the journal belongs to other settings, is damaged, or two records share an
            id.
    """
    path = Path(path)
    journal = journal_path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f'{path} exists already; remove it, name another file or pass '
                              '--overwrite')
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    counts: Counter = Counter()
    with SeenTexts() as seen, SeenTexts(fold=False) as ids, \
            journal.open('a+b') as file:
        _lock(file, journal)
        read, written = _recover(file, journal, settings, counts, seen, ids)
        resumed = read
        for batch in batches(resumed, seen, counts.copy()):
            for record in batch.records:
                if not ids.add(record.id):
                    raise ValueError(f'two prompt records have the id {record.id!r}; ids must be '
                                     'unique')
            _append(file, {'read': batch.read, 'counts': batch.counts,
                           'records': [record.to_json() for record in batch.records]})
            read += batch.read
            written += len(batch.records)
            counts.update(batch.counts)
        with atomic_write(path) as target:
            for line in _lines(file, skip_settings=True):
                for record in line['records']:
                    target.write((json.dumps(record, ensure_ascii=False) + '\n').encode())
        journal.unlink()
    return Report(path, read, written, resumed, counts)


def _lock(file: Any, journal: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f'another process is writing {journal}; wait for it or name another '
                         'file') from None


def _append(file: Any, value: dict) -> None:
    file.write((json.dumps(value, ensure_ascii=False) + '\n').encode())
    file.flush()
    os.fsync(file.fileno())


def _lines(file: Any, skip_settings: bool) -> Iterator[dict]:
    file.seek(0)
    if skip_settings:
        file.readline()
    for line in file:
        yield json.loads(line)


def _recover(file: Any, journal: Path, settings: dict, counts: Counter, seen: SeenTexts,
             ids: SeenTexts) -> tuple[int, int]:
    """Cut off a torn line, check the settings and count what a journal holds."""
    file.seek(0)
    read = written = end = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b'\n'):
            break
        try:
            value = json.loads(line)
            if number == 1:
                old = value['settings']
                if old != settings:
                    names = sorted(name for name in old.keys() | settings.keys()
                                   if old.get(name) != settings.get(name))
                    raise ValueError(
                        f'{journal} belongs to an unfinished run with other settings (different: '
                        f'{", ".join(names)}); finish that run with its own settings, or remove '
                        'the journal to begin anew')
            else:
                for record in value['records']:
                    seen.add(record['prompt'])
                    ids.add(record['id'])
                read += value['read']
                written += len(value['records'])
                counts.update(value['counts'])
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError,
                UnicodeDecodeError) as error:
            raise ValueError(f'{journal}, line {number}: damaged ({type(error).__name__}); remove '
                             'the journal to begin anew') from None
        end += len(line)
    file.truncate(end)
    file.seek(end)
    if end == 0:
        _append(file, {'settings': settings})
    return read, written
