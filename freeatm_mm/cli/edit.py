"""Merge, split or filter stores; images and masks are copied byte for byte, never decoded.

    freeatm edit merge OUT STORE STORE ... [--prefixes a b ...]
    freeatm edit split STORE OUT/train=0.9 OUT/val=0.1 [--seed 1]
    freeatm edit filter STORE OUT --where nouns.category==dog --where 'nouns.#>=2'

A condition compares a value of a sample's JSON (caption, nouns.text, nouns.category, nouns.hi,
nouns.#, image.width, meta.seed, ...) by == != < <= > >= with a number or a word. Nouns are a list:
one that fits is enough, unless it says all:nouns... or none:nouns... What isn't there is null:
meta.x!=true keeps samples without x, meta.x==null keeps only them, and < and > hold for none of
them. Several conditions must all hold. Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from freeatm_mm.cli._numbers import SEED, whole
from freeatm_mm.errors import tool
from freeatm_mm.store.edit import filter_store, merge_stores, parse_condition, split_store


def parse_share(text: str) -> tuple[str, float]:
    """'folder=0.9' as (folder, share)."""
    folder, _, share = text.rpartition('=')
    try:
        if not folder:
            raise ValueError
        return folder, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not FOLDER=SHARE, like train=0.9') from None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True, help='each has its own --help')
    merge = commands.add_parser('merge', help='put several stores into one')
    merge.add_argument('out', help="the new store's folder")
    merge.add_argument('stores', nargs='+', help='the stores')
    merge.add_argument(
        '--prefixes',
        nargs='+',
        metavar='WORD',
        help='put before the keys of each store, if they have keys in common',
    )
    split = commands.add_parser('split', help='share a store out among several')
    split.add_argument('store', help='the store')
    split.add_argument(
        'parts',
        nargs='+',
        type=parse_share,
        metavar='FOLDER=SHARE',
        help='folder of a part and its share; the shares add up to 1',
    )
    split.add_argument('--seed', type=SEED, default=0, help='another seed splits otherwise (0)')
    choose = commands.add_parser('filter', help='keep the samples that fulfil conditions')
    choose.add_argument('store', help='the store')
    choose.add_argument('out', help="the new store's folder")
    choose.add_argument(
        '--where',
        action='append',
        required=True,
        metavar='CONDITION',
        help="such as 'nouns.category==dog'; may be given several times",
    )
    for command in (merge, split, choose):
        command.add_argument(
            '--samples-per-shard',
            type=whole(1, 10**6),
            metavar='N',
            help='of the new store (default: as before)',
        )
    return parser.parse_args(argv)


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Merge, split or filter."""
    args = parse_args(argv)
    each = args.samples_per_shard
    if args.command == 'merge':
        count = merge_stores(args.stores, args.out, prefixes=args.prefixes, samples_per_shard=each)
        print(f'{args.out}: {count} samples of {len(args.stores)} stores')
    elif args.command == 'split':
        for folder, count in split_store(
            args.store, dict(args.parts), seed=args.seed, samples_per_shard=each
        ).items():
            print(f'{folder}: {count} samples')
    else:
        conditions = [parse_condition(text) for text in args.where]
        count = filter_store(args.store, args.out, conditions, samples_per_shard=each)
        print(f'{args.out}: {count} samples')
    return 0
