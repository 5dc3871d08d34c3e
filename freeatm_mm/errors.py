"""What is wrong with what a user gave: tools tell it in one sentence, without a traceback."""
__all__ = ['InputError', 'MissingFileError']


class InputError(ValueError):
    """A checkpoint, data set or setting can't be used; the message says why and what to do."""


class MissingFileError(InputError, FileNotFoundError):
    """A file isn't there."""
