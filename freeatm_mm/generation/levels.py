"""Noising images that exist already, and showing them to a pipeline's network.

The noise is that of training: a share of the image and a share of noise for each level of the
schedule that the pipeline's scheduler is configured with, whichever sampler it is. The network is
called by the pipeline itself, with a scheduler in place of its own that hands out the noised image
of one level after the other and ignores what the network says. So text encoders, packing, added
conditions and sizes are those of generating, for every family alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freeatm_mm.attention.families import Latents, call_names, call_parameters, find_family
from freeatm_mm.attention.families.latents import WANTS_AN_IMAGE
from freeatm_mm.generation.calls import scheduler_of

__all__ = ['NoiseLevels', 'ShownImages', 'check_can_show']

#: Proportions beyond which an image is squeezed.
MOST_ELONGATED = 4.0
#: Arguments of a call by which a pipeline is given an image or a mask of its own.
_IMAGE_ARGUMENTS = ('image', 'control_image', 'mask_image', 'masked_image_latents', 'source_image')


class NoiseLevels:
    """Levels of the noise that a network was trained with.

    Args:
        scheduler: A scheduler with the network's own settings.
        levels: The levels, as timesteps of training: 0 is (almost) no noise and
            ``num_train_timesteps`` noise alone. For flow matching, a thousandth of a level (where
            there are 1,000) is the share of noise.

    Raises:
        ValueError: If a level lies outside the schedule, or the scheduler's settings say neither
            betas nor flow matching.
    """

    def __init__(self, scheduler: Any, levels: Sequence[int]) -> None:
        config = scheduler.config
        count = config.get('num_train_timesteps')
        name = type(scheduler).__name__
        flow = (
            'FlowMatch' in name
            or config.get('use_flow_sigmas', False)
            or config.get('prediction_type') == 'flow_prediction'
        )
        if type(count) is not int or not (flow or 'beta_schedule' in config):
            raise ValueError(
                f'the noise that the network was trained with is unknown: {name} has no schedule '
                'of betas and is not for flow matching'
            )
        low, high = (1, count) if flow else (0, count - 1)
        if not levels:
            raise ValueError('give at least one noise level')
        for level in levels:
            if type(level) is not int or not low <= level <= high:
                raise ValueError(
                    f'the noise level {level} lies outside the schedule of {name}: levels are '
                    f'whole numbers from {low} to {high}'
                )
        if len(set(levels)) < len(levels):
            raise ValueError(f'the noise levels {list(levels)} name one more than once')
        self.levels = tuple(levels)
        if flow:
            self.timesteps = torch.tensor(levels, dtype=torch.float32)
            noise = self.timesteps / count
            self._shares = torch.stack([1 - noise, noise], dim=1)
        else:
            from diffusers import DDPMScheduler

            self.timesteps = torch.tensor(levels)
            kept = DDPMScheduler.from_config(config).alphas_cumprod[self.timesteps]
            self._shares = torch.stack([kept, 1 - kept], dim=1).sqrt()

    def noised(self, clean: Tensor, noise: Tensor, number: int) -> Tensor:
        """Mix an image and noise of its shape, as at level `number` of those given."""
        kept, added = self._shares[number].tolist()
        return kept * clean + added * noise


class _Step(NamedTuple):
    """What a sampler returns; some say what they take for the image besides."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class _HandingOut:
    """Stands in for a pipeline's scheduler: the next noised image, whatever the network said."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, own: Any, timesteps: Tensor, noised: Sequence[Tensor]) -> None:
        self.own, self.config = own, own.config
        self.timesteps = timesteps
        self.sigmas = torch.cat([timesteps.float() / 1000, torch.zeros(1)])
        self._noised, self._place = noised, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        **_: Any,
    ) -> None:
        self.timesteps = self.timesteps.to(device)
        self.num_inference_steps = len(self.timesteps)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Nothing to begin: levels come in their order."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        # Also the way in where a call takes no latents.
        return self._noised[self._place].to(sample)

    def step(
        self, model_output: Any, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any
    ) -> _Step:
        self._place = min(self._place + 1, len(self._noised) - 1)
        shown = self._noised[self._place].to(sample)
        return _Step(shown, shown)


def check_can_show(pipe: Any) -> Latents:
    """Refuse a pipeline that can't be shown an image in this way.

    Returns:
        How it takes one.

    Raises:
        ValueError: If its family is unknown or can't be shown images, if it needs an image of its
            own, or if there is no way into its latents.
    """
    name = type(pipe).__name__
    family = find_family(pipe)
    if isinstance(family.latents, str):
        raise ValueError(
            f"{name} can't look at images that exist: {family.latents}; use the text-to-image "
            'pipeline of another family'
        )
    parameters = call_parameters(type(pipe))
    own = [argument for argument in _IMAGE_ARGUMENTS if argument in parameters]
    if own and not (own == ['image'] and family.latents.image_is_optional):
        raise ValueError(
            f"{name} can't look at images that exist: {WANTS_AN_IMAGE} ({own[0]}); give the "
            'text-to-image pipeline of the same weights'
        )
    if getattr(pipe, 'prior', None) is not None:
        raise ValueError(
            f"{name} can't look at images that exist: its prior generates anew what it goes by "
            'beside the text; use a pipeline without a prior'
        )
    if not hasattr(pipe, call_names(pipe).scheduler):
        raise ValueError(f'{name} has no scheduler that can be stood in for')
    vae = getattr(pipe, family.latents.vae, None) if family.latents.vae else None
    if family.latents.vae and ('latents' not in parameters or not hasattr(vae, 'encode')):
        raise ValueError(
            f'{name} has no VAE that encodes images into the latents that its call takes, so it '
            "can't look at images that exist"
        )
    return family.latents


class ShownImages:
    """Shows images to the network of a pipeline.

    Args:
        pipe: The pipeline.
        levels: The noise levels, as timesteps of training.
        size: Side of a square with as many pixels as the network shall see; the default is what
            the pipeline generates.

    Attributes:
        size: That side in pixels.

    Raises:
        ValueError: If the pipeline can't be shown images, its size isn't known, or a level lies
            outside its schedule.
    """

    def __init__(self, pipe: Any, levels: Sequence[int], size: int | None = None) -> None:
        self._latents = check_can_show(pipe)
        self.pipe = pipe
        self.levels = NoiseLevels(scheduler_of(pipe), levels)
        factor = int(getattr(pipe, 'vae_scale_factor', 8)) if self._latents.vae else 1
        config = getattr(pipe, find_family(pipe).denoiser).config
        blocks = config.get('down_block_types')
        #: What sides have to be divisible by.
        self.multiple = factor * (
            2 ** (len(blocks) - 1) if blocks else 2 * max(1, int(_first(config.get('patch_size'))))
        )
        name = type(pipe).__name__
        if self._latents.chosen_sizes:
            if size is not None:
                raise ValueError(f'{name} generates at sizes of its own choice: leave the size out')
            height, width = self._latents.generated_size(pipe, 1024, 1024)
            size = math.isqrt(height * width)
        if size is None:
            size = _own_size(pipe, config, factor)
        if size < self.multiple:
            raise ValueError(
                f'images of {size} pixels a side are too small for {name}, which needs '
                f'{self.multiple} at least'
            )
        self.size = size - size % self.multiple

    def seen(self, width: int, height: int) -> tuple[int, int]:
        """Height and width at which the network sees an image of this width and height.

        The whole image is seen, and as many pixels as a square of side `size` has: in the
        image's own proportions, except that each side is rounded to a multiple (an eighth of the
        square's, or what the network needs), and that one side is at most four times the other.
        A pipeline that generates at sizes of its own choice sees the one that it makes of that.
        """
        ratio = min(max(width / height, 1 / MOST_ELONGATED), MOST_ELONGATED)
        unit = self.multiple * max(1, round(self.size / 8 / self.multiple))

        def rounded(side: float) -> int:
            return max(unit, unit * round(side / unit))

        found = self.size, self.size
        if ratio != 1:
            found = rounded(self.size / ratio**0.5), rounded(self.size * ratio**0.5)
        # Until the pipeline leaves the size as it is; it only ever rounds sides down once.
        while (generated := self._latents.generated_size(self.pipe, *found)) != found:
            found = generated
        return found

    @torch.no_grad()
    def show(
        self,
        images: Tensor,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        options: dict[str, Any],
    ) -> None:
        """Call the network once for each level.

        Args:
            images: float32 (B, 3, h, w), from -1 to 1; h and w as `seen` returns them.
            prompts: What the images show, B.
            generators: The noise of each image comes from its own.
            options: Further arguments of the pipeline's call.
        """
        pipe = self.pipe
        device, dtype = pipe._execution_device, _dtype_of(pipe)
        taken = self._latents
        clean = _encoded(pipe, taken, images.to(device)).float()
        noised = []
        for number in range(len(self.levels.levels)):
            # From the CPU, the same on every device.
            noise = torch.stack(
                [torch.randn(clean.shape[1:], generator=generator) for generator in generators]
            )
            noise = noise.to(device) * taken.noise(pipe)
            mixed = self.levels.noised(clean, noise, number).to(dtype)
            noised.append(taken.packed(pipe, mixed))
            if not number:
                first = noised[0] if taken.given is None else taken.given(pipe, mixed)
        options = dict(options)
        options |= {'height': images.shape[2], 'width': images.shape[3]}
        parameters = call_parameters(type(pipe))
        options['output_type'] = 'latent' if taken.vae else 'pt'
        if 'latents' in parameters:
            options['latents'] = first
        if 'generator' in parameters:  # for what else is random, so that it is the same each time
            options['generator'] = list(generators)
        with _standing_in(pipe, self.levels.timesteps, noised):
            pipe(prompt=list(prompts), **options)


@contextmanager
def _standing_in(pipe: Any, timesteps: Tensor, noised: Sequence[Tensor]) -> Iterator[None]:
    name = call_names(pipe).scheduler
    own = getattr(pipe, name)
    # Past the pipeline's own __setattr__, which would write the class into its config.
    object.__setattr__(pipe, name, _HandingOut(own, timesteps, noised))
    try:
        yield
    finally:
        object.__setattr__(pipe, name, own)


def _own_size(pipe: Any, config: Any, factor: int) -> int:
    """The side of a square with as many pixels as a pipeline generates by itself.

    Raises:
        ValueError: If it doesn't say so.
    """
    side = getattr(pipe, 'default_sample_size', None) or config.get('sample_size')
    if side is not None:
        return int(_first(side)) * factor
    parameters = call_parameters(type(pipe))
    sides = [parameters[name].default for name in ('height', 'width') if name in parameters]
    if len(sides) == 2 and all(isinstance(side, int) for side in sides):
        return math.isqrt(math.prod(sides))
    raise ValueError(f"{type(pipe).__name__} doesn't say at which size it generates: give the size")


def _encoded(pipe: Any, taken: Latents, images: Tensor) -> Tensor:
    """The latents of images, without the noise of the VAE's own distribution; or the images."""
    if not taken.vae:
        return images
    vae = getattr(pipe, taken.vae)
    own_dtype = vae.dtype
    upcast = own_dtype == torch.float16 and vae.config.get('force_upcast', False)
    if upcast:
        vae.to(torch.float32)
    try:
        if taken.alpha:
            images = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
        found = vae.encode((images.unsqueeze(2) if taken.frames else images).to(vae.dtype))
    finally:
        if upcast:
            vae.to(own_dtype)
    distribution = getattr(found, 'latent_dist', None)
    if distribution is not None:
        latents = distribution.mode()
    else:
        latents = found.latent if hasattr(found, 'latent') else found.latents
    return taken.scaled(pipe, latents)


def _dtype_of(pipe: Any) -> torch.dtype:
    for name in ('transformer', 'unet'):
        part = getattr(pipe, name, None)
        if part is not None:
            return part.dtype
    return pipe.dtype


def _first(value: Any) -> Any:
    if value is None:
        return 1
    return value[0] if isinstance(value, (list, tuple)) else value
