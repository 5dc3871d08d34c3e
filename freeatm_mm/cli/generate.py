"""Generate a store from a file of prompts: images, and one attention mask per noun.

    freeatm generate PIPELINE PROMPTS.jsonl OUT --steps 50 --batch-size 8
    freeatm generate --config run.yaml

Interrupted or killed, the same command goes on where it was and ends with the same bytes. To know
what a run will take before it starts, add --plan. To share the work:

    ... --workers 8                       processes here, one a GPU; one that dies is replaced
    torchrun --nproc-per-node 8 -m freeatm_mm generate ...
    sbatch --array=0-63 --requeue ...     a SLURM array of the same command
    ... --rank 3 --world 8                by hand, anywhere that sees the folder
    ... --engine ray --workers 64         actors on a Ray cluster (--ray-address)

All make the same store, byte for byte, on the same kind of machine.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from freeatm_mm.errors import InputError, tool
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


def scales(text: str) -> list[float]:
    """'4,9' as guidance scales."""
    return [float(part) for part in text.split(',')]


def masks_of(args: argparse.Namespace) -> bool | dict[str, Any]:
    """Which masks the arguments ask for.

    Raises:
        ValueError: If some are asked for, and none.
    """
    given = {
        name.removeprefix('mask_'): value
        for name, value in vars(args).items()
        if name.startswith('mask_') and value is not None
    }
    if args.no_masks and given:
        raise ValueError(f'--no-masks and --mask-{sorted(given)[0]} exclude each other')
    return False if args.no_masks else given or True


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        epilog=__doc__.split('\n\n', 2)[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('pipeline', nargs='?', help='folder of a diffusers pipeline, or a hub id (owner/name)')
    add('prompts', nargs='?', help='JSON Lines file of prompt records: id, prompt, nouns, source')
    add('out', nargs='?', help='folder of the store; made if missing')
    add(
        '--config',
        metavar='FILE',
        help='a YAML file with any of these, by their long names (steps: 30, pipeline: ..., lora: '
        '[a.safetensors]); what the command line says goes before it',
    )
    add(
        '--stage',
        action='append',
        default=[],
        metavar='PIPELINE',
        help='a further stage of DeepFloyd IF, folder or hub id (owner/name@revision); once for '
        'stage II, once more for stage III',
    )
    add('--steps', type=int, default=50, help='denoising steps (default: 50)')
    add('--guidance', type=float, default=7.5, help='guidance scale; 1: off (default: 7.5)')
    add(
        '--stage-steps',
        type=numbers(','),
        metavar='N,M',
        help="denoising steps of the further stages (default: the pipelines')",
    )
    add(
        '--stage-guidance',
        type=scales,
        metavar='X,Y',
        help="guidance scales of the further stages (default: the pipelines')",
    )
    add(
        '--negative-prompt',
        metavar='TEXT',
        help='what the images should not show, the same for all (needs guidance above 1)',
    )
    add(
        '--lora',
        action='append',
        default=[],
        metavar='FILE[:WEIGHT]',
        help='add a LoRA (.safetensors) to the weights; may be given several times (weight: 1)',
    )
    add('--batch-size', type=int, default=8, help='images generated at once (default: 8)')
    add('--seed', type=int, default=0, help='seed of the run (default: 0)')
    add('--size', type=parse_size, metavar='HxW', help="pixels (default: the pipeline's)")
    add('--scheduler', metavar='CLASS', help="a diffusers scheduler instead of the pipeline's")
    add(
        '--dtype',
        choices=('float32', 'float16', 'bfloat16'),
        default='float32',
        help='number format of the weights (default: float32)',
    )
    add('--device', help='cpu, cuda, cuda:1 (default: a GPU if there is one)')
    add('--revision', help='branch, tag or commit on the hub')
    add('--variant', help='variant of the weights, such as fp16')
    add(
        '--images-per-prompt',
        type=int,
        default=1,
        metavar='N',
        help='each of another seed (default: 1)',
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
    add('--limit', type=int, metavar='N', help='use the first N prompts only')
    add(
        '--lost-nouns',
        choices=('skip', 'raise'),
        default='skip',
        help='a noun that the tokenizer cuts off: keep the image without it, or stop '
        '(default: skip)',
    )
    add(
        '--keep-hidden',
        action='store_true',
        help='store images that the safety checker blacked out, marked in their meta, rather than '
        'leave them out',
    )
    add(
        '--max-failed',
        type=float,
        metavar='N',
        help='how many samples may fail and be left out before the run stops: a number, or a share '
        'of them below 1 (default: 10, or a tenth if that is more)',
    )
    add(
        '--redo-failed',
        action='store_true',
        help='generate only what failed before, in the number format that --dtype names now, '
        'and put it into its place',
    )
    add(
        '--no-masks',
        action='store_true',
        help='generate images alone, with any text-to-image pipeline',
    )
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
    masks.add_argument(
        '--mask-stage',
        type=int,
        choices=(1, 2, 3),
        help='the stage of DeepFloyd IF that masks are taken from (default: 1)',
    )
    add(
        '--plan',
        action='store_true',
        help='generate two batches, print shards, bytes and hours of the run, and write nothing',
    )
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
    args = parser.parse_args(argv)
    if args.config:
        parser.set_defaults(**read_config(parser, args.config))
        args = parser.parse_args(argv)
    missing = [name for name in ('pipeline', 'prompts', 'out') if getattr(args, name) is None]
    if missing:
        parser.error(f'the following arguments are required: {", ".join(missing)}')
    return args


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

    try:
        content = yaml.safe_load(read_text(path, 1 << 20))
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f'{path} is no YAML ({" ".join(str(error).split())[:200]})') from None
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
            raise InputError(f'{where} is true or false, got {value!r}')
        return value
    several = isinstance(action.default, list)
    texts = value if isinstance(value, list) else [value]
    if not texts or any(isinstance(text, (dict, list, bool)) or text is None for text in texts):
        raise InputError(f'{where} takes no {value!r}')
    if not several:
        texts = [','.join(map(str, texts))]
    read: Any = action.type or str
    try:
        found = [read(str(text)) for text in texts]
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise InputError(f'{where}: {error}') from None
    if action.choices is not None and not set(found) <= set(action.choices):
        raise InputError(f'{where} is one of {", ".join(map(str, action.choices))}, got {value!r}')
    return found if several else found[0]


def job_of(args: argparse.Namespace, job_class: type[GenerationJob]) -> GenerationJob:
    """The job that the arguments describe."""
    height, width = args.size or (None, None)
    return job_class(
        args.pipeline,
        args.prompts,
        limit=args.limit,
        revision=args.revision,
        scheduler=args.scheduler,
        dtype=args.dtype,
        device=args.device,
        variant=args.variant,
        stages=tuple(args.stage),
        loras=tuple(args.lora),
        options=dict(
            steps=args.steps,
            guidance=args.guidance,
            batch_size=args.batch_size,
            seed=args.seed,
            samples_per_shard=args.samples_per_shard,
            images_per_prompt=args.images_per_prompt,
            height=height,
            width=width,
            image_format=args.image_format,
            quality=args.quality,
            lost_nouns=args.lost_nouns,
            masks=masks_of(args),
            negative_prompt=args.negative_prompt,
            keep_hidden=args.keep_hidden,
            max_failed=args.max_failed,
            stage_steps=args.stage_steps,
            stage_guidance=args.stage_guidance,
        ),
    )


def run(args: argparse.Namespace) -> str:
    """Do what the arguments ask for; returns the report.

    Raises:
        Exception: What is wrong with them, or with the run.
    """
    from freeatm_mm import generation
    from freeatm_mm.generation.limits import MAX_WORKERS

    rank, world = args.rank, args.world
    if rank is None or world is None:
        found = worker_of(os.environ)
        rank, world = (found[0] if rank is None else rank, found[1] if world is None else world)
    engine = args.engine or ('process' if args.workers is None else 'workers')
    if engine == 'process' and args.workers is not None:
        raise ValueError('--workers needs --engine workers or ray')
    if engine != 'process' and world > 1:
        raise ValueError(
            f'--engine {engine} starts its own workers: not under torchrun, in a '
            'SLURM array or with --world'
        )
    if args.workers is not None and not 1 <= args.workers <= MAX_WORKERS:
        raise ValueError(
            f'workers must be at least 1 and at most {MAX_WORKERS}, got {args.workers}'
        )
    job = job_of(args, generation.GenerationJob)
    # All that can be known before the weights are loaded.
    plan = job.check(None if args.plan else args.out)
    if args.plan:
        estimate = generation.estimate_run(job.source(plan=plan))
        return estimate.text(args.workers or world)
    workers = 1 if args.workers is None else args.workers
    if args.redo_failed:
        if engine != 'process' or world > 1:
            raise ValueError('--redo-failed runs in one process')
        return str(generation.redo_failed(job.source(plan=plan), args.out))
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
    return str(summary)


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Generate, or estimate what generating takes."""
    args = parse_args(argv)
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
