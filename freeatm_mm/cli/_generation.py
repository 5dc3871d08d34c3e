"""Options of the tools that make stores, and running what they ask for: one way for all."""

from __future__ import annotations

import argparse
import difflib
import os
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.errors import InputError, one_sentence, pip_install
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
        help='steps of the sampler, counted from 0, such as 0:25:3',
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


def add_config_option(parser: argparse.ArgumentParser, example: str) -> None:
    """Add a file that holds a run; `parse_with_config` reads it."""
    parser.add_argument(
        '--config',
        metavar='FILE',
        help=f'a YAML file with any of these, by their long names ({example}, pipeline: ..., lora: '
        '[a.safetensors]); the command line overrides it',
    )


def add_redo_option(parser: argparse.ArgumentParser, do: str) -> None:
    """Add doing again what failed.

    Args:
        parser: The tool's.
        do: What the tool does with samples.
    """
    parser.add_argument(
        '--redo-failed',
        action='store_true',
        help=f'{do} only what failed before, in the number format that --dtype names now, '
        'and put it into its place',
    )


def parse_with_config(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, required: Sequence[str]
) -> tuple[argparse.Namespace, set[str]]:
    """Parse the command line, and the file that it names with --config.

    Args:
        parser: Its positional arguments may be left out.
        argv: The command line.
        required: What one of both must say.

    Returns:
        The arguments, and the options that one of both names.

    Raises:
        InputError: What is wrong with the file.
    """
    args, held = parser.parse_args(argv), {}
    if args.config:
        held = read_config(parser, args.config)
        # argparse would add to a list of the file what the command line names in its place.
        several = {name for name in held if isinstance(parser.get_default(name), list)}
        for name in several & {name for name, value in vars(args).items() if value}:
            del held[name]
        parser.set_defaults(**held)
        args = parser.parse_args(argv)
    missing = [name for name in required if getattr(args, name) is None]
    if missing:
        parser.error(f'the following arguments are required: {", ".join(missing)}')
    return args, named_options(args, parser, argv) | set(held)


def read_config(parser: argparse.ArgumentParser, path: str) -> dict[str, Any]:
    """Read the file that holds a run; each value is checked as if it had been typed.

    Args:
        parser: Whose options it may hold.
        path: A YAML file of names and values.

    Raises:
        InputError: If it is no such file, or has a name or value that no option takes.
    """
    import yaml

    from freeatm_mm.files import read_text

    class AsTyped(yaml.SafeLoader):
        """Leaves text what would be numbers and dates: 012 is no 10, and 25:50 no 1550."""

        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in pairs if tag.endswith((':bool', ':null'))]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            seen: set[str] = set()
            for key, _ in node.value:
                # Nothing else is looked at: references could make it into any amount.
                name = key.value.replace('-', '_') if isinstance(key.value, str) else ''
                if not name or name in seen:
                    raise InputError(
                        f'{path}: {name[:60]} is there twice' if name else f'{path}: a name is text'
                    )
                seen.add(name)
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(read_text(path, 1 << 20), AsTyped)
    except InputError:
        raise
    # Tags that are written out make numbers and dates of what is none.
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        raise InputError(f'{path} is no YAML ({one_sentence(error)[:200]})') from None
    if not isinstance(content, dict):
        raise InputError(f'{path} holds no names and values')
    known = {
        action.dest: action for action in parser._actions if action.dest not in ('help', 'config')
    }
    values: dict[str, Any] = {}
    for name, value in content.items():
        action = known.get(str(name).replace('-', '_'))
        if action is None:
            near = difflib.get_close_matches(str(name).replace('-', '_'), known, 1)
            hint = f': did you mean {near[0]}?' if near else ''
            raise InputError(f'{path}: there is no option {name!r}{hint}')
        values[action.dest] = value_of(action, value, f'{path}: {name}')
    return values


def value_of(action: argparse.Action, value: Any, where: str) -> Any:
    """A value of a file as the option would have it.

    Raises:
        InputError: If the option takes no such value.
    """
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise InputError(f'{where} is true or false, got {reprlib.repr(value)[:60]}')
        return value
    several = isinstance(action.default, list)
    texts = value if isinstance(value, list) else [value]
    if not texts or any(isinstance(text, (dict, list, bool)) or text is None for text in texts):
        advice = ': put quotes around it if it is text' if isinstance(value, bool) else ''
        # Not all of it: references in YAML make a few lines into any amount.
        raise InputError(f'{where} takes no {reprlib.repr(value)[:60]}{advice}')
    if not several:
        texts = [','.join(map(str, texts))]
    read: Any = action.type or str
    try:
        found = [read(str(text)) for text in texts]
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise InputError(f'{where}: {error}') from None
    if action.choices is not None and not set(found) <= set(action.choices):
        known = ', '.join(map(str, action.choices))
        raise InputError(f'{where} is one of {known}, got {reprlib.repr(value)[:60]}')
    return found if several else found[0]


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
    refuse_idle(named, args.plan, 'with --plan, which estimates the whole run', 'redo_failed')
    refuse_idle(named, args.redo_failed, 'with --redo-failed', 'wait', 'no_take_over', 'max_failed')


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
    if args.redo_failed and (engine != 'process' or world > 1):
        raise ValueError('--redo-failed runs in one process')
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
    if args.redo_failed:
        summary = generation.redo_failed(job.source(plan=plan), args.out, progress=not args.quiet)
    elif engine == 'workers':
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
            f'{error} ({pip_install("generation")} brings what generating needs)'
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
