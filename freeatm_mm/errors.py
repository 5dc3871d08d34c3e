"""What is wrong with what a user gave: tools tell it in one sentence, without a traceback."""

import sys

__all__ = ['InputError', 'MissingFileError', 'print_any_text']


class InputError(ValueError):
    """A checkpoint, data set or setting can't be used; the message says why and what to do."""


class MissingFileError(InputError, FileNotFoundError):
    """A file isn't there."""


def print_any_text() -> None:
    r"""Let tools print what the locale's encoding lacks, as `\xe9`, instead of ending there."""
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')
