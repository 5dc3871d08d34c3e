"""What an attention module puts out: what each head contributes, and how alike its outputs are.

Shape suffixes: B images, N queries (pixels of a feature map), K text keys, T noun tokens, H heads,
C channels of a head, X channels of all heads, D channels of the module's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['add_output_products', 'head_weights', 'output_projection']

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


@torch.no_grad()
def add_output_products(
    pixels_BNX: Tensor,
    text_BKX: Tensor,
    columns_BT: Tensor,
    out_BTN: Tensor,
    *,
    heads: int,
    some: Sequence[int],
) -> None:
    """Add the scalar products of tokens' outputs with pixels' outputs, divided by sqrt(X).

    Args:
        pixels_BNX: Outputs of the pixels, all heads side by side.
        text_BKX: Outputs of the text's tokens.
        columns_BT: int64 indices of the wanted tokens, one row for each image.
        out_BTN: float32 sums to add to.
        heads: How many heads there are.
        some: Heads to use; their products are scaled up to what all heads would add.
    """
    factor = pixels_BNX.shape[-1] ** -0.5 * heads / len(some)
    with torch.autocast(device_type=pixels_BNX.device.type, enabled=False):
        index_BTX = columns_BT[..., None].expand(-1, -1, text_BKX.shape[-1])
        text_BTX = text_BKX.gather(1, index_BTX).float()
        parts = [
            part.float().unflatten(-1, (heads, -1))[..., list(some), :].flatten(2)
            for part in (text_BTX, pixels_BNX)
        ]
        parts = [part.to(out_BTN.device) for part in parts]  # layers may lie on several
        out_BTN.baddbmm_(parts[0], parts[1].transpose(1, 2), alpha=factor)
