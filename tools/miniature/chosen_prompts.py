"""Write the prompts of the samples that seeds take of a pool, to generate only these.

    python tools/miniature/chosen_prompts.py POOL WORLD/prompts.jsonl OUT --images 2304 --seeds 4

A sample's image depends on its prompt, its id and the settings alone, so a store generated from
these prompts has the pool's samples with other settings: another guidance, masks of other blocks.
`./run miniature --same-ids` pairs them by id.

The pool need not exist: with its prompts as POOL, what is generated from OUT with the pool's
settings takes its place in `./run miniature --pool STORE --pool-prompts WORLD/prompts.jsonl`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import whole
from freeatm_mm.errors import InputError, counted, tool
from freeatm_mm.miniature.job import chosen_ids
from freeatm_mm.prompts import read_prompts, write_prompts


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'pool', help='the store of --pool, or the prompts of the whole pool (a .jsonl file)'
    )
    parser.add_argument('prompts', help='its prompts, or others with the same ids')
    parser.add_argument('out', type=Path, help='the JSON Lines file to write')
    parser.add_argument(
        '--images', type=whole(1, 10**7), required=True, help='how many samples a seed takes'
    )
    parser.add_argument(
        '--seeds', type=whole(1, 1000), required=True, help='how many seeds, from 0'
    )
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Choose them, and write them in the order of the file."""
    args = parse_args(argv)
    ids = set(chosen_ids(args.pool, args.images, args.seeds))
    records = [record for record in read_prompts(args.prompts) if record.id in ids]
    if len(records) < len(ids):
        raise InputError(
            f'{args.prompts} lacks {len(ids) - len(records):,} of the {len(ids):,} ids that '
            f'{counted(args.seeds, "seed")} of {args.images:,} samples take of {args.pool}'
        )
    write_prompts(args.out, records)
    print(f'{counted(len(records), "prompt")} in {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
