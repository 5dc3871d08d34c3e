"""Which pipeline keeps its text keys where: one row of `FAMILIES` for each family.

A new family of pipelines is a new file in this folder: every `Family` that a module here
defines is a row. What a row can say covers the three ways in which diffusers models look at text
(`TextKeys`); the recorder does the rest. `docs/generators.md` shows the table as it is.
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
    call_parameters,
    head_count,
)
from freeatm_mm.attention.families.latents import Latents

__all__ = [
    'FAMILIES',
    'NOT_COVERED',
    'TEXTLESS',
    'Call',
    'CallNames',
    'DenoiserInput',
    'Encoder',
    'Family',
    'Latents',
    'TextKeys',
    'argument',
    'call_names',
    'call_parameters',
    'family_of',
    'find_family',
    'head_count',
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


def _reasons(table: str) -> dict[str, str]:
    """Pipeline classes and reasons of one name, from all files."""
    return {
        name: reason for module in _modules() for name, reason in getattr(module, table, {}).items()
    }


TEXTLESS: dict[str, str] = _reasons('TEXTLESS')
"""Pipelines that generate from text although their denoiser has no text keys, and why."""

NOT_COVERED: dict[str, str] = _reasons('NOT_COVERED')
"""Pipelines that have text keys and no row, and why."""


def family_of(pipeline: type[Any]) -> Family | str:
    """Return the row of a pipeline class, or why there is none.

    Args:
        pipeline: A pipeline class of diffusers, or one derived from it.

    Returns:
        The family that names the class or the nearest of its base classes; or else the reason of
        `TEXTLESS` or `NOT_COVERED`, empty for a class that nothing is known of.
    """
    for base in pipeline.__mro__:
        for family in FAMILIES:
            if base.__name__ in family.pipelines:
                return family
        reason = TEXTLESS.get(base.__name__) or NOT_COVERED.get(base.__name__)
        if reason:
            return reason
    return ''


def find_family(pipe: Any) -> Family:
    """Find the row of `FAMILIES` a pipeline belongs to.

    Args:
        pipe: A diffusers pipeline.

    Returns:
        The family whose class, or a base class of whose, ``pipe`` is.

    Raises:
        ValueError: If no row names the pipeline's class or one of its base classes, or if its
            denoiser has no text keys.
    """
    family = family_of(type(pipe))
    if isinstance(family, Family):
        return family
    if family:
        raise ValueError(
            f'{type(pipe).__name__} gives no masks of nouns: {family}. Generate without masks, '
            'or use another family'
        )
    raise ValueError(
        f'{type(pipe).__name__} is not a pipeline whose text attention is known: use one of those '
        'that `python -m freeatm_mm.attention.coverage` lists, generate without masks, or add a '
        'file with its row to freeatm_mm/attention/families'
    )


def call_names(pipe: Any) -> CallNames:
    """Return what a text-to-image pipeline calls what it can be told, of a known family or not."""
    names = _class_names(pipe)
    known = (family for name in names for family in FAMILIES if name in family.pipelines)
    family = next(known, None)
    return CallNames() if family is None else family.call_names


def _class_names(pipe: Any) -> list[str]:
    return [base.__name__ for base in type(pipe).__mro__]
