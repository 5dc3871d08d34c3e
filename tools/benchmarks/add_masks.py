"""Masks added to images that exist: how good they are at which noise levels, and what they cost.

    python tools/benchmarks/add_masks.py weights/miniature-generator --sources SOURCES

Quality: real scenes of objects that the generator never saw, whose masks are exact, are looked at
at single levels and at several; those best on the split 'val' are scored on the split 'test'. Then
images are generated with their masks recorded, masks are added to the same images afterwards, and
both are compared with what a segmenter marks. Cost: CPU seconds of generating with masks and of
adding them, in turn. Writes `benchmark-add-masks.json` and `.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import number, whole
from freeatm_mm.cli._scoring import add_folder_options, portable_command, write_report
from freeatm_mm.errors import tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('generator', help='folder of the pipeline')
    add('--scenes', type=whole(1, 10**7), default=200, help='to score, of each kind (%(default)s)')
    add(
        '--steps',
        type=whole(1, 10_000),
        default=50,
        help='denoising steps of generating (%(default)s)',
    )
    add(
        '--guidance',
        type=number(-1000, 1000),
        default=5.0,
        help='guidance scale of generating (%(default)s)',
    )
    add('--pairs', type=whole(1, 10_000), default=3, help='to time (%(default)s)')
    add(
        '--segmenter-scenes',
        type=whole(1, 10**7),
        default=4000,
        help='it learns from (%(default)s)',
    )
    add('--segmenter-epochs', type=whole(0, 10**6), default=3, help='of its training (%(default)s)')
    add(
        '--work',
        type=Path,
        default=Path('work_dirs/judge'),
        help='keeps the segmenter (%(default)s)',
    )
    add_folder_options(parser)
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print."""
    args = parse_args(argv)
    from add_masks_cases import measure, report

    from freeatm_mm.results import new_results

    found = measure(args)
    command = portable_command('tools/benchmarks/add_masks.py', args, argv)
    results = new_results('benchmark-add-masks', command)
    del results['rows']
    results |= found
    write_report(args.out, 'benchmark-add-masks', results, report(results, args))
    return 0


if __name__ == '__main__':
    sys.exit(main())
