"""Results that are kept: one JSON file each, and the tables made from it.

The file holds how the numbers came about and one row for each run::

    {"name": "miniature-contrastive", "command": "...", "date": "2024-05-01", "hardware": "...",
     "versions": {"torch": "..."},
     "rows": [{"method": "mocov2", "regime": "synthetic", "masks": true, "seed": 0, "epochs": 40,
               "metrics": {"linear": 0.41, "knn": 0.38}}]}

``masks`` is false for the baseline, true for Free-ATM, or the name of a variant. Where metrics were
measured otherwise than by their configs, ``options`` says how, such as
``{"box_ap": ["--amp", "train_cfg.max_epochs=1"]}``. Benchmarks are
kept the same way, their rows being
``{"case": "record-sd15-512", "ratio": 1.03, "baseline": 2.10, "ours": 2.16, "unit": "s"}``, where
it is set with the ``"target"`` that the ratio should not exceed.
Metrics are shares in [0, 1] unless their name says otherwise, higher being better.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from freeatm_mm.errors import InputError
from freeatm_mm.files import atomic_write, check_target, read_json

__all__ = [
    'add_row',
    'describe_hardware',
    'join_heads',
    'merge_row',
    'new_results',
    'open_results',
    'package_versions',
    'read_results',
    'update_results',
    'validate_results',
    'write_results',
]

_TRIES = 50  # to write a file that others write without its lock
_HEADER = ('name', 'command', 'date', 'hardware', 'versions', 'rows')
_RUN_KEYS = ('method', 'regime', 'masks', 'seed', 'epochs', 'metrics')
_BENCHMARK_KEYS = ('case', 'ratio', 'baseline', 'ours', 'unit')
_PACKAGES = (
    'torch',
    'torchvision',
    'numpy',
    'mmengine',
    'onedl-mmengine',
    'mmcv',
    'onedl-mmcv',
    'mmpretrain',
    'onedl-mmpretrain',
    'mmdet',
    'onedl-mmdetection',
    'mmsegmentation',
    'onedl-mmsegmentation',
    'diffusers',
    'transformers',
    'salesforce-lavis',
)


def package_versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Versions of the packages that decide a result, those installed; and Python's own."""
    versions = {'python': platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_hardware() -> str:
    """Processor, usable cores and memory in one line, with the GPU where torch sees one."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                name = line.split(':', 1)[1].strip()
                break
    try:
        cores = len(os.sched_getaffinity(0))
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    except (AttributeError, ValueError, OSError):  # not Linux
        return f'{name}, {os.cpu_count()} cores'
    parts = [name, f'{cores} cores', f'{memory:.0f} GiB']
    try:
        import torch

        if torch.cuda.is_available():
            parts.append(torch.cuda.get_device_name())
    except ImportError:
        pass
    return ', '.join(parts)


def new_results(name: str, command: str) -> dict[str, Any]:
    """An empty result file's content for this machine, these versions, today.

    Args:
        name: What was measured; also the file's stem.
        command: The command that makes the rows again.
    """
    return {
        'name': name,
        'command': command,
        'date': datetime.date.today().isoformat(),
        'hardware': describe_hardware(),
        'versions': package_versions(),
        'rows': [],
    }


def open_results(path: str | Path, name: str, command: str) -> dict[str, Any]:
    """Read a result file, or begin one where there is none.

    Args:
        path: The file.
        name: As of `new_results`, for a new one.
        command: As there.

    Raises:
        InputError: If it can't be written either: it is an address or a folder.
        ValueError: As `read_results`.
    """
    check_target(path)
    return read_results(path) if Path(path).exists() else new_results(name, command)


def validate_results(results: Any, source: str = 'results') -> None:
    """Check a result file's content.

    Args:
        results: What ``json.load`` returned.
        source: How to call it in an error.

    Raises:
        ValueError: Naming the key or row that is missing or wrong.
    """
    if not isinstance(results, dict):
        raise ValueError(
            f'{source}: a result file holds one JSON object, not {type(results).__name__}.'
        )
    missing = [key for key in _HEADER if key not in results]
    if missing:
        raise ValueError(f'{source}: {missing} missing; a result file needs {list(_HEADER)}.')
    if not isinstance(results['rows'], list):
        raise ValueError(f'{source}: rows must be a list.')
    seen: dict[str, int] = {}
    for number, row in enumerate(results['rows']):
        where = f'{source}: row {number}'
        if not isinstance(row, dict):
            raise ValueError(f'{where} must be a JSON object.')
        benchmark = 'case' in row
        needed = _BENCHMARK_KEYS if benchmark else _RUN_KEYS
        missing = [key for key in needed if key not in row]
        if missing:
            raise ValueError(f'{where} lacks {missing}.')
        numbers = (
            {key: row[key] for key in ('ratio', 'baseline', 'ours')}
            if benchmark
            else row['metrics']
        )
        if not isinstance(numbers, dict):
            raise ValueError(f'{where}: metrics must be an object of numbers.')
        for key, value in numbers.items():
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not math.isfinite(value)
            ):
                raise ValueError(f'{where}: {key} must be a finite number, got {value!r}.')
        if not benchmark and not isinstance(row['masks'], (bool, str)):
            raise ValueError(f'{where}: masks must be false, true or the name of a variant.')
        if not benchmark and not _are_options(row.get('options', {})):
            raise ValueError(f'{where}: options must be an object of lists of words.')
        identity = _identity(row)
        if identity in seen:
            raise ValueError(f'{where} repeats row {seen[identity]}: {identity}.')
        seen[identity] = number


def _are_options(options: Any) -> bool:
    return isinstance(options, dict) and all(
        isinstance(words, list) and all(isinstance(word, str) for word in words)
        for words in options.values()
    )


def read_results(path: str | Path) -> dict[str, Any]:
    """Read and check a result file.

    Raises:
        InputError: If it can't be read or is not JSON.
        ValueError: If it is not a result file, naming what is wrong.
        FileNotFoundError: If there is no such file.
    """
    results = read_json(path)
    validate_results(results, str(path))
    return results


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Check a result file's content and write it atomically, one row a line.

    Raises:
        ValueError: If the content is not a result file's; nothing is written then.
    """
    content = _encode(results)
    with atomic_write(path) as file:
        file.write(content)


def update_results(
    path: str | Path, change: Callable[[dict[str, Any]], None], name: str, command: str
) -> dict[str, Any]:
    """Change a result file, or begin one, while others that change it as well wait.

    What others write all the same, as where the file system has no locks, is noticed, and the
    change made again with it.

    Args:
        path: The file; its folder is made if missing.
        change: Changes the content in place: what is in the file then, of all that have written it.
        name: As of `new_results`, for a new one.
        command: As there.

    Returns:
        The content that was written.

    Raises:
        InputError: As `open_results`, or if others keep getting in the way.
        ValueError: If the content is not a result file's; nothing is written then.
    """
    from freeatm_mm.store.locking import hold  # here, as reading results needs no Pillow

    path = Path(path)
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path):
        for _ in range(_TRIES):
            before = _state(path)
            results = open_results(path, name, command)
            change(results)
            content = _encode(results)
            try:
                with atomic_write(path) as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # the file is replaced right after this look at it
                    if _state(path) != before:
                        raise _Changed
            except _Changed:
                time.sleep(random.SystemRandom().uniform(0, 0.1))
            else:
                return results
    raise InputError(f'{path} is written again and again by other processes: name another file')


class _Changed(Exception):
    """Another process has written the file that is about to be replaced."""


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes with a file's content; `None` if there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _encode(results: Mapping[str, Any]) -> bytes:
    validate_results(results)
    head = json.dumps(
        {key: value for key, value in results.items() if key != 'rows'},
        indent=1,
        ensure_ascii=False,
    )
    rows = ',\n  '.join(json.dumps(row, ensure_ascii=False) for row in results['rows'])
    rows = f'[\n  {rows}\n ]' if rows else '[]'
    return f'{head[:-2]},\n "rows": {rows}\n}}\n'.encode()


def _identity(row: Mapping[str, Any]) -> str:
    """What makes a row the same run as another: everything but what was measured."""
    measured = {'metrics', 'options', 'details', 'ratio', 'baseline', 'ours', 'unit', 'target'}
    return json.dumps({key: row[key] for key in sorted(row) if key not in measured})


def add_row(results: dict[str, Any], row: Mapping[str, Any]) -> None:
    """Add a row in place; a row of the same run (method, masks, seed, ...) is replaced.

    Raises:
        ValueError: If the row is not complete.
    """
    identity = _identity(row)
    rows = [old for old in results['rows'] if _identity(old) != identity] + [dict(row)]
    validate_results({**results, 'rows': rows})
    results['rows'] = rows


def merge_row(results: dict[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Add a row in place as `add_row` does, with what an earlier one of the same weights has more.

    Rows say which weights they are of by ``weights_sha256`` in their details; one that doesn't is
    taken for one of the same, and the merged row then doesn't, either.

    Returns:
        The metrics that are lost, as they were measured on other weights.

    Raises:
        ValueError: If the row is not complete.
    """
    identity = _identity(row)
    earlier = next((old for old in results['rows'] if _identity(old) == identity), None)
    if earlier is None:
        add_row(results, row)
        return []
    old, new = earlier.get('details', {}), row.get('details', {})
    more = [name for name in earlier['metrics'] if name not in row['metrics']]
    both = [details.get('weights_sha256') for details in (old, new)]
    if not more or (all(both) and both[0] != both[1]):
        add_row(results, row)
        return more
    merged = {**row, 'metrics': {**earlier['metrics'], **row['metrics']}}
    options = {name: words for name, words in earlier.get('options', {}).items() if name in more}
    if options:
        merged['options'] = {**options, **row.get('options', {})}
    if old or new:
        seconds = {**old.get('seconds', {}), **new.get('seconds', {})}
        merged['details'] = details = {**old, **new, 'seconds': seconds}
        if not all(both):
            details.pop('weights_sha256', None)
    add_row(results, merged)
    return []


def join_heads(row: dict[str, Any], heads: Sequence[Mapping[str, float]]) -> None:
    """Add to a row, in place, the figures of heads that were trained on its pretraining.

    Its metrics get their mean; of several, `details` keeps each, too, in their order.

    Args:
        row: The row.
        heads: The metrics of each head; heads may lack some.
    """
    for name in dict.fromkeys(name for head in heads for name in head):
        values = [head[name] for head in heads if name in head]
        row['metrics'][name] = sum(values) / len(values)
        if len(values) > 1:
            row.setdefault('details', {}).setdefault('heads', {})[name] = values
