"""Hooks of a recorder see its own network in its own thread alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ['of_this_thread', 'own_hook']


def of_this_thread(call: Callable[..., None]) -> Callable[..., None]:
    """Make a function that does nothing in other threads than the present one.

    Others may generate with the same network meanwhile.
    """
    thread = threading.get_ident()

    def run(*args: Any) -> None:
        if threading.get_ident() == thread:
            call(*args)

    return run


def own_hook(module: nn.Module, hook: Callable[..., None]) -> Callable[..., None]:
    """Make a hook that runs for a module in the present thread.

    It does not run for deep copies of the module, which have it as well.
    """

    def run(called: nn.Module, *rest: Any) -> None:
        if called._modules is module._modules:
            hook(called, *rest)

    return of_this_thread(run)
