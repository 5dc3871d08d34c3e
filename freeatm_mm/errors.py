"""What users are told of errors: the exceptions, and the one way in which every tool ends."""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, overload

from freeatm_mm.signals import Terminated, end_on_signals

__all__ = [
    'BAD_INPUT',
    'FOUND',
    'INTERRUPTED',
    'FreeATMError',
    'InputError',
    'MissingFileError',
    'RunError',
    'counted',
    'first_line',
    'install_hint',
    'is_distant',
    'keeping_tracebacks',
    'listed',
    'moving_to',
    'one_sentence',
    'pip_install',
    'print_any_text',
    'tool',
]

#: Exit code of a tool that ran well, as checks go, and found something to report.
FOUND = 1
#: Exit code of a tool that can't do what it was asked for, as argparse has it.
BAD_INPUT = 2
#: Exit code of a tool that was interrupted from the keyboard, as a shell has it.
INTERRUPTED = 130


class FreeATMError(Exception):
    """The package can't do what it was asked for; the message says why and what to do."""


class InputError(FreeATMError, ValueError):
    """A checkpoint, data set or setting can't be used; the message says why and what to do."""


class MissingFileError(InputError, FileNotFoundError):
    """A file isn't there."""

    @classmethod
    def of(cls, what: str, path: object) -> MissingFileError:
        """Return the error of a file that isn't there; it says if its name is an address.

        Args:
            what: What it should be, such as 'prompt file'.
            path: Its path.
        """
        hint = ': it is an address, and this is read from files of this machine: copy it here'
        return cls(f'there is no {what} {path}{hint if is_distant(path) else ""}')


class RunError(FreeATMError, RuntimeError):
    """A run can't go on: another program, a server or a worker failed; the message says how."""


def is_distant(path: object) -> bool:
    """Whether a path is an address (`s3://...`), also as `Path` writes it (`s3:/...`).

    On this machine it would be a file in a folder whose name ends with a colon: if there is such a
    folder, it is none.
    """
    first, separator, _ = str(path).partition('/')
    scheme = separator and re.fullmatch('[A-Za-z][A-Za-z0-9+.-]+:', first)
    return bool(scheme) and not os.path.isdir(first)


#: What the message of a package that is missing ends with, such as the extra that brings it.
install_hint: ContextVar[str] = ContextVar('install_hint', default='')

#: What tools report in one sentence. Python's own errors are among them because libraries raise
#: these for bad input; anything else is a mistake of the program and keeps its traceback.
_REPORTED = (FreeATMError, ValueError, OSError, ImportError, FloatingPointError)

#: Writing that found no room: Python names no file then, and says no more than errno does.
_NO_ROOM = {
    errno.ENOSPC: 'the disk is full: make room',
    errno.EDQUOT: 'the quota of the disk is used up: make room',
    errno.EFBIG: 'a file would be larger than is allowed here (`ulimit -f`, the file system)',
}
#: Other errors of a file that is named, of which errno's words say less than these.
_NO_WAY = {
    errno.EACCES: 'this user may not read it, or not write there',
    errno.EPERM: 'this user may not read it, or not write there',
    errno.EROFS: 'nothing can be written there, as its disk is read-only',
    errno.ENAMETOOLONG: 'its name is too long',
}


@overload
def tool(
    main: Callable[..., int | None],
    *,
    name: str | None = None,
    resumes: bool = False,
    told_to_end: bool = False,
) -> Callable[..., int]: ...
@overload
def tool(
    main: None = None,
    *,
    name: str | None = None,
    resumes: bool = False,
    told_to_end: bool = False,
) -> Callable[[Callable[..., int | None]], Callable[..., int]]: ...
def tool(
    main: Callable[..., int | None] | None = None,
    *,
    name: str | None = None,
    resumes: bool = False,
    told_to_end: bool = False,
) -> Callable[..., Any]:
    """Let a tool's `main(argv=None)` end as all tools do.

    Bad input prints `PROGRAM: sentence` to stderr, without a traceback, and raises `SystemExit`
    with `BAD_INPUT`, as `argparse` does for the command line. Ctrl-C ends it with
    `INTERRUPTED`, a `Terminated` with 128 and the signal's number. Otherwise `main`'s
    exit code is returned; 0 if it returns None.

    Args:
        main: The function that is decorated.
        name: Of the program, for messages; by default `freeatm SUBCOMMAND` where that
            runs it, and otherwise the name of the file that defines `main`.
        resumes: Whether the same command goes on where an interrupted one was.
        told_to_end: Whether SIGTERM and SIGHUP end it as Ctrl-C does: what it has begun to write is
            removed, and what it started ends too. Not for what several processes do together.
    """
    if main is None:
        return functools.partial(tool, name=name, resumes=resumes, told_to_end=told_to_end)
    file_name = Path(main.__code__.co_filename).name
    advice = '; the same command goes on where it was' if resumes else ''

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        print_any_text()
        try:
            with end_on_signals() if told_to_end else nullcontext():
                return main(argv) or 0
        except _REPORTED as error:
            if getattr(error, 'keeps_traceback', False):
                raise
            message, code = one_sentence(error), BAD_INPUT
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                place = f' ({error.filename})' if error.filename else ''
                again = ', and run the same command again'
                message = f'{_NO_ROOM[error.errno]}{place}{advice or again}'
            elif isinstance(error, OSError) and error.errno in _NO_WAY and error.filename:
                message = f'{error.filename}: {_NO_WAY[error.errno]}'
            if isinstance(error, ImportError) and 'pip install' not in message:
                message += install_hint.get()
        except KeyboardInterrupt:
            message, code = f'interrupted{advice}', INTERRUPTED
        except Terminated as error:
            message, code = f'ended by {error}{advice}', error.exit_code
        # The command 'freeatm' puts its subcommand there.
        program = name or (sys.argv[0] if sys.argv[0].startswith('freeatm ') else file_name)
        with suppress(OSError):  # the terminal that would show it may be gone
            print(f'{program}: {message}', file=sys.stderr)
        sys.exit(code)

    return run


def pip_install(extra: str) -> str:
    """Return the command that installs one of the package's extras, for messages."""
    return f"in a clone of freeatm_mm, pip install '.[{extra}]'"


@contextmanager
def keeping_tracebacks() -> Iterator[None]:
    """Let a framework's own errors keep their traceback in a tool; the package's own are bad input.

    What a user's model or data set raises in the middle of a training has to be looked for.
    """
    try:
        yield
    except FreeATMError:
        raise
    except ModuleNotFoundError as error:
        if error.name == 'mmcv._ext':
            raise InputError(
                "this needs mmcv's compiled operators, which pip does not build: "
                'docs/downstream.md says how to install them'
            ) from None
        raise
    except _REPORTED as error:
        marked: Any = error
        marked.keeps_traceback = True
        raise


def one_sentence(error: BaseException) -> str:
    """Return an error's message on one line; the type's name if it has none.

    Of an error in a loading process, whose message holds the whole traceback, only its own words.
    """
    return ' '.join(worker_message(error).split()) or type(error).__name__


@contextmanager
def moving_to(device: object, what: str) -> Iterator[None]:
    """Say it in a sentence where what is moved to a device in the `with` can't be.

    Raises:
        InputError: If there is no such device, or it has no room.
    """
    try:
        yield
    except (RuntimeError, AssertionError) as error:  # the second where torch is without CUDA
        raise InputError(
            f"{what} can't be moved to the device {device}: {one_sentence(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the type's name if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def worker_message(error: BaseException) -> str:
    """An error's message, without the traceback that a loading process puts round it.

    Reason: an error in a worker process of a `DataLoader` arrives as one of the same type whose
    message is the whole traceback.

    Source: `torch/_utils.py`, `ExceptionWrapper.reraise`.
    """
    text = str(error)
    if text.startswith('Caught ') and 'Original Traceback' in text:
        text = text.rstrip().splitlines()[-1]
        kind, _, message = text.partition(': ')
        text = message if kind.isidentifier() or '.' in kind else text
    return text


def counted(count: int, noun: str) -> str:
    """Put a number before a noun: `'1 image'`, `'2,000 images'`.

    Args:
        count: How many.
        noun: In the singular; its plural must be a regular one.
    """
    if count != 1:
        if noun.endswith(('s', 'x', 'ch', 'sh')) and not noun.endswith('epoch'):
            noun += 'es'
        elif noun.endswith('y') and noun[-2] not in 'aeiou':
            noun = f'{noun[:-1]}ies'
        else:
            noun += 's'
    return f'{count:,} {noun}'


def listed(names: Iterable[object], most: int = 3, separator: str = ', ') -> str:
    """Name some of many: `'a, b, c and 4 more'`.

    Args:
        names: All of them.
        most: How many are named at most.
        separator: What stands between names.
    """
    texts = [str(name) for name in names]
    more = len(texts) - most
    return separator.join(texts[:most]) + (f' and {more} more' if more > 0 else '')


def print_any_text() -> None:
    r"""Let tools print what the locale's encoding lacks, as `\xe9`, instead of ending there."""
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')
