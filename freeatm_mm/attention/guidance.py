"""Which rows of a denoiser's batch generate the prompt, where guidance puts others beside them."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import Tensor, nn

from freeatm_mm.attention.embeddings import EmbeddingWatch, differ, rows_differ
from freeatm_mm.attention.families import Family, argument
from freeatm_mm.attention.targets import Targets
from freeatm_mm.errors import counted

__all__ = ['PromptRows']

_ADVICE = 'give the recorder the same prompts and num_images_per_prompt as the pipeline'


def _is_perturbing(pipe: Any) -> bool:
    """Tell whether a pipeline generates with perturbed-attention guidance at this moment.

    Its processors are in place just while the pipeline's call denoises. Its batch then is (without
    the prompt, with it, perturbed), or without classifier-free guidance (with it, perturbed).
    """
    return bool(getattr(pipe, 'pag_attn_processors', None))


def _is_perturbed(denoiser: nn.Module) -> bool:
    """Tell whether a denoiser has diffusers' processors that perturb, whoever put them there."""
    return any(
        type(getattr(module, 'processor', None)).__name__.startswith('PAG')
        for module in denoiser.modules()
    )


def _prompt_part(family: Family, parts: int, perturbing: bool) -> int | None:
    """Find the part of a batch that generates the prompt.

    Args:
        family: The pipeline's family.
        parts: How many times the images are in the batch, at least twice.
        perturbing: Whether one of them is perturbed.

    Returns:
        The part, counted from 0; `None` if the family's guidance makes no such batch.
    """
    if perturbing:
        return parts - 2 if parts in (2, 3) else None
    further = parts - family.guidance_parts
    if further < 0 or further and not family.further_parts:
        return None
    return 0 if family.conditional_first else family.guidance_parts - 1


class PromptRows:
    """Finds the rows that generate the prompts in each call of a denoiser.

    Args:
        pipe: The pipeline.
        family: Its family.
        targets: What it generates.

    Attributes:
        rows: The rows of the prompts' images in the call that `find` saw last.
    """

    def __init__(self, pipe: Any, family: Family, targets: Targets) -> None:
        self._pipe, self._family, self._targets = pipe, family, targets
        self._images = targets.num_images
        self.rows = slice(0, 0)
        self._perturbed = False
        self._embeddings = EmbeddingWatch()
        self.forget()

    def forget(self) -> None:
        """Let go of what the last call was given."""
        self._texts: list[Any] = []
        self.forget_text()

    def forget_text(self) -> None:
        """Take the next embeddings for those of the prompts, in a run of its own."""
        self._last_sample: Tensor | None = None
        self._last_timestep: Any = None
        self._last_text: Any = None
        self._embeddings.forget()
        # Numbers of rows whose order was checked in this run.
        self._checked: set[int] = set()

    def is_extra_pass(self, module: nn.Module, args: tuple, kwargs: dict, sample: Tensor) -> bool:
        """Tell whether a call doesn't generate the prompt, but something to compare it with.

        Guidance that takes several passes gives them the same images at one noise level. The next
        step is at another level, or of other images: samplers of second order stay at a level.

        Raises:
            ValueError: If another pass isn't known of the family.
        """
        timestep = _call_argument(module, args, kwargs, 'timestep')
        text = _call_argument(module, args, kwargs, 'encoder_hidden_states')
        last_text = self._last_text
        # Values are compared only where the text is another tensor: a comparison waits for the GPU.
        again = (sample is self._last_sample or text is not last_text) and (
            _is_same_level(timestep, self._last_timestep)
            and _is_same_sample(sample, self._last_sample)
        )
        repeated = isinstance(timestep, Tensor) and timestep is self._last_timestep
        self._last_sample, self._last_timestep, self._last_text = sample, timestep, text
        # Skip-layer guidance (SD3) generates the prompt again with some layers left out.
        if kwargs.get('skip_layers') is not None:
            return True
        if self._family.repeated_levels:
            return repeated
        if self._family.two_passes:
            return again
        if again and timestep is not None and differ(text, last_text):
            raise ValueError(
                f'{type(self._pipe).__name__} called its {self._family.denoiser} twice for one '
                'step, with different embeddings, and which of them belong to the prompts is not '
                'known: guide by one batch of both, as the pipelines of diffusers do'
            )
        return False

    def find(self, module: nn.Module, args: tuple, kwargs: dict, sample: Tensor) -> tuple[int, ...]:
        """Find the prompts' rows in a batch.

        Args:
            module: The denoiser.
            args: Its call's arguments.
            kwargs: Those given by name.
            sample: The noisy images of the call.

        Returns:
            Numbers of rows that a module may attend with: those of the batch, or fewer where it
            attends for the first of them apart.

        Raises:
            ValueError: If the batch is not one of these images.
        """
        images, rows = self._images, sample.shape[0]
        given = {name: _call_argument(module, args, kwargs, name) for name in self._family.texts}
        if not self._targets.watches:
            # No text encoder says where a run begins, but each has embeddings of its own.
            texts = list(given.values())
            if len(texts) != len(self._texts) or any(map(operator.is_not, texts, self._texts)):
                self._checked.clear()
            self._texts = texts
        first = rows not in self._checked
        if rows == images:
            if first:
                self._check_images(given, sample)
                self._checked.add(rows)
            self.rows = slice(0, images)
            return (rows,)
        if first:
            self._perturbed = _is_perturbed(module)
        parts, rest = divmod(rows, images)
        perturbing = self._perturbed or _is_perturbing(self._pipe)
        part = None if rest else _prompt_part(self._family, parts, perturbing)
        if part is None:
            guided = self._family.guidance_parts * images
            raise ValueError(
                f'the denoiser got a batch of {rows}, but the recorder is for '
                f'{counted(images, "image")}, or {counted(guided, "row")} with classifier-free '
                f'guidance; {_ADVICE}'
            )
        # Guidance runs the same noisy images several times. Different parts are more images, and
        # some of them would be mistaken for the others. Once is enough, for on an accelerator the
        # comparison waits for all work before it.
        if first:
            if not all(torch.equal(sample[:images], other) for other in sample.split(images)[1:]):
                raise ValueError(
                    f'the denoiser got a batch of {rows} different images, but the recorder '
                    f'is for {images}; {_ADVICE}'
                )
            self._checked.add(rows)
        self.rows = slice(part * images, (part + 1) * images)
        # Processors that perturb attend with the other rows first, in a call of their own.
        return (rows, self.rows.stop) if perturbing else (rows,)

    def _check_images(self, given: dict[str, Any], sample: Tensor) -> None:
        """Refuse a guided batch of fewer images that is as long as the images told."""
        of_image, images = self._targets.prompt_of_image, self._images
        if images == len(self._targets.prompts):
            return
        first = {prompt: of_image.index(prompt) for prompt in set(of_image)}
        guided = any(
            images % parts == 0
            and all(torch.equal(sample[: images // parts], part) for part in sample.chunk(parts))
            for parts in (2, 3)
        )
        if not guided or not any(
            rows_differ(given, self._family.texts, image, first[prompt])
            for image, prompt in enumerate(of_image)
            if image != first[prompt]
        ):
            return
        raise ValueError(
            f'the denoiser got a batch of {images} in which the images of one prompt have '
            f'different embeddings, as with guidance for fewer images; {_ADVICE}'
        )

    def check_text(self, module: nn.Module, args: tuple, kwargs: dict, rows: int) -> None:
        """Refuse other embeddings of the prompts than those of the run's first step.

        Args:
            module: The denoiser.
            args: Its call's arguments.
            kwargs: Those given by name.
            rows: Rows of the batch.

        Raises:
            ValueError: If the embeddings changed in the middle of the run.
        """
        texts = self._family.texts
        given = {name: _call_argument(module, args, kwargs, name) for name in texts}
        self._embeddings.check(given, texts, self.rows, rows)


def _call_argument(module: nn.Module, args: tuple, kwargs: dict, name: str) -> Any:
    """An argument of a network's call, however it was passed; `None` if it isn't known."""
    if name in kwargs or not args:
        return kwargs.get(name)
    names = list(inspect.signature(module.forward).parameters)
    return argument(args, kwargs, names.index(name), name) if name in names else None


def _is_same_sample(sample: Tensor, other: Tensor | None) -> bool:
    """Tell whether two calls of a denoiser are given the same noisy images."""
    return sample is other or (
        other is not None
        and (sample.shape, sample.dtype, sample.device) == (other.shape, other.dtype, other.device)
        and torch.equal(sample, other)
    )


def _is_same_level(timestep: Any, other: Any) -> bool:
    """Tell whether two calls of a denoiser are given the same timestep, or none."""
    if isinstance(timestep, Tensor) and isinstance(other, Tensor):
        return timestep is other or (
            timestep.shape == other.shape and bool((timestep == other).all())
        )
    return timestep is other or bool(timestep == other)
