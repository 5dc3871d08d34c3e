"""The check of a GPU runs here on the CPU: the same rows, small; what fails stops nothing."""

from __future__ import annotations

import gpu_check
import pytest
import torch

ROWS = {
    'recorder-sd15': 'times that recorded; latents the same bit for bit',
    'recorder-sdxl': 'times that recorded; latents the same bit for bit',
    'recorder-compiled': 'times that recorded; latents the same bit for bit',
    'step-simclr': 'ms a step, OptimWrapper',
    'step-mocov2': 'ms a step, OptimWrapper',
    'step-mae': 'ms a step, OptimWrapper',
    'distributed': 'gloo',
    'mmcv-operators': 'nms and roi_align as on the CPU',
    'lavis-step': 'times LAVIS',
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(gpu_check.ROOT)
    return gpu_check.Place('cpu', True, tmp_path)


@pytest.mark.parametrize('name', ROWS)
def test_rows_on_a_cpu(name, place):
    found = gpu_check.check_row(name, place)
    if found['state'] == 'skipped':
        pytest.skip(found['found'])
    assert found['state'] == 'ok', found
    assert ROWS[name] in found['found']


def test_what_only_a_gpu_has_is_skipped(place):
    found = gpu_check.check_row('sync-batch-norm-simclr', place)
    assert found['state'] == 'skipped' and 'accelerators only' in found['found']


def test_a_failing_row_is_a_row(place, monkeypatch):
    def fail(place):
        raise torch.cuda.OutOfMemoryError('too\nlarge')

    monkeypatch.setitem(gpu_check.ROWS, 'distributed', fail)
    found = gpu_check.check_row('distributed', place)
    assert found['state'] == 'failed' and found['found'] == 'OutOfMemoryError: too large'


def test_a_row_whose_process_dies_stops_no_other(tmp_path, monkeypatch, capsys):
    dying = tmp_path / 'python'
    dying.write_text('#!/bin/sh\necho an illegal memory access >&2\nexit 134\n')
    dying.chmod(0o755)
    monkeypatch.setattr(gpu_check.sys, 'executable', str(dying))
    rows = ['distributed', 'mmcv-operators']
    assert gpu_check.main(['--device', 'cpu', '--tiny', '--rows', *rows]) == 1
    printed = capsys.readouterr().out.splitlines()[-2:]
    assert printed == [
        f'| {row} | failed | exit code 134: an illegal memory access |' for row in rows
    ]


def test_no_gpu_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert 'give --device cpu to run the rows on the CPU' in capsys.readouterr().err
