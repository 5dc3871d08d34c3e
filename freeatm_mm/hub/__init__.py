"""Stores and checkpoints on the Hugging Face Hub, with cards that say what they are.

`freeatm push` is the command; `push_store_to_hub` and `push_checkpoint_to_hub` are what it calls.
"""

from freeatm_mm.hub.cards import Terms, checkpoint_card, store_card
from freeatm_mm.hub.push import (
    draft_checkpoint,
    draft_store,
    push_checkpoint_to_hub,
    push_store_to_hub,
)

__all__ = [
    'Terms',
    'checkpoint_card',
    'draft_checkpoint',
    'draft_store',
    'push_checkpoint_to_hub',
    'push_store_to_hub',
    'store_card',
]
