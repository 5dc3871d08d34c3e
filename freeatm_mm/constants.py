"""Numbers of the paper that several parts of the package need."""

from __future__ import annotations

__all__ = ['THRESHOLD']

#: What a mask stretched to [0, 1] must reach to be foreground (paper, section 4, setting 2).
THRESHOLD = 0.45
