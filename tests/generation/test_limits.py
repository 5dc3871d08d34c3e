"""Settings and prompt files that no run could use are refused before weights are loaded."""

from __future__ import annotations

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from helpers.tools import exit_code, load_tool

from freeatm_mm.generation import GenerationJob, Plan
from freeatm_mm.generation.limits import check_settings
from freeatm_mm.generation.plan import PromptFile
from freeatm_mm.prompts import PromptRecord, write_prompts
from freeatm_mm.prompts.record import LONGEST_PROMPT
from freeatm_mm.store import StoreWriter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def tool():
    return load_tool('generate')


@pytest.fixture()
def prompts(tmp_path):
    write_prompts(
        tmp_path / 'prompts.jsonl', [PromptRecord('a', 'a dog'), PromptRecord('b', 'sky')]
    )
    return tmp_path / 'prompts.jsonl'


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    monkeypatch.setattr(
        'freeatm_mm.generation.job.load_pipeline',
        lambda *_, **__: pytest.fail('weights were loaded'),
    )


BIG = '9' * 20


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--mask-steps', f'0:{BIG}'], "the stop of the masks' steps must be .* to 10000"),
        (['--mask-steps', '0:9:0'], 'stride .* from 1 to'),
        (['--mask-steps', '3'], 'start, stop'),
        (['--mask-propagate', BIG], 'propagate must be a whole number from 0 to 100'),
        (['--mask-propagate', '1000000000'], 'propagate must'),
        (['--mask-propagate', '-1'], 'propagate must'),
        (['--mask-crf', '97'], 'crf must be a whole number from 0 to 96'),
        (['--mask-crf', '-5'], 'crf must'),
        (['--mask-resolutions', BIG], 'resolutions must'),
        (['--mask-resolutions', '0'], 'resolutions must'),
        (['--images-per-prompt', '1000000000000'], 'images_per_prompt must'),
        (
            ['--images-per-prompt', '1000000', '--samples-per-shard', '1'],
            'more than a store may hold',
        ),
        (['--steps', '1000000000'], 'steps must be a whole number from 1 to 10000'),
        (['--steps', '-1'], 'steps must'),
        (['--steps', '9' * 4000], 'a number of more than 30 digits'),
        (['--batch-size', BIG], 'batch_size must'),
        (['--batch-size', '0'], 'batch_size must'),
        (['--samples-per-shard', BIG], 'samples_per_shard must'),
        (['--guidance', 'nan'], 'guidance must be a number from -1000 to 1000, got nan'),
        (['--guidance', 'inf'], 'guidance must'),
        (['--guidance=-1e9'], 'guidance must'),
        (['--size', '100000'], 'height must'),
        (['--size', '64x99999'], 'width must'),
        (['--seed', BIG], 'seed must'),
        (['--quality', '101'], 'quality must'),
        (['--workers', BIG], 'workers must be at least 1 and at most 1024'),
        (['--plan', '--workers', '-3'], 'workers must'),
        (['--limit', '-1'], 'limit must'),
        (['--max-failed', 'nan'], 'max_failed must'),
        (['--max-failed', '-1'], 'max_failed must'),
        (['--stage-steps', '50,1000000'], 'stage_steps must'),
        (['--stage-guidance', 'nan,4'], 'stage_guidance must'),
    ],
)
def test_numbers_without_measure_are_refused_at_once(
    tool, prompts, tmp_path, capsys, words, message
):
    assert exit_code(tool, ['nowhere', str(prompts), str(tmp_path / 'out'), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line) and len(line) < 400
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'words',
    [
        ['--steps', '1e9'],
        ['--images-per-prompt', '1e12'],
        ['--mask-propagate', '1e9'],
        ['--mask-steps', 'a:b'],
        ['--size', '-1'],
        ['--guidance', 'x'],
        ['--stage-guidance', 'x'],
    ],
)
def test_what_is_no_number_of_its_kind_is_refused_by_the_parser(tool, capsys, words):
    with pytest.raises(SystemExit) as ended:
        tool.main(['pipeline', 'prompts', 'out', *words])
    assert ended.value.code == 2 and 'Traceback' not in capsys.readouterr().err


@pytest.mark.parametrize(
    'setting',
    [
        {'steps': 2.0},
        {'steps': True},
        {'steps': '2'},
        {'guidance': 'x'},
        {'guidance': True},
        {'height': 64},
        {'batch_size': float('nan')},
        {'masks': {'crf': 1.5}},
    ],
)
def test_a_python_call_is_held_to_the_same(setting):
    with pytest.raises(ValueError):
        check_settings(setting)


def line(**fields):
    return json.dumps({'id': 'a', 'prompt': 'a dog'} | fields).encode() + b'\n'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'there are no prompts in'),
        (b'\n \n', 'there are no prompts in'),
        (line(prompt='x' * 10_000_000), 'line 1: it has more than 1048576 bytes'),
        (line(prompt='x' * (LONGEST_PROMPT + 1)), 'line 1: .* has 10,001 characters'),
        (line() + b'x' * 2_000_000, 'line 2: it has more than'),
        (line() + line(), "have the same id 'a'"),
        (line().decode().encode('utf-16'), 'UTF-16'),
        (line().decode().encode('utf-16-be'), 'line 1: '),
        (line() + b'{"id": "\xe9"}', 'not UTF-8'),
        (b'\x1f\x8b\x08\x00', 'not UTF-8'),
        (b'\0' * 5000, 'line 1: it is not JSON'),
        (b'[' * 100_000, 'nested too deeply'),
        (b'{"id": ' * 5000, 'nested too deeply|not JSON'),
        (line(prompt='\ud800'), 'line 1: it is not JSON: it holds half of a surrogate pair'),
        (line(id='\udfff'), 'holds half of a surrogate pair'),
        (line(id='../x'), "id '../x' can't be"),
        (line(id=''), "can't be used"),
        (b'[]\n', 'must be an object'),
    ],
)
def test_prompt_files_that_cannot_be_generated_are_refused(
    tool, tmp_path, capsys, content, message
):
    path = tmp_path / 'prompts.jsonl'
    path.write_bytes(content)
    assert exit_code(tool, ['nowhere', str(path), str(tmp_path / 'out')]) == 2
    (text,) = capsys.readouterr().err.splitlines()
    assert re.search(message, text) and str(path) in text
    assert not (tmp_path / 'out').exists()


def test_what_is_no_plain_file_is_refused(tool, tmp_path, capsys):
    os.mkfifo(tmp_path / 'pipe')
    for place in (tmp_path / 'pipe', tmp_path, '/dev/zero'):
        assert exit_code(tool, ['nowhere', str(place), str(tmp_path / 'out')]) == 2
        assert re.search('is a (pipe|folder|device), not a prompt file', capsys.readouterr().err)


def test_a_byte_order_mark_and_windows_lines_are_no_matter(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    path.write_bytes(b'\xef\xbb\xbf' + line().replace(b'\n', b'\r\n') + line(id='b')[:-1])
    records = PromptFile(path)
    assert [record.id for record in records] == ['a', 'b'] and len(records) == 2


def test_another_store_s_settings_are_found_before_weights_are_loaded(
    tool, prompts, tmp_path, capsys
):
    job = GenerationJob('nowhere', str(prompts), options={'steps': 2})
    plan = job.check(tmp_path / 'out')
    config = {
        'steps': 3,
        'guidance': 7.5,
        'seed': 0,
        'images_per_prompt': 1,
        'height': None,
        'width': None,
        'image_format': 'jpg',
        'num_samples': 2,
        'prompts_sha256': plan.fingerprint,
    }
    StoreWriter(tmp_path / 'out', 5000, config)
    job.check(tmp_path / 'out')  # settings that generated nothing bind nobody
    (tmp_path / 'out' / 'shard-000000.json').touch()
    words = ['nowhere', str(prompts), str(tmp_path / 'out'), '--steps']
    assert exit_code(tool, [*words, '2']) == 2
    assert 'steps is 3 there and 2 here. Use' in capsys.readouterr().err
    assert exit_code(tool, [*words, '3', '--samples-per-shard', '7']) == 2
    assert 'samples_per_shard is 5000 there and 7 here' in capsys.readouterr().err
    assert isinstance(
        GenerationJob('nowhere', str(prompts), options={'steps': 3}).check(tmp_path / 'out'), Plan
    )


@pytest.mark.parametrize('value', [None, 5, True, 0, 'x', {}, [None]])
def test_values_of_masks_that_are_none_of_their_kind_are_refused_in_a_sentence(value):
    for name in ('steps', 'resolutions', 'propagate', 'crf', 'stage'):
        free = value is None and name in ('steps', 'resolutions')
        fits = type(value) is int and name in ('propagate', 'crf') or free
        with nullcontext() if fits else pytest.raises(ValueError, match=f'{name}.* (must|from)'):
            check_settings({'masks': {name: value}})
