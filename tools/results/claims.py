"""Say what the rows of a claim decide, by the rule that was written down before them.

    python tools/results/claims.py docs/results/claims/contrastive-mocov2.json

Writes NAME.md and NAME.svg beside NAME.json, whose name is that of a claim.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.errors import InputError, tool
from freeatm_mm.files import atomic_write
from freeatm_mm.results import read_results
from freeatm_mm.results.claims import CLAIMS, claim_page, decide_claim, verdict_line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('results', nargs='+', metavar='RESULTS.json', help='result files')
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from freeatm_mm.results.plots import claim_plot, to_svg

    for path in map(Path, args.results):
        if path.stem not in CLAIMS:
            raise InputError(
                f'{path}: no claim of that name: it must be one of {", ".join(CLAIMS)}'
            )
        results, claim = read_results(path), CLAIMS[path.stem]
        with atomic_write(path.with_suffix('.md')) as file:
            file.write(claim_page(results, path.stem).encode())
        findings = decide_claim(results, claim)
        if any(each.difference and math.isfinite(each.difference.low) for each in findings):
            with atomic_write(path.with_suffix('.svg')) as file:
                file.write(to_svg(claim_plot(findings)).encode())
        print(f'{path.stem}: {verdict_line(findings[: len(claim.comparisons)], claim)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
