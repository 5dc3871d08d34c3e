"""Sharper masks from what is there anyway: the model's self-attention, or the image itself.

Two ways, alone or one after the other. `propagate` passes a mask on from each pixel to those
that attend to it, as DiffSegmenter (Wang et al., 2023) and Dataset Diffusion (Nguyen et al.,
NeurIPS 2023) do; the recorder sums the self-attention while the model runs. `dense_crf`
draws a mask's edges where the image has edges (Krähenbühl & Koltun, NeurIPS 2011), with which the
paper binarises the masks of its table 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from freeatm_mm.attention.parts import whole_number
from freeatm_mm.ops.masks import THRESHOLD

__all__ = ['dense_crf', 'propagate']

MAX_PROPAGATE = 1000
"""Times to propagate; long before, every pixel has the mean of all."""
MAX_CRF_PIXELS = 96 * 96
"""Pixels of the largest mask for `dense_crf`, whose matrix then takes 324 MiB."""
_SURE = 1e-4  # a mask's certainty before the CRF: no pixel is beyond changing its label


def propagate(maps: Tensor, affinity: Tensor, times: int = 1) -> Tensor:
    """Give each pixel the mean of the map over what it attends to, so often.

    Objects attend to themselves, so holes fill and strays outside fade. As an average over other
    pixels it never leaves the map's range, and as a linear operation it may come before or after
    the mean over layers and steps.

    Args:
        maps: Shape (..., K, h, w), of K nouns.
        affinity: Shape (..., h * w, h * w); each row is what a pixel attends to and sums to 1.
        times: How often, up to 1000; 0 changes nothing.

    Returns:
        The maps, same shape.

    Raises:
        ValueError: If the shapes don't fit, or ``times`` is out of range.
    """
    pixels = maps.shape[-2] * maps.shape[-1]
    whole_number(times, 'the times to propagate', 0, MAX_PROPAGATE)
    if affinity.shape[-2:] != (pixels, pixels):
        raise ValueError(
            f'maps of {maps.shape[-2]}x{maps.shape[-1]} need an affinity of shape '
            f'(..., {pixels}, {pixels}), got {tuple(affinity.shape)}'
        )
    flat = maps.flatten(-2)
    for _ in range(times):
        flat = flat @ affinity.transpose(-1, -2)
    return flat.unflatten(-1, maps.shape[-2:])


def dense_crf(
    masks: np.ndarray | Tensor,
    image: np.ndarray,
    *,
    threshold: float = THRESHOLD,
    appearance: float = 10.0,
    position: float = 0.16,
    colour: float = 13.0,
    smoothness: float = 3.0,
    distance: float = 1.0,
    iterations: int = 10,
) -> np.ndarray:
    """Move the edges of soft masks to edges of the image: mean field of a dense CRF.

    Each noun is a CRF of its own with the labels object and background; nouns may overlap. Every
    pair of pixels is joined, and every message is computed, where the usual implementations
    approximate: at a mask's resolution that takes one matrix product. The energy (equations 1 to 3
    of Krähenbühl & Koltun, 2011, with the Potts model) is::

        E(x) = sum_i -log p_i(x_i) + sum_{i<j} [x_i != x_j] k_ij
        k_ij = appearance * a_ij + smoothness * s_ij
        a_ij = exp(-|position_i - position_j|^2 / 2 position^2 - |rgb_i - rgb_j|^2 / 2 colour^2)
        s_ij = exp(-|position_i - position_j|^2 / 2 distance^2)

    where a and s are each divided by the square root of their row's and their column's sum, so that
    the weights don't depend on the number of pixels. ``p`` is the mask, shifted so that a pixel at
    the threshold is undecided; the result is shifted back, so that the same threshold binarises
    the masks before and after.

    Args:
        masks: Shape (K, h, w), in [0, 1], for example from `masks.minmax`. At most 96x96.
        image: uint8, shape (H, W, 3); resized to the masks' size by area averaging.
        threshold: Where the masks will be binarised, in (0, 1).
        appearance: Weight of "near and of one colour: one label".
        position: How near, as a share of the masks' shorter side.
        colour: How alike, in levels of 255.
        smoothness: Weight of "side by side: one label".
        distance: How near side by side is, in mask pixels.
        iterations: Rounds of the mean field.

    Returns:
        float32, shape (K, h, w), in (0, 1).

    Raises:
        ValueError: If a mask leaves [0, 1], is too large, the image isn't uint8 RGB, or a number
            is out of range.
    """
    soft = torch.as_tensor(masks, dtype=torch.float64)
    image = np.asarray(image)
    if soft.ndim != 3 or not bool(((soft >= 0) & (soft <= 1)).all()):
        raise ValueError(
            'dense_crf needs masks of shape (K, h, w) in [0, 1], got shape '
            f'{tuple(soft.shape)}; call minmax first'
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            'dense_crf needs an image of shape (H, W, 3) in uint8, got '
            f'{image.shape} in {image.dtype}'
        )
    if not 0 < threshold < 1:
        raise ValueError(f'dense_crf needs a threshold between 0 and 1, got {threshold}')
    whole_number(iterations, 'iterations', 0, MAX_PROPAGATE)
    for name, value, least in (
        ('appearance', appearance, 0),
        ('smoothness', smoothness, 0),
        ('position', position, 1e-6),
        ('colour', colour, 1e-6),
        ('distance', distance, 1e-6),
    ):
        if not least <= value <= 1e6:
            raise ValueError(f'dense_crf needs {name} from {least} to 1e6, got {value}')
    count, height, width = soft.shape
    if height * width > MAX_CRF_PIXELS:
        raise ValueError(
            f'dense_crf joins every pixel with every other, and {height}x{width} '
            f'are too many: resize the masks to at most {MAX_CRF_PIXELS} pixels'
        )
    shift = float(torch.logit(torch.tensor(threshold, dtype=torch.float64)))
    unary = (torch.logit(soft.reshape(count, height * width), _SURE) - shift).float()
    pixels = F.interpolate(
        torch.tensor(image).permute(2, 0, 1)[None].float(), size=(height, width), mode='area'
    )[0]
    pairwise = _pairwise(
        pixels, position * min(height, width), colour, distance, (appearance, smoothness)
    )
    label = torch.sigmoid(unary)
    for _ in range(iterations):
        # With two labels, what a neighbour says for the one less what it says against it is
        # k_ij * (q_j - (1 - q_j)). The matrix is symmetric.
        logits = unary + (2 * label - 1) @ pairwise
        label = torch.sigmoid(logits)
    if iterations == 0:
        logits = unary
    return torch.sigmoid(logits + shift).reshape(count, height, width).numpy()


def _pairwise(
    pixels: Tensor, position: float, colour: float, distance: float, weights: Sequence[float]
) -> Tensor:
    """The weighted and normalised kernels of all pairs of pixels, (h * w, h * w), zero diagonal."""
    height, width = pixels.shape[-2:]
    places = (
        torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij'))
        .flatten(1)
        .T.float()
    )
    near = torch.cdist(places, places, compute_mode='donot_use_mm_for_euclid_dist') ** 2
    rgb = pixels.flatten(1).T
    alike = torch.cdist(rgb, rgb, compute_mode='donot_use_mm_for_euclid_dist') ** 2
    total = torch.zeros_like(near)
    for weight, exponent in (
        (weights[0], near / (2 * position**2) + alike / (2 * colour**2)),
        (weights[1], near / (2 * distance**2)),
    ):
        kernel = (-exponent).exp().fill_diagonal_(0)
        # A pixel like no other has no neighbours, and gets no message.
        norm = kernel.sum(1).clamp_min(1e-12).rsqrt()
        total += weight * norm[:, None] * kernel * norm
    return total
