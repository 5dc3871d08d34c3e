"""Measure where the time of a pretraining of the miniature goes: milliseconds a step, by parts.

    python tools/benchmarks/training_parts.py                       # a few minutes on one core
    python tools/benchmarks/training_parts.py --methods mocov2 --ways plain fast fast-bf16

Whole trainings run on made-up pictures, one way after the other and all ways as often as --turns
says; the first epoch of each is left out. A part's time is what is spent in it and in no part
inside it: processor time of the whole process, which others on the machine change less than the
clock. Times of what an epoch ends with (checkpoints) are spread over its steps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import whole
from freeatm_mm.errors import tool
from freeatm_mm.miniature.layout import config_of, miniature_methods

ROOT = Path(__file__).resolve().parents[2]
WAYS = {
    'plain': (),
    'fast': ('--fast',),
    'bf16': ('--bf16',),
    'fast-bf16': ('--fast', '--bf16'),
}
"""The ways to train, by options of `./run miniature`."""
REST = 'else'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=miniature_methods(),
        default=['mocov2', 'simclr', 'mae'],
        help='to measure (%(default)s)',
    )
    parser.add_argument(
        '--ways', nargs='+', choices=tuple(WAYS), default=list(WAYS), help='to train (%(default)s)'
    )
    parser.add_argument(
        '--batch', type=whole(2, 4096), default=256, help='images of a step (%(default)s)'
    )
    parser.add_argument('--steps', type=whole(1, 1000), default=9, help='of an epoch (%(default)s)')
    parser.add_argument(
        '--epochs', type=whole(3, 1000), default=3, help='of a training (%(default)s)'
    )
    parser.add_argument(
        '--turns', type=whole(1, 100), default=1, help='trainings of each way (%(default)s)'
    )
    parser.add_argument(
        '--without-masks', action='store_true', help='measure the baseline, without masks'
    )
    return parser.parse_args(argv)


class Parts:
    """A clock that knows which part of a training is running.

    Attributes:
        seconds: By the name of each part, without the parts inside it.
        steps: Training steps since the clock was last set to 0.
    """

    def __init__(self) -> None:
        self._running = [REST]
        self.restart()

    def restart(self) -> None:
        """Set the clock to 0."""
        self.seconds: Counter[str] = Counter()
        self.steps = 0
        self._since = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def time(self, owner: Any, method: str, name: str) -> None:
        """Have a method of an object, or a function of a module, timed as a part."""
        function: Callable = getattr(owner, method)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._running.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self._running.pop()

        setattr(owner, method, timed)


def _networks(model: Any) -> Iterator[tuple[Any, str, str]]:
    """What of a model is timed: the object, its method and the part's name."""
    yield model.data_preprocessor, 'forward', 'preprocessing'
    yield model, 'loss', 'loss'
    for module in model.modules():
        if isinstance(module, type(model.backbone)):
            copied = module is not model.backbone
            yield module, 'forward', 'backbone of the average' if copied else 'backbone'
        elif isinstance(module, type(model.neck)):
            yield module, 'forward', 'decoder' if 'Decoder' in type(module).__name__ else 'neck'
        if hasattr(module, 'update_parameters'):
            yield module, 'update_parameters', 'moving average of weights'


def measure(method: str, way: str, store: Path, folder: Path, args: argparse.Namespace) -> Parts:
    """Train once.

    Args:
        method: The method.
        way: One of `WAYS`.
        store: What to train on.
        folder: A new folder for checkpoints and logs.
        args: The command line.

    Returns:
        What its steps after the first epoch took.
    """
    from mmengine.hooks import Hook
    from mmengine.logging import MMLogger

    from freeatm_mm.cli.train import load_config
    from freeatm_mm.cli.train import parse_args as parse_training
    from freeatm_mm.engine.runner import ShortConsoleRunner

    tool_options, changes = WAYS[way], [f'train_cfg.max_epochs={args.epochs}']
    changes += [f'train_dataloader.batch_size={args.batch}', 'train_dataloader.num_workers=0']
    changes += ['train_dataloader.persistent_workers=False', 'train_dataloader.pin_memory=False']
    if '--fast' in tool_options:
        changes.append('train_dataloader.dataset.in_memory=True')
    if args.without_masks:
        changes.append('train_dataloader.dataset.masks=False')
    precision = [option for option in tool_options if option != '--fast']
    place = ['--work-dir', str(folder), '--data-root', str(store)]
    cfg = load_config(
        parse_training(
            [str(ROOT / config_of(method)), *place, *precision, '--cfg-options', *changes]
        )
    )
    cfg.experiment_name, cfg.log_level = folder.name, 'WARNING'
    MMLogger.get_current_instance().setLevel('WARNING')
    runner, parts = ShortConsoleRunner.from_cfg(cfg), Parts()

    class Timer(Hook):
        priority = 'LOWEST'

        def before_train(self, runner: Any) -> None:
            dataset, wrapper = runner.train_dataloader.dataset, runner.optim_wrapper
            for owner, method, name in (
                (dataset, 'draw_batch', 'views and masks'),
                (runner.train_dataloader, 'collate_fn', 'collating'),
                (wrapper, 'backward', 'backward'),
                (wrapper, 'step', 'optimizer'),
                (wrapper, 'zero_grad', 'optimizer'),
                *_networks(runner.model),
            ):
                parts.time(owner, method, name)
            for hook in runner.hooks:
                for stage in ('before', 'after'):
                    for what in ('iter', 'epoch'):
                        parts.time(hook, f'{stage}_train_{what}', f'hook {type(hook).__name__}')

        def before_train_epoch(self, runner: Any) -> None:
            if runner.epoch == 1:
                parts.restart()

        def after_train_iter(self, *_: Any, **__: Any) -> None:
            parts.steps += 1

    runner.register_hook(Timer())
    runner.train()
    return parts


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table for each method."""
    args = parse_args(argv)
    import torch
    from pretraining_cases import Shapes, make_benchmark_store

    import freeatm_mm.openmmlab  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        shapes = Shapes(batch=args.batch * args.steps, image=64, mask=16, loaded=1)
        store = make_benchmark_store(Path(scratch) / 'store', shapes)
        for method in args.methods:
            found: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in args.ways}
            for turn in range(args.turns):
                for way in args.ways:
                    folder = Path(scratch) / f'{method}-{way}-{turn}'
                    parts = measure(method, way, store, folder, args)
                    for name, seconds in parts.seconds.items():
                        found[way][name].append(1e3 * seconds / parts.steps)
                    found[way]['a step'].append(1e3 * parts.seconds.total() / parts.steps)
            print('\n' + table(method, found), flush=True)
    return 0


def table(method: str, found: dict[str, dict[str, list[float]]]) -> str:
    """Write the parts of a method's steps as a table in Markdown.

    Args:
        method: The method.
        found: By way and part the milliseconds a step of each turn; the way's whole under 'a step'.
    """
    times = {
        way: {name: median(each) for name, each in parts.items()} for way, parts in found.items()
    }
    names = {name for parts in times.values() for name in parts}
    largest = {name: max(parts.get(name, 0) for parts in times.values()) for name in names}
    small = {name for name in names if largest[name] < 0.5}
    rows = [f'| {method}, ms of one core | ' + ' | '.join(times) + ' |', '| --- ' * len(times)]
    rows[1] += '| --- |'
    for name in sorted(names - small - {'a step'}, key=lambda name: -largest[name]):
        rows.append(_row(name, [parts.get(name, 0) for parts in times.values()]))
    rest = [sum(parts.get(name, 0) for name in small) for parts in times.values()]
    rows.append(_row(f'{len(small)} parts below 0.5 ms', rest))
    rows.append(_row('a step', [parts['a step'] for parts in times.values()]))
    rows.append(_row('steps a second', [1e3 / parts['a step'] for parts in times.values()], 2))
    return '\n'.join(rows)


def _row(name: str, values: Sequence[float], digits: int = 1) -> str:
    return f'| {name} | ' + ' | '.join(f'{value:.{digits}f}' for value in values) + ' |'


if __name__ == '__main__':
    sys.exit(main())
