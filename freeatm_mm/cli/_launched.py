"""Options of the commands that a launcher may start in several processes: training and testing."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from freeatm_mm.configs import ChangesAction


def add_launch_options(parser: argparse.ArgumentParser, example: str = '') -> None:
    """Add the options that training and testing share: who starts the processes, and changes.

    Args:
        parser: Of the command.
        example: Follows what is said of the changes.
    """
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ChangesAction,
        metavar='KEY=VALUE',
        help=f'change any entry of the config{example}',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def parse_launched(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse the command line of a process that a launcher may have started with its number."""
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args
