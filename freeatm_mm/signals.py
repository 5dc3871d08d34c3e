"""Being told to end: SIGTERM (a scheduler, a service manager), SIGHUP (a terminal that closed)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ['Terminated', 'end_on_signals', 'keep_handlers']

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """The process was told to end; like KeyboardInterrupt, nothing but its top may catch it.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as a shell has it."""
        return 128 + self.number


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Raise `Terminated` in the main thread when told to end.

    A signal that is ignored (SIGHUP under ``nohup``) stays so. A second one ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        if _is_in_finalizer(frame):
            # Python would print an exception raised here, and go on as if nothing were: once more.
            later = threading.Timer(0.02, os.kill, (os.getpid(), number))
            later.daemon = True
            later.start()
            return
        signal.signal(number, signal.SIG_DFL)
        raise Terminated(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _is_in_finalizer(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_name == '__del__':
            return True
        frame = frame.f_back
    return False


@contextmanager
def keep_handlers() -> Iterator[None]:
    """Have the signals handled afterwards as they were before; Ray takes SIGTERM for itself."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if main and handler is not None:
                signal.signal(number, handler)
