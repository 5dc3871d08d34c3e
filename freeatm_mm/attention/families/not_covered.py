"""Pipelines of diffusers' tables of tasks that have no row, and why.

`tests/attention/test_coverage.py` fails on a class of these tables that has neither a row nor a
reason.
"""

from __future__ import annotations

__all__ = ['NOT_COVERED']

_VIDEO = 'it generates videos, and masks are made for single images'

NOT_COVERED: dict[str, str] = {
    'HeliosPipeline': _VIDEO,
    'HeliosPyramidPipeline': _VIDEO,
    'QwenImageLayeredPipeline': 'it splits an image into layers, which no nouns name',
}
"""Names of pipeline classes, and why they give no masks."""
