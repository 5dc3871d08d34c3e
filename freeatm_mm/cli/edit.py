"""Merge, split or filter stores, or give their images other masks; images are never encoded anew.

    freeatm edit merge OUT STORE STORE ... [--prefixes a b ...]
    freeatm edit split STORE OUT/train=0.9 OUT/val=0.1 [--seed 1]
    freeatm edit filter STORE OUT --where nouns.category==dog --where 'nouns.#>=2'
    freeatm edit regions STORE OUT --masks-from felzenszwalb
    freeatm edit regions STORE OUT --masks-from kmeans [--config CONFIG --checkpoint PTH]

A condition compares a value of a sample's JSON (caption, nouns.text, nouns.category, nouns.hi,
nouns.#, image.width, meta.seed, ...) by == != < <= > >= with a number or a word. Nouns are a list:
one that fits is enough, unless it says all:nouns... or none:nouns... What isn't there is null:
meta.x!=true keeps samples without x, meta.x==null keeps only them, and < and > hold for none of
them. Several conditions must all hold.

regions takes masks from the images alone, to compare with: regions of even colour (felzenszwalb),
or k-means of pixels' colours and places, or of a network's features (--config). They have no
nouns: they are called 'region 1', 'region 2' ... The same command continues a stopped run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import SEED, number, whole
from freeatm_mm.cli._paths import path_to_read
from freeatm_mm.errors import InputError, counted, tool
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


def add_regions(commands: Any) -> None:
    """Add the subcommand that gives images other masks."""
    regions = commands.add_parser('regions', help='copy a store with regions in place of its masks')
    add = regions.add_argument
    add('store', help='the store')
    add('out', help="the new store's folder")
    add('--masks-from', required=True, choices=('felzenszwalb', 'kmeans'), help='as above')
    add(
        '--clusters',
        type=whole(2, 1000),
        default=5,
        metavar='N',
        help='of kmeans, at most (%(default)s)',
    )
    add('--config', help="kmeans of this pretraining config's network, not of colours and places")
    add('--checkpoint', help='its checkpoint (default: random weights)')
    add('--device', default='cpu', help='for the network: cpu, cuda ... (%(default)s)')
    add('--seed', type=SEED, default=0, help='of kmeans, and of random weights (%(default)s)')
    add(
        '--min-area',
        type=number(0, 1),
        default=0.02,
        metavar='SHARE',
        help='smallest region, as a share of the image; also the scale of felzenszwalb '
        '(%(default)s)',
    )
    add(
        '--most',
        type=whole(1, 10_000),
        default=16,
        metavar='N',
        help='regions of an image, the largest (%(default)s)',
    )
    add(
        '--mask-size',
        type=whole(1, 4096),
        default=64,
        metavar='N',
        help='longer side of the masks, in cells (%(default)s)',
    )
    add(
        '--samples',
        type=path_to_read,
        metavar='JSON',
        help='a file with a list of the numbers of the samples to take (default: all)',
    )


def make_regions_of(args: argparse.Namespace) -> None:
    """Copy a store with regions in the place of its masks."""
    from freeatm_mm.files import file_sha256, read_json
    from freeatm_mm.store.regions import (
        Segmenter,
        colour_clusters,
        felzenszwalb_regions,
        make_regions,
    )

    if args.config and args.masks_from != 'kmeans' or args.checkpoint and not args.config:
        raise InputError('--config goes with --masks-from kmeans, and --checkpoint with --config')
    samples = read_json(args.samples) if args.samples else None
    if samples is not None and not (
        isinstance(samples, list) and all(type(number) is int for number in samples)
    ):
        raise InputError(f'{args.samples} must be a list of the numbers of samples')
    made_by: dict[str, Any] = {'masks_from': args.masks_from}
    segment: Segmenter
    if args.masks_from == 'felzenszwalb':
        segment = felzenszwalb_regions(args.min_area)
    else:
        made_by |= {'clusters': args.clusters, 'seed': args.seed}
        if args.config:
            from freeatm_mm.compat import skip_multimodal_models

            skip_multimodal_models()
            from freeatm_mm.probing.features import load_model
            from freeatm_mm.probing.regions import feature_clusters

            model = load_model(args.config, args.checkpoint, args.seed, device=args.device)
            segment = feature_clusters(model, args.clusters, args.seed)
            checkpoint = file_sha256(args.checkpoint) if args.checkpoint else None
            made_by |= {
                'features_of': type(model.backbone).__name__,
                'checkpoint_sha256': checkpoint,
            }
        else:
            segment = colour_clusters(args.clusters, args.seed)
    report = make_regions(
        args.store,
        args.out,
        segment,
        made_by,
        samples=samples,
        mask_size=args.mask_size,
        min_area=args.min_area,
        most=args.most,
        samples_per_shard=args.samples_per_shard,
    )
    print(f'{args.out}: {report}')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True, help='each has its own --help')
    merge = commands.add_parser('merge', help='put several stores into one')
    merge.add_argument('out', help="the new store's folder")
    merge.add_argument('stores', nargs='+', help='the stores: folders or addresses')
    merge.add_argument(
        '--prefixes',
        nargs='+',
        metavar='WORD',
        help='put before the keys of each store, if they have keys in common',
    )
    split = commands.add_parser('split', help='share a store out among several')
    split.add_argument('store', help='the store: a folder or an address')
    split.add_argument(
        'parts',
        nargs='+',
        type=parse_share,
        metavar='FOLDER=SHARE',
        help='folder of a part and its share; the shares add up to 1',
    )
    split.add_argument('--seed', type=SEED, default=0, help='another seed splits otherwise (0)')
    choose = commands.add_parser('filter', help='keep the samples that fulfil conditions')
    choose.add_argument('store', help='the store: a folder or an address')
    choose.add_argument('out', help="the new store's folder")
    choose.add_argument(
        '--where',
        action='append',
        required=True,
        metavar='CONDITION',
        help="such as 'nouns.category==dog'; may be given several times",
    )
    add_regions(commands)
    for command in (merge, split, choose, commands.choices['regions']):
        command.add_argument(
            '--samples-per-shard',
            type=whole(1, 10**6),
            metavar='N',
            help='of the new store (default: as before)',
        )
    args = parser.parse_args(argv)
    if args.command == 'regions':
        named = named_options(args, parser, argv, of=commands.choices['regions'])
        even = args.masks_from == 'felzenszwalb'
        refuse_idle(named, even, 'with --masks-from felzenszwalb', 'clusters', 'seed', 'device')
        refuse_idle(named, not args.config, 'without --config', 'device')
    return args


@tool(resumes=True, told_to_end=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Merge, split, filter, or make regions."""
    args = parse_args(argv)
    each = args.samples_per_shard
    if args.command == 'merge':
        count = merge_stores(args.stores, args.out, prefixes=args.prefixes, samples_per_shard=each)
        print(f'{args.out}: {counted(count, "sample")} of {counted(len(args.stores), "store")}')
    elif args.command == 'split':
        for folder, count in split_store(
            args.store, dict(args.parts), seed=args.seed, samples_per_shard=each
        ).items():
            print(f'{folder}: {counted(count, "sample")}')
    elif args.command == 'regions':
        make_regions_of(args)
    else:
        conditions = [parse_condition(text) for text in args.where]
        count = filter_store(args.store, args.out, conditions, samples_per_shard=each)
        print(f'{args.out}: {counted(count, "sample")}')
    return 0
