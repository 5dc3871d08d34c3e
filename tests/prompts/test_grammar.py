"""The grammar: any record alone from its number, nothing twice before its time, nothing absurd."""

from __future__ import annotations

from itertools import islice

import pytest
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.prompts.grammar import PromptGrammar, photo_prompts, shuffled, take_turns
from freeatm_mm.prompts.imagenet import load_classes, select_classes
from freeatm_mm.prompts.kinds import KINDS, SETTINGS

CLASSES = load_classes()
BY_LABEL = {c.label: c for c in CLASSES}


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_turns_are_taken_in_a_circle_until_each_has_had_its_own(sizes):
    expected, had = [], [0] * len(sizes)
    while any(h < s for h, s in zip(had, sizes)):
        for who, size in enumerate(sizes):
            if had[who] < size:
                expected.append((who, had[who]))
                had[who] += 1
    assert [take_turns(sizes, turn) for turn in range(sum(sizes))] == expected
    with pytest.raises(IndexError):
        take_turns(sizes, sum(sizes))


@examples(50)
@given(st.integers(1, 300), st.text(max_size=5))
def test_another_order_leaves_nothing_out(size, key):
    assert sorted(shuffled(n, size, key) for n in range(size)) == list(range(size))


def test_nothing_comes_twice_before_its_class_is_used_up():
    """A small world whose classes run out at different times."""
    grammar = PromptGrammar([BY_LABEL['go-kart'], BY_LABEL['king penguin'], BY_LABEL['stage']])
    count = 3 * max(grammar.sizes) + 100
    seen, repeats = set(), 0
    for number, record in enumerate(grammar.records(0, count)):
        repeats += record.prompt in seen
        seen.add(record.prompt)
        if number % 97 == 0:
            assert grammar.repeats(number + 1) == repeats, number
    assert grammar.repeats(count) == repeats > 0
    assert len(seen) == sum(grammar.sizes)


def test_the_first_million_is_as_good_as_free_of_repeats():
    """The paper's 1.2 M: at most 2 % of them a sentence that came before."""
    assert PromptGrammar(CLASSES).repeats(1_200_000) < 0.02 * 1_200_000


def test_a_record_does_not_depend_on_those_before_it():
    grammar = PromptGrammar(CLASSES, seed=3)
    assert list(grammar.records(5000, 5050)) == list(
        islice(PromptGrammar(CLASSES, seed=3).records(0, 5050), 5000, None)
    )
    assert grammar[12345678].id == 'imagenet-12345678'


def test_seeds_differ_and_repeat():
    def prompts(seed):
        return [r.prompt for r in PromptGrammar(CLASSES, seed).records(0, 500)]

    assert prompts(0) == prompts(0)
    assert len(set(prompts(0)) & set(prompts(1))) < 25


def test_each_class_comes_once_a_round_and_all_forms_come():
    records = list(PromptGrammar(CLASSES).records(0, 4000))
    for start in range(0, 4000, 1000):
        subjects = {r.nouns[0].category for r in records[start : start + 1000]}
        assert len(subjects) == 1000
    pairs = sum(len(r.nouns) == 2 for r in records)
    doing = sum('ing ' in f'{r.prompt.partition(" is ")[2]} ' for r in records)
    assert 0.45 < pairs / 4000 < 0.52
    assert 0.4 < sum(len(r.nouns) == 2 for r in records[:1000]) / 1000 < 0.6
    assert doing / 4000 > 0.45
    # Rounds are in different orders.
    first, second = ([r.nouns[0].text for r in records[s : s + 1000]] for s in (0, 1000))
    assert first != second


GRAMMARS = [PromptGrammar(CLASSES, seed) for seed in range(2)]


@given(st.integers(0, 10**7), st.sampled_from(GRAMMARS))
def test_every_sentence_is_possible_and_its_nouns_are_where_they_are(number, grammar):
    record = grammar[number]
    subject = BY_LABEL[record.nouns[0].category]
    kind = KINDS[subject.kind]
    assert record.prompt.startswith(f'{subject.determiner} {subject.label} ')
    words = record.prompt.rpartition(' is ')[2]
    places = [
        name for name in kind.settings if any(place in words for place in SETTINGS[name].places)
    ]
    assert places, record.prompt
    for noun in record.nouns:
        assert record.prompt[noun.start : noun.end] == noun.text == noun.category
    if len(record.nouns) == 2:
        other = KINDS[BY_LABEL[record.nouns[1].category].kind]
        assert abs(other.size - kind.size) <= 1
        assert set(places) & set(other.settings), record.prompt
        assert f' with {BY_LABEL[record.nouns[1].category].determiner} ' in record.prompt


@pytest.mark.parametrize(
    'one, other',
    [
        ('grey whale', 'toaster'),
        ('ant', 'castle'),
        ('polar bear', 'king penguin'),
        ('great white shark', 'tabby cat'),
        ('lion', 'hamster'),
        ('airliner', 'teapot'),
    ],
)
def test_impossible_pairs_never_meet(one, other):
    for subject, partner in ((one, other), (other, one)):
        grammar = PromptGrammar([BY_LABEL[subject]], partners=[BY_LABEL[partner]])
        assert all(len(grammar[n].nouns) == 1 for n in range(min(grammar.sizes[0], 500)))


def test_a_subset_of_classes_still_meets_the_others():
    records = list(PromptGrammar(select_classes('dog')).records(0, 1000))
    assert {r.nouns[0].category for r in records} == {c.label for c in select_classes('dog')}
    assert any(BY_LABEL[r.nouns[1].category].kind != 'dog' for r in records if len(r.nouns) == 2)


def test_photo_prompts_are_plain():
    records = list(photo_prompts(select_classes('dog'), 117, 120))
    assert [r.prompt for r in records] == [
        'a photo of a Mexican hairless dog',
        'a photo of a Chihuahua',
        'a photo of a Japanese Chin',
    ]
    assert [r.id for r in records] == ['photo-00000117', 'photo-00000118', 'photo-00000119']


def test_wrong_numbers_are_refused():
    with pytest.raises(IndexError, match='numbered from 0, got -1'):
        PromptGrammar(CLASSES)[-1]
    with pytest.raises(ValueError, match='at least one class'):
        PromptGrammar([])
