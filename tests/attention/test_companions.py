"""The recorder beside LoRA, tiling, slicing, other processors, fusing and compiling."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
import types
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention import BasicTransformerBlock
from helpers import tiny_generators as tiny
from helpers.attention_reference import explicit_attention, mean_map
from helpers.numpy_attention import attention_of, sequence
from helpers.tiny_pipelines import tiny_if, tiny_stable_diffusion
from helpers.two_prompts import (
    NOUNS,
    PROMPTS,
    SQUARE,
    block_attention,
    check,
    hook_count,
    images_of,
    word_place,
)

from freeatm_mm.attention import AttentionRecorder

STEPS = dict(num_inference_steps=2, output_type='pt')


def check_unet(pipe, reference=None, first_token=1, **options):
    """Masks of a pipeline with a UNet against explicit attention; images as without a recorder."""
    return check(
        pipe,
        lambda: explicit_attention(reference or pipe),
        lambda word: ((first_token + word,),),
        (16, 16),
        first_row=2,
        options=STEPS,
        **options,
    )


def recorded(pipe, **options):
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        images_of(pipe, **{**STEPS, **options})
    return recorder.masks()


def with_lora(model, targets):
    peft = pytest.importorskip('peft')
    model.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights='gaussian')
    )
    with torch.no_grad():  # a new adapter changes nothing
        generator = torch.Generator().manual_seed(4)
        for name, weight in model.named_parameters():
            if 'lora_B' in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) / 10)


def test_lora_of_a_unet():
    pipe = tiny_stable_diffusion()
    plain = recorded(pipe)
    with_lora(pipe.unet, ['to_q', 'to_k'])
    check_unet(pipe)
    assert not torch.allclose(recorded(pipe)[0], plain[0], atol=1e-4)


def test_lora_of_a_transformer():
    pipe = tiny.tiny_flux()
    plain = recorded(pipe, **SQUARE)
    with_lora(pipe.transformer, ['to_q', 'to_k'])
    lora = recorded(pipe, **SQUARE)
    assert not torch.allclose(lora[0], plain[0], atol=1e-6)
    pipe.transformer.fuse_lora()
    for before, after in zip(lora, recorded(pipe, **SQUARE)):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-6)


def test_adapters_that_change_while_recording():
    pipe = tiny_stable_diffusion()
    targets = ['to_q', 'to_k']
    with (
        pytest.raises(ValueError, match='the to_q of .*attn2 was replaced .* LoRA that was loaded'),
        AttentionRecorder(pipe, PROMPTS, NOUNS),
    ):
        with_lora(pipe.unet, targets)
        images_of(pipe, **STEPS)
    plain = recorded(pipe)
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        pipe.unet.set_adapters(['default'], [0.5])
        images_of(pipe, **STEPS)
    assert not torch.equal(recorder.masks()[0], plain[0])
    assert all(map(torch.equal, recorder.masks(), recorded(pipe)))
    with (
        pytest.raises(ValueError, match='the to_q of .* was replaced'),
        AttentionRecorder(pipe, PROMPTS, NOUNS),
    ):
        pipe.unload_lora_weights()
        images_of(pipe, **STEPS)


def test_a_part_that_is_replaced_while_recording_is_refused():
    cascade = dict(SQUARE, height=128, width=160, prior_num_inference_steps=1)
    cases = [
        (tiny_stable_diffusion(), '', 'unet', STEPS),
        (tiny_stable_diffusion(), '', 'text_encoder', STEPS),
        (tiny.tiny_flux(), '', 'transformer', SQUARE),
        (tiny.tiny_cascade('StableCascade'), 'prior_pipe', 'prior', cascade),
        (tiny.tiny_cascade('StableCascade'), 'prior_pipe', 'text_encoder', cascade),
    ]
    for pipe, inner, name, options in cases:
        holder = getattr(pipe, inner) if inner else pipe
        first = getattr(holder, name)
        other = copy.deepcopy(first)
        message = f'the {name} of {type(holder).__name__} was replaced while it was being recorded'
        with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
            images_of(pipe, **options)
            steps = recorder.num_steps
            setattr(holder, name, other)
            with pytest.raises(ValueError, match=message):
                images_of(pipe, **options)
            setattr(holder, name, first)
            images_of(pipe, **options)
        assert recorder.num_steps == 2 * steps
        # In the middle of a call, or behind the last one.
        with (
            pytest.raises(ValueError, match=message),
            AttentionRecorder(pipe, PROMPTS, NOUNS, check_prompts=name == 'text_encoder'),
        ):
            images_of(pipe, **options)
            setattr(holder, name, other)


def test_a_part_that_another_pipeline_inside_does_not_have_is_refused():
    pipe = tiny.tiny_cascade('StableCascade')
    pipe.prior_prior = copy.deepcopy(pipe.prior_prior)
    with pytest.raises(
        ValueError, match='the prior_prior of .* is not the prior of its prior_pipe'
    ):
        AttentionRecorder(pipe)
    pipe.prior_pipe.prior = pipe.prior_prior
    assert AttentionRecorder(pipe).prompts == []


def test_a_layer_that_never_runs_is_missed():
    pipe = tiny_stable_diffusion()
    with AttentionRecorder(pipe, PROMPTS, NOUNS, resolutions=[16]) as recorder:
        images_of(pipe, **STEPS)
    assert len(recorder.layer_steps) < len(recorder.layers)  # others have other sizes
    expected = recorder.masks()
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        pipe.unet.mid_block = copy.deepcopy(pipe.unet.mid_block)
        images_of(pipe, **STEPS)
    with pytest.raises(ValueError, match=r'mid_block\.attentions\.0.*attn2 .* never ran'):
        recorder.masks()
    with AttentionRecorder(
        pipe, PROMPTS, NOUNS, blocks=['down', 'up'], resolutions=[16]
    ) as recorder:
        images_of(pipe, **STEPS)
    assert all(map(torch.equal, recorder.masks(), expected))


def test_parts_that_are_let_go_of_and_other_schedulers_are_recorded():
    pipe = tiny_stable_diffusion()
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        images_of(pipe, **STEPS)
        pipe.vae, pipe.scheduler = copy.deepcopy(pipe.vae), copy.deepcopy(pipe.scheduler)
        images_of(pipe, **STEPS)
        pipe.unet = pipe.text_encoder = None
    assert recorder.num_steps == 4


def test_a_network_that_peft_wraps():
    peft = pytest.importorskip('peft')
    pipe = tiny_stable_diffusion()
    options = dict(blocks='down', heads={'down_blocks.1': [0]})
    plain = AttentionRecorder(pipe, PROMPTS, NOUNS, **options)
    pipe.unet = peft.get_peft_model(pipe.unet, peft.LoraConfig(r=2, target_modules=['to_q']))
    wrapped = AttentionRecorder(pipe, PROMPTS, NOUNS, **options)
    with wrapped, plain:
        images_of(pipe, **STEPS)
    assert [*wrapped.layers] == ['down_blocks.1.attentions.0.transformer_blocks.0.attn2']
    assert all(torch.equal(mask, other) for mask, other in zip(plain.masks(), wrapped.masks()))


class MergingBlock(BasicTransformerBlock):
    """Keeps a quarter of the tokens for the attention to pixels, or to the text, as tomesd does."""

    merged = 'attn2'

    def forward(self, hidden_states, encoder_hidden_states=None, **options):
        for name in ('attn1', 'attn2'):
            hidden = getattr(self, f'norm{name[-1]}')(hidden_states)
            kept = hidden[:, :: 4 if name == self.merged else 1]
            text = encoder_hidden_states if name == 'attn2' else None
            found = getattr(self, name)(kept, encoder_hidden_states=text)
            hidden_states = hidden_states + found.repeat_interleave(
                hidden.shape[1] // kept.shape[1], 1
            )
        return hidden_states + self.ff(self.norm3(hidden_states))


def merging(pipe, merged):
    for block in list(pipe.unet.modules()):
        if isinstance(block, BasicTransformerBlock):
            block.__class__, block.merged = MergingBlock, merged
    return pipe


def test_merged_tokens_as_many_as_a_smaller_map_has_are_refused():
    pipe = merging(tiny_stable_diffusion(), 'attn2')
    with pytest.raises(RuntimeError, match='attn2 attends from 64 of the 256 tokens of its block'):
        recorded(pipe)
    recorded(merging(pipe, 'attn1'))  # which changes no attention to the text
    with (
        pytest.raises(RuntimeError, match='attn1 attends from 64 of the 256 tokens'),
        AttentionRecorder(pipe, PROMPTS, NOUNS, self_attention=16),
    ):
        images_of(pipe, **STEPS)


def test_a_block_that_may_merge_tokens_is_refused_in_compiled_code():
    pipe = merging(tiny_stable_diffusion(), 'attn2')
    pipe.unet.compile(backend='eager')
    with pytest.raises(ValueError, match='is compiled in a MergingBlock of .*may merge tokens'):
        recorded(pipe)


def test_a_deep_copy_is_not_recorded():
    pipe = tiny_stable_diffusion()
    plain = recorded(pipe)
    with AttentionRecorder(pipe, PROMPTS, NOUNS, head_weights='contribution') as weighted:
        with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
            images_of(pipe, **STEPS)
            other = copy.deepcopy(pipe)
            images = images_of(other, prompts=['a tree'] * 3, **STEPS)
        images_of(other, **STEPS)
    assert recorder.num_steps == weighted.num_steps == 2
    assert all(map(torch.equal, recorder.masks(), plain))
    assert torch.equal(images_of(pipe, prompts=['a tree'] * 3, **STEPS), images)
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        images_of(copy.copy(pipe), **STEPS)  # shares its network
    assert all(map(torch.equal, recorder.masks(), plain))
    assert all(map(torch.equal, recorded(other), plain))


def sharing(pipe):
    """A pipeline with the same networks and a scheduler of its own, as servers make them."""
    return type(pipe)(**{**pipe.components, 'scheduler': copy.deepcopy(pipe.scheduler)})


@pytest.mark.parametrize('make', [tiny_stable_diffusion, tiny.tiny_flux])
def test_two_threads_with_one_network(make):
    pipe = make()
    other = sharing(pipe)
    other.set_progress_bar_config(disable=True)
    denoiser = pipe.unet if hasattr(pipe, 'unet') else pipe.transformer
    of_two, of_other = recorded(pipe, **SQUARE), recorded(other, seed=2, **SQUARE)
    results, plain = [], images_of(other, prompts=['a tree'], **SQUARE)

    def meanwhile():
        results.append(images_of(other, prompts=['a tree'], **SQUARE))
        results.append(recorded(other, seed=2, **SQUARE))

    def interrupt(*_):
        handle.remove()
        thread = threading.Thread(target=meanwhile)
        thread.start()
        thread.join()

    # In the middle of the network.
    last = [module for name, module in denoiser.named_modules() if name.endswith('to_k')][-1]
    handle = last.register_forward_hook(interrupt)
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        images_of(pipe, **SQUARE)
    image, masks = results
    assert torch.equal(image, plain) and recorder.num_steps == 2
    assert all(map(torch.equal, recorder.masks(), of_two))
    assert all(map(torch.equal, masks, of_other)) and not torch.equal(masks[0], of_two[0])


def test_a_call_in_another_thread_is_not_recorded():
    pipe = tiny_stable_diffusion()
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        thread = threading.Thread(target=lambda: images_of(pipe, **STEPS))
        thread.start()
        thread.join()
    with pytest.raises(RuntimeError, match='nothing was recorded: .* in the same thread'):
        recorder.masks()


def test_recorders_may_end_in_any_order():
    pipe = tiny.tiny_flux()
    expected = recorded(pipe, **SQUARE)
    backends = attention_dispatch._AttentionBackendRegistry._backends
    before, hooks = dict(backends), hook_count(pipe)
    first, second = (AttentionRecorder(pipe, PROMPTS, NOUNS) for _ in range(2))
    first.__enter__()
    with second:
        images_of(pipe, **SQUARE)
        first.__exit__(None, None, None)
        images_of(pipe, **SQUARE)
    assert (first.num_steps, second.num_steps) == (2, 4)
    assert all(map(torch.equal, first.masks(), expected))
    assert backends == before and hook_count(pipe) == hooks


def test_layers_that_are_offloaded_one_by_one():
    accelerate = pytest.importorskip('accelerate')
    for make, name in (
        (tiny_stable_diffusion, 'unet'),
        (tiny.tiny_stable_diffusion_3, 'transformer'),
    ):
        pipe = make()
        plain = recorded(pipe, **SQUARE)
        accelerate.cpu_offload(getattr(pipe, name), torch.device('cpu'))
        assert all(map(torch.equal, recorded(pipe, **SQUARE), plain))


def test_vae_tiling_and_slicing():
    pipe = tiny_stable_diffusion()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 32, 8
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    check_unet(pipe)


@pytest.mark.parametrize(('make', 'first_token'), [(tiny_stable_diffusion, 1), (tiny_if, 0)])
def test_attention_slicing(make, first_token):
    pipe = make()
    whole = recorded(pipe)
    pipe.enable_attention_slicing(1)
    names = {type(processor).__name__ for processor in pipe.unet.attn_processors.values()}
    assert all('Sliced' in name for name in names)
    for mask, sliced in zip(whole, recorded(pipe)):
        torch.testing.assert_close(mask, sliced, rtol=0, atol=1e-6)


@contextmanager
def stand_in_for_xformers(monkeypatch):
    """xformers' operator on (batch * heads, length, channels), for its processors' own code."""
    from diffusers.models import attention_processor

    def memory_efficient_attention(query, key, value, attn_bias=None, op=None, scale=None, p=0.0):
        assert query.ndim == 3
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_bias, scale=scale
        )

    operators = types.SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
    with monkeypatch.context() as patch:
        patch.setattr(
            attention_processor, 'xformers', types.SimpleNamespace(ops=operators), raising=False
        )
        yield attention_processor


@pytest.mark.parametrize('make', [tiny_stable_diffusion, tiny_if])
def test_xformers_processors(make, monkeypatch):
    pipe = make()
    usual = recorded(pipe)
    with stand_in_for_xformers(monkeypatch) as processors:
        added = make is tiny_if
        pipe.unet.set_attn_processor(
            processors.XFormersAttnAddedKVProcessor()
            if added
            else processors.XFormersAttnProcessor()
        )
        plain = images_of(pipe, **STEPS)
        with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
            assert torch.equal(plain, images_of(pipe, **STEPS))
    for mask, other in zip(usual, recorder.masks()):
        torch.testing.assert_close(mask, other, rtol=0, atol=1e-6)


def test_plain_processors():
    from diffusers.models.attention_processor import AttnProcessor

    pipe = tiny_stable_diffusion()
    usual = recorded(pipe)
    pipe.unet.set_attn_processor(AttnProcessor())
    for mask, other in zip(usual, recorded(pipe)):
        torch.testing.assert_close(mask, other, rtol=0, atol=1e-6)


class OwnProcessor:
    """Cross-attention as somebody may write it; `change` alters the arguments of the function."""

    def __init__(self, change=None, explicit=False, project=None):
        self.change, self.explicit, self.project = change, explicit, project

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **others):
        crossing = encoder_hidden_states is not None
        seen = encoder_hidden_states if crossing else hidden_states
        if crossing and self.project:
            self.project(attn, seen)
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(seen), attn.to_v(seen))
        )
        if self.explicit:
            out = (query @ key.mT * attn.scale).softmax(-1) @ value
        else:
            change = self.change if crossing and self.change else lambda *tensors: [tensors]
            attend = torch.nn.functional.scaled_dot_product_attention
            out = sum(attend(*arguments) for arguments in change(query, key, value))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def with_processor(processor):
    pipe = tiny_stable_diffusion()
    pipe.unet.set_attn_processor(processor)
    return pipe


@pytest.mark.parametrize('explicit', [False, True])
def test_a_processor_of_ones_own_is_recorded(explicit):
    pipe = with_processor(OwnProcessor(explicit=explicit))
    check_unet(pipe)


def test_a_processor_of_ones_own_is_recorded_as_it_attends():
    # Another temperature, as if the query's projection were another; and a mask of keys.
    usual = tiny_stable_diffusion()
    usual.unet.set_attn_processor(OwnProcessor())
    for name, module in usual.unet.named_modules():
        if name.endswith('attn2'):
            module.to_q.weight.data *= 2
    pipe = with_processor(OwnProcessor(lambda query, key, value: [(2 * query, key, value)]))
    for mask, other in zip(recorded(usual), recorded(pipe)):
        torch.testing.assert_close(mask, other, rtol=0, atol=1e-6)
    without = torch.ones(77, dtype=torch.bool)
    without[1 + word_place(PROMPTS[0], NOUNS[0][0])] = False
    pipe = with_processor(OwnProcessor(lambda *tensors: [(*tensors, without[None])]))
    mask, _ = recorded(pipe)
    assert not mask[0].any() and mask[1].all()


@pytest.mark.parametrize(
    ('processor', 'message'),
    [
        (OwnProcessor(lambda q, k, v: [(q, k, v), (q, k.flip(2), v)]), 'to the text 2 times'),
        (
            OwnProcessor(lambda q, k, v: [(q[:, :, 1:], k, v)]),
            'attends to the text in parts',
        ),
        (OwnProcessor(project=lambda attn, text: attn.to_k(text)), 'projects queries or keys more'),
        (
            OwnProcessor(project=lambda attn, text: attn.to_k(text[:1]), explicit=True),
            'projects queries or keys more than once',
        ),
    ],
    ids=['twice', 'in parts', 'projects twice', 'image by image'],
)
def test_a_processor_whose_attention_is_not_one_softmax_is_refused(processor, message):
    pipe = with_processor(processor)
    with pytest.raises(RuntimeError, match=message):
        recorded(pipe)
    assert torch._C._len_torch_function_stack() == 0


def test_a_processor_of_ones_own_is_set_before_recording():
    def change(pipe, index, timestep, values):
        pipe.unet.set_attn_processor(OwnProcessor(lambda q, k, v: [(2 * q, k, v)]))
        return values

    with pytest.raises(ValueError, match='attn2 was given another attention processor while'):
        recorded(tiny_stable_diffusion(), callback_on_step_end=change)


def test_a_sequence_that_is_interrupted_leaves_nothing_behind():
    class Interrupted:
        def __call__(self, attn, hidden_states, **others):
            raise KeyboardInterrupt

    pipe = tiny.tiny_stable_diffusion_3()
    pipe.transformer.set_attn_processor(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        recorded(pipe, **SQUARE)
    assert torch._C._len_torch_function_stack() == 0


def test_a_fused_sequence_is_recorded():
    pipe = tiny.tiny_flux()
    apart = recorded(pipe, **SQUARE)
    pipe.transformer.fuse_qkv_projections()
    assert hasattr(pipe.transformer.transformer_blocks[0].attn, 'to_qkv')
    for mask, fused in zip(apart, recorded(pipe, **SQUARE)):
        torch.testing.assert_close(mask, fused, rtol=0, atol=1e-6)


def test_a_sequence_that_attends_in_another_way_is_refused():
    class Explicit:
        """Attention as Flux computes it, by hand."""

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, *others):
            text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
            both = (
                hidden_states if text == 0 else torch.cat([encoder_hidden_states, hidden_states], 1)
            )
            attention = (attn.to_q(both) @ attn.to_k(both).mT).softmax(-1) @ attn.to_v(both)
            return attention if text == 0 else (attention[:, text:], attention[:, :text])

    pipe = tiny.tiny_flux()
    pipe.transformer.set_attn_processor(Explicit())
    with pytest.raises(
        RuntimeError,
        match='transformer_blocks.0.attn ran without scaled_dot_'
        "product_attention over its sequence of 576.*'native'",
    ):
        recorded(pipe, **SQUARE)
    assert hook_count(pipe) == 0
    assert torch._C._len_torch_function_stack() == 0


def test_a_failing_sequence_leaves_nothing_behind():
    class Broken:
        def __call__(self, attn, hidden_states, **others):
            raise ArithmeticError('broken')

    pipe = tiny.tiny_stable_diffusion_3()
    images_of(pipe, **{**STEPS, **SQUARE})
    hooks = hook_count(pipe)  # that transformers 5 leaves in text encoders
    pipe.transformer.set_attn_processor(Broken())
    with pytest.raises(ArithmeticError, match='broken'):
        recorded(pipe, **SQUARE)
    assert hook_count(pipe) == hooks
    assert torch._C._len_torch_function_stack() == 0


def explicit_backend(query, key, value, attn_mask=None, scale=None):
    """Attention past PyTorch's function, as FlashAttention and its kin compute it."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (logits.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize('backend', ['native', '_native_math', 'flex', 'sage'])
def test_attention_backends_are_recorded_from_queries_and_keys(backend, monkeypatch):
    pipe = tiny.tiny_flux()
    expected = recorded(pipe, **SQUARE)
    registry = attention_dispatch._AttentionBackendRegistry
    name = attention_dispatch.AttentionBackendName(backend)
    if backend == 'sage':  # needs a GPU: another function takes its place
        monkeypatch.setitem(registry._backends, name, explicit_backend)
        monkeypatch.setitem(
            registry._supported_arg_names, name, {'query', 'key', 'value', 'attn_mask', 'scale'}
        )
    before = dict(registry._backends)
    for module in pipe.transformer.modules():
        if hasattr(getattr(module, 'processor', None), '_attention_backend'):
            module.processor._attention_backend = name
    plain = images_of(pipe, **SQUARE)
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        assert torch.equal(images_of(pipe, **SQUARE), plain)
    for mask, other in zip(recorder.masks(), expected):
        torch.testing.assert_close(mask, other, rtol=0, atol=1e-6)
    assert registry._backends == before


def cast_layers(model):
    """Weights kept in float8 and cast for each use."""
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def int8_torchao(model):
    quantization = pytest.importorskip('torchao.quantization')
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())


def four_bits_bitsandbytes(model):
    bitsandbytes = pytest.importorskip('bitsandbytes')

    def quantized(linear):
        new = bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, torch.float32
        )
        new.load_state_dict(linear.state_dict())
        return new.to('cpu')

    exchange_linear_layers(model, quantized)


def gguf(model):
    gguf = pytest.importorskip('gguf')
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0

    def quantized(linear):
        new = GGUFLinear(
            linear.in_features, linear.out_features, linear.bias is not None, torch.float32
        )
        weight = torch.from_numpy(gguf.quants.quantize(linear.weight.detach().numpy(), kind))
        new.weight, new.bias = GGUFParameter(weight, quant_type=kind), linear.bias
        return new

    exchange_linear_layers(model, quantized)


def exchange_linear_layers(model, exchange):
    """Puts others in the place of the linear layers that an attention may project with."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear) and child.in_features % 32 == 0:
                setattr(module, name, exchange(child))


@pytest.mark.parametrize('quantize', [cast_layers, int8_torchao, four_bits_bitsandbytes, gguf])
@pytest.mark.parametrize(
    'build, name', [(tiny_stable_diffusion, 'unet'), (tiny.tiny_flux, 'transformer')]
)
def test_quantized_layers(build, name, quantize):
    """Images are those without a recorder, masks near those of the layers before."""
    pipe = build()
    options = {} if name == 'unet' else SQUARE
    before = recorded(pipe, **options)
    with torch.no_grad():
        quantize(getattr(pipe, name))
    plain = images_of(pipe, **{**STEPS, **options})
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        assert torch.equal(images_of(pipe, **{**STEPS, **options}), plain)
    for mask, other in zip(recorder.masks(), before):
        assert not torch.equal(mask, other)  # it was quantized
        torch.testing.assert_close(mask, other, rtol=0.5, atol=0)


def test_memory_of_a_sequence_is_bounded():
    """No queries or keys outlive their module's call."""
    pipe = tiny.tiny_flux()
    seen = []

    def look(module, args, output):
        for hook in module._forward_hooks.values():
            own = inspect.getclosurevars(hook).nonlocals.get('call')  # of `own_hook`
            if own is not None:
                seen.append(inspect.getclosurevars(own).nonlocals['hook'].__self__.call)

    with AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder:
        handles = [
            module.register_forward_hook(look)
            for name, module in pipe.transformer.named_modules()
            if block_attention(name)
        ]
        images_of(pipe, **SQUARE)
    for handle in handles:
        handle.remove()
    assert len(seen) == 2 * len(recorder.layers) and all(call is None for call in seen)
    assert {tuple(total.total_BTN.shape) for total in recorder._sums.values()} == {(2, 3, 64)}


def test_self_attention_of_a_sequence_is_refused_in_one_sentence():
    pipe = tiny.tiny_flux()
    with pytest.raises(ValueError, match='has no self-attention that can be recorded'):
        AttentionRecorder(pipe, PROMPTS, NOUNS, self_attention=32).__enter__()
    assert hook_count(pipe) == 0


def test_bfloat16_of_a_sequence_is_computed_in_float32():
    pipe = tiny.tiny_stable_diffusion_3().to(torch.bfloat16)
    with (
        AttentionRecorder(pipe, PROMPTS, NOUNS) as recorder,
        attention_of(
            pipe.transformer, block_attention, functools.partial(_from_bfloat16, text=333)
        ) as seen,
    ):
        images_of(pipe, **SQUARE)
    for image, mask in enumerate(recorder.masks()):
        word = len(PROMPTS[image][: NOUNS[image][0][0]].split())
        expected = np.mean(
            [mean_map(seen, 2 + image, [column], (8, 8)) for column in (1 + word, 77 + word)],
            axis=0,
        )
        # Queries and keys differ by bfloat16's rounding from those of float64; a softmax in
        # bfloat16 would be off by more.
        np.testing.assert_allclose(mask[0], expected, rtol=0.05)


def _from_bfloat16(module, hidden_states, encoder_hidden_states=None, *, text, **others):
    import copy

    return sequence(
        copy.deepcopy(module).float(),
        hidden_states.float(),
        encoder_hidden_states.float(),
        text=text,
    )
