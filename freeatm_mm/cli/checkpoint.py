"""Convert a pretraining's checkpoint to another library's layout: the backbone alone, renamed.

    freeatm convert epoch_200.pth resnet50.pth --to torchvision
    freeatm convert epoch_1600.pth vit.safetensors --to timm
    freeatm convert epoch_1600.pth vit-folder --to huggingface

The configs under configs/downstream need none of it: they take a pretraining's checkpoint as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import whole
from freeatm_mm.downstream.conversion import LAYOUTS, convert_checkpoint
from freeatm_mm.errors import counted, tool
from freeatm_mm.files import check_replaceable


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', help='of any pretraining')
    parser.add_argument(
        'out', help='file to write (.pth or .safetensors); a folder for huggingface'
    )
    parser.add_argument(
        '--to', choices=LAYOUTS, required=True, help="whose layout; a ViT for mmseg's backbone MAE"
    )
    parser.add_argument(
        '--heads',
        type=whole(1, 4096),
        help="a ViT's attention heads, for huggingface (default: as the checkpoint says)",
    )
    args = parser.parse_args(argv)
    named = named_options(args, parser, argv)
    refuse_idle(named, args.to != 'huggingface', f'with --to {args.to}', 'heads')
    return args


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Convert it."""
    args = parse_args(argv)
    files = ('config.json', 'model.safetensors') if args.to == 'huggingface' else ('',)
    for file in files:
        check_replaceable(Path(args.out, file), 'a conversion')
    count = convert_checkpoint(args.checkpoint, args.out, args.to, args.heads)
    print(f'{counted(count, "tensor")} written to {args.out}')
    return 0
