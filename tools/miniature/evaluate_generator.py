"""Evaluate the miniature generator: does it generate the nouns, and are its masks where they are?

    python tools/miniature/evaluate_generator.py weights/miniature-generator

Writes `miniature-generator.json` (all figures) and `miniature-generator.md` into the folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import number, whole
from freeatm_mm.cli._scoring import add_folder_options, portable_command, write_report
from freeatm_mm.errors import tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('generator', help='folder of the pipeline')
    parser.add_argument(
        '--work',
        type=Path,
        default=Path('work_dirs/evaluation'),
        help='folder of what is trained and generated for it (%(default)s)',
    )
    parser.add_argument(
        '--images', type=whole(1, 10**7), default=1000, help='to generate (%(default)s)'
    )
    parser.add_argument(
        '--classifier-scenes',
        '--judge-scenes',
        type=whole(1, 10**7),
        default=30000,
        help='real scenes that the classifier learns from (%(default)s)',
    )
    parser.add_argument(
        '--classifier-epochs',
        '--judge-epochs',
        type=whole(0, 10**6),
        default=7,
        help='of the classifier (%(default)s)',
    )
    parser.add_argument(
        '--mask-scenes',
        type=whole(1, 10**7),
        default=500,
        help='scenes to score masks on (%(default)s)',
    )
    parser.add_argument(
        '--steps', type=whole(1, 10_000), default=12, help='denoising steps (%(default)s)'
    )
    parser.add_argument(
        '--guidance', type=number(-1000, 1000), default=5.0, help='guidance scale (%(default)s)'
    )
    add_folder_options(parser)
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Train the classifier, let the generator sample, evaluate both, and write the results."""
    args = parse_args(argv)
    from freeatm_mm.attention.overlay import contact_sheet
    from freeatm_mm.generation import generate, load_pipeline
    from freeatm_mm.miniature.compose import compose_scenes
    from freeatm_mm.miniature.evaluation import (
        NounClassifier,
        evaluate_reconstructions,
        evaluate_scenes,
        evaluate_store,
        masks_on_noised_scenes,
        trained,
    )
    from freeatm_mm.miniature.report import generator_report
    from freeatm_mm.miniature.scenes import sample_prompt
    from freeatm_mm.miniature.sources import fetch_sources
    from freeatm_mm.results import new_results
    from freeatm_mm.store import Store

    sources = fetch_sources(args.cache, args.sources)
    seen = list(compose_scenes(sources, 'val', args.mask_scenes))
    unseen = list(compose_scenes(sources, 'test', args.mask_scenes))
    classifier = trained(
        NounClassifier(),
        args.work / f'classifier-{args.classifier_scenes}x{args.classifier_epochs}.safetensors',
        lambda: compose_scenes(sources, 'train', args.classifier_scenes, seed=2),
        args.classifier_epochs,
    )
    loaded = load_pipeline(args.generator)
    # Names seed prompts and images: these are those of the figures in docs/results.
    prompts = [sample_prompt(f'judge-{number:05d}', 0) for number in range(args.images)]
    images = args.work / f'images-{loaded.revision[-16:]}-{args.steps}-{args.guidance:g}'
    print(
        generate(
            loaded.pipe,
            prompts,
            images,
            steps=args.steps,
            batch_size=50,
            guidance=args.guidance,
            image_format='png',
            samples_per_shard=500,
            name=loaded.name,
            revision=loaded.revision,
        )
    )
    command = portable_command('tools/miniature/evaluate_generator.py', args, argv)
    results = new_results('miniature-generator', command)
    results |= {
        'images': args.images,
        'steps': args.steps,
        'guidance': args.guidance,
        'generated': evaluate_store(classifier, images),
        'reconstructed': evaluate_reconstructions(classifier, loaded.pipe, seen),
        'real': evaluate_scenes(classifier, seen),
        'masks': masks_on_noised_scenes(loaded.pipe, seen),
        'masks_unseen_objects': masks_on_noised_scenes(loaded.pipe, unseen),
    }
    del results['rows']
    write_report(args.out, 'miniature-generator', results, generator_report(results))
    sheet = contact_sheet(islice(iter(Store(images)), 24), columns=3)
    sheet.save(args.out / 'miniature-generator.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
