"""tools/make_prompts.py from the command line: every source, killed and started again."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.chat_server import chat_server, make_tiny_model
from helpers.tools import load_tool

from freeatm_mm.prompts import journal, read_prompts
from freeatm_mm.prompts.journal import journal_path

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'make_prompts.py'


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(TOOL), *map(str, arguments), '--quiet'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )


MAIN = load_tool('make_prompts').main


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
    kill_when(
        start('imagenet', path, *arguments),
        lambda: journal.exists() and journal.stat().st_size > 500_000,
    )
    assert not path.exists()
    code, out, _ = call('imagenet', path, *arguments)
    assert code == 0 and path.read_bytes() == whole.read_bytes()
    assert 'before an interruption' in out and 'repeated sentences: 0' in out
    assert sum(1 for _ in read_prompts(path)) == 16_000
    code, _, err = call('imagenet', path, *arguments)
    assert code == 2 and 'exists already' in err and len(err.splitlines()) == 1


@pytest.fixture(scope='module')
def templates(tmp_path_factory):
    path = tmp_path_factory.mktemp('templates') / 'templates.jsonl'
    assert call('imagenet', path, '--count', 300)[0] == 0
    return path


def toy_options(server):
    """Options of a rewriting by the toy model, at a price."""
    options = {'--model': 'toy', '--server': server.url, '--workers': 2}
    options |= {'--price-in': 0.5, '--price-out': 1.5}
    return [word for option in options.items() for word in option]


def test_a_rewriting_killed_and_resumed_loses_and_pays_little(tmp_path, templates):
    whole, path = tmp_path / 'whole.jsonl', tmp_path / 'rewritten.jsonl'
    with chat_server() as server:
        options = toy_options(server)
        code, out, err = call('rewrite', templates, whole, *options)
        assert code == 0, err
        undisturbed = len(server.requests)
    assert undisturbed == 30
    assert 'rewritten: 300' in out and 'tokens in: 3,000' in out and 'dollars: 0.0033' in out
    with chat_server(delay=0.05) as server:
        options = toy_options(server)
        for requests in (6, 15):
            kill_when(
                start('rewrite', templates, path, *options),
                lambda requests=requests: len(server.requests) >= requests,
            )
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
    code, out, err = call(
        'rewrite', few, path, '--local', model, '--batch-size', 4, '--max-tokens', 8
    )
    assert code == 0, err
    # A random model says nothing usable: every template is kept, and counted by its reason.
    assert path.read_bytes() == few.read_bytes()
    kept = [line for line in out.splitlines() if 'template kept' in line]
    assert sum(int(line.rpartition(' ')[2]) for line in kept) == 6


def test_captions(tmp_path):
    path = tmp_path / 'captions.json'
    path.write_text(
        json.dumps(
            {
                'annotations': [
                    {'id': 5, 'caption': 'A man with a tennis racket'},
                    {'id': 6, 'caption': 'so slowly'},
                    {'id': 7, 'caption': 'The idea of a dog'},
                ]
            }
        )
    )
    out_path = tmp_path / 'coco.jsonl'
    code, out, err = call('coco', path, out_path, '--concrete')
    assert code == 0, err
    assert out.splitlines() == [
        f'2 prompts in {out_path}, from 3 read',
        '  nouns: 3',
        '  skipped: no noun: 1',
    ]
    assert [(r.id, r.source, [n.text for n in r.nouns]) for r in read_prompts(out_path)] == [
        ('coco-5', 'coco', ['man', 'tennis racket']),
        ('coco-7', 'coco', ['dog']),
    ]


@pytest.mark.parametrize(
    'arguments, code, message',
    [
        (
            ('imagenet', 'OUT', '--under', 'unicorn'),
            2,
            "no class of ImageNet stands under 'unicorn'",
        ),
        (
            ('imagenet', 'OUT', '--count', '0'),
            2,
            "--count: must be a whole number from 1 to 1,000,000,000, got '0'",
        ),
        *(
            (('imagenet', 'OUT', '--count', count), 2, '--count: must be a whole number from 1 to')
            for count in ('-1', '1e12', 'nan', '1.5', '99999999999', '9' * 5000, '')
        ),
        *(
            (
                ('rewrite', 'a.jsonl', 'OUT', '--model', 'x', option, value),
                2,
                f'{option}: must be a ',
            )
            for option in (
                '--workers',
                '--retries',
                '--timeout',
                '--temperature',
                '--max-tokens',
                '--per-request',
                '--price-in',
                '--price-out',
                '--budget',
                '--min-words',
                '--max-words',
                '--batch-size',
                '--seed',
            )
            for value in ('nan', 'inf', '1e300', 'x')
        ),
        (('rewrite', 'a.jsonl', 'OUT', '--model', 'x', '--workers', '0'), 2, '--workers: must be'),
        (
            ('rewrite', 'a.jsonl', 'OUT', '--model', 'x', '--temperature', '-1'),
            2,
            "--temperature: must be a number from 0 to 10, got '-1'",
        ),
        (
            ('rewrite', 'a.jsonl', 'OUT', '--model', 'x', '--min-words', '50'),
            2,
            '--min-words 50 is more than --max-words 40',
        ),
        (('coco', 'a.json', 'OUT', '--max-unreadable', 'nan'), 2, '--max-unreadable: must be'),
        (('coco', '/dev/zero', 'OUT'), 2, '/dev/zero is a device, not a caption file'),
        (
            ('rewrite', '/dev/zero', 'OUT', '--local', 'nothing'),
            2,
            'is a device, not a prompt file',
        ),
        (
            ('rewrite', '/dev/null', '/dev/null', '--local', 'nothing', '--overwrite'),
            2,
            '/dev/null is no regular file',
        ),
        (('imagenet', 'OUT', '--name', 'a b'), 2, '--name must be'),
        (('coco', 'nothing.json', 'OUT'), 2, 'there is no caption file nothing.json'),
        (
            (
                'rewrite',
                'nothing.jsonl',
                'OUT',
                '--model',
                'x',
                '--server',
                'http://127.0.0.1:9/v1',
            ),
            2,
            'there is no prompt file nothing.jsonl',
        ),
        (
            ('rewrite', 'a.jsonl', 'OUT', '--model', 'x', '--budget', '5'),
            2,
            '--budget needs --price-in',
        ),
        (('rewrite', 'a.jsonl', 'OUT'), 2, 'one of the arguments --model --local is required'),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, arguments, code, message):
    out = tmp_path / 'out.jsonl'
    result, _, err = call(*(out if a == 'OUT' else a for a in arguments))
    assert result == code and message in err.splitlines()[-1] and len(err) < 6000
    assert 'Traceback' not in err and not out.exists()


def test_one_bad_line_does_not_stop_a_run(tmp_path):
    lines = [f'a dog number {n}\thttp://x/{n}.jpg'.encode() for n in range(3000)]
    lines[1500] = b'caf\xe9\thttp://x'
    path, out_path = tmp_path / 'cc.tsv', tmp_path / 'cc.jsonl'
    path.write_bytes(b'\n'.join(lines))
    code, out, err = call('cc', path, out_path)
    assert code == 0, err
    assert err.strip() == f'{path}, line 1501: not UTF-8; passed over'
    assert '2,999 prompts' in out and '  unreadable: not UTF-8: 1' in out
    assert out_path.read_text().count('"cc3m-') == 2999


def test_word_lists_are_checked(tmp_path, templates):
    bad = tmp_path / 'words.txt'
    for content, message in ((b'caf\xe9', 'is not UTF-8'), (b'x' * (2 << 20), 'has more than')):
        bad.write_bytes(content)
        code, _, err = call(
            'rewrite',
            templates,
            tmp_path / 'out.jsonl',
            '--model',
            'x',
            '--server',
            'http://127.0.0.1:9/v1',
            '--forbid',
            bad,
        )
        assert code == 2 and message in err and len(err.splitlines()) == 1


def test_thoughts_do_not_become_prompts(tmp_path, templates):
    """Nor do half sentences; what a newer server doesn't know is asked otherwise and told."""
    from helpers.chat_server import completion, rewritten

    def reply(number, body):
        if 'max_tokens' in body:
            return 400, {
                'error': {
                    'message': "Unsupported parameter: 'max_tokens'. Use "
                    "'max_completion_tokens' instead.",
                    'param': 'max_tokens',
                    'code': 'unsupported_parameter',
                }
            }
        text = rewritten(body['messages'][-1]['content'])
        thoughts = text.replace('A bright photo', 'Maybe a dull thought')
        answer = completion(f'<think>{thoughts}</think>\n{text[:-9]}')
        answer['choices'][0]['finish_reason'] = 'length'
        return 200, answer

    path = tmp_path / 'rewritten.jsonl'
    with chat_server(reply) as server:
        code, out, err = call('rewrite', templates, path, '--model', 'toy', '--server', server.url)
    assert code == 0, err
    assert 'rewritten: 270' in out and 'template kept: the answer was cut off: 30' in out
    assert 'requests asked with max_completion_tokens instead of max_tokens: 30' in out
    assert 'thought' not in path.read_text()


def test_a_folder_that_grew_meanwhile_is_refused(tmp_path, monkeypatch):
    """Captions are counted from the beginning, where a new file may stand."""
    folder, path = tmp_path / 'captions', tmp_path / 'prompts.jsonl'
    folder.mkdir()
    lines = [f'a dog near the table number {number}\n' for number in range(1100)]
    (folder / 'b.txt').write_text(''.join(lines))
    append, written = journal._append, []

    def stop(*args):
        if len(written) == 2:  # the settings and a batch
            raise KeyboardInterrupt
        written.append(append(*args))

    with monkeypatch.context() as patch:
        patch.setattr(journal, '_append', stop)
        assert call('captions', folder, path)[0] == 130
    (folder / 'a.txt').write_text('a cat on the sofa\na bird in the tree\n')
    code, _, err = call('captions', folder, path)
    assert code == 2 and '(different: content of the source)' in err
    (folder / 'a.txt').unlink()
    code, out, err = call('captions', folder, path)
    assert code == 0 and '1,100 read (1,000 of them before an interruption)' in out, err
