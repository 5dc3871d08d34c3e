"""Rewriting: every answer is checked, the template stays where one fails, nothing is lost."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.prompts import Noun, PromptRecord, Subject, fill_template
from freeatm_mm.prompts.journal import SeenTexts
from freeatm_mm.prompts.language_models import Answer, LanguageModelError
from freeatm_mm.prompts.rewrite import (
    HOPELESS_AFTER,
    Checks,
    Prices,
    check_answer,
    find_again,
    read_words,
    rewrite_batches,
    unsafe_words,
)

CHECKS = Checks(4, 12, unsafe_words())


def pair(number=0, one='dog', other='hot dog'):
    return fill_template(
        f'p-{number}',
        '{0} with {1} {be} {place}',
        [Subject(one), Subject(other)],
        f'in park {number}',
    )


def test_nouns_are_found_again_whole_and_apart():
    nouns = pair().nouns
    text = 'A hot dog vendor throws his DOG two hot dogs, dogged'
    found = find_again(nouns, text)
    assert [(n.text, n.start, n.category) for n in found] == [
        ('DOG', 28, 'dog'),
        ('hot dog', 2, 'hot dog'),
    ]
    assert find_again(nouns, 'a hot dog in a doghouse') is None
    assert find_again(nouns[:1], 'the dog-house') is None
    twice = (Noun('dog', 2, 5), Noun('dog', 13, 16))
    assert [n.start for n in find_again(twice, 'a dog and dogs')] == [2, 10]
    assert find_again(twice, 'a dog alone') is None


@given(
    st.lists(
        st.sampled_from(['dog', 'hot dog', 'ÉTÉ', 'Straße', 'a+b', '犬']), min_size=1, max_size=4
    ),
    st.text(max_size=30),
)
def test_spans_of_found_nouns_are_exact_and_disjoint(words, text):
    nouns = [Noun(word, 0, len(word)) for word in words]
    for where in (text, f'{text} {" / ".join(words)} {text}'):
        found = find_again(nouns, where)
        if found is None:
            assert where is text
            continue
        PromptRecord('1', where, found)
        assert len(found) == len(words)
        ends = sorted((n.start, n.end) for n in found)
        assert all(left[1] <= right[0] for left, right in zip(ends, ends[1:]))


@pytest.mark.parametrize(
    'text, problem',
    [
        ('a dog chases a bird', 'noun missing'),
        ('dog hot dog', 'fewer than 4 words'),
        ('a dog with a hot dog is in a big green park at noon today', 'more than 12 words'),
        ('A dog with a hot dog is in park 0', 'unchanged'),
        ('a dead dog with a hot dog', 'unsafe word'),
        ('Here is a [dog] with a hot dog', 'markup'),
        ('a dog with a hot dog **today**', 'markup'),
        ('a dog with a hot\u200bdog and a hot dog', 'markup'),
        ('I cannot draw a dog with a hot dog', 'refusal'),
        ("I'm sorry, a dog eats no hot dog", 'refusal'),
    ],
)
def test_a_bad_answer_is_named(text, problem):
    assert check_answer(pair(), text, CHECKS) == problem


def test_a_good_answer_gives_the_spans():
    text = 'A wet dog guards one hot dog at dawn'
    nouns = check_answer(pair(), text, CHECKS)
    assert [n.text for n in nouns] == ['dog', 'hot dog']


def test_words_of_the_template_are_never_unsafe():
    template = fill_template('1', '{0} {be} {place}', [Subject('bloody mary')], 'on a bar')
    assert not isinstance(check_answer(template, 'one bloody mary on ice', CHECKS), str)
    assert check_answer(pair(), 'a dog and a hot dog in a strip club', CHECKS) == 'unsafe word'


@pytest.mark.parametrize(
    ('entry', 'text'),
    [
        ('red light district', 'a dog eats a hot dog in the red light district'),
        ('u.s. flag', 'a dog eats a hot dog under a U.S. flag'),
        ('Neon', 'a dog eats a hot dog under a neon sign'),
        ('neon', "a dog eats a hot dog under a 'neon' sign"),
        ("widow's walk", 'a dog eats a hot dog on a widow’s walk'),
    ],
)
def test_forbidden_phrases_may_have_any_words(entry, text):
    checks = Checks(forbidden=frozenset([entry]))
    assert check_answer(pair(), text, checks) == 'unsafe word'
    assert not isinstance(check_answer(pair(), text.replace('a dog', 'dog'), Checks()), str)


def test_a_forbidden_entry_without_a_word_is_refused():
    with pytest.raises(ValueError, match=r"'\*\*' is no word that could be forbidden"):
        Checks(forbidden=read_words('neon\n**\n'))


def test_word_lists_have_comments():
    assert read_words('# a\n\n Foo \nbar baz\n') == {'foo', 'bar baz'}
    assert 'murder' in unsafe_words() and len(unsafe_words()) > 50


class Model:
    """Answers by a function of the numbered lines it is shown."""

    name = 'toy'
    group_size = 1

    def __init__(self, reply):
        self.reply = reply
        self.asked = []

    def answers(self, groups):
        for group in groups:
            self.asked.append([request.text for request in group])
            yield [self.reply(request.text) for request in group]


def good(text):
    lines = re.findall(r'(\d+)\. a (\w+) with .* (\d+) \[', text)
    return Answer(
        '\n'.join(f'{n}. one big {noun} eats hot dog number {park}' for n, noun, park in lines),
        '',
        100,
        50,
    )


def rewrite(model, records, **options):
    with SeenTexts() as seen:
        made = list(rewrite_batches(records, model, seen, checks=CHECKS, **options))
    counts = {}
    for batch in made:
        for name, number in batch.counts.items():
            counts[name] = counts.get(name, 0) + number
    return [record for batch in made for record in batch.records], counts


def test_good_answers_replace_the_templates():
    records = [pair(n) for n in range(25)]
    model = Model(good)
    made, counts = rewrite(model, records, prices=Prices(1000, 2000))
    assert [r.id for r in made] == [r.id for r in records]
    assert made[7].prompt == 'one big dog eats hot dog number 7'
    assert made[7].source == 'template+toy'
    assert [n.category for n in made[7].nouns] == ['dog', 'hot dog']
    assert [len(asked[0].splitlines()) for asked in model.asked] == [10, 10, 5]
    assert counts == {
        'rewritten': 25,
        'requests': 3,
        'tokens in': 300,
        'tokens out': 150,
        'dollars': pytest.approx(0.6),
    }
    assert '1. a dog with a hot dog is in park 0 [dog; hot dog]' in model.asked[0][0]


def test_each_failure_keeps_its_template_and_is_counted():
    records = [pair(n) for n in range(8)]

    def reply(text):
        return Answer(
            'Sure, here they are:\n'
            '1. one big dog eats a hot dog\n'
            '2. One big dog eats a hot dog\n'  # said before
            '3) "a quiet dog beside a hot dog"\n'
            '4. a dog\n'
            '5.\n'
            '7. a nude dog with a hot dog\n'
            '99. a dog with a hot dog far away\n'
        )

    made, counts = rewrite(Model(reply), records)
    assert made[2].prompt == 'a quiet dog beside a hot dog'
    assert [r == t for r, t in zip(made, records)] == [False, True, False] + [True] * 5
    assert counts == {
        'rewritten': 2,
        'requests': 1,
        'requests whose tokens the server did not count': 1,
        'template kept: duplicate': 1,
        'template kept: fewer than 4 words': 1,
        'template kept: no line for it in the answer': 3,
        'template kept: unsafe word': 1,
    }


def test_alone_in_a_request_an_answer_needs_no_number():
    made, _ = rewrite(
        Model(lambda text: Answer(' A dog likes its hot dog. \nBye')), [pair()], per_request=1
    )
    assert made[0].prompt == 'A dog likes its hot dog.'


def test_no_answer_keeps_all_templates_of_the_request():
    records = [pair(n) for n in range(3)]
    made, counts = rewrite(
        Model(lambda text: Answer(None, 'the answer was empty', retries=2)), records
    )
    assert made == records
    assert counts['template kept: the answer was empty'] == 3
    assert counts['requests sent again'] == 2


@pytest.mark.parametrize('source', ['template', f'template+{Model.name}'])
def test_a_hopeless_model_stops_the_run(source):
    """Also on a second pass over what it has rewritten."""
    model = Model(lambda text: Answer('lorem ipsum'))
    with pytest.raises(LanguageModelError, match=f"last {HOPELESS_AFTER} requests .*'lorem ipsum'"):
        rewrite(model, (replace(pair(n), source=source) for n in range(10**6)))
    assert len(model.asked) == HOPELESS_AFTER


def test_a_refusal_of_the_server_is_told_with_its_reason():
    model = Model(lambda text: Answer(None, 'the server refused the request', detail='400 no'))
    with pytest.raises(
        LanguageModelError, match='the last one: the server refused the request: 400 no'
    ):
        rewrite(model, (pair(n) for n in range(10**6)))


def test_answers_that_cannot_be_read_are_told():
    def reply(text):
        return Answer('lorem ipsum ' * 30) if 'park 0' in text else good(text)

    with SeenTexts() as seen:
        made = list(
            rewrite_batches([pair(n) for n in range(30)], Model(reply), seen, checks=CHECKS)
        )
    (message,) = [message for batch in made for message in batch.messages]
    assert message.startswith('no prompt could be read from an answer that began') and (
        len(message) < 200
    )


def test_thoughts_and_half_sentences_keep_their_templates():
    records = [pair(n) for n in range(3)]

    def reply(text):
        return Answer(
            '<think>1. one big dog eats hot dog number 9\n2. one big dog eats a hot dog'
            '</think>\n1. one big dog eats hot dog number 1\n2. one big dog eats a hot '
            'dog and th',
            cut=True,
            notes=('asked without seed',),
        )

    made, counts = rewrite(Model(reply), records)
    assert made[0].prompt == 'one big dog eats hot dog number 1' and made[1:] == records[1:]
    assert counts == {
        'rewritten': 1,
        'requests': 1,
        'template kept: the answer was cut off': 2,
        'requests asked without seed': 1,
        'requests whose tokens the server did not count': 1,
    }


@examples(200)
@given(
    st.lists(
        st.sampled_from(
            [
                '\n1. ',
                '\n2. ',
                '\n3) ',
                'one big dog',
                ' eats a hot dog',
                'hot dogs',
                '<think>',
                '</think>',
                '"',
                '**',
                '[dog]',
                '&amp;',
                '\ud83d',
                '\u200d',
                '🐦',
                'e\u0301',
                '{"1": "',
                '", "2": "',
                '"}',
                ' ',
                '.',
                "I'm sorry",
                'x' * 50,
            ]
        ),
        max_size=30,
    ).map(''.join),
    st.booleans(),
)
def test_any_answer_gives_exact_records(text, cut):
    records = [pair(n) for n in range(3)]
    made, counts = rewrite(Model(lambda _: Answer(text, cut=cut)), records)
    assert [record.id for record in made] == [record.id for record in records]
    for record, template in zip(made, records):
        assert [noun.category for noun in record.nouns] == [n.category for n in template.nouns]
        for noun in record.nouns:
            assert record.prompt[noun.start : noun.end] == noun.text
        assert 'think' not in record.prompt and '\n' not in record.prompt


def test_a_budget_needs_a_server_that_counts_tokens():
    model = Model(lambda text: Answer(good(text).text))
    with pytest.raises(LanguageModelError, match="doesn't count tokens"):
        rewrite(model, [pair(n) for n in range(50)], prices=Prices(1, 1, 5.0))
    assert len(model.asked) == 1


def test_a_spent_budget_stops_the_run():
    records = [pair(n) for n in range(50)]
    for spent, requests in ((0.0, 2), (0.3, 1)):
        model = Model(good)
        with pytest.raises(LanguageModelError, match='budget of 0.4 dollars is spent'):
            rewrite(model, records, prices=Prices(1000, 2000, 0.4), spent=spent)
        assert len(model.asked) == requests


def test_rewriting_goes_on_where_it_stopped():
    records = [pair(n) for n in range(25)]
    whole, _ = rewrite(Model(good), records)
    rest, _ = rewrite(Model(good), records, skip=10)
    assert rest == whole[10:]
