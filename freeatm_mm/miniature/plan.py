"""How the miniature generator is trained; apart from the training, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ['ARCHITECTURES', 'GeneratorPlan']

ARCHITECTURES = ('unet', 'mmdit')
"""Denoisers: Stable Diffusion's UNet, or Stable Diffusion 3's transformer of text and image."""


def _option(default: Any, text: str) -> Any:
    """A field whose metadata holds its explanation, the help of the option of that name."""
    return field(default=default, metadata={'help': text})


@dataclass(frozen=True)
class GeneratorPlan:
    """How long and on how much to train; each field's `metadata['help']` explains it."""

    scenes: int = _option(60_000, 'scenes composed from the training split')
    vae_samples: int = _option(80_000, 'images that the autoencoder sees')
    unet_samples: int = _option(240_000, 'latents that the denoiser sees; 0 leaves it as it is')
    vae_batch_size: int = _option(16, 'images a step')
    unet_batch_size: int = _option(64, 'latents a step')
    vae_lr: float = _option(2e-3, 'peak learning rate of the autoencoder (Adam, cosine)')
    unet_lr: float = _option(
        1e-3,
        'peak learning rate of denoiser and text models (Muon for matrices and kernels, AdamW for '
        'the rest; cosine, 2 percent warm-up)',
    )
    seed: int = _option(0, 'seed of scenes, weights, noise and order')
    start_from: str = _option(
        '',
        'folder of a finished generator to go on from, whose encoder is kept as it is; of one with '
        'another denoiser autoencoder and text model are taken; random weights if not given',
    )
    decoder_samples: int = _option(
        0,
        "random crops to train the autoencoder's decoder on alone, for sharper images: the "
        'latents, and so what the UNet has learned, stay as they are; only with --start-from',
    )
    decoder_lr: float = _option(1e-3, 'peak learning rate of the decoder (as of the UNet)')
    architecture: str = _option(
        'unet',
        "the denoiser: 'unet' as in Stable Diffusion, which learns v-prediction, or 'mmdit' as in "
        'Stable Diffusion 3, which learns flow matching',
    )

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f'architecture must be one of {ARCHITECTURES}, got {self.architecture!r}'
            )
