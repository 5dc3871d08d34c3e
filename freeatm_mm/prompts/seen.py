"""Which texts have come before."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b

__all__ = ['SeenTexts']


class SeenTexts:
    """Which texts have come before, kept in SQLite's temporary storage: millions take no memory.

    What doesn't fit into its small cache lies in a nameless file in the folder for temporary files
    (``SQLITE_TMPDIR`` or ``TMPDIR``), about 20 bytes a text, gone when the process ends.

    Args:
        fold: Take texts for the same that differ only in case or in spaces at their ends.
    """

    def __init__(self, fold: bool = True) -> None:
        self._fold = fold
        self._database = sqlite3.connect('', isolation_level=None)
        self._database.execute('CREATE TABLE seen (hash INTEGER PRIMARY KEY) WITHOUT ROWID')
        self._database.execute('BEGIN')

    def add(self, text: str) -> bool:
        """Remember a text and return whether it is new."""
        text = text.strip().casefold() if self._fold else text
        digest = blake2b(text.encode(errors='surrogatepass'), digest_size=8).digest()
        cursor = self._database.execute(
            'INSERT OR IGNORE INTO seen VALUES (?)', (int.from_bytes(digest, 'big', signed=True),)
        )
        return cursor.rowcount == 1

    def close(self) -> None:
        """Forget all texts."""
        self._database.close()

    def __enter__(self) -> SeenTexts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
