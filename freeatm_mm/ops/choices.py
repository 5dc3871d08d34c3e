"""Refusing what is none of an option's choices, in the same words everywhere.

>>> choices = ('soft', 'hard')
>>> check_choice('mask_values', 'soft', choices)
>>> check_choice('mask_values', 'sharp', choices)
Traceback (most recent call last):
ValueError: mask_values 'sharp' is unknown: use one of soft, hard
"""

from __future__ import annotations

from collections.abc import Collection

__all__ = ['check_choice']


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Refuse a value that is none of the known ones.

    Args:
        name: What the option is called.
        value: What was given.
        known: The choices, in the order in which they are named.

    Raises:
        ValueError: Saying which there are.
    """
    if value not in known:
        raise ValueError(f'{name} {value!r} is unknown: use one of {", ".join(known)}')
