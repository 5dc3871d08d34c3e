#!/usr/bin/env python
"""The paper's Tables 1 to 3 from rows of results, its numbers beside ours.

python tools/results/tables.py work_dirs/rows/*/row.json --out tables.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.files import atomic_write  # noqa: E402
from freeatm_mm.results import read_results  # noqa: E402
from freeatm_mm.results.paper_tables import (  # noqa: E402
    TABLES,
    belongs,
    gather_rows,
    improvements,
    own_metrics,
    table_markdown,
)


def main(argv: list[str] | None = None) -> None:
    """Prints the tables; bad input is told in one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'results',
        nargs='*',
        help="result files, such as tools/downstream.py's "
        "row.json; none: the paper's numbers alone",
    )
    parser.add_argument(
        '--tables', type=int, nargs='+', choices=tuple(TABLES), default=list(TABLES)
    )
    parser.add_argument('--out', help='also write the Markdown there')
    args = parser.parse_args(argv)
    try:
        results = [read_results(path) for path in args.results]
        parts = []
        for table in args.tables:
            ours = gather_rows(results, table)
            parts += [table_markdown(ours, table), improvements(ours, table)]
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    text = '\n'.join(part for part in parts if part)
    print(text)
    homeless = [
        f'{row.get("method")} (seed {row["seed"]}: {", ".join(row["metrics"])})'
        for result in results
        for row in result['rows']
        if not any(belongs(row, table) for table in TABLES)
    ]
    if homeless:
        own = '; '.join(
            f'Table {table} {", ".join(sorted(own_metrics(table)))}' for table in TABLES
        )
        print(
            f'{parser.prog}: {len(homeless)} rows belong in none of the tables: '
            f'{"; ".join(homeless)}. Rows of random and supervised weights need a metric that one '
            f'table alone has: {own}',
            file=sys.stderr,
        )
    if args.out:
        with atomic_write(args.out) as file:
            file.write(text.encode())


if __name__ == '__main__':
    main()
