"""Pipelines of diffusers that have no row, and why.

`tests/attention/test_coverage.py` fails on a class of diffusers' tables of tasks that has neither a
row nor a reason; the others stand in none of these tables.
"""

from __future__ import annotations

__all__ = ['NOT_COVERED']

_VIDEO = 'it generates videos, and masks are made for single images'

_CANVAS = (
    'it draws beside a second image on a canvas twice as wide, of which its maps would show both '
    'halves, and takes one prompt a call'
)
_EDITS = 'it changes images that are given with an instruction, and no family describes it yet'

NOT_COVERED: dict[str, str] = {
    'BriaFiboEditPipeline': _EDITS,
    'BriaFibo2Pipeline': "its text is read by Qwen3-VL together with images, some of each block's "
    'own, and no family describes it yet',
    'Cosmos3OmniPipeline': 'one network reads the text and draws, with videos, sound and actions '
    'in the same sequence',
    'DreamLitePipeline': _CANVAS,
    'DreamLiteMobilePipeline': _CANVAS,
    'Flux2KleinKVPipeline': 'it keeps the keys of images to go by from the first step on: use '
    'Flux2KleinPipeline with the same weights',
    'HeliosPipeline': _VIDEO,
    'HeliosPyramidPipeline': _VIDEO,
    'JoyImageEditPipeline': _EDITS,
    'JoyImageEditPlusPipeline': _EDITS,
    'OmniGenPipeline': 'one network reads the text and draws, with text and images mixed in a '
    'sequence whose order depends on the prompt',
    'ModularPipeline': 'its blocks may be put together in any way, so that what they are called '
    'with is not known: take the pipeline class of the same weights',
    'QwenImageLayeredPipeline': 'it splits an image into layers, which no nouns name',
    'VisualClozePipeline': 'it draws a grid of images, of which its maps would show all',
    'VisualClozeGenerationPipeline': 'it draws a grid of images, of which its maps would show all',
}
"""Names of pipeline classes, and why they give no masks."""
