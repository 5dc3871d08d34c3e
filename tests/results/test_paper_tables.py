"""The paper's tables: its own numbers, ours beside them, and whether they agree in sign."""

from __future__ import annotations

import pytest
from helpers.tools import load_tool

from freeatm_mm.results import (
    add_row,
    new_results,
    summarise_rows,
    validate_results,
    write_results,
)
from freeatm_mm.results.paper_tables import (
    TABLES,
    gather_rows,
    improvements,
    own_metrics,
    paper_rows,
    row_markdown,
    table_markdown,
)


def result(*rows, scale='miniature'):
    results = new_results('test', 'python x')
    for method, regime, masks, seed, metrics, generator in rows:
        add_row(
            results,
            {
                'method': method,
                'regime': regime,
                'masks': masks,
                'seed': seed,
                'epochs': 10,
                'generator': generator,
                'scale': scale,
                'metrics': metrics,
            },
        )
    return results


OURS = result(
    ('random', 'real', False, 0, {'linear_top1': 0.1, 'box_ap': 0.05}, ''),
    ('mocov2', 'synthetic', False, 0, {'box_ap': 0.20, 'miou': 0.30}, 'miniature'),
    ('mocov2', 'synthetic', False, 1, {'box_ap': 0.22, 'miou': 0.30}, 'miniature'),
    ('mocov2', 'synthetic', True, 0, {'box_ap': 0.23, 'miou': 0.28}, 'miniature'),
    ('mocov2', 'synthetic', True, 1, {'box_ap': 0.24, 'miou': 0.29}, 'miniature'),
    ('mae', 'real', False, 0, {'box_ap': 0.5}, ''),
)
VIT = result(('random', 'real', False, 0, {'finetune_top1': 0.3, 'box_ap': 0.07}, ''))


def test_columns_are_made_of_the_one_table_of_metrics():
    assert list(TABLES[1].metrics.values()) == [
        'VOC AP50',
        'COCO box AP',
        'COCO mask AP',
        'Cityscapes mIoU',
        'ImageNet linear',
        'COCO box AP50',
    ]
    assert list(TABLES[2].metrics.values())[2:4] == ['ImageNet fine-tuned', 'ADE20K mIoU']
    assert TABLES[3].metrics['zeroshot_IR@1'] == 'zero-shot IR@1'
    assert own_metrics(1) == {'voc_ap50', 'linear_top1'} and own_metrics(2) == {'finetune_top1'}
    assert own_metrics(3) == set(TABLES[3].columns)


def test_the_papers_numbers():
    """Spot checks, and its printed gains: Table 1's are the differences of its rows."""
    first = paper_rows(1)
    assert first['mocov2', 'mixed', 'deepif', True] == {
        'voc_ap50': 83.1,
        'box_ap': 41.2,
        'mask_ap': 37.6,
        'miou': 75.9,
        'linear_top1': 68.0,
    }
    assert 'linear_top1' not in first['random', 'real', '', False]
    gains = [
        round(
            first['simclr', 'synthetic', 'sd15', True][m]
            - first['simclr', 'synthetic', 'sd15', False][m],
            1,
        )
        for m in first['simclr', 'synthetic', 'sd15', True]
    ]
    assert gains == [0.9, 1.4, 1.1, 1.0, 1.0]
    assert paper_rows(2)['mae', 'synthetic', 'sd15', True]['finetune_top1'] == 83.4
    assert paper_rows(3)['blip', 'real', '', False] == {
        'finetuned_TR@1': 58.1,
        'finetuned_IR@1': 44.2,
        'zeroshot_TR@1': 42.1,
        'zeroshot_IR@1': 30.4,
    }
    assert [len(paper_rows(table)) for table in TABLES] == [20, 10, 9]
    for table in TABLES:
        for values in paper_rows(table).values():
            assert set(values) <= set(TABLES[table].metrics)


def test_ours_beside_the_papers():
    text = table_markdown(gather_rows([OURS, VIT], 1), 1)
    lines = {line.split(' |')[0][2:]: line for line in text.splitlines() if line.startswith('|')}
    # Of another scale or generator nothing of the paper's stands in the same row.
    assert lines['Random weights'].endswith('|  | (59.0) | (31.4) | (28.5) | (65.2) | – | – |')
    assert lines['Random weights [miniature scale]'].endswith('| 1 | – | 5.0 | – | – | 10.0 | – |')
    assert lines['MoCo v2 (synthetic, miniature)'].endswith(
        '| 2 | – | 21.0 ± 1.4 | – | 30.0 ± 0.0 | – | – |'
    )
    assert lines['MoCo v2 (synthetic, deepif)'].endswith(
        '|  | (81.9) | (38.8) | (35.5) | (74.6) | (65.9) | – |'
    )
    second = table_markdown(gather_rows([OURS, VIT], 2), 2)
    assert '| MAE (real) [miniature scale] | 1 | 50.0 |' in second
    assert '| Random weights | 1 | 7.0 |' in second  # the ViT's, not the ResNet's


@pytest.mark.parametrize(
    'scale, generator, cell',
    [
        ('paper', 'sd15', '20.0 (37.9)'),
        ('paper', 'deepif', '20.0 (38.8)'),
        ('paper', 'sdxl', '20.0'),
        ('paper', '', '20.0'),
        ('miniature', 'sd15', '20.0'),
        ('', 'sd15', '20.0'),
    ],
)
def test_brackets_only_beside_the_papers_scale_and_generators(scale, generator, cell):
    """A row that doesn't say its generator is nobody's, not Stable Diffusion's."""
    made = result(('mocov2', 'synthetic', False, 0, {'box_ap': 0.2}, generator), scale=scale)
    if not scale:
        del made['rows'][0]['scale']
    text = table_markdown(gather_rows([made], 1), 1, whole=False)
    line = text.splitlines()[-1]
    assert line == f'| MoCo v2 (synthetic, {generator or "unknown"}) | 1 | {cell} |'
    assert ('in brackets' in text) == ('(3' in cell)


def test_ours_alone_stand_in_the_papers_order():
    results = result(
        *(
            (
                row['method'],
                row['regime'],
                row['masks'],
                row['seed'],
                row['metrics'],
                row['generator'],
            )
            for row in reversed(OURS['rows'])
        )
    )
    lines = table_markdown(gather_rows([results], 1), 1, whole=False).splitlines()
    assert lines[2] == '| Pretraining | Seeds | COCO box AP | Cityscapes mIoU | ImageNet linear |'
    assert [line.split(' |')[0][2:] for line in lines[4:]] == [
        'Random weights',
        'MoCo v2 (synthetic, miniature)',
        'MoCo v2 + Free-ATM (synthetic, miniature)',
    ]
    assert lines[5].endswith('| 2 | 21.0 ± 1.4 | 30.0 ± 0.0 | – |')


def test_a_cell_of_fewer_seeds_than_its_row_says_so():
    rows = [
        ('mae', 'real', False, seed, {'box_ap': 0.5, **({'miou': 0.4} if seed else {})}, '')
        for seed in range(3)
    ]
    assert '| MAE (real) | 3 | 50.0 ± 0.0 (50.3) | 40.0 ± 0.0, 2 seeds (48.1) |' in table_markdown(
        gather_rows([result(*rows, scale='paper')], 2), 2, whole=False
    )


def test_improvements_and_their_signs():
    text = improvements(gather_rows([OURS], 1), 1)
    assert '| MoCo v2 + Free-ATM (synthetic, miniature) | COCO box AP | +2.5 ± 0.7 |' in text
    assert '| Cityscapes mIoU | -1.5 ± 0.7 |' in text and '| 2 | +1.7 |' in text
    assert (
        "1 of 2 of the paper's improvements have the same sign here. With p below 0.05: 0 of "
        'these, and 0 of the 1 of the other sign.' in text
    )
    assert text.startswith("The paper's are of its own scale and generators: compare signs")
    assert improvements(gather_rows([OURS], 2), 2) == ''


def test_sure_differences_are_counted_by_sign():
    rows = [
        (
            'simclr',
            'mixed',
            masks,
            seed,
            {
                'box_ap': 0.2 + 0.01 * seed + (0.03 + 0.001 * seed) * masks,
                'miou': 0.3 + 0.01 * seed - (0.03 + 0.001 * seed) * masks,
            },
            'sd15',
        )
        for masks in (False, True)
        for seed in range(3)
    ]
    text = improvements(gather_rows([result(*rows, scale='paper')], 1), 1)
    assert '1 of 2 of' in text and 'own scale' not in text
    assert 'With p below 0.05: 1 of these, and 1 of the 1 of the other sign.' in text


def test_no_difference_has_no_sign():
    rows = [
        ('simclr', 'mixed', masks, seed, {'box_ap': 0.2 + 0.01 * seed, 'mask_ap': 0.3}, 'sd15')
        for masks in (False, True)
        for seed in range(3)
    ]
    text = improvements(gather_rows([result(*rows)], 1), 1)
    assert (
        "0 of 2 of the paper's improvements have the same sign here, 2 are no difference at "
        'all. With p below 0.05: 0 of these, and 0 of the 0 of the other sign.' in text
    )


@pytest.mark.parametrize('key, values', [('epochs', (200, 800)), ('scale', ('paper', 'miniature'))])
def test_rows_of_another_length_or_scale_are_not_averaged(key, values):
    results = new_results('test', 'python x')
    for seed, value in enumerate(values):
        add_row(
            results,
            {
                'method': 'simclr',
                'regime': 'real',
                'masks': False,
                'seed': seed,
                'epochs': 10,
                'generator': '',
                key: value,
                'metrics': {'box_ap': 0.1},
            },
        )
    with pytest.raises(
        ValueError,
        match=rf'the rows of SimCLR \(real\) differ in {key}, '
        f'{values[0]} and {values[1]}: make a table of each',
    ):
        gather_rows([results], 1)


def with_options(*options, scale='paper'):
    """A row a seed of MAE on real images, each with options of its own."""
    rows = [('mae', 'real', False, seed, {'box_ap': 0.5}, '') for seed in range(len(options))]
    made = result(*rows, scale=scale)
    for row, words in zip(made['rows'], options):
        row |= {'options': {'box_ap': words}} if words else {}
    return made


def test_rows_of_other_options_are_not_averaged():
    short = ['train_cfg.max_epochs=1']
    with pytest.raises(
        ValueError,
        match=r'MAE \(real\) differ in the options of box_ap, none and train_cfg.max_epochs=1:',
    ):
        gather_rows([with_options([], short)], 2)
    with pytest.raises(ValueError, match='options of box_ap, --amp and none'):
        gather_rows([with_options(['--amp'], [])], 2)
    with pytest.raises(ValueError, match='options of box_ap, none and --amp'):
        summarise_rows(with_options([], ['--amp']))


def test_figures_of_other_options_stand_apart_from_the_papers():
    short = ['train_cfg.max_epochs=1']
    for whole in (True, False):
        text = table_markdown(gather_rows([with_options(short, short)], 2), 2, whole)
        assert '50.0 ± 0.0 |' in text and '50.0 ± 0.0 (' not in text
        assert 'Not as configured: MAE (real): COCO box AP with `train_cfg.max_epochs=1`.' in text
    # Mixed precision changes no protocol, but is told.
    text = table_markdown(gather_rows([with_options(['--amp'])], 2), 2)
    assert '| MAE (real) | 1 | 50.0 (50.3) |' in text
    assert 'Not as configured: MAE (real): COCO box AP with `--amp`.' in text
    text = table_markdown(gather_rows([with_options(short)], 2), 2)
    assert '| MAE (real) [other options] | 1 | 50.0 |' in text
    assert 'Not as configured' not in table_markdown(gather_rows([with_options([])], 2), 2)


def test_unlike_options_are_not_compared():
    made = with_options(['--amp'])
    masked = {**made['rows'][0], 'masks': True, 'metrics': {'box_ap': 0.6, 'mask_ap': 0.6}}
    del masked['options']
    add_row(made, masked)
    text = improvements(gather_rows([made], 2), 2)
    assert text == (
        'Not compared, as measured with other options than without masks: COCO box AP of MAE + '
        'Free-ATM (real).\n'
    )


def test_pretrainings_of_other_lengths_are_not_compared():
    made = result(
        ('mae', 'real', False, 0, {'box_ap': 0.5}, ''),
        ('mae', 'real', True, 0, {'box_ap': 0.6}, ''),
    )
    assert '+10.0' in improvements(gather_rows([made], 2), 2)
    masked = made['rows'][1]
    for changed, told in (
        ({'epochs': 800}, 'epochs 800, not 10'),
        ({'scale': 'paper'}, 'scale paper, not miniature'),
        ({'epochs': 5, 'scale': 'paper'}, 'epochs 5, not 10, scale paper, not miniature'),
    ):
        made['rows'][1] = {**masked, **changed}
        assert improvements(gather_rows([made], 2), 2) == (
            'Not compared, as pretrained otherwise than without masks: MAE + Free-ATM (real) '
            f'({told}).\n'
        )


@pytest.mark.parametrize('options', [['--amp'], {'box_ap': '--amp'}, {'box_ap': [1]}])
def test_options_that_are_none_are_told(options):
    made = with_options([])
    made['rows'][0]['options'] = options
    with pytest.raises(ValueError, match='row 0: options must be an object of lists of words'):
        validate_results(made)


def test_no_table_takes_a_smoke_run(tmp_path, capsys):
    made = result(('mocov2', 'synthetic', False, 0, {'box_ap': 0.2}, 'sdxl'), scale='smoke')
    write_results(tmp_path / 'row.json', made)
    load_tool('results/tables').main([str(tmp_path / 'row.json'), '--tables', '1'])
    told = capsys.readouterr()
    assert '1 row of --smoke left out, a few images being no result: mocov2 (seed 0' in told.err
    assert 'sdxl' not in told.out and 'in none of the tables' not in told.err
    with pytest.raises(ValueError, match=r'MoCo v2 \(synthetic\), seed 0, is of --smoke'):
        summarise_rows(made)


def test_one_seed_given_twice_is_refused():
    with pytest.raises(ValueError, match=r'two rows give box_ap for MAE \(real\), seed 0'):
        gather_rows([OURS, OURS], 2)


def test_the_tool(tmp_path, capsys):
    tool = load_tool('results/tables')
    write_results(tmp_path / 'row.json', OURS)
    tool.main([str(tmp_path / 'row.json'), '--tables', '1', '--out', str(tmp_path / 't.md')])
    out = capsys.readouterr().out
    assert 'same sign here' in out and (tmp_path / 't.md').read_text().strip() == out.strip()
    (tmp_path / 'bad.json').write_text('{}')
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / 'bad.json')])
    assert 'missing' in capsys.readouterr().err
    case = {'case': 'record', 'ratio': 1.03, 'baseline': 2.1, 'ours': 2.2, 'unit': 's'}
    write_results(tmp_path / 'speed.json', {**OURS, 'rows': [case]})
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / 'row.json'), str(tmp_path / 'speed.json')])
    assert 'speed.json holds benchmarks (record), which are in none' in capsys.readouterr().err


def test_a_row():
    row = OURS['rows'][1]
    lines = row_markdown({**row, 'metrics': {**row['metrics'], 'fps': 0.5}}).splitlines()
    assert lines[0] == '| Pretraining | Detection (box AP) | Segmentor (mIoU) | fps |'
    assert lines[2] == '| MoCo v2 (synthetic) | 20.0 | 30.0 | 50.0 |'
