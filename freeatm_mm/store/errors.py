"""The one error that everything in the store raises."""
from __future__ import annotations

__all__ = ['StoreError']


class StoreError(Exception):
    """A store, shard or sample that can't be read or written; the message says which and why."""
