"""What becomes of the samples of a run: stored, left out for a reason, or the reason to stop."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from freeatm_mm.errors import RunError, one_sentence
from freeatm_mm.store import Sample

__all__ = [
    'Counts',
    'GenerationError',
    'Outcome',
    'Picture',
    'TooManyFailed',
    'is_out_of_memory',
    'number_allowed',
    'reason_of',
]


@dataclass
class Counts:
    """What was seen while generating.

    Args:
        lost_nouns: Nouns left out because the tokenizer cut them off, or because they aren't
            found among the tokens; the samples' ``meta`` lists them with the reason.
        partial_nouns: Nouns whose masks leave out one of several text encoders, because it cut them
            off; the samples' ``meta`` lists them with the reason.
        flat_masks: Masks with the same attention everywhere (stored, but they show nothing).
        hidden_images: Images that the pipeline's safety checker blacked out.
        cut_prompts: Prompts with more tokens than any of the text encoders reads.
        split_batches: Batches that failed, so that their samples were generated one by one.
        left_out: The samples that aren't in the store, each with its ``key`` and ``kind``:
            ``'hidden'``, or ``'failed'`` with ``prompt_id``, ``image_number`` and ``reason``.
    """

    lost_nouns: int = 0
    partial_nouns: int = 0
    flat_masks: int = 0
    hidden_images: int = 0
    cut_prompts: int = 0
    split_batches: int = 0
    left_out: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Number of samples that could not be generated."""
        return sum(item.get('kind') == 'failed' for item in self.left_out)


class GenerationError(RunError):
    """Nothing can be generated with these settings, or on this device."""


class SourceError(RunError):
    """The source of the images can't be read for now, whichever the image."""


class TooManyFailed(GenerationError):
    """More samples could not be generated than a run may leave out."""


@dataclass
class Outcome:
    """What became of a sample: it is there, or there is a reason why it isn't."""

    sample: Sample | None = None
    lost_nouns: int = 0
    partial_nouns: int = 0
    flat_masks: int = 0
    hidden: bool = False
    kind: str = ''
    reason: str = ''


@dataclass
class Picture:
    """An image of a sample.

    Args:
        image: The picture.
        data: Its bytes as they are to be stored; ``None``: to be encoded.
        image_format: The format of ``data``.
        meta: What the sample's ``meta`` says of it besides.
    """

    image: Image.Image
    data: bytes | None = None
    image_format: str = ''
    meta: dict[str, Any] = field(default_factory=dict)


def number_allowed(max_failed: float | None, num_samples: int) -> int:
    """How many of a run's samples may fail."""
    if max_failed is None:
        return max(10, num_samples // 10)
    if isinstance(max_failed, bool) or not 0 <= max_failed <= 1e12:  # NaN is neither
        raise ValueError(
            'max_failed must be a share of the samples below 1, or a number of them, '
            f'got {max_failed}'
        )
    return int(max_failed * num_samples if 0 < max_failed < 1 else max_failed)


def reason_of(error: Exception) -> str:
    """What an error says, in a line that is the same each time."""
    if isinstance(error, FloatingPointError):
        return (
            'its image is not a number (NaN): too large for the number format; float32, or '
            'bfloat16, holds it'
        )
    text = one_sentence(error)
    text = re.sub(r'0x[0-9a-fA-F]+', '0x...', text)
    if not isinstance(error, (ValueError, RuntimeError)):
        text = f'{type(error).__name__}: {text}'
    return text if len(text) <= 300 else f'{text[:297]}...'


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error is the device's or the machine's lack of memory."""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or isinstance(error, RuntimeError)
        and ('out of memory' in str(error) or "can't allocate memory" in str(error))
    )
