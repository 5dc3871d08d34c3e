"""Judges a checkpoint by image-text retrieval, as LAVIS does: TR@1/5/10 and IR@1/5/10, re-ranked.

    python tools/lavis_evaluate.py configs/lavis/retrieval_coco_zeroshot.yaml \
        --options model.pretrained=PRETRAINING_CHECKPOINT
    python tools/lavis_evaluate.py configs/lavis/retrieval_coco_zeroshot.yaml \
        --options model.load_finetuned=True model.finetuned=FINETUNING_CHECKPOINT

With --out the figures are kept in a result file, as the row of --masks, --seed and --epochs; rows
of several commands with different --what gather in one. tools/tables.py puts those of zeroshot
and finetuned into Table 3.
"""
from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from freeatm_mm.evaluation.results import (  # noqa: E402
    add_row,
    new_results,
    read_results,
    write_results,
)
from freeatm_mm.store import StoreError  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    """Judges and prints; whatever is wrong is told in one sentence."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='yaml of a retrieval task')
    parser.add_argument('--options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='change any entry of the yaml')
    parser.add_argument('--out', help='result file to add the figures to')
    parser.add_argument('--what', default='zeroshot', help="first part of the metrics' names in "
                        'it: zeroshot, finetuned ... (%(default)s)')
    parser.add_argument('--regime', default='synthetic', choices=('real', 'synthetic', 'mixed'),
                        help='what was pretrained on')
    parser.add_argument('--masks', default='false', metavar='true|false|NAME',
                        help='pretrained with masks, without (default), or a variant such as PTP')
    parser.add_argument('--generator', default='sd15', help='of the generated images: sd15, '
                        'deepif, or another name (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the pretraining')
    parser.add_argument('--epochs', type=float, default=0, help='of the pretraining')
    args = parser.parse_args(argv)
    try:
        from freeatm_mm.lavis_ext.launch import judge
        figures = judge(args.config, args.options)
    except (ImportError, OSError, ValueError, StoreError) as error:
        sys.exit(f'{parser.prog}: {error}')
    if figures is None:  # not the first of several processes
        return
    for split, values in figures.items():
        print(f'{split}: ' + '  '.join(f'{name} {value:.2f}' for name, value in values.items()))
    if args.out:
        out = Path(args.out)
        results = (read_results(out) if out.exists()
                   else new_results(out.stem, shlex.join(['python', *sys.argv])))
        row = {'method': 'blip', 'regime': args.regime, 'seed': args.seed, 'epochs': args.epochs,
               'generator': args.generator if args.regime != 'real' else '',
               'masks': {'true': True, 'false': False}.get(args.masks.lower(), args.masks)}
        earlier = [old['metrics'] for old in results['rows']
                   if all(old.get(key) == value for key, value in row.items())]
        metrics = dict(earlier[0]) if earlier else {}
        for values in figures.values():
            metrics.update({f'{args.what}_{name}': value / 100 for name, value in values.items()})
        add_row(results, {**row, 'metrics': metrics})
        write_results(out, results)


if __name__ == '__main__':
    main()
