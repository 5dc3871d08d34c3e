"""UnCLIP: image embedding, text and pixels in one softmax."""

from __future__ import annotations

from freeatm_mm.attention.families.base import (
    Call,
    CallNames,
    Encoder,
    Family,
    TextKeys,
    is_added_key_attention,
)

__all__ = ['UNCLIP']


def _after_unclip_image(call: Call) -> int:
    return call.pipe.text_proj.config.clip_extra_context_tokens


UNCLIP = Family(
    name='UnCLIP (the DALL-E 2 type)',
    pipelines=('UnCLIPPipeline',),
    is_text_attention=is_added_key_attention,
    where='4 tokens of the image embedding, 77 CLIP tokens (padding masked), then the pixels',
    text_keys=TextKeys.ADDED,
    denoiser='decoder',
    encoders=(Encoder(start=_after_unclip_image),),
    call_names=CallNames(
        steps=('decoder_num_inference_steps',),
        guidance=('decoder_guidance_scale',),
        scheduler='decoder_scheduler',
    ),
    latents='it also takes an image embedding, which its prior generates anew',
)
