"""Generation with a tiny Stable Diffusion pipeline of random weights."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import threading
import time
from importlib import metadata
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from helpers.store_samples import folder_bytes
from helpers.tiny_pipelines import tiny_if, tiny_stable_diffusion
from PIL import Image

from freeatm_mm.attention import (
    AttentionRecorder,
    NounAlignmentError,
    NounTruncatedError,
    dense_crf,
    dequantize,
    mask_trust,
    minmax,
    resize,
)
from freeatm_mm.errors import InputError
from freeatm_mm.generation import ShardSource, generate, sample_seed
from freeatm_mm.generation.generate import SharedProgress
from freeatm_mm.prompts import Noun, PromptRecord
from freeatm_mm.store import Store, StoreError, StoreWriter, repair_store, verify_store
from freeatm_mm.store.locking import locked_write


def record(number, prompt, *nouns):
    spans = tuple(
        Noun(noun, prompt.index(noun), prompt.index(noun) + len(noun), noun) for noun in nouns
    )
    return PromptRecord(f'{number:03d}', prompt, spans, 'test')


PROMPTS = [
    record(0, 'a red dress on the sand', 'dress', 'sand'),
    record(1, 'a photo of a dog', 'dog'),
    record(2, 'the sky'),
    record(3, 'a cat with a bird on the table', 'cat', 'bird', 'table'),
    record(4, 'a blue shirt', 'shirt'),
]
SETTINGS = dict(steps=2, batch_size=2, samples_per_shard=2, image_format='png', progress=False)


@pytest.fixture(scope='module')
def pipe():
    return tiny_stable_diffusion()


@pytest.fixture(scope='module')
def generated(pipe, tmp_path_factory):
    """The undisturbed run that others are compared with."""
    path = tmp_path_factory.mktemp('generated')
    summary = generate(pipe, PROMPTS, path, name='tiny', revision='r1', **SETTINGS)
    return SimpleNamespace(path=path, summary=summary, store=Store(path))


def run(pipe, path, **changes):
    return generate(pipe, PROMPTS, path, **SETTINGS | dict(name='tiny', revision='r1') | changes)


def test_samples_are_what_the_pipeline_and_the_recorder_give(pipe, generated):
    """Generated again by hand, in the same batches."""
    for first in (0, 2, 4):
        batch = PROMPTS[first : first + 2]
        prompts = [item.prompt for item in batch]
        generators = [torch.Generator().manual_seed(sample_seed(0, item.id, 0)) for item in batch]
        with AttentionRecorder(pipe, prompts, [item.nouns for item in batch]) as recorder:
            images = pipe(prompts, num_inference_steps=2, generator=generators).images
        for place, (item, maps) in enumerate(zip(batch, recorder.masks())):
            sample = generated.store[first + place]
            assert (sample.key, sample.caption, sample.nouns) == (item.id, item.prompt, item.nouns)
            np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(images[place]))
            assert sample.masks.shape == maps.shape
            assert sample.meta['mask_trust'] == [each.to_json() for each in mask_trust(maps)]
            step = (sample.scales[:, 1] - sample.scales[:, 0])[:, None, None] / 255
            restored = dequantize(sample.masks, sample.scales)
            assert (np.abs(restored - maps.numpy()) <= 0.501 * step + 1e-9).all()


def test_the_store_is_sound_and_says_where_samples_come_from(generated):
    assert list(verify_store(generated.path)) == []
    assert len(generated.store) == 5
    meta = generated.store[3].meta
    assert meta['seed'] == sample_seed(0, '003', 0)
    assert meta['versions']['torch'] == metadata.version('torch')
    expected = {
        'prompt_id': '003',
        'source': 'test',
        'image_number': 0,
        'pipeline': 'tiny',
        'revision': 'r1',
        'pipeline_class': 'StableDiffusionPipeline',
        'scheduler': 'DDIMScheduler',
        'steps': 2,
        'guidance': 7.5,
        'dtype': 'float32',
    }
    assert {field: meta[field] for field in expected} == expected


def test_the_summary_counts_what_is_in_the_store(generated):
    summary = generated.summary
    assert (summary.samples, summary.skipped, summary.nouns, summary.missing_shards) == (5, 0, 7, 0)
    raws = [generated.store.read(index) for index in range(5)]
    assert summary.image_bytes == sum(len(raw.image_bytes) for raw in raws)
    assert summary.mask_bytes == sum(len(raw.masks_bytes) for raw in raws)
    assert '5 images generated' in str(summary) and '7 masks' in str(summary)


def test_images_are_the_same_without_recorder(pipe, generated):
    generators = [torch.Generator().manual_seed(sample_seed(0, item.id, 0)) for item in PROMPTS[:2]]
    plain = pipe(
        [item.prompt for item in PROMPTS[:2]], num_inference_steps=2, generator=generators
    ).images
    for index, image in enumerate(plain):
        np.testing.assert_array_equal(np.asarray(generated.store[index].image), np.asarray(image))


def test_a_run_that_fails_goes_on_to_equal_bytes(pipe, generated, tmp_path):
    calls = []
    real = pipe.unet.forward

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError('the machine went away')
        return real(*args, **kwargs)

    pipe.unet.forward = failing
    try:
        with pytest.raises(RuntimeError, match='went away'):
            run(pipe, tmp_path)
    finally:
        del pipe.unet.forward
    assert (tmp_path / 'shard-000000.json').exists()
    assert not list(tmp_path.glob('shard-000001*'))
    summary = run(pipe, tmp_path)
    assert (summary.skipped, summary.samples) == (2, 3)
    assert folder_bytes(tmp_path) == folder_bytes(generated.path)


def test_workers_together_make_the_same_store(pipe, generated, tmp_path):
    summaries = [run(pipe, tmp_path, rank=rank, world=2, take_over=False) for rank in (1, 0)]
    assert [summary.samples for summary in summaries] == [2, 3]
    assert [summary.missing_shards for summary in summaries] == [2, 0]
    assert folder_bytes(tmp_path) == folder_bytes(generated.path)


def test_a_worker_takes_over_what_nobody_generates_and_leaves_what_somebody_does(
    pipe, generated, tmp_path
):
    StoreWriter(tmp_path, 2, generated.store.config)
    with locked_write(tmp_path / 'shard-000002.tar', wait=False):  # by another process
        (tmp_path / 'shard-000002.tar.tmp').write_bytes(b'half')
        summary = run(pipe, tmp_path, rank=1, world=2)
        assert (summary.samples, summary.missing_shards) == (4, 1)
        assert '1 shard still to be written' in str(summary)
        with pytest.raises(StoreError, match='another process is writing shard-000002'):
            run(pipe, tmp_path)
    (tmp_path / 'shard-000002.tar').unlink()  # that process dies
    summary = run(pipe, tmp_path, rank=1, world=2)
    assert (summary.samples, summary.missing_shards) == (1, 0)
    assert folder_bytes(tmp_path) == folder_bytes(generated.path)


def test_a_worker_that_waits_generates_what_a_dying_one_leaves(pipe, generated, tmp_path):
    StoreWriter(tmp_path, 2, generated.store.config)
    held = threading.Event()

    def dying():
        try:
            with locked_write(tmp_path / 'shard-000000.tar', wait=False):
                held.set()
                while not (tmp_path / 'shard-000002.json').exists():
                    time.sleep(0.01)
                raise RuntimeError('dead')
        except RuntimeError:
            pass

    thread = threading.Thread(target=dying)
    thread.start()
    held.wait(10)
    summary = run(pipe, tmp_path, rank=1, world=2, wait=True)
    thread.join()
    assert (summary.samples, summary.missing_shards) == (5, 0)
    assert folder_bytes(tmp_path) == folder_bytes(generated.path)


def test_the_progress_is_that_of_all_workers(pipe, tmp_path, capsys):
    seen = []
    real = SharedProgress.set

    def watched(self, shard, samples):
        real(self, shard, samples)
        seen.append(self.total())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedProgress, 'set', watched)
        run(pipe, tmp_path, rank=1, world=2, take_over=False)
        assert seen == [0, 2]
        assert (tmp_path / 'progress.u32').exists()
        run(pipe, tmp_path, rank=0, world=2, progress=True)
    assert max(seen) == 5 and '5/5' in capsys.readouterr().err
    assert not (tmp_path / 'progress.u32').exists()


def test_a_pipe_in_the_place_of_the_progress_is_not_waited_for(tmp_path):
    progress = SharedProgress(tmp_path, 2)
    assert progress.total() is None
    progress.path.write_bytes(np.array([3, 4, 5], '<u4').tobytes() + b'x')
    assert progress.total() == 7
    progress.path.unlink()
    os.mkfifo(progress.path)
    with pytest.raises(InputError, match='is no plain file but a pipe'):
        progress.total()


def test_damaged_samples_are_generated_again_to_the_same_bytes(pipe, generated, tmp_path):
    run(pipe, tmp_path)
    whole = folder_bytes(tmp_path)
    content = bytearray(whole['shard-000001.tar'])
    content[int(generated.store._shard(1).row(1)[5]) + 50] ^= 1  # in the image of sample 3
    (tmp_path / 'shard-000001.tar').write_bytes(content)
    (tmp_path / 'shard-000002.tar').unlink()
    source = ShardSource(
        pipe,
        PROMPTS,
        name='tiny',
        revision='r1',
        **{name: value for name, value in SETTINGS.items() if name != 'progress'},
    )
    assert [(problem.kind, problem.key) for problem in verify_store(tmp_path, source=source)] == [
        ('changed', None),
        ('changed', '003'),
        ('missing', None),
    ]
    report = repair_store(tmp_path, source)
    assert (report.restored, report.generated) == (['shard-000001', 'shard-000002'], 2)
    assert folder_bytes(tmp_path) == whole


def test_a_finished_store_is_left_as_it_is(pipe, generated):
    before = folder_bytes(generated.path)
    summary = run(pipe, generated.path)
    assert (summary.samples, summary.skipped) == (0, 5)
    assert folder_bytes(generated.path) == before


def test_another_batch_size_generates_the_same_samples_up_to_rounding(pipe, generated, tmp_path):
    run(pipe, tmp_path, batch_size=5, samples_per_shard=5)
    for first, second in zip(generated.store, Store(tmp_path)):
        assert (first.key, first.meta) == (second.key, second.meta)
        pixels = np.asarray(first.image, int) - np.asarray(second.image, int)
        assert np.abs(pixels).max() <= 1 and (pixels != 0).mean() < 0.01
        np.testing.assert_allclose(first.scales, second.scales, rtol=1e-4)
        assert np.abs(first.masks.astype(int) - second.masks).max(initial=0) <= 1


def test_noise_is_exactly_the_same_whatever_the_batch(pipe, tmp_path):
    """The first thing that the denoiser sees of each sample."""

    def first_latents(path, **changes):
        seen = []
        handle = pipe.unet.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0][: args[0].shape[0] // 2].clone()),
            with_kwargs=True,
        )
        try:
            run(pipe, path, steps=1, **changes)
        finally:
            handle.remove()
        return torch.cat(seen)

    two = first_latents(tmp_path / 'two')
    five = first_latents(tmp_path / 'five', batch_size=5, samples_per_shard=5)
    assert two.shape == (5, 4, 16, 16)
    assert torch.equal(two, five)


def test_several_images_a_prompt_differ_and_are_named(pipe, tmp_path):
    summary = generate(
        pipe, PROMPTS[:2], tmp_path, images_per_prompt=2, **SETTINGS | {'samples_per_shard': 3}
    )
    store = Store(tmp_path)
    assert summary.samples == 4
    assert [sample.key for sample in store] == ['000-0', '000-1', '001-0', '001-1']
    assert store[0].image_bytes != store[1].image_bytes
    assert store[1].meta['seed'] == sample_seed(0, '000', 1)
    assert len(store[1].nouns) == len(store[1].masks) == 2


def test_size_guidance_and_jpeg(pipe, tmp_path):
    generate(
        pipe,
        PROMPTS[:2],
        tmp_path,
        guidance=1.0,
        height=32,
        width=64,
        **SETTINGS | {'image_format': 'jpg', 'batch_size': 1},
    )
    sample = Store(tmp_path)[0]
    assert sample.image.size == (64, 32)
    assert sample.masks.shape == (2, 8, 16)
    assert Image.open(io.BytesIO(sample.image_bytes)).format == 'JPEG'


def test_prompts_without_nouns_give_plain_images(pipe, tmp_path):
    plain = [PromptRecord(str(number), 'the sky') for number in range(2)]
    summary = generate(pipe, plain, tmp_path, **SETTINGS)
    assert (summary.samples, summary.nouns, summary.mask_bytes) == (2, 0, 0)
    assert list(verify_store(tmp_path)) == []
    assert Store(tmp_path)[1].masks.shape[0] == 0


def test_deepfloyd_if(tmp_path):
    generate(tiny_if(), PROMPTS[:2], tmp_path, height=32, width=32, **SETTINGS)
    sample = Store(tmp_path)[0]
    assert sample.image.size == (32, 32) and sample.masks.shape == (2, 16, 16)


def test_nouns_that_the_tokenizer_cuts_off_are_left_out_and_listed(pipe, tmp_path):
    long = record(9, 'a dog ' + 'on the sand ' * 30 + 'with a bird', 'bird', 'dog')
    summary = generate(pipe, [long, PROMPTS[1]], tmp_path / 'a', **SETTINGS)
    assert (summary.lost_nouns, summary.nouns) == (1, 2)
    assert '1 noun left out' in str(summary)
    sample = Store(tmp_path / 'a')[0]
    assert [noun.text for noun in sample.nouns] == ['dog']
    assert len(sample.masks) == 1 and sample.masks.max() == 255
    (lost,) = sample.meta['lost_nouns']
    assert (lost['text'], lost['reason']) == ('bird', 'cut off by the tokenizer')
    assert 'lost_nouns' not in Store(tmp_path / 'a')[1].meta
    with pytest.raises(NounTruncatedError, match="prompts 009, 001 failed.*'bird'"):
        generate(pipe, [long, PROMPTS[1]], tmp_path / 'b', lost_nouns='raise', **SETTINGS)


def test_long_prompts_are_counted_rather_than_printed(tmp_path, capfd):
    from diffusers.utils import logging

    logging.enable_default_handler()  # writes to what stderr was when it was made
    handler = logging._default_handler
    handler.setStream(sys.stderr)
    long = record(9, 'a dog ' + 'on the sand ' * 30)
    pipe = tiny_stable_diffusion()
    pipe([long.prompt], num_inference_steps=1)
    assert 'was truncated because CLIP' in capfd.readouterr().err
    summary = generate(pipe, [long, *PROMPTS[:2]], tmp_path, **SETTINGS)
    assert 'truncated' not in capfd.readouterr().err
    assert summary.cut_prompts == 1
    assert '1 prompt with more tokens than the text encoders read' in str(summary)
    assert not handler.filters


def test_nouns_that_are_not_among_the_tokens_are_left_out_and_listed(pipe, tmp_path, monkeypatch):
    class Recorder(AttentionRecorder):
        def __init__(self, pipeline, prompts, nouns, **options):
            if any(noun.text == 'cat' for row in nouns for noun in row):
                raise NounAlignmentError('no token for cat')
            super().__init__(pipeline, prompts, nouns, **options)

    monkeypatch.setattr('freeatm_mm.generation.masks.AttentionRecorder', Recorder)
    summary = generate(pipe, PROMPTS[2:4], tmp_path / 'a', **SETTINGS)
    sample = Store(tmp_path / 'a')[1]
    assert summary.lost_nouns == 1
    assert [noun.text for noun in sample.nouns] == ['bird', 'table'] and len(sample.masks) == 2
    assert [lost['text'] for lost in sample.meta['lost_nouns']] == ['cat']
    with pytest.raises(NounAlignmentError, match='no token for cat'):
        generate(pipe, PROMPTS[2:4], tmp_path / 'b', lost_nouns='raise', **SETTINGS)


def test_flat_masks_and_hidden_images_are_counted(pipe, tmp_path, monkeypatch):
    def blacked_out(image, *rest):
        return image, [True] * len(image)

    monkeypatch.setattr(pipe, 'run_safety_checker', blacked_out)
    monkeypatch.setattr(
        AttentionRecorder,
        'masks',
        lambda self, **_: [torch.full((len(row), 4, 4), 0.25) for row in self._targets.columns],
    )
    monkeypatch.setattr(
        pipe.image_processor,
        'postprocess',
        lambda image, **options: [Image.new('RGB', (8, 8))] * len(image),
    )
    summary = generate(pipe, PROMPTS[:2], tmp_path, keep_hidden=True, **SETTINGS)
    assert (summary.flat_masks, summary.hidden_images) == (3, 2)
    assert Store(tmp_path)[0].meta['hidden_by_safety_checker'] is True
    assert '3 flat masks' in str(summary) and '2 images blacked out' in str(summary)


def test_what_is_never_a_number_stops_and_names_the_prompts(pipe, tmp_path):
    handle = pipe.vae.decoder.register_forward_hook(lambda module, args, output: output * np.nan)
    try:
        with pytest.raises(FloatingPointError, match='the prompts 000, 001 failed'):
            run(pipe, tmp_path)
    finally:
        handle.remove()
    assert not list(tmp_path.glob('shard-*'))


@pytest.mark.parametrize(
    'masks',
    [
        {'resolutions': [8], 'steps': [0, 1], 'merge': 'max'},
        {'head_weights': 'contribution', 'rescale': 'words'},
        {'blocks': ['up'], 'heads': [0], 'propagate': 2},
        {'blocks': ['down_blocks.0'], 'crf': 20},
        {'merge': 'sum', 'steps': None},
    ],
)
def test_other_masks_than_the_paper_s(pipe, generated, tmp_path, masks):
    run(pipe, tmp_path, masks=masks)
    store = Store(tmp_path)
    assert store.config['masks'] == masks
    options = {name: value for name, value in masks.items() if name not in ('propagate', 'crf')}
    if masks.get('steps') is not None:
        options['steps'] = range(*masks['steps'])
    if 'propagate' in masks:
        options['self_attention'] = 32
    batch = PROMPTS[2:4]  # the second shard, generated in one batch
    with AttentionRecorder(
        pipe, [item.prompt for item in batch], [item.nouns for item in batch], **options
    ) as recorder:
        pipe(
            [item.prompt for item in batch],
            num_inference_steps=2,
            output_type='pil',
            generator=[torch.Generator().manual_seed(sample_seed(0, item.id, 0)) for item in batch],
        )
    expected = recorder.masks(propagate=masks.get('propagate', 0))[1]
    if 'crf' in masks:
        soft, _ = minmax(resize(expected, (20, 20)))
        expected = torch.from_numpy(dense_crf(soft, np.asarray(store[3].image)))
    np.testing.assert_allclose(
        dequantize(store[3].masks, store[3].scales),
        expected,
        atol=float(expected.max()) / 255,
        rtol=0,
    )
    assert store[2].nouns == () and store[3].masks.shape == expected.shape
    for index, sample in enumerate(store):
        assert sample.image_bytes == generated.store[index].image_bytes
    with pytest.raises(StoreError, match='masks is .* there and None here'):
        run(pipe, tmp_path)


def test_other_settings_are_refused_and_named(pipe, generated):
    before = folder_bytes(generated.path)
    with pytest.raises(StoreError, match='steps is 2 there and 3 here'):
        run(pipe, generated.path, steps=3)
    with pytest.raises(StoreError, match="revision is 'r1' there and 'r2' here"):
        run(pipe, generated.path, revision='r2')
    changed = [dataclasses.replace(PROMPTS[0], source='other'), *PROMPTS[1:]]
    with pytest.raises(StoreError, match='prompts_sha256'):
        generate(pipe, changed, generated.path, name='tiny', revision='r1', **SETTINGS)
    assert folder_bytes(generated.path) == before


@pytest.mark.parametrize(
    'change, message',
    [
        ({'steps': 0}, 'steps'),
        ({'batch_size': 0}, 'batch_size'),
        ({'rank': 1}, 'rank'),
        ({'rank': -1}, 'rank'),
        ({'world': 0}, 'world'),
        ({'height': 0}, 'height'),
        ({'quality': 0}, 'quality'),
        ({'image_format': 'gif'}, 'image_format'),
        ({'lost_nouns': 'hide'}, 'lost_nouns'),
        ({'images_per_prompt': 0}, 'images_per_prompt'),
        ({'height': 32}, 'height and width together'),
        ({'masks': {'block': 'up'}}, 'masks can be told blocks, .*, crf, stage, not block'),
        ({'masks': {'blocks': ['left']}}, "blocks must be of .*got .'left'"),
        ({'masks': {'steps': [2, 9]}}, 'are none of the 2 steps'),
        ({'masks': {'steps': [2]}}, 'start, stop and maybe stride'),
        ({'masks': {'crf': 200}}, 'crf must be .* to 96'),
        ({'masks': {'propagate': -1}}, 'propagate must be'),
        ({'height': 30, 'width': 64}, 'prompts 000, 001 failed.*divisible by 8'),
    ],
)
def test_arguments_out_of_range_are_refused(pipe, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(pipe, tmp_path / 'out', **change)
    assert not list(tmp_path.glob('out/shard-*'))


@pytest.mark.parametrize(
    'scheduler, calls',
    [
        ('EulerDiscreteScheduler', 10),
        ('PNDMScheduler', 11),
        ('HeunDiscreteScheduler', 19),
        ('KDPM2DiscreteScheduler', 19),
    ],
)
def test_steps_of_masks_are_steps_whatever_the_sampler(scheduler, calls):
    """The last four of ten, though the denoiser is called more often."""
    pipe = tiny_stable_diffusion()
    more = {'skip_prk_steps': True} if scheduler == 'PNDMScheduler' else {}
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **more)
    source = ShardSource(pipe, PROMPTS[:1], steps=10, masks={'steps': [6, 10]})
    recorder, _ = source._masks.recorder(PROMPTS[:1])
    seen, recorded = [], []

    def watch(module, args, kwargs, output):
        seen.append(float(args[1] if len(args) > 1 else kwargs['timestep']))
        if recorder.num_steps > len(recorded):
            recorded.append(seen[-1])

    with recorder:
        pipe.unet.register_forward_hook(watch, with_kwargs=True)
        pipe(PROMPTS[0].prompt, num_inference_steps=10, output_type='latent')
    assert len(seen) == calls
    assert recorded == seen[-len(recorded) :]
    if scheduler == 'KDPM2DiscreteScheduler':  # whose second calls are at levels between
        assert len(recorded) == 7
    else:
        assert set(recorded) == set(sorted(set(seen))[:4])


def test_the_progress_bar_of_the_pipeline_comes_back(pipe, tmp_path):
    before = dict(pipe._progress_bar_config)
    pipe.set_progress_bar_config(disable=False, desc='mine')
    try:
        run(pipe, tmp_path, steps=1)
        assert pipe._progress_bar_config == {'disable': False, 'desc': 'mine'}
    finally:
        pipe.set_progress_bar_config(**before)


def test_a_family_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ValueError, match='SimpleNamespace is not a pipeline'):
        run(SimpleNamespace(), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
