"""Prompt records: spans are checked, files are read line by line and written whole."""

from __future__ import annotations

import contextlib
import json
import os

import pytest
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.prompts import Noun, PromptRecord, read_prompts, write_prompts

RECORD = PromptRecord(
    '7',
    'a red dress with a bird',
    (Noun('dress', 6, 11, 'garment'), Noun('bird', 19, 23)),
    'template',
)


def test_a_record_survives_json():
    assert PromptRecord.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


@pytest.mark.parametrize(
    'noun, message',
    [
        (Noun('bird', 19, 24), 'lies outside the prompt, which has 23 characters'),
        (Noun('bird', -4, 3), 'lies outside'),
        (Noun('bird', 5, 5), 'lies outside'),
        (Noun('bird', 18, 22), "holds ' bir', not the noun 'bird'"),
    ],
)
def test_a_wrong_span_is_refused(noun, message):
    with pytest.raises(ValueError, match=message):
        PromptRecord('7', RECORD.prompt, (noun,))


@pytest.mark.parametrize(
    'change, message',
    [
        ({'prompt': None}, "needs the string field 'prompt'"),
        ({'id': 7}, "needs the string field 'id'"),
        ({'nouns': 'dress'}, 'nouns must be a list'),
        ({'nouns': [{'text': 'dress', 'start': 6}]}, "has no field 'end'"),
        ({'nouns': [{'text': 'dress', 'start': '6', 'end': 11}]}, 'start and end integers'),
        ({'nouns': [{'text': 'dress', 'start': 6, 'end': True}]}, 'start and end integers'),
        ({'nouns': [3]}, 'a noun must be an object'),
        ({'nouns': [{'text': 'dress', 'start': -(10**40), 'end': 11}]}, 'lies outside the prompt'),
        ({'source': ['x']}, 'source must be a string'),
        ({'prompt': 'x' * 10_001}, 'has 10,001 characters, more than 10,000'),
        ({'prompt': 'a \ud83d', 'nouns': []}, 'half a character'),
        ({'id': '\udc00'}, 'half a character'),
        (
            {'nouns': [{'text': 'dress', 'start': 6, 'end': 11, 'category': '\ud83d'}]},
            'half a character',
        ),
    ],
)
def test_a_wrong_field_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PromptRecord.from_json(RECORD.to_json() | change)


def test_a_file_comes_back_as_written(tmp_path):
    records = [PromptRecord(str(number), 'a bird', (Noun('bird', 2, 6),)) for number in range(5)]
    assert write_prompts(tmp_path / 'new' / 'prompts.jsonl', iter(records)) == 5
    assert list(read_prompts(tmp_path / 'new' / 'prompts.jsonl')) == records


def test_two_records_of_one_id_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="the id '7'; ids must be unique"):
        write_prompts(tmp_path / 'prompts.jsonl', [RECORD, RECORD])
    assert not list(tmp_path.iterdir())


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    path.write_text(json.dumps(RECORD.to_json()) + '\n\n{"id": "8", "prompt": "a bi\n')
    with pytest.raises(ValueError, match=r'prompts\.jsonl, line 3: '):
        list(read_prompts(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no prompt file .*nothing.jsonl'):
        list(read_prompts(tmp_path / 'nothing.jsonl'))


def lines(*values):
    return '\n'.join(json.dumps(value) for value in values).encode()


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'holds no prompt; a prompt file has one JSON object a line'),
        (b'\n \n\xef\xbb\xbf', 'line 3: not valid JSON'),
        (b'\xef\xbb\xbf\n', 'holds no prompt'),
        (lines(RECORD.to_json(), RECORD.to_json()), "line 2: the id '7' came before"),
        (b'{"id": "1", "prompt": "caf\xe9"}', r'line 1: not UTF-8 \('),
        ('{"id": "1", "prompt": "a"}'.encode('utf-16'), 'line 1: is UTF-16 or UTF-32; save it as'),
        (b'[' * 100_000, 'line 1: JSON that is nested too deep'),
        (b'{"id": "1", "prompt": ' + b'[' * 500_000, 'line 1: JSON that is nested too deep'),
        (b'{"id": 1' + b'0' * 10_000 + b'}', 'line 1: not valid JSON'),
        (b'{"id": "1", "prompt": "\\ud83d"}', 'line 1: .*half a character'),
        (b'{"id": "' + b'x' * (1 << 21) + b'"}', 'line 1: has more than 1,048,576 bytes'),
        (b'x' * ((1 << 26) + 5), 'line 1: has no end within 64 MiB'),
        (b'{"id": "1", "prompt": "a"}\n{"id": "2", "pro', 'line 2: not valid JSON'),
    ],
)
def test_a_file_that_is_none_is_told_in_one_sentence(tmp_path, content, message):
    path = tmp_path / 'prompts.jsonl'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_prompts(path))
    assert 'prompts.jsonl' in str(caught.value) and '\n' not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for path, kind in (
        (tmp_path / 'pipe', 'a pipe'),
        (tmp_path, 'a folder'),
        ('/dev/zero', 'a device'),
    ):
        with pytest.raises(ValueError, match=f'is {kind}, not a prompt file'):
            list(read_prompts(path))
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    with pytest.raises(ValueError, match="the prompt file .*loop can't be opened"):
        list(read_prompts(tmp_path / 'loop'))
    with open(tmp_path / 'huge', 'wb') as file:
        file.truncate(10**12)
    with pytest.raises(ValueError, match='has no end within 64 MiB'):
        list(read_prompts(tmp_path / 'huge'))


def test_windows_line_ends_and_byte_order_marks_are_read(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    path.write_bytes(b'\xef\xbb\xbf' + lines(RECORD.to_json()) + b'\r\n\r\n')
    assert list(read_prompts(path)) == [RECORD]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(['dog', '\ud83d', 'a dog', 2, 5, 10**30]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ['id', 'prompt', 'nouns', 'source', 'text', 'start', 'end', 'category']
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@examples(300)
@given(
    st.one_of(
        VALUES,
        st.fixed_dictionaries(
            {
                'id': VALUES | st.just('1'),
                'prompt': VALUES | st.just('a dog'),
                'nouns': VALUES
                | st.lists(
                    st.fixed_dictionaries(
                        {
                            'text': VALUES | st.just('dog'),
                            'start': st.integers(-3, 9),
                            'end': st.integers(-3, 9),
                        }
                    ),
                    max_size=2,
                ),
            }
        ),
    )
)
def test_any_record_is_exact_or_refused(value):
    with contextlib.suppress(ValueError):
        record = PromptRecord.from_json(value)
        for noun in record.nouns:
            assert record.prompt[noun.start : noun.end] == noun.text
        json.dumps(record.to_json(), ensure_ascii=False).encode()


@examples(200)
@given(
    st.one_of(
        st.binary(max_size=100),
        st.tuples(st.integers(0, 150), st.integers(0, 255)).map(
            lambda cut: (
                (text := lines(RECORD.to_json()))[: cut[0]] + bytes([cut[1]]) + text[cut[0] + 1 :]
            )
        ),
    )
)
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / 'any.jsonl'
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        assert all(isinstance(record, PromptRecord) for record in read_prompts(path))
