"""What the tools share that score masks on the miniature's scenes, and write a page of it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from freeatm_mm.cli._numbers import whole
from freeatm_mm.cli._paths import path_here
from freeatm_mm.files import atomic_write

__all__ = ['add_folder_options', 'add_scoring_options', 'portable_command', 'write_report']


def add_scoring_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Add which scenes are scored, and where the two files go.

    Args:
        parser: Of the tool.
        name: Default name of the files.
    """
    parser.add_argument(
        '--scenes', type=whole(1, 10**7), default=200, help='to score (%(default)s)'
    )
    parser.add_argument(
        '--split', default='test', choices=('val', 'test'), help='of the world (%(default)s)'
    )
    parser.add_argument('--name', default=name, help='of the two files (%(default)s)')
    add_folder_options(parser)


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Add where the world's photos lie, and where the results go."""
    parser.add_argument(
        '--out',
        type=path_here,
        default=Path('work_dirs/results'),
        help='folder of the results (%(default)s)',
    )
    parser.add_argument('--sources', help='folder with the unpacked Debian packages')
    parser.add_argument('--cache', default='.cache', help='where to unpack them (%(default)s)')


def portable_command(tool: str, args: argparse.Namespace, argv: Sequence[str] | None) -> str:
    """Write the command down; where the sources lie says nothing to others."""
    given = list(argv or sys.argv[1:])
    own = (args.sources, f'--sources={args.sources}')
    portable = [
        part.removesuffix(args.sources) + 'SOURCES' if args.sources and part in own else part
        for part in given
    ]
    return shlex.join(['python', tool, *portable])


def write_report(out: Path, name: str, results: Mapping[str, Any], report: str) -> None:
    """Write `NAME.json` and `NAME.md` into a folder, and print the latter."""
    with atomic_write(out / f'{name}.json') as file:
        file.write(json.dumps(results, indent=1).encode())
    with atomic_write(out / f'{name}.md') as file:
        file.write(report.encode())
    print(report)
