#!/usr/bin/env python
"""Judge a pretrained backbone, frozen, on the real scenes of the miniature world.

    python tools/evaluate.py configs/miniature/mocov2_freeatm.py work_dirs/x/epoch_40.pth \
        --world data/world --seed 0 --out work_dirs/trial.json
    python tools/evaluate.py configs/miniature/mocov2_freeatm.py --random --world data/world \
        --seed 0 --out work_dirs/trial.json

What the row is called, the checkpoint says itself; what it doesn't say is asked for.

Runs with different seeds or arms gather in one file: a run that is in it already is replaced.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from freeatm_mm.checkpoints import check_trained, read_state  # noqa: E402
from freeatm_mm.origins import origin_of, settle_label  # noqa: E402
from freeatm_mm.results import (  # noqa: E402
    add_row,
    metric_title,
    new_results,
    read_results,
    write_results,
)


def parse_masks(text: str) -> bool | str:
    """'true' and 'false' are meant so; any other word names a variant."""
    return {'true': True, 'false': False}.get(text.lower(), text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the pretraining; its model.backbone is judged')
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument('checkpoint', nargs='?', help='its checkpoint')
    weights.add_argument('--random', action='store_true', help='judge random weights instead')
    parser.add_argument(
        '--world',
        required=True,
        help='folder with train, val and test, each with coco.json and images/',
    )
    parser.add_argument(
        '--seed',
        type=int,
        required=True,
        help='of the random weights; otherwise the seed that the row is kept under',
    )
    parser.add_argument('--out', required=True, help='result file to add the row to')
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
    told.add_argument('--epochs', type=float, help='length of the pretraining')
    parser.add_argument('--train-scenes', type=int, default=3000, help='at most so many')
    parser.add_argument('--test-scenes', type=int, default=1500, help='at most so many')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--device', default='cpu')
    arguments = parser.parse_args()
    if arguments.random and (arguments.method or 'random').split('-')[0] != 'random':
        parser.error(f'random weights are no {arguments.method}: leave --method out')
    try:
        run(arguments)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'{parser.prog}: {error}')


def make_label(arguments: argparse.Namespace) -> dict:
    """What the row is of: what the checkpoint says, and the command line where it doesn't.

    Raises:
        ValueError: If the two contradict each other, or neither says it, or the checkpoint is of
            no training step.
    """
    said = {
        key: getattr(arguments, key) for key in ('method', 'regime', 'masks', 'generator', 'epochs')
    }
    if arguments.random:
        return {
            'method': said['method'] or 'random',
            'regime': said['regime'] or 'synthetic',
            'masks': False,
            'seed': arguments.seed,
            'epochs': 0,
        }
    content = read_state(arguments.checkpoint)
    check_trained(content, arguments.checkpoint)
    return {**settle_label(origin_of(content), said, arguments.checkpoint), 'seed': arguments.seed}


def run(arguments: argparse.Namespace) -> None:
    from freeatm_mm.probing.features import evaluate_features, load_model

    out = Path(arguments.out)
    command = shlex.join(['python', *sys.argv])
    results = read_results(out) if out.exists() else new_results(out.stem, command)
    label = make_label(arguments)
    model = load_model(
        arguments.config, arguments.checkpoint, arguments.seed, device=arguments.device
    )
    if arguments.checkpoint:
        print(f'{model.matched} of {model.total} tensors of the backbone loaded')
    metrics, details = evaluate_features(
        model,
        arguments.world,
        {'train': arguments.train_scenes, 'test': arguments.test_scenes},
        arguments.batch_size,
    )
    add_row(results, {**label, 'metrics': metrics, 'details': details})
    write_results(out, results)
    for name, value in metrics.items():
        print(f'{metric_title(name):42} {value:.4f}')
    print(f'{sum(details["seconds"].values()):.0f} s; kept in {out}')


if __name__ == '__main__':
    main()
