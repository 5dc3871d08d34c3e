"""The fuzzer finds what must not happen, and the store has none of it."""

from __future__ import annotations

import json
import time

import pytest
from fuzzing import FAULTS, TARGETS, Target, all_bits, fuzz, random_mutations
from helpers.tools import run_tool

from freeatm_mm.errors import InputError


def target(read):
    def make(folder):
        (folder / 'file.json').write_text('{"a": 1, "b": [2]}')
        return lambda folder: read(folder / 'file.json')

    return Target('made up', make)


def test_a_reader_that_checks_nothing_is_found_out():
    report = fuzz(target(lambda path: json.loads(path.read_bytes())), random_mutations(1))
    assert report.outcomes == {'stray exception': 1}  # the file is missing
    report = fuzz(target(lambda path: json.loads(path.read_bytes())), all_bits())
    assert report.outcomes['silent difference'] > 5 and report.outcomes['stray exception'] > 5
    assert 'silent difference: file.json, bit' in '\n'.join(report.faults)


def test_a_reader_that_waits_is_found_out():
    def read(path):
        if path.is_fifo():
            time.sleep(60)
        return path.is_file() and path.stat().st_size < 1 << 20 and path.read_bytes() and None

    report = fuzz(target(lambda path: read(path)), random_mutations(61), seconds=0.2)
    assert report.outcomes['hang'] == 1
    assert 'hang: file.json, a pipe: in test_fuzz.py' in '\n'.join(report.faults)


def test_a_message_of_many_lines_is_no_sentence():
    def read(path):
        if path.read_bytes() != b'{"a": 1, "b": [2]}':
            raise InputError('one\ntwo')

    report = fuzz(target(read), all_bits(5))
    assert report.outcomes == {'stray exception': 5}


def test_the_same_seed_gives_the_same_mutations(tmp_path):
    (tmp_path / 'file.json').write_text('{"a": 1, "b": [2]}')
    found = []
    for seed in (1, 1, 2):
        path = tmp_path / f'{seed}.json'
        found.append([])
        for mutation in random_mutations(15, seed)(tmp_path / 'file.json'):
            path.write_bytes(b'')
            mutation.apply(path)
            found[-1].append(path.read_bytes() if path.exists() else None)
    assert found[0] == found[1] != [found[2]]


@pytest.mark.parametrize(
    'name, count, bits',
    [
        ('store', 50, 60),
        ('verify', 30, 30),
        ('repair', 10, 8),
        ('edit', 15, 15),
        ('json', 200, 100),
        ('pictures', 15, 15),
        ('import', 20, 10),
        ('images', 20, 10),
        ('run-file', 40, 40),
    ],
)
def test_readers_refuse_or_read_as_before(tmp_path, capsys, name, count, bits):
    out = tmp_path / 'fuzz.json'
    assert (
        run_tool(
            'benchmarks/fuzz', name, '--count', count, '--bits', bits, '--out', out, '--seed', 7
        )
        == 0
    )
    assert '0 hangs, 0 stray exceptions, 0 silent differences' in capsys.readouterr().out
    (row,) = json.loads(out.read_text())['rows']
    assert row['ours'] == 0 < row['details']['refused'] <= row['baseline']
    assert all(row['details'][fault] == 0 for fault in FAULTS)
    assert f'fuzz-{name}' in out.with_suffix('.md').read_text()


def test_no_request_is_a_fault_of_the_server():
    report = fuzz(TARGETS['requests'], random_mutations(21, 7))
    assert report.outcomes == {'same content': 63}


def test_targets_are_listed_and_unknown_ones_refused(capsys):
    assert run_tool('benchmarks/fuzz', '--list') == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TARGETS)
    for words in (['nothing'], ['store', '--seconds', 'nan'], ['store', '--count', '-1']):
        assert run_tool('benchmarks/fuzz', *words) == 2
