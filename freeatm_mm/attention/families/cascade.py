"""Stable Cascade and Wuerstchen: their priors, which lay an image out, attend to CLIP."""

from __future__ import annotations

import re

from torch import nn

from freeatm_mm.attention.families.base import CallNames, Encoder, Family, TextKeys

__all__ = ['CASCADE', 'CASCADE_PRIOR', 'NOT_COVERED']


def is_prior_attention(name: str, module: nn.Module) -> bool:
    """Tell whether a module attends to pixels and the text behind them."""
    return re.search(r'\.attention$', name) is not None


_GROUPS = {'down_blocks': 'down', 'up_blocks': 'up', 'blocks': 'prior'}
_WHERE = 'the pixels, then 77 CLIP tokens, and for Stable Cascade what CLIP makes of all the text'

#: Of Stable Cascade and of Wuerstchen.
_TEXTS = {'clip_text': 0, 'c': 0}

_UNKNOWN_LATENTS = 'its prior generates latents of an image encoder that the pipeline does not hold'

CASCADE = Family(
    name='Stable Cascade and Wuerstchen',
    pipelines=('StableCascadeCombinedPipeline', 'WuerstchenCombinedPipeline'),
    is_text_attention=is_prior_attention,
    where=_WHERE,
    text_keys=TextKeys.BEHIND,
    denoiser='prior_prior',
    encoders=(Encoder(('prior_tokenizer',), ('prior_text_encoder',)),),
    conditional_first=True,
    texts=_TEXTS,
    block_groups=_GROUPS,
    call_names=CallNames(
        steps=('prior_num_inference_steps',),
        guidance=('prior_guidance_scale',),
        scheduler='prior_scheduler',
        inner='prior_pipe',
    ),
    latents=_UNKNOWN_LATENTS,
)

CASCADE_PRIOR = Family(
    name='priors of Stable Cascade and Wuerstchen',
    pipelines=('StableCascadePriorPipeline', 'WuerstchenPriorPipeline'),
    is_text_attention=is_prior_attention,
    where=_WHERE,
    text_keys=TextKeys.BEHIND,
    denoiser='prior',
    conditional_first=True,
    texts=_TEXTS,
    block_groups=_GROUPS,
    latents=_UNKNOWN_LATENTS,
)

NOT_COVERED: dict[str, str] = dict.fromkeys(
    ('StableCascadeDecoderPipeline', 'WuerstchenDecoderPipeline'),
    'it enlarges what a prior has laid out: record the prior, or the two combined',
)
