#!/usr/bin/env python
"""Tables 1 and 2 of the paper in miniature: 15 pretrainings, their benchmarks, several seeds.

    python tools/miniature_tables.py --out work_dirs/miniature_tables --seeds 3 --jobs 2
    python tools/miniature_tables.py --dry-run          # what would be run, and how much of it

SimCLR, MoCo v2 and MAE, each on real images, on generated ones without and with masks, and on half
of each without and with masks, beside random and supervised weights; every pretraining is as long
and sees as many images as any other. Ends with table1.json, table2.json and tables.md in --out.
Stopped and started again, it goes on where it was. With --jobs, lines of work that don't depend on
each other run side by side.
"""
from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from freeatm_mm.evaluation.results import (  # noqa: E402
    add_row,
    new_results,
    read_results,
    write_results,
)
from freeatm_mm.evaluation.tables import (  # noqa: E402
    gather_rows,
    improvements,
    table_markdown,
)
from freeatm_mm.files import atomic_write  # noqa: E402
from freeatm_mm.miniature.job import (  # noqa: E402
    DryJob,
    Job,
    generate_store,
    make_world,
)

#: Method -> its suite of benchmarks, and which entry of its schedule is the cosine, and where it
#: begins.
METHODS = {'simclr': ('mini-resnet', 1, 2), 'mocov2': ('mini-resnet', 0, 0),
           'mae': ('mini-vit', 1, 2)}
#: Suite -> its supervised pretraining, and how many epochs that has.
SUPERVISED = {'mini-resnet': ('resnet', 30), 'mini-vit': ('vit', 15)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/miniature_tables'),
                        help='output folder (%(default)s)')
    parser.add_argument('--images', type=int, default=4000,
                        help='to pretrain on, of each kind (%(default)s)')
    parser.add_argument('--epochs', type=int, default=25, help='of each pretraining; of MAE twice '
                        'as many, which see one view each, not two (%(default)s)')
    parser.add_argument('--seeds', type=int, default=3, help='how many (%(default)s)')
    parser.add_argument('--methods', nargs='+', choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument('--jobs', type=int, default=1, help='lines of work side by side, one core '
                        'each (%(default)s)')
    parser.add_argument('--generator', default='weights/miniature-generator',
                        help='folder of the pipeline (%(default)s)')
    parser.add_argument('--synthetic', help='store of generated images with masks to use, instead '
                        'of generating one')
    parser.add_argument('--world', help='folder made by tools/make_world.py with --exact to '
                        'use, instead of making one')
    parser.add_argument('--steps', type=int, default=12, help='denoising steps (%(default)s)')
    parser.add_argument('--guidance', type=float, default=5.0, help='(%(default)s)')
    parser.add_argument('--mask-values', choices=('attention', 'normalized'), default='attention',
                        help='attention as the paper has it, or stretched to [0, 1] '
                        '(%(default)s)')
    parser.add_argument('--sources', help='folder with the unpacked Debian packages, where apt is '
                        'missing')
    parser.add_argument('--dry-run', action='store_true', help='only say what would be run')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Runs everything and writes the tables."""
    args = parse_args(argv)
    args.out = args.out.absolute()
    os.chdir(ROOT)
    # Lines of work side by side shouldn't fight for cores.
    threads = max((os.cpu_count() or 1) // args.jobs, 1)
    os.environ.setdefault('OMP_NUM_THREADS', str(threads))
    job = DryJob() if args.dry_run else Job(args.out)
    world, synthetic = make_data(job, args)
    lines: list[Callable[[], None]] = []
    for seed in range(args.seeds):
        for suite in dict.fromkeys(METHODS[method][0] for method in args.methods):
            lines.append(partial(references, job, args, world, suite, seed))
        for method in args.methods:
            lines.append(partial(pretrainings, job, args, world, synthetic, method, seed))
    job.run_side_by_side(lines, args.jobs)
    if isinstance(job, DryJob):
        print(f'{job.count} commands')
        return
    write_tables(args)


def make_data(job: Job | DryJob, args: argparse.Namespace) -> tuple[str, str]:
    """The world with its real images, and the store of generated ones."""
    world, synthetic = args.world or f'{args.out}/world', args.synthetic
    if not args.world:
        make_world(job, world, args.images, args.images, args.sources)
    if not synthetic:
        synthetic = f'{args.out}/synthetic'
        generate_store(job, args.generator, world, synthetic, args.steps, args.guidance)
    return world, synthetic


def references(job: Job | DryJob, args: argparse.Namespace, world: str, suite: str,
               seed: int) -> None:
    """Random and supervised weights through a suite."""
    name, epochs = SUPERVISED[suite]
    judge(job, args, world, suite, 'random', 'random', 'real', 'false', 0, seed,
          f'random-{name}')
    work_dir = args.out / f'pretraining/supervised-{name}-{seed}'
    job.run(f'Pretrain supervised {name}, seed {seed}', 'tools/train.py',
            f'configs/miniature/supervised/{name}.py', '--work-dir', work_dir, '--resume',
            '--seed', seed, '--no-validate', '--data-root', world)
    judge(job, args, world, suite, work_dir / f'epoch_{epochs}.pth', 'supervised', 'real', 'false',
          epochs, seed, f'supervised-{name}')


def pretrainings(job: Job | DryJob, args: argparse.Namespace, world: str, synthetic: str,
                 method: str, seed: int) -> None:
    """All five pretrainings of a method through its suite."""
    suite, cosine, begin = METHODS[method]
    epochs = args.epochs * (2 if method == 'mae' else 1)
    real, configs = f'{world}/exact', 'configs/miniature'

    def pretrain(name: str, config: str, store: str, *options: str) -> Path:
        work_dir = args.out / f'pretraining/{method}-{name}-{seed}'
        job.run(f'Pretrain {method}, {name}, seed {seed}', 'tools/train.py',
                f'{configs}/{config}', '--work-dir', work_dir, '--resume', '--seed', seed,
                '--cfg-options', f'train_dataloader.dataset.store={store}',
                f'train_cfg.max_epochs={epochs}',
                f'param_scheduler.{cosine}.T_max={epochs - begin}',
                f'param_scheduler.{cosine}.end={epochs}', *options)
        return work_dir / f'epoch_{epochs}.pth'

    # Masks lie behind the transforms that make the views: last of the pipeline in all configs.
    masks = ([] if args.mask_values == 'attention' else
             [f'train_dataloader.dataset.pipeline.{3 if method == "mae" else 2}.mask_values='
              f'{args.mask_values}'])
    stage_1 = pretrain('real-half', f'real/{method}.py', real,
                       'train_dataloader.dataset.share=0.5')
    start = f'model.pretrained={stage_1}'
    arms = [
        ('real', 'false', pretrain('real', f'real/{method}.py', real)),
        ('synthetic', 'false', pretrain('synthetic', f'baselines/{method}.py', synthetic)),
        ('synthetic', 'true', pretrain('synthetic-masks', f'{method}_freeatm.py', synthetic,
                                       *masks)),
        ('mixed', 'false', pretrain('mixed', f'mixed/baselines/{method}.py', synthetic, start)),
        ('mixed', 'true', pretrain('mixed-masks', f'mixed/{method}_freeatm.py', synthetic, start,
                                   *masks)),
    ]
    for regime, with_masks, checkpoint in arms:
        name = f'{method}-{regime}{"-masks" if with_masks == "true" else ""}'
        judge(job, args, world, suite, checkpoint, method, regime, with_masks, epochs, seed, name)


def judge(job: Job | DryJob, args: argparse.Namespace, world: str, suite: str,
          init: str | Path, method: str, regime: str, masks: str, epochs: int, seed: int,
          name: str) -> None:
    """One checkpoint through a suite."""
    job.run(f'Benchmarks of {name}, seed {seed}', 'tools/downstream.py', init, '--suite', suite,
            '--data', world, '--out', args.out / f'rows/{name}-{seed}', '--method', method,
            '--regime', regime, '--masks', masks, '--generator', 'miniature', '--epochs', epochs,
            '--seed', seed)


def write_tables(args: argparse.Namespace) -> None:
    """Gather the rows into one result file a table, and the Markdown."""
    command = shlex.join(['python', *sys.argv])
    parts, paths = [], sorted((args.out / 'rows').glob('*/row.json'))
    for table, own in ((1, 'linear_top1'), (2, 'finetune_top1')):
        results = new_results(f'miniature-table{table}', command)
        for path in paths:
            for row in read_results(path)['rows']:
                if own in row['metrics']:
                    add_row(results, row)
        write_results(args.out / f'table{table}.json', results)
        ours = gather_rows([results], table)
        parts += [table_markdown(ours, table), improvements(ours, table)]
    seconds = json.loads((args.out / 'steps.json').read_text())
    parts.append(f'{sum(seconds.values()) / 3600:.1f} hours of single-core work in '
                 f'{len(seconds)} commands.\n')
    text = '\n'.join(part for part in parts if part)
    with atomic_write(args.out / 'tables.md') as file:
        file.write(text.encode())
    print(text)


if __name__ == '__main__':
    main()
