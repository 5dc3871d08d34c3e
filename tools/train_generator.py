"""Train the miniature generator on scenes of the training split."""
from __future__ import annotations

import argparse
import dataclasses

from freeatm_mm.miniature.generator import GeneratorPlan, train_generator
from freeatm_mm.miniature.sources import fetch_sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', help='folder for the finished pipeline')
    parser.add_argument('--work', default='work_dirs/generator',
                        help='folder for scenes, checkpoints and loss curves (%(default)s)')
    parser.add_argument('--sources', help='folder with the unpacked Debian packages, instead of '
                        'fetching them')
    parser.add_argument('--cache', default='.cache', help='where to unpack them (%(default)s)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda (%(default)s)')
    parser.add_argument('--workers', type=int, help='processes that compose scenes')
    parser.add_argument('--minutes', type=float, help='stop at a checkpoint after so long')
    parser.add_argument('--compile', action='store_true', help='use torch.compile (on a GPU)')
    for field in dataclasses.fields(GeneratorPlan):
        parser.add_argument(f'--{field.name.replace("_", "-")}', type=type(field.default),
                            default=field.default, help='(%(default)s)')
    args = parser.parse_args()
    plan = GeneratorPlan(**{field.name: getattr(args, field.name)
                            for field in dataclasses.fields(GeneratorPlan)})
    finished = train_generator(fetch_sources(args.cache, args.sources), args.work, args.out, plan,
                               args.device, args.workers, args.minutes, args.compile)
    print(f'saved to {args.out}' if finished else 'stopped; run the same command to go on')


if __name__ == '__main__':
    main()
