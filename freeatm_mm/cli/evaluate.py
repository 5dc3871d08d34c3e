r"""Evaluate a pretrained backbone, frozen, on the real scenes of the miniature world.

    freeatm evaluate configs/miniature/mocov2_freeatm.py work_dirs/x/epoch_40.pth \
        --world data/world --seed 0 --out work_dirs/trial.json
    freeatm evaluate configs/miniature/mocov2_freeatm.py --random --world data/world \
        --seed 0 --out work_dirs/trial.json

What the row is called, the checkpoint says itself; what it doesn't say is asked for.

Runs with different seeds or arms gather in one file. Of a run that is in it already, figures that
are measured again are replaced; the others stay, unless they were measured on other weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from freeatm_mm.cli import command_line
from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import SEED, number, whole
from freeatm_mm.cli._paths import path_here
from freeatm_mm.compat import skip_multimodal_models
from freeatm_mm.errors import InputError, tool
from freeatm_mm.origins import origin_of, settle_label
from freeatm_mm.results import (
    merge_row,
    metric_title,
    open_results,
    update_results,
)

#: Scenes of a split that are taken at most.
_SCENES = {'train': 3000, 'test': 1500}


def parse_masks(text: str) -> bool | str:
    """'true' and 'false' are meant so; any other word names a variant."""
    return {'true': True, 'false': False}.get(text.lower(), text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the pretraining; its model.backbone is evaluated')
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument('checkpoint', nargs='?', help='its checkpoint')
    weights.add_argument('--random', action='store_true', help='evaluate random weights instead')
    parser.add_argument(
        '--world',
        required=True,
        help='folder with train, val and test, each with coco.json and images/',
    )
    parser.add_argument(
        '--seed',
        type=SEED,
        required=True,
        help='of the random weights; otherwise the seed that the row is kept under',
    )
    parser.add_argument(
        '--out', type=path_here, required=True, help='result file to add the row to'
    )
    told = parser.add_argument_group(
        'what the pretraining was',
        'needed where the checkpoint does not say it; refused where it says otherwise',
    )
    told.add_argument('--method', help="such as mocov2 (default: 'random' with --random)")
    told.add_argument(
        '--regime', choices=('real', 'synthetic', 'mixed'), help='what was pretrained on'
    )
    told.add_argument(
        '--masks',
        type=parse_masks,
        metavar='true|false|NAME',
        help='pretrained with masks, without, or a variant',
    )
    told.add_argument('--generator', help='of the synthetic images')
    told.add_argument('--epochs', type=number(0, 1e6), help='length of the pretraining')
    parser.add_argument(
        '--on',
        nargs='+',
        choices=('scenes', 'garments'),
        default=['scenes'],
        help='the scenes of the world, or its 8,000 single garments, whose rows also keep which '
        'of them were classified correctly (%(default)s)',
    )
    for split, most in _SCENES.items():
        parser.add_argument(
            f'--{split}-scenes',
            type=whole(1, 10**7),
            default=most,
            help='at most this many (%(default)s)',
        )
    parser.add_argument(
        '--batch-size', type=whole(1, 10**5), default=128, help='scenes at once (%(default)s)'
    )
    parser.add_argument('--device', default='cpu', help='cpu, cuda ... (%(default)s)')
    args = parser.parse_args(argv)
    named = named_options(args, parser, argv)
    # A wrong method is refused in its place.
    random = args.random and (args.method or 'random').split('-')[0] == 'random'
    refuse_idle(named, random, 'with --random', 'generator')
    refuse_idle(named, random and bool(args.masks), 'with --random', 'masks')
    refuse_idle(named, random and bool(args.epochs), 'with --random', 'epochs')
    elsewhere = 'scenes' not in args.on
    refuse_idle(named, elsewhere, 'without --on scenes', 'train_scenes', 'test_scenes')
    return args


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, and keep the row."""
    args = parse_args(argv)
    if args.random and (args.method or 'random').split('-')[0] != 'random':
        raise InputError(f'random weights are no {args.method}: leave --method out')
    run(args)
    return 0


def make_label(args: argparse.Namespace) -> dict:
    """What the row is of: what the checkpoint says, and the command line where it doesn't.

    Raises:
        ValueError: If the two contradict each other, or neither says it, or the checkpoint is of
            no training step.
    """
    said = {key: getattr(args, key) for key in ('method', 'regime', 'masks', 'generator', 'epochs')}
    if args.random:
        return {
            'method': said['method'] or 'random',
            'regime': said['regime'] or 'synthetic',
            'masks': False,
            'seed': args.seed,
            'epochs': 0,
        }
    from freeatm_mm.checkpoints import check_trained, read_state

    content = read_state(args.checkpoint)
    check_trained(content, args.checkpoint)
    return {**settle_label(origin_of(content), said, args.checkpoint), 'seed': args.seed}


def run(args: argparse.Namespace) -> None:
    """Evaluate one backbone and add its row to the results."""
    skip_multimodal_models()
    from freeatm_mm.miniature.garments import load_garments
    from freeatm_mm.probing.features import evaluate_features, evaluate_objects, load_model

    command = command_line()
    open_results(args.out, args.out.stem, command)  # one that can't be used is told at once
    label = make_label(args)
    model = load_model(args.config, args.checkpoint, args.seed, device=args.device)
    if args.checkpoint:
        print(f'{model.matched} of {model.total} tensors of the backbone loaded')
    metrics: dict = {}
    details: dict = {}
    options: dict = {}
    if 'scenes' in args.on:
        most = {'train': args.train_scenes, 'test': args.test_scenes}
        metrics, details = evaluate_features(model, args.world, most, args.batch_size)
        told = [
            f'--{split}-scenes={most[split]}' for split in most if most[split] != _SCENES[split]
        ]
        options = dict.fromkeys(metrics, told) if told else {}
    if 'garments' in args.on:
        garments = load_garments(Path(args.world) / 'garments')
        found, more = evaluate_objects(model, garments, 'garment', args.batch_size)
        seconds = {**details.get('seconds', {}), **more['seconds']}
        metrics, details = {**metrics, **found}, {**details, **more, 'seconds': seconds}
    details['weights_sha256'] = model.weights_sha256()
    row = {**label, 'metrics': metrics, 'details': details}
    if options:
        row['options'] = options
    lost: list[str] = []

    def change(results: dict) -> None:
        lost[:] = merge_row(results, row)

    update_results(args.out, change, args.out.stem, command)
    if lost:
        print(f'left out, as measured on other weights: the earlier figures {", ".join(lost)}')
    for name, value in metrics.items():
        print(f'{metric_title(name):42} {value:.4f}')
    print(f'{sum(details["seconds"].values()):.0f} s; kept in {args.out}')
