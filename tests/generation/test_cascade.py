"""DeepFloyd IF: stages I to III as one generator, with tiny pipelines of the real classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.store_samples import folder_bytes
from helpers.tiny_generators import tiny_if_super_resolution, tiny_upscaler
from helpers.tiny_pipelines import tiny_if, tiny_stable_diffusion
from helpers.tools import exit_code, load_tool, run_tool

from freeatm_mm.attention import AttentionRecorder, dequantize
from freeatm_mm.generation import (
    GenerationJob,
    LoadedPipeline,
    ShardSource,
    generate_store,
    load_pipeline,
    sample_seed,
)
from freeatm_mm.prompts import Noun, PromptRecord, write_prompts
from freeatm_mm.store import Store, StoreError, verify_store

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [
    PromptRecord('a', 'a red dog on the sand', (Noun('dog', 6, 9), Noun('sand', 17, 21))),
    PromptRecord('b', 'a cat', (Noun('cat', 2, 5),)),
    PromptRecord('c', 'the sky'),
]
SETTINGS = dict(steps=2, batch_size=2, samples_per_shard=3, image_format='png', stage_steps=[2, 2])


def small(pipe, side):
    pipe.unet.register_to_config(sample_size=side)
    return pipe


@pytest.fixture(scope='module')
def pipes():
    """16x16 pixels, 32x32 of them, 128x128 of them."""
    return small(tiny_if(), 16), small(tiny_if_super_resolution(), 32), tiny_upscaler()


@pytest.fixture(scope='module')
def stages(pipes):
    return [
        LoadedPipeline(pipe, f'tiny-{number}', f'r{number}') for number, pipe in enumerate(pipes, 1)
    ]


def source_of(stages, **changes):
    return ShardSource(
        stages[0].pipe,
        PROMPTS,
        **dict(stages=stages[1:], name='tiny-1', revision='r1') | SETTINGS | changes,
    )


def generators(stage, records=PROMPTS[:2]):
    return [
        torch.Generator().manual_seed(sample_seed(0, record.id, 0, stage)) for record in records
    ]


def by_hand(pipes, record_stage):
    """What the stages generate of the first batch, called one after the other, and their masks."""
    first, second, third = pipes
    prompts = [record.prompt for record in PROMPTS[:2]]
    recorder = AttentionRecorder(
        pipes[record_stage - 1],
        prompts,
        [record.nouns for record in PROMPTS[:2]],
        **{} if record_stage == 3 else {'clean_caption': False},
        check_prompts=record_stage != 2,
    )
    with recorder if record_stage == 1 else torch.no_grad():
        image = first(
            prompts,
            num_inference_steps=2,
            guidance_scale=7.5,
            output_type='pt',
            clean_caption=False,
            generator=generators(1),
        ).images
    embeddings, negative = first.encode_prompt(prompts, clean_caption=False)
    with recorder if record_stage == 2 else torch.no_grad():
        image = second(
            prompt_embeds=embeddings,
            negative_prompt_embeds=negative,
            image=image,
            num_inference_steps=2,
            output_type='pt',
            generator=generators(2),
        ).images
    with recorder if record_stage == 3 else torch.no_grad():
        images = third(
            prompts,
            image=(image / 2 + 0.5).clamp(0, 1),
            num_inference_steps=2,
            noise_level=100,
            generator=generators(3),
        ).images
    return images, recorder.masks()


@pytest.mark.parametrize(('stage', 'size'), [(1, (8, 8)), (2, (16, 16)), (3, (32, 32))])
def test_the_stages_generate_one_after_the_other_and_one_is_recorded(
    pipes, stages, tmp_path, stage, size
):
    masks = {'stage': stage} if stage > 1 else True
    generate_store(source_of(stages, masks=masks), tmp_path, progress=False)
    images, maps = by_hand(pipes, stage)
    store = Store(tmp_path)
    for index in (0, 1):
        np.testing.assert_array_equal(np.asarray(store[index].image), np.asarray(images[index]))
        assert store[index].image.size == (128, 128)
        assert store[index].masks.shape[1:] == size
        np.testing.assert_allclose(
            dequantize(store[index].masks, store[index].scales),
            maps[index],
            atol=float(maps[index].max()) / 255,
        )
    assert list(verify_store(tmp_path)) == []


def test_the_store_names_all_stages(stages, tmp_path):
    generate_store(source_of(stages), tmp_path, progress=False)
    store = Store(tmp_path)
    for settings in (store.config, store[2].meta):
        assert settings['pipeline_class'] == 'IFPipeline' and settings['steps'] == 2
        assert [
            (
                stage['pipeline'],
                stage['revision'],
                stage['pipeline_class'],
                stage['steps'],
                stage['guidance'],
                stage['noise_level'],
            )
            for stage in settings['stages']
        ] == [
            ('tiny-2', 'r2', 'IFSuperResolutionPipeline', 2, 4.0, 250),
            ('tiny-3', 'r3', 'StableDiffusionUpscalePipeline', 2, 9.0, 100),
        ]
    with pytest.raises(StoreError, match='made otherwise: another stages'):
        generate_store(source_of(stages[:2], stage_steps=[2]), tmp_path, progress=False)


def test_two_stages_and_another_shape(stages, tmp_path):
    generate_store(
        source_of(stages[:2], stage_steps=[2], height=32, width=48), tmp_path, progress=False
    )
    sample = Store(tmp_path)[0]
    assert sample.image.size == (48, 32) and sample.masks.shape == (2, 8, 12)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(height=512, width=512), 'generate images of 128x128 pixels.*not 512x512'),
        (dict(height=128, width=512), 'not 128x512'),
        (dict(height=128, width=130), 'not 128x130'),
        (dict(stage_steps=[2]), 'stage_steps must have a number for each of the 2'),
        (dict(stage_guidance=[1.0, 2.0, 3.0]), 'stage_guidance must have'),
        (dict(masks={'stage': 4}), 'stage must be .* from 1 to 3'),
        (dict(masks={'stage': 2, 'steps': [2, 9]}), 'none of the 2 steps'),
    ],
)
def test_what_the_stages_cannot_do_is_refused(stages, change, message):
    with pytest.raises(ValueError, match=message):
        source_of(stages, **change)


def test_other_pipelines_and_another_order_are_refused(stages):
    with pytest.raises(ValueError, match='in this order, got IFPipeline, StableDiffusionUpscale'):
        source_of([stages[0], stages[2]], stage_steps=None)
    with pytest.raises(ValueError, match='got StableDiffusionPipeline, IFSuper'):
        source_of([LoadedPipeline(tiny_stable_diffusion(), 'x', 'y'), stages[1]], stage_steps=None)
    with pytest.raises(ValueError, match='need further stages'):
        source_of([LoadedPipeline(tiny_stable_diffusion(), 'x', 'y')])


def test_stage_one_alone_must_be_asked_for(pipes):
    with pytest.raises(
        ValueError,
        match='first stage of a cascade and generates images of 16x16 pixels'
        ': give the further stages with --stage, or --size 16',
    ):
        ShardSource(pipes[0], PROMPTS)
    with pytest.raises(ValueError, match='of 16x16 pixels, not 512x512'):
        ShardSource(pipes[0], PROMPTS, height=512, width=512)
    ShardSource(pipes[0], PROMPTS, height=16, width=16)
    with pytest.raises(ValueError, match='from stages 1 to 1, not 3'):
        ShardSource(pipes[0], PROMPTS, height=16, width=16, masks={'stage': 3})


def test_the_last_stage_checks_and_marks_images_as_the_first_would(stages, tmp_path):
    class Checker:
        def __call__(self, images, clip_input):
            images[0] = 0
            return images, [True, *[False] * (len(images) - 1)], [False] * len(images)

    class Features:
        def __call__(self, images, return_tensors):
            from transformers import BatchFeature

            return BatchFeature({'pixel_values': torch.zeros(len(images), 3, 8, 8)})

    class Watermark:
        def apply_watermark(self, images, *_):
            return images

    first, third = stages[0].pipe, tiny_upscaler()
    before = first.safety_checker, first.feature_extractor, first.watermarker
    first.safety_checker, first.feature_extractor = Checker(), Features()
    first.watermarker = Watermark()
    third.register_modules = lambda **parts: vars(third).update(parts)
    try:
        source = source_of([*stages[:2], LoadedPipeline(third, 'tiny-3', 'r3')])
        assert isinstance(third.safety_checker, Checker)
        assert isinstance(third.watermarker, Watermark)
        summary = generate_store(source, tmp_path, progress=False)
    finally:
        first.safety_checker, first.feature_extractor, first.watermarker = before
    assert [item['key'] for item in summary.left_out] == ['a', 'c']  # the first of each batch
    assert summary.hidden_images == 2


@pytest.fixture(scope='module')
def folders(pipes, tmp_path_factory):
    root = tmp_path_factory.mktemp('stages')
    for name, pipe in zip(('if-1', 'if-2', 'if-3'), pipes):
        pipe.save_pretrained(root / name)
    # 11 GB in the real one, and never needed: stage II gets stage I's embeddings.
    shutil.rmtree(root / 'if-2' / 'text_encoder')
    write_prompts(root / 'prompts.jsonl', PROMPTS)
    return root


def test_the_tool_runs_the_cascade_and_its_store_can_be_repaired(folders, tmp_path, capsys):
    tool = load_tool('generate')
    words = [
        str(folders / 'if-1'),
        str(folders / 'prompts.jsonl'),
        str(tmp_path / 'out'),
        '--steps',
        '2',
        '--batch-size',
        '2',
        '--device',
        'cpu',
        '--image-format',
        'png',
        '--quiet',
    ]
    assert exit_code(tool, words) == 2 and 'give the further stages' in capsys.readouterr().err
    words += [
        '--stage',
        str(folders / 'if-2'),
        '--stage',
        str(folders / 'if-3'),
        '--stage-steps',
        '2,2',
        '--stage-guidance',
        '4,9',
    ]
    assert exit_code(tool, [*words, '--size', '1024']) == 2
    assert 'not 1024x1024' in capsys.readouterr().err
    assert tool.main([*words, '--size', '128', '--mask-stage', '2']) == 0
    store = Store(tmp_path / 'out')
    assert store[0].image.size == (128, 128) and store[0].masks.shape == (2, 16, 16)
    assert store.config['masks'] == {'stage': 2}
    whole = folder_bytes(tmp_path / 'out')
    (tmp_path / 'out' / 'shard-000000.tar').unlink()
    place = str(folders / 'if-1'), str(folders / 'prompts.jsonl')
    with pytest.raises(StoreError, match='further stages that were folders'):
        GenerationJob.of_store(tmp_path / 'out', *place)
    stages = [word for part in ('if-2', 'if-3') for word in ('--stage', str(folders / part))]
    words = ['--repair', '--pipeline', place[0], '--prompts', place[1], '--device', 'cpu']
    assert run_tool('store/verify', tmp_path / 'out', *words, *stages) == 0
    assert folder_bytes(tmp_path / 'out') == whole


def test_a_part_may_be_left_out_where_it_is_not_needed(folders):
    with pytest.raises(FileNotFoundError, match='lacks the folder text_encoder'):
        load_pipeline(folders / 'if-2', device='cpu')
    assert load_pipeline(folders / 'if-2', device='cpu', without=('text_encoder',)).pipe
