"""What recording attention costs, ours and others': each against its own plain run.

Every way runs in a process of its own (`recording_case`), so that
another tool can bring the diffusers it needs.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ['OTHERS', 'TARGETS', 'benchmark_recording', 'rows_of']

OTHERS = ('daam', 'attention-map-diffusers')
"""Ways that need an environment of their own; ``requirements/benchmark/*.txt`` make it."""

TARGETS = {
    'time-ours': 1.03,
    'instructions-ours': 1.03,
    'time-ours-compiled': 1.05,
    'memory-ours': 1.05,
}
"""The largest ratio, recording to plain, that our recorder should have."""


def benchmark_recording(
    ways: Sequence[str] = ('ours', 'ours-refined', 'keep-all'),
    pythons: Mapping[str, str | Path] | None = None,
    *,
    steps: int = 1,
    repeats: int = 1,
    quick: bool = False,
    side: int = 64,
    narrower: int = 1,
    count_instructions: bool = False,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure ways of getting attention maps, one process after the other.

    Args:
        ways: Names of `recording_case.WAYS`.
        pythons: For ways of `OTHERS` the interpreter of the environment that holds the tool.
        steps: Denoising steps of the one image.
        repeats: Pairs of a plain and a recording run.
        quick: A small network, to see that it runs.
        side: Side of the latents; an eighth of the images'.
        narrower: What the network's channels are divided by.
        count_instructions: Count them, by valgrind's callgrind, which takes fifty times as long;
            time and memory then say nothing. What other work does to the machine doesn't change
            them; time in the kernel isn't in them.

    Yields:
        Name of the way, and what its process found.

    Raises:
        ValueError: If a way is unknown or needs an interpreter that isn't given, or instructions
            are to be counted without valgrind.
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
    if count_instructions and shutil.which('callgrind_control') is None:
        raise ValueError('counting instructions needs valgrind (apt-get install valgrind)')
    for way in ways:
        python = str(pythons.get(way, sys.executable))
        options = ['--steps', str(steps), '--side', str(side), '--narrower', str(narrower)]
        options += ['--quick'] * quick
        if count_instructions:
            yield way, _counted(way, python, [*options, '--repeats', str(repeats)])
            continue
        found = _measured(way, [python], [*options, '--repeats', str(repeats)])
        # glibc gives freed tensors back at once, which memory is measured with, and time without:
        # pages would be made anew for every tensor.
        exact = {'MALLOC_MMAP_THRESHOLD_': str(2**16)}
        memory = _measured(way, [python], [*options, '--repeats', '1'], exact)
        for name in ('plain', 'recording'):
            (seen,) = memory[name]
            found[name] = [
                run | {'peak': seen['peak'], 'work': seen['work']} for run in found[name]
            ]
        found['identical'] &= memory['identical']
        yield way, found


def _counted(way: str, python: str, options: Sequence[str]) -> dict[str, Any]:
    """Measure a way under callgrind."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'counted')
        valgrind = ['valgrind', '--tool=callgrind', '--instr-atstart=no']
        command = [*valgrind, f'--callgrind-out-file={out}', python]
        return _measured(way, command, [*options, '--callgrind', str(out)])


def _measured(
    way: str,
    python: Sequence[str],
    options: Sequence[str],
    changes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a way in a process of its own and return what it prints.

    Args:
        way: Its name.
        python: What starts the interpreter.
        options: Of the script.
        changes: To the environment.

    Raises:
        RuntimeError: If the process fails; with its last lines.
    """
    import recording_case

    script = Path(recording_case.__file__)
    environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1', **(changes or {})}
    environment.pop('PYTHONPATH', None)
    if way not in OTHERS:
        environment['PYTHONPATH'] = str(script.parents[2])
    done = subprocess.run(
        [*python, '-P', str(script), way, *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f'measuring {way} failed:\n{done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(way: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result file for one way.

    Args:
        way: Its name.
        found: What its process printed.

    Returns:
        ``time``: processor time of the whole call; the ratio is the median of the pairs', and
        ``quartiles`` their spread. ``memory``: peak of the process, weights included. ``work``: its
        part above the weights. ``identical`` says whether the latents are bit for bit those of the
        plain run. Where instructions were counted, ``instructions`` of the whole call alone.
    """
    plain, recording = (
        {name: statistics.median(run[name] for run in found[side]) for name in found[side][0]}
        for side in ('plain', 'recording')
    )
    counted = 'instructions' in plain
    cost = 'instructions' if counted else 'seconds'
    ratios = [
        ours[cost] / baseline[cost] for baseline, ours in zip(found['plain'], found['recording'])
    ]
    pairs = [
        ('instructions', plain[cost], recording[cost], 'million instructions')
        if counted
        else ('time', plain[cost], recording[cost], 's of one CPU thread')
    ]
    if not counted:
        pairs += [
            ('memory', plain['peak'], recording['peak'], 'MiB'),
            ('work', plain['work'], recording['work'], 'MiB'),
        ]
    rows = []
    for name, baseline, ours, unit in pairs:
        case, of_pairs = f'{name}-{way}', name in ('time', 'instructions')
        rows.append(
            {
                'case': case,
                'ratio': statistics.median(ratios) if of_pairs else ours / baseline,
                'baseline': baseline,
                'ours': ours,
                'unit': unit,
                'identical': bool(found['identical']),
                **({'quartiles': _quartiles(ratios)} if of_pairs else {}),
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
