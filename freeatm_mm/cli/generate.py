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
import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._generation import (
    add_common_options,
    add_engine_options,
    add_mask_options,
    engine_of,
    given_masks,
    numbers,
    parse_size,
    print_run,
    refuse_idle_common,
    run_job,
    worker_of,
)
from freeatm_mm.errors import InputError, tool

__all__ = ['main', 'masks_of', 'parse_args', 'parse_size', 'worker_of']

if TYPE_CHECKING:
    from freeatm_mm.generation import GenerationJob


def scales(text: str) -> list[float]:
    """'4,9' as guidance scales."""
    return [float(part) for part in text.split(',')]


def masks_of(args: argparse.Namespace) -> bool | dict[str, Any]:
    """Which masks the arguments ask for.

    Raises:
        ValueError: If some are asked for, and none.
    """
    given = given_masks(args)
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
    add(
        'pipeline',
        nargs='?',
        help='folder of a diffusers pipeline, a hub id (owner/name), or a '
        'single file of a checkpoint (.safetensors)',
    )
    add('prompts', nargs='?', help='JSON Lines file of prompt records: id, prompt, nouns, source')
    add('out', nargs='?', help='folder of the store; made if missing')
    add(
        '--config',
        metavar='FILE',
        help='a YAML file with any of these, by their long names (steps: 30, pipeline: ..., lora: '
        '[a.safetensors]); what the command line says takes its place',
    )
    add(
        '--stage',
        action='append',
        default=[],
        metavar='PIPELINE',
        help='a further stage of DeepFloyd IF, folder or hub id (owner/name@revision); once for '
        'stage II, once more for stage III',
    )
    add('--steps', type=int, help="denoising steps (default: 50; a few-step model's own)")
    add(
        '--guidance',
        type=float,
        help="guidance scale; 1: off (default: 7.5; a few-step model's own)",
    )
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
    add('--batch-size', type=int, default=8, help='images generated at once (default: 8)')
    add('--seed', type=int, default=0, help='seed of the run (default: 0)')
    add('--size', type=parse_size, metavar='HxW', help="pixels (default: the pipeline's)")
    add('--scheduler', metavar='CLASS', help="a diffusers scheduler instead of the pipeline's")
    add_common_options(parser)
    add(
        '--images-per-prompt',
        type=int,
        default=1,
        metavar='N',
        help='each of another seed (default: 1)',
    )
    add('--limit', type=int, metavar='N', help='use the first N prompts only')
    add(
        '--keep-hidden',
        action='store_true',
        help='store images that the safety checker blacked out, marked in their meta, rather than '
        'leave them out',
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
    add_mask_options(parser, stages=True)
    add(
        '--plan',
        action='store_true',
        help='generate two batches, print shards, bytes and hours of the run, and write nothing',
    )
    add_engine_options(parser)
    args, held = parser.parse_args(argv), {}
    if args.config:
        held = read_config(parser, args.config)
        # argparse would add to a list of the file what the command line names in its place.
        several = {name for name in held if isinstance(parser.get_default(name), list)}
        for name in several & {name for name, value in vars(args).items() if value}:
            del held[name]
        parser.set_defaults(**held)
        args = parser.parse_args(argv)
    missing = [name for name in ('pipeline', 'prompts', 'out') if getattr(args, name) is None]
    if missing:
        parser.error(f'the following arguments are required: {", ".join(missing)}')
    named = named_options(args, parser, argv) | set(held)
    refuse_idle_common(args, named)
    refuse_idle(named, args.no_masks, 'with --no-masks', 'lost_nouns')
    refuse_idle(named, args.plan, 'with --plan, which estimates the whole run', 'redo_failed')
    refuse_idle(named, args.redo_failed, 'with --redo-failed', 'wait', 'no_take_over', 'max_failed')
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
        model_config=args.model_config,
        offload=args.offload,
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

    job = job_of(args, generation.GenerationJob)
    if args.redo_failed:
        engine, _, world = engine_of(args)
        if engine != 'process' or world > 1:
            raise ValueError('--redo-failed runs in one process')
        return str(generation.redo_failed(job.source(plan=job.check(args.out)), args.out))
    return run_job(job, args)


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Generate, or estimate what generating takes."""
    return print_run(parse_args(argv), run)
