"""Numbers that the paper fixes, for rooms that load nothing of each other."""

__all__ = ['THRESHOLD']

THRESHOLD = 0.45
"""From this value on a pixel of a mask in [0, 1] is foreground (section 4, setting 2)."""
