"""Answers of language models: read in every common dress, never guessed, in bounded time."""

from __future__ import annotations

import itertools
import json

import pytest
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.prompts.answers import LONGEST_ANSWER, read_sentences, without_reasoning

SENTENCES = ['A wet dog runs home', 'Two birds sing loudly', 'A red car waits']
DRAFT = '1. no dog\n2. no bird\n3. no car'


def dressed(form, sentences=SENTENCES):
    return '\n'.join(form.format(n, text) for n, text in enumerate(sentences, 1))


FORMS = [
    '{0}. {1}',
    '{0}) {1}',
    '({0}) {1}',
    '{0}: {1}',
    '[{0}] {1}',
    '{0} - {1}',
    '{0} – {1}',
    '{0}.{1}',
    '{0} | {1}',
    '{0}/ {1}',
    '#{0} {1}',
    '#{0}: {1}',
    '{0} {1}',
    '{0}\\. {1}',
    '**{0}.** {1}',
    '**{0}. {1}**',
    '### {0}. {1}',
    '> {0}. {1}',
    '- {0}. {1}',
    '{0}. *{1}*',
    '{0}. **{1}**',
    '{0}. `{1}`',
    '{0}. "{1}"',
    '{0}. “{1}”',
    "{0}. '{1}'",
    '{0}. ‘{1}’',
    '{0}. «{1}»',
    '"{0}. {1}"',
    '"{0}. {1}",',
    '- {1}',
    '* {1}',
    '• {1}',
    '– {1}',
    '{1}',
    '"{1}"',
    '| {0} | {1} |',
    '{0}.\n{1}',
    'Prompt {0}: {1}',
    '**Prompt {0}:** {1}',
    '**Prompt {0}:**\n\n{1}\n',
    '### Prompt {0}\n{1}\n',
    'Line {0}. {1}',
    'No. {0}: {1}',
    '{0}. **Prompt:** {1}',
    '{0}. Rewritten prompt: {1}',
    '{0}\ufe0f\u20e3 {1}',
    '{0}\u20e3{1}',
    '\t{0}.\t{1}',
    '{0}.\u00a0{1}',
    '{0}. {1}  ',
    '{0}. {1} [dog; bird]',
    '\u200b{0}. {1}\u200b',
]
BEFORE = [
    '',
    'Sure! Here are the rewritten prompts:\n\n',
    '\ufeff',
    'Of course! 😊\n\n',
    f'<think>{DRAFT}</think>\n',
    f'{DRAFT}</think>\n\n',
    f'<thinking>\n{DRAFT}\n</thinking>',
    f'<reasoning>{DRAFT}</reasoning>\n',
    f'[THINK]{DRAFT}[/THINK]',
    f'◁think▷{DRAFT}◁/think▷',
    f'<|START_THINKING|>{DRAFT}<|END_THINKING|>',
    '<think>\n\n</think>\n\n',
    f'<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>',
    f'analysis{DRAFT}\nassistantfinal',
    f'assistantanalysis{DRAFT}assistantfinal',
]
AFTER = [
    '',
    '\n',
    '\n\nLet me know if you need more!',
    '\n\nHope this helps! 😊',
    '</s>',
    '<|im_end|>',
    '<|return|>',
]


@pytest.mark.parametrize('form', FORMS)
def test_lists_are_read_in_any_dress(form):
    body = dressed(form)
    for before, after in itertools.product(BEFORE, AFTER):
        for text in (before + body + after, (before + body + after).replace('\n', '\r\n')):
            assert read_sentences(text, 3) == SENTENCES, text
    for text in (
        f'```\n{body}\n```',
        f'Here you go:\n```text\n{body}\n```\nEnjoy!',
        f'<answer>\n{body}\n</answer>',
        f'{DRAFT}\n<answer>{body}</answer> Bye',
    ):
        assert read_sentences(text, 3) == SENTENCES, text


@pytest.mark.parametrize(
    'value',
    [
        SENTENCES,
        [{'number': n, 'text': text} for n, text in enumerate(SENTENCES, 1)],
        [{'id': n, 'prompt': text} for n, text in enumerate(SENTENCES)],
        {str(n): text for n, text in enumerate(SENTENCES, 1)},
        {'prompts': SENTENCES},
        {f'prompt_{n}': text for n, text in enumerate(SENTENCES, 1)},
        {'result': {'sentences': [{'sentence': text} for text in SENTENCES]}},
        [f'{n}. {text}' for n, text in enumerate(SENTENCES, 1)],
        [{'input': 'a dog', 'output': text} for text in SENTENCES],
        [{'prompt': 'a dog', 'rewritten': text} for text in SENTENCES],
    ],
)
def test_json_is_read(value):
    for indent in (None, 2):
        body = json.dumps(value, indent=indent)
        for text in (
            body,
            f'```json\n{body}\n```',
            f'Sure! Here:\n{body}\nHope it helps!',
            f'<think>[1, "x"]</think>{body}',
            f'Here:\n```\n{body}\n```\nBye',
        ):
            assert read_sentences(text, 3) == SENTENCES, text


@pytest.mark.parametrize(
    'text, expected',
    [
        (
            '\n'.join(json.dumps({'number': n, 'text': t}) for n, t in enumerate(SENTENCES, 1)),
            SENTENCES,
        ),
        (json.dumps(SENTENCES)[:-1] + ',]', SENTENCES),
        # Numbers count, not places.
        ('3. A red car waits\n1. A wet dog runs home', [SENTENCES[0], None, SENTENCES[2]]),
        (
            '{"3": "A red car waits", "1": "A wet dog runs home"}',
            [SENTENCES[0], None, SENTENCES[2]],
        ),
        # Another number of sentences than asked for, without numbers, can't be told apart.
        (json.dumps(SENTENCES[:2]), [None] * 3),
        ('- A dog\n- A cat', [None] * 3),
        # A draft before, notes after.
        (f'Draft:\n{DRAFT}\n\nFinal:\n{dressed("{0}. {1}")}', SENTENCES),
        (dressed('{0}. {1}') + '\n\nNotes:\n1. I used the terms\n2. All is well', SENTENCES),
        ('1. A wet dog\n   runs home\n2. Two birds\nsing loudly\n3. A red car waits', SENTENCES),
        ('1. A **wet** dog [runs] home\n2. Two *birds* sing loudly\n3. A red car waits', SENTENCES),
        (
            '1. 3.5 dogs run home\n2. Two birds sing loudly\n3. A red car waits',
            ['3.5 dogs run home', *SENTENCES[1:]],
        ),
        ('1. A dog &amp; a cat\n2. x<br>y\n3. caf\u0065\u0301', ['A dog & a cat', 'x y', 'café']),
        ('① A wet dog runs home\n② Two birds sing loudly\n③ A red car waits', SENTENCES),
        ('１．A wet dog runs home\n２．Two birds sing loudly\n３．A red car waits', SENTENCES),
        (
            '| No. | Original | Rewritten |\n|---|---|---|\n'
            + '\n'.join(f'| {n} | a dog | {text} |' for n, text in enumerate(SENTENCES, 1)),
            SENTENCES,
        ),
        (dressed('{0}. **Original:** a dog [dog]\n   **Rewritten:** {1}'), SENTENCES),
        ('<ol>' + ''.join(f'<li>{text}</li>' for text in SENTENCES) + '</ol>', SENTENCES),
        (str(SENTENCES), SENTENCES),
        (dressed('{0}. {1} ["dog"]'), SENTENCES),
        (f'Terms: ["dog", "bird"]\n{dressed("{0}. {1}")}', SENTENCES),
        (
            '\n'.join(f'{mark} {text}' for mark, text in zip(('a)', 'b)', 'c)'), SENTENCES)),
            SENTENCES,
        ),
        (
            '\n'.join(f'{mark} {text}' for mark, text in zip(('I.', 'II.', 'III.'), SENTENCES)),
            SENTENCES,
        ),
        (
            '\n'.join(
                f'- {mark} {text}' for mark, text in zip(('One:', 'Two:', 'Three:'), SENTENCES)
            ),
            SENTENCES,
        ),
        # Thoughts without an end, or without an answer.
        ('<think>1. a b c\n2. d e f', [None] * 3),
        ('1. a b\n<think>2. hm', ['a b', None, None]),
        ('<|channel|>analysis<|message|>' + DRAFT, [None] * 3),
        ("I'm sorry, but I can't help with that.", [None] * 3),
        ('', [None] * 3),
        ('\n\n', [None] * 3),
        ('4. A dog\n99. A cat', [None] * 3),
    ],
)
def test_what_counts(text, expected):
    assert read_sentences(text, 3) == expected


@pytest.mark.parametrize(
    'text',
    [
        'A wet dog runs home',
        '"A wet dog runs home"',
        'Sure!\n\nA wet dog runs home\n\nHope so',
        'Here is the prompt:\n**A wet dog runs home**',
        '1. A wet dog runs home',
        '- A wet dog runs home',
        '<think>hm</think>A wet dog runs home',
        '{"prompt": "A wet dog runs home"}',
        '["A wet dog runs home"]',
        '1. A wet dog runs home\n2. Another one',
        'Prompt: A wet dog runs home',
    ],
)
def test_one_sentence_needs_no_number(text):
    assert read_sentences(text, 1) == SENTENCES[:1]


def test_half_a_sentence_is_none():
    body = dressed('{0}. {1}')
    first = [*SENTENCES[:2], None]
    assert read_sentences(body[:-4], 3, cut=True) == first
    assert read_sentences(body, 3, cut=True) == first, 'nothing says that it is whole'
    assert read_sentences(body + '\n', 3, cut=True) == SENTENCES
    assert read_sentences('A wet dog ru', 1, cut=True) == [None]
    assert read_sentences(json.dumps(SENTENCES)[:-6], 3, cut=True) == first
    assert read_sentences('```json\n[\n  "A wet dog runs home",\n  "Two bi', 3, cut=True) == [
        SENTENCES[0],
        None,
        None,
    ]
    assert read_sentences(
        '[{"number": 1, "text": "A wet dog runs home"}, {"number": 2, "text": "Two bi', 3, cut=True
    ) == [SENTENCES[0], None, None]
    assert read_sentences(
        '[{"index": 0, "text": "A wet dog runs home"}, {"index": 1, "text": "Two bi', 3, cut=True
    ) == [SENTENCES[0], None, None]


def test_thoughts_are_left_out():
    assert without_reasoning('a <think>b <think>c</think> d</think> e') == 'a  e'
    assert without_reasoning('b</think>c</thinking>d') == 'd'
    assert without_reasoning('I think <b>so</b> [1]') == 'I think <b>so</b> [1]'


@pytest.mark.parametrize(
    'piece',
    [
        '- ',
        ' ',
        '1.',
        '[',
        '[{',
        '<think>',
        '"',
        '1 - ',
        '*',
        '1\n',
        '[ ',
        '<|channel|>a',
        '\\',
        '|',
        '```\n',
        '{"a":',
        '_a',
        '“',
        '[a',
        'a]',
        '<b ',
        '&amp',
        '\u200d',
        "'*",
        '\t',
        '1. "',
        '{"1":"',
    ],
)
def test_long_answers_take_bounded_time(piece):
    """Of 200,000 characters; what isn't linear doesn't come to an end."""
    text = (piece * LONGEST_ANSWER)[:LONGEST_ANSWER]
    for count in (1, 10):
        assert len(read_sentences(text, count)) == count


def test_a_list_of_quotes_takes_bounded_time():
    text = ('["' + '\\"' * LONGEST_ANSWER)[:LONGEST_ANSWER]
    assert read_sentences(text, 3) == [None] * 3


PIECES = st.sampled_from(
    [
        *'0123456789.,:;()[]{}<>|"\'“”*_`#-–•\\/\n\r\t ',
        '\n1. ',
        '\n2) ',
        '<think>',
        '</think>',
        '```',
        '{"1": "',
        '", "',
        '"]',
        'a dog',
        'Sure!',
        '<|channel|>',
        'final',
        '<|message|>',
        '\ufeff',
        '\u200b',
        '1️⃣',
        '①',
        '&amp;',
        '<answer>',
        '</answer>',
        '\ud83d',
        '犬',
        '\u2028',
    ]
)


@examples(500)
@given(
    st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=60).map(''.join)),
    st.integers(1, 12),
    st.booleans(),
)
def test_anything_is_read_or_not(text, count, cut):
    found = read_sentences(text, count, cut)
    assert len(found) == count
    for sentence in found:
        assert sentence is None or (sentence.strip() == sentence != '' and '\n' not in sentence)


@examples(200)
@given(
    st.lists(
        st.text(st.sampled_from('abcdefgh ABC'), min_size=4, max_size=30)
        .map(lambda text: 'A dog ' + ' '.join(text.split()))
        .map(str.strip),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(FORMS),
    st.sampled_from(BEFORE),
    st.sampled_from(AFTER),
)
def test_what_was_dressed_comes_back(sentences, form, before, after):
    if form == '{0} {1}' and len(sentences) == 1:
        return  # one line, whose number may be its sentence's
    assert read_sentences(before + dressed(form, sentences) + after, len(sentences)) == sentences
