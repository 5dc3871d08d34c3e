"""Long jobs made of the project's own tools: each command once, stopped and resumed at will."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from freeatm_mm.errors import InputError, RunError
from freeatm_mm.files import atomic_write

__all__ = ['METHODS', 'DryJob', 'Job', 'Method', 'Step', 'generate_store', 'make_world', 'pretrain']


class Step(NamedTuple):
    """One step of a job.

    Attributes:
        what: In words, such as 'Generate 5,000 images'.
        command: What was typed.
        seconds: How long it took.
    """

    what: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Method:
    """What a long job has to know of a pretraining's config in ``configs/miniature``.

    Attributes:
        views: Of each sample; methods that see one view train for twice the epochs.
        cosine: Place of the cosine among the schedule's parts.
        begin: Epoch that the cosine begins at.
        packing: Place of the transform that packs masks in the pipeline.
    """

    views: int
    cosine: int
    begin: int
    packing: int

    def epochs(self, epochs: int) -> int:
        """Epochs of this method that show as many views as so many epochs of two views."""
        return epochs * 2 // self.views


METHODS: dict[str, Method] = {
    'simclr': Method(2, 1, 2, 2),
    'mocov2': Method(2, 0, 0, 2),
    'mae': Method(1, 1, 2, 3),
}
"""The methods by the names of their configs."""


class Job:
    """Runs commands, each once, and remembers how long each took.

    Several threads may run commands of one job side by side.

    Args:
        out: Folder of the job; what is done is noted in its ``steps.json``.

    Attributes:
        steps: What was run, or had been run before, in order of ending. Their seconds are by the
            clock; of a command that was stopped and went on, those since its last start.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / 'steps.json'
        self.done = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.steps: list[Step] = []
        self._lock = threading.Lock()
        self._failure = ''

    def run(self, what: str, tool: str | Path, *arguments: object, label: str = '') -> None:
        """Run a tool, unless this very command has ended well before; stop if it fails.

        Args:
            what: What it does, for the reader.
            tool: The tool.
            arguments: Its command line.
            label: Put before each line that it prints, where several run side by side.

        Raises:
            RunError: If the tool fails, or another one has failed side by side.
        """
        command = ['python', *map(str, (tool, *arguments))]
        line = shlex.join(command)
        if line not in self.done:
            if self._failure:  # of another line's: nothing is begun any more
                raise RunError(self._failure)
            print(f'\n== {what}\n{line}', flush=True)
            start = time.monotonic()
            code = _run([sys.executable, *command[1:]], label)
            if code:
                self._failure = self._failure or (
                    f'"{what}" failed (exit code {code}); the message is above. Once mended, start '
                    'the same command again: it goes on from here'
                )
                raise RunError(self._failure)
            with self._lock:
                self.done[line] = time.monotonic() - start
                with atomic_write(self.path) as file:
                    file.write(json.dumps(self.done, indent=1).encode())
        with self._lock:
            self.steps.append(Step(what, line, self.done[line]))

    def run_side_by_side(self, lines: Iterable[Callable[[], None]], jobs: int) -> None:
        """Run lines of work that don't depend on each other.

        Args:
            lines: Each calls :meth:`run` for the commands that have to follow each other.
            jobs: How many lines at a time, in the order given.

        Raises:
            RunError: If a tool fails; what already runs ends first, nothing else is begun.
        """
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(line) for line in lines]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


class DryJob:
    """Says what a :class:`Job` would run; ``count`` is how many commands that is."""

    def __init__(self) -> None:
        self.count = 0

    def run(self, what: str, tool: str | Path, *arguments: object, label: str = '') -> None:
        """Print it."""
        self.count += 1
        print(f'{what}: {shlex.join(["python", *map(str, (tool, *arguments))])}')

    def run_side_by_side(self, lines: Iterable[Callable[[], None]], jobs: int) -> None:
        """Print them in order."""
        for line in lines:
            line()


def make_world(
    job: Job | DryJob, out: str | Path, images: int, exact: int, sources: str | None
) -> None:
    """Make the world of a long job: prompts for so many images, and composed scenes as exact."""
    job.run(
        'Make the world',
        'tools/miniature/make_world.py',
        out,
        '--prompts',
        images,
        '--exact',
        exact,
        *(['--sources', sources] if sources else []),
    )


def generate_store(
    job: Job | DryJob,
    generator: str,
    world: str | Path,
    out: str | Path,
    steps: int,
    guidance: float,
) -> None:
    """Have a generator sample the world's prompts with masks."""
    job.run(
        'Generate images with masks',
        'tools/generate.py',
        generator,
        f'{world}/prompts.jsonl',
        out,
        '--steps',
        steps,
        '--guidance',
        guidance,
        '--batch-size',
        50,
        '--samples-per-shard',
        500,
        '--image-format',
        'png',
        '--dtype',
        'float32',
    )


def pretrain(
    job: Job | DryJob,
    work_dir: str | Path,
    method: str,
    store: str | Path,
    epochs: int,
    seed: int,
    masks: bool | str = False,
    options: Iterable[str] = (),
    config: str | None = None,
) -> Path:
    """Pretrain, and say which checkpoint that makes.

    Args:
        job: The job.
        work_dir: Folder of the pretraining; its name is the label of what it prints.
        method: One of :data:`METHODS`.
        store: What to pretrain on.
        epochs: How many, of methods that see two views of a sample.
        seed: Random seed.
        masks: Without, with, or ``'normalized'``: stretched to [0, 1].
        options: Further ``key=value`` for the config.
        config: Below ``configs/miniature``; default: the method's, with or without masks.

    Returns:
        Path of the last epoch's checkpoint.

    Raises:
        InputError: If the folder holds a pretraining of another length.
    """
    layout, name = METHODS[method], Path(work_dir).name
    epochs = layout.epochs(epochs)
    config = config or (f'{method}_freeatm.py' if masks else f'baselines/{method}.py')
    options = [
        f'train_dataloader.dataset.store={store}',
        f'train_cfg.max_epochs={epochs}',
        f'param_scheduler.{layout.cosine}.T_max={epochs - layout.begin}',
        f'param_scheduler.{layout.cosine}.end={epochs}',
        *options,
    ]
    _check_length(Path(work_dir), epochs)
    if masks == 'normalized':
        options.append(f'train_dataloader.dataset.pipeline.{layout.packing}.mask_values=normalized')
    job.run(
        f'Pretrain {name}',
        'tools/train.py',
        f'configs/miniature/{config}',
        '--work-dir',
        work_dir,
        '--resume',
        '--seed',
        seed,
        '--cfg-options',
        *options,
        label=name,
    )
    return Path(work_dir) / f'epoch_{epochs}.pth'


def _check_length(work_dir: Path, epochs: int) -> None:
    """Refuse a folder whose pretraining has another length, which resuming would mix.

    mmengine takes schedules from the checkpoint: the further epochs would be trained at the rate
    that the first ones ended with.
    """
    for dumped in work_dir.glob('*.py'):  # the whole config, as mmengine leaves it there
        match = re.search(r'^train_cfg = dict\([^)]*\bmax_epochs=(\d+)', dumped.read_text(), re.M)
        if match and int(match[1]) != epochs:
            raise InputError(
                f'{work_dir} holds a pretraining of {match[1]} epochs, not of {epochs}: '
                'choose another --out, or delete that folder'
            )


def _run(command: list[str], label: str) -> int:
    """Run a command to its end and return its exit code."""
    if not label:
        return subprocess.run(command, check=False).returncode
    environment = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        env=environment,
    ) as process:
        for line in process.stdout:
            print(f'[{label}] {line}', end='', flush=True)
    return process.returncode
