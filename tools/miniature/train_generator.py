"""Train the miniature generator on scenes of the training split."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import number, whole
from freeatm_mm.errors import tool
from freeatm_mm.files import atomic_write
from freeatm_mm.miniature.plan import GeneratorPlan


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path, help='folder for the finished pipeline')
    parser.add_argument(
        '--work',
        type=Path,
        default='work_dirs/generator',
        help='folder for scenes, checkpoints and loss curves (%(default)s)',
    )
    parser.add_argument(
        '--sources', help='folder with the unpacked Debian packages, instead of fetching them'
    )
    parser.add_argument('--cache', default='.cache', help='where to unpack them (%(default)s)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda (%(default)s)')
    parser.add_argument('--workers', type=whole(1, 1024), help='processes that compose scenes')
    parser.add_argument('--minutes', type=number(0, 1e6), help='stop at a checkpoint after so long')
    parser.add_argument('--compile', action='store_true', help='use torch.compile (on a GPU)')
    parser.add_argument(
        '--keep',
        nargs='+',
        type=number(0, 1),
        default=[],
        metavar='SHARE',
        help='also save the pipeline as it is after these shares of the latents, such as 0.25 0.5, '
        'in WORK/at-SHARE: generators of several qualities from one training',
    )
    kinds = {int: whole(0, 10**10), float: number(0, 1e9)}
    for field in dataclasses.fields(GeneratorPlan):
        parser.add_argument(
            f'--{field.name.replace("_", "-")}',
            type=kinds.get(type(field.default), str),
            default=field.default,
            help=f'{field.metadata["help"]}{" (%(default)s)" if field.default else ""}',
        )
    args = parser.parse_args(argv)
    named, started = named_options(args, parser, argv), bool(args.start_from)
    vae = ('vae_samples', 'vae_batch_size', 'vae_lr')
    refuse_idle(named, started, 'with --start-from, whose encoder is kept', *vae)
    refuse_idle(named, not started, 'without --start-from', 'decoder_samples')
    refuse_idle(named, not args.decoder_samples, 'without --decoder-samples', 'decoder_lr')
    no_steps = not args.unet_samples
    refuse_idle(named, no_steps, 'with --unet-samples 0', 'unet_batch_size', 'unet_lr')
    return args


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    import numpy as np

    from freeatm_mm.miniature.generator import train_generator
    from freeatm_mm.miniature.sources import fetch_sources
    from freeatm_mm.results.curves import Curve
    from freeatm_mm.results.plots import curve_plot, to_svg

    plan = GeneratorPlan(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(GeneratorPlan)}
    )
    finished = train_generator(
        fetch_sources(args.cache, args.sources),
        args.work,
        args.out,
        plan,
        args.device,
        args.workers,
        args.minutes,
        args.compile,
        args.keep,
    )
    if not finished:
        print('stopped; run the same command to go on')
        return 0
    curves = {}
    for path in sorted(args.work.glob('*_loss.json')):  # no autoencoder's after --start-from
        samples, losses = zip(*json.loads(path.read_text()))
        curves[path.stem.removesuffix('_loss')] = Curve(np.array(samples), np.array(losses))
    with atomic_write(args.out / 'loss.svg') as file:
        file.write(to_svg(curve_plot(curves, xlabel='samples')).encode())
    print(f'saved to {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
