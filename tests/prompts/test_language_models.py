"""Language models: the protocol's failures are survived or named; a local model repeats itself."""
from __future__ import annotations

import pytest
from chat_server import chat_server, completion, make_tiny_model

from freeatm_mm.prompts.language_models import (
    Answer,
    LanguageModelError,
    LocalModel,
    Request,
    ServerModel,
)

pytest.importorskip('openai')


def ask(server, count=1, **options):
    """The answers to ``count`` groups of one request."""
    options = {'retries': 3, 'workers': 2, 'timeout': 20, **options}
    model = ServerModel('toy', server.url, 'secret', **options)
    return [answer for group in model.answers([Request('rewrite', f'1. prompt {n} [x]')]
                                              for n in range(count)) for answer in group]


def test_a_request_says_what_it_should():
    with chat_server() as server:
        answer, = ask(server, temperature=0.5, max_tokens=33, seed=7)
    assert answer == Answer('1. A bright photo in which prompt 0 near the x', '', 100, 40, 0)
    request, = server.requests
    assert request == {
        'path': '/v1/chat/completions', 'key': 'Bearer secret', 'model': 'toy',
        'temperature': 0.5, 'max_tokens': 33, 'seed': 7,
        'messages': [{'role': 'system', 'content': 'rewrite'},
                     {'role': 'user', 'content': '1. prompt 0 [x]'}]}


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


@pytest.mark.parametrize('status', [429, 500, 503])
def test_a_server_that_fails_for_a_while_is_asked_again(status):
    def reply(number, body):
        if number < 2:
            return status, {'error': {'message': 'not now'}}
        return 200, completion('1. fine')
    with chat_server(reply) as server:
        answer, = ask(server)
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


@pytest.mark.parametrize('status, body, problem', [
    (400, {'error': {'message': 'content policy'}}, 'the server refused the request'),
    (422, {'error': {'message': 'no'}}, 'the server refused the request'),
    (200, b'<html>busy</html>', 'the answer was not in the protocol'),
    (200, b'{"choices": [', 'the answer was not in the protocol'),
    (200, {'choices': []}, 'the answer was not in the protocol'),
    (200, {'choices': None}, 'the answer was not in the protocol'),
    (200, {'choices': [{'message': None}]}, 'the answer was not in the protocol'),
    (200, [1, 2], 'the answer was not in the protocol'),
    (200, completion(None), 'the answer was empty'),
    (200, completion('  '), 'the answer was empty'),
    (200, completion([1]), 'the answer was empty'),
])
def test_a_malformed_answer_is_an_answer_without_text(status, body, problem):
    with chat_server(lambda number, _: (status, body)) as server:
        answer, = ask(server)
    assert answer.text is None and answer.problem == problem


def test_tokens_that_the_server_does_not_count_are_unknown():
    with chat_server(lambda number, _: (200, completion('1. x', usage=False))) as server:
        answer, = ask(server)
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


def test_padding_does_not_change_what_a_local_model_says(tiny_model):
    model = LocalModel(tiny_model, batch_size=4, max_tokens=12, temperature=0)
    together, = model.answers([REQUESTS])
    alone = [group[0] for group in model.answers([request] for request in REQUESTS)]
    assert [a.text for a in together] == [a.text for a in alone]


def test_a_chat_template_is_used(tiny_model):
    model = LocalModel(tiny_model)
    model._tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<go>")
    assert model._prompt(REQUESTS[0]) == '<system>write<user>1. a dog [dog]<go>'


def test_a_chat_template_without_a_system_gets_one_message(tiny_model):
    model = LocalModel(tiny_model)
    model._tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<go>")
    assert model._prompt(REQUESTS[0]) == '<user>write\n\n1. a dog [dog]<go>'


@pytest.mark.parametrize(('options', 'message'), [
    ({'dtype': 'float33'}, "no number format 'float33'"),
    ({'dtype': 'nn'}, "no number format 'nn'"),
    ({'device': 'cuda:99'}, "can't be loaded: "), ({'device': 'gpu'}, "can't be loaded: .*gpu")])
def test_a_device_or_format_that_is_none_is_named(tiny_model, options, message):
    with pytest.raises(LanguageModelError, match=message):
        LocalModel(tiny_model, **options)


def test_a_missing_local_model_is_named(tmp_path):
    with pytest.raises(LanguageModelError, match=r"'.*nothing' can't be loaded"):
        LocalModel(str(tmp_path / 'nothing'))
