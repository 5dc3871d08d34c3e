"""Which pipelines of the installed diffusers give masks, and why the others don't.

`python -m freeatm_mm.attention.coverage` prints it as tables.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any, NamedTuple, TextIO

from freeatm_mm.attention.families import (
    FAMILIES,
    NOT_COVERED,
    TEXTLESS,
    Family,
    call_parameters,
    family_of,
)

__all__ = ['OTHERS', 'TASKS', 'Coverage', 'coverage', 'print_coverage']

OTHERS = 'other tasks'
"""What all pipelines that take prompts and stand in none of diffusers' tables are for."""

TASKS: dict[str, str] = {
    'text to image': 'AUTO_TEXT2IMAGE_PIPELINES_MAPPING',
    'image to image': 'AUTO_IMAGE2IMAGE_PIPELINES_MAPPING',
    'inpainting': 'AUTO_INPAINT_PIPELINES_MAPPING',
}
"""The tables of diffusers that say which pipelines there are for a task."""


class Coverage(NamedTuple):
    """One pipeline class.

    Args:
        pipeline: Its name.
        family: The name of the family that covers it; ``None`` if none does.
        reason: Why none does; empty if nothing is known of the class.
    """

    pipeline: str
    family: str | None
    reason: str


def coverage(task: str) -> list[Coverage]:
    """Look up each pipeline of the installed diffusers for a task.

    Args:
        task: One of `TASKS`, or `OTHERS`.

    Returns:
        The pipelines, in the order of diffusers' table; the others by name.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If ``task`` is unknown.
    """
    from diffusers.pipelines import auto_pipeline

    if task != OTHERS and task not in TASKS:
        raise ValueError(f'task must be one of {[*TASKS, OTHERS]}, got {task!r}')
    tables = {name: dict.fromkeys(getattr(auto_pipeline, TASKS[name]).values()) for name in TASKS}
    found = []
    for pipeline in _others(tables) if task == OTHERS else tables[task]:
        family = family_of(pipeline)
        known = isinstance(family, Family)
        found.append(
            Coverage(
                pipeline.__name__,
                family.name if isinstance(family, Family) else None,
                '' if known else str(family),
            )
        )
    return found


def _others(tables: dict[str, dict[type[Any], None]]) -> list[type[Any]]:
    """The pipelines of diffusers in none of its tables that are known or take prompts."""
    import diffusers

    in_tables = {pipeline.__name__ for table in tables.values() for pipeline in table}
    known = {name for family in FAMILIES for name in family.pipelines} | {*NOT_COVERED, *TEXTLESS}
    found = []
    for name in dir(diffusers):
        if 'Pipeline' not in name or name in in_tables:
            continue
        kind = getattr(diffusers, name)
        if not inspect.isclass(kind) or not issubclass(kind, diffusers.DiffusionPipeline):
            continue  # an output, a block, or a stand-in for what needs another package
        if name in known or any(map(_is_text, call_parameters(kind))):
            found.append(kind)
    return found


def _is_text(argument: str) -> bool:
    """Tell whether an argument of a call is a prompt."""
    return argument == 'prompt' or (
        argument.endswith('_prompt')
        and not argument.endswith('_per_prompt')
        and 'neg' not in argument
    )


def print_coverage(out: TextIO | None = None) -> None:
    """Print a table of each task's pipelines: with masks first, then the others with the reason.

    Args:
        out: Where to; the default is standard output.
    """
    import diffusers

    out = out or sys.stdout
    print(f'diffusers {diffusers.__version__}', file=out)
    for task in (*TASKS, OTHERS):
        rows = coverage(task)
        covered = [row for row in rows if row.family is not None]
        print(f'\n{task}: {len(covered)} of {len(rows)} pipelines give masks', file=out)
        width = max(len(row.pipeline) for row in rows)
        for row in covered:
            print(f'  {row.pipeline:{width}}  {row.family}', file=out)
        for row in rows:
            if row.family is None:
                print(f'  {row.pipeline:{width}}  none: {row.reason or "unknown"}', file=out)


if __name__ == '__main__':
    print_coverage()
