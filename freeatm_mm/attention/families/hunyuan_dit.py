"""HunyuanDiT: cross-attention of rotated queries to BERT and T5."""

from __future__ import annotations

from freeatm_mm.attention.families.base import Call, Encoder, Family, is_cross_attention

__all__ = ['HUNYUAN_DIT']

BERT_TOKENS = 77


def _after_bert(call: Call) -> int:
    return BERT_TOKENS


HUNYUAN_DIT = Family(
    name='HunyuanDiT',
    pipelines=('HunyuanDiTPipeline', 'HunyuanDiTControlNetPipeline', 'HunyuanDiTPAGPipeline'),
    is_text_attention=is_cross_attention,
    where='77 BERT tokens, then 256 T5 tokens (padding not masked)',
    watched=True,
    denoiser='transformer',
    encoders=(
        Encoder(max_length=BERT_TOKENS),
        Encoder(
            ('tokenizer_2',),
            ('text_encoder_2',),
            max_length=256,
            start=_after_bert,
        ),
    ),
    texts={'encoder_hidden_states': 0, 'encoder_hidden_states_t5': 0},
    block_groups={'blocks': 'transformer'},
)
