"""Count how often looks decide although there is no difference, by drawn seeds and objects.

    python tools/results/looks.py

For looks of `docs/results/decision-rules.md`, by the number of seeds and by how much seeds differ:
the p below which a look decides, and the share of the draws in which it does. Differences of
objects that are right (1) or wrong (0) spread by 0.5 or so within a seed; those of seeds, by 0.005
to 0.02 in the rows of our claims. Then, how often the interval of `length_shift` covers the shift:
finished schedules of 6 to 96 epochs that gain 2 or 3 points by a doubling. Takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import whole
from freeatm_mm.errors import tool
from freeatm_mm.results import crossed_difference
from freeatm_mm.results.claims import CLAIMS
from freeatm_mm.results.outcomes import length_shift
from freeatm_mm.results.rules import THREE_LOOKS, TWO_LOOKS

#: Seeds and bounds of the looks, by all the seeds that a rule has.
LOOKS = {6: tuple(zip((3, 6), TWO_LOOKS)), 12: tuple(zip((4, 8, 12), THREE_LOOKS))}

#: Lengths of the schedules.
EPOCHS = CLAIMS['acceleration-simclr'].measure.epochs


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--draws',
        type=whole(1, 10**7),
        default=20_000,
        help='for each line, of shifts a twentieth (%(default)s)',
    )
    return parser.parse_args(argv)


def share(seeds: int, bound: float, spread: float, draws: int, objects: int = 200) -> float:
    """How many of the draws a look decides.

    Args:
        seeds: How many seeds it has.
        bound: The p below which it decides.
        spread: Standard deviation of the seeds' means if they had 8,000 objects.
        draws: How many.
        objects: How many are drawn, whose spreads are such that they count as 8,000 do.
    """
    rng, scale, decided = np.random.default_rng(0), (objects / 8000) ** 0.5, 0
    for _ in range(draws):
        drawn = (
            spread * rng.standard_normal((seeds, 1))
            + 0.3 * scale * rng.standard_normal((1, objects))
            + 0.5 * scale * rng.standard_normal((seeds, objects))
        )
        decided += crossed_difference(drawn).p < bound
    return decided / draws


def coverage(seeds: int, slope: float, spread: float, draws: int, objects: int = 300) -> float:
    """How often the interval of a shift covers it, one doubling.

    Args:
        seeds: How many seeds each draw has.
        slope: What a doubling of the length gains.
        spread: Standard deviation of what seeds have in common, and twice that of each pretraining.
        draws: How many.
        objects: How many are drawn.
    """
    rng, covered = np.random.default_rng(0), 0
    place = np.log2(EPOCHS) - np.log2(EPOCHS).mean()
    for _ in range(draws):
        chance = 0.5 + slope * (np.array([1.0, 0.0])[:, None] + place)[..., None]
        chance = chance + 0.15 * rng.standard_normal(objects)
        luck = spread * rng.standard_normal((seeds, 1, 1, 1))
        luck = luck + spread / 2 * rng.standard_normal((seeds, 2, len(EPOCHS), 1))
        right = rng.random((seeds, 2, len(EPOCHS), objects)) < chance + luck
        found = length_shift(right[:, 0], right[:, 1], EPOCHS)
        covered += found.low <= 1 <= found.high
    return covered / draws


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each look and spread."""
    args = parse_args(argv)
    print('| seeds | of | seeds spread by | decides at p below | decided |')
    print('| ---: | ---: | ---: | ---: | ---: |')
    for last, looks in LOOKS.items():
        for seeds, bound in looks:
            for spread in (0.0, 0.005, 0.02):
                found = share(seeds, bound, spread, args.draws)
                print(f'| {seeds} | {last} | {spread} | {bound:.5f} | {found:.5f} |', flush=True)
    print('\n| seeds | a doubling gains | seeds spread by | interval of a shift covers it |')
    print('| ---: | ---: | ---: | ---: |')
    for seeds in (3, 6):
        for slope in (0.02, 0.03):
            for spread in (0.005, 0.01, 0.02):
                found = coverage(seeds, slope, spread, max(1, args.draws // 20))
                print(f'| {seeds} | {slope} | {spread} | {found:.3f} |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
