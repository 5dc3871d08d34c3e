"""Judge a pretrained backbone, frozen, on the real scenes of the miniature world.

    python tools/evaluate.py configs/miniature/mocov2_freeatm.py work_dirs/x/epoch_40.pth \
        --world data/world --seed 0 --out work_dirs/trial.json --method mocov2 --epochs 40 \
        --masks true
    python tools/evaluate.py configs/miniature/mocov2_freeatm.py --random --world data/world \
        --seed 0 --out work_dirs/trial.json

Runs with different seeds or arms gather in one file: a run that is in it already is replaced.
"""
from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from freeatm_mm.compat import skip_multimodal_models
from freeatm_mm.evaluation.results import (
    METRIC_TITLES,
    add_row,
    new_results,
    read_results,
    write_results,
)


def parse_masks(text: str) -> bool | str:
    """'true' and 'false' are meant so; any other word names a variant."""
    return {'true': True, 'false': False}.get(text.lower(), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the pretraining; its model.backbone is judged')
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument('checkpoint', nargs='?', help='its checkpoint')
    weights.add_argument('--random', action='store_true', help='judge random weights instead')
    parser.add_argument('--world', required=True,
                        help='folder with train, val and test, each with coco.json and images/')
    parser.add_argument('--seed', type=int, required=True,
                        help='of the random weights; otherwise the seed that the row is kept under')
    parser.add_argument('--out', required=True, help='result file to add the row to')
    parser.add_argument('--method', help="such as mocov2 (default: 'random' with --random)")
    parser.add_argument('--regime', default='synthetic', choices=('real', 'synthetic', 'mixed'),
                        help='what was pretrained on')
    parser.add_argument('--masks', type=parse_masks, default=False, metavar='true|false|NAME',
                        help='pretrained with masks, without (default), or a variant')
    parser.add_argument('--epochs', type=float, default=0, help='length of the pretraining')
    parser.add_argument('--train-scenes', type=int, default=3000, help='at most so many')
    parser.add_argument('--test-scenes', type=int, default=1500, help='at most so many')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--device', default='cpu')
    arguments = parser.parse_args()
    if not arguments.random and arguments.method is None:
        parser.error('--method is needed to name the row')
    try:
        run(arguments)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'{parser.prog}: {error}')


def run(arguments: argparse.Namespace) -> None:
    skip_multimodal_models()
    from freeatm_mm.evaluation.features import evaluate_features, load_model
    out = Path(arguments.out)
    command = shlex.join(['python', *sys.argv])
    results = read_results(out) if out.exists() else new_results(out.stem, command)
    model = load_model(arguments.config, arguments.checkpoint, arguments.seed,
                       device=arguments.device)
    if arguments.checkpoint:
        print(f'{model.matched} of {model.total} tensors of the backbone loaded')
    metrics, details = evaluate_features(
        model, arguments.world,
        {'train': arguments.train_scenes, 'test': arguments.test_scenes}, arguments.batch_size)
    add_row(results, {
        'method': arguments.method or 'random', 'regime': arguments.regime,
        'masks': arguments.masks, 'seed': arguments.seed, 'epochs': arguments.epochs,
        'metrics': metrics, 'details': details})
    write_results(out, results)
    for name, value in metrics.items():
        print(f'{METRIC_TITLES.get(name, name):42} {value:.4f}')
    print(f'{sum(details["seconds"].values()):.0f} s; kept in {out}')


if __name__ == '__main__':
    main()
