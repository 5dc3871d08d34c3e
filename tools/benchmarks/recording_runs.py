"""What recording attention costs, ours and others': each against its own plain run.

Every way runs in a process of its own (`recording_case`), so that
another tool can bring the diffusers it needs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ['OTHERS', 'TARGETS', 'benchmark_recording', 'rows_of']

OTHERS = ('daam', 'attention-map-diffusers')
"""Ways that need an environment of their own; ``requirements/benchmark/*.txt`` make it."""

TARGETS = {'time-ours': 1.03, 'time-ours-compiled': 1.05, 'memory-ours': 1.05}
"""The largest ratio, recording to plain, that our recorder should have."""


def benchmark_recording(
    ways: Sequence[str] = ('ours', 'ours-refined', 'keep-all'),
    pythons: Mapping[str, str | Path] | None = None,
    *,
    steps: int = 1,
    repeats: int = 1,
    quick: bool = False,
    side: int = 64,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure ways of getting attention maps, one process after the other.

    Args:
        ways: Names of `recording_case.WAYS`.
        pythons: For ways of `OTHERS` the interpreter of the environment that holds the tool.
        steps: Denoising steps of the one image.
        repeats: Pairs of a plain and a recording run.
        quick: A small network, to see that it runs.
        side: Side of the latents; an eighth of the images'.

    Yields:
        Name of the way, and what its process found.

    Raises:
        ValueError: If a way is unknown or needs an interpreter that isn't given.
        RuntimeError: If a process fails; with its last lines.
    """
    import recording_case  # imports torch

    pythons = dict(pythons or {})
    for way in ways:
        if way not in recording_case.WAYS:
            raise ValueError(f'ways must be of {sorted(recording_case.WAYS)}, got {way!r}')
        if way in OTHERS and way not in pythons:
            raise ValueError(
                f'{way} needs the interpreter of an environment that holds it; '
                f'requirements/benchmark/{way}.txt makes one'
            )
    for way in ways:
        script = Path(recording_case.__file__)
        environment = dict(
            os.environ,
            HF_HUB_OFFLINE='1',
            OMP_NUM_THREADS='1',
            # glibc then gives freed tensors back at once
            MALLOC_MMAP_THRESHOLD_=str(2**16),
        )
        environment.pop('PYTHONPATH', None)
        if way not in OTHERS:
            environment['PYTHONPATH'] = str(script.parents[2])
        command = [
            str(pythons.get(way, sys.executable)),
            '-P',
            str(script),
            way,
            '--steps',
            str(steps),
            '--repeats',
            str(repeats),
            '--side',
            str(side),
        ]
        done = subprocess.run(
            command + ['--quick'] * quick, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f'measuring {way} failed:\n{done.stderr[-2000:]}')
        yield way, json.loads(done.stdout.splitlines()[-1])


def rows_of(way: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result file for one way.

    Args:
        way: Its name.
        found: What its process printed.

    Returns:
        ``time``: processor time of the whole call; the ratio is the median of the pairs', and
        ``quartiles`` their spread. ``memory``: peak of the process, weights included. ``work``: its
        part above the weights. ``identical`` says whether the latents are bit for bit those of the
        plain run.
    """
    plain, recording = (
        {name: statistics.median(run[name] for run in found[side]) for name in found[side][0]}
        for side in ('plain', 'recording')
    )
    ratios = [
        ours['seconds'] / baseline['seconds']
        for baseline, ours in zip(found['plain'], found['recording'])
    ]
    pairs = [
        ('time', plain['seconds'], recording['seconds'], 's of one CPU thread'),
        ('memory', plain['peak'], recording['peak'], 'MiB'),
        ('work', plain['work'], recording['work'], 'MiB'),
    ]
    rows = []
    for name, baseline, ours, unit in pairs:
        case = f'{name}-{way}'
        rows.append(
            {
                'case': case,
                'ratio': statistics.median(ratios) if name == 'time' else ours / baseline,
                'baseline': baseline,
                'ours': ours,
                'unit': unit,
                'identical': bool(found['identical']),
                **({'quartiles': _quartiles(ratios)} if name == 'time' else {}),
                **({'target': TARGETS[case]} if case in TARGETS else {}),
            }
        )
    return rows


def _quartiles(ratios: Sequence[float]) -> list[float]:
    """The middle half of the pairs' ratios, from and to."""
    if len(ratios) < 2:
        return [*ratios, *ratios]
    first, _, last = statistics.quantiles(ratios, n=4, method='inclusive')
    return [round(first, 4), round(last, 4)]
