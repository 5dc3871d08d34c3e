"""The tokenizer: LAVIS's tokens, a count of what is cut, and the miniature's own vocabulary."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip('lavis')

from lavis.processors.blip_processors import BlipCaptionProcessor  # noqa: E402
from transformers import BertTokenizer  # noqa: E402

from freeatm_mm.errors import InputError, MissingFileError  # noqa: E402
from freeatm_mm.lavis_ext.tokenizer import load_tokenizer, make_vocabulary  # noqa: E402
from freeatm_mm.miniature.export import BLOCK_NAMES  # noqa: E402
from freeatm_mm.miniature.sources import BACKGROUNDS, COLOURS, NOUNS  # noqa: E402
from freeatm_mm.ops.position import PRESETS  # noqa: E402
from freeatm_mm.prompts import TEMPLATES, Subject, fill_template  # noqa: E402

FOLDER = Path(__file__).parents[2] / 'configs/lavis/miniature/tokenizer'


def world_texts():
    """Texts that hold every word of the miniature's captions and prompts."""
    clean = BlipCaptionProcessor()
    for place in BACKGROUNDS.values():
        for count, templates in TEMPLATES.items():
            for template in templates:
                for noun in NOUNS:
                    for colour in ('', *COLOURS):
                        subjects = [Subject(noun, colour)] * count
                        yield clean(fill_template('x', template, subjects, place).prompt)
    yield from BLOCK_NAMES
    for preset in PRESETS.values():
        for block in range(9):
            if preset is not None:
                yield clean(preset.template.replace('[O]', NOUNS[0]).replace('[P]', str(block)))


def test_the_miniature_vocabulary_is_that_of_its_world():
    assert (FOLDER / 'vocab.txt').read_text().splitlines() == make_vocabulary(world_texts())


def test_every_word_of_the_world_is_one_token():
    tokenizer = load_tokenizer(FOLDER)
    for text in list(world_texts())[::7]:
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(text.replace(',', ' ,').split()) + 2


def test_every_caption_with_its_prompts_fits_the_miniature():
    from freeatm_mm.lavis_ext.launch import load_config

    limit = load_config(FOLDER.parent / 'blip_pretrain_freeatm.yaml').model_cfg.max_txt_len
    tokenizer, clean, longest = load_tokenizer(FOLDER), BlipCaptionProcessor(), 0
    for template in TEMPLATES[3]:
        caption = fill_template('x', template, [Subject('dress', 'red')] * 3, 'in the water').prompt
        for preset in ('freeatm', 'ptp'):
            sentence = PRESETS[preset].template.replace('[O]', 'dress').replace('[P]', '4')
            count = 3 if preset == 'freeatm' else 1
            text = clean(' '.join([caption, *[sentence] * count]))
            longest = max(longest, len(tokenizer(text).input_ids))
    assert longest == limit


def test_tokens_are_those_of_lavis_and_cuts_are_counted():
    ours, theirs = load_tokenizer(FOLDER), BertTokenizer.from_pretrained(FOLDER)
    theirs.add_special_tokens({'bos_token': '[DEC]'})
    theirs.add_special_tokens({'additional_special_tokens': ['[ENC]']})
    texts = ['a red dress', 'a bird with a blue bag is on the grass', 'a bird in the rain on']
    options = dict(padding='max_length', truncation=True, max_length=8, return_tensors='pt')
    for name, tensor in theirs(texts, **options).items():
        assert (ours(texts, **options)[name] == tensor).all()
    assert len(ours) == len(theirs) and ours.enc_token_id == len(ours) - 1
    # The second text has ten words and two ends, the third exactly fits.
    calls = len(theirs(texts, **options))
    cut = {'truncated': calls, 'lost_tokens': 4 * calls}
    assert ours.counts == {'texts': 3 * calls, 'empty': 0, **cut}


def test_the_packages_own_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'configs/lavis/miniature/tokenizer'
    packaged = load_tokenizer(name).get_vocab()
    assert packaged == load_tokenizer(FOLDER).get_vocab()
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nmine\n')
    assert 'mine' in load_tokenizer(name).get_vocab() != packaged
    with pytest.raises(MissingFileError, match='there is no tokenizer configs/../configs/lavis'):
        load_tokenizer('configs/../configs/lavis/none')


@pytest.mark.parametrize(
    'name, message',
    [
        ('empty', 'holds no tokenizer: vocab.txt is missing'),
        ('nowhere/at/all', 'set model.tokenizer to a folder'),
        ('bert-base-uncased', 'there is no tokenizer bert-base-uncased: it is neither'),
        ('https://example.org/bert', 'set model.tokenizer to a folder'),
    ],
)
def test_a_missing_tokenizer_is_told_and_not_fetched(tmp_path, monkeypatch, name, message):
    import socket

    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: pytest.fail('it asks the network'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        load_tokenizer(tmp_path / name if name == 'empty' else name)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda path: path.touch(), r'vocab.txt is no vocabulary of BERT: it lacks \[PAD\]'),
        (lambda path: path.write_text('dog\n'), 'is no vocabulary of BERT'),
        (
            lambda path: path.write_text('\n'.join([*make_vocabulary(['cat dog']), 'cat'])),
            "vocab.txt holds 'cat' twice, in lines 6 and 8: tokens would share a number",
        ),
        (lambda path: path.write_bytes(b'\xff\xfe'), 'vocab.txt is not UTF-8 text'),
        (lambda path: os.mkfifo(path), 'vocab.txt is no plain file but a pipe'),
        (lambda path: path.mkdir(), 'vocab.txt is no plain file but a folder'),
    ],
)
def test_a_vocabulary_that_is_none_is_one_sentence(tmp_path, make, message):
    make(tmp_path / 'vocab.txt')
    with pytest.raises(InputError, match=message) as told:
        load_tokenizer(tmp_path)
    assert '\n' not in str(told.value)


def test_lines_of_a_vocabulary_are_those_that_transformers_reads(tmp_path):
    """Neither what ends a line elsewhere nor an end of line of Windows makes a word."""
    words = [*make_vocabulary([]), 'a\u2028b', 'c\u2028b', 'dog']
    (tmp_path / 'vocab.txt').write_bytes('\r\n'.join(words).encode())
    assert load_tokenizer(tmp_path).convert_tokens_to_ids('dog') == 7


def test_vocabulary_holds_words_and_marks_once():
    assert make_vocabulary(['A dog, a', 'dog 3']) == [
        '[PAD]',
        '[UNK]',
        '[CLS]',
        '[SEP]',
        '[MASK]',
        ',',
        '3',
        'a',
        'dog',
    ]


@pytest.mark.parametrize(
    'text',
    [
        '',
        "a red-haired dog's _dress_, 3/4 in the water [sep]",
        'caf\u00e9\u00a0\u2028dress\u3000\u72d7dress\U0001f600dress \u2603 \u20acdress',
        'dress\x0bdress\x0cdress\x1fdress \x85 \x0b dress\tdress\ndress\u200bdress',
    ],
)
def test_each_token_of_a_text_is_in_the_part_that_its_word_is_in(text):
    """As many as the tokenizer makes of the whole text, unknown words included."""
    tokenizer = load_tokenizer(FOLDER)
    numbers = tokenizer.spans_of_tokens(text, [(0, len(text))])
    assert numbers == [-1] + [0] * (len(tokenizer(text).input_ids) - 2)
    assert tokenizer.counts['texts'] == 1
    tokenizer = load_tokenizer(FOLDER)
    assert tokenizer.spans_of_tokens('a dress,dresses', [(3, 4), (8, 9)])[:4] == [-1, -1, 0, -1]
