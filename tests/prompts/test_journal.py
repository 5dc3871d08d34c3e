"""The journal: nothing lost, nothing twice, wherever a run is stopped."""

from __future__ import annotations

import json
import os

import pytest
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.prompts import Noun, PromptRecord, read_prompts
from freeatm_mm.prompts.journal import Batch, SeenTexts, journal_path, write_batches


class Stop(Exception):
    """Stands for whatever stops a run."""


def record(number):
    return PromptRecord(f'r{number}', f'a bird {number}', (Noun('bird', 2, 6),), 'test')


def numbers(stop_after=None, total=10, made=None):
    """Batches of two records; may stop before the end."""

    def batches(read, seen, counts):
        for number in range(read, total, 2):
            if stop_after is not None and number >= stop_after:
                raise Stop
            if made is not None:
                made.append(number)
            yield Batch(2, (record(number), record(number + 1)), {'seen': 2, 'cost': 0.5})

    return batches


def test_a_file_is_written_at_the_end_only(tmp_path):
    path = tmp_path / 'new' / 'prompts.jsonl'
    with pytest.raises(Stop):
        write_batches(path, {'a': 1}, numbers(stop_after=6))
    assert not path.exists() and journal_path(path).exists()
    made = []
    report = write_batches(path, {'a': 1}, numbers(made=made))
    assert made == [6, 8], 'what the journal held was made again'
    assert list(read_prompts(path)) == [record(n) for n in range(10)]
    assert (report.read, report.records, report.resumed) == (10, 10, 6)
    assert report.counts == {'seen': 10, 'cost': 2.5}
    assert [p.name for p in path.parent.iterdir()] == ['prompts.jsonl']
    text = str(report)
    assert '10 prompts' in text and '6 of them before an interruption' in text
    assert 'cost: 2.5' in text


@pytest.mark.parametrize('cut', range(1, 400, 37))
def test_a_torn_journal_goes_on_to_the_same_file(tmp_path, cut):
    """Cut off at any byte, as a power cut may leave it."""
    whole, torn = tmp_path / 'whole.jsonl', tmp_path / 'torn.jsonl'
    write_batches(whole, {}, numbers())
    with pytest.raises(Stop):
        write_batches(torn, {}, numbers(stop_after=6))
    journal = journal_path(torn)
    journal.write_bytes(journal.read_bytes()[:-cut])
    write_batches(torn, {}, numbers())
    assert torn.read_bytes() == whole.read_bytes()


def test_other_settings_do_not_go_on_with_a_journal(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    with pytest.raises(Stop):
        write_batches(path, {'seed': 0, 'count': 10}, numbers(stop_after=4))
    before = journal_path(path).read_bytes()
    with pytest.raises(ValueError, match=r'other settings \(different: seed\)'):
        write_batches(path, {'seed': 1, 'count': 10}, numbers())
    assert journal_path(path).read_bytes() == before


def test_a_run_that_did_nothing_stands_in_no_way(tmp_path):
    """A mistyped name leaves a journal with settings alone."""
    path = tmp_path / 'prompts.jsonl'
    with pytest.raises(Stop):
        write_batches(path, {'file': 'mistyped'}, numbers(stop_after=0))
    assert journal_path(path).exists()
    assert write_batches(path, {'file': 'right'}, numbers()).records == 10


def test_a_damaged_journal_is_named(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    journal_path(path).write_text('{"settings": {}}\n{"read": 2}\n')
    with pytest.raises(ValueError, match=r'prompts\.jsonl\.journal, line 2: damaged'):
        write_batches(path, {}, numbers())


def test_a_finished_file_is_not_replaced_unasked(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    path.write_text('mine')
    with pytest.raises(FileExistsError, match='exists already'):
        write_batches(path, {}, numbers())
    assert path.read_text() == 'mine'
    write_batches(path, {}, numbers(), overwrite=True)
    assert len(list(read_prompts(path))) == 10


def test_two_records_of_one_id_are_refused_across_runs(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    with pytest.raises(Stop):
        write_batches(path, {}, numbers(stop_after=4))

    def again(read, seen, counts):
        yield Batch(1, (record(1),))

    with pytest.raises(ValueError, match="the id 'r1'; ids must be unique"):
        write_batches(path, {}, again)


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / 'prompts.jsonl'

    def batches(read, seen, counts):
        with pytest.raises(ValueError, match='another process is writing'):
            write_batches(path, {}, numbers())
        yield Batch(1, (record(1),))

    assert write_batches(path, {}, batches).records == 1


def test_a_run_knows_what_was_said_and_spent_before(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    with pytest.raises(Stop):
        write_batches(path, {}, numbers(stop_after=4))

    def batches(read, seen, counts):
        assert counts == {'seen': 4, 'cost': 1.0}
        assert not seen.add('A Bird 3') and seen.add('a bird 4')
        yield Batch(0)

    write_batches(path, {}, batches)


def test_texts_count_as_seen():
    with SeenTexts() as seen:
        assert [seen.add(text) for text in ('a dog', ' A DOG ', 'a cat', 'a dog', '')] == [
            True,
            False,
            True,
            False,
            True,
        ]
    with SeenTexts(fold=False) as seen:
        assert seen.add('a') and seen.add('A') and not seen.add('a')


def test_the_file_is_plain_json_lines(tmp_path):
    path = tmp_path / 'prompts.jsonl'

    def batches(read, seen, counts):
        yield Batch(1, (PromptRecord('1', 'ein Vögel 🐦'),))

    write_batches(path, {}, batches)
    (line,) = path.read_text(encoding='utf-8').splitlines()
    assert json.loads(line)['prompt'] == 'ein Vögel 🐦' and '🐦' in line


@pytest.mark.parametrize(
    'content, message',
    [
        (b'{"settings": {}}\n' + b'[' * 100_000 + b'\n', 'line 2: damaged .*nested too deep'),
        (b'{"settings": {}}\n\xff\n', 'line 2: damaged .*not UTF-8'),
        (b'{"settings": {}}\n{"read": -2, "counts": {}, "records": []}\n', 'line 2: damaged'),
        (
            b'{"settings": {}}\n{"read": 2, "counts": {"a": "b"}, "records": []}\n',
            'line 2: damaged',
        ),
        (
            b'{"settings": {}}\n{"read": 2, "counts": {}, "records": [{"id": "1"}]}\n',
            'line 2: damaged .*prompt',
        ),
        (
            b'{"settings": {}}\n{"read": 2, "counts": {}, "records": [{"id": "1", '
            b'"prompt": "a dog", "nouns": [{"text": "cat", "start": 2, "end": 5}]}]}\n',
            'line 2: damaged .*not the noun',
        ),
        (b'{"settings": 5}\n', 'line 1: damaged'),
        (b'[]\n', 'line 1: damaged'),
        (b'my only copy of something', 'line 1: damaged, or no journal'),
        (b'x' * (1 << 21), 'line 1: damaged, or no journal'),
    ],
)
def test_what_is_no_journal_is_named_and_kept(tmp_path, content, message):
    path = tmp_path / 'prompts.jsonl'
    journal_path(path).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        write_batches(path, {}, numbers())
    assert journal_path(path).read_bytes() == content and '\n' not in str(caught.value)


@pytest.mark.parametrize('there', [True, False])
def test_nothing_is_written_through_a_link(tmp_path, there):
    path, elsewhere = tmp_path / 'prompts.jsonl', tmp_path / 'elsewhere'
    if there:
        elsewhere.write_bytes(b'precious')
    journal_path(path).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=r'prompts\.jsonl\.journal is a symbolic link'):
        write_batches(path, {}, numbers())
    assert elsewhere.exists() == there and (not there or elsewhere.read_bytes() == b'precious')
    journal_path(path).unlink()
    path.symlink_to(elsewhere)
    with pytest.raises(FileExistsError):
        write_batches(path, {}, numbers())
    # Replaced on request, not written through.
    write_batches(path, {}, numbers(), overwrite=True)
    assert not path.is_symlink() and len(list(read_prompts(path))) == 10
    assert elsewhere.exists() == there and (not there or elsewhere.read_bytes() == b'precious')


def test_a_pipe_or_folder_is_no_journal_and_no_target(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    os.mkfifo(journal_path(path))
    with pytest.raises(ValueError, match=r'journal is no regular file'):
        write_batches(path, {}, numbers())
    journal_path(path).unlink()
    journal_path(path).mkdir()
    with pytest.raises(ValueError, match="journal .* can't be opened"):
        write_batches(path, {}, numbers())
    os.mkfifo(path)
    with pytest.raises(ValueError, match='is no regular file and is not replaced'):
        write_batches(path, {}, numbers(), overwrite=True)
    with pytest.raises(ValueError, match='is no regular file and is not replaced'):
        write_batches('/dev/null', {}, numbers(), overwrite=True)


def test_doubled_ids_are_left_out_on_request(tmp_path):
    path = tmp_path / 'prompts.jsonl'

    def batches(read, seen, counts):
        yield Batch(2, (record(1), record(2)), {'nouns': 2})
        yield Batch(2, (record(2), record(3)), {'nouns': 2})

    report = write_batches(path, {}, batches, skip_doubled=True)
    assert [r.id for r in read_prompts(path)] == ['r1', 'r2', 'r3']
    assert report.counts == {'nouns': 3, 'skipped: its id came before': 1} and report.records == 3


@pytest.fixture(scope='module')
def unfinished(tmp_path_factory):
    """A journal, and the file that it leads to."""
    path = tmp_path_factory.mktemp('unfinished') / 'prompts.jsonl'
    with pytest.raises(Stop):
        write_batches(path, {'seed': 0}, numbers(stop_after=6))
    journal = journal_path(path).read_bytes()
    write_batches(path, {'seed': 0}, numbers())
    return journal, path.read_bytes()


@examples(200)
@given(st.integers(0, 1400), st.binary(max_size=6), st.booleans())
def test_any_damage_is_named_or_made_good(tmp_path_factory, unfinished, place, put, cut):
    """Bytes of a journal replaced or cut off: one sentence, or the same file."""
    content, whole = unfinished
    damaged = content[:place] + put + (b'' if cut else content[place + len(put) :])
    path = tmp_path_factory.getbasetemp() / 'damaged.jsonl'
    path.unlink(missing_ok=True)
    journal_path(path).write_bytes(damaged)
    try:
        write_batches(path, {'seed': 0}, numbers())
    except ValueError as error:
        assert 'damaged.jsonl.journal' in str(error) and '\n' not in str(error)
        assert journal_path(path).read_bytes() == damaged
    else:
        assert path.read_bytes() == whole


def test_a_flipped_letter_is_damage(tmp_path, unfinished):
    path = tmp_path / 'prompts.jsonl'
    journal_path(path).write_bytes(unfinished[0].replace(b'"a bird 3"', b'"a bird 8"'))
    with pytest.raises(ValueError, match='line 3: damaged .*other bytes than were written'):
        write_batches(path, {'seed': 0}, numbers())


def test_a_journal_of_an_older_version_goes_on(tmp_path, unfinished):
    path = tmp_path / 'prompts.jsonl'
    lines = [json.loads(line) for line in unfinished[0].splitlines()]
    assert all(line.pop('check') for line in lines)
    journal_path(path).write_text(''.join(json.dumps(line) + '\n' for line in lines))
    write_batches(path, {'seed': 0}, numbers())
    assert path.read_bytes() == unfinished[1]
