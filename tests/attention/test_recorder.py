"""The recorder against explicit attention, and what it leaves behind: nothing."""

from __future__ import annotations

import contextlib
import gc

import numpy as np
import pytest
import torch
from helpers.attention_reference import explicit_attention, mean_map
from helpers.tiny_generators import tiny_latent_diffusion
from helpers.tiny_pipelines import tiny_if, tiny_stable_diffusion, tiny_stable_diffusion_xl
from helpers.two_prompts import NOUNS, PROMPTS, hook_count, word_place

from freeatm_mm.attention import AttentionRecorder, NounTruncatedError, noun_attention
from freeatm_mm.attention.taps import map_size


@pytest.fixture(scope='module')
def sd():
    return tiny_stable_diffusion()


@pytest.fixture(scope='module')
def sdxl():
    return tiny_stable_diffusion_xl()


@pytest.fixture(scope='module')
def deepfloyd():
    return tiny_if()


def generate(pipe, prompts=PROMPTS, size=None, steps=2, guidance=7.5, images=1, **options):
    height, width = size or (None, None)
    return pipe(
        list(prompts),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        num_images_per_prompt=images,
        output_type='pt',
        generator=torch.Generator().manual_seed(1),
        **options,
    ).images


def compare(
    pipe,
    *,
    size=None,
    map_size=(16, 16),
    guidance=7.5,
    images=1,
    first_token=1,
    probability='joint',
    text_keys=None,
    **options,
):
    """Checks masks and images of a run with the recorder against runs without it."""
    plain = generate(pipe, size=size, guidance=guidance, images=images)
    processors = dict(pipe.unet.attn_processors)
    own_hooks = hook_count(pipe.text_encoder)  # that transformers 5 leaves there
    with AttentionRecorder(
        pipe, PROMPTS, NOUNS, num_images_per_prompt=images, probability=probability, **options
    ) as recorder:
        generated = generate(pipe, size=size, guidance=guidance, images=images)
        assert pipe.unet.attn_processors == processors
    assert torch.equal(plain, generated)
    assert hook_count(pipe.unet) == 0 and hook_count(pipe.text_encoder) == own_hooks
    with explicit_attention(pipe) as seen:
        generate(pipe, size=size, guidance=guidance, images=images)
    masks = recorder.masks()
    batch = len(PROMPTS) * images
    assert len(masks) == batch
    first_row = batch if guidance > 1 else 0
    for image, mask in enumerate(masks):
        prompt, nouns = PROMPTS[image // images], NOUNS[image // images]
        assert mask.shape == (len(nouns), *map_size)
        assert mask.dtype == torch.float32 and mask.device.type == 'cpu'
        for noun, span in enumerate(nouns):
            expected = mean_map(
                seen,
                first_row + image,
                [first_token + word_place(prompt, span)],
                map_size,
                text_keys,
            )
            np.testing.assert_allclose(mask[noun].numpy(), expected, rtol=0, atol=1e-6)
    return recorder


@pytest.mark.parametrize('guidance', [1.0, 7.5])
@pytest.mark.parametrize('images', [1, 2])
def test_stable_diffusion_equals_explicit_attention(sd, guidance, images):
    compare(sd, guidance=guidance, images=images)


def test_stable_diffusion_not_square(sd):
    compare(sd, size=(64, 96), map_size=(16, 24))


def test_stable_diffusion_odd_feature_maps(sd):
    # 7x11 latents: the lower resolution is 4x6, half rounded up.
    with AttentionRecorder(sd, PROMPTS, NOUNS) as recorder:
        sd(PROMPTS, height=56, width=88, num_inference_steps=1, output_type='latent')
    assert {part.size for part in recorder._sums} == {(14, 22), (7, 11)}
    assert recorder.masks()[0].shape == (2, 14, 22)
    assert map_size((7, 11), 24) == (4, 6)


def test_stable_diffusion_xl_equals_explicit_attention(sdxl):
    compare(sdxl, map_size=(8, 8))


@pytest.mark.parametrize(
    ('guidance', 'images', 'probability', 'text_keys'),
    [(1.0, 1, 'joint', None), (7.0, 2, 'joint', None), (7.0, 1, 'text', 77)],
)
def test_deepfloyd_equals_explicit_attention(deepfloyd, guidance, images, probability, text_keys):
    compare(
        deepfloyd,
        guidance=guidance,
        images=images,
        first_token=0,
        probability=probability,
        text_keys=text_keys,
    )


@pytest.mark.parametrize('guidance', [1.0, 3.0])
def test_latent_diffusion_equals_explicit_attention(guidance):
    pipe = tiny_latent_diffusion()

    def call():
        return pipe(
            PROMPTS,
            height=64,
            width=96,
            num_inference_steps=2,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(1),
            output_type='np',
        ).images

    plain = call()
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        np.testing.assert_array_equal(plain, call())
    assert hook_count(pipe.bert) == 0
    with explicit_attention(pipe) as seen:
        call()
    expected = mean_map(
        seen, 1 if guidance == 1 else 3, [1 + word_place(PROMPTS[1], NOUNS[1][1])], (4, 6)
    )
    np.testing.assert_allclose(recorder.masks()[1][1], expected, rtol=0, atol=1e-6)


def test_deepfloyd_not_square(deepfloyd):
    compare(deepfloyd, size=(32, 48), map_size=(16, 24), first_token=0)


def test_deepfloyd_follows_nouns_through_its_cleaning(deepfloyd):
    prompt = '  A Red DOG on the sand '
    with AttentionRecorder(deepfloyd, [prompt], [[(8, 11)]]) as recorder:
        generate(deepfloyd, [prompt])
    with explicit_attention(deepfloyd) as seen:
        generate(deepfloyd, [prompt])
    np.testing.assert_allclose(
        recorder.masks()[0][0], mean_map(seen, 1, [2], (16, 16)), rtol=0, atol=1e-6
    )


def test_deepfloyd_text_probability_is_larger_than_joint(deepfloyd):
    masks = {}
    for probability in ('joint', 'text'):
        with AttentionRecorder(deepfloyd, PROMPTS, NOUNS, probability=probability) as recorder:
            generate(deepfloyd, steps=1)
        masks[probability] = recorder.masks()[0]
    assert bool((masks['text'] > masks['joint']).all())


def test_multi_token_noun_merges_by_rule(sd):
    prompt = 'a tench on the sand'
    tokens = range(2, 7)  # t, e, n, c, h</w> after the start token and "a"
    with explicit_attention(sd) as seen:
        generate(sd, [prompt])
    expected = {
        'mean': mean_map(seen, 1, tokens, (16, 16)),
        'sum': sum(mean_map(seen, 1, [token], (16, 16)) for token in tokens),
        'max': np.max([mean_map(seen, 1, [token], (16, 16)) for token in tokens], axis=0),
        'last': mean_map(seen, 1, [tokens[-1]], (16, 16)),
    }
    for rule, reference in expected.items():
        with AttentionRecorder(sd, [prompt], [[(2, 7)]], merge=rule) as recorder:
            generate(sd, [prompt])
        np.testing.assert_allclose(recorder.masks()[0][0], reference, rtol=0, atol=1e-6)


def test_bfloat16_is_computed_in_float32(sd):
    pipe = tiny_stable_diffusion().to(torch.bfloat16)
    plain = generate(pipe)
    captured = {}
    module = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2

    def catch(name):
        return lambda _module, _args, output: captured.update({name: output.float()})

    handles = [
        getattr(module, name).register_forward_hook(catch(name)) for name in ('to_q', 'to_k')
    ]
    with AttentionRecorder(pipe, PROMPTS, NOUNS, blocks='mid', steps=range(1, 2)) as recorder:
        generated = generate(pipe)
    for handle in handles:
        handle.remove()
    assert torch.equal(plain, generated)
    query, key = (
        captured[name][2:].numpy().astype(np.float64).reshape(2, -1, 4, 8)
        for name in ('to_q', 'to_k')
    )
    logits = np.einsum('bnhc,bkhc->bhnk', query, key) / np.sqrt(8)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    attention = (weights / weights.sum(-1, keepdims=True)).mean(1)
    for image, (prompt, nouns) in enumerate(zip(PROMPTS, NOUNS)):
        for noun, span in enumerate(nouns):
            expected = attention[image, :, 1 + word_place(prompt, span)].reshape(8, 8)
            np.testing.assert_allclose(recorder.masks()[image][noun], expected, rtol=0, atol=1e-6)


def test_autocast_does_not_lower_the_precision():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 9, 3, 8, generator=generator)
    key = torch.randn(2, 5, 3, 8, generator=generator)
    columns = torch.tensor([[1, 4], [0, 2]])
    expected = noun_attention(query, key, columns, 0.35)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(noun_attention(query, key, columns, 0.35), expected)


def test_pieces_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 17, 2, 4, generator=generator)
    key = torch.randn(3, 7, 2, 4, generator=generator)
    bias = torch.randn(3, 17, 7, generator=generator)
    columns = torch.tensor([[0, 6], [3, 3], [1, 2]])
    attention = (
        (torch.einsum('bnhc,bkhc->bhnk', query, key) * 0.5 + bias[:, None])
        .double()
        .softmax(-1)
        .mean(1)
    )
    expected = torch.stack([attention[image][:, columns[image]].T for image in range(3)])
    for budget in (1, 2 * 7 * 5, 2 * 7 * 17 * 2, 10**6):
        monkeypatch.setattr('freeatm_mm.attention.softmax.CPU_LOGITS', budget)
        result = noun_attention(query, key, columns, 0.5, bias_BNK=bias)
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)


def test_bare_unet_call(sd):
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))

    def call():
        embeddings, _ = sd.encode_prompt(PROMPTS, 'cpu', 1, False)
        with torch.no_grad():
            return sd.unet(noisy, 500, encoder_hidden_states=embeddings).sample

    with AttentionRecorder(sd, PROMPTS, NOUNS) as recorder:
        recorded = call()
    assert torch.equal(recorded, call())
    with explicit_attention(sd) as seen:
        call()
    for image, (prompt, nouns) in enumerate(zip(PROMPTS, NOUNS)):
        for noun, span in enumerate(nouns):
            expected = mean_map(seen, image, [1 + word_place(prompt, span)], (16, 16))
            np.testing.assert_allclose(recorder.masks()[image][noun], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('name', ['sd', 'deepfloyd'])
def test_encoder_attention_mask_is_added_before_softmax(name, request):
    pipe = request.getfixturevalue(name)
    generator = torch.Generator().manual_seed(3)
    config = pipe.unet.config
    noisy = torch.randn(
        2, config.in_channels, config.sample_size, config.sample_size, generator=generator
    )
    embeddings = torch.randn(2, 77, 32, generator=generator)
    mask = torch.ones(2, 77, dtype=torch.bool)
    mask[0, 9:] = mask[1, 15:] = False

    def call():
        with torch.no_grad():
            pipe.unet(noisy, 500, encoder_hidden_states=embeddings, encoder_attention_mask=mask)

    with explicit_attention(pipe) as seen:
        call()
    tokens = [(1 if name == 'sd' else 0) + word_place(PROMPTS[1], NOUNS[1][0])]
    for probability, text_keys in (('joint', None), ('text', 77)):
        with AttentionRecorder(
            pipe, PROMPTS, NOUNS, probability=probability, check_prompts=False
        ) as recorder:
            call()
        expected = mean_map(seen, 1, tokens, (16, 16), text_keys)
        np.testing.assert_allclose(recorder.masks()[1][0], expected, rtol=0, atol=1e-6)
        assert all(float(probabilities[1, ..., 15:77].max()) < 1e-6 for _, probabilities in seen)


def test_blocks_resolutions_and_weights_split_one_run(sd):
    with AttentionRecorder(sd, PROMPTS, NOUNS) as recorder:
        generate(sd)
    with explicit_attention(sd) as seen:
        generate(sd)
    tokens = [1 + word_place(PROMPTS[0], NOUNS[0][0])]

    def reference(keep, size=(16, 16)):
        return mean_map(seen, 2, tokens, size, keep=keep)

    def check(masks, expected):
        np.testing.assert_allclose(masks[0][0], expected, rtol=0, atol=1e-6)

    def fine(name):
        return name.startswith(('down_blocks.0', 'up_blocks.1'))

    check(recorder.masks(blocks='down'), reference(lambda name: name.startswith('down')))
    check(recorder.masks(blocks=('down', 'up')), reference(lambda name: 'mid' not in name))
    check(recorder.masks(blocks='mid'), reference(lambda name: 'mid' in name, (8, 8)))
    check(recorder.masks(resolutions=[16]), reference(fine))
    check(recorder.masks(resolutions=[(8, 8)]), reference(lambda name: not fine(name), (8, 8)))
    check(recorder.masks(weights={16: 2.0}), reference(fine))
    coarse = reference(lambda name: not fine(name))
    check(recorder.masks(weights='resolution'), (reference(fine) + coarse) / 2)
    check(
        recorder.masks(weights={16: 1.0, 8: 3.0}),
        (3 * reference(fine) + 3 * 4 * coarse) / (3 + 3 * 4),
    )
    assert recorder.masks(size=(32, 20))[1].shape == (3, 32, 20)
    for part in (dict(blocks='up', steps=range(1, 2)), dict(resolutions=[8])):
        with AttentionRecorder(sd, PROMPTS, NOUNS, **part) as restricted:
            generate(sd)
        expected_size = {(16, 16), (8, 8)} if 'blocks' in part else {(8, 8)}
        assert {part.size for part in restricted._sums} == expected_size
    check(restricted.masks(), reference(lambda name: not fine(name), (8, 8)))


def test_steps_pick_denoiser_calls(sd):
    with AttentionRecorder(sd, PROMPTS, NOUNS, steps=range(1, 4, 2)) as recorder:
        generate(sd, steps=4)
    assert recorder.num_steps == 2
    with explicit_attention(sd) as seen:
        generate(sd, steps=4)
    layers = len(seen) // 4
    kept = seen[layers : 2 * layers] + seen[3 * layers :]
    expected = mean_map(kept, 2, [1 + word_place(PROMPTS[0], NOUNS[0][0])], (16, 16))
    np.testing.assert_allclose(recorder.masks()[0][0], expected, rtol=0, atol=1e-6)


def test_prompt_without_nouns(sd):
    with AttentionRecorder(sd, PROMPTS, [[], NOUNS[1]]) as recorder:
        generate(sd, steps=1)
    masks = recorder.masks('minmax')
    assert masks[0].shape == (0, 16, 16) and masks[1].shape == (3, 16, 16)
    with AttentionRecorder(sd, PROMPTS, [[], []]) as recorder:
        generate(sd, steps=1)
    assert [mask.shape for mask in recorder.masks()] == [(0, 16, 16)] * 2


def test_only_cross_attention_records_both_modules_of_a_block():
    from diffusers import UNet2DConditionModel

    pipe = tiny_stable_diffusion()
    torch.manual_seed(0)
    settings = {name: value for name, value in pipe.unet.config.items() if name[0] != '_'}
    pipe.unet = UNet2DConditionModel(**{**settings, 'only_cross_attention': True}).eval()
    compare(pipe)
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        generate(pipe, steps=1)
    attn1 = sum(
        name.endswith('attn1') and module.is_cross_attention
        for name, module in pipe.unet.named_modules()
    )
    assert attn1 > 0
    assert sum(total.count for total in recorder._sums.values()) == 7 + attn1


def test_uniform_attention_is_flat_not_noise():
    pipe = tiny_stable_diffusion()
    for name, module in pipe.unet.named_modules():
        if name.endswith('attn2.to_q'):
            torch.nn.init.zeros_(module.weight)
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        generate(pipe, steps=3)
    torch.testing.assert_close(recorder.masks()[0], torch.full((2, 16, 16), 1 / 77))
    assert all(float(mask.abs().max()) == 0 for mask in recorder.masks('minmax'))
    assert recorder.flat == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_minmax_masks_fill_zero_to_one(sd):
    with AttentionRecorder(sd, PROMPTS, NOUNS) as recorder:
        generate(sd)
    for raw, stretched in zip(recorder.masks(), recorder.masks('minmax')):
        low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
        torch.testing.assert_close(stretched, (raw - low) / (high - low), rtol=0, atol=1e-6)
    assert recorder.flat == []


def test_truncated_noun(sd):
    prompt = ' '.join(['a'] * 80) + ' dog'
    nouns = [[(0, 1), (len(prompt) - 3, len(prompt))]]
    with pytest.raises(NounTruncatedError, match="prompt 0.*'dog'.*cut off"):
        AttentionRecorder(sd, [prompt], nouns)
    with AttentionRecorder(sd, [prompt], nouns, truncated='skip') as recorder:
        generate(sd, [prompt], steps=1)
    assert recorder.truncated == [(0, 1)]
    masks = recorder.masks('minmax')
    assert float(masks[0][0].max()) == 1 and float(masks[0][1].abs().max()) == 0
    assert recorder.flat == [(0, 1)]


def test_sums_do_not_grow_with_steps(sd):
    def buffers(steps):
        gc.collect()
        with AttentionRecorder(sd, PROMPTS, NOUNS) as recorder:
            generate(sd, steps=steps)
        return {part[:2]: tuple(value.total_BTN.shape) for part, value in recorder._sums.items()}

    assert (
        buffers(1)
        == buffers(6)
        == {
            ('down', (16, 16)): (2, 3, 256),
            ('up', (16, 16)): (2, 3, 256),
            ('down', (8, 8)): (2, 3, 64),
            ('mid', (8, 8)): (2, 3, 64),
            ('up', (8, 8)): (2, 3, 64),
        }
    )


def test_no_map_of_all_tokens_stays_alive(sd):
    with AttentionRecorder(sd, PROMPTS, NOUNS) as recorder:
        generate(sd)
        taps = [
            cell
            for cell in gc.get_objects()
            if type(cell).__name__ == 'Tap' and cell.sink is recorder._sink
        ]
        assert len(taps) == 7
        assert all(tap.query is None and tap.text_key is None for tap in taps)


def test_hooks_go_after_an_exception(sd):
    class Stop(Exception):
        pass

    def stop(pipe, index, timestep, values):
        raise Stop

    with contextlib.suppress(Stop), AttentionRecorder(sd, PROMPTS, NOUNS) as recorder:
        assert hook_count(sd.unet) > 0
        generate(sd, callback_on_step_end=stop)
    assert hook_count(sd.unet) == hook_count(sd.text_encoder) == 0
    assert recorder.num_steps == 1


def test_recording_goes_on_after_inference_mode(sd):
    plain = AttentionRecorder(sd).generate(PROMPTS, NOUNS, num_inference_steps=1, **same_noise())
    with AttentionRecorder(sd, PROMPTS, NOUNS, self_attention=32) as recorder:
        for inference in (True, False):
            with torch.inference_mode(inference):
                sd(PROMPTS, num_inference_steps=1, **same_noise())
    with torch.inference_mode():
        masks = recorder.masks('minmax')
    for mask, usual in zip(masks, plain.masks):
        torch.testing.assert_close(mask, usual, rtol=0, atol=1e-5)
        mask += 1  # a plain tensor


def same_noise():
    return dict(generator=torch.Generator().manual_seed(1))


def test_a_class_that_hands_its_arguments_on(sd):
    class Mine(type(sd)):
        def __call__(self, *args, **options):
            return super().__call__(*args, **options)

    parts = dict(sd.components, safety_checker=None)
    pipe = Mine(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    first, second = (
        AttentionRecorder(each).generate(PROMPTS, NOUNS, num_inference_steps=1, **same_noise())
        for each in (sd, pipe)
    )
    assert all(torch.equal(mask, other) for mask, other in zip(first.masks, second.masks))
    with pytest.raises(ValueError, match="Mine is called without an argument 'stpes'"):
        AttentionRecorder(pipe).generate(PROMPTS, NOUNS, stpes=1)


def test_a_recorder_starts_anew_when_entered_again(sd):
    recorder = AttentionRecorder(sd, PROMPTS, NOUNS)
    results = []
    for _ in range(2):
        with recorder:
            generate(sd)
        results.append(recorder.masks())
    assert all(torch.equal(first, second) for first, second in zip(*results))
    with recorder, pytest.raises(RuntimeError, match='in use already'):
        recorder.__enter__()
    assert hook_count(sd.unet) == 0


def test_ip_adapter_records_the_text_attention():
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    pipe = tiny_stable_diffusion()
    generator = torch.Generator().manual_seed(3)
    processors = dict(pipe.unet.attn_processors)
    pipe.unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(8, 32, 4)])
    pipe.unet.config.encoder_hid_dim_type = 'ip_image_proj'
    pipe.unet.set_attn_processor(
        {
            name: IPAdapterAttnProcessor2_0(32, 32, (4,)) if 'attn2' in name else processor
            for name, processor in processors.items()
        }
    )
    noisy = torch.randn(2, 4, 16, 16, generator=generator)
    embeddings = torch.randn(2, 77, 32, generator=generator)
    image_embeddings = [torch.randn(2, 1, 8, generator=generator)]

    def attention_of_first_layer():
        module = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
        query, key = [], []
        handles = [
            module.to_q.register_forward_hook(lambda m, a, o: query.append(o)),
            module.to_k.register_forward_hook(lambda m, a, o: key.append(o)),
        ]
        with (
            AttentionRecorder(
                pipe, PROMPTS, NOUNS, blocks='down', resolutions=[16], check_prompts=False
            ) as recorder,
            torch.no_grad(),
        ):
            pipe.unet(
                noisy,
                500,
                encoder_hidden_states=embeddings,
                added_cond_kwargs={'image_embeds': image_embeddings},
            )
        for handle in handles:
            handle.remove()
        return recorder.masks(), query[0].unflatten(-1, (4, 8)), key[0].unflatten(-1, (4, 8))

    masks, query, key = attention_of_first_layer()
    attention = (torch.einsum('bnhc,bkhc->bhnk', query, key) / 8**0.5).softmax(-1).mean(1)
    column = 1 + word_place(PROMPTS[0], NOUNS[0][0])
    torch.testing.assert_close(
        masks[0][0], attention[0, :, column].reshape(16, 16), rtol=0, atol=1e-6
    )


class TestErrors:
    """What goes wrong says so, and where."""

    def test_unknown_pipeline(self):
        class OtherPipeline:
            pass

        with pytest.raises(ValueError, match='OtherPipeline is not a pipeline .*coverage'):
            AttentionRecorder(OtherPipeline(), PROMPTS, NOUNS)

    @pytest.mark.parametrize('part', ['unet', 'text_encoder'])
    def test_a_pipeline_without_one_of_its_parts(self, sd, part):
        parts = dict(sd.components, safety_checker=None)
        pipe = type(sd)(**(parts | {part: None}), requires_safety_checker=False)
        with pytest.raises(ValueError, match=f'was loaded without its {part}'):
            AttentionRecorder(pipe).generate(PROMPTS, NOUNS)

    def test_prompts_that_are_no_texts(self, sd):
        with pytest.raises(TypeError, match='prompts must be a text or a list of texts, got 5'):
            AttentionRecorder(sd).generate(5)

    def test_a_network_that_is_not_of_pytorch(self):
        pipe = tiny_stable_diffusion()
        object.__setattr__(pipe, 'unet', object())
        with pytest.raises(ValueError, match='the unet .* is no network of PyTorch but object'):
            AttentionRecorder(pipe)

    def test_arguments(self, sd):
        for match, prompts, nouns, options in (
            ('prompt 0: a noun must be a word', 'a dog', [[]], {}),
            ('2 prompts but 1 list of nouns', PROMPTS, [[]], {}),
            ('no prompts', [], [], {}),
            ('num_images_per_prompt', PROMPTS, NOUNS, dict(num_images_per_prompt=0)),
            ('probability', PROMPTS, NOUNS, dict(probability='all')),
            ('merge', PROMPTS, NOUNS, dict(merge='first')),
            ('truncated', PROMPTS, NOUNS, dict(truncated='drop')),
            ('blocks', PROMPTS, NOUNS, dict(blocks='middle')),
            ('prompt 1: the noun span 0:99 is not inside', PROMPTS, [[], [(0, 99)]], {}),
            ('prompt 0: the noun span 3:3', PROMPTS, [[(3, 3)], []], {}),
        ):
            with pytest.raises((ValueError, TypeError), match=match):
                AttentionRecorder(sd, prompts, nouns, **options)

    def test_nothing_recorded(self, sd):
        with AttentionRecorder(sd, PROMPTS, NOUNS) as recorder:
            pass
        with pytest.raises(RuntimeError, match='nothing was recorded'):
            recorder.masks()
        with AttentionRecorder(sd, PROMPTS, NOUNS, steps=range(5, 9)) as recorder:
            generate(sd)
        with pytest.raises(RuntimeError, match='nothing was recorded.*2 steps'):
            recorder.masks()
        with AttentionRecorder(sd, PROMPTS, NOUNS, resolutions=[99]) as recorder:
            generate(sd, steps=1)
        height, width = max(recorder._sink.seen)
        with pytest.raises(RuntimeError, match=f'no layer has .* asked for, .*{height}x{width}'):
            recorder.masks()

    def test_options_of_masks(self, sd):
        with AttentionRecorder(sd, PROMPTS, NOUNS, blocks='mid') as recorder:
            generate(sd, steps=1)
        for match, options in (
            ('normalize', dict(normalize='max')),
            ('blocks', dict(blocks='left')),
            ('leave nothing of what was recorded: mid 8x8', dict(blocks='up')),
            ('leave nothing', dict(resolutions=[64])),
            ('leave nothing', dict(weights={8: 0})),
            ('weights', dict(weights='layer')),
            ('not negative', dict(weights={8: -1.0})),
        ):
            with pytest.raises(ValueError, match=match):
                recorder.masks(**options)

    def test_batch_of_another_size(self, sd):
        with pytest.raises(ValueError, match='batch of 6, but the recorder is for 2 images'):
            with AttentionRecorder(sd, PROMPTS, NOUNS):
                generate(sd, images=3, guidance=1.0)
        with pytest.raises(ValueError, match='batch of 4 different images'):
            with AttentionRecorder(sd, PROMPTS, NOUNS):
                generate(sd, images=2, guidance=1.0)
        assert hook_count(sd.unet) == 0

    def test_other_prompts_than_generated(self, sd):
        with pytest.raises(ValueError, match='encoded other prompts'):
            with AttentionRecorder(sd, PROMPTS, NOUNS):
                generate(sd, ['a dog', 'a cat'])
        with AttentionRecorder(sd, PROMPTS, NOUNS, check_prompts=False) as recorder:
            generate(sd, ['a dog', 'a cat'], steps=1)
        assert len(recorder.masks()) == 2
        with AttentionRecorder(sd, PROMPTS, NOUNS) as recorder:
            generate(sd, steps=1, negative_prompt=['a tree'] * 2)
        assert len(recorder.masks()) == 2

    @pytest.mark.parametrize('prompts', [PROMPTS[:1], PROMPTS[1:], PROMPTS[::-1]])
    def test_fewer_prompts_or_another_order(self, sd, prompts):
        # One prompt with guidance makes a batch as large as two without.
        with pytest.raises(ValueError, match='encoded other prompts.*or in another order'):
            with AttentionRecorder(sd, PROMPTS, NOUNS):
                generate(sd, prompts)
        assert hook_count(sd.unet) == 0

    def test_the_same_prompts_in_other_company(self, sd):
        for prompts, options in (
            (['a dog', '', 'a dog'], {}),
            (['', ''], {}),
            (PROMPTS, dict(negative_prompt=PROMPTS[::-1])),
        ):
            with AttentionRecorder(sd, prompts, [[] for _ in prompts]) as recorder:
                for _ in range(2):
                    generate(sd, prompts, steps=1, **options)
            assert recorder.num_steps == 2
        with pytest.raises(ValueError, match='encoded other prompts'):
            with AttentionRecorder(sd, ['', 'a dog'], [[], []]):
                generate(sd, ['', 'a cat'])

    def test_too_few_text_keys(self, sd):
        with pytest.raises(ValueError, match='hold only 3 text keys'):
            with AttentionRecorder(sd, PROMPTS, NOUNS, check_prompts=False), torch.no_grad():
                sd.unet(torch.zeros(2, 4, 16, 16), 1, encoder_hidden_states=torch.zeros(2, 3, 32))

    def test_projections_fused_while_recording(self):
        pipe = tiny_stable_diffusion()
        with pytest.raises(RuntimeError, match='without calling its own query and key'):
            with AttentionRecorder(pipe, PROMPTS, NOUNS):
                pipe.fuse_qkv_projections(vae=False)
                generate(pipe)
        assert hook_count(pipe.unet) == 0

    def test_denoiser_without_text_attention(self, sd):
        pipe = tiny_stable_diffusion()
        for module in pipe.unet.modules():
            if hasattr(module, 'is_cross_attention'):
                module.is_cross_attention = False
        with pytest.raises(ValueError, match='no attention from pixels to text'):
            AttentionRecorder(pipe, PROMPTS, NOUNS).__enter__()

    def test_size_that_is_not_a_halved_input(self):
        with pytest.raises(ValueError, match='a feature map of 100 pixels'):
            map_size((16, 16), 100)
