"""DeepFloyd IF: small images first, and further stages that enlarge them.

Stage I (``IFPipeline``) generates 64x64 pixels, stage II (``IFSuperResolutionPipeline``) makes
256x256 of them, stage III (``StableDiffusionUpscalePipeline``) 1024x1024. Stage I encodes the text,
and stage II gets the embeddings; stage III has a text encoder of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from freeatm_mm.attention.families import call_parameters
from freeatm_mm.generation.calls import sampling_options, scheduler_of
from freeatm_mm.generation.pipelines import LoadedPipeline

__all__ = ['STAGE_CLASSES', 'Cascade', 'check_first_stage']

#: The classes of the stages, in order.
STAGE_CLASSES = ('IFPipeline', 'IFSuperResolutionPipeline', 'StableDiffusionUpscalePipeline')
#: How much noise stage III puts on what stage II generated; its own default is for photographs.
UPSCALER_NOISE = 100


def check_first_stage(pipe: Any, height: int | None, width: int | None) -> None:
    """Refuse to generate small images unless these were asked for.

    Raises:
        ValueError: If ``pipe`` is stage I of DeepFloyd IF and the size isn't its own.
    """
    if type(pipe).__name__ != STAGE_CLASSES[0]:
        return
    side = pipe.unet.config.sample_size
    if height is None or width is None or not _fits(side, height, width):
        asked = '' if height is None else f', not {height}x{width}'
        raise ValueError(
            f'IFPipeline is the first stage of a cascade and generates images of '
            f'{side}x{side} pixels{asked}: give the further stages with --stage, or '
            f'--size {side} to have these'
        )


def _fits(side: int, height: int, width: int) -> bool:
    """Whether a network that was trained at a square can generate this size."""
    return min(height, width) == side and max(height, width) <= 2 * side


class Cascade:
    """The stages as one pipeline.

    Args:
        first: Stage I.
        further: Stages II and III, or stage II alone.
        steps: Denoising steps of each further stage; ``None``: the pipelines' own.
        guidance: Guidance scale of each further stage; ``None``: the pipelines' own.
        height: Height in pixels of what the last stage generates; ``None``: what comes of stage I's
            own size.
        width: Width in pixels.

    Attributes:
        pipes: The pipelines, stage I first.
        first_size: Height and width of stage I's images.
        call_options: Arguments of each further stage's call.
        settings: What each further stage generates with, for the records.

    Raises:
        ValueError: If these aren't stages of DeepFloyd IF in their order, or can't generate the
            size.
    """

    def __init__(
        self,
        first: Any,
        further: Sequence[LoadedPipeline],
        *,
        steps: Sequence[int] | None = None,
        guidance: Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        self.pipes = [first, *(stage.pipe for stage in further)]
        found = tuple(type(pipe).__name__ for pipe in self.pipes)
        if found != STAGE_CLASSES[: len(found)]:
            raise ValueError(
                f'the stages of a cascade are {", ".join(STAGE_CLASSES)}, in this '
                f'order, got {", ".join(found)}'
            )
        for name, values in (('stage_steps', steps), ('stage_guidance', guidance)):
            if values is not None and len(values) != len(further):
                raise ValueError(
                    f'{name} must have a number for each of the {len(further)} '
                    f'further stages, got {len(values)}'
                )
        side = first.unet.config.sample_size
        second_side = self.pipes[1].unet.config.sample_size
        last_side = second_side
        if len(self.pipes) == 3:
            last_side *= self.pipes[2].vae_scale_factor
            _share_safety(self.pipes)
        height, width = (last_side, last_side) if height is None else (height, width)
        self.first_size = height * side // last_side, width * side // last_side
        exact = all(value * side % last_side == 0 for value in (height, width))
        if not exact or not _fits(side, *self.first_size):
            raise ValueError(
                f'these stages generate images of {last_side}x{last_side} pixels, or up '
                f'to twice as long, not {height}x{width}'
            )
        self.size = height, width
        self.call_options: list[dict[str, Any]] = []
        self.settings: list[dict[str, Any]] = []
        for number, stage in enumerate(further):
            call = call_parameters(type(stage.pipe))
            own: dict[str, Any] = {
                'steps': call['num_inference_steps'].default if steps is None else steps[number],
                'guidance': call['guidance_scale'].default
                if guidance is None
                else guidance[number],
            }
            options = sampling_options(stage.pipe, **own)
            options['noise_level'] = call['noise_level'].default if number == 0 else UPSCALER_NOISE
            if number == 0:
                options['height'], options['width'] = (
                    value * second_side // side for value in self.first_size
                )
            self.call_options.append(options)
            self.settings.append(
                {
                    'pipeline': stage.name,
                    'revision': stage.revision,
                    'pipeline_class': type(stage.pipe).__name__,
                    'scheduler': type(scheduler_of(stage.pipe)).__name__,
                    **own,
                    'noise_level': options['noise_level'],
                }
            )

    def generate(
        self,
        prompts: list[str],
        generators: Sequence[list[torch.Generator]],
        options: dict[str, Any],
        recorder: AbstractContextManager,
        stage: int,
    ) -> Any:
        """Generate images.

        Args:
            prompts: The prompts.
            generators: For each stage, a generator for each prompt.
            options: Arguments of stage I's call.
            recorder: Entered round one of the stages.
            stage: Which, from 1.

        Returns:
            What the last stage's pipeline returns.
        """
        first = self.pipes[0]
        with recorder if stage == 1 else nullcontext():
            texts = dict(
                zip(
                    ('prompt_embeds', 'negative_prompt_embeds'),
                    first.encode_prompt(prompts, True, clean_caption=options['clean_caption']),
                )
            )
            own = (
                texts
                if options['guidance_scale'] > 1
                else {'prompt_embeds': texts['prompt_embeds']}
            )
            image = first(**own, **options | {'output_type': 'pt'}, generator=generators[0]).images
        last = len(self.pipes) == 2
        with recorder if stage == 2 else nullcontext():
            output = self.pipes[1](
                **texts,
                image=image,
                **self.call_options[0],
                generator=generators[1],
                output_type='pil' if last else 'pt',
            )
        if last:
            return output
        # From 0 to 1: what lies between -1 and 1 is taken for that only if some of it is negative.
        image = (output.images / 2 + 0.5).clamp(0, 1)
        with recorder if stage == 3 else nullcontext():
            return self.pipes[2](
                prompts,
                image=image,
                **self.call_options[1],
                generator=generators[2],
                output_type='pil',
            )


def _share_safety(pipes: Sequence[Any]) -> None:
    """Have the last stage check and mark images as the first ones would; it has no checker."""
    last = pipes[-1]
    for pipe in pipes[:-1]:
        if last.safety_checker is None and pipe.safety_checker is not None:
            last.register_modules(
                safety_checker=pipe.safety_checker, feature_extractor=pipe.feature_extractor
            )
        if last.watermarker is None and pipe.watermarker is not None:
            last.register_modules(watermarker=pipe.watermarker)
