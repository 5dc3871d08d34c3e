"""What the tools share that add a BLIP's figures to a result file."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from freeatm_mm.cli import command_line
from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import SEED, number
from freeatm_mm.cli._paths import path_here
from freeatm_mm.results import merge_row, open_results, update_results

__all__ = ['BlipRow', 'parse_row_args', 'told_options']

_FACTS = ('regime', 'masks', 'generator', 'seed', 'epochs')
#: Entries of a yaml that change no figure of a checkpoint: which it is, as the row's label says,
#: where files lie, and how it is computed.
_NO_FIGURE = {
    *('model.pretrained', 'model.load_pretrained', 'model.finetuned', 'model.load_finetuned'),
    *('model.image_weights', 'model.text_weights', 'model.tokenizer'),
    *('model.vit_grad_ckpt', 'model.vit_ckpt_layer'),
    *('run.device', 'run.dist_backend', 'run.dist_url', 'run.evaluate', 'run.keep_checkpoints'),
    *('run.log_freq', 'run.num_workers', 'run.output_dir', 'run.seed'),
    *('run.batch_size_eval', 'run.batch_size_train'),
}
_DATA = re.compile(r'datasets\.[^.]+\.build_info\.(?P<entry>[^.]+)')


def masks(text: str) -> bool | str:
    """What --masks says."""
    return {'true': True, 'false': False}.get(text.lower(), text)


def parse_row_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, what: str, examples: str
) -> argparse.Namespace:
    """Parse a command line, to which the yaml's changes and the options of a row are added.

    Args:
        parser: Of the tool, with its own options.
        argv: The command line.
        what: Default of --what, the first part of the metrics' names.
        examples: Of --what.

    Returns:
        The options; those of a row are refused where none is kept.
    """
    parser.add_argument(
        '--options', nargs='+', default=[], metavar='KEY=VALUE', help='change any entry of the yaml'
    )
    parser.add_argument('--out', type=path_here, help='result file to add the figures to')
    parser.add_argument(
        '--what',
        default=what,
        help=f"first part of the metrics' names in it: {examples} (%(default)s)",
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
    idle = named_options(args, parser, argv)
    refuse_idle(idle, not args.out, 'without --out', 'what', *_FACTS)
    return args


def told_options(config: str, options: Sequence[str]) -> list[str]:
    """What of ``--options`` may change a checkpoint's figures: ``KEY=VALUE``, in order of the keys.

    Neither the checkpoint itself nor where files lie does; annotations of another name do.

    Args:
        config: The yaml that they change.
        options: From the command line; of two with one key the last holds.
    """
    return list(_told(config, dict(option.split('=', 1) for option in options)))


def _told(config: str, options: Mapping[str, str]) -> Iterator[str]:
    for key, value in sorted(options.items()):
        data = _DATA.match(key)
        if data and data['entry'] == 'annotations':
            from omegaconf import OmegaConf

            from freeatm_mm.lavis_ext.launch import read_yaml

            yaml = OmegaConf.create(
                {'given': None, 'usual': OmegaConf.select(read_yaml(config), key)}
            )
            yaml.merge_with_dotlist([f'given={value}'])
            files: Any = OmegaConf.to_container(yaml)
            given, usual = map(_file_names, (files['given'], files['usual']))
            if given != usual:
                yield f'{key}={given}'
        elif not data and key not in _NO_FIGURE:
            yield f'{key}={value}'


def _file_names(files: Any) -> str:
    """The names of files, one or several, whatever folders they are in."""
    if isinstance(files, dict):
        return f'{{{", ".join(f"{name}: {_file_names(part)}" for name, part in files.items())}}}'
    if isinstance(files, list):
        return f'[{", ".join(map(_file_names, files))}]'
    return 'null' if files is None else os.path.basename(str(files))


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
        self.options = told_options(args.config, args.options)
        self.out: Path = args.out
        # A file that can't be used is told before anything is measured.
        open_results(self.out, self.out.stem, command_line())

    def keep(self, metrics: Mapping[str, float], options: Sequence[str] = ()) -> None:
        """Add figures to those that the row has already, and write the file.

        Args:
            metrics: The figures.
            options: What of the command line they were measured with, beside ``--options``.
        """
        told = [*options, *self.options]
        row = {**self.row, 'metrics': dict(metrics)}
        if told:
            row['options'] = {name: told for name in metrics}

        def change(results: dict[str, Any]) -> None:
            merge_row(results, row)

        update_results(self.out, change, self.out.stem, command_line())
