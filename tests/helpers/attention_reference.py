"""Attention maps the slow and plain way, to measure the recorder against.

The pipeline runs a second time with diffusers' unfused processors, whose
``get_attention_scores`` gives the whole softmax; everything after that is numpy.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np


@contextmanager
def explicit_attention(pipe):
    """Collects ``(module name, probabilities (batch, heads, N, K))`` of all text attention."""
    from diffusers.models.attention_processor import AttnAddedKVProcessor, AttnProcessor

    unet, seen, patched = pipe.unet, [], []
    stock = dict(unet.attn_processors)

    def wrap(name, module):
        scores = module.get_attention_scores

        def get_attention_scores(query, key, attention_mask=None):
            probabilities = scores(query, key, attention_mask)
            if key.shape[1] == query.shape[1] and name.endswith('.attn1'):
                return probabilities  # pixels to pixels
            seen.append(
                (
                    name,
                    probabilities.detach()
                    .float()
                    .numpy()
                    .reshape(-1, module.heads, *probabilities.shape[1:]),
                )
            )
            return probabilities

        module.get_attention_scores = get_attention_scores
        patched.append(module)

    for name, module in unet.named_modules():
        if name.endswith(('.attn1', '.attn2')) or getattr(module, 'add_k_proj', None) is not None:
            wrap(name, module)
    unet.set_attn_processor(
        {
            name: AttnAddedKVProcessor()
            if 'AddedKV' in type(processor).__name__
            else AttnProcessor()
            for name, processor in stock.items()
        }
    )
    try:
        yield seen
    finally:
        unet.set_attn_processor(stock)
        for module in patched:
            del module.get_attention_scores


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarges a plane with half-pixel centres, one output pixel at a time."""
    height, width = image.shape
    result = np.zeros(size, np.float64)
    for row in range(size[0]):
        y = min(max((row + 0.5) * height / size[0] - 0.5, 0), height - 1)
        top = int(y)
        bottom = min(top + 1, height - 1)
        for column in range(size[1]):
            x = min(max((column + 0.5) * width / size[1] - 0.5, 0), width - 1)
            left = int(x)
            right = min(left + 1, width - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            result[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return result


def mean_map(
    seen,
    row: int,
    tokens,
    size: tuple[int, int],
    text_keys: int | None = None,
    keep=lambda name: True,
) -> np.ndarray:
    """The paper's mask of one noun: mean over heads, tokens, layers and steps, in float64.

    Args:
        seen: From `explicit_attention`.
        row: Row of the denoiser's batch.
        tokens: Key columns of the noun.
        size: Height and width of the largest map; smaller ones are it halved.
        text_keys: Renormalise over the first so many keys.
        keep: Which modules count.
    """
    maps = []
    for name, probabilities in seen:
        if not keep(name):
            continue
        attention = probabilities[row].astype(np.float64)
        if text_keys is not None:
            attention = attention[..., :text_keys]
            attention = attention / attention.sum(-1, keepdims=True)
        plane = attention[..., list(tokens)].mean((0, 2))
        shrink = round((size[0] * size[1] / plane.size) ** 0.5)
        maps.append(bilinear(plane.reshape(size[0] // shrink, size[1] // shrink), size))
    return np.mean(maps, axis=0)
