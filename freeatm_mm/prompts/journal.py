"""Writing prompt files of any length so that a killed run goes on where it was.

While a run goes on, its records lie in a journal beside the file to write, one JSON object a line:
first the run's settings, then a line for each batch, with the batch's records, what was counted,
how far the source has been read, and a digest of the line. A line is written and flushed to disk as
a whole; a torn last line is cut off. Only when the source has ended are the records copied to the
file itself, at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from freeatm_mm.errors import counted
from freeatm_mm.files import atomic_write
from freeatm_mm.prompts.reading import load_json
from freeatm_mm.prompts.record import PromptRecord
from freeatm_mm.prompts.seen import SeenTexts

__all__ = ['Batch', 'Report', 'SeenTexts', 'check_target', 'journal_path', 'write_batches']

#: The longest line of a journal, in bytes: a batch's records.
LONGEST_LINE = 1 << 28
_CHECK = re.compile(rb', "check": "([0-9a-f]{16})"}\n$')
#: The longest first line, in bytes: the settings.
LONGEST_SETTINGS = 1 << 20


@dataclass(frozen=True)
class Batch:
    """What one step of a source gave.

    Args:
        read: Items of the source read by this step.
        records: The records made of them.
        counts: Whatever else is to be counted (``{'skipped: no noun': 2}``).
        messages: What the user should be told at once; not kept.
    """

    read: int
    records: tuple[PromptRecord, ...] = ()
    counts: dict[str, float] = field(default_factory=dict)
    messages: tuple[str, ...] = ()


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
        lines = [
            f'{counted(self.records, "prompt")} in {self.path}, from {self.read:,} read'
            + (f' ({self.resumed:,} of them before an interruption)' if self.resumed else '')
        ]
        for name, number in sorted(self.counts.items()):
            text = f'{number:,.4f}' if isinstance(number, float) else f'{number:,}'
            lines.append(f'  {name}: {text}')
        return '\n'.join(lines)


def journal_path(path: str | Path) -> Path:
    """Return where the journal of an unfinished file lies."""
    path = Path(path)
    return path.with_name(path.name + '.journal')


def check_target(path: str | Path, overwrite: bool = False) -> None:
    """Refuse a file to write that is there already, or that is a folder, a pipe or a device.

    Raises:
        FileExistsError: If it is there and ``overwrite`` is not given.
        ValueError: If it is no regular file. (A link is replaced, not written through.)
    """
    path = Path(path)
    if os.path.lexists(path):
        if not overwrite:
            raise FileExistsError(
                f'{path} exists already; remove it, name another file or pass --overwrite'
            )
        if not path.is_symlink() and not path.is_file():
            raise ValueError(f'{path} is no regular file and is not replaced; name another file')


def write_batches(
    path: str | Path,
    settings: dict[str, Any],
    batches: Callable[[int, SeenTexts, Counter], Iterable[Batch]],
    overwrite: bool = False,
    skip_doubled: bool = False,
) -> Report:
    """Write a prompt file from batches, going on with an interrupted run's journal.

    Args:
        path: The JSON Lines file to write.
        settings: What decides the result, as JSON values; a journal of other settings is refused.
        batches: Called with the number of source items that a journal holds already, the texts
            seen so far (those of the journal's records are in it) and the journal's counts; gives
            the remaining batches in order.
        overwrite: Replace a finished file; without it, one that exists is refused.
        skip_doubled: Leave out and count a record whose id came before, instead of stopping.

    Returns:
        What was done, interrupted runs included.

    Raises:
        FileExistsError: If the file is there already.
        ValueError: If the journal belongs to other settings, is damaged or no regular file, or two
            records share an id.
    """
    path = Path(path)
    journal = journal_path(path)
    check_target(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    counts: Counter = Counter()
    with SeenTexts() as seen, SeenTexts(fold=False) as ids, _open(journal) as file:
        _lock(file, journal)
        read, written = _recover(file, journal, settings, counts, seen, ids)
        resumed = read
        for batch in batches(resumed, seen, counts.copy()):
            records, step = _new_records(batch, ids, skip_doubled)
            _append(
                file,
                {
                    'read': batch.read,
                    'counts': step,
                    'records': [record.to_json() for record in records],
                },
            )
            read += batch.read
            written += len(records)
            counts.update(step)
        with atomic_write(path) as target:
            for line in _lines(file, skip_settings=True):
                for record in line['records']:
                    target.write((json.dumps(record, ensure_ascii=False) + '\n').encode())
        journal.unlink()
    return Report(path, read, written, resumed, counts)


def _new_records(
    batch: Batch, ids: SeenTexts, skip_doubled: bool
) -> tuple[list[PromptRecord], Counter]:
    """The records of a batch whose ids are new, and the batch's counts without the others."""
    records, counts = [], Counter(batch.counts)
    for record in batch.records:
        if ids.add(record.id):
            records.append(record)
        elif skip_doubled:
            counts['skipped: its id came before'] += 1
            if 'nouns' in counts:
                counts['nouns'] -= len(record.nouns)
        else:
            raise ValueError(f'two prompt records have the id {record.id!r}; ids must be unique')
    return records, counts


def _open(journal: Path) -> BinaryIO:
    """Open a journal to go on with; never through a link, and never a pipe or device."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(journal, flags, 0o666)
    except OSError as error:
        if journal.is_symlink():
            raise ValueError(
                f'{journal} is a symbolic link, and nothing is written through it; '
                'remove it or name another file'
            ) from None
        raise ValueError(f"the journal {journal} can't be opened: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f'{journal} is no regular file; remove it or name another file')
    return os.fdopen(handle, 'a+b')


def _lock(file: Any, journal: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f'another process is writing {journal}; wait for it or name another file'
        ) from None


def _append(file: Any, value: dict) -> None:
    text = json.dumps(value, ensure_ascii=False).encode()
    file.write(text[:-1] + b', "check": "' + _digest(text) + b'"}\n')
    file.flush()
    os.fsync(file.fileno())


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=8).hexdigest().encode()


def _is_whole(line: bytes) -> bool:
    """Whether a line is as it was written, by the digest at its end."""
    check = _CHECK.search(line, max(0, len(line) - 64))
    return check is not None and _digest(line[: check.start()] + b'}') == check[1]


def _lines(file: Any, skip_settings: bool) -> Iterator[dict]:
    file.seek(0)
    if skip_settings:
        file.readline()
    while line := file.readline(LONGEST_LINE):
        yield json.loads(line)


class _OtherSettings(ValueError):
    pass


def _may_begin(line: bytes) -> bool:
    """Whether a first line that has no end may be a journal's, cut off while it was written."""
    start = b'{"settings": '
    return line[: len(start)] == start[: len(line)]


def _recover(
    file: Any, journal: Path, settings: dict, counts: Counter, seen: SeenTexts, ids: SeenTexts
) -> tuple[int, int]:
    """Cut off a torn line, check the settings and count what a journal holds."""
    file.seek(0)
    read = written = end = 0
    checked = False
    number = 0
    while line := file.readline(LONGEST_LINE if number else LONGEST_SETTINGS):
        number += 1
        if not line.endswith(b'\n'):
            if len(line) >= (LONGEST_LINE if number > 1 else LONGEST_SETTINGS) or (
                number == 1 and not _may_begin(line)
            ):
                raise ValueError(
                    f'{journal}, line {number}: damaged, or no journal; remove it to begin anew'
                )
            break
        try:
            value = load_json(line)
            if number == 1:
                checked = 'check' in value or b'check' in line  # older journals have none
            if checked and not _is_whole(line):
                raise ValueError('other bytes than were written')
            if number == 1:
                old = value['settings']
                if not isinstance(old, dict):
                    raise TypeError
                if old != settings and not file.read(1):
                    break  # that run did nothing, as after a mistyped name: begin anew
                if old != settings:
                    names = sorted(
                        name
                        for name in old.keys() | settings.keys()
                        if old.get(name) != settings.get(name)
                    )
                    raise _OtherSettings(
                        f'{journal} belongs to an unfinished run with other settings (different: '
                        f'{", ".join(names)}); finish that run with its own settings, or remove '
                        'the journal to begin anew'
                    )
            else:
                records = [PromptRecord.from_json(record) for record in value['records']]
                if type(value['read']) is not int or value['read'] < 0:
                    raise TypeError
                counts.update(value['counts'])
                counts.total()
                for record in records:
                    seen.add(record.prompt)
                    ids.add(record.id)
                read += value['read']
                written += len(records)
        except _OtherSettings:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = str(error) if type(error) is ValueError else type(error).__name__
            raise ValueError(
                f'{journal}, line {number}: damaged ({reason}); remove the journal to begin anew'
            ) from None
        end += len(line)
    file.truncate(end)
    file.seek(end)
    if end == 0:
        _append(file, {'settings': settings})
    return read, written
