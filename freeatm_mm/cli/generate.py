"""Generate a store from a file of prompts: images, and one attention mask per noun.

    freeatm generate PIPELINE PROMPTS.jsonl OUT --steps 50 --batch-size 8
    freeatm generate --config run.yaml

The same command continues an interrupted or killed run, and ends with the same bytes. To know
what a run will take before it starts, add --plan. To share the work:

    ... --workers 8                       processes here, one per GPU; one that dies is replaced
    torchrun --nproc-per-node 8 -m freeatm_mm generate ...
    sbatch --array=0-63 --requeue ...     a SLURM array of the same command
    ... --rank 3 --world 8                by hand, anywhere that sees the folder
    ... --engine ray --workers 64         actors on a Ray cluster (--ray-address)

All make the same store, byte for byte, on the same kind of machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from freeatm_mm.cli._effects import refuse_idle
from freeatm_mm.cli._generation import (
    add_common_options,
    add_config_option,
    add_engine_options,
    add_mask_options,
    add_redo_option,
    given_masks,
    numbers,
    parse_size,
    parse_with_config,
    print_run,
    refuse_idle_common,
    run_job,
    worker_of,
)
from freeatm_mm.errors import tool

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
    add(
        'prompts',
        nargs='?',
        help='JSON Lines file of prompt records (id, prompt, nouns, source), or its address',
    )
    add('out', nargs='?', help='folder of the store; made if missing')
    add_config_option(parser, 'steps: 30')
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
        help='images per prompt, each with its own seed (default: 1)',
    )
    add('--limit', type=int, metavar='N', help='use the first N prompts only')
    add(
        '--keep-hidden',
        action='store_true',
        help='store images that the safety checker blacked out, marked in their meta, rather than '
        'leave them out',
    )
    add_redo_option(parser, 'generate')
    add(
        '--no-masks',
        action='store_true',
        help='generate images alone, with any text-to-image pipeline',
    )
    add_mask_options(parser, stages=True)
    add(
        '--plan',
        action='store_true',
        help='generate three batches, print shards, bytes and hours of the run, and write nothing',
    )
    add_engine_options(parser)
    args, named = parse_with_config(parser, argv, ('pipeline', 'prompts', 'out'))
    refuse_idle_common(args, named)
    refuse_idle(named, args.no_masks, 'with --no-masks', 'lost_nouns')
    return args


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

    return run_job(job_of(args, generation.GenerationJob), args)


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Generate, or estimate what generating takes."""
    return print_run(parse_args(argv), run)
