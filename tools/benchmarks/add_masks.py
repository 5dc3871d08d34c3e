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
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import number, whole
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
    add(
        '--out',
        type=Path,
        default=Path('work_dirs/results'),
        help='folder of the results (%(default)s)',
    )
    add('--sources', help='folder with the unpacked Debian packages')
    add('--cache', default='.cache', help='where the photos are kept (%(default)s)')
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print."""
    args = parse_args(argv)
    from add_masks_cases import measure, report

    from freeatm_mm.files import atomic_write
    from freeatm_mm.results import new_results

    found = measure(args)
    # Where the sources lie says nothing to others.
    kept = [
        'SOURCES' if args.sources and part == args.sources else part
        for part in argv or sys.argv[1:]
    ]
    results = new_results(
        'benchmark-add-masks', shlex.join(['python', 'tools/benchmarks/add_masks.py', *kept])
    )
    del results['rows']
    results |= found
    args.out.mkdir(parents=True, exist_ok=True)
    text = report(results, args)
    with atomic_write(args.out / 'benchmark-add-masks.json') as file:
        file.write((json.dumps(results, indent=1) + '\n').encode())
    with atomic_write(args.out / 'benchmark-add-masks.md') as file:
        file.write(text.encode())
    print(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
