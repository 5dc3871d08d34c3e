r"""Evaluate a checkpoint by image-text retrieval: TR@1/5/10 and IR@1/5/10, re-ranked as in LAVIS.

    freeatm lavis-evaluate configs/lavis/retrieval_coco_zeroshot.yaml \
        --options model.pretrained=PRETRAINING_CHECKPOINT
    freeatm lavis-evaluate configs/lavis/retrieval_coco_zeroshot.yaml \
        --options model.load_finetuned=True model.finetuned=FINETUNING_CHECKPOINT

With --out the figures are kept in a result file. What the row says of the pretraining (--regime,
--masks, --generator, --seed, --epochs) is read from the checkpoint; a flag that contradicts it is
refused, and one is needed only where the checkpoint, another program's for example, doesn't say.
Rows of several commands with different --what gather in one. freeatm tables puts those of
zeroshot and finetuned into Table 3.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from freeatm_mm.cli import command_line
from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import SEED, number
from freeatm_mm.cli._paths import path_here
from freeatm_mm.errors import tool
from freeatm_mm.results import (
    add_row,
    open_results,
    write_results,
)


def masks(text: str) -> bool | str:
    """What --masks says."""
    return {'true': True, 'false': False}.get(text.lower(), text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='yaml of a retrieval task')
    parser.add_argument(
        '--options', nargs='+', default=[], metavar='KEY=VALUE', help='change any entry of the yaml'
    )
    parser.add_argument('--out', type=path_here, help='result file to add the figures to')
    parser.add_argument(
        '--what',
        default='zeroshot',
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
    refuse_idle(
        named_options(args, parser, argv),
        not args.out,
        'without --out',
        *('what', 'regime', 'masks', 'generator', 'seed', 'epochs'),
    )
    return args


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate it, print the figures, and keep them in a result file."""
    args = parse_args(argv)
    from freeatm_mm.lavis_ext.launch import evaluate, evaluated_checkpoint, load_config
    from freeatm_mm.origins import Origin, blip_origin, blip_scale, settle_label

    if args.out:
        model = load_config(args.config, args.options).model_cfg
        checkpoint = evaluated_checkpoint(model)
        needed = ('regime', 'masks', 'generator', 'seed', 'epochs')
        said = {fact: getattr(args, fact) for fact in needed}
        origin = Origin('blip', **(blip_origin(checkpoint) or {}))
        row = {
            **settle_label(origin, said, checkpoint, needed),
            'scale': blip_scale(model),
        }
        results = open_results(args.out, args.out.stem, command_line())
    figures = evaluate(args.config, args.options)
    if figures is None:  # not the first of several processes
        return 0
    for split, values in figures.items():
        print(f'{split}: ' + '  '.join(f'{name} {value:.2f}' for name, value in values.items()))
    if args.out:
        earlier = [
            old['metrics']
            for old in results['rows']
            if all(old.get(key) == value for key, value in row.items())
        ]
        metrics = dict(earlier[0]) if earlier else {}
        for values in figures.values():
            metrics.update({f'{args.what}_{name}': value / 100 for name, value in values.items()})
        add_row(results, {**row, 'metrics': metrics})
        write_results(args.out, results)
    return 0
