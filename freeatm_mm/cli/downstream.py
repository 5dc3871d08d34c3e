r"""One checkpoint through a set of benchmarks: one row of the paper's table.

    freeatm downstream epoch_200.pth --suite resnet --data data --gpus 8 \
        --out work_dirs/rows/mocov2
    freeatm downstream random --suite mini-resnet --data data/miniature_world --seed 0
    freeatm downstream random --suite resnet --data data/tiny --smoke

The name of the row comes from the checkpoint; what that doesn't say (one of another project) is
asked for: --method mocov2 --regime real --masks false. --smoke trains two steps of each benchmark
and evaluates a few images, to see that all runs.

Each benchmark has a folder in --out; the same command continues a stopped run, and repeats nothing
that is done. The row is in --out, as row.json and row.md. With --slurm PARTITION each benchmark
becomes a job; start the same command once they have ended, and the row is made.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freeatm_mm.cli import command_line
from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import SEED, number, whole
from freeatm_mm.cli._paths import path_here
from freeatm_mm.configs import check_read
from freeatm_mm.downstream.runs import (
    BENCHMARKS,
    DownstreamRun,
    options_of,
    read_metrics,
    read_note,
    suites,
    told_options,
)
from freeatm_mm.errors import tool
from freeatm_mm.files import atomic_write
from freeatm_mm.origins import Origin, origin_of, settle_label
from freeatm_mm.packaged import packaged_folder
from freeatm_mm.results import (
    add_row,
    metric_title,
    new_results,
    read_results,
    update_results,
)
from freeatm_mm.results.paper_tables import row_markdown

#: Where configs/ and tools/ are: the checkout, or the package's folder of them.
ROOT = packaged_folder('configs').parent


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'init', metavar='CHECKPOINT', help='of any pretraining; or random, or supervised'
    )
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument(
        '--suite',
        choices=tuple(suites()),
        help='; '.join(f'{name}: {", ".join(parts)}' for name, parts in suites().items()),
    )
    chosen.add_argument(
        '--benchmarks',
        nargs='+',
        choices=tuple(BENCHMARKS),
        metavar='NAME',
        help=f'of {", ".join(BENCHMARKS)}',
    )
    parser.add_argument(
        '--data',
        type=path_here,
        default=Path('data'),
        help='folder with '
        + ', '.join(sorted({part.folder for part in BENCHMARKS.values()} - {''}))
        + ', laid out as docs/downstream.md says; for the miniature the world itself '
        '(%(default)s)',
    )
    parser.add_argument('--out', type=path_here, help='default: work_dirs/downstream/<checkpoint>')
    told = parser.add_argument_group(
        'what the pretraining was',
        'needed where the checkpoint does not say it; refused where it says otherwise',
    )
    told.add_argument('--method', help='such as mocov2')
    told.add_argument('--regime', choices=('real', 'synthetic', 'mixed'), help='what it was on')
    told.add_argument(
        '--masks',
        type=lambda text: {'true': True, 'false': False}.get(text.lower(), text),
        metavar='true|false|NAME',
        help='with masks, without, or a variant',
    )
    told.add_argument('--generator', help='of the synthetic images: sd15, deepif, or another name')
    told.add_argument('--epochs', type=number(0, 1e6), help='how long it was')
    parser.add_argument('--seed', type=SEED, default=0, help='random seed (%(default)s)')
    parser.add_argument(
        '--gpus',
        type=whole(0, 1024),
        default=0,
        help='processes, one per GPU; 0: one process on whatever there is (%(default)s)',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in mixed precision, as the headers of the ViT configs have it',
    )
    parser.add_argument('--slurm', metavar='PARTITION', help='submit a job for each benchmark')
    parser.add_argument(
        '--slurm-options',
        nargs='+',
        default=[],
        metavar='OPTION',
        help='for sbatch, without the dashes: time=2-00:00 mem=100G',
    )
    parser.add_argument(
        '--smoke',
        action='store_true',
        help='two steps and a few images of each benchmark: whether all runs, not how well',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='[BENCHMARK:]KEY=VALUE',
        help="for every one of the configs, or for a benchmark's: "
        'coco:train_dataloader.num_workers=8',
    )
    args = parser.parse_args(argv)
    named = named_options(args, parser, argv)
    refuse_idle(named, not args.slurm, 'without --slurm', 'slurm_options')
    # A wrong method is refused in its place.
    untrained = (args.method or args.init).split('-')[0] == args.init in ('random', 'supervised')
    refuse_idle(named, untrained, f'on {args.init} weights', 'generator')
    refuse_idle(named, untrained and args.regime != 'real', f'on {args.init} weights', 'regime')
    refuse_idle(named, untrained and bool(args.masks), f'on {args.init} weights', 'masks')
    others = BENCHMARKS.keys() - set(args.benchmarks or suites()[args.suite])
    for option in args.cfg_options:
        meant = option.partition('=')[0].rpartition(':')[0]
        refuse_idle(named, meant in others, f'on {meant}, which is not run', 'cfg_options')
    if args.init.startswith('file://'):
        from freeatm_mm.checkpoints import local_path

        args.init = str(local_path(args.init))
    parts = Path(os.path.normpath(args.init)).with_suffix('').parts[-2:]
    name = tuple(part for part in parts if part not in ('..', os.sep))
    if args.init in ('random', 'supervised'):  # of several architectures: one row each
        name = (args.init, args.suite or '-'.join(args.benchmarks))
    args.out = args.out or Path('work_dirs/downstream', *name, f'seed_{args.seed}')
    return args


def check_metrics(names: list[str]) -> None:
    """Refuse benchmarks whose figures would have one name in one row.

    Raises:
        ValueError: Naming two of them.
    """
    taken: dict[str, str] = {}
    for name in names:
        for metric, _ in BENCHMARKS[name].metrics.values():
            if metric in taken:
                raise ValueError(
                    f'{taken[metric]} and {name} both give {metric_title(metric)}, which a '
                    'row holds once: run them by two commands, each with its --out'
                )
            taken[metric] = name


def make_label(args: argparse.Namespace) -> dict[str, Any]:
    """What the row is of: what the checkpoint says, and the command line where it doesn't.

    Raises:
        ValueError: If the two contradict each other, or neither says it, or the checkpoint can't
            be used: unreadable, of no training step, or with weights that are NaN or infinite.
    """
    said = {key: getattr(args, key) for key in ('method', 'regime', 'masks', 'generator', 'epochs')}
    if args.init in ('random', 'supervised'):
        method = args.method or args.init
        if method.split('-')[0] != args.init:
            raise ValueError(f'{args.init} weights are no {method}: leave --method out')
        return {
            'method': method,
            'regime': 'real',
            'masks': False,
            'seed': args.seed,
            'epochs': args.epochs or 0,
            'generator': '',
        }
    origin = Origin()
    if '://' not in args.init:
        from freeatm_mm.checkpoints import check_finite, check_trained, read_state, weights_of

        content = read_state(args.init)
        check_trained(content, args.init)
        check_finite(weights_of(content, args.init), args.init)
        origin = origin_of(content)
    return {**settle_label(origin, said, args.init), 'seed': args.seed}


def check_label(row: Path, label: dict[str, Any]) -> None:
    """Refuse to put figures of one pretraining into the row of another.

    Args:
        row: The row of an earlier call, if there is one.
        label: What this call says of its row.

    Raises:
        ValueError: If the earlier row was of another pretraining.
    """
    if row.exists():
        found = read_results(row)['rows'][0]
        differing = [key for key, value in label.items() if found.get(key, value) != value]
        if differing:
            said = ', '.join(f'{key} {found[key]}' for key in differing)
            raise ValueError(
                f'{row} is of {said}: choose another --out, or delete that file if it '
                'was called wrongly'
            )


def check_others(row: Path, runs: Sequence[DownstreamRun]) -> None:
    """Refuse to lose figures of a row, and tell what is done beside it but not in it.

    Args:
        row: The row of an earlier call, if there is one.
        runs: Of this call.

    Raises:
        ValueError: If it would lose some: benchmarks with another start or seed, or that are gone.
    """
    same, others = runs[0].earlier()
    names = (*same, *(run.benchmark for run in runs))
    told = ', '.join(
        f'{name} (another {what})' for name, what in others.items() if name not in names
    )
    if row.exists():
        kept = {metric for name in names for metric, _ in BENCHMARKS[name].metrics.values()}
        lost = [name for name in read_results(row)['rows'][0]['metrics'] if name not in kept]
        if lost:
            raise ValueError(
                f'{row} would lose {", ".join(map(metric_title, lost))}, of '
                f'{told or "a folder that is gone"}: choose another --out, or delete that file'
            )
    if told:
        print(f'left out of the row: {told}')


@tool(resumes=True, told_to_end=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Run or submit what isn't done, and write the row once everything is."""
    args = parse_args(argv)
    args.out, args.data = args.out.absolute(), args.data.absolute()
    if args.init not in ('random', 'supervised') and '://' not in args.init:
        args.init = str(Path(args.init).absolute())
    os.chdir(ROOT)
    label = make_label(args)
    scale = label.pop('scale', None)
    names = args.benchmarks or suites()[args.suite]
    for name in names:
        check_read(option.partition('=')[0] for option in options_of(name, args.cfg_options))
    runs = [
        DownstreamRun(
            name,
            args.init,
            args.out / name,
            args.data,
            args.seed,
            options_of(name, args.cfg_options),
            args.gpus,
            args.amp,
            args.smoke,
        )
        for name in names
    ]
    check_metrics([run.benchmark for run in runs])
    check_label(args.out / 'row.json', label)
    check_others(args.out / 'row.json', runs)
    waiting = [run for run in runs if run.prepare()]
    for run in waiting:
        if args.slurm:
            if number := run.pending():
                print(f'{run.benchmark}: job {number} is still under way')
                continue
            if number := run.last_job():
                print(
                    f'{run.benchmark}: job {number} ended without metrics; what it printed '
                    f'is in {run.folder}/slurm-{number}.out'
                )
            number = run.submit(args.slurm, [f'--{option}' for option in args.slurm_options])
            print(f'{run.benchmark}: job {number} submitted')
        else:
            run.run()
    if args.slurm and waiting:
        print('Start the same command again once the jobs have ended: it makes the row.')
        return 0

    def gather(results: dict[str, Any]) -> None:
        """A row holds all that is done in the folder, not only what this call names."""
        earlier, _ = runs[0].earlier()
        names = list(dict.fromkeys([*earlier, *(run.benchmark for run in runs)]))
        check_metrics(names)
        metrics: dict[str, float] = {}
        options: dict[str, list[str]] = {}
        for name in names:
            found = read_metrics(args.out / name / 'metrics.json', BENCHMARKS[name])
            metrics |= found
            if told := told_options(read_note(args.out / name)):
                options |= dict.fromkeys(found, told)
        small = any(name.startswith('mini-') for name in names)
        size = 'smoke' if args.smoke else 'miniature' if small else scale or 'paper'
        results.clear()
        results.update(new_results(args.out.name, command_line()))
        row = {**label, 'scale': size, 'metrics': metrics}
        add_row(results, {**row, 'options': options} if options else row)
        with atomic_write(args.out / 'row.md') as file:
            file.write(row_markdown(results['rows'][0]).encode())

    update_results(args.out / 'row.json', gather, args.out.name, command_line())
    print((args.out / 'row.md').read_text(encoding='utf-8'))
    return 0
