"""Say what the rows of a claim decide, by the rule that was written down before them.

    python tools/results/claims.py docs/results/claims/contrastive-mocov2.json
    python tools/results/claims.py claims/acceleration-mocov2.json --rows OUT/*/results.json

    python tools/results/claims.py docs/results/claims/*.json --overview docs/results/claims.svg

Writes NAME.md and NAME.svg beside NAME.json, whose name is that of a claim; with --rows NAME.json,
too, from the rows of other result files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.errors import InputError, tool
from freeatm_mm.files import atomic_write
from freeatm_mm.results import add_row, is_untrained, read_results, update_results
from freeatm_mm.results.claims import (
    CLAIMS,
    claim_page,
    decide_claim,
    has_plot,
    verdict_line,
)
from freeatm_mm.results.rules import Objects


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('results', nargs='+', metavar='RESULTS.json', help='result files')
    parser.add_argument(
        '--rows',
        nargs='+',
        default=[],
        metavar='FILE.json',
        help="add the rows of these result files that are of the claim's method, or of random "
        'weights, to RESULTS.json, which is made if missing; a row of the same run is replaced',
    )
    parser.add_argument(
        '--overview',
        metavar='FILE.svg',
        help='draw what decides all of these claims as one plot (those measured by the accuracy on '
        'single objects)',
    )
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from freeatm_mm.results.plots import claim_plot, claims_plot, to_svg

    deciding = {}
    for path in map(Path, args.results):
        if path.stem not in CLAIMS:
            raise InputError(
                f'{path}: no claim of that name: it must be one of {", ".join(CLAIMS)}'
            )
        if args.rows:
            gather(path, args.rows)
        results, claim = read_results(path), CLAIMS[path.stem]
        with atomic_write(path.with_suffix('.md')) as file:
            file.write(claim_page(results, path.stem).encode())
        findings = decide_claim(results, claim)
        if isinstance(claim.measure, Objects):
            deciding[path.stem] = findings[: len(claim.comparisons)]
        if has_plot(findings):
            with atomic_write(path.with_suffix('.svg')) as file:
                file.write(to_svg(claim_plot(findings)).encode())
        print(f'{path.stem}: {verdict_line(findings[: len(claim.comparisons)], claim)}')
    if args.overview:
        in_order = {name: deciding[name] for name in CLAIMS if name in deciding}
        with atomic_write(Path(args.overview)) as file:
            file.write(to_svg(claims_plot(in_order)).encode())
    return 0


def gather(path: Path, files: Sequence[str]) -> None:
    """Add the rows of a claim's method in other files to its result file."""
    content = [read_results(file) for file in files]

    def change(results: dict[str, Any]) -> None:
        commands = [*results['command'].splitlines(), *(each['command'] for each in content)]
        results['command'] = '\n'.join(dict.fromkeys(commands))
        for each in content:
            for row in each['rows']:
                method = row.get('method', '')
                if method == CLAIMS[path.stem].method or is_untrained(method):
                    add_row(results, row)

    update_results(path, change, path.stem, '')


if __name__ == '__main__':
    sys.exit(main())
