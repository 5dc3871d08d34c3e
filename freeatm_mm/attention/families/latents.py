"""How pipelines take an image that exists: what a row can say, and what several rows share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = [
    'WANTS_AN_IMAGE',
    'Latents',
    'as_given',
    'as_made',
    'batch_normed',
    'flat',
    'pack',
    'scaled',
    'scaled_alone',
    'without_frames',
]

WANTS_AN_IMAGE = 'its pipelines generate from an image of their own'
"""Why a family that changes images isn't shown others."""


def as_given(pipe: Any, latents: Tensor) -> Tensor:
    """Latents as they are."""
    return latents


def as_made(pipe: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width as they are."""
    return height, width


def scaled(pipe: Any, latents: Tensor) -> Tensor:
    """Latents with the mean and the deviation, or the shift and the factor, of the VAE's config."""
    config = pipe.vae.config
    shape = (1, -1) + (1,) * (latents.ndim - 2)
    mean, std = (config.get(name) for name in ('latents_mean', 'latents_std'))
    if mean is not None and std is not None:
        mean, std = (latents.new_tensor(value).view(shape) for value in (mean, std))
        latents = (latents - mean) / std
    return (latents - (config.get('shift_factor') or 0)) * (config.get('scaling_factor') or 1)


def scaled_alone(pipe: Any, latents: Tensor) -> Tensor:
    """Latents with the factor of the VAE's config; its shift, if it has one, isn't used."""
    return latents * pipe.vae.config.scaling_factor


def batch_normed(pipe: Any, latents: Tensor, epsilon: float | None = None) -> Tensor:
    """Latents in patches of 2x2, normalised by the VAE's own statistics: Flux.2 and its kin.

    Args:
        pipe: The pipeline.
        latents: Shape (B, C, h, w).
        epsilon: Added to the variance; the default is that of the VAE's config.

    Returns:
        Shape (B, 4 * C, h / 2, w / 2).
    """
    vae = pipe.vae
    if epsilon is None:
        epsilon = vae.config.batch_norm_eps
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = (vae.bn.running_var.view(1, -1, 1, 1) + epsilon).sqrt()
    return (pipe._patchify_latents(latents) - mean.to(latents)) / std.to(latents)


def without_frames(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) of one frame (B, C, 1, h, w), or as they are."""
    return latents.squeeze(2) if latents.ndim == 5 else latents


def flat(pipe: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as a sequence (B, h * w, C)."""
    return latents.flatten(2).transpose(1, 2)


def pack(pipe: Any, latents: Tensor) -> Tensor:
    """Latents as one sequence, where the pipeline has a function for it."""
    latents = without_frames(latents)
    own = getattr(pipe, '_pack_latents', None)
    return latents if own is None else own(latents, *latents.shape)


@dataclass(frozen=True)
class Latents:
    """How the pipelines of a family take an image that exists, as latents of their call.

    Args:
        vae: The attribute with the network that encodes images; empty where the denoiser sees
            pixels.
        frames: Whether that network is one for videos, of which an image is one frame.
        alpha: Whether that network takes images with an alpha channel.
        scaled: ``(pipe, latents) -> latents`` as the denoiser was trained on them, before noise.
        packed: ``(pipe, latents) -> tensor`` as the call denoises them, after noise.
        given: ``(pipe, latents) -> tensor`` as the call takes them, where that differs.
        noise: ``(pipe) -> float``, the deviation of pure noise.
        generated_size: ``(pipe, height, width) -> (height, width)`` at which the call generates
            where it is asked for some size.
        chosen_sizes: Whether the call generates at sizes of its own choice, so that none can be
            asked for.
        image_is_optional: Whether the call takes an image to go by and needs none.
    """

    vae: str = 'vae'
    frames: bool = False
    alpha: bool = False
    scaled: Callable[[Any, Tensor], Tensor] = scaled
    packed: Callable[[Any, Tensor], Tensor] = pack
    given: Callable[[Any, Tensor], Tensor] | None = None
    noise: Callable[[Any], float] = lambda pipe: 1.0
    generated_size: Callable[[Any, int, int], tuple[int, int]] = as_made
    chosen_sizes: bool = False
    image_is_optional: bool = False
