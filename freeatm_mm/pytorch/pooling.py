"""Features of instances from the output of any backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from freeatm_mm.errors import InputError
from freeatm_mm.ops import check_masks, pool_instances

__all__ = ['LAYOUTS', 'InstancePool']

#: How a backbone lays out its features; 'auto' finds out by the grid of the masks.
LAYOUTS = ('auto', 'nchw', 'nhwc', 'tokens')
#: How many tokens may come before those of the patches unasked: none, a class token, one more of
#: distillation, and 4 or 8 registers with or without a class token.
_PREFIXES = (0, 1, 2, 4, 5, 8, 9)


class InstancePool(nn.Module):
    """Equation 2 over a backbone's output: one feature for each instance.

    Takes (B, C, h, w) of ResNets and ConvNeXts, (B, h, w, C) of Swin, (B, N, C) tokens of a ViT,
    whose first ones (class and register tokens) are left out; the last of several maps;
    transformers' outputs; and the dict that DINOv2's `forward_features` returns.

    Args:
        layout: One of `LAYOUTS`.
        prefix_tokens: How many tokens come before those of the patches (a model of timm's has
            `num_prefix_tokens`). By default what is more than the masks' cells, where that is a
            number of class and register tokens that ViTs have, and no other reading is possible.

    Raises:
        InputError: If `layout` is unknown, or `prefix_tokens` is no number of tokens.
    """

    def __init__(self, layout: str = 'auto', prefix_tokens: int | None = None) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise InputError(f'layout {layout!r} is none of {", ".join(LAYOUTS)}')
        if prefix_tokens is not None and (type(prefix_tokens) is not int or prefix_tokens < 0):
            raise InputError(f'prefix_tokens {prefix_tokens!r} is no number of tokens')
        self.layout, self.prefix_tokens = layout, prefix_tokens

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f'layout={self.layout!r}, prefix_tokens={self.prefix_tokens}'

    def forward(self, features: Any, masks: Tensor, places: Tensor | None = None) -> Tensor:
        """Pool.

        Args:
            features: What the backbone gave.
            masks: (B, K, h, w) masks on the grid of the features, of any type.
            places: (M,) which of the B * K masks are meant; by default all.

        Returns:
            (M, C) one feature for each instance.

        Raises:
            InputError: If the features don't fit the masks, or masks are NaN, infinite or negative
                (seen on a CPU, as in `collate_views`, and not on a GPU, which would have to be
                waited for).
        """
        if masks.ndim != 4:
            raise InputError(f'masks must be (B, K, h, w), got {tuple(masks.shape)}')
        try:
            check_masks(masks)
        except ValueError as error:
            raise InputError(str(error)) from None
        maps = self.feature_map(features, (masks.shape[-2], masks.shape[-1]))
        if len(maps) != len(masks):
            raise InputError(f'masks of {len(masks)} images and features of {len(maps)}')
        if maps.device != masks.device:
            raise InputError(
                f'the masks lie on {masks.device} and the features on {maps.device}: move the '
                'batch (ViewBatch.to)'
            )
        return pool_instances(maps, masks, places)

    def feature_map(self, features: Any, grid: tuple[int, int]) -> Tensor:
        """Return a backbone's output as (B, C, h, w).

        Args:
            features: What the backbone gave.
            grid: (h, w) of the masks.

        Raises:
            InputError: If it has no such grid, or more than one reading.
        """
        for name in ('last_hidden_state', 'feature_maps'):
            features = getattr(features, name, features)
        if isinstance(features, Mapping):
            features = features.get('x_norm_patchtokens', features)
        if isinstance(features, Sequence) and features:
            features = features[-1]
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise InputError(
                'InstancePool needs a map (B, C, h, w), (B, h, w, C) or tokens (B, N, C): '
                "leave out the backbone's own pooling (in timm, call forward_features)"
            )
        if not features.is_floating_point():
            raise InputError(f'features are of type {features.dtype}, not floating point')
        if features.ndim == 3:
            if self.layout not in ('auto', 'tokens'):
                raise InputError(f'the features are tokens, not {self.layout}')
            return self._of_tokens(features, grid)
        first, last = tuple(features.shape[2:]) == grid, tuple(features.shape[1:3]) == grid
        layout = self.layout
        if layout == 'tokens':
            raise InputError(f'the features {tuple(features.shape)} are a map, not tokens')
        # On a grid of 1x1 a mask is the whole image, whatever the map's grid.
        if layout != 'auto' and grid != (1, 1) and not (first if layout == 'nchw' else last):
            raise InputError(
                f'masks on a {grid[0]}x{grid[1]} grid and features {tuple(features.shape)}, read '
                f'as {layout}: the grid of the masks is an argument of StoreDataset'
            )
        if layout == 'auto':
            if first == last:
                shape = 'x'.join(map(str, features.shape[1:]))
                fault = 'could be read both ways: name the layout' if first else 'has no such grid'
                raise InputError(
                    f'masks on a {grid[0]}x{grid[1]} grid and features {shape}: it {fault}; the '
                    'grid of the masks is an argument of StoreDataset'
                )
            layout = 'nchw' if first else 'nhwc'
        return features.permute(0, 3, 1, 2) if layout == 'nhwc' else features

    def _of_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) as (B, C, h, w)."""
        count, cells = tokens.shape[1], math.prod(grid)
        prefix = count - cells
        asked = self.prefix_tokens
        # A square grid of other patches would fit as well, and be pooled without an error.
        others = [
            side
            for before in _PREFIXES
            if before < prefix and (side := math.isqrt(count - before)) ** 2 == count - before
        ]
        if prefix not in _PREFIXES if asked is None else prefix != asked:
            raise InputError(
                f'{count} tokens do not fit masks on a {grid[0]}x{grid[1]} grid: the grid of the '
                'masks is an argument of StoreDataset, and prefix_tokens says how many tokens come '
                'before those of the patches'
            )
        if asked is None and others:
            raise InputError(
                f'{count} tokens could be a grid of {grid[0]}x{grid[1]}, as the masks have, or of '
                f'{others[0]}x{others[0]}: say by prefix_tokens how many come before the patches'
            )
        return tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)
