"""Look at a store: search by noun, filter by trust, masks over images, distributions.

    freeatm view STORE                            a page on this machine, for stores of any size
    freeatm view STORE --out page.html            one file with 200 of its samples
    freeatm view STORE --out page.html --where nouns.category==dog --count 50

Keys: / search, arrows from card to card, Enter opens, M all masks on or off, 1 to 9 one noun's.
"""

from __future__ import annotations

import argparse
import random
import webbrowser
from collections.abc import Sequence
from itertools import islice
from threading import Thread

from freeatm_mm.cli._numbers import SEED, whole
from freeatm_mm.cli._paths import path_here
from freeatm_mm.errors import InputError, counted, tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('store', help='folder or address of the store')
    parser.add_argument(
        '--out', type=path_here, metavar='FILE', help='write a page of one file there'
    )
    parser.add_argument(
        '--count',
        type=whole(1, 100_000),
        metavar='N',
        help='samples on it (default: 200)',
    )
    parser.add_argument(
        '--where',
        action='append',
        default=[],
        metavar='CONDITION',
        help='only samples that meet it, as in freeatm edit filter; may be given several times',
    )
    parser.add_argument(
        '--seed', type=SEED, help='draw the samples at random (default: the first ones)'
    )
    parser.add_argument(
        '--port', type=whole(0, 65_535), help='of the server (default: one that is free)'
    )
    parser.add_argument('--no-browser', action='store_true', help='only print the address')
    args = parser.parse_args(argv)
    if not args.out and (args.where or args.seed is not None or args.count is not None):
        parser.error('--where, --seed and --count go with --out: the server has its own search')
    if args.out and (args.port is not None or args.no_browser):
        parser.error('--port and --no-browser are of the server: leave --out out, or them')
    return args


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or serve until Ctrl-C."""
    args = parse_args(argv)
    from freeatm_mm.browse import make_server, write_page
    from freeatm_mm.store import Store
    from freeatm_mm.store.edit import parse_condition

    conditions = [parse_condition(text) for text in args.where]
    store = Store(args.store)
    if args.out:
        numbers = list(range(len(store)))
        if args.seed is not None:
            random.Random(args.seed).shuffle(numbers)
        fitting = (
            number
            for number in numbers
            if not conditions or all(holds(store.read(number).info) for holds in conditions)
        )
        chosen = list(islice(fitting, 200 if args.count is None else args.count))
        if not chosen:
            raise InputError(f'no sample of {args.store} fits {" and ".join(args.where)}')
        print(f'{args.out}: {counted(write_page(store, args.out, chosen), "sample")}')
        return 0
    try:
        server = make_server(store, args.port or 0)
    except OSError as error:
        raise InputError(f'port {args.port} is taken ({error.strerror}): choose another') from None
    address = f'http://127.0.0.1:{server.server_address[1]}/'
    print(f'{address} shows {args.store}; Ctrl-C ends it', flush=True)
    if not args.no_browser:  # a text browser keeps whoever opens it, and waits for the server
        Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0
