"""Add masks to images that exist: one attention mask per noun, from a generator that looks at them.

    freeatm add-masks SOURCE PIPELINE OUT --batch-size 32
    freeatm add-masks --config run.yaml

SOURCE is a folder of images with captions (metadata.jsonl, or a .txt or .json beside each; or named
by the rows of --captions, such as COCO's captions_train2017.json), a WebDataset (tars), a data set
of Hugging Face on disk (save_to_disk, Parquet), or a store without masks, which may also lie at an
address (s3://, gs://, hf://, https://). Each image is noised as in training, at a few levels, and
the network looks at it once per level: no sampling, no guidance.
OUT becomes a store like those that `freeatm generate` makes, with the images' own bytes.

The same command continues an interrupted or killed run, and ends with the same bytes. The
images are listed first, in OUT.images.jsonl. --plan says what the run will take. To share the work:

    ... --workers 8                       processes here, one per GPU; one that dies is replaced
    torchrun --nproc-per-node 8 -m freeatm_mm add-masks ...
    sbatch --array=0-63 --requeue ...     a SLURM array of the same command
    ... --engine ray --workers 64         actors on a Ray cluster (--ray-address)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from freeatm_mm.cli._generation import (
    add_common_options,
    add_config_option,
    add_engine_options,
    add_mask_options,
    add_redo_option,
    engine_of,
    given_masks,
    numbers,
    parse_with_config,
    print_run,
    refuse_idle_common,
    run_job,
)
from freeatm_mm.cli._numbers import whole
from freeatm_mm.errors import tool

AGAIN = (
    'to look again, where an image can be read by now or in another number format: the same '
    'command with --redo-failed, or --redo-failed --dtype float32'
)
"""What the report advises where images failed."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        epilog=__doc__.split('\n\n', 2)[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        'source',
        nargs='?',
        help='images with captions: a folder, tars, a data set on disk or a store (s3://... too)',
    )
    add(
        'pipeline',
        nargs='?',
        help='folder of a diffusers pipeline, a hub id (owner/name), or a '
        'single file of a checkpoint (.safetensors)',
    )
    add('out', nargs='?', help='folder of the store; made if missing')
    add_config_option(parser, 'levels: [50, 100]')
    add('--captions', metavar='FILE', help='captions that name the images of the folder SOURCE')
    add(
        '--levels',
        type=numbers(','),
        metavar='N,M',
        help='noise levels: timesteps of training, of 1,000 (default: 50,100)',
    )
    add(
        '--size',
        type=whole(8, 16_384),
        metavar='SIDE',
        help='side in pixels of a square with as many pixels as the network sees (default: the '
        "pipeline's)",
    )
    add('--every-caption', action='store_true', help="a sample for each of an image's captions")
    add(
        '--without-nouns',
        choices=('keep', 'skip'),
        default='keep',
        help='images whose caption has no noun: stored without masks, or not (default: keep)',
    )
    add(
        '--all-nouns',
        action='store_true',
        help='also nouns of what nobody can see; those that the source names are always taken',
    )
    add('--batch-size', type=int, default=8, help='images at once (default: 8)')
    add('--seed', type=int, default=0, help='seed of the noise (default: 0)')
    add('--limit', type=int, metavar='N', help='use the first N images only')
    add_common_options(parser)
    add_redo_option(parser, 'look at')
    add_mask_options(parser)
    add(
        '--plan',
        action='store_true',
        help='look at two batches, print shards, bytes and hours of the run, and write no store',
    )
    add_engine_options(parser)
    args, named = parse_with_config(parser, argv, ('source', 'pipeline', 'out'))
    refuse_idle_common(args, named)
    return args


def run(args: argparse.Namespace) -> str:
    """Do what the arguments ask for; returns the report.

    Raises:
        Exception: What is wrong with them, or with the run.
    """
    from freeatm_mm.generation.existing import LEVELS, MaskJob
    from freeatm_mm.generation.listing import list_images

    engine_of(args)  # what is wrong with it is known before the images are listed
    images = list_images(
        args.source,
        args.out,
        captions=args.captions,
        every_caption=args.every_caption,
        without_nouns=args.without_nouns,
        limit=args.limit,
        concrete=not args.all_nouns,
        warn=lambda text: print(text, file=sys.stderr),
    )
    job = MaskJob(
        args.pipeline,
        str(images.path),
        revision=args.revision,
        dtype=args.dtype,
        device=args.device,
        variant=args.variant,
        loras=tuple(args.lora),
        model_config=args.model_config,
        offload=args.offload,
        images=args.source,
        options=dict(
            levels=list(LEVELS) if args.levels is None else args.levels,
            size=args.size,
            batch_size=args.batch_size,
            seed=args.seed,
            samples_per_shard=args.samples_per_shard,
            image_format=args.image_format,
            quality=args.quality,
            lost_nouns=args.lost_nouns,
            masks=given_masks(args) or True,
            max_failed=args.max_failed,
        ),
    )
    report = run_job(job, args, lambda summary: summary.text('given masks', AGAIN))
    return f'{images}\n{report}'


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Add masks, or estimate what it takes."""
    return print_run(parse_args(argv), run)
