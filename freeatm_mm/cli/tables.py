"""The paper's Tables 1 to 3 from rows of results, its numbers beside ours.

    freeatm tables work_dirs/rows/*/row.json --out tables.md

The Markdown is printed; without rows it holds the paper's numbers alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from freeatm_mm.cli._paths import path_here
from freeatm_mm.errors import InputError, counted, tool
from freeatm_mm.files import atomic_write, check_replaceable
from freeatm_mm.results import is_smoke, read_results
from freeatm_mm.results.paper_tables import (
    TABLES,
    belongs,
    gather_rows,
    improvements,
    own_metrics,
    table_markdown,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'results',
        nargs='*',
        help="result files, such as freeatm downstream's row.json; none: the paper's numbers alone",
    )
    parser.add_argument(
        '--tables',
        type=int,
        nargs='+',
        choices=tuple(TABLES),
        default=list(TABLES),
        help='which (all)',
    )
    parser.add_argument('--out', type=path_here, help='also write the Markdown there')
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    args = parse_args(argv)
    if args.out:
        check_replaceable(args.out, 'a file of freeatm tables', '**Table ')
    results = [read_results(path) for path in args.results]
    for path, result in zip(args.results, results):
        if cases := [row['case'] for row in result['rows'] if 'case' in row]:
            raise InputError(
                f'{path} holds benchmarks ({", ".join(cases)}), which are in none of the tables: '
                'leave it out; freeatm report shows it'
            )
    parts = []
    for table in args.tables:
        ours = gather_rows(results, table)
        parts += [table_markdown(ours, table), improvements(ours, table)]
    text = '\n'.join(part for part in parts if part)
    print(text)
    homeless: dict[bool, list[str]] = {True: [], False: []}
    for result in results:
        for row in result['rows']:
            if not any(belongs(row, table) for table in TABLES):
                homeless[is_smoke(row)].append(
                    f'{row.get("method")} (seed {row["seed"]}: {", ".join(row["metrics"])})'
                )
    if homeless[True]:
        print(
            f'tables.py: {counted(len(homeless[True]), "row")} of --smoke left out, a few images '
            f'being no result: {"; ".join(homeless[True])}',
            file=sys.stderr,
        )
    if homeless[False]:
        own = '; '.join(
            f'Table {table} {", ".join(sorted(own_metrics(table)))}' for table in TABLES
        )
        print(
            f'tables.py: {counted(len(homeless[False]), "row")} in none of the tables: '
            f'{"; ".join(homeless[False])}. Rows of random and supervised weights need a '
            f'metric that one table alone has: {own}',
            file=sys.stderr,
        )
    if args.out:
        with atomic_write(args.out) as file:
            file.write(text.encode())
    return 0
