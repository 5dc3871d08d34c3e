"""A new family of pipelines is a new file, and nothing else of the package knows of it."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from helpers.tiny_generators import tiny_kandinsky, tiny_qwen_image, tiny_unclip
from helpers.tiny_pipelines import tiny_stable_diffusion
from helpers.two_prompts import NOUNS, PROMPTS

from freeatm_mm.attention import FAMILIES, AttentionRecorder, families
from freeatm_mm.attention.families import CallNames, call_names
from freeatm_mm.generation.calls import sampling_options, scheduler_of

#: What networks call their text, but for that of HunyuanImage's ByT5, which are no nouns' keys.
TEXTS = re.compile(
    r'(encoder_hidden_states(_t5|_llama3)?|text_bth|cap_feats|clip_text|c|text_encoder_layers)$'
)
TOY = """
from freeatm_mm.attention.families.base import CallNames, Family, is_cross_attention

TOY = Family(
    name='toy',
    pipelines=('ToyPipeline',),
    is_text_attention=is_cross_attention,
    where='77 CLIP tokens',
    call_names=CallNames(guidance=('strength_of_text',), scheduler='my_scheduler'),
)
"""


class ToyPipeline:
    """Stable Diffusion under another name, called in another way."""

    def __init__(self, pipe):
        self.pipe, self.my_scheduler = pipe, pipe.scheduler
        self.unet, self.tokenizer, self.text_encoder = pipe.unet, pipe.tokenizer, pipe.text_encoder

    def __call__(self, prompt, num_inference_steps=2, strength_of_text=1.0, generator=None):
        return self.pipe(
            prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=strength_of_text,
            generator=generator,
        )


def test_a_new_family_is_a_new_file(tmp_path, monkeypatch):
    pipe, known = tiny_stable_diffusion(), families.FAMILIES
    toy = ToyPipeline(pipe)
    with pytest.raises(ValueError, match='ToyPipeline.*add a file with its row'):
        AttentionRecorder(toy)
    (tmp_path / 'toy.py').write_text(TOY)
    monkeypatch.setattr(families, '__path__', [*families.__path__, str(tmp_path)])
    monkeypatch.setattr(families, 'FAMILIES', families._families())
    monkeypatch.delitem(sys.modules, 'freeatm_mm.attention.families.toy')
    assert {row.name for row in families.FAMILIES} - {row.name for row in known} == {'toy'}
    assert scheduler_of(toy) is pipe.scheduler
    options = sampling_options(toy, steps=3, guidance=2.0)
    assert options == {'num_inference_steps': 3, 'strength_of_text': 2.0}
    got, expected = (
        AttentionRecorder(either).generate(
            PROMPTS, NOUNS, generator=torch.Generator().manual_seed(1), **call
        )
        for either, call in ((toy, options), (pipe, dict(num_inference_steps=3, guidance_scale=2)))
    )
    assert all(map(torch.equal, got.masks, expected.masks))


def test_every_file_has_its_rows():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) > 15
    assert 'KandinskyV22Pipeline' in families.TEXTLESS


def test_what_differs_in_the_call_stands_in_the_row():
    assert call_names(tiny_qwen_image()).negative_prompt == ' '
    assert call_names(tiny_unclip()).scheduler == 'decoder_scheduler'
    assert call_names(tiny_stable_diffusion()) == call_names(object()) == CallNames()


def arguments_of(family, name):
    """What the network that is recorded is called with, by the pipeline's constructor."""
    declared = typing.get_type_hints(getattr(diffusers, name).__init__)[family.denoiser]
    return {
        argument
        for network in typing.get_args(declared) or (declared,)
        if issubclass(network, torch.nn.Module)
        for argument in inspect.signature(network.forward).parameters
    }


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.name)
def test_a_row_names_the_embeddings_that_its_network_gets(family):
    for name in family.pipelines:
        if hasattr(diffusers, name):
            texts = {argument for argument in arguments_of(family, name) if TEXTS.match(argument)}
            assert texts and texts <= {*family.texts}, name


def test_another_scheduler_reaches_an_inner_pipeline():
    own = DDPMScheduler()
    combined = SimpleNamespace(scheduler=own, decoder_pipe=SimpleNamespace(scheduler=own))
    assert scheduler_of(combined) is scheduler_of(combined, DDPMScheduler) is own
    other = scheduler_of(combined, DDIMScheduler)
    assert type(other) is DDIMScheduler
    assert combined.scheduler is combined.decoder_pipe.scheduler is other


@pytest.mark.parametrize('make', [tiny_kandinsky, tiny_unclip])
def test_families_are_found_by_the_recorder(make):
    assert AttentionRecorder(make(), PROMPTS, NOUNS).names[0] == ['dog', 'sand']
