"""Mistakes of devices, looked for without a GPU: fake CUDA tensors refuse to meet the CPU's."""

from __future__ import annotations

import diffusers
import pytest
import torch
from helpers.tiny_generators import tiny_stable_diffusion_3
from helpers.tiny_pipelines import tiny_stable_diffusion
from helpers.two_prompts import NOUNS, PROMPTS
from torch._subclasses.fake_tensor import FakeTensorMode

from freeatm_mm.attention import AttentionRecorder, noun_attention
from freeatm_mm.attention.outputs import add_output_products
from freeatm_mm.attention.softmax import add_affinity


@pytest.mark.parametrize('options', [{}, {'self_attention': 16}])
def test_a_unet_on_a_gpu(options):
    """The denoiser is called itself, with one row for each image."""
    pipe = tiny_stable_diffusion()
    config = pipe.unet.config
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with torch.device('cuda'):
            pipe.unet = diffusers.UNet2DConditionModel.from_config(config)
            images = torch.randn(2, 4, 16, 16)
            text = torch.randn(2, 77, config.cross_attention_dim)
        with AttentionRecorder(pipe, PROMPTS, NOUNS, check_prompts=False, **options) as recorder:
            pipe.unet(images, 1, encoder_hidden_states=text)
        sums = [*recorder._sums.values(), *recorder._affinities.values()]
        assert {total.total_BTN.device.type for total in sums} == {'cuda'}
        masks = recorder.masks(propagate=1 if options else 0)
        assert [mask.device.type for mask in masks] == ['cpu', 'cpu']
        with pytest.raises(RuntimeError):  # so a mistake would show
            images + torch.ones(1, 4, 1, 1)


@pytest.mark.parametrize(
    'options',
    [{}, {'maps': 'output'}, {'head_weights': 'contribution', 'rescale': 'words'}],
    ids=['attention', 'output', 'weighted'],
)
def test_a_transformer_on_a_gpu(options):
    """Text and image in one sequence, whose attention calls are watched."""
    pipe = tiny_stable_diffusion_3()
    config = pipe.transformer.config
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with torch.device('cuda'):
            pipe.transformer = diffusers.SD3Transformer2DModel.from_config(config)
            images = torch.randn(2, config.in_channels, 16, 16)
            text = torch.randn(2, 77 + 256, config.joint_attention_dim)
            pooled = torch.randn(2, config.pooled_projection_dim)
            time = torch.ones(2)
        with AttentionRecorder(pipe, PROMPTS, NOUNS, check_prompts=False, **options) as recorder:
            pipe.transformer(images, text, pooled, time)
        assert {total.total_BTN.device.type for total in recorder._sums.values()} == {'cuda'}
        assert [mask.device.type for mask in recorder.masks()] == ['cpu', 'cpu']


def test_layers_on_several_gpus_add_to_one_sum():
    with FakeTensorMode():
        first, second = (torch.device('cuda', number) for number in (0, 1))
        query, key = (torch.randn(2, 9, 4, 8, device=second) for _ in range(2))
        columns = torch.zeros(2, 3, dtype=torch.long, device=second)
        out = torch.zeros(2, 3, 9, device=first)
        assert noun_attention(query, key, columns, 1.0, out_BTN=out).device == first
        add_affinity(query, key, 1.0, torch.zeros(2, 9, 9, device=first))
        outputs = query.flatten(2)
        add_output_products(outputs, outputs, columns, out, heads=4, some=range(4))
