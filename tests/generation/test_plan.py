"""Which sample goes where: checked against the plain definition."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from helpers.examples import examples
from helpers.servers import serve_files
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.errors import InputError
from freeatm_mm.generation import GenerationJob
from freeatm_mm.generation.plan import Plan, PromptFile, sample_key, sample_seed
from freeatm_mm.prompts import Noun, PromptRecord, write_prompts


def records(count, first=0):
    return [
        PromptRecord(f'{n:06d}', f'a dog {n}', (Noun('dog', 2, 5, 'dog'),), 'template')
        for n in range(first, first + count)
    ]


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 9))
@examples(60)
def test_the_shards_are_the_samples_in_order_cut_in_pieces(count, each, samples_per_shard):
    prompts = records(count)
    plan = Plan(prompts, each, samples_per_shard)
    samples = [(record, number) for record in prompts for number in range(each)]
    pieces = [
        samples[first : first + samples_per_shard]
        for first in range(0, len(samples), samples_per_shard)
    ]
    assert (plan.num_samples, plan.num_shards) == (len(samples), len(pieces))
    assert [plan.shard(index) for index in range(plan.num_shards)] == pieces


def test_keys_of_all_samples_differ():
    ids = ['a', 'a-1', 'a-1-0', 'b']
    for each in (1, 12):
        keys = [sample_key(name, number, each) for name in ids for number in range(each)]
        assert len(set(keys)) == len(keys)
    assert sample_key('000123', 0, 1) == '000123'


def test_a_seed_is_a_hash_of_run_prompt_and_image():
    digest = hashlib.blake2b(b'7/000123/2', digest_size=8).digest()
    assert sample_seed(7, '000123', 2) == int.from_bytes(digest, 'big') // 2
    seeds = {
        sample_seed(run, name, number)
        for run in range(3)
        for name in ('0', '1', '00')
        for number in range(3)
    }
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_fingerprint_tells_prompts_apart_and_not_where_they_come_from(tmp_path):
    write_prompts(tmp_path / 'prompts.jsonl', records(5))
    from_file = Plan(PromptFile(tmp_path / 'prompts.jsonl'), 1, 2)
    assert from_file.fingerprint == Plan(records(5), 1, 2).fingerprint
    assert from_file.fingerprint != Plan(records(4), 1, 2).fingerprint
    assert from_file.fingerprint != Plan(records(5, first=1), 1, 2).fingerprint


def test_a_prompt_file_gives_its_records_at_random(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    lines = [json.dumps(record.to_json(), ensure_ascii=False) for record in records(4)]
    lines[1] = lines[1].replace('a dog', 'a dog äöü')  # bytes and characters differ
    path.write_text('\n'.join([lines[0], '', *lines[1:]]), encoding='utf-8')
    prompts = PromptFile(path)
    assert len(prompts) == 4
    assert [prompts[index].id for index in (3, 0, 2, 1)] == ['000003', '000000', '000002', '000001']
    assert prompts[1].prompt == 'a dog äöü 1'
    assert [record.id for record in prompts] == ['000000', '000001', '000002', '000003']
    assert len(PromptFile(path, limit=2)) == 2


def test_a_prompt_file_that_is_changed_while_it_is_in_use_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path('prompts.jsonl')
    write_prompts(path, records(3))
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes().replace(b'\n', b'\r\n'))
    prompts = PromptFile(path)
    monkeypatch.chdir('/')
    path = tmp_path / path
    text = path.read_bytes()
    path.write_bytes(text + b'more\n')
    assert [prompts[index].id for index in range(3)] == ['000000', '000001', '000002']
    path.write_bytes(text.replace(b'a dog 1', b'a cat 1'))
    assert (prompts[0].id, prompts[2].id) == ('000000', '000002')
    with pytest.raises(InputError, match='prompts.jsonl was changed .*its record 1 '):
        prompts[1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match='there is no prompt file'):
        prompts[1]


def test_a_prompt_file_may_be_at_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))
    write_prompts(tmp_path / 'prompts.jsonl', records(3))
    with serve_files(tmp_path) as server:
        address = f'{server.address}/prompts.jsonl'
        assert list(PromptFile(address)) == records(3)
        assert GenerationJob('pipe', address).absolute().prompts == address
        assert GenerationJob('pipe', address).absolute().records()[2] == records(3)[2]


@pytest.mark.parametrize(
    'line, message',
    [
        ('{"id": "a"', 'line 2'),
        ('{"id": "a"}', "line 2: .*'prompt'"),
        (
            '{"id": "a", "prompt": "x", "nouns": [{"text": "y", "start": 3, "end": 4}]}',
            'line 2: .*outside the prompt',
        ),
        ('\udcff', 'line 2'),
    ],
)
def test_a_bad_line_is_named_before_any_work(tmp_path, line, message):
    path = tmp_path / 'prompts.jsonl'
    good = json.dumps(records(1)[0].to_json())
    path.write_bytes(f'{good}\n{line}\n'.encode(errors='surrogateescape'))
    with pytest.raises(ValueError, match=message):
        PromptFile(path)


def test_what_makes_no_plan_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        PromptFile(tmp_path / 'nowhere.jsonl')
    (tmp_path / 'empty.jsonl').write_text('\n')
    with pytest.raises(ValueError, match='no prompts in .*empty.jsonl'):
        Plan(PromptFile(tmp_path / 'empty.jsonl'), 1, 1)
    with pytest.raises(ValueError, match='limit'):
        PromptFile(tmp_path / 'empty.jsonl', limit=0)
    for each, size in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match='at least 1'):
            Plan(records(1), each, size)
    with pytest.raises(ValueError, match='prompts 1 and 3 .* the same id'):
        Plan([*records(3), *records(1, first=1)], 1, 1)
    for name in ('a/b', '../a', 'a.b', ''):
        with pytest.raises(ValueError, match='prompt id'):
            Plan([PromptRecord(name, 'x')], 1, 1)
