"""Measure what pretraining with masks costs, against the same training without masks.

    python tools/benchmarks/pretraining.py            # the paper's shapes; 10 minutes on a CPU
    python tools/benchmarks/pretraining.py --device cuda --batch 32
    python tools/benchmarks/pretraining.py --quick --out /tmp/benchmark.json

Writes OUT.json and the table OUT.md; each figure is a ratio, ours to the baseline of this run.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import whole
from freeatm_mm.errors import tool
from freeatm_mm.miniature.layout import miniature_methods

ROOT = Path(__file__).resolve().parents[2]
CASES = ('mask-generator', 'loading', 'step', 'memory')
METHODS = ['simclr', 'mocov2', 'mae']


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], default='cpu', help='where to measure (%(default)s)'
    )
    parser.add_argument('--batch', type=whole(1, 4096), help='images of a training step (8)')
    parser.add_argument('--repeats', type=whole(1, 10_000), help='pairs of a case (5)')
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=miniature_methods(),
        default=METHODS,
        help='to measure (%(default)s)',
    )
    parser.add_argument(
        '--cases', nargs='+', choices=CASES, default=CASES, help='what to measure (all)'
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help="the miniature's networks and few repeats: says that it runs, not what masks cost",
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='result file (work_dirs/results/benchmark-pretraining.json; with --quick none)',
    )
    parser.add_argument(
        '--note', default='', help='a sentence on the circumstances, kept with the results'
    )
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    args = parse_args(argv)
    from pretraining_cases import Shapes, benchmark_pretraining

    import freeatm_mm.openmmlab  # noqa: F401
    from freeatm_mm.results import add_row, new_results, write_with_page

    shapes, folder = Shapes(), ROOT / 'configs'
    if args.quick:
        shapes = Shapes(batch=4, image=64, mask=16, loaded=4, repeats=2)
        folder /= 'miniature'
    changes = {
        name: value for name in ('batch', 'repeats') if (value := getattr(args, name)) is not None
    }
    shapes = replace(shapes, **changes)
    out = args.out or (None if args.quick else Path('work_dirs/results/benchmark-pretraining.json'))
    command = shlex.join(['python', 'tools/benchmarks/pretraining.py', *(argv or sys.argv[1:])])
    results = new_results(out.stem if out else 'benchmark-pretraining', command)
    results['description'] = ' '.join(
        filter(
            None,
            (
                f'Batch {shapes.batch}, {shapes.repeats} alternating pairs, medians; one to three '
                f'nouns an image, images of {shapes.image} and masks of {shapes.mask} pixels.',
                args.note,
            ),
        )
    )
    with tempfile.TemporaryDirectory() as scratch:
        for row in benchmark_pretraining(
            {method: folder / f'{method}_freeatm.py' for method in args.methods},
            Path(scratch),
            shapes,
            args.device,
            args.cases,
        ):
            add_row(results, row)
            target = f', target at most {row["target"]:g}' if 'target' in row else ''
            print(
                f'{row["case"]}: {row["ratio"]:.3f} = {row["ours"]:.4g} / '
                f'{row["baseline"]:.4g} {row["unit"]}{target}',
                flush=True,
            )
            if out:
                write_with_page(out, results)
    return 0


if __name__ == '__main__':
    sys.exit(main())
