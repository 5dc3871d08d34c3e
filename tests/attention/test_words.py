"""Nouns as people write them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from freeatm_mm.attention import words
from freeatm_mm.attention.words import noun_name, places_of, span_of, spans_of_prompts, word_spans
from freeatm_mm.prompts import Noun


@pytest.mark.parametrize(
    ('noun', 'text', 'places'),
    [
        ('dog', 'a dog and a Dog', [(2, 5), (12, 15)]),
        ('dog', 'hot-dog dogs bulldog', [(4, 7)]),
        ('fire engine', 'a Fire  engine', [(2, 14)]),
        ('dog', "the dog's ball", [(4, 7)]),
        ('狗', '一只狗和狗', [(2, 3), (4, 5)]),
        ('dog', '狗dog犬', [(1, 4)]),
        ('🐕', 'a🐕b', [(1, 2)]),
        ('café', 'un cafe\u0301 noir', [(3, 8)]),
        ('cafe\u0301', 'un café noir', [(3, 7)]),
        ('cafe', 'un cafe\u0301 noir', []),
        ('C++', 'a C++ book', [(2, 5)]),
        ('कल', 'यह कला है', []),
        ('कला', 'यह कला है', [(3, 6)]),
        ('ता', 'एक कुत्ता', []),
        ('कु', 'एक कुत्ता', []),
        ('สุนัข', 'ภาพสุนัขและแมว', [(3, 8)]),
        ('ส', 'ภาพสุนัข', []),
        ('👨', 'a 👨\u200d👩\u200d👧', []),
        ('👨\u200d👩\u200d👧', 'a 👨\u200d👩\u200d👧', [(2, 7)]),
        ('❤', 'a ❤\ufe0f', [(2, 3)]),
        ('d.g', 'a dog', []),
        (' ', 'a dog', []),
    ],
)
def test_places(noun, text, places):
    assert places_of(noun, text) == places


def test_spans_may_be_of_numpy():
    start, end = span_of((np.int64(2), np.int32(5)))
    assert (start, end) == (2, 5) and type(start) is type(end) is int


def test_occurrences_may_be_of_numpy():
    assert spans_of_prompts(['a dog, a dog'], [('dog', np.int64(2))], True) == [[(9, 12)]]


@pytest.mark.parametrize(
    ('noun', 'name'),
    [
        ('Dog', 'Dog'),
        (('dog', 2), 'dog'),
        (['dog', np.int64(2)], 'dog'),
        ((2, 5), 'Dog'),
        (Noun('Dog', 2, 5, 'dog'), 'Dog'),
    ],
)
def test_names(noun, name):
    assert noun_name('a Dog and a dog', noun) == name


@pytest.mark.parametrize('noun', [('dog', 0), ('dog', True), ('dog', 1.0), 5, ['dog']])
def test_what_has_no_name(noun):
    with pytest.raises(TypeError, match='occurrence'):
        noun_name('a dog', noun)


def test_messages_cut_long_prompts():
    prompt = 'a dog ' * 600
    with pytest.raises(
        ValueError, match=r"'dog' occurs 600 times in 'a dog .*3,600 char"
    ) as refusal:
        spans_of_prompts([prompt], [['dog']])
    assert len(str(refusal.value)) < 600


def test_words_hold_their_vowel_signs():
    prompt = "कुत्ता और fire-engine's 猫"
    words = [prompt[start:end] for start, end in word_spans(prompt)]
    assert words == ['कुत्ता', 'और', "fire-engine's", '猫']


@pytest.mark.parametrize(
    ('prompt', 'nouns', 'expected'),
    [
        ('a dog with a red ball', ['dog', 'red ball'], [(2, 5), (13, 21)]),
        ('a dog and a dog', [('dog', 2), ['dog', 1]], [(12, 15), (2, 5)]),
        ('a dog and a dog', [(12, 15), 'and'], [(12, 15), (6, 9)]),
        ('a dog', [], []),
    ],
)
def test_nouns_of_one_prompt(prompt, nouns, expected):
    assert spans_of_prompts([prompt], nouns, one_prompt=True) == [expected]


def test_nouns_of_several_prompts():
    pytest.importorskip('textblob')
    dog = Noun('dog', 2, 5, 'dog')
    found = spans_of_prompts(['a dog', 'a cat', 'a bird on a tree'], [[dog], [], 'auto'])
    assert found[:2] == [[dog], []]
    assert [noun.text for noun in found[2]] == ['bird', 'tree']


def test_automatic_nouns_are_things_that_one_can_see():
    pytest.importorskip('textblob')
    prompts = ['the idea of a dog on a beach', 'a cat']
    found = spans_of_prompts(prompts, 'auto')
    names = [[noun_name(prompt, noun) for noun in row] for prompt, row in zip(prompts, found)]
    assert names == [['dog', 'beach'], ['cat']]
    assert [span_of(noun) for noun in found[0]] == [(14, 17), (23, 28)]


@pytest.mark.parametrize(
    ('prompts', 'nouns', 'one', 'match'),
    [
        (
            ['a dog, a dog'],
            ['dog'],
            True,
            r"2 times.*2:5, 9:12.*\('dog', 1\) to \('dog', 2\)",
        ),
        (['a dog, a dog'], [('dog', 3)], True, r"2 times.*there is no \('dog', 3\)"),
        (['a dog'], [('dog', 2)], True, 'occurs once'),
        (['a dog'], [('dog', 0)], True, 'whole number from 1'),
        (['a dog'], [('dog', True)], True, 'whole number from 1'),
        (['a dog'], ['cat'], True, "prompt 0: the noun 'cat' is not in 'a dog'$"),
        (['two dogs'], ['dog'], True, "is part of 'dogs'"),
        (['a dog'], [''], True, "noun '' is not in"),
        (['a dog'], 'dog', True, r"nouns of prompt 0 must be a list, such as \['dog'\]"),
        (['a dog'], [5], True, 'prompt 0: a noun must be a word'),
        (['a dog'], [(2.0, 5)], True, 'prompt 0: a noun must be a word'),
        (['a dog'], None, True, 'must be a list'),
        (['a dog'], ['dog', 'a'], False, r"give each its own list.*nouns=\[\['dog', 'a'\]\]"),
        (['a dog', 'a cat'], [['dog']], False, '2 prompts but 1 list of nouns$'),
        (['a dog', 'a'], ['dog'], False, r"nouns=\[\['dog'\], \['dog'\]\]$"),
        (['a dog'], [['dog']], True, r"one list of nouns, such as \['dog'\], and no list of lists"),
        (['a dog', 'a cat'], ['dog', 'cat'], False, 'nouns of prompt 0 must be a list'),
        (['a dog', 'a cat'], 'dog', False, 'nouns must be a list'),
        (['a dog', 'a cat'], [['dog'], ['dog']], False, 'prompt 1: the noun'),
        (['un chien et une femme'], 'auto', True, 'prompt 0.*English'),
    ],
)
def test_what_is_wrong_is_one_sentence(prompts, nouns, one, match):
    if nouns == 'auto':
        pytest.importorskip('textblob')
    with pytest.raises((ValueError, TypeError), match=match) as error:
        spans_of_prompts(prompts, nouns, one)
    assert '\n' not in str(error.value)


def test_automatic_nouns_need_textblob(monkeypatch):
    monkeypatch.setitem(sys.modules, 'textblob.en', None)
    words._finder.cache_clear()
    with pytest.raises(ImportError, match='pip install .*prompts.*, or name the nouns'):
        spans_of_prompts(['a dog'], 'auto', one_prompt=True)
