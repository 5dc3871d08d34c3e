"""Language models: the protocol's failures are survived or named; a local model repeats itself."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import threading
import time
import zlib
from contextlib import contextmanager

import pytest
from helpers.chat_server import chat_server, completion, make_tiny_model
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.prompts.language_models import (
    LONGEST_BODY,
    Answer,
    LanguageModelError,
    LocalModel,
    Request,
    ServerModel,
    read_completion,
)

pytest.importorskip('openai')


def ask(server, count=1, **options):
    """The answers to ``count`` groups of one request."""
    options = {'retries': 3, 'workers': 2, 'timeout': 20, **options}
    model = ServerModel('toy', server.url, 'secret', **options)
    return [
        answer
        for group in model.answers([Request('rewrite', f'1. prompt {n} [x]')] for n in range(count))
        for answer in group
    ]


def test_a_request_says_what_it_should():
    with chat_server() as server:
        (answer,) = ask(server, temperature=0.5, max_tokens=33, seed=7)
    assert answer == Answer('1. A bright photo in which prompt 0 near the x', '', 100, 40, 0)
    (request,) = server.requests
    assert request == {
        'path': '/v1/chat/completions',
        'key': 'Bearer secret',
        'model': 'toy',
        'temperature': 0.5,
        'max_tokens': 33,
        'seed': 7,
        'messages': [
            {'role': 'system', 'content': 'rewrite'},
            {'role': 'user', 'content': '1. prompt 0 [x]'},
        ],
    }


def test_answers_come_in_order_and_none_is_asked_far_ahead():
    asked = []

    def groups():
        for number in range(40):
            asked.append(number)
            yield [Request('rewrite', f'1. prompt {number} [x]')]

    with chat_server(delay=0.01) as server:
        model = ServerModel('toy', server.url, 'key', workers=3)
        for number, (answer,) in enumerate(model.answers(groups())):
            assert f'prompt {number} ' in answer.text
            assert len(asked) <= number + 1 + 2 * 3


@pytest.mark.parametrize('code', [None, 429, '502'])
@pytest.mark.parametrize('status', [429, 500, 503])
def test_a_server_that_fails_for_a_while_is_asked_again(status, code):
    """Also one that says so in an answer of status 200, with a code."""

    def reply(number, body):
        if number < 2:
            said = {'message': 'not now'} | ({'code': code} if code else {})
            return 200 if code else status, {'error': said}
        return 200, completion('1. fine')

    with chat_server(reply) as server:
        (answer,) = ask(server)
    assert answer.text == '1. fine' and answer.retries == 2
    assert len(server.requests) == 3


def test_a_server_that_stays_away_stops_the_run():
    with chat_server(lambda number, body: (429, {'error': {'message': 'no quota'}})) as server:
        with pytest.raises(LanguageModelError, match='answered 429 .*no quota.* goes on'):
            ask(server, retries=1)
        assert len(server.requests) == 2
    with pytest.raises(LanguageModelError, match="can't be reached"):
        ask(server, retries=0, timeout=2)


@pytest.mark.parametrize('status, message', [(401, 'wrong key'), (404, 'no such model')])
def test_what_no_retry_mends_stops_the_run_at_once(status, message):
    with chat_server(lambda number, body: (status, {'error': {'message': message}})) as server:
        with pytest.raises(LanguageModelError, match=f'answered {status} .*{message}'):
            ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize('asked_before', [False, True])
def test_prompts_that_are_not_allowed_do_not_stop_a_run(asked_before):
    """OpenRouter says so with the status of a key that is refused."""

    def reply(number, body):
        if asked_before and number == 0:
            return 200, completion('1. fine')
        told = {} if asked_before else {'metadata': {'reasons': ['violence']}}
        return 403, {'error': {'message': 'Input flagged', **told}}

    with chat_server(reply) as server:
        answers = ask(server, count=2, workers=1)
    assert [answer.text for answer in answers] == ['1. fine' if asked_before else None, None]
    assert answers[1].problem == 'the server refused the request'
    assert answers[1].detail == "403 'Input flagged'"
    with chat_server(lambda number, body: (403, {'error': {'message': 'key'}})) as server:
        with pytest.raises(LanguageModelError, match='answered 403'):
            ask(server)


def choice(finish='stop', **message):
    return {'choices': [{'finish_reason': finish, 'message': {'role': 'assistant', **message}}]}


@pytest.mark.parametrize(
    'status, body, problem',
    [
        (400, {'error': {'message': 'content policy'}}, 'the server refused the request'),
        (422, {'error': {'message': 'no'}}, 'the server refused the request'),
        (200, b'<html>busy</html>', 'the answer was not in the protocol'),
        (200, b'data: {"choices": []}\n\n', 'the answer was not in the protocol'),
        (200, b'{"choices": [', 'the answer was not in the protocol'),
        (200, b'\xff\xfe\xfa', 'the answer was not in the protocol'),
        (200, b'[' * 100_000, 'the answer was not in the protocol'),
        (
            200,
            b'{"choices": ' + b'[' * 50_000 + b']' * 50_000 + b'}',
            'the answer was not in the protocol',
        ),
        (
            200,
            b'{"choices": [{"message": {"content": 1' + b'0' * 10_000 + b'}}]}',
            'the answer was not in the protocol',
        ),
        (200, {'choices': []}, 'the answer was not in the protocol'),
        (200, {'choices': None}, 'the answer was not in the protocol'),
        (200, {'choices': [{'message': None}]}, 'the answer was not in the protocol'),
        (200, [1, 2], 'the answer was not in the protocol'),
        (200, completion(None), 'the answer was empty'),
        (200, completion('  '), 'the answer was empty'),
        (200, completion([1]), 'the answer was empty'),
        (200, {'error': {'message': 'no credit', 'code': 402}}, 'the server reported an error'),
        (
            200,
            {'choices': [choice('error', content='')['choices'][0] | {'error': {'code': 502}}]},
            'the server reported an error',
        ),
        (200, choice(content=None, refusal='I will not'), 'the model refused'),
        (200, choice('content_filter', content=''), 'the server filtered the answer'),
        (
            200,
            choice('tool_calls', content=None, tool_calls=[{'id': '1'}]),
            'the answer was a call of a tool',
        ),
        (
            200,
            choice('length', content=None, reasoning_content='hm'),
            'the answer was cut off before its first word (a larger --max-tokens helps)',
        ),
        (200, choice(content='', reasoning_content='1. a thought'), 'the answer was thoughts only'),
        (200, b'x' * (LONGEST_BODY + 1), 'the answer had more than 4 MiB'),
    ],
)
def test_a_malformed_answer_is_an_answer_without_text(status, body, problem):
    with chat_server(lambda number, _: (status, body)) as server:
        (answer,) = ask(server)
    assert answer.text is None and answer.problem == problem
    assert '\n' not in answer.detail and len(answer.detail) < 300
    if status != 200:
        assert answer.detail == f'{status} {body["error"]["message"]!r}'


@pytest.mark.parametrize(
    'body, text, cut',
    [
        (
            choice(content=[{'type': 'text', 'text': '1. a '}, {'type': 'text', 'text': 'dog'}]),
            '1. a dog',
            False,
        ),
        (
            choice(content=[{'type': 'thinking', 'thinking': 'x', 'text': 'y'}, 'a dog']),
            'a dog',
            False,
        ),
        (choice(content='a dog', reasoning_content='1. a thought', reasoning='2.'), 'a dog', False),
        (choice('length', content='a dog wi'), 'a dog wi', True),
        (choice('content_filter', content='a dog wi'), 'a dog wi', True),
        (choice('abort', content='a dog wi'), 'a dog wi', True),
        (
            {'choices': [choice('stop', content='a dog')['choices'][0] | {'error': 'timeout'}]},
            'a dog',
            True,
        ),
        ({'choices': [{'text': 'a dog'}]}, 'a dog', False),
        (
            {
                'choices': [
                    choice(content=None)['choices'][0],
                    choice(content='a dog')['choices'][0],
                ]
            },
            'a dog',
            False,
        ),
        (
            {
                'choices': choice(content='a dog')['choices'],
                'usage': {'prompt_tokens': -5, 'completion_tokens': 10**30},
            },
            'a dog',
            False,
        ),
    ],
)
def test_answers_of_every_server_are_read(body, text, cut):
    answer = read_completion(b'\xef\xbb\xbf' + json.dumps(body).encode())
    assert answer == Answer(text, cut=cut)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(['stop', 'length', 'text', '1. a dog', '<think>']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    'choices',
                    'message',
                    'content',
                    'finish_reason',
                    'usage',
                    'prompt_tokens',
                    'text',
                    'error',
                    'refusal',
                    'tool_calls',
                    'type',
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@examples(300)
@given(
    st.one_of(
        JSON.map(lambda value: json.dumps(value).encode()),
        st.binary(max_size=60),
        JSON.map(lambda value: json.dumps({'choices': [{'message': {'content': value}}]}).encode()),
        st.tuples(JSON, JSON, JSON).map(
            lambda parts: json.dumps(
                {
                    'choices': [{'message': parts[0], 'finish_reason': parts[1]}, parts[2]],
                    'usage': parts[2],
                }
            ).encode()
        ),
    )
)
def test_anything_a_server_says_is_an_answer(body):
    answer = read_completion(body)
    assert (answer.text is None) == bool(answer.problem)
    assert answer.text is None or answer.text.strip()
    assert '\n' not in answer.detail and len(answer.detail) < 300


@contextmanager
def raw_server(serve):
    """A server that does with each connection what ``serve`` does."""
    listener = socket.create_server(('127.0.0.1', 0))
    connections = []

    def run():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    def one(connection):
        with connection:
            try:
                connection.recv(65536)
                serve(connection)
            except OSError:
                pass  # the client is gone

    threading.Thread(target=run, daemon=True).start()
    server = type(
        'Server',
        (),
        {'url': f'http://127.0.0.1:{listener.getsockname()[1]}/v1', 'connections': connections},
    )
    try:
        yield server
    finally:
        listener.close()


HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n'


def drip(start, piece):
    def serve(connection):
        connection.sendall(start)
        while True:
            connection.sendall(piece)
            time.sleep(0.05)

    return serve


@pytest.mark.parametrize(
    'serve',
    [
        drip(HEAD + b'Content-Length: 1000000\r\n\r\n', b' '),
        drip(HEAD, b'X-More: 1\r\n'),
        drip(b'', b'H'),
        drip(HEAD + b'Transfer-Encoding: chunked\r\n\r\n', b'1\r\n \r\n'),
    ],
    ids=['body', 'headers', 'status', 'chunks'],
)
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(serve):
    """Though no wait for a byte is ever long."""
    with raw_server(serve) as server:
        with pytest.raises(LanguageModelError, match="can't be reached, or doesn't answer"):
            ask(server, retries=1, timeout=0.6)
        assert 1 <= len(server.connections) <= 2


@pytest.mark.parametrize(
    'sent',
    [
        b'',
        b'HTTP/1.1 200 OK\r\n',
        HEAD + b'Content-Length: 100\r\n\r\n{"choices": [',
        b'nonsense\r\n\r\n',
        HEAD + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n',
        HEAD + b'X: ' + b'y' * 300_000,
    ],
)
def test_a_connection_closed_midway_is_tried_again_and_told(sent):
    with raw_server(lambda connection: connection.sendall(sent)) as server:
        with pytest.raises(LanguageModelError, match="can't be reached, or doesn't answer"):
            ask(server, retries=1, timeout=5)
        assert len(server.connections) == 2


def packed(body, name, length=None):
    head = HEAD + b'Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n' % (name, len(body))
    return lambda connection: connection.sendall(head + body)


def bomb():
    """200 MB of zeros in 200 kB."""
    packer = zlib.compressobj(9, wbits=31)
    return b''.join([*(packer.compress(bytes(1 << 20)) for _ in range(200)), packer.flush()])


def test_packed_answers_are_unpacked_as_far_as_an_answer_goes():
    body = json.dumps(completion('1. fine')).encode()
    with raw_server(packed(gzip.compress(body), b'gzip')) as server:
        assert ask(server)[0].text == '1. fine'
    for content, name, problem in (
        (bomb(), b'gzip', 'had more than 4 MiB'),
        (gzip.compress(bomb()), b'gzip, gzip', 'packed in a way not asked for'),
        (body, b'br', 'packed in a way not asked for'),
        (body, b'gzip', 'packed and damaged'),
    ):
        with raw_server(packed(content, name)) as server:
            (answer,) = ask(server)
        assert answer.text is None and problem in answer.problem


def test_endless_answers_are_read_to_the_limit():
    def serve(connection):
        connection.sendall(HEAD + b'Transfer-Encoding: chunked\r\n\r\n')
        while True:
            connection.sendall(b'10000\r\n' + b' ' * 65536 + b'\r\n')

    with raw_server(serve) as server:
        (answer,) = ask(server)
    assert answer.problem == 'the answer had more than 4 MiB'


def test_a_redirection_is_told_and_not_followed():
    head = b'HTTP/1.1 308 Moved\r\nLocation: https://elsewhere/v1\r\nContent-Length: 0\r\n\r\n'
    with raw_server(lambda connection: connection.sendall(head)) as server:
        with pytest.raises(
            LanguageModelError, match="308 .*sends on to 'https://elsewhere/v1'; name that with"
        ):
            ask(server)


def test_a_wait_of_years_is_not_waited_for():
    head = (
        b'HTTP/1.1 429 Busy\r\nRetry-After: 99999999999\r\nContent-Length: 29\r\n\r\n'
        b'{"error":{"message":"quota"}}'
    )
    with raw_server(lambda connection: connection.sendall(head)) as server:
        with pytest.raises(LanguageModelError, match=r'429 \(quota; it says to wait 99999999999'):
            ask(server, retries=0)


def refuses(**wrong):
    """A server that refuses settings as OpenAI's newer models do; answers what it was sent."""

    def reply(number, body):
        for name, message in wrong.items():
            if name in body:
                return 400, {
                    'error': {
                        'message': message,
                        'type': 'invalid_request_error',
                        'param': name,
                        'code': 'unsupported_parameter',
                    }
                }
        return 200, completion('1. fine')

    return reply


def test_settings_that_a_model_does_not_know_are_left_out_and_told():
    reply = refuses(
        max_tokens="Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
        temperature="Unsupported value: 'temperature' does not support 0.5 with this model. Only "
        'the default (1) value is supported.',
        seed='extra fields not permitted: seed',
    )
    with chat_server(reply) as server:
        answers = ask(server, 4, temperature=0.5, max_tokens=33, seed=7)
    assert [answer.text for answer in answers] == ['1. fine'] * 4
    assert server.requests[-1].keys() == {
        'path',
        'key',
        'model',
        'messages',
        'max_completion_tokens',
    }
    assert server.requests[-1]['max_completion_tokens'] == 33
    assert answers[-1].notes == (
        'asked with max_completion_tokens instead of max_tokens',
        'asked without temperature, which the server refused',
        'asked without seed, which the server refused',
    )


@pytest.mark.parametrize(
    'said',
    [
        'System role not supported',
        'Conversation roles must alternate user/assistant/user/assistant/...',
        'Only user, assistant and tool roles are supported!',
    ],
)
def test_a_model_without_a_system_message_gets_one_message(said):
    def reply(number, body):
        if body['messages'][0]['role'] == 'system':
            return 400, {'object': 'error', 'message': said, 'code': 400}
        return 200, completion('1. fine')

    with chat_server(reply) as server:
        (answer,) = ask(server)
    assert answer.text == '1. fine' and 'without a system message' in answer.notes[0]
    assert server.requests[-1]['messages'] == [
        {'role': 'user', 'content': 'rewrite\n\n1. prompt 0 [x]'}
    ]


@pytest.mark.parametrize(
    'error, detail',
    [
        (
            {
                'error': {
                    'message': 'max_tokens is too large: 1500. At most 100.',
                    'param': 'max_tokens',
                }
            },
            "400 'max_tokens is too large: 1500. At most 100.'",
        ),
        ({'detail': [{'loc': ['body'], 'msg': 'bad messages'}]}, "400 'bad messages'"),
        ({'message': 'x' * 1000}, f"400 '{'x' * 200}...'"),
        (b'plain words', "400 'plain words'"),
        (b'[' * 10_000, None),
        (b'\xff', None),
    ],
)
def test_a_refusal_that_nothing_mends_shows_its_reason(error, detail):
    with chat_server(lambda number, _: (400, error)) as server:
        (answer,) = ask(server)
    assert answer.problem == 'the server refused the request' and len(server.requests) == 1
    if detail:
        assert answer.detail == detail


@pytest.mark.parametrize(
    'address',
    [
        'localhost:11434/v1',
        'file:///etc/passwd',
        'http://',
        'x',
        'http://a b:x/',
        'http://[::1/v1',
        'http://x:99999999/v1',
    ],
)
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(LanguageModelError, match='is no address of a server'):
        ServerModel('toy', address)


def test_a_proxy_that_cannot_be_used_is_no_wrong_address(monkeypatch):
    monkeypatch.setenv('ALL_PROXY', 'socks://127.0.0.1:1080')
    with pytest.raises(LanguageModelError, match="server can't be asked: Unknown scheme"):
        ServerModel('toy', 'http://localhost:11434/v1')


def test_a_run_that_stops_early_ends_its_requests():
    with chat_server(delay=0.2) as server:
        model = ServerModel('toy', server.url, 'key', workers=4)
        answers = model.answers([Request('rewrite', '1. a [x]')] for _ in range(100))
        next(answers)
        answers.close()
        asked = len(server.requests)
    assert asked < 20
    assert not [thread for thread in threading.enumerate() if thread.name == 'language model']


def test_tokens_that_the_server_does_not_count_are_unknown():
    with chat_server(lambda number, _: (200, completion('1. x', usage=False))) as server:
        (answer,) = ask(server)
    assert (answer.tokens_in, answer.tokens_out) == (None, None)


def test_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    monkeypatch.delenv('OPENAI_BASE_URL', raising=False)
    with pytest.raises(LanguageModelError, match='set OPENAI_API_KEY'):
        ServerModel('gpt-3.5-turbo')
    ServerModel('toy', 'http://127.0.0.1:9/v1')  # a server of one's own needs none


@pytest.fixture(scope='module')
def tiny_model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp('model') / 'tiny-llama')


REQUESTS = [Request('write', f'1. a dog {"a " * n}[dog]') for n in range(4)]


def test_a_local_model_answers_and_repeats_itself(tiny_model):
    import torch

    model = LocalModel(tiny_model, batch_size=2, max_tokens=12, seed=5)
    assert model.name == 'tiny-llama' and model.group_size == 2
    groups = [REQUESTS[:2], REQUESTS[2:]]
    state = torch.random.get_rng_state()
    first = list(model.answers(groups))
    assert [len(group) for group in first] == [2, 2]
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers moved"
    for answer, request in zip([a for g in first for a in g], REQUESTS):
        assert 0 < answer.tokens_out <= 12
        assert answer.tokens_in == len(model._tokenizer(f'write\n\n{request.text}\n').input_ids)
    # A run that goes on at the second group gives what the undisturbed one gave.
    assert list(model.answers(groups[1:])) == first[1:]
    other = LocalModel(tiny_model, batch_size=2, max_tokens=12, seed=6)
    assert list(other.answers(groups)) != first


def test_a_local_answer_that_ran_into_its_limit_is_cut(tiny_model):
    model = LocalModel(tiny_model, batch_size=4, max_tokens=3, temperature=0)
    ((answer, *_),) = model.answers([REQUESTS])
    assert answer.cut and answer.tokens_out == 3
    end = model._model.generation_config.eos_token_id
    model._model.generate = lambda **inputs: inputs['input_ids'].new_tensor(
        [[*row, 3, 4, end] for row in inputs['input_ids'].tolist()]
    )
    assert not any(answer.cut for group in model.answers([REQUESTS]) for answer in group)


def test_padding_does_not_change_what_a_local_model_says(tiny_model):
    model = LocalModel(tiny_model, batch_size=4, max_tokens=12, temperature=0)
    (together,) = model.answers([REQUESTS])
    alone = [group[0] for group in model.answers([request] for request in REQUESTS)]
    assert [a.text for a in together] == [a.text for a in alone]


def test_a_chat_template_is_used(tiny_model):
    model = LocalModel(tiny_model)
    model._tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<go>"
    )
    assert model._prompt(REQUESTS[0]) == '<system>write<user>1. a dog [dog]<go>'


def test_a_chat_template_without_a_system_gets_one_message(tiny_model):
    model = LocalModel(tiny_model)
    model._tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<go>"
    )
    assert model._prompt(REQUESTS[0]) == '<user>write\n\n1. a dog [dog]<go>'


@pytest.mark.parametrize('kept', [True, False])
def test_the_instruction_is_in_what_a_local_model_reads(tiny_model, kept):
    """Some templates leave out a system message without a word."""
    model = LocalModel(tiny_model)
    model._tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<user>"
        + ("{{ m['content'] }}" if kept else 'hello')
        + '{% endif %}{% endfor %}<go>'
    )
    if kept:
        assert model._prompt(REQUESTS[0]) == '<user>write\n\n1. a dog [dog]<go>'
        return
    with pytest.raises(LanguageModelError, match='its chat template leaves out the instruction'):
        model._prompt(REQUESTS[0])


def test_a_chat_template_that_runs_on_is_stopped(tiny_model, monkeypatch):
    from freeatm_mm import compat

    model = LocalModel(tiny_model)
    monkeypatch.setattr(compat, '_MOST_SECONDS', 0.2)
    loop = '{% for _ in range(99999) %}'
    model._tokenizer.chat_template = loop * 3 + '{% endfor %}' * 3
    with pytest.raises(LanguageModelError, match="can't be asked: the chat template fails: .*0.2"):
        model._prompt(REQUESTS[0])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dtype': 'float33'}, "no number format 'float33'"),
        ({'dtype': 'nn'}, "no number format 'nn'"),
        ({'device': 'cuda:99'}, "can't be loaded: "),
        ({'device': 'gpu'}, "can't be loaded: .*gpu"),
    ],
)
def test_a_device_or_format_that_is_none_is_named(tiny_model, options, message):
    with pytest.raises(LanguageModelError, match=message):
        LocalModel(tiny_model, **options)


@pytest.mark.parametrize('case', ['adapter', 'kernel', 'code'])
def test_a_local_model_that_leads_to_code_or_elsewhere_is_refused(tiny_model, tmp_path, case):
    folder = tmp_path / 'model'
    shutil.copytree(tiny_model, folder)
    marker = tmp_path / 'marker'
    settings = json.loads((folder / 'config.json').read_text())
    said = 'of the hub'
    if case == 'adapter':
        (folder / 'adapter_config.json').write_text('{"base_model_name_or_path": "other/model"}')
        said = 'leads to the weights of another model'
    elif case == 'kernel':
        settings['text_config'] = {'_attn_implementation': 'other/kernel'}
    else:
        (folder / 'code.py').write_text(f'open({str(marker)!r}, "w").close()')
        settings |= {'auto_map': {'AutoModelForCausalLM': 'code.Model'}, 'model_type': 'own'}
        said = "can't be loaded"
    (folder / 'config.json').write_text(json.dumps(settings))
    with pytest.raises(LanguageModelError, match=said):
        LocalModel(str(folder))
    assert not marker.exists()


def test_a_missing_local_model_is_named(tmp_path):
    with pytest.raises(LanguageModelError, match=r"'.*nothing' can't be loaded"):
        LocalModel(str(tmp_path / 'nothing'))
