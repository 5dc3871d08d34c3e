"""Make the table and plots of a result file: NAME.md and NAME*.svg beside NAME.json.

    freeatm report docs/results/miniature-mocov2.json

Several files may be given; each gets its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from freeatm_mm.errors import counted, tool
from freeatm_mm.files import atomic_write
from freeatm_mm.results import read_results, to_markdown


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('results', nargs='+', metavar='RESULTS.json', help='result files')
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Make tables and plots."""
    args = parse_args(argv)
    from freeatm_mm.results.plots import result_plots, to_svg

    for path in map(Path, args.results):
        results = read_results(path)
        plots = {
            f'{path.stem}{suffix}.svg': figure for suffix, figure in result_plots(results).items()
        }
        for name, figure in plots.items():
            with atomic_write(path.with_name(name)) as file:
                file.write(to_svg(figure).encode())
        page = path.with_suffix('.md')
        with atomic_write(page) as file:
            file.write(to_markdown(results, list(plots)).encode())
        rows, figures = counted(len(results['rows']), 'row'), counted(len(plots), 'plot')
        print(f'{page}: {rows}, {figures}')
    return 0
