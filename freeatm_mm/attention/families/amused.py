"""aMUSEd: a transformer that fills in masked tokens of a codebook attends to CLIP."""

from __future__ import annotations

from freeatm_mm.attention.families.base import CallNames, Family, is_cross_attention, tokens

__all__ = ['AMUSED']

AMUSED = Family(
    name='aMUSEd',
    pipelines=('AmusedPipeline', 'AmusedImg2ImgPipeline', 'AmusedInpaintPipeline'),
    is_text_attention=is_cross_attention,
    where='77 CLIP tokens',
    denoiser='transformer',
    denoiser_input=tokens,
    images_in_turn=True,
    block_groups={'down_block': 'down', 'transformer_layers': 'mid', 'up_block': 'up'},
    call_names=CallNames(one_generator=True),
    latents='it fills in tokens that are masked, so that there is no noise to add to an image',
)
