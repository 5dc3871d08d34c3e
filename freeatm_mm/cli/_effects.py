"""Options that have no effect beside the others: refused in one sentence, not passed over."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence

from freeatm_mm.errors import InputError

__all__ = ['named_options', 'refuse_idle']


def named_options(
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    *,
    of: argparse.ArgumentParser | None = None,
) -> set[str]:
    """Return the options that a command line names, whatever their defaults are.

    Args:
        args: What the command line says. The parser can't be used for another one afterwards.
        parser: Of the command.
        argv: The command line.
        of: The parser of the subcommand, where there are several.
    """
    (of or parser).set_defaults(**dict.fromkeys(vars(args)))
    again = vars(parser.parse_args(argv))
    return {name for name, value in again.items() if value is not None}


def refuse_idle(named: Collection[str], idle: bool, why: str, *names: str) -> None:
    """Refuse options that are named and have no effect.

    Args:
        named: From `named_options`.
        idle: Whether these have none.
        why: Ends the sentence, such as 'without --slurm'.
        *names: The options, as `argparse` keeps them.

    Raises:
        InputError: If one of them is named and idle.
    """
    for name in names:
        if idle and name in named:
            raise InputError(f'--{name.replace("_", "-")} has no effect {why}: leave it out')
