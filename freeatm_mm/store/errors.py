"""The error that everything in the store raises, and its kinds."""

from __future__ import annotations

from freeatm_mm.addresses import UnreachableError
from freeatm_mm.errors import InputError

__all__ = ['StoreError', 'UnreachableStoreError']


class StoreError(InputError):
    """A store, shard or sample that can't be read or written; the message says which and why."""


class UnreachableStoreError(StoreError, UnreachableError):
    """The server of a store's address can't be reached, which says nothing of the store."""
