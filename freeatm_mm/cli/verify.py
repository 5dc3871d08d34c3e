"""Check a store: name every file and sample that is missing, cut, changed, doubled or foreign.

    freeatm verify STORE                      exit code 0: sound, 1: problems
    freeatm verify STORE --repair
    freeatm verify STORE --repair --pipeline PIPELINE --prompts PROMPTS.jsonl
    freeatm verify STORE --repair --pipeline PIPELINE --images SOURCE     of freeatm add-masks

With --repair, indexes and records are made again from whole shards; with the pipeline and the
prompts of the run, lost samples are generated again, with the settings that the store recorded;
with the images that masks were added to, their masks are.
What is good is kept, files that don't belong to the store are left alone, and each shard is
replaced at once, when the new one is complete. With --prompts alone, the keys of all samples are
checked.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Sequence
from typing import Any

from freeatm_mm.addresses import is_address
from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._generation import add_loading_options
from freeatm_mm.cli._numbers import whole
from freeatm_mm.errors import FOUND, InputError, counted, tool
from freeatm_mm.store import repair_store, verify_store


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('store', help="the store's folder or address")
    add(
        '--no-decode',
        action='store_true',
        help='compare checksums only, and decode no image and no masks (several times as fast)',
    )
    add(
        '--limit',
        type=whole(0, 10**9),
        default=100,
        metavar='N',
        help='print at most N problems (100)',
    )
    add('--repair', action='store_true', help='repair what can be repaired')
    add('--pipeline', help='folder, file or hub id of the pipeline, to generate lost samples again')
    add(
        '--stage',
        action='append',
        default=[],
        metavar='PIPELINE',
        help='a further stage of a cascade, if it is a folder that has moved; in order, as the '
        'run had them',
    )
    add(
        '--lora',
        action='append',
        default=[],
        metavar='FILE[:WEIGHT]',
        help='the LoRAs of the run, if it had any, in the same order (those of the hub are known)',
    )
    add('--prompts', help='the prompt file of the run, or its address')
    add(
        '--images',
        metavar='SOURCE',
        help='where masks were added to images: the source of these, as the run had it',
    )
    add('--batch-size', type=whole(1, 4096), help='for stores that did not record it')
    add('--variant', help='variant of the weights, such as fp16, if the run had one')
    add_loading_options(parser)
    add('--device', help='cpu, cuda, cuda:1 (default: a GPU if there is one)')
    args = parser.parse_args(argv)
    refuse_idle(
        named_options(args, parser, argv),
        not args.pipeline,
        'without --pipeline',
        *('lora', 'batch_size', 'variant', 'model_config', 'offload', 'device'),
    )
    return args


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Check, and repair where asked to."""
    args = parse_args(argv)
    if args.stage and not args.pipeline:
        raise InputError('--stage goes with --pipeline')
    if args.pipeline and not args.repair:
        raise InputError('--pipeline goes with --repair, and with --prompts or --images')
    if args.images and not args.pipeline:
        raise InputError('--images goes with --pipeline and --repair')
    if args.repair and is_address(args.store):
        raise InputError('--repair needs a folder: freeatm pull the store, repair it, push it')
    source: Any = None
    if args.pipeline or args.prompts:
        from freeatm_mm.generation import StorePlan
        from freeatm_mm.generation.existing import job_of_store

        if args.pipeline:
            changes: dict[str, Any] = {'stages': tuple(args.stage)} if args.stage else {}
            if args.lora:
                changes['loras'] = tuple(args.lora)
            if args.batch_size:
                changes['batch_size'] = args.batch_size
            source = job_of_store(
                args.store,
                args.pipeline,
                args.prompts,
                images=args.images,
                device=args.device,
                variant=args.variant,
                model_config=args.model_config,
                offload=args.offload,
                **changes,
            ).source()
        else:
            source = StorePlan(args.store, args.prompts)
    if args.repair:
        print(repair_store(args.store, source if args.pipeline else None))
    kinds: collections.Counter[str] = collections.Counter()
    for problem in verify_store(args.store, not args.no_decode, source):
        kinds[problem.kind] += 1
        if kinds.total() <= args.limit:
            print(problem)
    if not kinds:
        print('sound')
        return 0
    if kinds.total() > args.limit:
        print(f'and {kinds.total() - args.limit} more')
    print(
        f'{counted(kinds.total(), "problem")}: '
        + ', '.join(f'{count} {kind}' for kind, count in kinds.most_common())
    )
    return FOUND
