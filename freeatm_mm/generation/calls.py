"""How any text-to-image pipeline is called: what it is told, and what its output says."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from freeatm_mm.attention.families import call_names, call_parameters
from freeatm_mm.attention.recording import generated_images

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = [
    'SamplingDefaults',
    'check_negative_prompt',
    'hidden_images',
    'quiet',
    'sampling_defaults',
    'sampling_options',
    'scheduler_of',
]

#: Longer negative prompts are refused.
_MOST_NEGATIVE = 10_000


class SamplingDefaults(NamedTuple):
    """Steps and guidance scale for who names none.

    Args:
        steps: Denoising steps.
        guidance: Guidance scale.
        reason: What the pipeline was recognised by, where it is a few-step model.
    """

    steps: int = 50
    guidance: float = 7.5
    reason: str | None = None

    def chosen(self, steps: int | None, guidance: float | None) -> str | None:
        """Return in words what a few-step model gets that nobody named; `None` if nothing."""
        values = [
            f'{name} {value:g}'
            for name, given, value in (
                ('steps', steps, self.steps),
                ('guidance', guidance, self.guidance),
            )
            if given is None
        ]
        if not (self.reason and values):
            return None
        return f'{self.reason}: {", ".join(values)} (the default of such models)'


def sampling_defaults(pipe: DiffusionPipeline) -> SamplingDefaults:
    """Return the steps and the guidance scale that a pipeline was made for.

    A model that was distilled to generate in a few steps is recognised by its class, its scheduler
    or its configs. Its defaults are those that its authors name; all others have 50 steps and 7.5.
    """
    kind = type(pipe).__name__
    scheduler = getattr(pipe, call_names(pipe).scheduler, None)
    sampler, noise = type(scheduler).__name__, getattr(scheduler, 'config', {})
    transformer = getattr(getattr(pipe, 'transformer', None), 'config', {})
    unet = getattr(getattr(pipe, 'unet', None), 'config', {})
    if kind.startswith('SanaSprint'):
        return SamplingDefaults(2, 4.5, f'{kind} (Sana Sprint)')
    if kind.startswith('LatentConsistencyModel') or sampler == 'LCMScheduler':
        reason = f'{kind} with {sampler} (a latent consistency model)'
        # Without an input for it, guidance isn't in the network but a second pass beside it.
        return SamplingDefaults(4, 8.0 if unet.get('time_cond_proj_dim') else 1.0, reason)
    if (
        kind.startswith('Flux')
        and transformer.get('guidance_embeds') is False
        and noise.get('use_dynamic_shifting') is False
    ):
        reason = f'{kind} without guidance and dynamic shifting (FLUX.1 schnell)'
        return SamplingDefaults(4, 0.0, reason)
    if (
        kind.startswith('StableDiffusion')
        and sampler in ('EulerDiscreteScheduler', 'EulerAncestralDiscreteScheduler')
        and noise.get('timestep_spacing') == 'trailing'
        and noise.get('prediction_type') == 'epsilon'
        and not noise.get('rescale_betas_zero_snr')
        and unet.get('sample_size') == 64
    ):
        reason = f'{kind} with {sampler} and trailing timesteps at 512 pixels (Turbo)'
        return SamplingDefaults(4, 0.0, reason)
    return SamplingDefaults()


def sampling_options(
    pipe: DiffusionPipeline,
    *,
    steps: int,
    guidance: float,
    height: int | None = None,
    width: int | None = None,
) -> dict[str, Any]:
    """How to generate, by the names that a pipeline's call has for it.

    Args:
        pipe: Any text-to-image pipeline.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale, or what the pipeline calls its guidance scale.
        height: Height of the images in pixels, with ``width``; ``None``: the pipeline's own.
        width: Width of the images in pixels.

    Returns:
        Arguments of the pipeline's call. Captions aren't cleaned as if from the web, and images
        are generated at their size rather than at one like it and cut, which would shift the masks.
        Where a component of the pipeline holds the guidance scale, it is set there.

    Raises:
        ValueError: If the pipeline's call has no name for something asked.
    """
    parameters = call_parameters(type(pipe))
    names = call_names(pipe)
    options: dict[str, Any] = {}

    def add(value: Any, what: str, *arguments: str) -> None:
        known = [argument for argument in arguments if argument in parameters]
        if not known:
            raise ValueError(
                f"{type(pipe).__name__} can't be told the {what}: its call has no argument "
                f'{" or ".join(arguments)}'
            )
        options[known[0]] = value

    add(steps, 'number of steps', *names.steps)
    add(guidance, 'guidance scale', *names.guidance)
    for attribute in names.guiders:
        guider = getattr(pipe, attribute, None)
        if guider is not None:
            setattr(pipe, attribute, guider.new(guidance_scale=guidance))
    if height is not None or width is not None:
        add(height, 'height', 'height')
        add(width, 'width', 'width')
    for switch in ('clean_caption', 'use_resolution_binning'):
        if switch in parameters:
            options[switch] = False
    return options | {name: value for name, value in names.always.items() if name in parameters}


def scheduler_of(pipe: DiffusionPipeline, kind: type[Any] | None = None) -> Any:
    """Return the scheduler of the network that generates.

    Args:
        pipe: Any text-to-image pipeline.
        kind: Put one of this class in its place first, with its settings.
    """
    names = call_names(pipe)
    own = getattr(pipe, names.scheduler)
    if kind is None or type(own) is kind:
        return own
    other = kind.from_config(own.config)
    setattr(pipe, names.scheduler, other)
    inner: Any = getattr(pipe, names.inner, None)
    if hasattr(inner, 'scheduler'):
        inner.scheduler = other
    return other


def check_negative_prompt(pipeline: Any, text: str, guidance: float, cascade: bool) -> None:
    """Refuse a negative prompt that would have no effect.

    Raises:
        ValueError: Saying why it would have none.
    """
    kind = type(pipeline).__name__
    parameters = call_parameters(type(pipeline))
    if not isinstance(text, str) or len(text) > _MOST_NEGATIVE:
        raise ValueError(f'negative_prompt must be a text of at most {_MOST_NEGATIVE} characters')
    if cascade or 'negative_prompt' not in parameters:
        raise ValueError(f'{"a cascade" if cascade else kind} takes no negative prompt here')
    if 'true_cfg_scale' in parameters and 'true_cfg_scale' not in call_names(pipeline).guidance:
        raise ValueError(
            f'{kind} follows a negative prompt by true_cfg_scale alone, not by guidance'
        )
    unet = getattr(pipeline, 'unet', None)
    if unet is not None and unet.config.get('time_cond_proj_dim') is not None:
        raise ValueError(
            f'a negative prompt has no effect in this {kind}: guidance is an input of its U-Net'
        )
    if guidance <= 1:
        raise ValueError(f'a negative prompt needs guidance above 1, got {guidance}')


@contextmanager
def quiet(pipes: Sequence[Any]) -> Iterator[None]:
    """Keep the pipelines' own bars, and what they say of every long prompt, off the screen."""
    before = [getattr(pipe, '_progress_bar_config', {}) for pipe in pipes]
    handlers = [
        handler
        for name in ('diffusers', 'transformers')
        for handler in logging.getLogger(name).handlers
    ]
    for pipe, config in zip(pipes, before):
        pipe.set_progress_bar_config(**config | {'disable': True})
    for handler in handlers:
        handler.addFilter(_says_more)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_says_more)
        for pipe, config in zip(pipes, before):
            pipe.set_progress_bar_config(**config)


def _says_more(record: logging.LogRecord) -> bool:
    """Whether a message isn't about a prompt that is too long: `cut_prompts` counts these."""
    text = record.getMessage()
    return not ('part of your input was truncated' in text or 'sequence length is longer' in text)


def hidden_images(pipeline: DiffusionPipeline, output: Any) -> list[bool]:
    """Which images the safety checker blacked out."""
    for name in ('nsfw_content_detected', 'nsfw_detected'):
        found = getattr(output, name, None)
        if found is not None:
            return [bool(value) for value in found]
    images = generated_images(output)
    if getattr(pipeline, 'safety_checker', None) is None:
        return [False] * len(images)
    return [image.convert('L').getextrema() == (0, 0) for image in images]
