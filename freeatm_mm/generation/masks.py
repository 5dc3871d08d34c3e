"""Which masks a run records, how, and with which nouns of each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from freeatm_mm.attention import (
    AttentionRecorder,
    NounAlignmentError,
    dense_crf,
    minmax,
    resize,
)
from freeatm_mm.errors import counted
from freeatm_mm.prompts import PromptRecord

__all__ = ['MASK_OPTIONS', 'MaskRecorder', 'Recorded']

#: What masks to store, by name; all but the last three are the recorder's own options.
MASK_OPTIONS = (
    'blocks',
    'resolutions',
    'steps',
    'heads',
    'probability',
    'merge',
    'maps',
    'head_weights',
    'rescale',
    'propagate',
    'crf',
    'stage',
)


@dataclass
class Recorded:
    """Which nouns of one prompt are recorded, and what is wrong with them.

    Args:
        nouns: Numbers of the nouns that the recorder was given, in its order.
        lost: Number of a noun that has no mask -> why.
        partial: Number of a noun whose mask leaves out a text encoder -> why.
    """

    nouns: list[int] = field(default_factory=list)
    lost: dict[int, str] = field(default_factory=dict)
    partial: dict[int, str] = field(default_factory=dict)


def _num_calls(pipe: Any, steps: int) -> int:
    """How often a pipeline calls its denoiser in so many steps.

    PNDM, Stable Diffusion's own, calls it once more than it has steps, and samplers of second order
    twice in each step but the last.
    """
    from diffusers import PNDMScheduler

    scheduler: Any = getattr(pipe, 'scheduler', None)
    if getattr(scheduler, 'order', 1) < 2 and not isinstance(scheduler, PNDMScheduler):
        return steps
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps)


class MaskRecorder:
    """Records the masks of batch after batch with the same options.

    Args:
        pipe: The pipeline whose attention is recorded.
        options: Some of `MASK_OPTIONS`; ``None``: the paper's masks.
        steps: Denoising steps of the pipeline.
        lost_nouns: ``'skip'`` or ``'raise'``, as of `freeatm_mm.generation.ShardSource`.
        call_options: What the pipeline's call is given, as `AttentionRecorder` takes it.
        check_prompts: As of `AttentionRecorder`.
        called_once: Whether each step calls the denoiser once, whatever the pipeline's scheduler.

    Raises:
        ValueError: If an option is unknown or out of range, or chooses none of the steps.
    """

    def __init__(
        self,
        pipe: Any,
        options: Mapping[str, Any] | None,
        *,
        steps: int,
        lost_nouns: str,
        call_options: Mapping[str, Any],
        check_prompts: bool,
        called_once: bool = False,
    ) -> None:
        self._pipe = pipe
        self._lost_nouns = lost_nouns
        self._options: dict[str, Any] = {
            'truncated': lost_nouns,
            'call_options': call_options,
            'check_prompts': check_prompts,
        }
        self._propagate, self._crf = 0, 0
        if options is not None:
            self._choose(options, steps, called_once)

    def _choose(self, masks: Mapping[str, Any], count: int, called_once: bool) -> None:
        unknown = sorted(masks.keys() - set(MASK_OPTIONS))
        if unknown:
            raise ValueError(
                f'masks can be told {", ".join(MASK_OPTIONS)}, not {", ".join(unknown)}'
            )
        options = dict(masks)
        options.pop('stage', None)
        self._propagate, self._crf = options.pop('propagate', 0), options.pop('crf', 0)
        if options.get('steps') is not None:  # else all, as of the recorder
            chosen = range(*options['steps'])
            if not set(chosen).intersection(range(count)):
                raise ValueError(
                    f'masks of the steps {masks["steps"]} are none of the '
                    f'{counted(count, "step")}, counted from 0'
                )
            # The recorder counts calls.
            calls = count if called_once else _num_calls(self._pipe, count)
            options['steps'] = frozenset(
                call for call in range(calls) if call * count // calls in chosen
            )
        if self._propagate:
            options['self_attention'] = 32
        self._options |= options
        # Refuses a name that is unknown, before anything is written.
        AttentionRecorder(self._pipe, ['a photo'], [[]], **self._options)

    def recorder(self, records: Sequence[PromptRecord]) -> tuple[AttentionRecorder, list[Recorded]]:
        """Make a recorder for a batch, and say for each prompt which nouns it records.

        Raises:
            NounAlignmentError: If a noun isn't found and ``lost_nouns`` is ``'raise'``.
            NounTruncatedError: If one is cut off and ``lost_nouns`` is ``'raise'``.
        """
        recorded = [Recorded(list(range(len(record.nouns)))) for record in records]
        try:
            recorder = self._recorder_of(records, recorded)
        except NounAlignmentError:
            if self._lost_nouns == 'raise':
                raise
            for record, nouns in zip(records, recorded):
                for index in list(nouns.nouns):
                    try:
                        self._recorder_of([record], [Recorded([index])])
                    except NounAlignmentError:
                        nouns.lost[index] = 'not found among the tokens'
                        nouns.nouns.remove(index)
            recorder = self._recorder_of(records, recorded)
        for place, row in recorder.truncated:
            recorded[place].lost[recorded[place].nouns[row]] = 'cut off by the tokenizer'
        for place, row, reason in recorder.left_out:
            recorded[place].partial[recorded[place].nouns[row]] = reason
        return recorder, recorded

    def _recorder_of(
        self, records: Sequence[PromptRecord], recorded: Sequence[Recorded]
    ) -> AttentionRecorder:
        prompts = [record.prompt for record in records]
        nouns = [
            [record.nouns[index] for index in chosen.nouns]
            for record, chosen in zip(records, recorded)
        ]
        return AttentionRecorder(self._pipe, prompts, nouns, **self._options)

    def masks(self, recorder: AttentionRecorder) -> list[torch.Tensor]:
        """Return what was recorded, propagated if asked for: raw maps (nouns, h, w) each image."""
        return recorder.masks(propagate=self._propagate)

    def sharpened(self, masks: torch.Tensor, image: Image.Image) -> torch.Tensor:
        """Return the masks of an image with its edges, if asked for."""
        if not (self._crf and len(masks)):
            return masks
        scale = self._crf / min(masks.shape[-2:])
        height, width = (round(side * scale) for side in masks.shape[-2:])
        soft, _ = minmax(resize(masks, (height, width)))
        return torch.from_numpy(dense_crf(soft, np.asarray(image.convert('RGB'))))
