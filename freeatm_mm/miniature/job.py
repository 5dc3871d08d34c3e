"""Long jobs made of the project's own tools: each command once, stopped and resumed at will."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from freeatm_mm.errors import InputError, RunError, counted
from freeatm_mm.files import atomic_write, read_json
from freeatm_mm.miniature.layout import config_of, miniature_methods, read_layout
from freeatm_mm.miniature.processes import can_share_imports, run_command, run_with_imports

__all__ = [
    'DryJob',
    'Job',
    'Step',
    'check_same_pictures',
    'choose_samples',
    'chosen_ids',
    'generate_store',
    'keep_settings',
    'make_world',
    'pretrain',
    'store_sha256',
]


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


class Job:
    """Runs commands, each once, and remembers how long each took.

    Several threads may run commands of one job side by side.

    Args:
        out: Folder of the job; what is done is noted in its ``steps.json``, by the command with
            `{out}` in this folder's place: moved or copied, the folder is still done.
        share_imports: Fork the processes of commands with a label from one that has imported what
            pretraining and evaluating need, where the system can (Linux). Results are the same.

    Attributes:
        steps: What was run, or had been run before, in order of ending. Their seconds are by the
            clock; of a command that was stopped and went on, those since its last start.
    """

    def __init__(self, out: Path, share_imports: bool = False) -> None:
        self.path = out / 'steps.json'
        # As a whole path, or the beginning of one, in an argument or an option's value.
        self._out = re.compile(rf'(?<![^=,\[\s]){re.escape(str(out))}(?![^/,\]\s])')
        self.share_imports = share_imports and can_share_imports()
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
        noted = shlex.join(self._out.sub('{out}', argument) for argument in command)
        if line in self.done:  # as older folders have it
            noted = line
        if noted not in self.done:
            if self._failure:  # of another line's: nothing is begun any more
                raise RunError(self._failure)
            print(f'\n== {what}\n{line}', flush=True)
            start = time.monotonic()
            start_process = run_with_imports if label and self.share_imports else run_command
            code = start_process(command[1], command[2:], label)
            if code:
                self._failure = self._failure or (
                    f'"{what}" failed (exit code {code}); the message is above. Once mended, start '
                    'the same command again: it goes on from here'
                )
                raise RunError(self._failure)
            with self._lock:
                self.done[noted] = time.monotonic() - start
                with atomic_write(self.path) as file:
                    file.write(json.dumps(self.done, indent=1).encode())
        with self._lock:
            self.steps.append(Step(what, line, self.done[noted]))

    def run_side_by_side(self, lines: Iterable[Callable[[], None]], jobs: int) -> None:
        """Run lines of work that don't depend on each other.

        Args:
            lines: Each calls `run` for the commands that have to follow each other.
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
    """Says what a `Job` would run; ``count`` is how many commands that is."""

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
    job: Job | DryJob,
    out: str | Path,
    images: int,
    exact: int,
    sources: str | None,
    garments: bool = False,
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
        *(['--garments'] if garments else []),
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


def choose_samples(
    pool: str | Path, images: int, seed: int, out: Path, ids_of: str | Path | None = None
) -> dict[str, Any]:
    """Choose the samples of a store that a seed pretrains on, at random, and write their list.

    The samples of seeds are disjoint as long as the store has enough, whatever seeds are run.

    Args:
        pool: The store.
        images: How many samples.
        seed: The seed.
        out: The list, in JSON, for `indices` of `FreeATMDataset`.
        ids_of: Another store, or the prompts (a .jsonl file) that one would be generated from:
            take the samples with the ids that the seed takes there.

    Returns:
        What the rows of results keep: the store's name and the hash of its settings, how many
        samples, the hash of the list, whether no smaller seed has any of them, and the name of
        what the ids are of, if it isn't the store.

    Raises:
        InputError: If the store has fewer samples or lacks an id, or another list was written
            there.
    """
    from freeatm_mm.store import Store

    store = Store(pool)
    if ids_of:
        wanted, disjoint = _ids_of_seeds(ids_of, images, [seed])
        places = {key: place for place, key in enumerate(store.sample_keys())}
        lacking = [key for key in wanted if key not in places]
        if lacking:
            raise InputError(
                f'{pool} lacks {len(lacking):,} of the {images:,} ids that seed {seed} takes of '
                f'{ids_of}, such as {lacking[0]}'
            )
        chosen = sorted(places[key] for key in wanted)
    else:
        chosen, disjoint = _samples_of_seed(pool, len(store), images, seed)
    text = json.dumps(chosen).encode()
    if out.exists() and out.read_bytes() != text:
        raise InputError(f'{out} lists the samples of another store: choose another --out')
    with atomic_write(out) as file:
        file.write(text)
    return {
        'store': Path(pool).resolve().name,
        'config_sha256': store.manifest['config_sha256'],
        'samples': images,
        'list_sha256': hashlib.sha256(text).hexdigest(),
        'disjoint': disjoint,
        **({'ids_of': Path(ids_of).resolve().name} if ids_of else {}),
    }


def chosen_ids(pool: str | Path, images: int, seeds: int) -> list[str]:
    """Return the ids of the samples that seeds take of a store.

    Args:
        pool: The store, or the prompts (a .jsonl file) that it would be generated from.
        images: How many samples each seed takes.
        seeds: How many seeds, from 0.

    Raises:
        InputError: If the store has fewer samples.
        ValueError: If the file holds no valid prompts.
    """
    return _ids_of_seeds(pool, images, range(seeds))[0]


def _ids_of_seeds(pool: str | Path, images: int, seeds: Iterable[int]) -> tuple[list[str], bool]:
    """The ids that seeds take, in the pool's order, and whether no smaller seed has any of them."""
    if Path(pool).suffix == '.jsonl':
        from freeatm_mm.prompts import read_prompts

        ids = [record.id for record in read_prompts(pool)]
    else:
        from freeatm_mm.store import Store

        ids = list(Store(pool).sample_keys())
    drawn = [_samples_of_seed(pool, len(ids), images, seed) for seed in seeds]
    places = sorted({place for chosen, _ in drawn for place in chosen})
    return [ids[place] for place in places], all(disjoint for _, disjoint in drawn)


def _samples_of_seed(
    pool: str | Path, count: int, images: int, seed: int
) -> tuple[list[int], bool]:
    """Which samples a seed takes of so many, and whether no smaller seed has any of them."""
    import numpy as np

    if images > count:
        raise InputError(f'{pool} has {counted(count, "sample")}, too few for {images}')
    disjoint = (seed + 1) * images <= count
    order = np.random.default_rng(0 if disjoint else [0, seed]).permutation(count)
    start = seed * images if disjoint else 0
    return sorted(order[start : start + images].tolist()), disjoint


def check_same_pictures(
    one: str | Path, two: str | Path, samples: int = 16, same_ids: bool = False
) -> None:
    """Check that two stores hold the same pictures in the same order: their number, and some.

    Args:
        one: A store.
        two: Another one.
        samples: How many pictures to compare, evenly spread.
        same_ids: Pictures of the same id are compared; the second store may hold only some of
            them, in any order.

    Raises:
        InputError: If they don't.
    """
    import numpy as np

    from freeatm_mm.store import Store

    first, second = Store(one), Store(two)
    if len(first) != len(second) and not same_ids:
        raise InputError(
            f'{one} has {counted(len(first), "sample")} and {two} {len(second)}: with the masks of '
            'another store, both must hold the same pictures'
        )
    places = {key: place for place, key in enumerate(first.sample_keys())} if same_ids else {}
    for place in np.linspace(0, len(second) - 1, samples).round().astype(int).tolist():
        theirs = second[place]
        there = places.get(theirs.key) if same_ids else place
        if there is None:
            continue  # no seed takes it: what they take is looked up by id
        ours, other = (np.asarray(each.image.convert('RGB')) for each in (first[there], theirs))
        if not np.array_equal(ours, other):
            raise InputError(
                f'{two}: sample {place} shows another picture than that of {one}: with the masks '
                'of another store, both must hold the same pictures'
            )


def pretrain(
    job: Job | DryJob,
    work_dir: str | Path,
    method: str,
    store: str | Path,
    epochs: int,
    seed: int,
    masks: bool = False,
    options: Iterable[str] = (),
    bfloat16: bool = False,
    in_memory: str = '',
) -> Path:
    """Pretrain, and say which checkpoint that makes.

    Args:
        job: The job.
        work_dir: Folder of the pretraining; its name is the label of what it prints.
        method: One of `freeatm_mm.miniature.layout.miniature_methods`.
        store: What to pretrain on.
        epochs: How many, of methods that see two views of a sample.
        seed: Random seed.
        masks: With or without.
        options: Further ``key=value`` for the config.
        bfloat16: Compute backbones in bfloat16.
        in_memory: The device that keeps the decoded pictures, whose batches are made whole; empty
            for the config's own loading.

    Returns:
        Path of the last epoch's checkpoint.

    Raises:
        InputError: If the folder holds a pretraining of another length.
    """
    layout, name = read_layout(method), Path(work_dir).name
    epochs = layout.epochs(epochs)
    options = [
        f'train_cfg.max_epochs={epochs}',
        f'param_scheduler.{layout.cosine}.T_max={epochs - layout.begin}',
        f'param_scheduler.{layout.cosine}.end={epochs}',
        *([] if masks else ['train_dataloader.dataset.masks=False']),
        *options,
    ]
    if in_memory:
        options += [
            'train_dataloader.dataset.in_memory=True',
            f'train_dataloader.dataset.device={in_memory}',
            'train_dataloader.num_workers=0',
            'train_dataloader.pin_memory=False',
        ]
    _check_length(Path(work_dir), epochs)
    job.run(
        f'Pretrain {name}',
        'tools/train.py',
        config_of(method),
        '--work-dir',
        work_dir,
        '--resume',
        '--seed',
        seed,
        '--data-root',
        store,
        *(['--bf16'] if bfloat16 else []),
        '--cfg-options',
        *options,
        label=name,
    )
    return Path(work_dir) / f'epoch_{epochs}.pth'


def keep_settings(
    out: Path,
    settings: Mapping[str, Any],
    data_setting: Callable[[str], str] = lambda name: '',
) -> None:
    """Refuse a job's folder that was begun with other settings, which resuming would mix.

    Args:
        out: Folder of the job; the settings are kept in its ``settings.json``. Of one that an
            earlier version began, what its commands and ``cfg-options.json`` tell is held to.
        settings: All that decides what is pretrained and isn't in the names of rows, by option;
            those that an earlier call didn't name are added. Files and stores by their sha256.
        data_setting: Given a pretraining's folder, the setting that says what store it is of;
            empty for none.

    Raises:
        InputError: If it was begun with others.
    """
    path = out / 'settings.json'
    before = read_json(path, shape={}) if path.exists() else None
    kept = _past_settings(out, data_setting) if before is None else dict(before)
    for name, value in settings.items():
        if kept.setdefault(name, value) != value:
            raise InputError(
                f'{out} was begun {_tell(name, kept[name])}, not {_tell(name, value)}: choose '
                'another --out'
            )
    if kept != before:
        with atomic_write(path) as file:
            file.write(json.dumps(kept, indent=1).encode())


def _tell(name: str, value: Any) -> str:
    """A setting in words."""
    if value is True:
        return f'with {name}'
    if not value:
        return f'without {name}'
    if isinstance(value, list):
        return f'with {name} {" ".join(value)}'
    return f'with {name} {value}' if isinstance(value, int) else f'with {name} of sha256 {value}'


def store_sha256(path: str | Path) -> str:
    """Return a digest of a store's manifest, which has its settings and its shards' checksums.

    Raises:
        StoreError: If it can't be opened.
    """
    from freeatm_mm.store import Store

    return hashlib.sha256(json.dumps(Store(path).manifest, sort_keys=True).encode()).hexdigest()


def _past_settings(out: Path, data_setting: Callable[[str], str]) -> dict[str, Any]:
    """What can be told of a folder that an earlier version began; of a new one nothing."""
    steps, options = out / 'steps.json', out / 'cfg-options.json'
    known: dict[str, Any] = {}
    if options.exists():
        known['--cfg-options'] = sorted(json.loads(options.read_text()))
    elif steps.exists():
        known['--cfg-options'] = []
    configs = {str(config_of(method)) for method in miniature_methods()}
    for line in json.loads(steps.read_text()) if steps.exists() else ():
        tool, *words = (word.replace('{out}', str(out)) for word in shlex.split(line)[1:])
        following = dict(zip(words, words[1:]))
        if tool == 'tools/miniature/make_world.py' and '--prompts' in words:
            known.setdefault('--images', int(following['--prompts']))
        elif tool == 'tools/train.py' and words[0] in configs:
            known.setdefault('--bf16', '--bf16' in words)
            known.setdefault('--fast', 'train_dataloader.dataset.in_memory=True' in words)
            store, setting = following['--data-root'], data_setting(following['--work-dir'])
            if setting and store in (f'{out}/synthetic', f'{out}/world/exact'):  # made by the job
                known.setdefault(setting, None)
            elif setting and setting not in known:
                with suppress(InputError, OSError):  # it may be there no more
                    known[setting] = store_sha256(store)
    return known


def _check_length(work_dir: Path, epochs: int) -> None:
    """Refuse a folder whose pretraining has another length, which resuming would mix.

    mmengine takes schedules from the checkpoint: the further epochs would be trained at the rate
    that the first ones ended with.
    """
    for dumped in work_dir.glob('*.py'):  # the whole config, as mmengine leaves it there
        match = re.search(r'^train_cfg = dict\([^)]*\bmax_epochs=(\d+)', dumped.read_text(), re.M)
        if match and int(match[1]) != epochs:
            raise InputError(
                f'{work_dir} holds a pretraining of {counted(int(match[1]), "epoch")}, not of '
                f'{epochs}: choose another --out, or delete that folder'
            )
