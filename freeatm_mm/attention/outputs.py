"""What an attention module puts out: how much each head contributes to it at each pixel.

Shape suffixes: B images, N queries (pixels of a feature map), H heads, C channels of a head,
D channels of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['head_weights', 'output_projection']

_LEAST = 1e-20  # so that pixels to which no head contributes weigh all of them the same


def output_projection(module: Any, name: str) -> nn.Linear:
    """Return the layer that makes an attention module's output of its heads' outputs.

    Args:
        module: The attention module.
        name: Its name, for the message.

    Raises:
        ValueError: If it has none, or one that isn't a plain linear layer.
    """
    projections = getattr(module, 'to_out', None)
    first = projections[0] if isinstance(projections, (nn.ModuleList, nn.Sequential)) else None
    if first is None:
        raise ValueError(
            f"head_weights='contribution' needs an output projection, and {name} has none of its "
            "own: record other blocks with blocks=..., such as 'transformer_blocks' of Flux"
        )
    if type(first) is not nn.Linear or not first.weight.dtype.is_floating_point:
        raise ValueError(
            f"head_weights='contribution' needs the output projection of {name} as a plain linear "
            f'layer, not {type(first).__name__}: fuse adapters (pipe.fuse_lora()) and load '
            'the network unquantised'
        )
    return first


@torch.no_grad()
def head_weights(
    heads_BNX: Tensor,
    output_BND: Tensor,
    projection: nn.Linear,
    heads: int,
    chosen: Sequence[int] | None = None,
) -> Tensor:
    """Weigh the heads of each pixel by what they contribute to the module's output.

    A head's contribution is its own output through its part of the projection, and it weighs what
    the scalar product of that with the output of all is, if positive, as GoCA does (CVPR 2026).

    Args:
        heads_BNX: What the projection gets: the heads' outputs, side by side.
        output_BND: What it returns.
        projection: The projection.
        heads: How many heads there are.
        chosen: Which of them to weigh; ``None``: all.

    Returns:
        float32, shape (B, N, chosen heads), the sum over the heads is 1.
    """
    with torch.autocast(device_type=heads_BNX.device.type, enabled=False):
        back_BNX = output_BND.float() @ projection.weight.float()
        products_BNX = heads_BNX.float() * back_BNX
        weights_BNH = products_BNX.unflatten(-1, (heads, -1)).sum(-1).clamp_min(_LEAST)
        if chosen is not None:
            weights_BNH = weights_BNH[..., list(chosen)]
        return weights_BNH / weights_BNH.sum(-1, keepdim=True)
