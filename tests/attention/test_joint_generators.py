"""AuraFlow and CogView: text and image in one sequence, as in test_generators.py."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from helpers import tiny_transformers as tiny
from helpers.numpy_attention import attention_of, sequence, shared_sequence
from helpers.two_prompts import PROMPTS, SQUARE, block_attention, check


def attn1(name):
    return re.search(r'blocks\.\d+\.attn1$', name) is not None


def aura_flow_attention(module, *args, **kwargs):
    """Attention with the registers, which stand first, behind everything."""
    probabilities = sequence(module, *args, text=8 + 256, **kwargs)
    return torch.as_tensor(probabilities).roll(-8, -1).numpy()


@pytest.mark.parametrize(
    ('guidance', 'images', 'probability'), [(3.5, 1, 'joint'), (1.0, 2, 'joint'), (3.5, 2, 'text')]
)
def test_aura_flow(guidance, images, probability):
    pipe = tiny.tiny_aura_flow()
    recorder = check(
        pipe,
        lambda: attention_of(pipe.transformer, block_attention, aura_flow_attention),
        lambda word: ((word,),),
        (8, 12),
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        probability=probability,
        text_keys=256 if probability == 'text' else None,
        options=dict(SQUARE, width=96, guidance_scale=guidance),
    )
    assert {part.group for part in recorder._sums} == {'double', 'single'}


@pytest.mark.parametrize(
    ('guidance', 'images', 'probability'), [(5.0, 1, 'joint'), (1.0, 2, 'joint'), (5.0, 2, 'text')]
)
def test_cogview3_plus(guidance, images, probability):
    pipe = tiny.tiny_cogview3()
    check(
        pipe,
        lambda: attention_of(pipe.transformer, attn1, functools.partial(shared_sequence, text=224)),
        lambda word: ((word,),),
        (8, 12),
        images=images,
        first_row=2 * images if guidance > 1 else 0,
        probability=probability,
        text_keys=224 if probability == 'text' else None,
        options=dict(SQUARE, width=96, guidance_scale=guidance),
    )


@pytest.mark.parametrize(
    ('pipeline', 'guidance', 'images', 'probability', 'side'),
    [
        ('CogView4Pipeline', 5.0, 1, 'joint', 'left'),
        ('CogView4Pipeline', 1.0, 2, 'joint', 'left'),
        ('CogView4Pipeline', 5.0, 2, 'text', 'right'),
        ('CogView4ControlPipeline', 5.0, 1, 'joint', 'left'),
        ('CogView4ControlPipeline', 1.0, 1, 'joint', 'right'),
    ],
)
def test_cogview4(pipeline, guidance, images, probability, side):
    pipe = tiny.tiny_cogview4(pipeline, side)
    longest = max(len(prompt.split()) for prompt in PROMPTS) + 1  # and the first token
    assert longest < 16

    def columns(word, prompt):
        length = len(prompt.split()) + 1 if side == 'left' else longest
        return ((16 - length + 1 + word,),)

    options = dict(SQUARE, width=96, guidance_scale=guidance)
    if 'Control' in pipeline:
        generator = torch.Generator().manual_seed(3)
        options.update(control_image=torch.rand(2, 3, 64, 96, generator=generator))
    check(
        pipe,
        lambda: attention_of(
            pipe.transformer, attn1, functools.partial(shared_sequence, text=16, halves=True)
        ),
        columns,
        (8, 12),
        images=images,
        probability=probability,
        text_keys=16 if probability == 'text' else None,
        options=options,
        expected_steps=2,
        calls=slice(None, None, 2 if guidance > 1 else 1),
    )
