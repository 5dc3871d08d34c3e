"""Numbers on the command line, each with its limits: what no run could have is refused at once."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

__all__ = ['SEED', 'number', 'whole']


def whole(low: int, high: int) -> Callable[[str], int]:
    """An argument's type: a whole number between two others."""

    def read(text: str) -> int:
        try:
            value = int(text) if len(text) < 40 else None
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f'must be a whole number from {low:,} to {high:,}, got {text[:40]!r}'
            )
        return value

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """An argument's type: a finite number between two others."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # nan is not
            raise argparse.ArgumentTypeError(
                f'must be a number from {low:g} to {high:g}, got {text[:40]!r}'
            )
        return value

    return read


#: What numpy, torch and mmengine all take for a seed.
SEED = whole(0, 2**32 - 1)
