"""Several workers on one machine, or on a Ray cluster: the same plan and the same bytes.

- ``process``: this process, alone or as one of many that torchrun or a SLURM array started
  (`freeatm_mm.generation.generate_store`).
- ``workers``: processes on this machine, started and watched here; one that dies is replaced.
- ``ray``: actors of Ray Data on machines that share the store's folder; Ray starts an actor that
  died again and hands its shard out once more.

A shard that a worker didn't finish leaves nothing but a file under another name, so all that an
engine has to know is which shards aren't there yet.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freeatm_mm.errors import RunError, counted, pip_install
from freeatm_mm.generation.generate import (
    POLL_SECONDS,
    GenerationSummary,
    ShardWorker,
    SharedProgress,
    generate_store,
    shared_bar,
    summarise_shards,
)
from freeatm_mm.generation.job import GenerationJob
from freeatm_mm.generation.limits import MAX_WORKERS
from freeatm_mm.signals import Terminated, end_on_signals, keep_handlers
from freeatm_mm.store import StoreError, StoreWriter
from freeatm_mm.store.layout import MANIFEST, STORE_FORMAT, load_manifest

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ['WorkerError', 'run_ray', 'run_workers']

#: How long a worker that is told to end has for it.
ENDING_SECONDS = 10.0

_LOG = logging.getLogger(__name__)


class WorkerError(RunError):
    """A worker failed in a way that another try wouldn't mend."""


def run_workers(
    job: GenerationJob,
    out: str | Path,
    workers: int,
    *,
    max_replacements: int = 10,
    progress: bool = True,
    on_start: Callable[[int], None] | None = None,
) -> GenerationSummary:
    """Generate a store with several processes on this machine, replacing those that die.

    A worker that is killed (by the system's out-of-memory killer, say) is replaced. A worker that
    raises would raise again, so the others are stopped and its error is raised here. Finished
    shards stay in each case.

    Args:
        job: What to generate.
        out: The store's folder.
        workers: Processes; with GPUs, worker i uses number i modulo how many there are.
        max_replacements: Replacements in all, before a worker's death is an error.
        progress: Show a progress bar for all workers together.
        on_start: Called with the process id of each worker that is started.

    Raises:
        ValueError: If ``workers`` is below 1, or more than a machine has.
        WorkerError: If a worker raised, with what it said, or too many died.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise ValueError(f'workers must be at least 1 and at most {MAX_WORKERS}, got {workers}')
    context = multiprocessing.get_context('spawn')  # a fork would share the GPU's state
    running: dict[int, tuple[Any, Connection]] = {}

    def launch(rank: int) -> None:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_worker_main, args=(job, out, rank, workers, sender))
        process.start()
        sender.close()
        running[rank] = (process, receiver)
        if on_start is not None:
            assert process.pid is not None  # it was started
            on_start(process.pid)

    with _watched_run(job, out, progress) as (summary, refresh):
        try:
            for rank in range(workers):
                launch(rank)
            while running:
                refresh()
                time.sleep(POLL_SECONDS / 5)
                for rank, (process, receiver) in list(running.items()):
                    if process.exitcode is None:
                        continue
                    del running[rank]
                    if process.exitcode == 0:
                        continue
                    message = _last_words(receiver)
                    if message is not None:
                        raise WorkerError(message)
                    if summary.replaced_workers == max_replacements:
                        raise WorkerError(
                            f'worker {rank} died (exit code {process.exitcode}) '
                            f'after {max_replacements} others had been replaced; '
                            'finished shards are kept'
                        )
                    summary.replaced_workers += 1
                    launch(rank)
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.join(ENDING_SECONDS)
                process.kill()  # in a call that takes long; what it was generating is lost anyhow
                process.join()
    return summary


def _worker_main(
    job: GenerationJob, out: str | Path, rank: int, world: int, sender: Connection
) -> None:
    """What a process of `run_workers` does."""

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # this process is a child
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        with end_on_signals():
            generate_store(job.source(rank), out, rank=rank, world=world, progress=False)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Terminated as error:
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        sender.send(f'{type(error).__name__}: {error}')
        raise SystemExit(1) from None


def _last_words(receiver: Connection) -> str | None:
    """What a worker said before it ended; ``None`` if it was killed."""
    try:
        return receiver.recv() if receiver.poll() else None
    except EOFError:
        return None


def run_ray(
    job: GenerationJob,
    out: str | Path,
    workers: int,
    *,
    address: str | None = None,
    rounds: int = 3,
    progress: bool = True,
) -> GenerationSummary:
    """Generate a store with Ray Data: one actor a worker, each with the pipeline loaded once.

    The machines of the cluster must share the folders of the store, the prompts and the pipeline,
    and have freeatm_mm installed. An actor gets a GPU if the cluster has any.

    Args:
        job: What to generate.
        out: The store's folder.
        workers: Actors.
        address: The cluster's; the default is what Ray finds, else Ray on this machine.
        rounds: Times that shards which aren't there at the end are handed out again.
        progress: Show a progress bar for all workers together.

    Raises:
        ValueError: If Ray isn't installed or ``workers`` is below 1.
        WorkerError: If an actor raised, or shards are missing after all rounds.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise ValueError(f'workers must be at least 1 and at most {MAX_WORKERS}, got {workers}')
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    # Or a thread of Ray Data that finds the cluster gone, at the end, would start another one.
    os.environ.setdefault('RAY_ENABLE_AUTO_CONNECT', '0')
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(f'the engine ray needs Ray ({error}): {pip_install("ray")}') from None
    own = not ray.is_initialized()
    if own:
        options: dict[str, Any] = {} if address else {'include_dashboard': False}
        with keep_handlers():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        out = Path(out).absolute()
        job = job.absolute()
        with _watched_run(job, out, progress) as (summary, refresh):
            count = _size(job)[1]
            for _ in range(rounds):
                missing = sorted(set(range(count)) - summarise_shards(out, count).keys())
                if not missing:
                    break
                _ray_round(ray, job, out, missing, workers, refresh)
            missing = sorted(set(range(count)) - summarise_shards(out, count).keys())
            if missing:
                raise WorkerError(
                    f'{counted(len(missing), "shard")} still missing after '
                    f'{counted(rounds, "round")}; start again, finished shards are kept'
                )
            _finish(job, out)
        return summary
    except BaseException:
        # Ray Data's threads would print pages about the cluster that is taken from them.
        for name in ('ray', 'ray.data'):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        raise
    finally:
        if own:
            ray.shutdown()


def _ray_round(
    ray: Any,
    job: GenerationJob,
    out: Path,
    shards: list[int],
    workers: int,
    refresh: Callable[[], Any],
) -> None:
    """Hand out shards once, and wait until they are written or lost."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    gpus = ray.cluster_resources().get('GPU', 0)
    # A block a shard, so that an actor that is done takes the next one, whoever is slow.
    data = ray.data.from_items(
        [{'shard': shard} for shard in shards], override_num_blocks=len(shards)
    )
    data = data.map_batches(
        _RayWorker,
        batch_size=1,
        fn_constructor_kwargs={'job': job, 'out': str(out)},
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards))),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    failures: list[str] = []

    def consume() -> None:
        try:
            for row in data.iter_rows():
                if row['error']:
                    failures.append(row['error'])
                    return
        except Exception as error:  # Ray's own, which holds pages of text
            failures.append(f'Ray: {type(error).__name__}: {str(error).strip()[:500]}')

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        refresh()
    if failures:
        raise WorkerError(failures[0])


class _RayWorker:
    """An actor of Ray Data: a pipeline, generating one shard after the other."""

    def __init__(self, job: GenerationJob, out: str) -> None:
        # What is raised here would be tried for ever, so it is handed over with the first shard.
        self.error = ''
        try:
            # Ray shows an actor its own GPU only; it is number 0 there.
            self.worker = ShardWorker(job.source(), out)
        except Exception as error:
            self.error = f'{type(error).__name__}: {error}'

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        try:
            for shard in batch['shard']:
                if not self.error:
                    self.worker.run(int(shard), steal=True)
        except Exception as error:
            self.error = f'{type(error).__name__}: {error}'
        return {'shard': batch['shard'], 'error': [self.error] * len(batch['shard'])}


def _size(job: GenerationJob) -> tuple[int, int]:
    """Number of samples, and of shards, of a job."""
    samples = len(job.records()) * job.options.get('images_per_prompt', 1)
    return samples, -(-samples // job.options.get('samples_per_shard', 5000))


@contextmanager
def _watched_run(
    job: GenerationJob, out: str | Path, progress: bool
) -> Iterator[tuple[GenerationSummary, Callable[[], Any]]]:
    """Show how far all workers are, and sum up at the end what they did."""
    start = time.monotonic()
    samples, shards = _size(job)
    before = summarise_shards(out, shards)
    summary = GenerationSummary(
        skipped=sum(part.samples for part in before.values()),
        left_out=sum((part.left_out for part in before.values()), []),
    )
    with shared_bar(SharedProgress(Path(out), shards), samples, progress) as refresh:
        yield summary, refresh
        after = summarise_shards(out, shards)
        refresh(finished=len(after) == shards)
    for shard in after.keys() - before.keys():
        summary.add(after[shard])
    summary.missing_shards = shards - len(after)
    summary.seconds = time.monotonic() - start


def _finish(job: GenerationJob, out: Path) -> None:
    """Finish a store whose shards are all there, with the settings that its workers recorded."""
    try:
        manifest = load_manifest(out / MANIFEST, STORE_FORMAT)
    except FileNotFoundError:
        raise StoreError(f'{out / MANIFEST} is gone') from None
    samples, shards = _size(job)
    StoreWriter(out, manifest['samples_per_shard'], manifest['config']).finish(samples)
    SharedProgress(out, shards).remove()
