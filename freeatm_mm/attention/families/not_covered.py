"""Pipelines of diffusers' tables of tasks that have no row, and why.

`tests/attention/test_coverage.py` fails on a class of these tables that has neither a row nor a
reason.
"""

from __future__ import annotations

__all__ = ['NOT_COVERED']

_NO_ROW = 'nobody has written its row of the table of families so far'
_OWN_LENGTH = 'its text keys stand at another place for each image of a batch'

NOT_COVERED: dict[str, str] = {
    'AuraFlowPipeline': _NO_ROW,
    'CogView3PlusPipeline': _NO_ROW,
    'CogView4ControlPipeline': _NO_ROW,
    'CogView4Pipeline': _NO_ROW,
    'GlmImagePipeline': _NO_ROW,
    'HeliosPipeline': _NO_ROW,
    'HeliosPyramidPipeline': _NO_ROW,
    'Ideogram4Pipeline': _NO_ROW,
    'Krea2Pipeline': _NO_ROW,
    'OvisImagePipeline': _NO_ROW,
    'QwenImageLayeredPipeline': 'it splits an image into layers, which no nouns name',
    'StableCascadeCombinedPipeline': 'its prior, and not its decoder, lays the image out',
    'WuerstchenCombinedPipeline': 'its prior, and not its decoder, lays the image out',
}
"""Names of pipeline classes, and why they give no masks."""
