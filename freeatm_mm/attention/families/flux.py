"""Flux.1 and Flux.2: text and image in one sequence, the image packed."""

from __future__ import annotations

from typing import Any

from freeatm_mm.attention.families.base import (
    Call,
    Encoder,
    Family,
    TextKeys,
    chat,
    chat_frame,
    convert_textual_inversion,
    is_block_attention,
    length_of_call,
    packed_with_ids,
)
from freeatm_mm.attention.families.latents import Latents, as_given, batch_normed, flat

__all__ = ['FLUX', 'FLUX_2', 'FLUX_2_KLEIN']


def _klein_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    return chat(call, tokenizer, enable_thinking=False)


def _flux2_frame(call: Call, tokenizer: Any) -> tuple[str, str]:
    def message(role: str, text: str) -> dict:
        return {'role': role, 'content': [{'type': 'text', 'text': text}]}

    return chat_frame(
        lambda text: call.pipe.tokenizer.apply_chat_template(
            [message('system', call.pipe.system_message), message('user', text)],
            tokenize=False,
            add_generation_prompt=False,
        )
    )


FLUX = Family(
    name='Flux.1',
    pipelines=(
        'FluxPipeline',
        'FluxImg2ImgPipeline',
        'FluxInpaintPipeline',
        'FluxControlNetPipeline',
        'FluxControlNetImg2ImgPipeline',
        'FluxControlNetInpaintPipeline',
        'FluxControlPipeline',
        'FluxControlImg2ImgPipeline',
        'FluxControlInpaintPipeline',
        'FluxFillPipeline',
        'FluxKontextPipeline',
        'FluxKontextInpaintPipeline',
    ),
    is_text_attention=is_block_attention,
    where='512 T5 tokens (padding not masked), then the image; CLIP gives no keys',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(('tokenizer_2',), ('text_encoder_2',), ('prompt_2',), max_length=length_of_call),
    ),
    two_passes=True,
    denoiser_input=packed_with_ids,
    prepare_prompts=convert_textual_inversion,
    block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
)

FLUX_2 = Family(
    name='Flux.2',
    pipelines=('Flux2Pipeline',),
    is_text_attention=is_block_attention,
    where="512 Mistral tokens with the chat template's (padding not masked), then the image",
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(
            max_length=length_of_call, frame=_flux2_frame, padding='either', special_tokens=False
        ),
    ),
    denoiser_input=packed_with_ids,
    block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
    latents=Latents(scaled=batch_normed, packed=flat, given=as_given, image_is_optional=True),
)

FLUX_2_KLEIN = Family(
    name='Flux.2 Klein',
    pipelines=('Flux2KleinPipeline', 'Flux2KleinInpaintPipeline'),
    is_text_attention=is_block_attention,
    where="512 Qwen tokens with the chat template's (padding not masked), then the image",
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call, frame=_klein_frame, padding='either'),),
    two_passes=True,
    denoiser_input=packed_with_ids,
    block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
    latents=Latents(scaled=batch_normed, packed=flat, given=as_given, image_is_optional=True),
)
