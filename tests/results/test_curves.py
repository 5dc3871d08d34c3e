"""Curves from mmengine's logs, over interruptions."""

from __future__ import annotations

import json

import pytest

from freeatm_mm.results.curves import read_curve


def write_log(folder, time, entries, tail=''):
    log = folder / time / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(json.dumps(entry) for entry in entries) + '\n' + tail)
    return log


def points(*pairs):
    return [{'loss': value, 'lr': 0.1, 'step': step} for step, value in pairs]


def test_validation_lines_and_other_keys_are_passed_over(tmp_path):
    log = write_log(
        tmp_path, '20240101_000000', [*points((10, 3.0), (20, 2.0)), {'accuracy': 0.5, 'step': 1}]
    )
    for source in (tmp_path, log):
        curve = read_curve(source)
        assert curve.steps.tolist() == [10, 20] and curve.values.tolist() == [3.0, 2.0]
    assert read_curve(tmp_path, 'lr').values.tolist() == [0.1, 0.1]


def test_a_resumed_run_replaces_what_was_logged_after_its_start(tmp_path):
    write_log(tmp_path, '20240101_000000', points((10, 5.0), (20, 4.0), (30, 3.0), (40, 2.9)))
    write_log(tmp_path, '20240102_000000', points((30, 3.5), (50, 2.5)))
    curve = read_curve(tmp_path)
    assert curve.steps.tolist() == [10, 20, 30, 50]
    assert curve.values.tolist() == [5.0, 4.0, 3.5, 2.5]


def test_a_line_cut_off_by_a_kill_is_reported_and_left_out(tmp_path):
    write_log(tmp_path, '20240101_000000', points((10, 5.0)), tail='{"loss": 4.')
    with pytest.warns(UserWarning, match='1 line left out: no JSON'):
        assert read_curve(tmp_path).steps.tolist() == [10]


def test_values_that_are_not_finite_are_no_points(tmp_path):
    write_log(tmp_path, '20240101_000000', points((10, 5.0), (20, float('nan'))))
    assert read_curve(tmp_path).steps.tolist() == [10]


def test_missing_logs_and_keys_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='--work-dir'):
        read_curve(tmp_path)
    write_log(tmp_path, '20240101_000000', points((10, 5.0)))
    with pytest.raises(ValueError, match=r"'loss_x'; there are \['loss', 'lr', 'step'\]"):
        read_curve(tmp_path, 'loss_x')
