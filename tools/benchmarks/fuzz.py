"""Damage files in thousands of ways and see that each reader refuses them, or reads the same.

    python tools/benchmarks/fuzz.py                        all targets
    python tools/benchmarks/fuzz.py store verify --count 2000 --seed 1
    python tools/benchmarks/fuzz.py --list

Each target's files are changed one at a time: single bits (--bits of each file, 0 for every one),
and --count other mutations of each file: cut, doubled and overwritten parts, other values and
fields in JSON, other tar headers, pipes, folders, endless and huge files in its place. Counted are
hangs, stray exceptions (no single sentence) and silent differences; exit code 1 if there are any.
Writes `fuzz.json` and `.md` (--out). How to add a target: tools/benchmarks/fuzzing.py.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import SEED, number, whole
from freeatm_mm.errors import FOUND, InputError, tool

ROOT = Path(__file__).resolve().parents[2]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('targets', nargs='*', metavar='TARGET', help='what to test (default: everything)')
    add('--count', type=whole(0, 10**9), default=500, help='mutations of each file (500)')
    add(
        '--bits',
        type=whole(0, 10**9),
        default=500,
        metavar='N',
        help='single bits of each file to turn, besides (500; 0: every bit)',
    )
    add('--seed', type=SEED, default=0, help='other mutations (0)')
    add(
        '--seconds',
        type=number(0, 1e6),
        default=10.0,
        metavar='S',
        help='a reading longer than this is a hang (10)',
    )
    add('--module', action='append', default=[], help='import this module, which adds targets')
    add('--list', action='store_true', help='print the targets and end')
    add(
        '--out',
        type=Path,
        default=Path('work_dirs/results/fuzz.json'),
        help='result file (%(default)s)',
    )
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    import fuzzing

    from freeatm_mm.results import add_row, open_results, update_with_page

    for module in args.module:
        importlib.import_module(module)
    if args.list:
        for target in fuzzing.TARGETS.values():
            print(f'{target.name}: {(target.make.__doc__ or "").strip()}')
        return 0
    if unknown := set(args.targets) - fuzzing.TARGETS.keys():
        raise InputError(f'there is no target {", ".join(sorted(unknown))}; --list prints them')
    if args.count < 0 or args.bits < 0 or not 0 < args.seconds < float('inf'):
        raise InputError('--count and --bits must not be negative, and --seconds above 0')

    description = (
        'Files damaged in many ways, each of which their readers must refuse in one sentence or '
        'read as before. Baseline: mutations; ours: those that ended in a hang, a stray exception '
        'or a silent difference. The details say how many ended how, and the --seed, --count and '
        '--bits of each row.'
    )
    command = 'python tools/benchmarks/fuzz.py'
    open_results(args.out, 'fuzz', command)  # one that can't be used is told at once

    def keep(row: dict[str, Any]) -> None:
        def change(results: dict[str, Any]) -> None:
            results['description'] = description
            add_row(results, row)

        update_with_page(args.out, change, 'fuzz', command)

    faults = 0
    for name in args.targets or fuzzing.TARGETS:
        target, start = fuzzing.TARGETS[name], time.monotonic()
        report = fuzzing.fuzz(
            target, fuzzing.random_mutations(args.count, args.seed), seconds=args.seconds
        )
        fuzzing.fuzz(
            target,
            fuzzing.all_bits(args.bits or None, args.seed),
            seconds=args.seconds,
            report=report,
        )
        print(f'{report}, {time.monotonic() - start:.0f} s', flush=True)
        for line in report.faults:
            print(f'    {line}')
        count = sum(report.outcomes[fault] for fault in fuzzing.FAULTS)
        faults += count
        keep(
            {
                'case': f'fuzz-{name}',
                'unit': 'mutations',
                'baseline': report.outcomes.total(),
                'ours': count,
                'ratio': count / max(1, report.outcomes.total()),
                'details': {
                    'seed': args.seed,
                    'count': args.count,
                    'bits': args.bits or 'all',
                    **{
                        outcome: report.outcomes[outcome]
                        for outcome in ('refused', 'same content', 'forged', *fuzzing.FAULTS)
                    },
                    'faults': report.faults,
                },
            }
        )
    return FOUND if faults else 0


if __name__ == '__main__':
    sys.exit(main())
