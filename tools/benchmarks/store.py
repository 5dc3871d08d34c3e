"""Measure a store of 14 million samples, the bytes of masks, and what writing costs.

    python tools/benchmarks/store.py
    python tools/benchmarks/store.py --cases write --generation-seconds 1.1   # of your own machine

The large store is simulated: 2,800 shards with their indexes, all links to one, so it takes no
room on the disk. Writes OUT.json and the table OUT.md. Where the project sets itself a limit and
there is nothing to compare with, the limit is the baseline.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import number, whole
from freeatm_mm.errors import tool

CASES = ('large', 'masks', 'write')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--cases', nargs='+', choices=CASES, default=CASES, help='what to measure (all)')
    add(
        '--samples',
        type=whole(1, 10**10),
        default=14_000_000,
        help='of the large store (14,000,000)',
    )
    add(
        '--generation-seconds',
        type=number(0, 1e6),
        metavar='S',
        help='seconds an image takes to generate (default: 50 times one denoising step at the '
        'shapes of Stable Diffusion 1.5, measured on this CPU: needs 4 GB and some minutes)',
    )
    add(
        '--out',
        type=Path,
        default=Path('work_dirs/results/benchmark-store.json'),
        help='result file; rows of other cases in it stay (%(default)s)',
    )
    args = parser.parse_args(argv)
    named = named_options(args, parser, argv)
    refuse_idle(named, 'large' not in args.cases, 'without the case large', 'samples')
    refuse_idle(named, 'write' not in args.cases, 'without the case write', 'generation_seconds')
    return args


@tool
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    import store_cases as benchmark

    from freeatm_mm.results import add_row, open_results, update_with_page

    name, command = 'benchmark-store', 'python tools/benchmarks/store.py'
    open_results(args.out, name, command)  # one that can't be used is told at once
    description = (
        'Where there is nothing to compare with, the baseline is the limit that the project sets '
        'itself. Random reads are compared with those of a store of one shard; writing, with '
        'generation alone. CPU seconds of the process, but for opening.'
    )

    def keep(rows) -> None:
        for row in rows:

            def change(results: dict[str, Any], row: dict[str, Any] = row) -> None:
                results['description'] = description
                add_row(results, row)

            print(
                f'{row["case"]}: {row["ours"]:.4g} of {row["baseline"]:.4g} {row["unit"]}, ratio '
                f'{row["ratio"]:.4g}, target at most {row["target"]:g}',
                flush=True,
            )
            update_with_page(args.out, change, name, command)

    with tempfile.TemporaryDirectory() as scratch:
        if 'masks' in args.cases:
            keep(benchmark.benchmark_masks())
        if 'large' in args.cases:
            keep(benchmark.benchmark_large_store(Path(scratch), args.samples))
        if 'write' in args.cases:
            seconds, how = args.generation_seconds, 'given'
            if seconds is None:
                step = benchmark.stable_diffusion_step_seconds()
                seconds, how = 50 * step, '50 denoising steps, one measured on this CPU'
            keep(benchmark.benchmark_writing(Path(scratch), seconds, how))
    return 0


if __name__ == '__main__':
    sys.exit(main())
