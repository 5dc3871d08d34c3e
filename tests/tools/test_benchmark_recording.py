"""The benchmark of recording: our recorder leaves latents as they are; rows are right."""

from __future__ import annotations

import pytest
import recording_case
import recording_runs as recording
import torch


@pytest.fixture(scope='module')
def pipe():
    pipe = recording_case.build_pipeline(quick=True)
    pipe.unet.register_to_config(sample_size=32)  # a quarter of the pixels
    return pipe


@pytest.mark.parametrize('way', ['ours', 'ours-refined', 'keep-all'])
def test_ways_measure_and_ours_changes_nothing(pipe, way):
    _, expected = recording_case.run(pipe, recording_case.plain, 1)
    figures, latents = recording_case.run(pipe, recording_case.WAYS[way], 1)
    if way == 'keep-all':  # explicit softmax rounds otherwise
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
    else:
        assert torch.equal(latents, expected)
    assert figures['seconds'] > 0 and figures['peak'] >= figures['work'] >= 0
    assert not any(part._forward_hooks for part in pipe.unet.modules())


def test_rows():
    found = {
        'plain': [{'seconds': 10.0, 'peak': 100.0, 'work': 20.0}] * 2,
        'recording': [
            {'seconds': 11.0, 'peak': 103.0, 'work': 23.0},
            {'seconds': 12.0, 'peak': 103.0, 'work': 23.0},
        ],
        'identical': True,
    }
    rows = {row['case']: row for row in recording.rows_of('ours', found)}
    assert rows['time-ours']['ratio'] == pytest.approx(1.15)
    assert rows['time-ours']['quartiles'] == [1.125, 1.175]
    assert rows['memory-ours']['ratio'] == pytest.approx(1.03)
    assert rows['work-ours']['ratio'] == pytest.approx(1.15)
    assert rows['time-ours']['target'] == 1.03 and rows['memory-ours']['target'] == 1.05
    others = recording.rows_of(
        'daam',
        {
            **found,
            'recording': [{'seconds': 20.0, 'peak': 300.0, 'work': 60.0}],
            'identical': False,
        },
    )
    assert [row['case'] for row in others] == ['time-daam', 'memory-daam', 'work-daam']
    assert not any(row['identical'] or 'target' in row for row in others)


def test_rows_of_counted_instructions():
    found = {
        'plain': [{'seconds': 9.0, 'peak': 1.0, 'work': 1.0, 'instructions': 500.0}],
        'recording': [{'seconds': 30.0, 'peak': 9.0, 'work': 9.0, 'instructions': 505.0}],
        'identical': True,
    }
    (row,) = recording.rows_of('ours', found)
    assert (row['case'], row['target']) == ('instructions-ours', 1.03)
    assert row['ratio'] == pytest.approx(1.01) and row['quartiles'] == [1.01, 1.01]


def test_what_cannot_be_measured_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(recording.shutil, 'which', lambda name: None)
    with pytest.raises(ValueError, match='needs valgrind'):
        next(recording.benchmark_recording(['ours'], count_instructions=True))
    with pytest.raises(ValueError, match="ways must be of.*'theirs'"):
        next(recording.benchmark_recording(['theirs']))
    with pytest.raises(ValueError, match='daam needs the interpreter.*requirements/benchmark/daam'):
        next(recording.benchmark_recording(['daam']))
    broken = tmp_path / 'python'
    broken.write_text('#!/bin/sh\necho no such module >&2\nexit 3\n')
    broken.chmod(0o755)
    with pytest.raises(RuntimeError, match='measuring daam failed:\nno such module'):
        next(recording.benchmark_recording(['daam'], {'daam': broken}))
