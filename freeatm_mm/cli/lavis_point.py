r"""Measure BLIP's pointing accuracy: how often nouns attend most to a patch of their object.

    freeatm lavis-point configs/lavis/blip_pretrain_freeatm.yaml STORE \
        --options model.tokenizer=BERT model.pretrained=PRETRAINING_CHECKPOINT

STORE holds images, captions and trustworthy masks, such as those imported from COCO's
annotations (freeatm import). A noun of a caption points at its object if the patch with most of its
attention (mean over its tokens and the heads) is at least half covered by the object. The accuracy
of each layer is printed, and for comparison that of the central patch and of a random one; in a
result file `pointing` is that of model.mask_layer, and the row says which STORE it was measured on.
Figures of several stores gather in one row under different --what.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from freeatm_mm.cli._blip_rows import BlipRow, parse_row_args
from freeatm_mm.cli._numbers import whole
from freeatm_mm.errors import InputError, counted, tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='yaml of the pretraining')
    parser.add_argument('store', help='folder of the store, or its address')
    parser.add_argument(
        '--limit',
        type=whole(1, 10**9),
        metavar='N',
        help='the first N samples of the store (all)',
    )
    parser.add_argument(
        '--batch-size', type=whole(1, 10**5), default=64, help='samples at a time (%(default)s)'
    )
    return parse_row_args(parser, argv, 'pointing', 'pointing, pointing_coco ...')


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Print the accuracy of each layer, and keep it in a result file."""
    args = parse_args(argv)
    from freeatm_mm.lavis_ext.launch import load_config, point_at_nouns

    cfg = load_config(args.config, args.options)
    checkpoint = cfg.model_cfg.get('pretrained')
    if not checkpoint:
        raise InputError('there is no checkpoint to look at: give --options model.pretrained=FILE')
    row = BlipRow(args, checkpoint, cfg.model_cfg) if args.out else None
    found = point_at_nouns(cfg, args.store, args.batch_size, args.limit)
    count = len(found.centre)
    if not count:
        raise InputError(
            f'{args.store} has no noun to look at: of {counted(found.nouns, "noun")} with a mask, '
            f'{found.unwritten} are not in their captions and {found.small} cover no patch by half'
        )
    left_out = {'too small for a patch': found.small, 'not in their captions': found.unwritten}
    told = [f'{number} {why}' for why, number in left_out.items() if number]
    print(counted(count, 'noun') + (f' (without {", ".join(told)})' if told else ''))
    figures = {f'layer {layer}': found.accuracy(layer) for layer in found.hits}
    figures['central patch'] = sum(found.centre) / count
    figures['random patch'] = sum(found.covered) / count
    for name, value in figures.items():
        print(f'{name:22} {100 * value:6.2f}')
    if row:
        row.keep(
            {
                args.what: found.accuracy(found.layer),
                **{f'{args.what}_{layer}': found.accuracy(layer) for layer in found.hits},
                f'{args.what}_centre': figures['central patch'],
                f'{args.what}_random': figures['random patch'],
            },
            [
                f'store={os.path.basename(os.path.abspath(args.store))}',
                *([f'--limit={args.limit}'] if args.limit else []),
            ],
        )
    return 0
