"""The small BERT that BLIP can start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tools import load_tool
from safetensors.torch import load_file

from freeatm_mm.errors import InputError
from freeatm_mm.miniature.bert import make_texts, train_bert
from freeatm_mm.miniature.scenes import sample_prompt
from freeatm_mm.prompts import write_prompts

ROOT = Path(__file__).parents[2]
VOCABULARY = ROOT / 'configs/lavis/miniature/tokenizer'
SIZES = {
    'hidden_size': 16,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
    'intermediate_size': 32,
    'max_position_embeddings': 64,
}
RECORDS = [sample_prompt(f'bert-{number}', 0) for number in range(200)]


def test_half_of_the_texts_tell_blocks_that_say_nothing_of_a_picture():
    texts = make_texts(RECORDS)
    told = [text for text in texts if 'is in block' in text]
    assert 70 < len(told) < 130
    blocks = {text.split('block ')[1][0] for text in told}
    assert blocks == set('012345678')
    for text, record in zip(texts, RECORDS):
        assert text.startswith(record.prompt.lower())
        assert text in told or text == record.prompt.lower()
    assert told[0].endswith(tuple(blocks)) and '.' not in told[0]
    assert make_texts(RECORDS) == texts != make_texts(RECORDS, seed=1)


def test_it_learns_the_words_the_same_again(tmp_path):
    texts = make_texts(RECORDS)
    losses = train_bert(texts, VOCABULARY, SIZES, tmp_path / 'one', steps=60, lr=1e-2)
    assert np.mean(losses[-10:]) < 0.8 * losses[0]
    again = train_bert(texts, VOCABULARY, SIZES, tmp_path / 'two', steps=60, lr=1e-2)
    assert again == losses
    with pytest.raises(InputError, match="lacks a word of 'a zebra'"):
        train_bert(['a dress', 'a zebra'], VOCABULARY, SIZES, tmp_path)


def test_the_tool_makes_what_blip_takes(tmp_path, capsys):
    pytest.importorskip('lavis')
    from freeatm_mm.lavis_ext.launch import load_config
    from freeatm_mm.lavis_ext.models import FreeATMBlipPretrain

    write_prompts(tmp_path / 'prompts.jsonl', RECORDS)
    tool, out = load_tool('miniature/train_bert'), tmp_path / 'bert'
    assert tool.main([str(tmp_path / 'prompts.jsonl'), str(out), '--steps', '2']) == 0
    assert 'loss a masked token' in capsys.readouterr().out
    config = load_config(ROOT / tool.CONFIG, [f'model.text_weights={out}'])
    blip = FreeATMBlipPretrain.from_config(config.model_cfg)
    name = 'embeddings.word_embeddings.weight'
    saved = load_file(out / 'model.safetensors')
    words = saved[f'bert.{name}']
    assert torch.equal(blip.text_encoder.state_dict()[name][: len(words)], words)
    # transformers saves the bias of the words under one of its two names.
    assert 'cls.predictions.decoder.bias' not in saved
    bias = blip.to('cpu').text_decoder.cls.predictions.decoder.bias
    assert torch.equal(bias[: len(words)], saved['cls.predictions.bias'])
