"""Atomic writing: the old file or the new one, never half of one."""
from __future__ import annotations

import os

import pytest

from freeatm_mm.files import atomic_write


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / 'folder' / 'file'
    for content in (b'old', b'new'):
        with atomic_write(path) as file:
            file.write(content)
    assert path.read_bytes() == b'new' and os.listdir(path.parent) == ['file']


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b'half')
        raise RuntimeError
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['file']


def test_others_may_read_it_as_the_umask_says(tmp_path):
    old = os.umask(0o022)
    try:
        with atomic_write(tmp_path / 'file'):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / 'file').stat().st_mode & 0o777 == 0o644
