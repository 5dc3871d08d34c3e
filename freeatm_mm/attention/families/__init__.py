"""Which pipeline keeps its text keys where: one row of :data:`FAMILIES` for each family.

A new family of pipelines is a new row, in a file of its own beside the others. What a row can say
covers the three ways in which diffusers models look at text (:class:`TextKeys`); the recorder does
the rest. ``docs/generators.md`` shows the table as it is.
"""

from __future__ import annotations

from typing import Any

from freeatm_mm.attention.families import (
    deepfloyd,
    flux,
    kandinsky,
    pixart,
    prx,
    qwen_image,
    sana,
    stable_diffusion,
    stable_diffusion_3,
    unclip,
    z_image,
)
from freeatm_mm.attention.families.base import (
    Call,
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    argument,
)
from freeatm_mm.attention.families.kandinsky import TEXTLESS

__all__ = [
    'FAMILIES',
    'TEXTLESS',
    'Call',
    'DenoiserInput',
    'Encoder',
    'Family',
    'TextKeys',
    'argument',
    'find_family',
    'known_pipelines',
]

FAMILIES: tuple[Family, ...] = (
    stable_diffusion.STABLE_DIFFUSION,
    stable_diffusion.STABLE_DIFFUSION_XL,
    stable_diffusion.LATENT_DIFFUSION,
    deepfloyd.DEEPFLOYD,
    unclip.UNCLIP,
    kandinsky.KANDINSKY_2_1,
    kandinsky.KANDINSKY_3,
    pixart.PIXART,
    sana.SANA,
    stable_diffusion_3.STABLE_DIFFUSION_3,
    flux.FLUX,
    qwen_image.QWEN_IMAGE,
    flux.FLUX_2,
    flux.FLUX_2_KLEIN,
    z_image.Z_IMAGE,
    prx.PRX,
    prx.PRX_PIXEL,
)


def known_pipelines() -> str:
    """The families and their pipeline classes in one line, for messages."""
    return '; '.join(f'{family.name}: {", ".join(family.pipelines)}' for family in FAMILIES)


def find_family(pipe: Any) -> Family:
    """Finds the row of :data:`FAMILIES` a pipeline belongs to.

    Args:
        pipe: A diffusers pipeline.

    Returns:
        The family whose class, or a base class of whose, ``pipe`` is.

    Raises:
        ValueError: If no row names the pipeline's class or one of its base classes, if it is one
            of perturbed-attention guidance, or if its drawing network has no text keys.
    """
    names = [base.__name__ for base in type(pipe).__mro__]
    if 'PAGMixin' in names:
        raise ValueError(
            f'{type(pipe).__name__} draws each prompt once more with perturbed attention, which '
            'must not be recorded: use the pipeline without PAG'
        )
    for name in names:
        if name in TEXTLESS:
            raise ValueError(
                f'{type(pipe).__name__} gives no masks of nouns: {TEXTLESS[name]}. Draw images '
                'without masks, or use Kandinsky 2.1 or 3'
            )
        for family in FAMILIES:
            if name in family.pipelines:
                return family
    raise ValueError(
        f'{type(pipe).__name__} is not a pipeline whose text attention is known. Known are: '
        f'{known_pipelines()}. To add one, add a row to FAMILIES in '
        'freeatm_mm/attention/families; to do without masks, draw images only.'
    )
