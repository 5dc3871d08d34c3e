"""GLM-Image, whose image network reads only what the prompt puts in quotes."""

from __future__ import annotations

__all__ = ['TEXTLESS']

TEXTLESS: dict[str, str] = {
    'GlmImagePipeline': 'the text keys of GLM-Image are only the words that the prompt puts in '
    'quotes, and the rest of the prompt reaches the network as tokens of a prior image'
}
