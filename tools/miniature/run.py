"""The main job in miniature: words, images with free masks, pretraining, evaluation, one page.

Runs the project's own tools one after the other, or side by side, and says which; started again,
it goes on where it was. Ends with a table and `page.html` in the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

# The standard library serves --help and --dry-run, before anything is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import number, whole
from freeatm_mm.downstream.runs import BENCHMARKS
from freeatm_mm.errors import InputError, counted, tool
from freeatm_mm.files import file_sha256
from freeatm_mm.methods import METHODS, UNTRAINED
from freeatm_mm.miniature.arms import ARMS
from freeatm_mm.miniature.job import (
    DryJob,
    Job,
    check_same_pictures,
    choose_samples,
    generate_store,
    keep_settings,
    make_world,
    pretrain,
    store_sha256,
)
from freeatm_mm.miniature.layout import (
    config_of,
    miniature_methods,
    read_layout,
)

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = 'weights/miniature-generator'
FIGURES = Path('docs/results/miniature-generator.json')
SUITES = ('mini-resnet', 'mini-vit')


def named_store(text: str) -> tuple[str, str]:
    """Read 'NAME=STORE' of the command line."""
    name, _, store = text.partition('=')
    if not re.fullmatch(r'[a-z]\w*', name) or not store or name in ARMS:
        raise argparse.ArgumentTypeError(
            f'{text} must be NAME=STORE, the name of small letters, digits and _, and none of '
            'the arms'
        )
    return name, store


def model_option(text: str) -> str:
    """Read 'KEY=VALUE' of the command line, of what all arms may share."""
    if not re.fullmatch(r'(model|optim_wrapper)(\.\w+)+=\S+', text):
        raise argparse.ArgumentTypeError(
            f'{text} must be KEY=VALUE, the key beginning with model. or optim_wrapper.: all else '
            'is what this tool sets'
        )
    return text


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog='./run miniature', description=__doc__)
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/miniature'), help='output folder (%(default)s)'
    )
    parser.add_argument(
        '--images', type=whole(1, 10**7), default=4000, help='to generate (%(default)s)'
    )
    parser.add_argument(
        '--pool',
        help='store to take --images samples from for each seed, instead of generating: seeds '
        'share no sample as long as it has enough',
    )
    parser.add_argument(
        '--pool-prompts',
        metavar='PROMPTS',
        help='the prompts of the whole pool (a .jsonl file), of which --pool holds at least what '
        'the seeds take: each takes the same samples as of a store of them all '
        '(tools/miniature/chosen_prompts.py)',
    )
    parser.add_argument(
        '--epochs',
        type=whole(0, 10**6),
        default=24,
        help='of each pretraining; of MAE twice '
        'as many, which sees one view each, not two (%(default)s)',
    )
    parser.add_argument('--seeds', type=whole(1, 1000), default=1, help='how many (%(default)s)')
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=miniature_methods(),
        default=['mocov2'],
        help='to pretrain by (%(default)s)',
    )
    parser.add_argument(
        '--arms',
        nargs='+',
        choices=tuple(ARMS),
        default=['baseline', 'freeatm'],
        help='; '.join(f'{name}: {arm.text}' for name, arm in ARMS.items())
        + '; those that a method has nothing for are left out (%(default)s)',
    )
    parser.add_argument(
        '--exact',
        action='store_true',
        help='also pretrain on as many composed '
        'scenes with exact masks, and without: the upper bound',
    )
    parser.add_argument(
        '--add-masks',
        action='store_true',
        help='also pretrain on as many composed scenes whose masks the generator adds by looking '
        'at them (tools/add_masks.py), and without masks',
    )
    parser.add_argument(
        '--evaluate-every',
        '--judge-every',
        type=whole(1, 10**7),
        metavar='EPOCHS',
        help='evaluate the checkpoints '
        'of baseline and freeatm on the way too, for a curve over epochs',
    )
    parser.add_argument(
        '--on',
        nargs='+',
        choices=('scenes', 'garments'),
        default=['scenes'],
        help='what to evaluate on: the scenes of the world, or 8,000 single garments (%(default)s)',
    )
    parser.add_argument(
        '--benchmarks',
        nargs='*',
        choices=tuple(name for name, each in BENCHMARKS.items() if each.suite in SUITES),
        help='also train these heads on each pretraining, those that its backbone fits; by '
        'default mini-finetune on a ViT; with no name after it, none',
    )
    parser.add_argument(
        '--heads',
        type=whole(1, 1000),
        default=1,
        help='how many heads of each kind, with seeds of their own: rows have their mean, and all '
        'of them in their details (%(default)s)',
    )
    parser.add_argument(
        '--masks-of',
        nargs='+',
        type=named_store,
        default=[],
        metavar='NAME=STORE',
        help='further arms: the same images with the masks of another store, which must hold the '
        'same pictures in the same order',
    )
    parser.add_argument(
        '--pools',
        nargs='+',
        type=named_store,
        default=[],
        metavar='NAME=STORE',
        help='further arms: images and masks of another store, as many of them',
    )
    parser.add_argument(
        '--same-ids',
        action='store_true',
        help='of the stores of --masks-of and --pools each seed takes the samples with the ids '
        'that it takes of --pool, in any order; they need no others '
        '(tools/miniature/chosen_prompts.py)',
    )
    parser.add_argument(
        '--generator', default=GENERATOR, help='folder of the pipeline (%(default)s)'
    )
    parser.add_argument(
        '--steps', type=whole(1, 10_000), default=12, help='denoising steps (%(default)s)'
    )
    parser.add_argument(
        '--guidance', type=number(-1000, 1000), default=5.0, help='guidance scale (%(default)s)'
    )
    parser.add_argument(
        '--fast',
        action='store_true',
        help='pretrain on pictures kept in memory, with the views of a batch made at once: other '
        'random numbers of the same distributions, in about half of the time',
    )
    parser.add_argument(
        '--bf16',
        action='store_true',
        help='pretrain with backbones in bfloat16: less exact, and faster for ResNets where the '
        'processor has instructions for it',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=model_option,
        default=[],
        metavar='KEY=VALUE',
        help='change model or optimizer in the config of all pretrainings, whatever the arm, for '
        'example model.queue_len=1024; the rows say so',
    )
    parser.add_argument(
        '--device',
        default='cpu',
        help='of the evaluations, and of the pictures with --fast; a pretraining takes a GPU where '
        'there is one (%(default)s)',
    )
    parser.add_argument(
        '--jobs',
        type=whole(1, 1024),
        default=min(os.cpu_count() or 1, 2),
        help='pretrainings side by side (%(default)s)',
    )
    parser.add_argument(
        '--sources', help='folder with the unpacked Debian packages, where apt is missing'
    )
    parser.add_argument('--dry-run', action='store_true', help='only say what would be run')
    args = parser.parse_args(argv)
    named = named_options(args, parser, argv)
    refuse_idle(named, bool(args.pool), 'with --pool, of which images are taken', 'steps')
    refuse_idle(named, bool(args.pool), 'with --pool, of which images are taken', 'guidance')
    refuse_idle(named, not args.pool, 'without --pool', 'pool_prompts')
    stores = bool(args.masks_of or args.pools)
    refuse_idle(named, not stores, 'without --masks-of or --pools', 'same_ids')
    followed = {'baseline', 'freeatm'} & set(args.arms)
    refuse_idle(named, not followed, 'without an arm baseline or freeatm', 'evaluate_every')
    heads = {BENCHMARKS[name].suite for name in _benchmarks(args)}
    fitting = heads & {f'mini-{METHODS[name].architecture}' for name in args.methods}
    unfit = f'on the backbones of {", ".join(args.methods)}, which no such head fits'
    refuse_idle(named, not fitting and args.benchmarks != [], unfit, 'benchmarks')
    refuse_idle(named, not fitting, unfit, 'heads')
    return args


def _benchmarks(args: argparse.Namespace) -> list[str]:
    return ['mini-finetune'] if args.benchmarks is None else args.benchmarks


@tool(name='./run miniature', resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and write the table and the page."""
    args = parse_args(argv)
    if args.epochs < 3:
        raise InputError('--epochs must be 3 or more, as schedules warm up for two')
    if (args.masks_of or args.pools) and not args.pool:
        raise InputError('--masks-of and --pools need --pool, to take as many samples of')
    names = [name for name, _ in args.masks_of + args.pools]
    if len(set(names)) < len(names):
        raise InputError(f'--masks-of and --pools: two arms have one name: {", ".join(names)}')
    following = [arm for arm in args.arms if ARMS[arm].follows_baseline]
    if following and 'baseline' not in args.arms:
        raise InputError(f'--arms {following[0]} takes the checkpoint of baseline: name both')
    shared = [option.split('=')[0] for option in args.cfg_options]
    for arm in args.arms:
        taken = {option.split('=')[0] for option in ARMS[arm].options} & set(shared)
        if taken:
            raise InputError(
                f'--cfg-options {taken.pop()} is what --arms {arm} changes: leave it out'
            )
    if len(set(shared)) < len(shared):
        raise InputError('--cfg-options names a key twice')
    os.chdir(ROOT)
    if not args.dry_run:
        if args.pool:
            check_stores(args)
        keep_settings(args.out, settings(args), data_setting)
    job = DryJob() if args.dry_run else Job(args.out, share_imports=True)
    make_world(
        job,
        f'{args.out}/world',
        args.images,
        args.images if args.exact or args.add_masks else 0,
        args.sources,
        'garments' in args.on,
    )
    if args.add_masks:
        job.run(
            'add masks to the composed scenes',
            'tools/add_masks.py',
            f'{args.out}/world/exact',
            args.generator,
            f'{args.out}/added',
            '--quiet',
        )
    if not args.pool:
        world, out = f'{args.out}/world', f'{args.out}/synthetic'
        generate_store(job, args.generator, world, out, args.steps, args.guidance)
    # Lines of work side by side shouldn't fight for cores.
    os.environ.setdefault('OMP_NUM_THREADS', str(max((os.cpu_count() or 1) // args.jobs, 1)))
    for following in (False, True):
        job.run_side_by_side(lines_of_work(job, args, following), args.jobs)
    if isinstance(job, DryJob):
        print(f'{counted(job.count, "command")}')
        return 0
    report(job, args)
    return 0


def report(job: Job, args: argparse.Namespace) -> None:
    """Write the table and the page of a finished job."""
    from freeatm_mm.miniature.report import generator_facts
    from freeatm_mm.results import to_markdown, write_results
    from freeatm_mm.results.curves import read_curve
    from freeatm_mm.results.page import write_page
    from freeatm_mm.store import Store

    results = gather(args)
    write_results(args.out / 'results.json', results)
    curves = {}
    for regime in regimes(args):
        for method in args.methods:
            for arm in arms(args, method, regime):
                name = f'{regime}-{method}-{arm}-0'
                curves[f'{regime}, {method}, {arm}'] = read_curve(args.out / name)
    card = {}  # what is known of another generator isn't in this repository
    if args.generator == GENERATOR:
        card = generator_facts(json.loads(FIGURES.read_text()))
    write_page(
        args.out / 'page.html',
        'Free-ATM in miniature',
        islice(iter(Store(regimes(args)['synthetic'])), 24),
        curves,
        results,
        card,
        job.steps,
        f'Images generated with one attention mask per noun: {args.images:,}'
        f'{" of each seed" if args.pool else ""}; '
        'backbones were pretrained on them with and without the masks, for the same steps, '
        'and evaluated on real scenes whose objects no training has seen.',
    )
    print('\n' + to_markdown(results))
    print(
        f'{sum(step.seconds for step in job.steps) / 60:.1f} minutes of work in all; look at '
        f'{args.out}/page.html'
    )


def sample_list(args: argparse.Namespace, seed: int, name: str = '') -> Path:
    """Where the list of a seed's samples is: of the pool, or of another store by its name."""
    return args.out / 'samples' / name / f'{args.images}-seed{seed}.json'


def check_stores(args: argparse.Namespace) -> None:
    """Check that the stores hold what is taken of them, and list each seed's samples."""
    for _, store in args.masks_of:
        check_same_pictures(args.pool, store, same_ids=args.same_ids)
    check_stores_named(args)
    for name in ['', *(name for name, _ in args.masks_of + args.pools)]:
        for seed in range(args.seeds):
            samples_of(args, seed, name)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all pretrainings in one folder share, however many there are."""
    prompts = args.pool_prompts
    return {
        '--cfg-options': sorted(args.cfg_options),
        '--bf16': args.bf16,
        '--fast': args.fast,
        '--images': args.images,
        '--pool': store_sha256(args.pool) if args.pool else None,
        '--pool-prompts': file_sha256(prompts) if prompts else None,
        **{f'the store {name}': store_sha256(path) for name, path in args.masks_of + args.pools},
    }


def data_setting(work_dir: str) -> str:
    """The setting that says which store a pretraining is of; empty for those made here."""
    regime, _, name, _ = Path(work_dir).name.split('-')
    if regime != 'synthetic' or (name in ARMS and ARMS[name].regions):
        return ''
    return '--pool' if name in ARMS else f'the store {name}'


def check_stores_named(args: argparse.Namespace) -> None:
    """Refuse rows of an earlier run on a store that isn't named now: of which, nothing says."""
    from freeatm_mm.results import read_results

    known = {str(arm.masks) for arm in ARMS.values()}
    known |= {name for name, _ in args.masks_of + args.pools}
    rows = (
        row for path in (args.out / 'rows').glob('*.json') for row in read_results(path)['rows']
    )
    if unknown := {str(row['masks']) for row in rows if row['regime'] == 'synthetic'} - known:
        raise InputError(
            f'{args.out} has rows of other stores ({", ".join(sorted(unknown))}): name them again '
            'with --masks-of or --pools, or choose another --out'
        )


def samples_of(args: argparse.Namespace, seed: int, name: str) -> dict[str, Any]:
    """Choose and list a seed's samples: of the pool, or of another store by its name."""
    ids_of = args.pool_prompts
    if name and args.same_ids:
        ids_of = args.pool_prompts or args.pool
    elif name in dict(args.pools):
        ids_of = None
    return choose_samples(
        dict(args.masks_of + args.pools).get(name, args.pool),
        args.images,
        seed,
        sample_list(args, seed, name),
        ids_of,
    )


def regimes(args: argparse.Namespace) -> dict[str, str]:
    """What is pretrained on, and the store that holds it."""
    stores = {'synthetic': args.pool or f'{args.out}/synthetic'}
    if args.exact:
        stores['real'] = f'{args.out}/world/exact'
    if args.add_masks:
        stores['added'] = f'{args.out}/added'
    return stores


def arms(args: argparse.Namespace, method: str, regime: str) -> list[str]:
    """The arms that make sense: real scenes have two, and MAE has no negatives."""
    layout = read_layout(method)
    return [
        arm
        for arm in args.arms
        if not (regime != 'synthetic' and isinstance(ARMS[arm].masks, str))
        # The same scenes without masks are pretrained on once.
        and not (regime == 'added' and args.exact and not ARMS[arm].masks)
        and ARMS[arm].suits(layout)
    ]


def untrained(methods: list[str]) -> list[str]:
    """One method of each architecture: those of one architecture share their random weights."""
    return list({METHODS[name].architecture: name for name in reversed(methods)}.values())[::-1]


def lines_of_work(
    job: Job | DryJob, args: argparse.Namespace, following: bool
) -> list[Callable[[], None]]:
    """What can be run side by side: each pretraining with its evaluations.

    Args:
        job: The job.
        args: The command line.
        following: Only the arms that take a checkpoint of the others; or only the others.
    """
    lines: list[Callable[[], None]] = []
    for seed in range(args.seeds):
        if not following:
            for method in untrained(args.methods):
                lines.append(partial(evaluate, job, args, f'random-{method}', method, None, seed))
        for regime, store in regimes(args).items():
            for method in args.methods:
                for arm in arms(args, method, regime):
                    if ARMS[arm].follows_baseline == following:
                        lines.append(
                            partial(
                                pretrain_and_evaluate, job, args, regime, store, method, arm, seed
                            )
                        )
        for name, store in [] if following else args.masks_of + args.pools:
            for method in args.methods:
                lines.append(
                    partial(
                        pretrain_and_evaluate,
                        job,
                        args,
                        'synthetic',
                        store,
                        method,
                        'freeatm',
                        seed,
                        name,
                    )
                )
    return lines


def pretrain_and_evaluate(
    job: Job | DryJob,
    args: argparse.Namespace,
    regime: str,
    store: str,
    method: str,
    arm: str,
    seed: int,
    source: str = '',
) -> None:
    """One pretraining and its evaluations; `source` names a store that isn't the regime's own."""
    name, every = f'{regime}-{method}-{source or arm}-{seed}', args.epochs
    layout = read_layout(method)
    options = [*args.cfg_options, *ARMS[arm].changes(layout, seed)]
    if ARMS[arm].regions:
        store = make_regions(job, args, store, method, arm, seed)
    elif args.pool and regime == 'synthetic':
        options.append(f'train_dataloader.dataset.indices={sample_list(args, seed, source)}')
    if args.evaluate_every and not source and arm in ('baseline', 'freeatm'):
        every = args.evaluate_every
        options.append('default_hooks.checkpoint.max_keep_ckpts=-1')
    masks = source or ARMS[arm].masks
    pretrain(
        job,
        args.out / name,
        method,
        store,
        args.epochs,
        seed,
        bool(masks),
        options,
        bfloat16=args.bf16,
        in_memory=args.device if args.fast else '',
    )
    every, epochs = (layout.epochs(number) for number in (every, args.epochs))
    if regime != 'synthetic':
        masks = masks and {'real': 'exact', 'added': 'added'}[regime]
        regime = 'real'
    for epoch in sorted({*range(every, epochs, every), epochs}):
        evaluate(
            job,
            args,
            f'{name}-epoch{epoch}',
            method,
            args.out / name / f'epoch_{epoch}.pth',
            seed,
            '--method',
            method,
            '--regime',
            regime,
            '--masks',
            str(masks),
            '--epochs',
            str(epoch),
        )


def make_regions(
    job: Job | DryJob, args: argparse.Namespace, store: str, method: str, arm: str, seed: int
) -> str:
    """Give the samples of a seed the masks of an arm; returns the store that has them."""
    epoch = read_layout(method).epochs(args.epochs)
    known = {
        'seed': seed,
        'config': config_of(method),
        'baseline': args.out / f'synthetic-{method}-baseline-{seed}' / f'epoch_{epoch}.pth',
    }
    out = f'{args.out}/regions/{method}-{arm}-{seed}'
    job.run(
        f'Make masks for {arm}, seed {seed}',
        'tools/store/edit.py',
        'regions',
        store,
        out,
        *(word.format(**known) for word in ARMS[arm].regions),
        *(['--samples', sample_list(args, seed)] if args.pool else []),
        label=f'{method}-{arm}-{seed}',
    )
    return out


def evaluate(
    job: Job | DryJob,
    args: argparse.Namespace,
    name: str,
    method: str,
    checkpoint: Path | None,
    seed: int,
    *options: str,
) -> None:
    """One backbone, frozen, on real scenes; at its end, heads are trained on it, too."""
    architecture = METHODS[method].architecture
    config, weights = config_of(method), checkpoint or '--random'
    if checkpoint is None and UNTRAINED[architecture] != 'random':
        options = ('--method', UNTRAINED[architecture])
    job.run(
        f'Evaluate {name}, seed {seed}',
        'tools/evaluate.py',
        config,
        weights,
        '--world',
        f'{args.out}/world',
        '--seed',
        seed,
        '--out',
        args.out / f'rows/{name}-{seed}.json',
        *(['--on', *args.on] if args.on != ['scenes'] else []),
        *(['--device', args.device] if args.device != 'cpu' else []),
        *options,
        label=name,
    )
    last = f'epoch_{read_layout(method).epochs(args.epochs)}.pth'
    if checkpoint is not None and checkpoint.name != last:
        return
    benchmarks = [
        benchmark
        for benchmark in _benchmarks(args)
        if BENCHMARKS[benchmark].suite == f'mini-{architecture}'
    ]
    if not benchmarks or (checkpoint is None and args.benchmarks):
        return
    for head in range(args.heads if checkpoint else 1):
        job.run(
            f'Fine-tune {name}, seed {seed}{f", head {head}" if head else ""}',
            'tools/downstream.py',
            checkpoint or 'random',
            '--benchmarks',
            *benchmarks,
            '--data',
            f'{args.out}/world',
            '--out',
            args.out / f'rows/{name}-{seed}-finetune{head or ""}',
            '--seed',
            seed + 1000 * head,
            *options,
            label=name,
        )


def gather(args: argparse.Namespace) -> dict:
    """One result file from the rows of all evaluations; those of heads join that of frozen ones."""
    from freeatm_mm.results import add_row, is_untrained, join_heads, new_results, read_results

    results = new_results(args.out.name, shlex.join(['./run', 'miniature', *sys.argv[1:]]))
    for path in sorted((args.out / 'rows').glob('*.json')):
        for row in read_results(path)['rows']:
            join_heads(
                row,
                [
                    read_results(file)['rows'][0]['metrics']
                    for head in range(args.heads)
                    if (
                        file := path.with_name(f'{path.stem}-finetune{head or ""}') / 'row.json'
                    ).exists()
                ],
            )
            if args.cfg_options and not is_untrained(row['method']):
                row['cfg_options'] = args.cfg_options
            if args.pool and row['regime'] == 'synthetic' and not is_untrained(row['method']):
                seed, name = row['seed'], row['masks']
                other = name in dict(args.masks_of + args.pools)
                row['pool'] = samples_of(args, seed, name if other else '')
            add_row(results, row)
    results['rows'].sort(
        key=lambda row: (
            not is_untrained(row['method']),
            row['regime'],
            row['method'],
            str(row['masks']),
            row['epochs'],
            row['seed'],
        )
    )
    return results


if __name__ == '__main__':
    sys.exit(main())
