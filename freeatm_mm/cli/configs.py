"""List the configs that come with the package, or show where one lies.

    freeatm configs                              all of them
    freeatm configs mocov2_freeatm.py            where this one lies
    freeatm configs mocov2_freeatm.py --show     what is in it

Any of them can be named as freeatm_mm::NAME: to freeatm train and freeatm lavis-train, and in
_base_ of a config in Python. A yaml of LAVIS's inherits nothing: copy it to change it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from freeatm_mm.errors import tool
from freeatm_mm.packaged import PREFIX, config_names, find_config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', nargs='?', help='one of them, as the list names it')
    parser.add_argument('--show', action='store_true', help='print its text')
    args = parser.parse_args(argv)
    if args.show and not args.name:
        parser.error('--show needs a name')
    return args


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """List, locate or print."""
    args = parse_args(argv)
    if not args.name:
        print('\n'.join(config_names()))
        return 0
    path = find_config(PREFIX + args.name.removeprefix(PREFIX))
    print(path.read_text(encoding='utf-8') if args.show else path)
    return 0
