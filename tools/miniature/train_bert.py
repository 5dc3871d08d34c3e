"""Train a small BERT on the miniature world's prompts, for BLIP to start from.

    python tools/miniature/train_bert.py WORLD/prompts.jsonl OUT

By masked language modelling, with the sizes and the vocabulary of a config of BLIP, whose
`model.text_weights` takes OUT. tools/miniature/blip.py --start-trained does it all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import SEED, number, whole
from freeatm_mm.errors import InputError, tool

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path('configs/lavis/miniature/blip_pretrain_freeatm.yaml')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('prompts', type=Path, help='prompts.jsonl of a world')
    parser.add_argument('out', type=Path, help='folder for the weights')
    parser.add_argument(
        '--config', type=Path, default=ROOT / CONFIG, help=f'of BLIP, a yaml ({CONFIG})'
    )
    parser.add_argument('--steps', type=whole(1, 10**7), default=2000, help='batches (%(default)s)')
    parser.add_argument(
        '--batch-size', type=whole(1, 10**5), default=64, help='texts in each (%(default)s)'
    )
    parser.add_argument(
        '--lr', type=number(0, 1e3), default=1e-3, help='peak learning rate (%(default)s)'
    )
    parser.add_argument(
        '--seed', type=SEED, default=0, help='of weights, texts and order (%(default)s)'
    )
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Train it and say how well it guesses."""
    args = parse_args(argv)
    import yaml

    from freeatm_mm.miniature.bert import make_texts, train_bert
    from freeatm_mm.prompts import read_prompts

    try:
        model = yaml.safe_load(args.config.read_text(encoding='utf-8'))['model']
        sizes, vocabulary = model['bert'], ROOT / model['tokenizer']
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(
            f'{args.config} is no config of BLIP with model.bert and model.tokenizer: {error}'
        ) from None
    losses = train_bert(
        make_texts(read_prompts(args.prompts), args.seed),
        vocabulary,
        sizes,
        args.out,
        args.steps,
        args.batch_size,
        args.lr,
        args.seed,
    )
    last = losses[-max(len(losses) // 20, 1) :]
    print(
        f'saved to {args.out}; loss a masked token {losses[0]:.2f} at first, '
        f'{sum(last) / len(last):.2f} at the end'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
