"""Flux.1 and Flux.2: text and image in one sequence, the image packed."""

from __future__ import annotations

from typing import Any

from torch import nn

from freeatm_mm.attention.families.base import (
    Call,
    DenoiserInput,
    Encoder,
    Family,
    TextKeys,
    argument,
    chat,
    chat_frame,
    convert_textual_inversion,
    is_block_attention,
    length_of_call,
    sequence,
)

__all__ = ['FLUX', 'FLUX_2', 'FLUX_2_KLEIN']


def _packed_with_ids(denoiser: nn.Module, args: tuple, kwargs: dict) -> DenoiserInput:
    """Packed latents (batch, height * width, channels), their places in ``img_ids``: Flux."""
    sample = argument(args, kwargs, 0, 'hidden_states')
    text = argument(args, kwargs, 1, 'encoder_hidden_states')
    places = kwargs['img_ids']
    places = places[0] if places.ndim == 3 else places
    # Images to go by stand behind the one that is drawn, with another first coordinate.
    drawn = places[places[:, 0] == places[0, 0]]
    rows, columns = (int(last) + 1 for last in drawn[-1, 1:3].tolist())
    layout = sequence(sample, (rows, columns), text.shape[1])
    return layout._replace(length=text.shape[1] + len(places))


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
        'FluxControlPipeline',
        'FluxFillPipeline',
    ),
    is_text_attention=is_block_attention,
    where='512 T5 tokens (padding not masked), then the image; CLIP gives no keys',
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(
        Encoder(('tokenizer_2',), ('text_encoder_2',), ('prompt_2',), max_length=length_of_call),
    ),
    two_passes=True,
    denoiser_input=_packed_with_ids,
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
    denoiser_input=_packed_with_ids,
    block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
)

FLUX_2_KLEIN = Family(
    name='Flux.2 Klein',
    pipelines=('Flux2KleinPipeline',),
    is_text_attention=is_block_attention,
    where="512 Qwen tokens with the chat template's (padding not masked), then the image",
    text_keys=TextKeys.SEQUENCE,
    denoiser='transformer',
    encoders=(Encoder(max_length=length_of_call, frame=_klein_frame, padding='either'),),
    two_passes=True,
    denoiser_input=_packed_with_ids,
    block_groups={'transformer_blocks': 'double', 'single_transformer_blocks': 'single'},
)
