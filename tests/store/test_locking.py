"""The lock on a file that is read, changed and replaced."""

from __future__ import annotations

import errno
import fcntl
import threading

import pytest

from freeatm_mm.store import StoreError
from freeatm_mm.store.locking import hold


def test_a_file_is_held_by_one_at_a_time(tmp_path):
    """Also by threads; what a killed process left is no hindrance, and nothing stays behind."""
    path, held, entered = tmp_path / 'file', [], []
    (tmp_path / '.file.lock').touch()

    def work() -> None:
        for _ in range(20):
            with hold(path):
                held.append(1)
                entered.append(len(held))
                held.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered == [1] * 80 and not list(tmp_path.iterdir())


def test_nobody_waits_where_there_are_no_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', flock)
    with hold(tmp_path / 'file'), hold(tmp_path / 'file'):
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_place_of_the_lock_is_told(tmp_path):
    (tmp_path / '.file.lock').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(StoreError, match=r'\.file\.lock is a symbolic link'):
        with hold(tmp_path / 'file'):
            pass
    assert not (tmp_path / 'elsewhere').exists()
