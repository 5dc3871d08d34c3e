"""Which rows of a denoiser's batch draw the prompt, where guidance puts others beside them."""

from __future__ import annotations

from typing import Any

from freeatm_mm.attention.families import Family

__all__ = ['is_perturbing', 'prompt_part']


def is_perturbing(pipe: Any) -> bool:
    """Tell whether a pipeline draws with perturbed-attention guidance at this moment.

    Its processors are in place just while the pipeline's call denoises. Its batch then is (without
    the prompt, with it, perturbed), or without classifier-free guidance (with it, perturbed).
    """
    return bool(getattr(pipe, 'pag_attn_processors', None))


def prompt_part(family: Family, parts: int, perturbing: bool) -> int | None:
    """Find the part of a batch that draws the prompt.

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
