"""Which pipeline keeps its text keys where: one row of :data:`FAMILIES` for each family.

A new family of pipelines is a new row, as long as its cross-attention modules project queries
with ``to_q`` and keys with ``to_k`` (and ``add_k_proj``), as diffusers' ``Attention`` does.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ['FAMILIES', 'Family', 'find_family']


def _keep_prompts(pipe: Any, prompts: Sequence[str], clean_caption: bool) -> list[str]:
    return list(prompts)


def _convert_textual_inversion(
        pipe: Any, prompts: Sequence[str], clean_caption: bool) -> list[str]:
    convert = getattr(pipe, 'maybe_convert_prompt', None)
    tokenizer = getattr(pipe, 'tokenizer', None)
    if convert is None or tokenizer is None:
        return list(prompts)
    return list(convert(list(prompts), tokenizer))


def _clean_like_deepfloyd(
        pipe: Any, prompts: Sequence[str], clean_caption: bool) -> list[str]:
    return list(pipe._text_preprocessing(list(prompts), clean_caption=clean_caption))


def is_cross_attention(module: nn.Module) -> bool:
    """Tells whether a module attends from pixels to text alone (``attn2`` of most UNets)."""
    return (getattr(module, 'to_q', None) is not None
            and getattr(module, 'to_k', None) is not None
            and getattr(module, 'added_kv_proj_dim', None) is None
            and bool(getattr(module, 'is_cross_attention', False)))


def is_added_key_attention(module: nn.Module) -> bool:
    """Tells whether a module attends to text keys and pixel keys in one softmax."""
    return (getattr(module, 'to_q', None) is not None
            and getattr(module, 'add_k_proj', None) is not None)


@dataclass(frozen=True)
class Family:
    """Where a family of diffusers pipelines keeps its text keys.

    Args:
        name: What to call the family in messages.
        pipelines: Names of the pipeline classes that belong to it; subclasses belong too.
        is_text_attention: Picks the modules of the denoiser that have text keys.
        joint: Whether the text keys (``add_k_proj``) stand before the pixels' own keys
            (``to_k``) in one softmax, rather than alone (``to_k``).
        denoiser: Attribute of the pipeline that holds the network called at every step.
        text_offset: Keys that stand before the first text token among the text keys.
        tokenizers: Attributes that may hold the tokenizer; the first that isn't ``None`` counts.
        text_encoders: The text encoder of each of ``tokenizers``.
        max_length: Tokens of a prompt, special ones included; ``None``: the tokenizer's own limit.
        prepare_prompts: ``(pipe, prompts, clean_caption) -> prompts`` as the pipeline's tokenizer
            gets them.
        block_groups: First part of a module's name, and the group its maps are summed in.
    """

    name: str
    pipelines: tuple[str, ...]
    is_text_attention: Callable[[nn.Module], bool]
    joint: bool = False
    denoiser: str = 'unet'
    text_offset: int = 0
    tokenizers: tuple[str, ...] = ('tokenizer', )
    text_encoders: tuple[str, ...] = ('text_encoder', )
    max_length: int | None = None
    prepare_prompts: Callable[[Any, Sequence[str], bool], list[str]] = _keep_prompts
    block_groups: dict[str, str] = field(default_factory=lambda: {
        'down_blocks': 'down', 'mid_block': 'mid', 'up_blocks': 'up'})


FAMILIES: tuple[Family, ...] = (
    Family(
        name='Stable Diffusion 1.x, 2.x and LCM',
        pipelines=(
            'StableDiffusionPipeline', 'StableDiffusionImg2ImgPipeline',
            'StableDiffusionInpaintPipeline', 'StableDiffusionDepth2ImgPipeline',
            'StableDiffusionUpscalePipeline', 'StableDiffusionControlNetPipeline',
            'StableDiffusionControlNetImg2ImgPipeline',
            'StableDiffusionControlNetInpaintPipeline', 'StableDiffusionAdapterPipeline',
            'LatentConsistencyModelPipeline', 'LatentConsistencyModelImg2ImgPipeline'),
        is_text_attention=is_cross_attention,
        prepare_prompts=_convert_textual_inversion),
    Family(
        # Both tokenizers share one vocabulary, so a noun has the same place in both; the second
        # one pads with another token only.
        name='Stable Diffusion XL',
        pipelines=(
            'StableDiffusionXLPipeline', 'StableDiffusionXLImg2ImgPipeline',
            'StableDiffusionXLInpaintPipeline', 'StableDiffusionXLControlNetPipeline',
            'StableDiffusionXLControlNetImg2ImgPipeline',
            'StableDiffusionXLControlNetInpaintPipeline', 'StableDiffusionXLAdapterPipeline'),
        is_text_attention=is_cross_attention,
        tokenizers=('tokenizer', 'tokenizer_2'),
        text_encoders=('text_encoder', 'text_encoder_2'),
        prepare_prompts=_convert_textual_inversion),
    Family(
        name='latent diffusion (LDM) with BERT',
        pipelines=('LDMTextToImagePipeline', ),
        is_text_attention=is_cross_attention,
        text_encoders=('bert', ),
        max_length=77),
    Family(
        name='DeepFloyd IF',
        pipelines=(
            'IFPipeline', 'IFImg2ImgPipeline', 'IFInpaintingPipeline', 'IFSuperResolutionPipeline',
            'IFImg2ImgSuperResolutionPipeline', 'IFInpaintingSuperResolutionPipeline'),
        is_text_attention=is_added_key_attention,
        joint=True,
        max_length=77,
        prepare_prompts=_clean_like_deepfloyd),
)


def find_family(pipe: Any) -> Family:
    """Finds the row of :data:`FAMILIES` a pipeline belongs to.

    Args:
        pipe: A diffusers pipeline.

    Returns:
        The family whose class, or a base class of whose, ``pipe`` is.

    Raises:
        ValueError: If no row names the pipeline's class or one of its base classes.
    """
    names = [base.__name__ for base in type(pipe).__mro__]
    for name in names:
        for family in FAMILIES:
            if name in family.pipelines:
                return family
    known = '; '.join(f'{family.name}: {", ".join(family.pipelines)}' for family in FAMILIES)
    raise ValueError(
        f'{type(pipe).__name__} is not a pipeline whose text attention is known. Known are: '
        f'{known}. To add one, add a row to FAMILIES in freeatm_mm/attention/families.py.')
