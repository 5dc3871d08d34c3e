"""Pictures of others: nothing is run for them, and what a store can hold is kept as it is."""

from __future__ import annotations

import io

import pytest
from PIL import EpsImagePlugin, Image

from freeatm_mm.errors import InputError
from freeatm_mm.store.pictures import decode_picture


def test_postscript_is_not_handed_to_a_program(tmp_path, monkeypatch):
    """Pillow alone would start whatever is called gs, with the file's program."""
    gs = tmp_path / 'gs'
    gs.write_text(f'#!/bin/sh\ntouch {tmp_path}/ran\n')
    gs.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8)).save(buffer, 'EPS')
    with pytest.raises(InputError, match='no picture of a format that is known'):
        decode_picture(buffer.getvalue())
    assert not (tmp_path / 'ran').exists()
    with pytest.raises(OSError), Image.open(buffer) as image:  # the danger is real
        image.load()
    assert (tmp_path / 'ran').exists()


def test_a_transparent_colour_is_white_also_in_what_is_stored():
    """Otherwise masks would be of another picture than the one that is trained on."""
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8), 'red').save(buffer, 'PNG', transparency=(255, 0, 0))
    decoded = decode_picture(buffer.getvalue())
    assert decoded.image.getpixel((0, 0)) == (255, 255, 255) and not decoded.kept
