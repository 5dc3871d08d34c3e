"""Training curves from the logs that mmengine keeps."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from freeatm_mm.errors import counted

__all__ = ['Curve', 'read_curve']


class Curve(NamedTuple):
    """A quantity over training: ``steps`` (n,) integers, rising, and ``values`` (n,) floats."""

    steps: np.ndarray
    values: np.ndarray


def read_curve(work_dir: str | Path, key: str = 'loss') -> Curve:
    """Read one logged quantity of a training, put together over its interruptions.

    mmengine writes ``<work_dir>/<time>/vis_data/scalars.json``, one JSON object a line, and a new
    ``<time>`` folder whenever a run is resumed. A later run replaces what an earlier one had
    logged from the step on at which the later one starts to log.

    Args:
        work_dir: What was given to training as ``--work-dir``; a single log file does too.
        key: Such as ``loss``, ``lr`` or ``loss_recon``.

    Raises:
        FileNotFoundError: If there is no log.
        ValueError: If no line of the logs has the key.
    """
    work_dir = Path(work_dir)
    logs = [work_dir] if work_dir.is_file() else sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'No */vis_data/scalars.json under {work_dir}: is it the --work-dir of a training?'
        )
    points: dict[int, float] = {}
    names: set[str] = set()
    for log in logs:
        found, broken = {}, 0
        for line in log.read_text(encoding='utf-8').splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                broken += 1  # a killed run leaves half a line
                continue
            names.update(entry)
            if key in entry and 'step' in entry and math.isfinite(entry[key]):
                found[entry['step']] = entry[key]
        if broken:
            warnings.warn(f'{log}: {counted(broken, "line")} left out: no JSON.', stacklevel=2)
        if found:
            first = min(found)
            points = {step: value for step, value in points.items() if step < first} | found
    if not points:
        raise ValueError(f'{work_dir}: no log line has {key!r}; there are {sorted(names)}.')
    steps = sorted(points)
    return Curve(np.array(steps), np.array([points[step] for step in steps]))
