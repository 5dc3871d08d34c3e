"""Prompt records: spans are checked, files are read line by line and written whole."""
from __future__ import annotations

import json

import pytest

from freeatm_mm.prompts import Noun, PromptRecord, read_prompts, write_prompts

RECORD = PromptRecord('7', 'a red dress with a bird', (Noun('dress', 6, 11, 'garment'),
                                                       Noun('bird', 19, 23)), 'template')


def test_a_record_survives_json():
    assert PromptRecord.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


@pytest.mark.parametrize('noun, message', [
    (Noun('bird', 19, 24), 'lies outside the prompt, which has 23 characters'),
    (Noun('bird', -4, 3), 'lies outside'),
    (Noun('bird', 5, 5), 'lies outside'),
    (Noun('bird', 18, 22), "holds ' bir', not the noun 'bird'"),
])
def test_a_wrong_span_is_refused(noun, message):
    with pytest.raises(ValueError, match=message):
        PromptRecord('7', RECORD.prompt, (noun,))


@pytest.mark.parametrize('change, message', [
    ({'prompt': None}, "needs the string field 'prompt'"),
    ({'id': 7}, "needs the string field 'id'"),
    ({'nouns': 'dress'}, 'nouns must be a list'),
    ({'nouns': [{'text': 'dress', 'start': 6}]}, "has no field 'end'"),
    ({'nouns': [{'text': 'dress', 'start': '6', 'end': 11}]}, 'start and end integers'),
    ({'nouns': [{'text': 'dress', 'start': 6, 'end': True}]}, 'start and end integers'),
    ({'nouns': [3]}, 'a noun must be an object'),
])
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
