"""Merging, splitting and filtering: the right samples, byte for byte, and nothing decoded."""

from __future__ import annotations

import pytest
from helpers.store_samples import assert_same, folder_bytes, make_sample, varied_sample
from helpers.tools import exit_code
from hypothesis import example, given
from hypothesis import strategies as st

from freeatm_mm import cli
from freeatm_mm.store import Store, StoreError, verify_store, write_store
from freeatm_mm.store import sample as sample_module
from freeatm_mm.store.edit import filter_store, merge_stores, parse_condition, split_store


@pytest.fixture
def stores(tmp_path):
    """Samples 0 to 6 in shards of 3, and 10 to 14 in shards of 2."""
    write_store(tmp_path / 'a', map(varied_sample, range(7)), 3, {'steps': 5})
    write_store(tmp_path / 'b', map(varied_sample, range(10, 15)), 2, {'steps': 6})
    return tmp_path / 'a', tmp_path / 'b'


@pytest.fixture
def no_decoding(monkeypatch, stores):
    """Whatever is tested decodes no image and no masks."""

    def fail(*rest, **options):
        raise AssertionError('something was decoded')

    monkeypatch.setattr(sample_module.Image, 'open', fail)
    yield
    monkeypatch.undo()


def numbers(path):
    return [int(sample.key) for sample in Store(path)]


def test_merged_stores_hold_all_samples_as_they_were(stores, no_decoding, tmp_path, monkeypatch):
    assert merge_stores(stores, tmp_path / 'out', samples_per_shard=4) == 12
    monkeypatch.undo()
    store = Store(tmp_path / 'out')
    for sample, number in zip(store, [*range(7), *range(10, 15)]):
        assert_same(sample, varied_sample(number))
    assert [shard['samples'] for shard in store.manifest['shards']] == [4, 4, 4]
    assert [source['config']['steps'] for source in store.config['sources']] == [5, 6]
    assert list(verify_store(tmp_path / 'out')) == []


def test_a_copy_that_was_stopped_goes_on(stores, tmp_path):
    merge_stores(stores, tmp_path / 'out')
    whole = folder_bytes(tmp_path / 'out')
    for name in ('shard-000001.json', 'shard-000002.tar'):
        (tmp_path / 'out' / name).unlink()
    kept = (tmp_path / 'out' / 'shard-000000.tar').stat().st_ino
    merge_stores(stores, tmp_path / 'out')
    assert folder_bytes(tmp_path / 'out') == whole
    assert (tmp_path / 'out' / 'shard-000000.tar').stat().st_ino == kept
    with pytest.raises(StoreError, match='made otherwise: .* there and .* here; another sources'):
        merge_stores(stores[:1], tmp_path / 'out')


def test_keys_in_common_are_refused_unless_there_are_prefixes(stores, tmp_path):
    first, _ = stores
    with pytest.raises(StoreError, match="both have a sample '000000'; give prefixes"):
        merge_stores([first, first], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert merge_stores([first, first], tmp_path / 'out', prefixes=['x', 'y']) == 14
    store = Store(tmp_path / 'out')
    assert (store[1].key, store[8].key) == ('x-000001', 'y-000001')
    assert store[8].image_bytes == varied_sample(1).image_bytes
    for prefixes in (['x'], ['x', 'x']):
        with pytest.raises(ValueError, match='2 stores need as many different prefixes'):
            merge_stores([first, first], tmp_path / 'other', prefixes=prefixes)
    with pytest.raises(StoreError, match='not usable as a file name'):
        merge_stores([first], tmp_path / 'long', prefixes=['p' * 80])


def test_a_split_gives_each_sample_to_one_part_whatever_else_is_there(tmp_path, monkeypatch):
    write_store(tmp_path / 'few', (make_sample(n) for n in range(0, 60, 2)), 20)
    write_store(tmp_path / 'many', (make_sample(n) for n in range(60)), 20)
    for name, count in (('few', 30), ('many', 60)):
        parts = {tmp_path / name / 'train': 0.7, tmp_path / name / 'val': 0.3}
        found = split_store(tmp_path / name, parts)
        assert sum(found.values()) == count
        train, val = (numbers(part) for part in parts)
        assert sorted(train + val) == sorted(numbers(tmp_path / name))
    assert set(numbers(tmp_path / 'few' / 'train')) <= set(numbers(tmp_path / 'many' / 'train'))
    assert 30 <= len(train) <= 54  # 42 expected; 0.001 of all seeds would be further off
    split_store(tmp_path / 'many', {tmp_path / 's1': 0.7, tmp_path / 's2': 0.3}, seed=1)
    assert numbers(tmp_path / 's1') != train


@pytest.mark.parametrize('shares', [[0.5, 0.4], [1.5, -0.5], [0.9, 0.2]])
def test_shares_that_do_not_add_up_are_refused(stores, tmp_path, shares):
    with pytest.raises(ValueError, match='add up to 1'):
        split_store(stores[0], dict(zip('ab', shares)))


def test_an_empty_part_is_refused_before_anything_is_written(stores, tmp_path):
    with pytest.raises(StoreError, match='y of .* would be empty'):
        split_store(stores[0], {tmp_path / 'x': 1 - 1e-9, tmp_path / 'y': 1e-9})
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    'conditions, expected',
    [
        (['meta.seed>=4'], [4, 5, 6]),
        (['meta.seed<2'], [0, 1]),
        (['meta.seed==3'], [3]),
        (['meta.seed!=3', 'meta.seed<=4'], [0, 1, 2, 4]),
        (['nouns.#==3'], [2, 5]),
        (['nouns.#>1'], [1, 2, 5]),
        (['nouns.category==sand'], [2, 5]),
        (['none:nouns.category==dress'], [0, 3, 4, 6]),
        (['all:nouns.text==bird'], [0, 3, 4, 6]),
        (['image.width==20', 'meta.seed>5'], [6]),
        (['caption==4: '], []),
        (['meta.nothing==1'], []),
        (['meta.seed==bird'], []),
        (['meta.nothing!=true'], list(range(7))),
        (['meta.a.b!=1'], list(range(7))),
        (['meta.nothing==null'], list(range(7))),
        (['meta.seed!=null'], list(range(7))),
        (['meta.seed==null'], []),
        (['meta.nothing<1'], []),
        (['meta.nothing>=0'], []),
        (['all:meta.nothing>0'], []),
        (['none:meta.nothing==true'], list(range(7))),
        (['meta.nothing.#==0'], list(range(7))),
        (['nouns.category!=dress'], [0, 1, 2, 3, 4, 5, 6]),
        (['nouns.category==null'], []),
        (['all:nouns.category!=dress'], [0, 3, 4, 6]),
        (['nouns.hi>=0'], [0, 1, 2, 3, 5, 6]),
    ],
)
def test_filters_keep_what_fits(stores, no_decoding, tmp_path, monkeypatch, conditions, expected):
    parsed = [parse_condition(text) for text in conditions]
    if not expected:
        with pytest.raises(StoreError, match=r'no sample of .* \(7\) matches'):
            filter_store(stores[0], tmp_path / 'out', parsed)
        assert not (tmp_path / 'out').exists()
        return
    assert filter_store(stores[0], tmp_path / 'out', parsed) == len(expected)
    monkeypatch.undo()
    for sample, number in zip(Store(tmp_path / 'out'), expected):
        assert_same(sample, varied_sample(number))
    assert list(verify_store(tmp_path / 'out')) == []


@pytest.mark.parametrize(
    'text',
    [
        '',
        'meta',
        'meta.steps',
        '>=3',
        'meta..x==1',
        'nouns.#.x==1',
        'meta.steps=3',
        '__import__("os")',
        'meta.x==',
        'some:nouns.#>1',
    ],
)
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(ValueError, match='is no condition|is no path'):
        parse_condition(text)


@pytest.mark.parametrize(
    'sign, value, without, null, true, one',
    [
        ('!=', 'true', True, True, False, True),
        ('==', 'true', False, False, True, False),
        ('==', 'null', True, True, False, False),
        ('!=', 'null', False, False, True, True),
        ('<', '2', False, False, False, True),
        ('>=', '0', False, False, False, True),
        ('!=', '2', True, True, True, True),
        ('!=', 'word', True, True, True, True),
        ('<', 'word', False, False, False, False),
    ],
)
def test_a_missing_value_is_like_null_at_any_depth(sign, value, without, null, true, one):
    expected = {'without': without, 'null': null, 'true': true, 'one': one}
    inner = {'without': {}, 'null': {'x': None}, 'true': {'x': True}, 'one': {'x': 1}}
    for path, wrap in (
        ('meta.x', lambda x: {'meta': x}),
        ('meta.a.x', lambda x: {'meta': {'a': x}}),
        ('meta.list.x', lambda x: {'meta': {'list': [x]}}),
    ):
        condition = parse_condition(f'{path}{sign}{value}')
        assert {name: condition(wrap(x)) for name, x in inner.items()} == expected
    for info in ({}, {'meta': None}, {'meta': 3}, {'meta': {'a': 'text'}}):
        assert parse_condition(f'meta.a.x{sign}{value}')(info) == without


@pytest.mark.parametrize(
    'text, message',
    [
        ('mta.seed!=1', "a sample has no 'mta' but caption, nouns"),
        ('nouns.kind!=dog', "nouns has no 'kind' but text, start"),
        ('none:image.size>3', "image has no 'size'"),
        ('nouns==dog', r"'nouns' is no single value: compare .* nouns.text \("),
    ],
)
def test_a_path_that_no_sample_can_have_is_refused(stores, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse_condition(text)
    page = tmp_path / 'page.html'
    assert exit_code(cli, ['view', stores[0], '--out', page, '--where', text]) == 2
    assert not page.exists()


def test_a_path_that_no_sample_has_is_said(stores, tmp_path, caplog):
    filter_store(
        stores[0],
        tmp_path / 'out',
        [parse_condition('meta.hidden!=true'), parse_condition('meta.seed!=3')],
    )
    assert [record.getMessage() for record in caplog.records] == [
        f'no sample of {stores[0]} has meta.hidden'
    ]


@pytest.mark.parametrize('value', ['1e999', '-1e400'])
def test_a_number_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match='larger than any number'):
        parse_condition(f'meta.x<{value}')


def test_a_damaged_sample_is_not_left_out_without_a_word(stores, tmp_path):
    """Its changed JSON would not fit the condition any more."""
    tar = stores[0] / 'shard-000000.tar'
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b'"category":"bird"', b'"category":"bixd"', 1))
    with pytest.raises(StoreError, match='corrupt'):
        filter_store(stores[0], tmp_path / 'out', [parse_condition('nouns.category==bird')])


@example('0\n0', None)
@given(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(['a', 'b']), inner),
    ),
)
def test_no_text_and_no_json_breaks_a_condition(text, value):
    try:
        condition = parse_condition(text)
    except ValueError:
        condition = parse_condition(f'meta.b>={text.strip() or 0}')
    assert condition({'a': value}) in (True, False)


def test_a_store_is_not_changed_in_place(stores):
    before = folder_bytes(stores[0])
    with pytest.raises(StoreError, match='one of the sources'):
        filter_store(stores[0], stores[0], [parse_condition('meta.seed>2')])
    assert folder_bytes(stores[0]) == before


def test_a_damaged_sample_is_not_copied(stores, tmp_path):
    tar = stores[0] / 'shard-000001.tar'
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    with pytest.raises(StoreError, match='000003'):
        merge_stores(stores, tmp_path / 'out')
