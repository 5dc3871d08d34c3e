"""Copy a store to an address, shard by shard, and prove what arrived by checksums.

    freeatm push cats s3://my-bucket/stores/cats

The same command goes on where a stopped one was. store.json goes last: a copy that was stopped is
no store yet. While a store is still being generated, the shards that are whole are copied (exit
code 1 says that there will be more); start the command again later.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from freeatm_mm.cli._numbers import whole
from freeatm_mm.errors import FOUND, tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('store', help="the store's folder")
    parser.add_argument('address', help='where to: s3://, gs:// or hf://')
    parser.add_argument(
        '--jobs',
        type=whole(1, 64),
        default=4,
        metavar='N',
        help='shards copied at a time (default: 4)',
    )
    parser.add_argument(
        '--replace',
        action='store_true',
        help='take the place of another store at the address',
    )
    return parser.parse_args(argv)


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Copy it."""
    args = parse_args(argv)
    from freeatm_mm.store import push_store

    report = push_store(args.store, args.address, jobs=args.jobs, replace=args.replace)
    print(f'{args.address}: {report}')
    return 0 if report.complete else FOUND
