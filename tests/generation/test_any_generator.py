"""Generating with pipelines of other families, with masks, and of unknown ones, without."""

from __future__ import annotations

import json

import diffusers
import pytest
from helpers import tiny_generators as tiny
from helpers import tiny_transformers
from helpers.tiny_pipelines import tiny_if, tiny_stable_diffusion

from freeatm_mm.generation import generate
from freeatm_mm.generation.calls import sampling_options
from freeatm_mm.generation.pipelines import load_pipeline
from freeatm_mm.prompts import Noun, PromptRecord
from freeatm_mm.store import Store

PROMPTS = [
    PromptRecord('a', 'a red dog on the sand', (Noun('dog', 6, 9, 'dog'),), 'test'),
    PromptRecord(
        'b', 'a cat and a bird', (Noun('cat', 2, 5, 'cat'), Noun('bird', 12, 16, 'bird')), 'test'
    ),
    PromptRecord('c', 'the sky', (Noun('sky', 4, 7, 'sky'),), 'test'),
]
OPTIONS = dict(steps=2, samples_per_shard=3, image_format='png', progress=False)


@pytest.mark.parametrize(
    ('make', 'options', 'size'),
    [
        (tiny.tiny_pixart, dict(height=64, width=64), (8, 8)),
        (tiny.tiny_stable_diffusion_3, dict(height=64, width=64), (8, 8)),
        (tiny.tiny_qwen_image, dict(height=64, width=64), (8, 8)),
        (tiny.tiny_unclip, {}, (16, 16)),
        (tiny.tiny_chroma, dict(height=64, width=96), (8, 12)),
        (tiny.tiny_kolors, dict(height=64, width=64), (8, 8)),
        (tiny_transformers.tiny_cogview4, dict(height=64, width=64), (8, 8)),
        (tiny_transformers.tiny_wan, dict(height=64, width=64), (4, 4)),
    ],
)
def test_other_families_generate_with_masks(make, options, size, tmp_path):
    generate(make(), PROMPTS, tmp_path / 'store', batch_size=2, guidance=4.0, **options, **OPTIONS)
    store = Store(tmp_path / 'store')
    assert [len(store[index].nouns) for index in range(3)] == [1, 2, 1]
    assert store[1].masks.shape == (2, *size) and store[1].masks.max() == 255


def test_an_unknown_pipeline_generates_without_masks_if_asked(tmp_path):
    pipe = tiny.tiny_vq_diffusion()
    with pytest.raises(
        ValueError,
        match='VQDiffusionPipeline gives no masks of nouns: it generates tokens of a codebook.*'
        'Generate without masks',
    ):
        generate(pipe, PROMPTS, tmp_path / 'none', batch_size=1, **OPTIONS)
    assert not (tmp_path / 'none').exists()
    summary = generate(pipe, PROMPTS, tmp_path / 'store', batch_size=1, masks=False, **OPTIONS)
    assert (summary.samples, summary.nouns) == (3, 0)
    store = Store(tmp_path / 'store')
    assert [store[index].caption for index in range(3)] == [record.prompt for record in PROMPTS]
    assert store[0].image.size == (24, 24) and len(store[0].nouns) == len(store[0].masks) == 0
    images = {store[index].image.tobytes() for index in range(3)}
    assert len(images) == 3


def test_a_pipeline_with_one_generator_for_all_images_generates_one_by_one(tmp_path):
    tiny.tiny_amused().save_pretrained(tmp_path / 'pipeline')
    pipe = load_pipeline(tmp_path / 'pipeline', device='cpu').pipe
    options = dict(OPTIONS, guidance=4.0, height=32, width=32, negative_prompt='blurry')
    with pytest.raises(ValueError, match='AmusedPipeline takes one generator a call.*batch_size=1'):
        generate(pipe, PROMPTS, tmp_path / 'store', batch_size=2, **options)
    assert not (tmp_path / 'store').exists()
    summary = generate(pipe, PROMPTS, tmp_path / 'store', batch_size=1, **options)
    assert (summary.samples, summary.nouns) == (3, 4)
    store = Store(tmp_path / 'store')
    assert store[1].image.size == (32, 32) and store[1].masks.shape == (2, 16, 16)


def test_images_without_masks_are_those_with(tmp_path):
    pipe = tiny_stable_diffusion()
    for name, masks in (('with', True), ('without', False)):
        generate(pipe, PROMPTS, tmp_path / name, batch_size=3, masks=masks, **OPTIONS)
    first, second = Store(tmp_path / 'with'), Store(tmp_path / 'without')
    for index in range(3):
        assert first[index].image_bytes == second[index].image_bytes


def test_sampling_options_use_the_names_of_the_call():
    assert sampling_options(tiny_stable_diffusion(), steps=3, guidance=2.0) == {
        'num_inference_steps': 3,
        'guidance_scale': 2.0,
    }
    assert sampling_options(tiny_if(), steps=3, guidance=2.0, height=32, width=48) == {
        'num_inference_steps': 3,
        'guidance_scale': 2.0,
        'height': 32,
        'width': 48,
        'clean_caption': False,
    }
    assert (
        sampling_options(tiny.tiny_pixart(), steps=3, guidance=2.0)['use_resolution_binning']
        is False
    )
    assert sampling_options(tiny.tiny_qwen_image(), steps=3, guidance=2.0) == {
        'num_inference_steps': 3,
        'true_cfg_scale': 2.0,
    }
    assert sampling_options(tiny.tiny_unclip(), steps=3, guidance=2.0) == {
        'decoder_num_inference_steps': 3,
        'decoder_guidance_scale': 2.0,
    }
    with pytest.raises(ValueError, match="UnCLIPPipeline can't be told the height"):
        sampling_options(tiny.tiny_unclip(), steps=3, guidance=2.0, height=64, width=64)


@tiny.loads_unclip
def test_another_scheduler_reaches_the_network_that_generates(tmp_path):
    """UnCLIP keeps one for each of its networks; a store's own record names the decoder's."""
    tiny.tiny_unclip().save_pretrained(tmp_path / 'unclip')
    again = load_pipeline(tmp_path / 'unclip', scheduler='UnCLIPScheduler', device='cpu').pipe
    assert again.decoder_scheduler.config.variance_type == 'learned_range'
    other = load_pipeline(tmp_path / 'unclip', scheduler='DDPMScheduler', device='cpu').pipe
    assert type(other.decoder_scheduler).__name__ == 'DDPMScheduler'
    assert type(other.prior_scheduler).__name__ == 'UnCLIPScheduler'


def test_nouns_that_one_of_several_encoders_cuts_off_are_counted_and_listed(tmp_path):
    """Stable Diffusion 3: CLIP keeps 77 tokens, T5 up to 256."""
    prompt = 'a dog ' + 'on the sand ' * 30 + 'with a bird'
    nouns = (Noun('dog', 2, 5, 'dog'), Noun('bird', len(prompt) - 4, len(prompt), 'bird'))
    summary = generate(
        tiny.tiny_stable_diffusion_3(),
        [PromptRecord('long', prompt, nouns), PROMPTS[0]],
        tmp_path,
        height=64,
        width=64,
        **OPTIONS,
    )
    assert (summary.partial_nouns, summary.lost_nouns, summary.nouns) == (1, 0, 3)
    assert '1 noun with a mask that leaves out one of several text encoders' in str(summary)
    (partial,) = Store(tmp_path)[0].meta['partial_nouns']
    assert partial['text'] == 'bird'
    assert partial['reason'] == 'text_encoder and text_encoder_2 cut it off'
    assert 'partial_nouns' not in Store(tmp_path)[1].meta
    assert json.loads((tmp_path / 'shard-000000.json').read_text())['notes']['partial_nouns'] == 1


@pytest.mark.parametrize(
    ('make', 'pipeline', 'expected'),
    [
        (
            tiny_transformers.tiny_longcat_image,
            'LongCatImagePipeline',
            dict(guidance_scale=4.0, enable_prompt_rewrite=False),
        ),
        (
            tiny_transformers.tiny_ernie_image,
            'ErnieImagePipeline',
            dict(guidance_scale=4.0, use_pe=False),
        ),
    ],
)
def test_newest_families_generate_with_masks(make, pipeline, expected, tmp_path):
    """With what every call of theirs must be told: prompts aren't rewritten."""
    if not hasattr(diffusers, pipeline):
        pytest.skip(f'diffusers {diffusers.__version__} has no {pipeline}')
    pipe = make()
    assert sampling_options(pipe, steps=2, guidance=4.0) == dict(expected, num_inference_steps=2)
    generate(
        pipe,
        PROMPTS,
        tmp_path / 'store',
        batch_size=2,
        guidance=4.0,
        height=64,
        width=64,
        **OPTIONS,
    )
    store = Store(tmp_path / 'store')
    assert store[1].masks.shape == (2, 8, 8) and store[1].masks.max() == 255


@pytest.mark.skipif(
    not hasattr(diffusers, 'HunyuanImagePipeline'),
    reason=f'diffusers {diffusers.__version__} has no HunyuanImagePipeline',
)
def test_guidance_is_told_to_the_component_that_holds_it():
    pipe = tiny.tiny_hunyuan_image(guidance=3.5)
    options = sampling_options(pipe, steps=2, guidance=6.0)
    assert options == dict(num_inference_steps=2, distilled_guidance_scale=6.0)
    assert pipe.guider.guidance_scale == pipe.ocr_guider.guidance_scale == 6.0
