"""tools/make_prompts.py from the command line: every source, killed and started again."""
from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_server import chat_server, make_tiny_model

from freeatm_mm.prompts import read_prompts
from freeatm_mm.prompts.journal import journal_path

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'make_prompts.py'


def start(*arguments):
    return subprocess.Popen([sys.executable, str(TOOL), *map(str, arguments), '--quiet'],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            stdin=subprocess.DEVNULL)


def load_tool():
    spec = importlib.util.spec_from_file_location('make_prompts', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAIN = load_tool().main


def call(*arguments):
    """Run the tool in this process: exit code, what it printed, what it complained."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = MAIN([*map(str, arguments), '--quiet'])
        except SystemExit as error:
            code = error.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(autouse=True, scope='module')
def key():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('OPENAI_API_KEY', 'test')
        yield


def kill_when(process, happened):
    """Kill a process as soon as something has happened, but not after its end."""
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_imagenet_killed_and_resumed_gives_the_same_bytes(tmp_path):
    whole, path = tmp_path / 'whole.jsonl', tmp_path / 'prompts.jsonl'
    arguments = ('--count', 16_000, '--seed', 3)
    assert call('imagenet', whole, *arguments)[0] == 0
    journal = journal_path(path)
    kill_when(start('imagenet', path, *arguments),
              lambda: journal.exists() and journal.stat().st_size > 500_000)
    assert not path.exists()
    code, out, _ = call('imagenet', path, *arguments)
    assert code == 0 and path.read_bytes() == whole.read_bytes()
    assert 'before an interruption' in out and 'sentences that come again: 0' in out
    assert sum(1 for _ in read_prompts(path)) == 16_000
    code, _, err = call('imagenet', path, *arguments)
    assert code == 1 and 'exists already' in err and len(err.splitlines()) == 1


@pytest.fixture(scope='module')
def templates(tmp_path_factory):
    path = tmp_path_factory.mktemp('templates') / 'templates.jsonl'
    assert call('imagenet', path, '--count', 300)[0] == 0
    return path


def test_a_rewriting_killed_and_resumed_loses_and_pays_little(tmp_path, templates):
    whole, path = tmp_path / 'whole.jsonl', tmp_path / 'rewritten.jsonl'
    with chat_server() as server:
        options = ('--model', 'toy', '--server', server.url, '--workers', 2,
                   '--price-in', 0.5, '--price-out', 1.5)
        code, out, err = call('rewrite', templates, whole, *options)
        assert code == 0, err
        undisturbed = len(server.requests)
    assert undisturbed == 30
    assert 'rewritten: 300' in out and 'tokens in: 3,000' in out and 'dollars: 0.0033' in out
    with chat_server(delay=0.05) as server:
        options = ('--model', 'toy', '--server', server.url, '--workers', 2,
                   '--price-in', 0.5, '--price-out', 1.5)
        for requests in (6, 15):
            kill_when(start('rewrite', templates, path, *options),
                      lambda requests=requests: len(server.requests) >= requests)
        code, out, err = call('rewrite', templates, path, *options)
        assert code == 0, err
        # At each kill, at most the requests under way are asked again.
        assert undisturbed <= len(server.requests) <= undisturbed + 2 * 2 * 2
    assert path.read_bytes() == whole.read_bytes()
    assert 'requests: 30' in out and 'dollars: 0.0033' in out
    for before, after in zip(read_prompts(templates), read_prompts(path), strict=True):
        assert after.id == before.id and after.source == 'template+toy'
        assert [n.category for n in after.nouns] == [n.category for n in before.nouns]


def test_a_rewriting_by_a_local_model(tmp_path, templates):
    model = make_tiny_model(tmp_path / 'tiny-llama')
    few, path = tmp_path / 'few.jsonl', tmp_path / 'rewritten.jsonl'
    few.write_text(''.join(templates.read_text().splitlines(keepends=True)[:6]))
    code, out, err = call('rewrite', few, path, '--local', model, '--batch-size', 4,
                          '--max-tokens', 8)
    assert code == 0, err
    # A random model says nothing usable: every template is kept, and counted by its reason.
    assert path.read_bytes() == few.read_bytes()
    kept = [line for line in out.splitlines() if 'template kept' in line]
    assert sum(int(line.rpartition(' ')[2]) for line in kept) == 6


def test_captions(tmp_path):
    path = tmp_path / 'captions.json'
    path.write_text(json.dumps({'annotations': [
        {'id': 5, 'caption': 'A man with a tennis racket'}, {'id': 6, 'caption': 'so slowly'},
        {'id': 7, 'caption': 'The idea of a dog'}]}))
    out_path = tmp_path / 'coco.jsonl'
    code, out, err = call('coco', path, out_path, '--concrete')
    assert code == 0, err
    assert out.splitlines() == [f'2 prompts in {out_path}, from 3 read', '  nouns: 3',
                                '  skipped: no noun: 1']
    assert [(r.id, r.source, [n.text for n in r.nouns]) for r in read_prompts(out_path)] == [
        ('coco-5', 'coco', ['man', 'tennis racket']), ('coco-7', 'coco', ['dog'])]


@pytest.mark.parametrize('arguments, code, message', [
    (('imagenet', 'OUT', '--under', 'unicorn'), 1, "no class of ImageNet stands under 'unicorn'"),
    (('imagenet', 'OUT', '--count', '0'), 2, '--count must be at least 1, got 0'),
    (('imagenet', 'OUT', '--name', 'a b'), 2, '--name must be'),
    (('coco', 'nothing.json', 'OUT'), 1, 'there is no caption file nothing.json'),
    (('rewrite', 'nothing.jsonl', 'OUT', '--model', 'x', '--server', 'http://127.0.0.1:9/v1'), 1,
     'there is no prompt file nothing.jsonl'),
    (('rewrite', 'a.jsonl', 'OUT', '--model', 'x', '--budget', '5'), 2,
     '--budget needs --price-in'),
    (('rewrite', 'a.jsonl', 'OUT'), 2, 'one of the arguments --model --local is required'),
])
def test_a_mistake_is_one_sentence(tmp_path, arguments, code, message):
    out = tmp_path / 'out.jsonl'
    result, _, err = call(*(out if a == 'OUT' else a for a in arguments))
    assert result == code and message in err.splitlines()[-1]
    assert 'Traceback' not in err and not out.exists()
