"""Reading files of `torch.save` that anybody may have made: nothing in them is run.

torch's own reader with `weights_only=True` does the work. What it may call is a closed list of
names: tensors, plain containers, and stand-ins written here for the few other things that honest
checkpoints hold (mmengine's loss histories, NumPy's arrays, the `args` of training scripts). The
stand-ins compute nothing. Before torch sees a file, its pickle is looked through for other names
and for sizes and depths that no checkpoint has.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import pickle
import pickletools
import re
import stat
import threading
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch

from freeatm_mm.errors import InputError, MissingFileError, first_line, listed

__all__ = ['check_regular', 'read_torch_file']

#: Far more than honest checkpoints have: theirs hold some ten thousand tensors.
_MOST_STEPS, _MOST_PICKLE, _DEEPEST = 3 * 10**6, 2**29, 100

_TENSORS = {
    'collections.OrderedDict',
    'collections.Counter',
    '__builtin__.set',
    'builtins.set',
    '_codecs.encode',
    'torch.Size',
    'torch.device',
    'torch.nn.parameter.Parameter',
    'torch.serialization._get_layout',
    'torch._utils._rebuild_tensor',
    'torch._utils._rebuild_tensor_v2',
    'torch._utils._rebuild_tensor_v3',
    'torch._utils._rebuild_parameter',
    *(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)),
}
_STORAGE = re.compile(r'torch\.(cuda\.|storage\.)?[A-Za-z0-9]+Storage')
_LOCK = threading.Lock()
_log = logging.getLogger(__name__)


# --- stand-ins ------------------------------------------------------------------------------------


class _PassedOver:
    """Stands for an object that isn't a tensor; takes all that a pickle hands over, keeps none."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _PassedOver:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Method(_PassedOver):
    """Stands for `getattr`: histories name their own methods (`HistoryBuffer.min`) by it."""


class _ArrayClass(_PassedOver):
    """Stands for `numpy.ndarray`, which is only named."""


class _History(_PassedOver):
    """Stands for mmengine's `HistoryBuffer`; keeps its numbers."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def settle(self) -> Any:
        """The history itself, made anew from its numbers; None without mmengine.

        Raises:
            ValueError: If the numbers are not those of a history.
        """
        try:
            from mmengine.logging import HistoryBuffer
        except ImportError:
            return None
        logs, counts = (_settle(self.state[name]) for name in ('_log_history', '_count_history'))
        limit = self.state['max_length']
        if not (
            isinstance(logs, np.ndarray)
            and isinstance(counts, np.ndarray)
            and logs.ndim == counts.ndim == 1
            and len(logs) == len(counts)
            and type(limit) is int
            and limit >= len(logs)
        ):
            raise ValueError('a history of losses is not made of two rows of numbers')
        return HistoryBuffer(logs, counts, limit)


class _Dtype(_PassedOver):
    """Stands for `numpy.dtype`; keeps its name and byte order."""

    def __init__(self, name: Any, *args: Any) -> None:
        self.name, self.order = name, ''

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def settle(self) -> np.dtype:
        """The type itself.

        Raises:
            ValueError: If it isn't one of numbers or truth values.
        """
        if (
            type(self.name) is not str
            or not re.fullmatch('[biufc][0-9]{1,2}', self.name)
            or self.order not in ('', '<', '>', '=', '|')
        ):
            raise ValueError('an array is not of numbers')
        return np.dtype(self.order + self.name)


class _Array(_PassedOver):
    """Stands for NumPy's `_reconstruct`; keeps an array's shape, type and bytes."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def settle(self) -> np.ndarray:
        """The array itself.

        Raises:
            ValueError: If its bytes don't fill its shape.
        """
        _, shape, dtype, fortran, data = self.state
        values = np.frombuffer(_bytes(data), dtype.settle())
        return values.reshape(shape, order='F' if fortran else 'C').copy()


class _Scalar(_PassedOver):
    """Stands for NumPy's `scalar`; keeps its type and bytes."""

    def __init__(self, dtype: Any, data: Any = b'') -> None:
        self.dtype, self.data = dtype, data

    def settle(self) -> np.generic:
        """The number itself.

        Raises:
            ValueError: If its bytes are not those of one number.
        """
        (value,) = np.frombuffer(_bytes(self.data), self.dtype.settle())
        return value


class _NoBytes(_PassedOver):
    """Stands for `bytes`, by which torch.save's pickles write none at all."""

    def __init__(self, *args: Any) -> None:
        if args:
            raise ValueError('it makes bytes of something else')

    def settle(self) -> bytes:
        """No bytes."""
        return b''


def _bytes(data: Any) -> bytes:
    if isinstance(data, _NoBytes):
        return b''
    return data.encode('latin1') if isinstance(data, str) else bytes(memoryview(data))


_STAND_INS: dict[str, type] = {
    'mmengine.logging.history_buffer.HistoryBuffer': _History,
    'builtins.getattr': _Method,
    '__builtin__.getattr': _Method,
    'builtins.bytes': _NoBytes,
    '__builtin__.bytes': _NoBytes,
    'numpy.ndarray': _ArrayClass,
    'numpy.dtype': _Dtype,
    **{
        f'numpy.{core}.multiarray.{name}': kind
        for core in ('core', '_core')
        for name, kind in (('_reconstruct', _Array), ('scalar', _Scalar))
    },
}
#: Of training scripts: their command lines, and what stands in these.
_FORGOTTEN = {
    name: type(name, (_PassedOver,), {})
    for name in (
        'argparse.Namespace',
        'torch.torch_version.TorchVersion',
        *(
            f'{module}.{kind}Path'
            for module in ('pathlib', 'pathlib._local')
            for kind in ('Posix', 'PurePosix', 'Windows', 'PureWindows', '', 'Pure')
        ),
    )
}


# --- looking before reading -----------------------------------------------------------------------


def check_regular(path: str | Path) -> Path:
    """Make sure that a checkpoint is a file with something in it: no folder, pipe or device.

    Raises:
        MissingFileError: If there is nothing.
        InputError: If it is something else, empty, or can't be opened.
    """
    path = Path(path)
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            with open(path, 'rb'):
                pass
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError.of('checkpoint', path) from None
    except (OSError, ValueError) as error:  # no permission, links in a circle, a null character
        raise InputError(
            f"checkpoint {path} can't be opened ({getattr(error, 'strerror', None) or error})"
        ) from None
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f'{path} is a folder: name the checkpoint in it')
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f'{path} is a pipe or a device: a checkpoint must be a file')
    if not found.st_size:
        raise InputError(f"{path} can't be read: it is empty")
    return path


class _Limited:
    """The first bytes of a file, up to the limit of a pickle."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, _MOST_PICKLE

    def _take(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left <= 0:
            raise ValueError(f'its pickle is longer than {_MOST_PICKLE >> 20} MiB')
        return data

    def read(self, size: int = -1) -> bytes:
        """As a file's."""
        return self._take(self.file.read(min(size, self.left) if size >= 0 else self.left))

    def readline(self) -> bytes:
        """As a file's."""
        return self._take(self.file.readline(self.left))


def _find_names(file: _Limited, names: set[str]) -> None:
    """Collect the names that a pickle asks for; reads on to its end and runs nothing.

    Tuples are followed on the way: hashing deeply nested ones would overflow the C stack.

    Args:
        file: Where the pickle begins.
        names: Gets them, also those before an error.

    Raises:
        ValueError: If it is no pickle, or one that is too long or too deep.
    """
    memo: dict[Any, int] = {}
    depths: list[int] = []
    marks: list[int] = []
    steps = pickletools.genops(file)  # type: ignore[arg-type]  # read() and readline() suffice
    for step, (opcode, arg, _) in enumerate(steps):
        if step >= _MOST_STEPS:
            raise ValueError(f'its pickle has more than {_MOST_STEPS:,} steps')
        if opcode.name in ('GLOBAL', 'INST'):
            names.add(str(arg).replace(' ', '.'))
        elif opcode.name == 'STACK_GLOBAL':
            raise ValueError('it is a pickle of another kind than torch.save writes')
        before, taken = opcode.stack_before, []
        count = len(before)
        if pickletools.markobject in before:
            if not marks:
                raise ValueError('its pickle is damaged')
            start = marks.pop()
            taken, count = depths[start:], before.index(pickletools.markobject)
            del depths[start:]
        if opcode.name == 'MARK':
            marks.append(len(depths))
            continue
        if 'GET' in opcode.name:
            depths.append(memo.get(arg, 0))
            continue
        if 'PUT' in opcode.name:
            memo[arg] = depths[-1] if depths else 0
            continue
        if count > len(depths):
            raise ValueError('its pickle is damaged')
        taken += depths[len(depths) - count :]
        del depths[len(depths) - count :]
        depth = max(taken, default=0) + 1 if 'TUPLE' in opcode.name else 0
        if depth > _DEEPEST:
            raise ValueError(f'its contents are nested more than {_DEEPEST} deep')
        depths += [depth] * len(opcode.stack_after)


def _look_through(file: BinaryIO, size: int, names: set[str]) -> None:
    """Collect the names that a file of `torch.save` asks for, in either of its forms.

    Raises:
        ValueError: If it is none, or its sizes can't be.
    """
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > size:
                raise ValueError('it says it holds more bytes than it has')
            pickles = [entry for entry in entries if entry.filename.endswith('/data.pkl')]
            if len(pickles) != 1 or any(
                entry.filename.endswith('/constants.pkl') for entry in entries
            ):
                raise ValueError('it is an archive of something else than weights')
            with archive.open(pickles[0]) as part:
                _find_names(_Limited(part), names)
        return
    file.seek(0)
    head = file.read(512)
    if head.startswith(b'PK'):
        raise ValueError('its archive has no end')
    if head[257:262] == b'ustar':
        raise ValueError(
            'it is in the tar format of torch before 0.1.10: save it again with a '
            'torch of before 2.6'
        )
    file.seek(0)
    reader = _Limited(file)
    for _ in range(5):  # a number, a version, the machine, the content, the storages' names
        _find_names(reader, names)


# --- reading --------------------------------------------------------------------------------------


def read_torch_file(
    source: str | Path | BinaryIO, map_location: Any = 'cpu', name: str | Path | None = None
) -> Any:
    """Read a file of `torch.save`: tensors, plain containers, and mmengine's loss histories.

    The command line of a training script (`args`) and paths in it are left out, with a warning.

    Args:
        source: The file, or an open one that can be sought in.
        map_location: As `torch.load`'s.
        name: What an open one is called in messages.

    Returns:
        The content.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is damaged, no file of torch's, or holds anything else, which isn't run.
    """
    if isinstance(source, (str, Path)):
        with open(check_regular(source), 'rb') as file:
            return read_torch_file(file, map_location, name or source)
    called: str | Path = name if name else getattr(source, 'name', 'the checkpoint')
    size = source.seek(0, io.SEEK_END)
    source.seek(0)
    names: set[str] = set()
    try:
        _look_through(source, size, names)
        failed = None
    except Exception as error:  # of many kinds, for damaged files
        failed = error
    refused = sorted(
        wanted
        for wanted in names
        if wanted not in _TENSORS | {*_STAND_INS, *_FORGOTTEN} and not _STORAGE.fullmatch(wanted)
    )
    if refused:
        raise InputError(
            f"{called} can't be read: it holds more than tensors and plain values, "
            f'namely {listed(map(_printable, refused))}; nothing of it '
            'was run'
        )
    if failed:
        raise _unreadable(called, failed) from None
    source.seek(0)
    try:
        content = _settle(_load(source, map_location), {}, size)
    except Exception as error:
        raise _unreadable(called, error) from None
    forgotten = sorted(names & set(_FORGOTTEN))
    if forgotten:
        _log.warning('%s: passed over what is not weights (%s)', called, ', '.join(forgotten))
    return content


def _load(file: BinaryIO, map_location: Any) -> Any:
    """Torch's reader with our stand-ins, and with none that other packages let through."""
    ours: list[Any] = [
        (kind, path.replace('__builtin__', 'builtins'))
        for path, kind in {**_STAND_INS, **_FORGOTTEN}.items()
    ]
    with _LOCK:
        theirs = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(ours)
        try:
            return torch.load(file, map_location=map_location, weights_only=True)
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(theirs)


def _settle(
    value: Any, done: dict[int, Any] | None = None, size: int | None = None, depth: int = 0
) -> Any:
    """Put what stand-ins stand for in their place; the same containers otherwise.

    Args:
        value: What was read.
        done: Containers seen so far, by their ids; None for those that are not through yet.
        size: Bytes of the file, which no tensor in it can exceed.
        depth: How deep it is nested.

    Raises:
        ValueError: If something is nested too deeply or in itself, or is larger than its file.
    """
    done = {} if done is None else done
    if depth > _DEEPEST:
        raise ValueError(f'its contents are nested more than {_DEEPEST} deep')
    if isinstance(value, torch.Tensor):
        if size is not None and value.numel() * value.element_size() > max(size, 2**20):
            raise ValueError(f'a tensor of shape {tuple(value.shape)} is larger than the file')
        return value
    if hasattr(type(value), 'settle'):
        return value.settle()
    if isinstance(value, _PassedOver) or isinstance(value, type) and issubclass(value, _PassedOver):
        return None
    if type(value) not in (dict, OrderedDict, Counter, list, tuple):
        return value
    if id(value) in done:
        if done[id(value)] is None:
            raise ValueError('something in it is nested in itself')
        return done[id(value)][1]
    done[id(value)] = None
    if type(value) is OrderedDict:  # a state dict's versions; any other name could hide a method
        versions = vars(value).get('_metadata')
        vars(value).clear()
        if isinstance(versions, dict) and all(isinstance(v, dict) for v in versions.values()):
            vars(value)['_metadata'] = versions
    if type(value) is tuple:
        settled: Any = tuple(_settle(part, done, size, depth + 1) for part in value)
    elif type(value) is list:
        value[:] = [_settle(part, done, size, depth + 1) for part in value]
        settled = value
    else:
        for key, part in list(value.items()):
            value[key] = _settle(part, done, size, depth + 1)
            if type(part) in _FORGOTTEN.values():
                del value[key]
        settled = value
    done[id(value)] = (value, settled)  # the first kept: ids of what is gone are used again
    return settled


def _unreadable(name: str | Path, error: Exception) -> InputError:
    first = first_line(error)
    if isinstance(error, pickle.UnpicklingError):  # torch's advice would be to run what is there
        first = 'its pickle does what no checkpoint does'
    elif not isinstance(error, ValueError):
        first = f'{type(error).__name__}: {first}'
    return InputError(
        f"{name} can't be read: it is damaged or cut off, or no checkpoint ({_printable(first)})"
    )


def _printable(text: str) -> str:
    """A name or message from a file, fit for a terminal."""
    return ''.join(itertools.islice((c if c.isprintable() else '?' for c in text), 200))
