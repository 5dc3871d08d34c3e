"""The one error that everything in the store raises."""

from __future__ import annotations

from freeatm_mm.errors import InputError

__all__ = ['StoreError']


class StoreError(InputError):
    """A store, shard or sample that can't be read or written; the message says which and why."""
