"""The benchmark: how it compares, and that it runs and keeps what it found."""

from pathlib import Path

import pytest
from helpers.tools import load_tool

pytest.importorskip('mmpretrain')

import pretraining_cases as benchmark  # noqa: E402

from freeatm_mm.results import read_results  # noqa: E402
from freeatm_mm.store import Store  # noqa: E402

ROOT = Path(__file__).parents[2]


def test_pairs_alternate_and_medians_leave_out_what_disturbs(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(benchmark.time, 'process_time', lambda: clock[0])
    costs = {'baseline': iter([50, 2, 2, 90, 2, 2]), 'ours': iter([70, 3, 80, 3, 3, 3])}

    def take(side):
        order.append(side)
        clock[0] += next(costs[side])

    assert benchmark.alternate(lambda: take('baseline'), lambda: take('ours'), 5) == (2, 3)
    assert order == ['baseline', 'ours', 'ours', 'baseline'] * 3


def test_store_has_one_to_three_nouns_an_image(tmp_path):
    shapes = benchmark.Shapes(batch=4, image=64, mask=16, loaded=6)
    store = Store(benchmark.make_benchmark_store(tmp_path / 'store', shapes))
    assert [len(store[number].nouns) for number in range(len(store))] == [1, 2, 3, 1, 2, 3]
    sample = store[2]
    assert sample.image.size == (64, 64) and sample.masks.shape == (3, 16, 16)
    assert sample.masks.min() == 0 and sample.masks.max() == 255


def test_quick_run_keeps_every_case(tmp_path, capsys):
    out = tmp_path / 'benchmark.json'
    load_tool('benchmarks/pretraining').main(
        [
            '--quick',
            '--methods',
            'mocov2',
            'mae',
            '--repeats',
            '1',
            '--out',
            str(out),
            '--note',
            'A test.',
            '--cases',
            'mask-generator',
            'loading',
            'step',
        ]
    )
    rows = {row['case']: row for row in read_results(out)['rows']}
    assert list(rows) == [
        'mask-generator-256',
        'loading-mocov2',
        'step-mocov2',
        'loading-mae',
        'step-mae',
    ]
    for row in rows.values():
        assert row['baseline'] > 0 and row['ratio'] == pytest.approx(row['ours'] / row['baseline'])
        assert row['target'] == pytest.approx(benchmark.TARGETS[row['case']], abs=1e-3)
    printed = capsys.readouterr().out
    assert all(f'{case}: ' in printed for case in rows)
    page = out.with_suffix('.md').read_text()
    assert 'A test.' in page and 'Target, at most' in page and page.count('mask-generator') == 2


def test_quick_memory(tmp_path):
    """Both figures are those of a training: at least weights, gradients and momentum."""
    configs = ROOT / 'configs/miniature'
    shapes = benchmark.Shapes(batch=4, image=64, mask=16, loaded=4, repeats=1)
    (row,) = benchmark.benchmark_pretraining(
        {'mocov2': configs / 'mocov2_freeatm.py'}, tmp_path, shapes, cases=['memory']
    )
    assert row['case'] == 'memory-mocov2' and row['unit'] == 'MiB'
    assert 5 < row['baseline'] < 500 and 0.5 < row['ratio'] < 2


def test_the_parts_of_a_step_are_all_of_it(capsys):
    tool = load_tool('benchmarks/training_parts')
    sizes = ('--batch', '4', '--steps', '1')
    assert tool.main(['--methods', 'mocov2', '--ways', 'plain', 'fast-bf16', *sizes]) == 0
    lines = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines() if '|' in line]
    rows = {name.strip(): [*map(float, values)] for name, *values in lines[2:]}
    assert {'views and masks', 'backbone', 'backward'} <= rows.keys()
    assert {len(values) for values in rows.values()} == {2}
    *parts, whole, rate = rows.values()
    for way in range(2):
        total = sum(values[way] for values in parts)
        assert total == pytest.approx(whole[way], abs=0.06 * len(rows))
        assert rate[way] == pytest.approx(1e3 / whole[way], rel=0.01)
