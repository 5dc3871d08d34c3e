"""Engines: the same plan and the same bytes, whoever generates; and whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.store_samples import folder_bytes
from helpers.tiny_pipelines import tiny_stable_diffusion
from kill_and_resume import kill_and_resume

from freeatm_mm.generation import (
    GenerationJob,
    WorkerError,
    estimate_run,
    generate_store,
    run_ray,
    run_workers,
)
from freeatm_mm.prompts import Noun, PromptRecord, write_prompts
from freeatm_mm.store import Store, StoreError, repair_store, verify_store
from freeatm_mm.store.layout import config_digest, dump_manifest

ROOT = Path(__file__).resolve().parents[2]
SHARDS = 6


@pytest.fixture(scope='module')
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp('job')
    tiny_stable_diffusion().save_pretrained(folder / 'tiny-sd')
    write_prompts(
        folder / 'prompts.jsonl',
        (
            PromptRecord(
                f'{number:03d}',
                f'a photo of a {noun} {number}',
                (Noun(noun, 13, 13 + len(noun), noun),),
            )
            for number, noun in enumerate(['dog', 'cat', 'bird', 'dress'] * 3)
        ),
    )
    return GenerationJob(
        str(folder / 'tiny-sd'),
        str(folder / 'prompts.jsonl'),
        device='cpu',
        options=dict(steps=2, batch_size=2, samples_per_shard=2, image_format='png'),
    )


@pytest.fixture(scope='module')
def source(job):
    torch.set_num_threads(1)
    return job.source()


@pytest.fixture(scope='module')
def generated(source, tmp_path_factory):
    """What one process generates, undisturbed."""
    path = tmp_path_factory.mktemp('generated')
    generate_store(source, path, progress=False)
    return folder_bytes(path)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Processes that are started here use one thread, and find the package."""
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv(
        'PYTHONPATH', os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    )


def when_shards_are_there(path, count, action):
    """Do something as soon as some shards are finished."""

    def watch():
        while len(list(Path(path).glob('shard-*.json'))) < count:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_watched_workers_generate_the_same_bytes_though_one_dies(job, generated, tmp_path, capfd):
    started = []
    kill = when_shards_are_there(tmp_path, 1, lambda: os.kill(started[0], signal.SIGKILL))
    summary = run_workers(job, tmp_path, 2, on_start=started.append)
    kill.join(10)
    assert folder_bytes(tmp_path) == generated
    # The killed worker may have been the one that was done.
    assert summary.replaced_workers == len(started) - 2 <= 1
    assert (summary.samples, summary.nouns, summary.missing_shards) == (12, 12, 0)
    assert '12/12' in capfd.readouterr().err


def test_a_worker_that_raises_stops_the_run_with_its_error(job, source, tmp_path):
    generate_store(source, tmp_path, progress=False)
    other = GenerationJob(
        job.pipeline, job.prompts, device='cpu', options=job.options | {'steps': 3}
    )
    with pytest.raises(WorkerError, match='StoreError.*steps is 2 there and 3 here'):
        run_workers(other, tmp_path, 1, progress=False)
    with pytest.raises(ValueError, match='at least 1'):
        run_workers(job, tmp_path, 0)


def test_two_torchrun_processes_generate_the_same_bytes(job, generated, tmp_path):
    """And on one machine nobody else's port is needed: the workers never talk to each other."""
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        '2',
        str(ROOT / 'tools' / 'generate.py'),
        job.pipeline,
        job.prompts,
        str(tmp_path),
        '--steps',
        '2',
        '--batch-size',
        '2',
        '--samples-per-shard',
        '2',
        '--image-format',
        'png',
        '--device',
        'cpu',
    ]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    assert folder_bytes(tmp_path) == generated
    assert result.stdout.count('images generated') == 2
    assert '12/12' in result.stderr  # one bar, for both


@pytest.mark.parametrize('workers', [1, 2])
def test_killed_at_random_moments_every_sample_is_there_once(source, tmp_path, workers):
    report = kill_and_resume(source, tmp_path, 6, workers=workers, seed=os.getpid())
    assert report.kills == 6 and report.moments.total() == 6
    assert report.problems == [], report.moments


def test_the_kill_test_notices_what_differs(source, tmp_path, monkeypatch):
    import kill_and_resume as endurance

    real = endurance.generate_store

    def careless(source, out, **options):
        real(source, out, **options)
        if out.name != 'undisturbed':
            (out / 'shard-000001.tar').write_bytes((out / 'shard-000002.tar').read_bytes())
            (out / 'shard-000001.index.npy').write_bytes(
                (out / 'shard-000002.index.npy').read_bytes()
            )

    monkeypatch.setattr(endurance, 'generate_store', careless)
    report = kill_and_resume(source, tmp_path, 1)
    assert 'killed-0/shard-000001.tar differs' in report.problems
    assert any('not each one once' in problem for problem in report.problems)


def test_the_plan_is_estimated_and_nothing_of_the_store_is_written(job, source, tmp_path):
    estimate = estimate_run(source)
    generate_store(source, tmp_path, progress=False)
    store_bytes = 0
    for index in tmp_path.glob('*.index.npy'):
        rows = np.load(index)
        store_bytes += int(rows[-1]['image_offset'] + rows[-1]['image_size']) + rows.nbytes
    assert (estimate.samples, estimate.shards, estimate.timed) == (12, SHARDS, 4)
    assert estimate.total_bytes == pytest.approx(store_bytes, rel=0.1)
    text = estimate.text(workers=4)
    parts = (
        '12 samples in 6 shards of 2',
        'on 4',
        'encoding and writing',
        '4 different, as varied',
    )
    for part in parts:
        assert part in text
    hours = estimate.samples * (estimate.generation_seconds + estimate.write_seconds) / 3600
    assert estimate.device_hours == pytest.approx(hours)
    with pytest.raises(ValueError, match='batches must be at least 1'):
        estimate_run(source, 0)


def test_a_job_is_read_back_from_its_store(job, source, tmp_path):
    generate_store(source, tmp_path, progress=False)
    again = GenerationJob.of_store(tmp_path, job.pipeline, job.prompts, device='cpu')
    assert again.source().config == source.config
    assert again.options['batch_size'] == 2
    assert list(verify_store(tmp_path, source=again.source())) == []
    (tmp_path / 'store.json').unlink()
    with pytest.raises(StoreError, match='start the command that made the store once more'):
        GenerationJob.of_store(tmp_path, job.pipeline, job.prompts)


def test_an_unfinished_store_is_mended_with_its_own_batch(job, source, tmp_path):
    generate_store(source, tmp_path / 'whole', progress=False)
    generate_store(source, tmp_path / 'half', rank=0, world=2, take_over=False, progress=False)
    again = GenerationJob.of_store(tmp_path / 'half', job.pipeline, job.prompts, device='cpu')
    assert again.options['batch_size'] == 2
    report = repair_store(tmp_path / 'half', again.source())
    half, whole = (folder_bytes(tmp_path / name) for name in ('half', 'whole'))
    assert report.generated == 6
    assert all(half[name] == content for name, content in whole.items() if '.json' not in name)


def test_a_store_without_masks_is_mended_without_them(job, tmp_path):
    alone = replace(job, options=job.options | {'masks': False})
    generate_store(alone.source(), tmp_path, progress=False)
    whole = folder_bytes(tmp_path)
    (tmp_path / 'shard-000001.tar').unlink()
    again = GenerationJob.of_store(tmp_path, job.pipeline, job.prompts, device='cpu')
    repair_store(tmp_path, again.source())
    assert folder_bytes(tmp_path) == whole


def test_a_pipeline_of_the_hub_is_asked_for_by_the_store_s_commit(job, source, tmp_path):
    generate_store(source, tmp_path, progress=False)
    assert GenerationJob.of_store(tmp_path, job.pipeline, job.prompts).revision is None
    manifest = json.loads((tmp_path / 'store.json').read_text())
    manifest['config']['revision'] = '0123abcd'
    manifest['config_sha256'] = config_digest(manifest['config'])
    (tmp_path / 'store.json').write_bytes(dump_manifest(manifest))
    assert GenerationJob.of_store(tmp_path, 'owner/name', job.prompts).revision == '0123abcd'


@pytest.mark.cluster
def test_ray_generates_the_same_bytes_though_an_actor_dies(job, generated, tmp_path):
    """Two actors on this machine; one is killed and its shard handed out again."""
    pytest.importorskip('ray')
    import psutil

    killed = []

    def kill_one():
        for process in psutil.process_iter(['cmdline']):
            words = process.info['cmdline'] or ['']
            if 'MapWorker' in words[0] and _is_ours(process):
                process.kill()
                killed.append(process.pid)
                return

    def _is_ours(process):
        return any(parent.pid == os.getpid() for parent in process.parents())

    kill = when_shards_are_there(tmp_path, 2, kill_one)
    summary = run_ray(job, tmp_path, 2, progress=False)
    kill.join(10)
    assert len(killed) == 1
    assert folder_bytes(tmp_path) == generated
    assert (summary.samples, summary.missing_shards) == (12, 0)
    assert len(Store(tmp_path)) == 12


@pytest.mark.cluster
def test_an_actor_that_raises_stops_the_run_with_its_error(job, source, tmp_path):
    pytest.importorskip('ray')
    generate_store(source, tmp_path, progress=False)
    (tmp_path / 'shard-000000.json').unlink()
    other = GenerationJob(
        job.pipeline, job.prompts, device='cpu', options=job.options | {'steps': 3}
    )
    with pytest.raises(WorkerError, match='steps is 2 there and 3 here'):
        run_ray(other, tmp_path, 1, progress=False)
