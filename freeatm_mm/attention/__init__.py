"""Masks for free: where an image attends to each noun of its prompt while it is generated.

    >>> recorder = AttentionRecorder(pipe)  # any diffusers pipeline of `FAMILIES`
    >>> recorded = recorder.generate('a dog with a ball', ['dog', 'ball'])
    >>> recorded.images[0], recorded.masks[0]  # the image, and float32 (2, h, w) in [0, 1]

`AttentionRecorder` records, `Recording` is what a call gives; `binarize`, `box_of`, `resize` and
`dense_crf` work on masks, `mask_trust` says how far to trust them.
"""

from __future__ import annotations

from freeatm_mm.attention.families import FAMILIES, Family, find_family
from freeatm_mm.attention.nouns import (
    MERGE_RULES,
    NounAlignmentError,
    NounTokens,
    NounTruncatedError,
    locate_nouns,
    merge_tokens,
)
from freeatm_mm.attention.parts import SEPARATE
from freeatm_mm.attention.quality import MaskTrust, mask_trust
from freeatm_mm.attention.recorder import AttentionRecorder, NothingRecorded
from freeatm_mm.attention.recording import Recording
from freeatm_mm.attention.refine import dense_crf, propagate
from freeatm_mm.attention.softmax import noun_attention
from freeatm_mm.ops.masks import (
    THRESHOLD,
    binarize,
    box_of,
    dequantize,
    minmax,
    quantize,
    resize,
)

__all__ = [
    'FAMILIES',
    'MERGE_RULES',
    'SEPARATE',
    'THRESHOLD',
    'AttentionRecorder',
    'Family',
    'MaskTrust',
    'NothingRecorded',
    'NounAlignmentError',
    'NounTokens',
    'NounTruncatedError',
    'Recording',
    'binarize',
    'box_of',
    'dense_crf',
    'dequantize',
    'find_family',
    'locate_nouns',
    'mask_trust',
    'merge_tokens',
    'minmax',
    'noun_attention',
    'propagate',
    'quantize',
    'resize',
]
