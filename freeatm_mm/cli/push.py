"""Copy a store to an address, or a store or checkpoint to the Hub with a card.

    freeatm push cats s3://my-bucket/stores/cats
    freeatm push cats hf://datasets/me/cats --license cc-by-4.0
    freeatm push epoch_200.pth hf://me/mocov2-cats --license apache-2.0 --figure linear=61.2

A store is copied shard by shard, and what arrived is verified by checksums. The same command
continues a stopped copy. store.json goes last: until then the copy is no store. While a store is
still being generated, its complete shards are copied (exit code 1 says that there will be more);
start the command again later.

On the Hub a store gets a card with its counts, nouns, settings and a picture of samples with their
masks, and can be read by datasets.load_dataset; of a checkpoint, the backbone is written for
transformers, timm and mmpretrain. --draft FOLDER writes that here, to look at, and copies nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import whole
from freeatm_mm.cli._paths import path_here, path_to_read
from freeatm_mm.errors import FOUND, InputError, tool


def parse_figure(text: str) -> tuple[str, float]:
    """'linear=61.2' as (name, value)."""
    name, _, value = text.partition('=')
    try:
        if not name:
            raise ValueError
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=NUMBER, like linear=61.2') from None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('source', help="the store's folder, or a checkpoint")
    add('address', help='where to: s3://, gs://, hf://datasets/USER/NAME; hf://USER/NAME')
    add(
        '--jobs',
        type=whole(1, 64),
        default=4,
        metavar='N',
        help='shards copied at a time (default: 4)',
    )
    add('--replace', action='store_true', help='replace another store at the address')
    hub = parser.add_argument_group('for the Hub (hf://)')
    add = hub.add_argument
    add('--license', metavar='ID', help="required: the Hub's name of it, such as cc-by-4.0")
    add('--license-name', metavar='NAME', help='of the licence, where ID is other')
    add('--license-link', metavar='LINK', help="to the licence's text, where ID is other")
    add('--title', help='of the card (default: the last part of the address)')
    add(
        '--text',
        type=path_to_read,
        metavar='FILE',
        help='a file with what the card says first, in Markdown',
    )
    add(
        '--previews',
        type=whole(1, 64),
        metavar='N',
        help='samples in the picture of a store (default: 8)',
    )
    add(
        '--figure',
        action='append',
        type=parse_figure,
        metavar='NAME=NUMBER',
        help='what was measured with a checkpoint; may be given several times',
    )
    add(
        '--data',
        action='append',
        metavar='USER/NAME',
        help='a data set on the Hub that a checkpoint was trained on; may be given several times',
    )
    add(
        '--heads',
        type=whole(1, 1024),
        metavar='N',
        help="a ViT's attention heads, for transformers (default: as the checkpoint says)",
    )
    add('--private', action='store_true', help='create the repository as private')
    add(
        '--draft',
        type=path_here,
        metavar='FOLDER',
        help='write card and pictures here, and copy nothing',
    )
    args = parser.parse_args(argv)
    named = named_options(args, parser, argv)
    refuse_idle(named, bool(args.draft), 'with --draft', 'jobs', 'private', 'replace')
    if args.address.lower().startswith('hf://'):
        is_store = Path(args.source).is_dir()
        refuse_idle(named, not is_store, 'on a checkpoint, which is no shards', 'jobs')
    return args


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Copy it."""
    args = parse_args(argv)
    if args.address.lower().startswith('hf://'):
        return _to_hub(args)
    names = (
        'license license_name license_link title text previews figure data heads private draft'
    ).split()
    given = [name for name in names if getattr(args, name)]
    if given:
        raise InputError(f'--{given[0].replace("_", "-")} goes with an address of the Hub, hf://')
    from freeatm_mm.store import push_store

    report = push_store(args.source, args.address, jobs=args.jobs, replace=args.replace)
    print(f'{args.address}: {report}')
    return 0 if report.complete else FOUND


def _to_hub(args: argparse.Namespace) -> int:
    from freeatm_mm import hub
    from freeatm_mm.files import read_text

    if not args.license:
        raise InputError(
            'what goes to the Hub needs a licence: --license cc-by-4.0, for example, or --license '
            'other with --license-name and --license-link'
        )
    terms = hub.Terms(args.license, args.license_name, args.license_link)
    options: dict[str, Any] = {'title': args.title}
    options['text'] = read_text(args.text).strip() if args.text else None
    is_store = Path(args.source).is_dir()
    wrong = ('figure', 'data', 'heads') if is_store else ('previews', 'replace')
    for name in wrong:
        if getattr(args, name):
            raise InputError(f'--{name} goes with a {"checkpoint" if is_store else "store"}')
    if is_store:
        options |= {'previews': args.previews} if args.previews else {}
    else:
        options |= {
            'figures': dict(args.figure or ()),
            'data': args.data or (),
            'heads': args.heads,
        }
    draft: Callable[..., list[Path]] = hub.draft_store if is_store else hub.draft_checkpoint
    push: Callable[..., Any] = hub.push_store_to_hub if is_store else hub.push_checkpoint_to_hub
    if args.draft:
        for file in draft(args.source, args.address, args.draft, terms, **options):
            print(file)
        return 0
    more = {'replace': args.replace, 'jobs': args.jobs} if is_store else {}
    report = push(args.source, args.address, terms, private=args.private, **more, **options)
    print(f'{args.address}: {report}')
    return 0 if report.complete else FOUND
