"""The main job in miniature: words, images with free masks, pretraining, judging, one page.

Runs the project's own tools one after the other and says which; started again, it goes on where it
was. Ends with a table and `page.html` in the output folder.
"""
from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from itertools import islice
from pathlib import Path

from freeatm_mm.evaluation.results import new_results, read_results, to_markdown, write_results
from freeatm_mm.miniature.job import Job
from freeatm_mm.miniature.report import generator_facts
from freeatm_mm.store import Store
from freeatm_mm.visualization.curves import read_curve
from freeatm_mm.visualization.page import write_page

ROOT = Path(__file__).resolve().parent.parent
GENERATOR = 'weights/miniature-generator'
FIGURES = Path('docs/results/miniature-generator.json')
BASELINE, FREEATM = 'configs/miniature/baselines/mocov2.py', 'configs/miniature/mocov2_freeatm.py'
#: Arm -> its config, what the results call its masks, and further options.
ARMS = {'baseline': (BASELINE, 'false', ()), 'freeatm': (FREEATM, 'true', ()),
        'normalized': (FREEATM, 'normalized',
                       ('train_dataloader.dataset.pipeline.2.mask_values=normalized',))}


def main() -> None:
    parser = argparse.ArgumentParser(prog='./run miniature', description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/miniature'),
                        help='output folder (%(default)s)')
    parser.add_argument('--images', type=int, default=4000, help='to generate (%(default)s)')
    parser.add_argument('--epochs', type=int, default=25, help='of each pretraining (%(default)s)')
    parser.add_argument('--seeds', type=int, default=1, help='how many (%(default)s)')
    parser.add_argument('--exact', action='store_true', help='also pretrain on as many composed '
                        'scenes with exact masks, and without: the upper bound')
    parser.add_argument('--normalized', action='store_true', help='also pretrain with masks '
                        'stretched to [0, 1], which the paper does not do')
    parser.add_argument('--generator', default=GENERATOR,
                        help='folder of the pipeline (%(default)s)')
    parser.add_argument('--steps', type=int, default=12, help='denoising steps (%(default)s)')
    parser.add_argument('--guidance', type=float, default=3.0, help='(%(default)s)')
    parser.add_argument('--sources', help='folder with the unpacked Debian packages, where apt is '
                        'missing')
    args = parser.parse_args()
    os.chdir(ROOT)
    job = Job(args.out)
    job.run('Make the world', 'tools/make_world.py', f'{args.out}/world',
            '--prompts', args.images, '--exact', args.images if args.exact else 0,
            *(['--sources', args.sources] if args.sources else []))
    job.run('Generate images with masks', 'tools/generate.py', args.generator,
            f'{args.out}/world/prompts.jsonl', f'{args.out}/synthetic', '--steps', args.steps,
            '--guidance', args.guidance, '--batch-size', 50, '--samples-per-shard', 500,
            '--image-format', 'png', '--dtype', 'float32')
    stores = {'synthetic': f'{args.out}/synthetic'}
    if args.exact:
        stores['real'] = f'{args.out}/world/exact'
    results, curves = args.out / 'results.json', {}
    if not results.exists():  # the rows are made by other commands, all of them called here
        command = shlex.join(['./run', 'miniature', *sys.argv[1:]])
        write_results(results, new_results('miniature', command))
    for seed in range(args.seeds):
        job.run(f'Judge random weights, seed {seed}', 'tools/evaluate.py', FREEATM,
                '--random', '--world', f'{args.out}/world', '--seed', seed, '--out', results)
        for regime, store in stores.items():
            for arm, (config, masks, options) in ARMS.items():
                # exact masks are stretched already
                if arm == 'normalized' and (regime == 'real' or not args.normalized):
                    continue
                name = f'{regime}-{arm}-{seed}'
                work_dir = args.out / name
                job.run(f'Pretrain {name}', 'tools/train.py', config, '--work-dir', work_dir,
                        '--resume', '--seed', seed, '--cfg-options',
                        f'train_dataloader.dataset.store={store}',
                        f'train_cfg.max_epochs={args.epochs}',
                        f'param_scheduler.0.T_max={args.epochs}',
                        f'param_scheduler.0.end={args.epochs}', *options)
                variant = 'exact' if masks == 'true' and regime == 'real' else masks
                job.run(f'Judge {name}', 'tools/evaluate.py', config,
                        work_dir / f'epoch_{args.epochs}.pth', '--world', f'{args.out}/world',
                        '--seed', seed, '--method', 'mocov2', '--regime', regime, '--masks',
                        variant, '--epochs', args.epochs, '--out', results)
                if seed == 0:
                    curves[f'{regime}, {arm}'] = read_curve(work_dir)
    found = read_results(results)
    card = {}  # what is known of another generator isn't in this repository
    if args.generator == GENERATOR:
        card = generator_facts(json.loads(FIGURES.read_text()))
    write_page(args.out / 'page.html', 'Free-ATM in miniature',
               islice(iter(Store(f'{args.out}/synthetic')), 24), curves, found, card, job.steps,
               f'{args.images} images were generated with one attention mask per noun; MoCo v2 '
               'was pretrained on them with and without the masks, for the same steps, and judged '
               'on real scenes whose objects no training has seen.')
    print('\n' + to_markdown(found))
    print(f'{sum(step.seconds for step in job.steps) / 60:.1f} minutes in all; look at '
          f'{args.out}/page.html')


if __name__ == '__main__':
    main()
