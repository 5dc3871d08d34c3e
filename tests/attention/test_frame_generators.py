"""Networks for videos that generate single images: Cosmos Predict2 and Wan."""

from __future__ import annotations

import pytest
from helpers import tiny_transformers as tiny
from helpers.numpy_attention import attention_of, cross
from helpers.two_prompts import NOUNS, PROMPTS, SQUARE, attn2, check, images_of

from freeatm_mm.attention import AttentionRecorder

WIDE = dict(SQUARE, width=96)


@pytest.mark.parametrize(('guidance', 'images'), [(7.0, 1), (1.0, 2), (7.0, 2)])
def test_cosmos2(guidance, images):
    pipe = tiny.tiny_cosmos2()
    check(
        pipe,
        lambda: attention_of(pipe.transformer, attn2, cross),
        lambda word: ((word,),),
        (4, 6),
        images=images,
        options=dict(WIDE, guidance_scale=guidance),
        expected_steps=2,
        calls=slice(None, None, 2 if guidance > 1 else 1),
    )


def wan_attention(module, hidden_states, encoder_hidden_states, *others, **options):
    return cross(module, hidden_states, encoder_hidden_states)


WAN = dict(WIDE, num_frames=1)


@pytest.mark.parametrize(('guidance', 'images'), [(5.0, 1), (1.0, 2), (5.0, 2)])
def test_wan_with_one_frame(guidance, images):
    pipe = tiny.tiny_wan()
    check(
        pipe,
        lambda: attention_of(pipe.transformer, attn2, wan_attention),
        lambda word: ((word,),),
        (4, 6),
        images=images,
        options=dict(WAN, guidance_scale=guidance),
        expected_steps=2,
        calls=slice(None, None, 2 if guidance > 1 else 1),
    )


def test_wan_calls_its_images_videos():
    recording = AttentionRecorder(tiny.tiny_wan()).generate(
        PROMPTS, NOUNS, num_videos_per_prompt=2, **WAN
    )
    assert len(recording.images) == len(recording.masks) == 4
    assert recording.images[0].shape == (3, 64, 96)


def test_wan_with_more_frames_is_refused():
    pipe = tiny.tiny_wan()
    with pytest.raises(ValueError, match='a video of 2 latent frames.*with num_frames=1'):
        with AttentionRecorder(pipe, PROMPTS, NOUNS):
            images_of(pipe, **dict(WAN, num_frames=5))
