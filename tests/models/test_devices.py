"""Mistakes of devices, looked for without a GPU: fake CUDA tensors refuse to meet the CPU's."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_models import dino, mae, moco, samples, simclr, simsiam, views
from mmengine.model import BaseAveragedModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

#: `LossGuide` is missing: it chooses by a boolean mask, and what that leaves has no known shape.
MODELS = {
    'simclr': simclr,
    'simclr-equation3': lambda: simclr(loss='equation3', negatives='other_nouns'),
    'simclr-positives': lambda: simclr(positives='same_noun'),
    'moco': moco,
    'moco-negatives': lambda: moco(negatives='other_nouns'),
    'moco-positives': lambda: moco(positives='same_noun'),
    'simsiam': simsiam,
    'dino': dino,
    'mae': mae,
    'mae-own-attention': lambda: mae(guide=dict(type='OwnAttentionGuide')),
    'mae-green-noise': lambda: mae(
        mask_generator=dict(type='AttentionGuidedMaskGenerator', noise='green')
    ),
}


class Pointer(list):
    """MoCo's, with a value."""

    def __int__(self):
        return self[0]


def onto_a_gpu(model, mode):
    """Give a model fake CUDA tensors for parameters and buffers; nothing else is moved.

    But for two buffers that are looked at, for a fake tensor has no value.
    """

    def fake(tensor):
        return mode.from_tensor(tensor.detach()).to('cuda')

    for part in model.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[name] = nn.Parameter(fake(tensor), tensor.requires_grad)
        for name, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[name] = fake(tensor)
        if isinstance(part, BaseAveragedModel):
            del part._buffers['steps']
            part.steps = 0
        if 'queue_ptr' in part._buffers:
            del part._buffers['queue_ptr']
            part.queue_ptr = Pointer([0])
    for part in model.modules():
        if isinstance(part, BaseAveragedModel):
            part.avg_parameters = dict(part.module.named_parameters())


@pytest.mark.parametrize('name', MODELS)
def test_the_loss_of_a_model_on_a_gpu(name):
    """Forward alone: backward asks the driver for the device."""
    model, guided = MODELS[name](), name.startswith('mae')
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        onto_a_gpu(model, mode)
        inputs = [mode.from_tensor(view).to('cuda') for view in views(5)]
        # As the loader gives them: on the CPU.
        data = samples([2, None, 3, 0, 1], number=1 if guided else 2)
        losses = model.loss(inputs[0] if guided else inputs, data)
        assert losses['loss'].device.type == 'cuda' and len(losses) > 1
        with pytest.raises(RuntimeError):  # so a mistake would show
            inputs[0] + torch.ones(5, 1, 1, 1)
