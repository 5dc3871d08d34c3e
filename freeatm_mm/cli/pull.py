"""Copy a store from an address into a folder, verifying every file by its checksum.

    freeatm pull s3://my-bucket/stores/cats cats
    freeatm pull hf://datasets/me/cats cats --jobs 8

The same command continues a stopped copy. Training needs no copy: it reads addresses.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from freeatm_mm.cli._numbers import whole
from freeatm_mm.errors import tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('address', help='of the store: s3://, gs://, hf:// or https://')
    parser.add_argument('store', help='the folder to copy it into')
    parser.add_argument(
        '--jobs',
        type=whole(1, 64),
        default=4,
        metavar='N',
        help='shards copied at a time (default: 4)',
    )
    return parser.parse_args(argv)


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Copy it."""
    args = parse_args(argv)
    from freeatm_mm.store import pull_store

    print(f'{args.store}: {pull_store(args.address, args.store, jobs=args.jobs)}')
    return 0
