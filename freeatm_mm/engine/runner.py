"""mmengine's runner with a console that can be read."""

from __future__ import annotations

import copy
import logging
import os
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

from freeatm_mm.errors import counted

__all__ = ['ShortConsoleRunner']

#: How the reports begin that mmengine prints whole before each run.
_REPORTS = ('System environment:', 'Config:', 'Hooks will be executed in the following order:')


class ShortConsoleRunner(Runner):
    """mmengine's runner, whose console names its long reports and leaves them to the log file.

    The environment, the config and the list of hooks are hundreds of lines before the first step.
    The log file in the work directory holds them whole.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger as mmengine does, and shorten what it shows on the console."""
        logger = super().build_logger(*args, **kwargs)
        files = [each for each in logger.handlers if isinstance(each, logging.FileHandler)]
        for handler in logger.handlers:
            # One logger serves all runners of a process.
            if files and handler not in files and not isinstance(handler.formatter, _Shortened):
                handler.setFormatter(_Shortened(handler.formatter, files[0].baseFilename))
        return logger


class _Shortened(logging.Formatter):
    """Another formatter's text, but of a report only its first line and where the others are."""

    def __init__(self, whole: logging.Formatter | None, log_file: str) -> None:
        super().__init__()
        self._whole = whole or logging.Formatter()
        self._log_file = log_file

    def format(self, record: logging.LogRecord) -> str:
        lines = record.getMessage().strip('\n -').splitlines()
        if record.levelno == logging.INFO and lines and lines[0].startswith(_REPORTS):
            record = copy.copy(record)
            place = os.path.relpath(self._log_file)
            rest = counted(len(lines) - 1, 'line')
            record.msg, record.args = f'{lines[0]} {rest}, in {place}', ()
        return self._whole.format(record)
