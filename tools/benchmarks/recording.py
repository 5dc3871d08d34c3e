"""Measure what recording attention costs at Stable Diffusion 1.5's shapes, ours and others'.

    python tools/benchmarks/recording.py                 # ours, and the obvious way
    python tools/benchmarks/recording.py --ways ours ours-compiled --side 16 --repeats 21
    python tools/benchmarks/recording.py --ways ours --side 16 --count-instructions --repeats 1
    python tools/benchmarks/recording.py --daam OTHER_ENV/bin/python --attention-map-diffusers ...

Random weights, 512x512 or smaller, guidance on, one image; the text encoder and the UNet run, the
decoder of the latents doesn't (it would only hide the cost). Each figure is a ratio to the plain
run of the same environment; `ours-compiled` has compiled blocks on both sides. The other tools need
environments of their own, made by `pip install -r requirements/benchmark/daam.txt` and
`.../attention-map-diffusers.txt`.
Writes OUT.json and the table OUT.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from recording_runs import OTHERS, benchmark_recording, rows_of

from freeatm_mm.cli._numbers import whole
from freeatm_mm.errors import tool
from freeatm_mm.results import add_row, new_results, write_with_page


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--ways',
        nargs='*',
        default=['ours', 'ours-refined', 'keep-all'],
        choices=['ours', 'ours-compiled', 'ours-refined', 'keep-all'],
        help='what to measure in this environment (%(default)s)',
    )
    for other in OTHERS:
        parser.add_argument(f'--{other}', metavar='PYTHON', help=f'interpreter with {other}')
    parser.add_argument(
        '--steps', type=whole(1, 10_000), default=1, help='denoising steps (%(default)s)'
    )
    parser.add_argument(
        '--repeats', type=whole(1, 10_000), default=9, help='pairs of runs (%(default)s)'
    )
    parser.add_argument(
        '--side',
        type=whole(1, 1024),
        default=64,
        help="side of the latents, an eighth of the images' (%(default)s)",
    )
    parser.add_argument(
        '--narrower',
        type=int,
        choices=(1, 2, 4),
        default=1,
        help="what the network's channels are divided by (%(default)s)",
    )
    parser.add_argument(
        '--count-instructions',
        action='store_true',
        help='instructions in place of time and memory, by valgrind: other work on the machine '
        'does not change them (fifty times as long)',
    )
    parser.add_argument('--quick', action='store_true', help='a small network: says that it runs')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/results/benchmark-recording.json'),
        help='result file (%(default)s)',
    )
    parser.add_argument('--note', default='', help='kept with the results')
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    args = parse_args(argv)
    pythons = {
        other: python for other in OTHERS if (python := getattr(args, other.replace('-', '_')))
    }
    kept = list(argv or sys.argv[1:])
    for other in pythons:  # where an interpreter lies says nothing to others
        kept[kept.index(f'--{other}') + 1] = f'{other}-env/bin/python'
    results = new_results(
        'benchmark-recording', shlex.join(['python', 'tools/benchmarks/recording.py', *kept])
    )
    results['description'] = ' '.join(
        filter(
            None,
            (
                f'One image of {8 * args.side}x{8 * args.side}, {args.steps} step(s), guidance on, '
                'random weights, float32 on one CPU thread; '
                + f'channels divided by {args.narrower}; ' * (args.narrower > 1)
                + f'medians of {args.repeats} pair(s) by turns.',
                args.note,
            ),
        )
    )
    results['other_versions'] = {}
    for way, found in benchmark_recording(
        [*args.ways, *pythons],
        pythons,
        steps=args.steps,
        repeats=args.repeats,
        quick=args.quick,
        side=args.side,
        narrower=args.narrower,
        count_instructions=args.count_instructions,
    ):
        if way in pythons:
            results['other_versions'][way] = found['versions']
        for row in rows_of(way, found):
            add_row(results, row)
            print(
                f'{row["case"]}: {row["ratio"]:.3f} = {row["ours"]:.4g} / {row["baseline"]:.4g} '
                f'{row["unit"]}; latents identical: {row["identical"]}'
                + (f'; quartiles {row["quartiles"]}' if 'quartiles' in row else ''),
                flush=True,
            )
        write_with_page(args.out, results)
    return 0


if __name__ == '__main__':
    sys.exit(main())
