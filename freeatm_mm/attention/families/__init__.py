"""Which pipeline keeps its text keys where: one row of :data:`FAMILIES` for each family.

A new family of pipelines is a new file in this folder: every :class:`Family` that a module here
defines is a row. What a row can say covers the three ways in which diffusers models look at text
(:class:`TextKeys`); the recorder does the rest. `docs/generators.md` shows the table as it is.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from freeatm_mm.attention.families.base import (
    Call,
    CallNames,
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    argument,
)

__all__ = [
    'FAMILIES',
    'TEXTLESS',
    'Call',
    'CallNames',
    'DenoiserInput',
    'Encoder',
    'Family',
    'TextKeys',
    'argument',
    'call_names',
    'find_family',
    'known_pipelines',
]


def _modules() -> list[ModuleType]:
    """The files of families, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f'{__name__}.{name}') for name in names if name != 'base']


def _families() -> tuple[Family, ...]:
    """The rows of all files, in the order in which each file defines them."""
    return tuple(
        value
        for module in _modules()
        for value in vars(module).values()
        if isinstance(value, Family)
    )


FAMILIES: tuple[Family, ...] = _families()

TEXTLESS: dict[str, str] = {
    name: reason
    for module in _modules()
    for name, reason in getattr(module, 'TEXTLESS', {}).items()
}
"""Pipelines that draw from text although the network that draws has no text keys, and why."""


def known_pipelines() -> str:
    """The families and their pipeline classes in one line, for messages."""
    return '; '.join(f'{family.name}: {", ".join(family.pipelines)}' for family in FAMILIES)


def find_family(pipe: Any) -> Family:
    """Finds the row of :data:`FAMILIES` a pipeline belongs to.

    Args:
        pipe: A diffusers pipeline.

    Returns:
        The family whose class, or a base class of whose, ``pipe`` is.

    Raises:
        ValueError: If no row names the pipeline's class or one of its base classes, or if its
            drawing network has no text keys.
    """
    names = _class_names(pipe)
    for name in names:
        if name in TEXTLESS:
            raise ValueError(
                f'{type(pipe).__name__} gives no masks of nouns: {TEXTLESS[name]}. Draw images '
                'without masks, or use another family'
            )
        for family in FAMILIES:
            if name in family.pipelines:
                return family
    raise ValueError(
        f'{type(pipe).__name__} is not a pipeline whose text attention is known. Known are: '
        f'{known_pipelines()}. To add one, add a file with its row to '
        'freeatm_mm/attention/families; to do without masks, draw images only'
    )


def call_names(pipe: Any) -> CallNames:
    """Return what a text-to-image pipeline calls what it can be told, of a known family or not."""
    names = _class_names(pipe)
    known = (family for name in names for family in FAMILIES if name in family.pipelines)
    family = next(known, None)
    return CallNames() if family is None else family.call_names


def _class_names(pipe: Any) -> list[str]:
    return [base.__name__ for base in type(pipe).__mro__]
