"""Which pipelines of the installed diffusers give masks, and why the others don't.

`python -m freeatm_mm.attention.coverage` prints it as tables.
"""

from __future__ import annotations

import sys
from typing import NamedTuple, TextIO

from freeatm_mm.attention.families import Family, family_of

__all__ = ['TASKS', 'Coverage', 'coverage', 'print_coverage']

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
        task: One of `TASKS`.

    Returns:
        The pipelines, in the order of diffusers' table.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If ``task`` is unknown.
    """
    from diffusers.pipelines import auto_pipeline

    if task not in TASKS:
        raise ValueError(f'task must be one of {list(TASKS)}, got {task!r}')
    found = []
    for pipeline in dict.fromkeys(getattr(auto_pipeline, TASKS[task]).values()):
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


def print_coverage(out: TextIO | None = None) -> None:
    """Print a table of each task's pipelines: with masks first, then the others with the reason.

    Args:
        out: Where to; the default is standard output.
    """
    import diffusers

    out = out or sys.stdout
    print(f'diffusers {diffusers.__version__}', file=out)
    for task in TASKS:
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
