"""bfloat16 where a training computes most, on CPUs as on GPUs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from freeatm_mm.compat import has_bfloat16
from freeatm_mm.errors import InputError

__all__ = ['BFloat16Hook']


@HOOKS.register_module()
class BFloat16Hook(Hook):
    """Computes backbones in bfloat16 and everything after them in float32.

    That is every backbone of the model, the momentum encoder's too, and MAE's decoder, under
    `torch.autocast`. Weights, gradients, optimizer, masks, pooling, projections, losses and MoCo's
    queue stay float32. So what tells methods and masks apart, cosines and means over masks, is
    computed as without the hook. bfloat16 has float32's range: no loss scale is needed.

    mmengine's `AmpOptimWrapper` refuses CPUs, and computes the cosines of contrastive losses in
    half precision, too.

    Checkpoints are those of a training without it.
    """

    def before_train(self, runner: Runner) -> None:
        """Put the networks under autocast.

        Raises:
            InputError: If the model has no backbone.
        """
        model = getattr(runner.model, 'module', runner.model)
        if not isinstance(getattr(model, 'backbone', None), nn.Module):
            raise InputError(
                f'{type(model).__name__} has no backbone that could be computed in bfloat16: leave '
                'out --amp and --bf16'
            )
        self._networks = [*_networks(model)]
        for network in self._networks:
            setattr(network, 'forward', _in_bfloat16(network.forward))  # noqa: B010 - for mypy
        device = next(model.parameters()).device.type
        if device == 'cpu' and not has_bfloat16():
            runner.logger.warning(
                'This CPU has no instructions for bfloat16 (avx512_bf16, amx_bf16): '
                'without them it is no faster than float32.'
            )

    def after_train(self, runner: Runner) -> None:
        """Take the networks out of autocast again."""
        for network in self._networks:
            del network.forward


def _networks(model: Any) -> Iterator[nn.Module]:
    """The model's backbone, its copies, and a decoder that is a transformer itself."""
    from mmpretrain.models.necks import MAEPretrainDecoder

    kinds: list[type] = [type(model.backbone)]
    if isinstance(getattr(model, 'neck', None), MAEPretrainDecoder):
        kinds.append(MAEPretrainDecoder)
    pending: list[nn.Module] = [model]
    while pending:
        module = pending.pop()
        if isinstance(module, tuple(kinds)):
            yield module
        else:
            pending += module.children()


def _in_bfloat16(forward: Callable) -> Callable:
    """The same function under autocast, whose results are float32."""

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        device = tensors[0].device.type if tensors else 'cpu'
        with torch.autocast(device, torch.bfloat16):
            return _as_float32(forward(*args, **kwargs))

    return call


def _as_float32(value: Any) -> Any:
    if torch.is_tensor(value):
        return value.float() if value.dtype == torch.bfloat16 else value
    if isinstance(value, (tuple, list)):
        return type(value)([_as_float32(part) for part in value])
    return value
