"""Killing a run again and again, to see that it ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from freeatm_mm.errors import counted
from freeatm_mm.generation.generate import generate_store
from freeatm_mm.generation.source import ShardSource
from freeatm_mm.store import Store, StoreError, verify_store
from freeatm_mm.store.layout import MANIFEST, left_out_keys, read_manifest

__all__ = ['KillReport', 'kill_and_resume']

#: Seconds between two looks at whether a worker ended.
_TICK = 0.002


@dataclass
class KillReport:
    """What happened in `kill_and_resume`.

    Args:
        kills: Workers killed with SIGKILL.
        runs: Runs that the kills were spread over, each from an empty folder.
        samples: Samples of each run.
        plain_seconds: Duration of the undisturbed run.
        killed_seconds: Mean duration of a run with kills.
        moments: What the folder showed after each kill -> how often.
        problems: What differs from the undisturbed run; empty if nothing does.
    """

    kills: int = 0
    runs: int = 0
    samples: int = 0
    plain_seconds: float = 0.0
    killed_seconds: float = 0.0
    moments: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def kill_and_resume(
    source: ShardSource, folder: Path, kills: int, *, workers: int = 1, seed: int = 0
) -> KillReport:
    """Generate a store undisturbed, then again with workers killed at random moments.

    Each killed worker is started again at once. A run that ends before all kills are made is
    followed by another one. Workers are forks of this process, so that starting one takes no time
    and kills fall into all of its work.

    Args:
        source: What to generate; on the CPU.
        folder: An empty folder for the stores.
        kills: Kills in all.
        workers: Workers at a time; each kill hits one of them.
        seed: Of the moments.
    """
    dice = random.Random(seed)
    report = KillReport(samples=source.num_samples)
    whole = folder / 'undisturbed'
    start = time.monotonic()
    generate_store(source, whole, progress=False)
    report.plain_seconds = time.monotonic() - start
    expected = _contents(whole)
    # The mean pause lets the kills spread over about one run, the work that they cost included.
    longest = 2 * report.plain_seconds / workers / max(1, kills) * 1.5
    killed_seconds = 0.0
    while report.kills < kills:
        out = folder / f'killed-{report.runs}'
        start = time.monotonic()
        _one_run(source, out, kills, workers, longest, dice, report)
        killed_seconds += time.monotonic() - start
        report.runs += 1
        found = _contents(out)
        report.problems += [
            f'{out.name}/{name} differs'
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        report.problems += [str(problem) for problem in verify_store(out, source=source)]
        store = Store(out)
        try:
            keys = [sample.key for sample in store]
        except StoreError:  # what is wrong stands among the problems
            keys = []
        gone = set().union(
            *(left_out_keys(entry.get('notes')) for entry in store.manifest['shards'])
        )
        due = [
            key
            for shard in range(source.plan.num_shards)
            for key in source.keys(shard)
            if key not in gone
        ]
        if keys != due:
            report.problems.append(
                f'{out.name} holds {counted(len(keys), "sample")}, not each one once'
            )
    report.killed_seconds = killed_seconds / max(1, report.runs)
    return report


def _one_run(
    source: ShardSource,
    out: Path,
    kills: int,
    workers: int,
    longest: float,
    dice: random.Random,
    report: KillReport,
) -> None:
    running = {rank: _fork(source, out, rank, workers) for rank in range(workers)}
    try:
        while running:
            end = time.monotonic() + (dice.uniform(0, longest) if report.kills < kills else 1e9)
            while running and time.monotonic() < end:
                for rank, pid in list(running.items()):
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        del running[rank]
                        if os.waitstatus_to_exitcode(status) != 0:
                            raise RuntimeError(f'worker {rank} failed by itself; see above')
                time.sleep(_TICK)
            if running and report.kills < kills:
                rank = dice.choice(sorted(running))
                os.kill(running[rank], signal.SIGKILL)
                os.waitpid(running[rank], 0)
                report.kills += 1
                report.moments[_moment(out)] += 1
                running[rank] = _fork(source, out, rank, workers)
    finally:
        for pid in running.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork(source: ShardSource, out: Path, rank: int, world: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # tqdm's own lock is shared by forks: one that is killed holding it would stop all others.
        tqdm.set_lock(threading.RLock())
        generate_store(source, out, rank=rank, world=world, progress=False)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)  # without what the parent would do at its end


def _moment(out: Path) -> str:
    """What a folder shows of the moment at which its worker died."""
    if not (out / MANIFEST).exists():
        return 'before the store was there'
    names = {entry.name for entry in os.scandir(out)}
    if any(name.endswith('.tar.tmp') for name in names):
        return 'generating a shard'
    tars = {name[:-4] for name in names if name.endswith('.tar')}
    for ending, moment in (
        ('.index.npy', 'between tar and index'),
        ('.json', 'between index and JSON'),
    ):
        if any(f'{name}{ending}' not in names for name in tars):
            return moment
    if read_manifest(out)['complete']:
        return 'after store.json'
    return 'between two shards'


def _contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: Path(entry.path).read_bytes() for entry in os.scandir(folder)}
