"""Characters of a noun to its tokens, for slow and fast tokenizers."""

from __future__ import annotations

import functools
import unicodedata

import pytest
import torch
from helpers.examples import examples
from helpers.tiny_pipelines import WORDS, tiny_clip_tokenizer, tiny_t5_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.attention import (
    MERGE_RULES,
    NounAlignmentError,
    NounTruncatedError,
    locate_nouns,
    merge_tokens,
)
from freeatm_mm.attention.words import word_spans


@functools.cache
def clip(fast):
    return tiny_clip_tokenizer(fast)


@functools.cache
def t5():
    return tiny_t5_tokenizer()


@functools.cache
def bert(fast):
    import tempfile
    from pathlib import Path

    from transformers import BertTokenizer, BertTokenizerFast

    letters = [chr(code) for code in range(97, 123)]
    vocabulary = [
        '[PAD]',
        '[UNK]',
        '[CLS]',
        '[SEP]',
        '[MASK]',
        ',',
        '.',
        *WORDS,
        *letters,
        *('##' + letter for letter in letters),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'vocab.txt'
        path.write_text('\n'.join(dict.fromkeys(vocabulary)), encoding='utf-8')
        return (BertTokenizerFast if fast else BertTokenizer)(str(path), model_max_length=77)


class SlowT5:
    """Speaks like a SentencePiece tokenizer that gives no offsets."""

    is_fast = False
    padding_side = 'right'
    model_max_length = 77

    def tokenize(self, text):
        return t5().tokenize(text)

    def build_inputs_with_special_tokens(self, ids):
        return [*ids, 1]

    def __call__(self, text):
        return t5()(text)

    def convert_ids_to_tokens(self, ids):
        return t5().convert_ids_to_tokens(ids)


@functools.cache
def qwen():
    """A slow tokenizer that keeps capitals, on single bytes."""
    import json
    import tempfile
    from pathlib import Path

    from transformers import Qwen2Tokenizer
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / 'vocab.json', Path(folder) / 'merges.txt'
        vocabulary.write_text(
            json.dumps({piece: number for number, piece in enumerate(bytes_to_unicode().values())}),
            encoding='utf-8',
        )
        merges.write_text('#version: 0.2\n', encoding='utf-8')
        return Qwen2Tokenizer(str(vocabulary), str(merges), model_max_length=200)


class Pieces:
    """A slow tokenizer that gives the pieces it is told."""

    is_fast = False
    padding_side = 'right'
    model_max_length = 77
    unk_token = '<unk>'

    def __init__(self, *pieces):
        self.pieces = pieces

    def tokenize(self, text):
        return list(self.pieces)

    def build_inputs_with_special_tokens(self, ids):
        return ids


TOKENIZERS = {
    'clip slow': lambda: clip(False),
    'clip fast': lambda: clip(True),
    't5 fast': t5,
    't5 slow': SlowT5,
    'bert slow': lambda: bert(False),
    'bert fast': lambda: bert(True),
}


def text_of(tokenizer, prompt, positions):
    """The noun as spelled by its tokens."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt)['input_ids'])
    return (
        ''.join(tokens[position] for position in positions)
        .replace('</w>', '')
        .replace('##', '')
        .replace('\u2581', '')
    )


@pytest.mark.parametrize('name', TOKENIZERS)
def test_known_and_split_words(name):
    tokenizer = TOKENIZERS[name]()
    prompt = 'a dog, tench and a dog.'
    spans = [(2, 5), (7, 12), (19, 22)]
    positions = locate_nouns(tokenizer, prompt, spans).positions
    assert [len(noun) for noun in positions][::2] == [1, 1]
    assert len(positions[1]) >= 5
    assert [text_of(tokenizer, prompt, noun) for noun in positions] == ['dog', 'tench', 'dog']
    assert positions[0] != positions[2]


@pytest.mark.parametrize('name', TOKENIZERS)
@examples(40)
@given(data=st.data())
def test_tokens_spell_the_noun(name, data):
    tokenizer = TOKENIZERS[name]()
    word = st.one_of(st.sampled_from(WORDS), st.text('abcdegorst', min_size=1, max_size=8))
    words = data.draw(st.lists(word, min_size=1, max_size=7))
    if not name.startswith('t5'):  # T5 keeps case, and its pipeline lowers it before
        words = [text.title() if data.draw(st.booleans()) else text for text in words]
    prompt, spans = data.draw(st.sampled_from(['', ' ', '  '])), []
    for text in words:
        spans.append((len(prompt), len(prompt) + len(text)))
        prompt += text + data.draw(st.sampled_from([' ', ', ', '  ', '. ', '\n']))
    found = locate_nouns(tokenizer, prompt, spans)
    assert found.truncated == ()
    for text, noun in zip(words, found.positions):
        assert text_of(tokenizer, prompt, noun) == text.lower()
        assert list(noun) == list(range(noun[0], noun[-1] + 1))
    places = [position for noun in found.positions for position in noun]
    assert len(places) == len(set(places))


@pytest.mark.parametrize('fast', [False, True])
@pytest.mark.parametrize(
    'prompt',
    [
        'the caf\u00e9 and the dog',
        'the dog\u2019s red bag',
        '\u201cred\u201d bag, dog',
        'DOG!!',
        'cat\u2014dog',
        '\U0001f436 dog',
        'a\u00a0dog',
        'e\u0301 dog',
        '\u0130 dog',
    ],
)
def test_clip_follows_nouns_through_normalisation(fast, prompt):
    tokenizer = clip(fast)
    for noun in ('dog', 'bag', 'cat', 'caf\u00e9'):
        start = prompt.lower().find(noun) if prompt[0] != '\u0130' else prompt.find(noun)
        if start < 0:
            continue
        (positions,) = locate_nouns(tokenizer, prompt, [(start, start + len(noun))]).positions
        spelled = text_of(tokenizer, prompt, positions)
        assert spelled == (noun if noun != 'caf\u00e9' else 'caf\u00c3\u00a9')


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
@pytest.mark.parametrize(
    'prompt',
    [
        'une \u00e9cole \u00c9COLE',
        'ein \u00c4gypter dog',
        '\u039f\u0394\u039f\u03a3 \u03b4\u03c1\u03cc\u03bc\u03bf\u03c2',
        '\u0414\u043e\u043c \u0420\u0415\u041a\u0410 \u0401\u0436',
        '\ud55c\uad6d dog',
        'Vi\u1ec7t \u1ec7',
        'vi\u00ea\u0323t dog',
        '\u0130stanbul cat',
        '\ufb01sh \uff24\uff2f\uff27',
        '\u0e19\u0e49\u0e33 \u0915\u0941\u0924\u094d\u0924\u093e',
    ],
)
@pytest.mark.parametrize('make', [lambda: clip(False), lambda: clip(True), qwen])
def test_every_piece_belongs_to_its_word_however_letters_are_written(make, prompt, form):
    tokenizer, prompt = make(), unicodedata.normalize(form, prompt)
    found = locate_nouns(tokenizer, prompt, word_spans(prompt)).positions
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)
    spaces = {*tokenizer.all_special_tokens, '\u0120'}
    assert [place for word in found for place in word] == [
        place for place, token in enumerate(tokens) if token not in spaces
    ]
    if make is not qwen:  # whose pieces of a word have no mark at its end
        assert all(tokens[word[-1]].endswith('</w>') for word in found)


def test_unknown_words_have_their_token():
    tokenizer = bert(False)
    found = locate_nouns(tokenizer, 'a \u72d7 \u732b dog', [(2, 3), (4, 5), (2, 5)])
    assert found.positions == ((2,), (3,), (2, 3))
    prompt = 'a \ud55c\uad6d\uc5b4 \uac15\uc544\uc9c0 dog'  # two unknown words side by side
    with pytest.raises(
        NounAlignmentError, match=r'BertTokenizer does not read .*\(6:9\) is not kno'
    ):
        locate_nouns(tokenizer, prompt, [(6, 9)])
    assert locate_nouns(tokenizer, prompt, [(2, 9), (10, 13)]).positions == ((2, 3), (4,))


def test_pieces_that_are_bytes():
    tokenizer = Pieces('\u2581une', '\u2581', '<0xC3>', '<0x89>', 'cole', '\u2581', '<unk>')
    found = locate_nouns(tokenizer, 'une E\u0301cole \u72d7', [(4, 10), (11, 12)])
    assert found.positions == ((2, 3, 4), (6,))


@pytest.mark.parametrize(
    ('prompt', 'prepared'),
    [
        ('the e\u0301cole', 'the \u00e9cole'),
        ('the \u00e9cole', 'the e\u0301cole'),
        ('the \u039f\u0394\u039f\u03a3', 'the \u03bf\u03b4\u03bf\u03c2'),
        ('the \ufb01sh', 'the fish'),
    ],
)
def test_preparation_may_write_letters_otherwise(prompt, prepared):
    (found,) = locate_nouns(clip(True), prompt, [(4, len(prompt))], prepared=prepared).positions
    assert found == locate_nouns(clip(True), prepared, [(4, len(prepared))]).positions[0]


def test_pipeline_preparation_shifts_spans():
    prompt = '  A Dog on the SAND '
    prepared = prompt.lower().strip()
    positions = locate_nouns(t5(), prompt, [(4, 7), (15, 19)], prepared=prepared).positions
    assert [text_of(t5(), prepared, noun) for noun in positions] == ['dog', 'sand']
    prompt = 'dog see https://x.org/cat.png, a cat and a dog'
    prepared = 'dog see , a cat and a dog'
    start = prompt.index('a cat') + 2
    spans = [(start, start + 3), (len(prompt) - 3, len(prompt)), (0, 3)]
    positions = locate_nouns(t5(), prompt, spans, prepared=prepared).positions
    assert [text_of(t5(), prepared, noun) for noun in positions] == ['cat', 'dog', 'dog']
    assert positions[1][0] > positions[2][0]
    prompt = '\u0130\u0130 dog'
    (noun,) = locate_nouns(t5(), prompt, [(3, 6)], prepared=prompt.lower()).positions
    assert text_of(t5(), prompt.lower(), noun) == 'dog'


def test_a_noun_lost_in_preparation():
    prompt = 'see https://x.org/cat.png a dog'
    start = prompt.index('cat')
    with pytest.raises(NounAlignmentError, match="'cat'.*no longer in the prompt"):
        locate_nouns(t5(), prompt, [(start, start + 3)], prepared='see a dog')


@pytest.mark.parametrize('name', TOKENIZERS)
def test_truncation_keeps_the_closing_token(name):
    tokenizer = TOKENIZERS[name]()
    opening = 0 if name.startswith('t5') else 1
    for count, lost in ((9 - opening - 1, False), (9 - opening, True), (30, True)):
        prompt = 'a ' * count + 'dog'
        span = (len(prompt) - 3, len(prompt))
        expected = () if lost else (opening + count,)
        # 10 tokens: opening, prompt, closing.
        if lost:
            with pytest.raises(NounTruncatedError, match="'dog'.*cut off.*keeps 9"):
                locate_nouns(tokenizer, prompt, [span], max_length=10)
        found = locate_nouns(tokenizer, prompt, [(0, 1), span], max_length=10, truncated='skip')
        assert found.positions == ((opening,), expected)
        assert found.truncated == ((1,) if lost else ())
    with pytest.raises(NounTruncatedError):  # cut in the middle of its pieces
        locate_nouns(tokenizer, 'a a a a a tench', [(10, 15)], max_length=10)


@pytest.mark.parametrize(
    ('prompt', 'noun', 'error', 'match'),
    [
        ('a dog', (2, 6), ValueError, '2:6 is not inside'),
        ('a dog', (-1, 2), ValueError, '-1:2 is not inside'),
        ('a dog', (4, 2), ValueError, '4:2 is not inside'),
        ('a   dog', (1, 3), NounAlignmentError, 'has no token for the noun'),
        ('a dog', 'dog', TypeError, 'a pair'),
        ('a dog', (2.0, 5), TypeError, 'as integers'),
    ],
)
@pytest.mark.parametrize('fast', [False, True])
def test_bad_nouns(fast, prompt, noun, error, match):
    with pytest.raises(error, match=match):
        locate_nouns(clip(fast), prompt, [noun])


def test_noun_objects_and_their_text():
    from freeatm_mm.prompts import Noun

    assert locate_nouns(clip(False), 'a dog', [Noun('dog', 2, 5)]).positions == ((2,),)
    with pytest.raises(ValueError, match="reads 'dog', not 'cat'"):
        locate_nouns(clip(False), 'a dog', [Noun('cat', 2, 5)])


def test_left_padding_and_unknown_options():
    tokenizer = tiny_clip_tokenizer()
    with pytest.raises(ValueError, match='truncated'):
        locate_nouns(tokenizer, 'a dog', [(2, 5)], truncated='no')
    tokenizer.padding_side = 'left'
    with pytest.raises(ValueError, match='pads on the left'):
        locate_nouns(tokenizer, 'a dog', [(2, 5)])


def test_merge_rules():
    maps = torch.tensor([[[1.0, 0.0]], [[3.0, 5.0]], [[2.0, 4.0]]])
    expected = {
        'mean': [[2.0, 3.0]],
        'sum': [[6.0, 9.0]],
        'max': [[3.0, 5.0]],
        'last': [[2.0, 4.0]],
    }
    assert set(expected) == set(MERGE_RULES)
    for rule, result in expected.items():
        assert merge_tokens(maps, rule).tolist() == result
    with pytest.raises(ValueError, match='unknown rule'):
        merge_tokens(maps, 'median')
