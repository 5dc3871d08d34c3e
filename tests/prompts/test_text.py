"""Text from the web, cleaned."""

from __future__ import annotations

import unicodedata

import pytest
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.prompts.text import clean_text, without_invisible


@pytest.mark.parametrize(
    'text, clean',
    [
        ('rock &amp; roll', 'rock & roll'),
        ('&amp;quot;x&amp;quot;', '"x"'),
        ('AT&T', 'AT&T'),
        ('a & amp ; b', 'a & b'),
        ('x &quot y', 'x " y'),
        ('&nbsp;a&nbsp;', 'a'),
        ('&#39;s &#x27;', "'s '"),
        ('?a=1&lt=3', '?a=1&lt=3'),
        ('&unknown; &;', '&unknown; &;'),
        ('&#55357;&#0;', '\ufffd\ufffd'),
        ('&lt;b&gt;dog&lt;/b&gt;', 'dog'),
        ('a<br/>b<BR>c', 'a b c'),
        ('<p class="x">a</p>', 'a'),
        ('<!-- x -->a', 'a'),
        ('<3 a dog < b > c', '<3 a dog < b > c'),
        ('<start> a', '<start> a'),
        ("<PERSON>'s dog", "person's dog"),
        ('[sic] a [Sic!]', 'a'),
        ('a\\nb\\r\\nc\\t', 'a b c'),
        ('C:\\new\\table', 'C:\\new\\table'),
        ('\\"a\\"', '"a"'),
        ('cafe\u0301', 'café'),
        ('hot\u200bdog\ufeff', 'hotdog'),
        ('\u202ea\u202c\u200f', 'a'),
        ('a\u00a0\u3000b', 'a b'),
        ('a\x00\x1b[0m', 'a [0m'),
        ('👩\u200d🚀', '👩\u200d🚀'),
        ('a\u200db', 'ab'),
        ('\u00ad', ''),
        ('ﬁsh Ａ', 'ﬁsh Ａ'),
        ('', ''),
    ],
)
def test_texts_are_cleaned(text, clean):
    assert clean_text(text) == clean


@examples(300)
@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(
            st.sampled_from(
                [
                    '&',
                    'amp',
                    ';',
                    '#',
                    '3',
                    '<',
                    '>',
                    '/',
                    'b',
                    'br',
                    ' ',
                    '\\',
                    'n',
                    '[sic]',
                    '\u200d',
                    '\u200b',
                    '👩',
                    'a',
                    '\u0301',
                    '\x00',
                    '\ud83d',
                    '&lt;',
                    '&amp;',
                    'PERSON',
                    '\ufeff',
                    '\u202e',
                ]
            ),
            max_size=30,
        ).map(''.join),
    )
)
def test_cleaned_text_is_one_line_of_what_can_be_seen(text):
    clean = clean_text(text)
    assert clean == ' '.join(clean.split())
    assert unicodedata.is_normalized('NFC', clean)
    assert not any(unicodedata.category(character) == 'Cc' for character in clean)
    assert without_invisible(clean) == clean
    assert not {'\u200b', '\ufeff', '\u202e', '\u00ad'} & set(clean)


@pytest.mark.parametrize(
    'piece',
    [
        '&',
        '&amp',
        '<',
        '<b ',
        '<!--',
        '\\',
        '[sic',
        '&amp;amp;',
        '\u200d',
        '\u0301',
        ' ',
        '<PERSON>',
    ],
)
def test_long_texts_are_cleaned_in_time(piece):
    clean_text(piece * 50_000)
