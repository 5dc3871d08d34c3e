"""Tables 1 and 2 of the paper in miniature: 15 pretrainings, their benchmarks, several seeds.

    python tools/miniature/tables.py --out work_dirs/miniature_tables --seeds 3 --jobs 2
    python tools/miniature/tables.py --dry-run          # what would be run, and how much of it

SimCLR, MoCo v2 and MAE, each on real images, on generated ones without and with masks, and on half
of each without and with masks, beside random and supervised weights; every pretraining is as long
and sees as many images as any other. Ends with miniature-tables.md and miniature-table1 and -table2
as .json and .svg, in --out.
Stopped and started again, it goes on where it was. With --jobs, lines of work that don't depend on
each other run side by side.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import number, whole
from freeatm_mm.errors import counted, tool
from freeatm_mm.files import atomic_write
from freeatm_mm.methods import METHODS
from freeatm_mm.miniature.job import (
    DryJob,
    Job,
    generate_store,
    keep_settings,
    make_world,
    pretrain,
    store_sha256,
)
from freeatm_mm.miniature.layout import config_of, miniature_methods, read_layout, read_settings
from freeatm_mm.results import (
    add_row,
    new_results,
    read_results,
    write_results,
)
from freeatm_mm.results.paper_tables import (
    TABLES,
    belongs,
    gather_rows,
    improvements,
    table_markdown,
)

ROOT = Path(__file__).resolve().parents[2]
#: In the order of the paper's tables.
REGIMES = ('real', 'synthetic', 'mixed')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/miniature_tables'),
        help='output folder (%(default)s)',
    )
    parser.add_argument(
        '--images',
        type=whole(1, 10**7),
        default=4000,
        help='to pretrain on, of each kind (%(default)s)',
    )
    parser.add_argument(
        '--epochs',
        type=whole(0, 10**6),
        default=24,
        help='of each pretraining; of MAE twice '
        'as many, which see one view each, not two (%(default)s)',
    )
    parser.add_argument('--seeds', type=whole(1, 1000), default=3, help='how many (%(default)s)')
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=miniature_methods(),
        default=['simclr', 'mocov2', 'mae'],
        help="to pretrain by (%(default)s: the paper's)",
    )
    parser.add_argument(
        '--jobs',
        type=whole(1, 1024),
        default=1,
        help='lines of work side by side, one core each (%(default)s)',
    )
    parser.add_argument(
        '--garments',
        action='store_true',
        help='instead of the benchmarks, evaluate the pretrainings frozen on 8,000 garments, '
        'and write no tables but results.json',
    )
    parser.add_argument(
        '--generator',
        default='weights/miniature-generator',
        help='folder of the pipeline (%(default)s)',
    )
    parser.add_argument(
        '--synthetic', help='store of generated images with masks to use, instead of generating one'
    )
    parser.add_argument(
        '--world',
        help='folder made by tools/miniature/make_world.py with --exact to '
        'use, instead of making one',
    )
    parser.add_argument(
        '--steps', type=whole(1, 10_000), default=12, help='denoising steps (%(default)s)'
    )
    parser.add_argument(
        '--guidance', type=number(-1000, 1000), default=5.0, help='guidance scale (%(default)s)'
    )
    parser.add_argument(
        '--sources', help='folder with the unpacked Debian packages, where apt is missing'
    )
    parser.add_argument(
        '--regimes',
        nargs='+',
        choices=REGIMES,
        default=REGIMES,
        help='what to pretrain on: real images, generated ones, half of each (all)',
    )
    parser.add_argument(
        '--fast', action='store_true', help='pretrain as ./run miniature --fast does'
    )
    parser.add_argument('--dry-run', action='store_true', help='only say what would be run')
    args = parser.parse_args(argv)
    named = named_options(args, parser, argv)
    made = bool(args.synthetic)
    generated = ('synthetic', 'generator', 'steps', 'guidance')
    refuse_idle(named, not takes_generated(args), 'with --regimes real', *generated)
    refuse_idle(named, made, 'with --synthetic', 'generator', 'steps', 'guidance')
    refuse_idle(named, bool(args.world), 'with --world', 'sources')
    return args


def takes_generated(args: argparse.Namespace) -> bool:
    """Whether generated images are pretrained on."""
    return bool({'synthetic', 'mixed'} & set(args.regimes))


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and write the tables."""
    args = parse_args(argv)
    args.out = Path(os.path.relpath(args.out, ROOT))  # the same commands from any folder
    os.chdir(ROOT)
    # Lines of work side by side shouldn't fight for cores.
    threads = max((os.cpu_count() or 1) // args.jobs, 1)
    os.environ.setdefault('OMP_NUM_THREADS', str(threads))
    if not args.dry_run:
        keep_settings(args.out, settings(args), data_setting)
    job = DryJob() if args.dry_run else Job(args.out, share_imports=True)
    world, synthetic = make_data(job, args)
    lines: list[Callable[[], None]] = []
    for seed in range(args.seeds):
        for architecture in dict.fromkeys(METHODS[name].architecture for name in args.methods):
            if args.garments:
                break
            lines.append(partial(references, job, args, world, architecture, seed))
        for method in args.methods:
            lines.append(partial(pretrainings, job, args, world, synthetic, method, seed))
    job.run_side_by_side(lines, args.jobs)
    if isinstance(job, DryJob):
        print(f'{counted(job.count, "command")}')
        return 0
    if args.garments:
        results = new_results(args.out.name, shlex.join(['python', *sys.argv]))
        for path in sorted((args.out / 'garments').glob('*.json')):
            for row in read_results(path)['rows']:
                add_row(results, row)
        write_results(args.out / 'results.json', results)
    else:
        write_tables(args, job)
    return 0


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all pretrainings in one folder share, however many there are."""
    stores: dict[str, Any] = {}
    if not args.world:
        stores = {'--world': None, '--images': args.images}
    elif {'real', 'mixed'} & set(args.regimes):
        stores = {'--world': store_sha256(f'{args.world}/exact')}
    if takes_generated(args):
        stores['--synthetic'] = store_sha256(args.synthetic) if args.synthetic else None
    return {'--fast': args.fast, **stores}


def data_setting(work_dir: str) -> str:
    """The setting that says which store a pretraining is of."""
    regime = Path(work_dir).name.split('-')[0]
    return '--world' if regime in ('real', 'half') else '--synthetic'


def make_data(job: Job | DryJob, args: argparse.Namespace) -> tuple[str, str]:
    """The world with its real images, and the store of generated ones; empty where none is used."""
    world, synthetic = args.world or f'{args.out}/world', args.synthetic
    if not args.world:
        make_world(job, world, args.images, args.images, args.sources, args.garments)
    if not synthetic and takes_generated(args):
        synthetic = f'{args.out}/synthetic'
        generate_store(job, args.generator, world, synthetic, args.steps, args.guidance)
    return world, synthetic or ''


def references(
    job: Job | DryJob, args: argparse.Namespace, world: str, name: str, seed: int
) -> None:
    """Random and supervised weights of an architecture through its suite."""
    suite, config = f'mini-{name}', f'configs/miniature/supervised/{name}.py'
    epochs = read_settings(config)['train_cfg']['max_epochs']
    evaluate(
        job, args, world, suite, 'random', 'random', 'real', 'false', 0, seed, f'random-{name}'
    )
    work_dir = args.out / f'supervised-{name}-{seed}'
    job.run(
        f'Pretrain supervised {name}, seed {seed}',
        'tools/train.py',
        config,
        '--work-dir',
        work_dir,
        '--resume',
        '--seed',
        seed,
        '--no-validate',
        '--data-root',
        world,
        label=work_dir.name,
    )
    evaluate(
        job,
        args,
        world,
        suite,
        work_dir / f'epoch_{epochs}.pth',
        'supervised',
        'real',
        'false',
        epochs,
        seed,
        f'supervised-{name}',
    )


def pretrainings(
    job: Job | DryJob, args: argparse.Namespace, world: str, synthetic: str, method: str, seed: int
) -> None:
    """The pretrainings of a method, five where no regime is left out, through its suite."""

    def make(regime: str, store: str, masks: bool = False, *options: str) -> Path:
        work_dir = args.out / f'{regime}-{method}-{"freeatm" if masks else "baseline"}-{seed}'
        memory = 'cpu' if args.fast else ''
        return pretrain(
            job, work_dir, method, store, args.epochs, seed, masks, options, in_memory=memory
        )

    def arms() -> Iterator[tuple[str, bool, Path]]:
        real = f'{world}/exact'
        if 'real' in args.regimes:
            yield 'real', False, make('real', real)
        share = 'train_dataloader.dataset.share=0.5'
        if 'mixed' in args.regimes:
            half = make('half', real, False, share)
        for masks in (False, True):
            if 'synthetic' in args.regimes:
                yield 'synthetic', masks, make('synthetic', synthetic, masks)
            if 'mixed' in args.regimes:
                second = make('mixed', synthetic, masks, share, f'model.pretrained={half}')
                yield 'mixed', masks, second

    for regime, masks, checkpoint in arms():
        epochs = read_layout(method).epochs(args.epochs)
        name = f'{method}-{regime}{"-masks" if masks else ""}'
        if args.garments:
            job.run(
                f'Evaluate {name}, seed {seed}',
                'tools/evaluate.py',
                config_of(method),
                checkpoint,
                *('--world', world, '--on', 'garments', '--seed', seed),
                *('--method', method, '--regime', regime, '--masks', str(masks).lower()),
                *('--epochs', epochs, '--out', args.out / f'garments/{name}-{seed}.json'),
                label=f'{name}-{seed}',
            )
            continue
        evaluate(
            job,
            args,
            world,
            f'mini-{METHODS[method].architecture}',
            checkpoint,
            method,
            regime,
            str(masks).lower(),
            epochs,
            seed,
            name,
        )


def evaluate(
    job: Job | DryJob,
    args: argparse.Namespace,
    world: str,
    suite: str,
    init: str | Path,
    method: str,
    regime: str,
    masks: str,
    epochs: int,
    seed: int,
    name: str,
) -> None:
    """One checkpoint through a suite."""
    job.run(
        f'Benchmarks of {name}, seed {seed}',
        'tools/downstream.py',
        init,
        '--suite',
        suite,
        '--data',
        world,
        '--out',
        args.out / f'tables/{name}-{seed}',
        '--method',
        method,
        '--regime',
        regime,
        '--masks',
        masks,
        *(('--generator', 'miniature') if init != 'random' else ()),
        '--epochs',
        epochs,
        '--seed',
        seed,
        label=f'{name}-{seed}',
    )


def write_tables(args: argparse.Namespace, job: Job) -> None:
    """Gather the rows into one result file and one plot a table, and the Markdown."""
    from freeatm_mm.results.plots import result_plots, to_svg

    command = shlex.join(['python', *sys.argv])
    parts = [
        '# Tables 1 and 2 of the paper in miniature\n',
        "Columns are the paper's; all figures are of the miniature world: its "
        'scenes for COCO, Cityscapes and ADE20K, their objects for ImageNet.\n',
        f'Made with `{command}`.\n',
    ]
    paths = sorted((args.out / 'tables').glob('*/row.json'))
    for table in (1, 2):
        name = f'miniature-table{table}'
        results = new_results(name, command)
        versions: dict[str, set[str]] = {}
        for path in paths:
            made = read_results(path)
            for row in made['rows']:
                if belongs(row, table):  # each keeps how and when it was measured
                    add_row(results, {**row, 'command': made['command'], 'date': made['date']})
                    for package, version in made['versions'].items():
                        versions.setdefault(package, set()).add(version)
        results['versions'] = {
            package: ' and '.join(sorted(found)) for package, found in versions.items()
        }
        ours = gather_rows([results], table)
        if not ours:
            continue
        results['rows'].sort(
            key=lambda row: (
                TABLES[table].methods.index(row['method']),
                REGIMES.index(row['regime']),
                isinstance(row['masks'], str),
                str(row['masks']),
                row['seed'],
            )
        )  # variants last
        write_results(args.out / f'{name}.json', results)
        with atomic_write(args.out / f'{name}.svg') as file:
            file.write(to_svg(result_plots(results)[''], name).encode())
        parts += [
            table_markdown(ours, table, whole=False),
            f'![Every seed, mean and spread]({name}.svg)\n',
            improvements(ours, table),
        ]
    hours = sum(step.seconds for step in job.steps) / 3600
    parts.append(
        f'{hours:.1f} hours by the clock in {counted(len(job.steps), "command")}, {args.jobs} at a '
        'time (of those that were stopped and went on, since their last start).\n'
    )
    text = '\n'.join(part for part in parts if part)
    with atomic_write(args.out / 'miniature-tables.md') as file:
        file.write(text.encode())
    print(text)


if __name__ == '__main__':
    sys.exit(main())
