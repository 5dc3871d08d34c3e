"""Results that are kept: one JSON file each, and the tables made from it.

The file holds how the numbers came about and one row for each run::

    {"name": "miniature-contrastive", "command": "...", "date": "2024-05-01", "hardware": "...",
     "versions": {"torch": "..."},
     "rows": [{"method": "mocov2", "regime": "synthetic", "masks": true, "seed": 0, "epochs": 40,
               "metrics": {"linear": 0.41, "knn": 0.38}}]}

``masks`` is false for the baseline, true for Free-ATM, or the name of a variant. Benchmarks are
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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from freeatm_mm.files import atomic_write, read_json

__all__ = [
    'add_row',
    'describe_hardware',
    'join_heads',
    'new_results',
    'open_results',
    'package_versions',
    'read_results',
    'validate_results',
    'write_results',
]

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
        ValueError: As `read_results`.
    """
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
        identity = _identity(row)
        if identity in seen:
            raise ValueError(f'{where} repeats row {seen[identity]}: {identity}.')
        seen[identity] = number


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
    validate_results(results)
    head = json.dumps(
        {key: value for key, value in results.items() if key != 'rows'},
        indent=1,
        ensure_ascii=False,
    )
    rows = ',\n  '.join(json.dumps(row, ensure_ascii=False) for row in results['rows'])
    rows = f'[\n  {rows}\n ]' if rows else '[]'
    text = f'{head[:-2]},\n "rows": {rows}\n}}\n'
    with atomic_write(path) as file:
        file.write(text.encode('utf-8'))


def _identity(row: Mapping[str, Any]) -> str:
    """What makes a row the same run as another: everything but what was measured."""
    measured = {'metrics', 'details', 'ratio', 'baseline', 'ours', 'unit', 'target'}
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
