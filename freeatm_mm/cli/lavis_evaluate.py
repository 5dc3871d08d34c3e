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

from freeatm_mm.cli._blip_rows import BlipRow, parse_row_args
from freeatm_mm.errors import InputError, tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='yaml of a retrieval task')
    return parse_row_args(parser, argv, 'zeroshot', 'zeroshot, finetuned ...')


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate it, print the figures, and keep them in a result file."""
    args = parse_args(argv)
    from freeatm_mm.lavis_ext.launch import evaluate, evaluated_checkpoint, load_config

    row = None
    if args.out:
        cfg = load_config(args.config, args.options)
        model, splits = cfg.model_cfg, cfg.run_cfg.get('test_splits') or []
        if len(splits) > 1:
            raise InputError(
                f'--out keeps the figures of one split, and run.test_splits names '
                f'{", ".join(splits)}: evaluate one at a time, each with its own --what'
            )
        row = BlipRow(args, evaluated_checkpoint(model), model)
    figures = evaluate(args.config, args.options)
    if figures is None:  # not the first of several processes
        return 0
    for split, values in figures.items():
        print(f'{split}: ' + '  '.join(f'{name} {value:.2f}' for name, value in values.items()))
    if row:
        row.keep(
            {
                f'{args.what}_{name}': value / 100
                for values in figures.values()
                for name, value in values.items()
            }
        )
    return 0
