"""Templates: every noun's span is known by construction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.prompts import TEMPLATES, Subject, fill_template

WORDS = st.text('abcdefgo', min_size=1, max_size=8)
SUBJECTS = st.builds(Subject, WORDS, st.one_of(st.just(''), WORDS))


@given(st.lists(SUBJECTS, min_size=1, max_size=3), st.data())
def test_spans_hold_the_nouns(subjects, data):
    template = data.draw(st.sampled_from(TEMPLATES[len(subjects)]))
    record = fill_template('1', template, subjects, 'in the water')
    assert [noun.text for noun in record.nouns] == [subject.noun for subject in subjects]
    for noun, subject in zip(record.nouns, subjects):
        assert record.prompt[: noun.end].endswith(subject.words)
    assert record.prompt.endswith(' in the water')


def test_a_sentence_reads_well():
    record = fill_template(
        '1',
        TEMPLATES[3][1],
        [Subject('apple'), Subject('dress', 'red'), Subject('bird')],
        'on the sand',
    )
    assert record.prompt == 'an apple, a red dress and a bird are on the sand'
    assert (
        fill_template('1', TEMPLATES[2][0], [Subject('bird'), Subject('fish')], 'here').prompt
        == 'a bird with a fish is here'
    )


def test_spans_survive_fields_out_of_order():
    record = fill_template('1', '{1} looks at {0}', [Subject('bird'), Subject('whale', 'big')], '')
    assert record.prompt == 'a big whale looks at a bird'
    assert [record.prompt[n.start : n.end] for n in record.nouns] == ['bird', 'whale']


def test_a_subject_without_a_field_is_refused():
    with pytest.raises(ValueError, match=r"has no field \{1\} for 'fish'"):
        fill_template('1', '{0} is here', [Subject('bird'), Subject('fish')], '')
