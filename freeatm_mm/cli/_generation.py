"""Options of the tools that make stores, and running what they ask for: one way for all."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freeatm_mm.cli._effects import refuse_idle
from freeatm_mm.errors import InputError
from freeatm_mm.signals import end_on_signals

if TYPE_CHECKING:
    from freeatm_mm.generation import GenerationJob


def parse_size(text: str) -> tuple[int, int]:
    """'512x768' (height x width) or '512' as (height, width)."""
    parts = text.lower().split('x')
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH in pixels, like 512x768')
    return int(parts[0]), int(parts[-1])


def worker_of(environment: Mapping[str, str]) -> tuple[int, int]:
    """Rank and number of workers from what torchrun or a SLURM array sets; 0 and 1 without.

    Raises:
        ValueError: If the variables are not numbers.
    """

    def number(name: str, default: int) -> int:
        text = environment.get(name, str(default))
        try:
            return int(text)
        except ValueError:
            raise ValueError(f'the environment variable {name} is {text!r}, not a number') from None

    if 'RANK' in environment and 'WORLD_SIZE' in environment:
        return number('RANK', 0), number('WORLD_SIZE', 1)
    if 'SLURM_ARRAY_TASK_ID' in environment and 'SLURM_ARRAY_TASK_COUNT' in environment:
        place = number('SLURM_ARRAY_TASK_ID', 0) - number('SLURM_ARRAY_TASK_MIN', 0)
        step = max(1, number('SLURM_ARRAY_TASK_STEP', 1))  # --array=0-62:2
        rank, world = place // step, number('SLURM_ARRAY_TASK_COUNT', 1)
        if rank >= world or place % step:
            raise ValueError(
                'the tasks of this SLURM array are not evenly spaced, so which worker '
                'this is stays unknown: use --array=0-63, or --rank and --world'
            )
        return rank, world
    return 0, 1


def names(text: str) -> list[str]:
    """'up,mid' as names."""
    return text.split(',')


def numbers(separator: str) -> Callable[[str], list[int]]:
    """A reader of numbers with a separator between."""

    def read(text: str) -> list[int]:
        parts = text.split(separator)
        if not all(part.isdecimal() for part in parts):
            raise argparse.ArgumentTypeError(f'{text!r} is not numbers with {separator!r} between')
        return [int(part) for part in parts]

    return read


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Add how a pipeline is loaded, which changes none of its images."""
    parser.add_argument(
        '--model-config',
        metavar='PIPELINE',
        help='where the pipeline is a single file (.safetensors): folder or hub id of the one that '
        'it is a checkpoint of, for configs and tokenizers (default: the one that diffusers knows, '
        'from the hub or its cache)',
    )
    parser.add_argument(
        '--offload',
        choices=('none', 'model', 'sequential', 'group'),
        default='none',
        help='keep weights on the CPU until the GPU needs them: whole parts, single layers (slow, '
        'least memory), or groups of layers ahead of time (default: none)',
    )


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add what concerns the pipeline's weights, the samples and the shards."""
    add = parser.add_argument
    add(
        '--dtype',
        choices=('float32', 'float16', 'bfloat16'),
        default='float32',
        help='number format of the weights (default: float32)',
    )
    add('--device', help='cpu, cuda, cuda:1 (default: a GPU if there is one)')
    add_loading_options(parser)
    add('--revision', help='branch, tag or commit on the hub')
    add('--variant', help='variant of the weights, such as fp16')
    add(
        '--lora',
        action='append',
        default=[],
        metavar='FILE[:WEIGHT]',
        help='add a LoRA (.safetensors) to the weights, a file here or on the hub '
        '(owner/name/FILE.safetensors); may be given several times (weight: 1)',
    )
    add(
        '--samples-per-shard',
        type=int,
        default=5000,
        metavar='N',
        help='the unit of work and of resuming (default: 5000)',
    )
    add(
        '--image-format',
        choices=('jpg', 'png'),
        default='jpg',
        help='of the stored images (default: jpg)',
    )
    add('--quality', type=int, default=95, help='JPEG quality (default: 95)')
    add(
        '--lost-nouns',
        choices=('skip', 'raise'),
        default='skip',
        help='a noun that the tokenizer cuts off: keep the image without it, or stop '
        '(default: skip)',
    )
    add(
        '--max-failed',
        type=float,
        metavar='N',
        help='how many samples may fail and be left out before the run stops: a number, or a share '
        'of them below 1 (default: 10, or a tenth if that is more)',
    )


def add_mask_options(parser: argparse.ArgumentParser, stages: bool = False) -> None:
    """Add the choice of other masks than the paper's; of a cascade's stage only with `stages`."""
    masks = parser.add_argument_group(
        'masks',
        "other masks than the paper's mean over all steps and blocks (docs/masks.md says "
        'which are better)',
    )
    masks.add_argument(
        '--mask-blocks',
        type=names,
        metavar='A,B',
        help='down, mid, up, or modules such as up_blocks.1',
    )
    masks.add_argument(
        '--mask-resolutions',
        type=numbers(','),
        metavar='N,M',
        help='shorter sides of feature maps, such as 16',
    )
    masks.add_argument(
        '--mask-steps',
        type=numbers(':'),
        metavar='START:STOP[:STRIDE]',
        help='steps, counted from 0, such as 0:25:3',
    )
    masks.add_argument(
        '--mask-probability',
        choices=('joint', 'text'),
        help='text: renormalised over the text keys',
    )
    masks.add_argument(
        '--mask-merge',
        choices=('mean', 'sum', 'max', 'last'),
        help='how the tokens of a noun become one mask',
    )
    masks.add_argument(
        '--mask-maps',
        choices=('attention', 'output'),
        help="output: from the words' and pixels' outputs of attention (models whose text and "
        'image are one sequence)',
    )
    masks.add_argument(
        '--mask-head-weights',
        choices=('contribution',),
        help='weigh the heads of each pixel by what they contribute to the output there',
    )
    masks.add_argument(
        '--mask-rescale',
        choices=('words',),
        help="divide each pixel's masks by their sum over the words of the prompt",
    )
    masks.add_argument(
        '--mask-propagate',
        type=int,
        metavar='TIMES',
        help='pass masks on along the self-attention at 32x32 or below',
    )
    masks.add_argument(
        '--mask-crf',
        type=int,
        metavar='SIDE',
        help="draw masks' edges where the image has edges, at SIDE pixels (64, say)",
    )
    if stages:
        masks.add_argument(
            '--mask-stage',
            type=int,
            choices=(1, 2, 3),
            help='the stage of DeepFloyd IF that masks are taken from (default: 1)',
        )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add what concerns the workers."""
    add = parser.add_argument
    add(
        '--engine',
        choices=('process', 'workers', 'ray'),
        help='what generates: this process, processes started here, or actors of Ray (default: '
        'this process; processes if --workers is given)',
    )
    add('--workers', type=int, metavar='N', help='processes or actors (default: 1)')
    add('--ray-address', metavar='ADDRESS', help="the Ray cluster's (default: what Ray finds)")
    add('--rank', type=int, help='number of this worker, from 0 (default: from the environment)')
    add('--world', type=int, help='number of workers (default: from the environment)')
    add(
        '--no-take-over',
        action='store_true',
        help="generate no other worker's shards; for file systems whose locks don't reach other "
        'machines',
    )
    add(
        '--wait',
        action=argparse.BooleanOptionalAction,
        help='with nothing left to generate, stay and generate what a worker that dies leaves '
        '(default: under torchrun only)',
    )
    add('--quiet', action='store_true', help='no progress bar')


def given_masks(args: argparse.Namespace) -> dict[str, Any]:
    """The choices of other masks that the arguments make."""
    return {
        name.removeprefix('mask_'): value
        for name, value in vars(args).items()
        if name.startswith('mask_') and value is not None
    }


def refuse_idle_common(args: argparse.Namespace, named: Collection[str]) -> None:
    """Refuse options of the pipeline, the images and the workers that have no effect.

    Raises:
        InputError: If one is among the named ones.
    """
    refuse_idle(named, args.image_format == 'png', 'with --image-format png', 'quality')
    refuse_idle(named, Path(args.pipeline).is_dir(), 'on a folder, which has one', 'revision')
    started = args.engine in ('workers', 'ray') or args.engine is None and args.workers is not None
    refuse_idle(
        named,
        started and args.world in (None, 1),
        'where the command starts the workers itself',
        'rank',
    )


def engine_of(args: argparse.Namespace) -> tuple[str, int, int]:
    """Engine, number of this worker and number of workers that started together.

    Raises:
        ValueError: If the arguments exclude each other, or a number is out of range.
    """
    from freeatm_mm.generation.limits import MAX_WORKERS

    rank, world = args.rank, args.world
    if rank is None or world is None:
        found = worker_of(os.environ)
        rank, world = (found[0] if rank is None else rank, found[1] if world is None else world)
    engine = args.engine or ('process' if args.workers is None else 'workers')
    if engine == 'process' and args.workers is not None:
        raise ValueError('--workers needs --engine workers or ray')
    if engine != 'ray' and args.ray_address is not None:
        raise ValueError('--ray-address needs --engine ray')
    if engine != 'process' and (args.wait is not None or args.no_take_over):
        name = '--wait' if args.wait is not None else '--no-take-over'
        raise ValueError(f'{name} is for workers that start by themselves, not --engine {engine}')
    if engine != 'process' and world > 1:
        raise ValueError(
            f'--engine {engine} starts its own workers: not under torchrun, in a '
            'SLURM array or with --world'
        )
    if args.workers is not None and not 1 <= args.workers <= MAX_WORKERS:
        raise ValueError(
            f'workers must be at least 1 and at most {MAX_WORKERS}, got {args.workers}'
        )
    return engine, rank, world


def run_job(job: GenerationJob, args: argparse.Namespace, told: Callable[[Any], str] = str) -> str:
    """Do a job with the engine that the arguments name, or estimate it; returns the report.

    Args:
        job: The job.
        args: The arguments.
        told: Says what a run did.

    Raises:
        Exception: What is wrong with them, or with the run.
    """
    from freeatm_mm import generation

    engine, rank, world = engine_of(args)
    # All that can be known before the weights are loaded.
    plan = job.check(None if args.plan else args.out)
    workers = 1 if args.workers is None else args.workers
    if args.plan:
        estimate = generation.estimate_run(job.source(plan=plan))
        return estimate.text(args.workers or world)
    if engine == 'workers':
        summary = generation.run_workers(job, args.out, workers, progress=not args.quiet)
    elif engine == 'ray':
        summary = generation.run_ray(
            job, args.out, workers, address=args.ray_address, progress=not args.quiet
        )
    else:
        local_rank = os.environ.get('LOCAL_RANK')
        # One bar for all: that of the first worker.
        source = job.source(None if local_rank is None else int(local_rank), plan)
        summary = generation.generate_store(
            source,
            args.out,
            rank=rank,
            world=world,
            take_over=not args.no_take_over,
            wait='RANK' in os.environ if args.wait is None else args.wait,
            progress=not args.quiet and rank == 0,
        )
    return told(summary)


def print_run(args: argparse.Namespace, run: Callable[[argparse.Namespace], str]) -> int:
    """Run a tool's work and print its report; returns the exit code.

    Raises:
        InputError: If a package is missing, or memory.
    """
    try:
        from freeatm_mm import generation  # noqa: F401 - what is missing is told beforehand
    except ImportError as error:
        # Its own words: what is missing may be a part of something that is installed.
        raise InputError(
            f'{error} (freeatm_mm[generation] installs what generating needs)'
        ) from None
    try:
        with end_on_signals():
            print(run(args))
    except RuntimeError as error:
        if 'out of memory' not in str(error):
            raise
        raise InputError(
            'out of memory; start again with a smaller --batch-size or --size, '
            'finished shards are kept'
        ) from None
    return 0
