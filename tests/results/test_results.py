"""Result files: round trip, checks, mean and spread, paired differences, Markdown."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from freeatm_mm.errors import InputError
from freeatm_mm.results import (
    Group,
    add_row,
    arm_name,
    arm_names,
    comparisons,
    epochs_to_match,
    holm,
    new_results,
    open_results,
    paired_difference,
    read_results,
    result_tables,
    summarise_rows,
    to_markdown,
    update_results,
    validate_results,
    write_results,
)

BASELINE = (0.30, 0.33, 0.31)
OURS = (0.36, 0.35, 0.38)


def run(seed, value, masks=False, method='mocov2', epochs=40, **metrics):
    return {
        'method': method,
        'regime': 'synthetic',
        'masks': masks,
        'seed': seed,
        'epochs': epochs,
        'metrics': {'linear': value, **metrics},
    }


@pytest.fixture
def results():
    results = new_results('trial', 'python tools/trial.py')
    for seed in range(3):
        add_row(results, run(seed, BASELINE[seed], knn=0.2))
        add_row(results, run(seed, OURS[seed], masks=True))
    return results


def test_round_trip_and_one_row_a_line(results, tmp_path):
    path = tmp_path / 'sub' / 'trial.json'
    write_results(path, results)
    assert read_results(path) == results == json.loads(path.read_text())
    assert sum(line.lstrip().startswith('{"method"') for line in path.read_text().split('\n')) == 6
    write_results(path, {**results, 'rows': []})
    assert read_results(path)['rows'] == []


def test_the_same_run_replaces_its_row(results):
    add_row(results, run(1, 0.99, masks=True))
    assert len(results['rows']) == 6
    ours = summarise_rows(results)[1]
    assert ours.masks is True and ours.values['linear'] == {0: 0.36, 2: 0.38, 1: 0.99}


#: Four processes that each add ten rows to one file, starting together.
WRITERS = """
import os, sys
from pathlib import Path
from freeatm_mm.results import add_row, update_results

path, (read, write) = Path(sys.argv[1]), os.pipe()
children = []
for child in range(4):
    children.append(os.fork())
    if not children[-1]:
        os.close(write)
        os.read(read, 1)  # returns once the parent has closed its end
        for number in range(10):
            row = dict(method='x', regime='real', masks=False, seed=10 * child + number, epochs=1)
            update_results(
                path, lambda results: add_row(results, {**row, 'metrics': {'a': 1.0}}), 'x', 'y'
            )
        os._exit(0)
os.close(write)
assert not any(os.waitpid(child, 0)[1] for child in children)
"""


def test_rows_that_several_processes_add_at_once_are_all_kept(tmp_path):
    path = tmp_path / 'new/rows.json'
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, '-c', WRITERS, str(path)], check=True, cwd=root)
    assert sorted(row['seed'] for row in read_results(path)['rows']) == list(range(40))
    assert [file.name for file in path.parent.iterdir()] == ['rows.json']


def test_a_row_that_is_written_without_the_lock_is_noticed(results, tmp_path):
    """As on a file system without locks: the change is made again, with what came in between."""
    path, seen = tmp_path / 'rows.json', []

    def change(content):
        seen.append(len(content['rows']))
        if len(seen) < 3:
            write_results(path, {**results, 'rows': results['rows'][: len(seen)]})
        add_row(content, {**results['rows'][0], 'seed': 99})

    written = update_results(path, change, 'x', 'y')
    assert seen == [0, 1, 2] and written == read_results(path)
    assert written['rows'][:2] == results['rows'][:2] and written['rows'][2]['seed'] == 99

    def always(content):
        write_results(path, {**results, 'name': str(len(seen))})
        seen.append(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('time.sleep', lambda seconds: None)
        with pytest.raises(InputError, match='rows.json is written again and again by other'):
            update_results(path, always, 'x', 'y')


def test_a_change_that_fails_leaves_the_file_and_no_lock(results, tmp_path):
    path = tmp_path / 'rows.json'
    write_results(path, results)
    with pytest.raises(ValueError, match='lacks'):
        update_results(path, lambda content: add_row(content, {'method': 'x'}), 'x', 'y')
    with pytest.raises(InputError, match='is a folder, where a file is to be written'):
        open_results(tmp_path, 'x', 'y')
    with pytest.raises(InputError, match="is an address, and can't be written to"):
        update_results('s3://bucket/rows.json', lambda content: None, 'x', 'y')
    assert read_results(path) == results and list(tmp_path.iterdir()) == [path]


def test_mean_and_spread_over_seeds(results):
    baseline, ours = summarise_rows(results)
    assert (baseline.masks, ours.masks) == (False, True)
    assert baseline.mean('linear') == pytest.approx(np.mean(BASELINE))
    assert baseline.spread('linear') == pytest.approx(np.std(BASELINE, ddof=1))
    assert baseline.seeds == [0, 1, 2]
    assert math.isnan(ours.mean('knn'))


def test_a_cell_tells_where_seeds_are_missing(results):
    baseline = summarise_rows(results)[0]
    assert baseline.text('linear') == '0.313 ± 0.015' and baseline.text('miou') == ''
    for seed, note in ((2, '0.200 ± 0.000, 2 seeds'), (1, '0.200, 1 seed')):
        del next(row for row in results['rows'] if row['seed'] == seed and not row['masks'])[
            'metrics'
        ]['knn']
        assert summarise_rows(results)[0].text('knn') == note
        assert f'| 3 | 0.313 ± 0.015 | {note} |' in to_markdown(results)


def test_paired_difference_is_scipys_paired_test(results):
    ((arm, reference),) = comparisons(summarise_rows(results))
    found = paired_difference(arm, reference, 'linear')
    test = stats.ttest_rel(OURS, BASELINE)
    interval = test.confidence_interval(0.95)
    assert (found.t, found.p) == pytest.approx((test.statistic, test.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(np.mean(OURS) - np.mean(BASELINE))
    assert found.differences == pytest.approx([0.06, 0.02, 0.07])
    with pytest.raises(ValueError, match='No seed has knn'):
        paired_difference(arm, reference, 'knn')


def test_one_seed_or_equal_differences_have_no_p_value(results):
    results['rows'] = [row for row in results['rows'] if row['seed'] == 0]
    ((arm, reference),) = comparisons(summarise_rows(results))
    found = paired_difference(arm, reference, 'linear')
    assert found.mean == pytest.approx(0.06)
    assert all(math.isnan(value) for value in (found.p, found.t, found.spread, found.low))
    for seed in (1, 2):
        add_row(results, run(seed, 0.1 + seed))
        add_row(results, run(seed, 0.16 + seed, masks=True))
    ((arm, reference),) = comparisons(summarise_rows(results))
    assert math.isnan(paired_difference(arm, reference, 'linear').p)


def test_holm_corrects_the_metrics_of_one_comparison():
    """By hand: 4 x 0.01, 3 x 0.02, then never below an earlier one; untested ones do not count."""
    nan = float('nan')
    assert holm([0.04, 0.01, nan, 0.03, 0.02]) == pytest.approx(
        [0.06, 0.04, nan, 0.06, 0.06], nan_ok=True
    )
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_table_has_both_p_values():
    results = new_results('trial', 'x')
    for seed in range(3):
        for masks in (False, True):
            gain = masks * (0.05 + 0.01 * seed)
            add_row(results, run(seed, 0.3 + gain, masks=masks, knn=0.1 + gain))
    _, (what, header, rows) = result_tables(results)
    assert header[-3:] == ['p', 'p (Holm)', 'Seeds'] and 'Holm' in what
    assert [float(row[-2]) for row in rows] == pytest.approx(
        [2 * float(row[-3]) for row in rows], abs=0.002
    )


def test_pairs_only_the_seeds_that_both_have(results):
    results['rows'] = [
        row for row in results['rows'] if not (row['seed'] == 1 and row['masks'] is True)
    ]
    ((arm, reference),) = comparisons(summarise_rows(results))
    assert paired_difference(arm, reference, 'linear').seeds == (0, 2)


def test_markdown_shows_mean_spread_difference_and_origin(results):
    page = to_markdown(results, ['trial.svg'])
    assert '| MoCo v2 | 40 | 3 | 0.313 ± 0.015 | 0.200 ± 0.000 |' in page
    assert '| MoCo v2 + Free-ATM | 40 | 3 | 0.363 ± 0.015 | – |' in page
    assert re.search(
        r'Free-ATM \| 40 \| Scenes, linear \(mAP\) \| \+0\.050 '
        r'\| -0\.\d{3} to \+0\.\d{3} \| 0\.\d{3} \| 0\.\d{3} \| 3 \|',
        page,
    )
    assert page.count('| Scenes, k-NN (mAP) |') == 1  # only a heading: ours has no k-NN to compare
    assert (
        '![Every seed as a dot, with mean and standard deviation, for MoCo v2; MoCo v2 + '
        'Free-ATM, measured by Scenes, linear (mAP); Scenes, k-NN (mAP).](trial.svg)'
    ) in page
    assert 'python tools/trial.py' in page
    assert f'python {results["versions"]["python"]}' in page


def test_one_seed_is_shown_without_spread_or_p():
    results = new_results('trial', 'x')
    add_row(results, run(0, 0.3))
    add_row(results, run(0, 0.4, masks=True))
    (title, _, means), (what, header, differences) = result_tables(results)
    assert [row[-1] for row in means] == ['0.300', '0.400']
    assert title == 'Figures of one seed' and 'of one seed' in what
    assert header[-1] == 'Difference' and differences[0][-1] == '+0.100'


def test_benchmarks_have_a_table_of_their_own():
    results = new_results('speed', 'bench')
    add_row(results, {'case': 'record', 'ratio': 1.03, 'baseline': 2.1, 'ours': 2.163, 'unit': 's'})
    ((title, header, rows),) = result_tables(results)
    assert rows == [['record', '2.1', '2.163', 's', '1.030']]


def test_arm_names():
    assert arm_name('simclr', 'mixed', 'exact masks') == 'SimCLR + exact masks (mixed)'
    assert arm_name('random', 'real', False) == 'Random weights'
    assert arm_name('mae', '', True) == 'MAE + Free-ATM'


def test_regimes_are_named_only_where_they_differ(results):
    assert arm_names(summarise_rows(results)) == ['MoCo v2', 'MoCo v2 + Free-ATM']
    assert 'Pretrained on synthetic images.' in to_markdown(results)
    add_row(results, {**run(0, 0.1), 'regime': 'real'})
    add_row(results, {**run(0, 0.1), 'method': 'random', 'regime': ''})
    assert arm_names(summarise_rows(results)) == [
        'MoCo v2 (synthetic)',
        'MoCo v2 + Free-ATM (synthetic)',
        'MoCo v2 (real)',
        'Random weights',
    ]


def test_only_the_longest_pretraining_is_compared(results):
    for masks in (False, True):
        add_row(results, run(0, 0.1, masks=masks, epochs=80))
    ((arm, reference),) = comparisons(summarise_rows(results))
    assert (arm.epochs, arm.masks, reference.epochs, reference.masks) == (80, True, 80, False)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda r: r.pop('command'), r"\['command'\] missing"),
        (lambda r: r['rows'][0].pop('seed'), r"row 0 lacks \['seed'\]"),
        (lambda r: r['rows'][1]['metrics'].update(linear=float('nan')), 'row 1: linear must be'),
        (lambda r: r['rows'][1]['metrics'].update(linear=True), 'row 1: linear must be'),
        (lambda r: r['rows'][2].update(masks=None), 'row 2: masks must be'),
        (lambda r: r['rows'].append(r['rows'][0]), 'row 6 repeats row 0'),
    ],
)
def test_wrong_files_are_named_and_not_written(results, tmp_path, change, message):
    change(results)
    with pytest.raises(ValueError, match=message):
        validate_results(results)
    with pytest.raises(ValueError, match=message):
        write_results(tmp_path / 'x.json', results)
    assert list(tmp_path.iterdir()) == []


def test_two_rows_of_one_arm_and_seed_cannot_hide_each_other(results):
    add_row(results, {**run(0, 0.5), 'learning_rate': 0.1})
    with pytest.raises(ValueError, match='Two rows give linear for MoCo v2'):
        summarise_rows(results)


def test_a_file_that_is_not_json_is_named(tmp_path):
    path = tmp_path / 'broken.json'
    path.write_text('{"name": ')
    with pytest.raises(ValueError, match='broken.json is not JSON'):
        read_results(path)


def test_masks_and_tables_need_no_openmmlab():
    code = (
        'import sys; import freeatm_mm.probing.mask_quality, freeatm_mm.results; '
        'import freeatm_mm.results.page; '
        'print([name for name in sys.modules if name.split(".")[0] in '
        '("mmengine", "mmcv", "mmpretrain", "pycocotools", "diffusers")])'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=Path(__file__).parents[2],
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.strip() == '[]'


def curve(masks, values):
    return [
        Group('mocov2', 'synthetic', masks, epochs, {'linear': {0: value}})
        for epochs, value in values.items()
    ]


@pytest.mark.parametrize(
    'baseline, needed',
    [
        ({2: 0.1, 4: 0.2, 8: 0.6}, 6.0),  # 0.4 lies half way between 4 and 8
        ({2: 0.5, 8: 0.6}, 2),  # there at once
        ({2: 0.1, 8: 0.3}, None),  # never
    ],
)
def test_epochs_that_a_baseline_needs(baseline, needed):
    ours = curve(True, {2: 0.4, 4: 0.1, 8: 0.9})
    assert epochs_to_match(ours, curve(False, baseline), 'linear') == (
        2,
        0.4,
        needed if needed is None else pytest.approx(needed),
    )
    assert epochs_to_match(ours, curve(False, baseline), 'knn') is None
    assert epochs_to_match(ours[1:], curve(False, baseline), 'linear') is None


def test_the_page_says_how_long_a_baseline_needs():
    results = new_results('x', 'python x')
    for masks, values in ((False, {2: 0.1, 4: 0.2, 8: 0.6}), (True, {2: 0.4, 8: 0.9})):
        for epochs, value in values.items():
            add_row(
                results,
                {
                    'method': 'mocov2',
                    'regime': 'synthetic',
                    'masks': masks,
                    'seed': 0,
                    'epochs': epochs,
                    'metrics': {'linear': value, 'knn': value - 0.5},
                },
            )
    page = to_markdown(results)
    assert '| MoCo v2 + Free-ATM | Scenes, linear (mAP) | 2 | 0.400 | 6 |' in page
