"""What the tools share that add a BLIP's figures to a result file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from freeatm_mm.cli import command_line
from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import SEED, number
from freeatm_mm.cli._paths import path_here
from freeatm_mm.results import add_row, open_results, update_results

__all__ = ['BlipRow', 'parse_row_args']

_FACTS = ('regime', 'masks', 'generator', 'seed', 'epochs')


def masks(text: str) -> bool | str:
    """What --masks says."""
    return {'true': True, 'false': False}.get(text.lower(), text)


def parse_row_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, what: str = ''
) -> argparse.Namespace:
    """Parse a command line, to which the yaml's changes and the options of a row are added.

    Args:
        parser: Of the tool, with its own options.
        argv: The command line.
        what: Default of --what, the first part of the metrics' names; '' for no such option.

    Returns:
        The options; those of a row are refused where none is kept.
    """
    parser.add_argument(
        '--options', nargs='+', default=[], metavar='KEY=VALUE', help='change any entry of the yaml'
    )
    parser.add_argument('--out', type=path_here, help='result file to add the figures to')
    if what:
        parser.add_argument(
            '--what',
            default=what,
            help="first part of the metrics' names in it: zeroshot, finetuned ... (%(default)s)",
        )
    parser.add_argument(
        '--regime',
        choices=('real', 'synthetic', 'mixed'),
        help='what was pretrained on (what the checkpoint says)',
    )
    parser.add_argument(
        '--masks',
        type=masks,
        metavar='true|false|NAME',
        help='pretrained with masks, without, or the name of a variant such as PTP '
        '(what the checkpoint says)',
    )
    parser.add_argument(
        '--generator',
        help='of the generated images: sd15, deepif, or another name (what the checkpoint says)',
    )
    parser.add_argument('--seed', type=SEED, help='of the pretraining (what the checkpoint says)')
    parser.add_argument(
        '--epochs', type=number(0, 1e6), help='of the pretraining (what the checkpoint says)'
    )
    args = parser.parse_args(argv)
    names = [*(['what'] if what else []), *_FACTS]
    refuse_idle(named_options(args, parser, argv), not args.out, 'without --out', *names)
    return args


class BlipRow:
    """The row of a checkpoint in a result file.

    Args:
        args: From `parse_row_args`; `out` is given.
        checkpoint: The checkpoint.
        model: `model` of the yaml.

    Raises:
        InputError: If the checkpoint contradicts an option, neither says what is needed, or the
            file is none of results.
    """

    def __init__(
        self, args: argparse.Namespace, checkpoint: str | Path, model: Mapping[str, Any]
    ) -> None:
        from freeatm_mm.origins import Origin, blip_origin, blip_scale, settle_label

        said = {fact: getattr(args, fact) for fact in _FACTS}
        origin = Origin('blip', **(blip_origin(checkpoint) or {}))
        self.row = {
            **settle_label(origin, said, checkpoint, _FACTS),
            'scale': blip_scale(model),
        }
        self.out: Path = args.out
        # A file that can't be used is told before anything is measured.
        open_results(self.out, self.out.stem, command_line())

    def keep(self, metrics: Mapping[str, float]) -> None:
        """Add figures to those that the row has already, and write the file."""

        def change(results: dict[str, Any]) -> None:
            earlier = [
                old['metrics']
                for old in results['rows']
                if all(old.get(key) == value for key, value in self.row.items())
            ]
            kept = {**(earlier[0] if earlier else {}), **metrics}
            add_row(results, {**self.row, 'metrics': kept})

        update_results(self.out, change, self.out.stem, command_line())
