"""Folders at addresses (`s3://`, `gs://`, `hf://`, `https://`): files read by range, written whole.

Credentials are what the libraries find themselves (environment, profiles, tokens); an address that
holds some is refused, and messages are this module's own words, never a library's. Only names of
plain files below the address are asked for, and redirections elsewhere are not followed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeGuard, TypeVar
from urllib.parse import unquote

from freeatm_mm.compat import hub_answers, hub_silence
from freeatm_mm.errors import InputError, MissingFileError, counted, is_distant, pip_install
from freeatm_mm.files import MAX_BYTES, atomic_write, open_regular, read_bytes

__all__ = [
    'RemoteFolder',
    'UnreachableError',
    'cache_folder',
    'check_address',
    'file_here',
    'is_address',
    'keeping',
    'local_folder',
    'parse_bytes',
]

#: Seconds without a byte after which a request is given up, and seconds that one may take in all.
TIMEOUT, DEADLINE = 60.0, 600.0
#: Seconds in which a connection must stand.
CONNECT = 10.0
#: Seconds before a request that failed is made again; after the last one it is an error.
DELAYS = (0.5, 1.0, 2.0, 4.0)
#: Seconds that a server may ask to wait before the next try; one that asks for more is given up.
PATIENCE = 60.0
#: Bytes of the largest single file that is copied here to be read.
MOST_COPIED = 1 << 36
#: Bytes of one request where a file is read from its start to its end.
PIECE = 1 << 24
#: Bytes of a part, where a file is uploaded in several: S3's checksum follows from it.
PART = 1 << 24

#: Scheme -> the package that it needs.
_SCHEMES = {
    's3': 's3fs',
    'gs': 'gcsfs',
    'hf': 'huggingface_hub',
    'https': 'requests',
    'http': 'requests',
    'memory': 'fsspec',
}
_ADDRESS = re.compile(r'([A-Za-z][A-Za-z0-9+.:-]*)://(.*)', re.DOTALL)
_NAME = re.compile(r'(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*')
_UNITS = {'': 1, 'k': 10**3, 'm': 10**6, 'g': 10**9, 't': 10**12}
_LATE = 'took more than {:g} s'
# Errors of a program, not of a server.
_MISTAKES = (AssertionError, AttributeError, ImportError, NameError, TypeError)

_T = TypeVar('_T')


def is_address(path: object) -> TypeGuard[str]:
    """Whether a path is an address (`scheme://...`), not a file or folder of this machine."""
    return isinstance(path, str) and _ADDRESS.fullmatch(path) is not None


def check_address(address: str) -> str:
    """Return an address in its plain form, without a slash at the end.

    Raises:
        InputError: If its scheme is none that is read, it holds a password or a query, which may be
            one, or it isn't the name of a folder.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InputError(f'{address!r} is no address: it begins with {_schemes()}')
    scheme, rest = match[1].lower(), match[2].rstrip('/')
    parts = rest.split('/')
    # What may be secret is not repeated.
    shown = f'{scheme}://{re.split("[?#]", rest)[0].rpartition("@")[2]}'
    if scheme not in _SCHEMES:
        raise InputError(f'{shown}: addresses begin with {_schemes()}')
    if '?' in rest or '#' in rest or scheme != 'hf' and '@' in parts[0]:
        raise InputError(
            f'{shown}: an address holds no user name, password or query; give credentials as the '
            'library for it takes them (environment variables, a profile, a token)'
        )
    for part in parts:
        plain = unquote(part)
        if plain in ('', '.', '..') or re.search(r'[\x00-\x1f\\/]', plain):
            raise InputError(f'{shown} is not the address of a folder: {plain!r} is no name in it')
    if scheme == 'hf' and len(parts) < (3 if parts[0] in ('datasets', 'spaces') else 2):
        raise InputError(f'{shown}: use hf://datasets/USER/NAME, or hf://USER/NAME for a model')
    return f'{scheme}://{"/".join(parts)}'


def local_folder(path: str | Path) -> Path:
    """Return the path of a folder that is to be written.

    Raises:
        InputError: If it is an address, or no name at all.
    """
    if not str(path):
        raise InputError('the name of the folder that is to be written is empty')
    if is_distant(path):
        shown = check_address(path) if is_address(path) else path
        raise InputError(
            f"{shown} can't be written to directly: write to a folder here, then: freeatm push "
            'FOLDER ADDRESS'
        )
    return Path(path)


def _schemes() -> str:
    return ', '.join(f'{scheme}://' for scheme in ('s3', 'gs', 'hf')) + ' or https://'


def parse_bytes(text: str | int) -> int:
    """Read a number of bytes such as `'50GB'`, `'500 M'` or `1000000`.

    Raises:
        InputError: If it is none.
    """
    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?', str(text).strip().lower())
    if match is None:
        raise InputError(f'{text!r} is no number of bytes, such as 50GB')
    return int(float(match[1]) * _UNITS[match[2]])


def cache_folder() -> Path:
    """Where what was read from addresses is kept: `FREEATM_CACHE`, or a folder of `~/.cache`.

    Raises:
        InputError: If it can't be made.
    """
    folder = os.environ.get('FREEATM_CACHE')
    if not folder:
        base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
        if base.startswith('~'):
            raise InputError('there is no home folder for the cache: name one in FREEATM_CACHE')
        folder = os.path.join(base, 'freeatm_mm', 'stores')
    try:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the cache {folder} can't be made ({error.strerror}): name another in FREEATM_CACHE"
        ) from None
    return Path(folder)


@contextmanager
def keeping(name: str) -> Iterator[None]:
    """Say of a block that writes into the cache what to do where it can't.

    Args:
        name: What is kept, for the message.

    Raises:
        InputError: If the block raised an error of the disk.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"{name} can't be kept in the cache {cache_folder()} ({error.strerror}): make room, or "
            'name another folder in FREEATM_CACHE'
        ) from None


def file_here(path: str | Path) -> Path:
    """Return the path of a file to read: of one at an address, of its copy in the cache.

    What is there already is copied again if the file has changed at its address.

    Args:
        path: A path, or the address of a file.

    Raises:
        MissingFileError: If there is no such file at the address.
        InputError: If it can't be read, or has more than 64 GiB.
    """
    if not is_address(path):
        return Path(path)
    folder, _, name = check_address(path).rpartition('/')
    if folder.endswith('/'):
        raise InputError(f'{path} is not the address of a file')
    return RemoteFolder(folder).copied(name, MOST_COPIED)


class UnreachableError(InputError):
    """A server gives no answer, or none that can be used, and may another time."""


class FileState(NamedTuple):
    """What a server says of a file.

    Attributes:
        size: Its bytes.
        tag: Changes when the file does; `None` where the server has no such thing.
    """

    size: int
    tag: str | None


class RemoteFolder:
    """The files of a folder at an address.

    Requests that fail are made again, a few times; what has no hope (not there, not allowed) is
    not. It can be pickled, forked and shared by threads: every process has its own connection.

    Args:
        address: Such as `s3://bucket/folder`.

    Raises:
        InputError: If the address can't be used.
    """

    def __init__(self, address: str) -> None:
        self.address = check_address(address)
        self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFolder, (self.address,)

    def _begin(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._server: _Server | None = None

    def state(self, name: str) -> FileState:
        """Size and tag of a file; raises as `read`."""
        return self._try(name, lambda server, place: server.state(place))

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Read bytes `start` to `stop` of a file, all of them.

        Raises:
            MissingFileError: If there is no such file.
            InputError: If it can't be read, the server gives no ranges, or fewer bytes than asked.
        """

        def action(server: _Server, place: str) -> bytes:
            data = server.read(place, start, stop)
            if len(data) > stop - start:
                raise _NoRangesError
            if len(data) < stop - start:
                raise _ShortError(f'ends at byte {start + len(data)}, before {stop}')
            return data

        return self._try(name, action) if stop > start else b''

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """Read the first `size` bytes of a file, piece by piece; raises as `read`."""
        for start in range(0, size, PIECE):
            yield self.read(name, start, min(size, start + PIECE))

    def fetch(
        self,
        name: str,
        path: Path,
        size: int,
        sha256: str | None = None,
        progress: Callable[[int], Any] = lambda count: None,
        write: Callable[[Path], AbstractContextManager[BinaryIO]] = atomic_write,
    ) -> None:
        """Copy a file to this machine, where it appears once it is whole and proved.

        Args:
            name: The file.
            path: Where to.
            size: Its bytes.
            sha256: What it must have, in hex.
            progress: Called with the number of bytes of each piece.
            write: Opens the file to be written.

        Raises:
            InputError: As `read`, or if the sha256 is another.
        """
        digest = hashlib.sha256()
        with write(path) as file:
            for piece in self.pieces(name, size):
                digest.update(piece)
                file.write(piece)
                progress(len(piece))
            if sha256 is not None and digest.hexdigest() != sha256:
                raise InputError(
                    f"{self.address}/{name} is not the file that was written: its sha256 isn't the "
                    'recorded one'
                )

    def read_cached(self, name: str, limit: int = MAX_BYTES) -> bytes:
        """Read a file whole, from the cache if it hasn't changed at its address.

        Args:
            name: The file.
            limit: Most bytes that it may have.

        Raises:
            InputError: As `read`, or if it is larger.
        """
        state = self._state_within(name, limit)
        if state.tag is None:
            return b''.join(self.pieces(name, state.size))
        return read_bytes(self._copy(name, state), limit)

    def copied(self, name: str, limit: int = MAX_BYTES) -> Path:
        """Return the path of a file's copy in the cache, made unless it is there unchanged.

        Args:
            name: The file.
            limit: Most bytes that it may have.

        Raises:
            InputError: As `read_cached`.
        """
        return self._copy(name, self._state_within(name, limit))

    def _state_within(self, name: str, limit: int) -> FileState:
        state = self.state(name)
        if state.size > limit:
            raise InputError(
                f'{self.address}/{name} has {state.size} bytes, more than the {limit} that such a '
                'file may have'
            )
        return state

    def _copy(self, name: str, state: FileState) -> Path:
        size, tag = state
        key = hashlib.sha256(f'{self.address}/{name}\n{size}\n{tag}'.encode()).hexdigest()
        path = cache_folder() / key / name.rpartition('/')[2]
        with keeping(f'{self.address}/{name}'):
            # Without a tag nothing says whether it has changed.
            if tag is None or not path.is_file() or path.stat().st_size != size:
                self.fetch(name, path, size)
        return path

    def names(self) -> dict[str, int] | None:
        """Names and sizes of the files in the folder; `None` where the server lists nothing."""
        try:
            return self._try('', lambda server, place: server.names(place))
        except MissingFileError:
            return {}

    def holds(self, path: Path, name: str, sha256: str) -> bool:
        """Whether the folder holds a copy of a file of this machine, by checksum.

        Where the server has a checksum that can be compared (an ETag of S3 that is no encryption's,
        Google's MD5, the Hub's sha256), it is; elsewhere the copy is read.

        Args:
            path: The file here.
            name: Its name there.
            sha256: Its sha256, in hex.
        """
        try:
            size = self.state(name).size
        except MissingFileError:
            return False
        if size != path.stat().st_size:
            return False
        proved = self._try(name, lambda server, place: server.same(place, path, sha256))
        if proved is not None:
            return proved
        digest = hashlib.sha256()
        for piece in self.pieces(name, size):
            digest.update(piece)
        return digest.hexdigest() == sha256

    @property
    def commits(self) -> bool:
        """Whether files are better written many at once, as each writing is a commit."""
        return self.address.startswith('hf://')

    def create(self, private: bool) -> None:
        """Make the repository of a folder on the Hub, unless it is there.

        Args:
            private: Whether one that is made can be seen by its owner alone.

        Raises:
            InputError: If the Hub refuses.
        """
        self._try('', lambda server, place: server.create(place, private))

    def upload_many(self, files: Sequence[tuple[Path, str, str]]) -> None:
        """Write files of this machine into the folder, in order, and prove that they arrived.

        Args:
            files: Path, name there and sha256 of each.

        Raises:
            InputError: If one can't be written, or other bytes arrived.
        """
        for path, name, _ in files:
            os.close(open_regular(path))
            self._check(name)
        if self.commits and files:
            places = [(path, f'{self.address}/{name}') for path, name, _ in files]
            self._try('', lambda server, _: server.write_all(places))
        for path, name, sha256 in files:
            if not self.commits:
                self._try(name, partial(_write, path))
            if not self.holds(path, name, sha256):
                raise InputError(
                    f'{self.address}/{name} is not what was uploaded: its checksum is another; '
                    'start the same command once more'
                )

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            self._try(name, lambda server, place: server.remove(place))
        except MissingFileError:
            return

    def _check(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise InputError(f'{name!r} is no name of a file in {self.address}')

    def _try(self, name: str, action: Callable[[_Server, str], _T]) -> _T:
        if name:
            self._check(name)
        place = f'{self.address}/{name}' if name else self.address
        for delay in (*DELAYS, None):
            try:
                return action(self._connected(), place)
            except (*_MISTAKES, InputError):
                raise
            except Exception as error:  # whatever a library raises where a server fails
                problem = _explain(error)
                if problem.missing:
                    raise MissingFileError(f'{place} is not there') from None
                if delay is None or not problem.again:
                    if not problem.again:
                        raise InputError(f'{place} {problem.what}') from None
                    tries = f'({len(DELAYS) + 1} tries)'
                    raise UnreachableError(f'{place} {problem.what} {tries}') from None
                if problem.wait > PATIENCE:
                    raise UnreachableError(
                        f'{place} {problem.what} and asks to wait {problem.wait:.0f} s: start the '
                        'same command again then'
                    ) from None
            time.sleep(max(delay, problem.wait))
        raise AssertionError

    def _connected(self) -> _Server:
        if self._pid != os.getpid():  # after a fork: the parent's lock may be held for ever
            self._begin()
        with self._lock:
            if self._server is None:
                self._server = _connect(self.address.partition(':')[0])
            return self._server


def _write(path: Path, server: _Server, place: str) -> None:
    server.write(path, place)


class _Server(Protocol):
    """What one kind of server can do; `place` is a whole address."""

    def state(self, place: str) -> FileState: ...

    def read(self, place: str, start: int, stop: int) -> bytes: ...

    def names(self, place: str) -> dict[str, int] | None: ...

    def same(self, place: str, path: Path, sha256: str) -> bool | None: ...

    def write(self, path: Path, place: str) -> None: ...

    def write_all(self, files: Sequence[tuple[Path, str]]) -> None: ...

    def remove(self, place: str) -> None: ...

    def create(self, place: str, private: bool) -> None: ...


def _connect(scheme: str) -> _Server:
    try:
        return _Web() if scheme in ('http', 'https') else _FileSystem(scheme)
    except ImportError:
        package = _SCHEMES[scheme]
        how = f'pip install {package}' if scheme == 'gs' else pip_install('remote')
        raise InputError(f'{scheme}:// needs {package}: {how}') from None


class _Web:
    """Servers of files over HTTP: plain GETs of ranges."""

    def __init__(self) -> None:
        import requests

        self._requests, self._sessions = requests, threading.local()

    def _ask(self, method: str, place: str, **headers: str) -> Any:
        if not hasattr(self._sessions, 'session'):
            self._sessions.session = self._requests.Session()
        request = partial(
            self._sessions.session.request,
            method,
            place,
            headers={'Accept-Encoding': 'identity', **headers},
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT, TIMEOUT),
        )
        # In a thread, as TIMEOUT is for one byte, and headers can come byte by byte for ever.
        answer: Future[Any] = Future()
        threading.Thread(target=_settle, args=(answer, request), daemon=True).start()
        if not wait([answer], DEADLINE).done:
            del self._sessions.session  # which that thread still has
            raise _ShortError(_LATE.format(DEADLINE))
        response = answer.result()
        if 300 <= response.status_code < 400:
            response.close()
            raise InputError(
                f'{place} leads to another address, which is not followed: give that one '
                '(hf:// for the Hub)'
            )
        response.raise_for_status()
        return response

    def state(self, place: str) -> FileState:
        with self._ask('HEAD', place) as response:
            size = response.headers.get('Content-Length', '')
            tag = response.headers.get('ETag') or response.headers.get('Last-Modified')
        if not size.isdecimal():
            raise InputError(f"{place} can't be read by range: its server tells no size")
        return FileState(int(size), tag)

    def read(self, place: str, start: int, stop: int) -> bytes:
        with self._ask('GET', place, Range=f'bytes={start}-{stop - 1}') as response:
            if response.status_code != 206:
                # The whole file: no matter if that is what was asked for.
                if start or response.headers.get('Content-Length') != str(stop):
                    raise _NoRangesError
            elif not response.headers.get('Content-Range', '').startswith(f'bytes {start}-'):
                raise _ShortError('comes with other bytes than were asked for')
            data, due = bytearray(), time.monotonic() + DEADLINE
            # What has come, without waiting for more: iter_content would, byte by byte for ever.
            while len(data) <= stop - start and (piece := response.raw.read1(1 << 16)):
                data += piece
                if time.monotonic() > due:
                    raise _ShortError(_LATE.format(DEADLINE))
        return bytes(data)

    def names(self, place: str) -> None:
        return None

    def same(self, place: str, path: Path, sha256: str) -> None:
        return None

    def write(self, path: Path, place: str) -> None:
        raise InputError(f"{place} can't be written to: use s3://, gs:// or hf://")

    def write_all(self, files: Sequence[tuple[Path, str]]) -> None:
        self.write(*files[0])

    def create(self, place: str, private: bool) -> None:
        raise InputError(f"{place} can't be made: only the Hub's repositories are, hf://")

    def remove(self, place: str) -> None:
        raise InputError(f"{place} can't be removed: use s3://, gs:// or hf://")


class _FileSystem:
    """Object stores, through fsspec."""

    def __init__(self, scheme: str) -> None:
        import fsspec

        options: dict[str, Any] = {'skip_instance_cache': True, 'use_listings_cache': False}
        if scheme == 's3':
            # Time-outs of ours, and tries counted once.
            options['config_kwargs'] = {
                'connect_timeout': CONNECT,
                'read_timeout': TIMEOUT,
                'retries': {'total_max_attempts': 1},
            }
        elif scheme == 'gs':
            options['requests_timeout'] = TIMEOUT
        elif scheme == 'hf' and not hub_answers():
            raise UnreachableError(f"hf:// can't be reached: {hub_silence()}")
        self._scheme, self._fs = scheme, fsspec.filesystem(scheme, **options)
        if scheme == 's3':
            self._fs.retries = 1
        self._limit = {'timeout': DEADLINE} if self._fs.async_impl else {}
        # The Hub's file system keeps what it lists, entry by entry: a thread that looked in the
        # meantime would take the rest for missing.
        self._listing: AbstractContextManager[Any] = (
            threading.Lock() if scheme == 'hf' else nullcontext()
        )

    def state(self, place: str) -> FileState:
        info = self._info(place)
        names = ('ETag', 'etag', 'blob_id', 'generation', 'created')
        tag = next((str(info[name]) for name in names if info.get(name)), None)
        return FileState(int(info['size']), tag)

    def _info(self, place: str) -> dict[str, Any]:
        with self._listing:
            info = self._fs.info(place, **self._limit)
        if info['type'] != 'file':
            raise FileNotFoundError
        return info

    def read(self, place: str, start: int, stop: int) -> bytes:
        if self._scheme != 'hf':
            return self._fs.cat_file(place, start=start, end=stop, **self._limit)
        # What the Hub has told of its place is kept, so that this asks it for the bytes alone.
        with self._listing:
            file = self._fs.open(place, 'rb', cache_type='none')
        file.seek(start)
        return file.read(stop - start)

    def names(self, place: str) -> dict[str, int]:
        with self._listing:
            found = self._fs.ls(place, detail=True, **self._limit)
        return {
            item['name'].rstrip('/').rpartition('/')[2]: int(item['size'] or 0)
            for item in found
            if item['type'] == 'file'
        }

    def same(self, place: str, path: Path, sha256: str) -> bool | None:
        info = self._info(place)
        if self._scheme == 's3':
            # Of an encrypted object it is something else: that proves nothing.
            return str(info.get('ETag', '')).strip('"') == _etag(path) or None
        if self._scheme == 'gs' and info.get('md5Hash'):
            return info['md5Hash'] == base64.b64encode(_md5(path)).decode()
        if self._scheme == 'hf':
            if info.get('lfs'):
                return info['lfs']['sha256'] == sha256
            return info.get('blob_id') == _blob_id(path)
        return None

    def write(self, path: Path, place: str) -> None:
        options = {'chunksize': PART, 'max_concurrency': 4} if self._scheme == 's3' else {}
        self._fs.put_file(str(path), place, **options)

    def create(self, place: str, private: bool) -> None:
        kind, _, name = place.removeprefix('hf://').partition('/')
        if kind != 'datasets':
            kind, name = 'models', f'{kind}/{name}'
        self._fs._api.create_repo(name, repo_type=kind[:-1], private=private, exist_ok=True)
        self._fs.invalidate_cache()

    def write_all(self, files: Sequence[tuple[Path, str]]) -> None:
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.utils import disable_progress_bars

        places = [self._fs.resolve_path(place) for _, place in files]
        if not (sys.stderr and sys.stderr.isatty()):
            disable_progress_bars()  # in a log they are a line for every per cent
        self._fs._api.create_commit(
            places[0].repo_id,
            [
                CommitOperationAdd(place.path_in_repo, path)
                for place, (path, _) in zip(places, files)
            ],
            commit_message=f'Add {files[-1][0].name} and {counted(len(files) - 1, "more file")}',
            repo_type=places[0].repo_type,
            revision=places[0].revision,
        )
        self._fs.invalidate_cache()

    def remove(self, place: str) -> None:
        self._fs.rm_file(place)


def _settle(answer: Future[_T], action: Callable[[], _T]) -> None:
    try:
        answer.set_result(action())
    except BaseException as error:
        answer.set_exception(error)


class _NoRangesError(Exception):
    """The server gives whole files only."""


class _ShortError(Exception):
    """The server gives other bytes than asked for; the message says which."""


class _Explained(NamedTuple):
    """An error in this module's words.

    Attributes:
        what: What is wrong, to follow the address.
        again: Whether another try may help.
        missing: Whether the file isn't there.
        wait: Seconds that the server asks to wait before.
    """

    what: str
    again: bool = False
    missing: bool = False
    wait: float = 0.0


def _explain(error: BaseException) -> _Explained:
    """Say what a library's error means, without its words: they may hold signed addresses."""
    if isinstance(error, _NoRangesError):
        return _Explained("can't be read by range: its server sends whole files only")
    if isinstance(error, _ShortError):
        return _Explained(str(error), again=True)
    causes: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in causes and len(causes) < 8:
        causes.append(link)
        link = link.__cause__ or link.__context__
    status = next((code for cause in causes if (code := _status(cause))), 0)
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    text = ' '.join(sorted(names))
    if 'OfflineModeIsEnabled' in names:
        return _Explained("can't be reached: HF_HUB_OFFLINE is set")
    if status in (401, 403) or PermissionError in map(type, causes) or 'Credentials' in text:
        return _Explained(
            'may not be read or written, or is not there: check credentials and address'
        )
    if status in (404, 410) or ('FileNotFoundError' in names and status < 400):
        return _Explained('is not there', missing=True)
    if status in (408, 429) or status >= 500:
        wait = max(map(_asked_wait, causes))
        return _Explained(f"can't be reached: its server answers {status}", again=True, wait=wait)
    if status == 416:
        return _Explained('ends before the bytes that were asked for')
    if status >= 400:
        return _Explained(f"can't be used: its server answers {status}")
    refused = {'ConnectionRefusedError', 'gaierror'} & names
    # urllib3 counts a refused connection among those that took too long.
    if 'NewConnectionError' not in names and re.search('ConnectTimeout|ConnectionTimeout', text):
        return _Explained(f"can't be reached: no connection within {CONNECT:g} s", again=True)
    if not refused and ('TimeoutError' in names or 'Timeout' in text):
        return _Explained(f'gave no answer within {TIMEOUT:g} s', again=True)
    if refused or re.search('Connect|Protocol|IncompleteRead', text):
        return _Explained("can't be reached: the connection failed", again=True)
    return _Explained(f'failed ({type(error).__name__})', again=True)


def _status(error: BaseException) -> int:
    """The HTTP status that a library's error stands for; 0 if it tells none."""
    response = getattr(error, 'response', None)
    if isinstance(response, dict):  # botocore
        found = response.get('ResponseMetadata', {}).get('HTTPStatusCode')
    elif response is not None:  # requests, httpx
        found = getattr(response, 'status_code', None)
    else:  # aiohttp, gcsfs
        found = getattr(error, 'status', None) or getattr(error, 'code', None)
    return found if isinstance(found, int) and 100 <= found < 600 else 0


def _asked_wait(error: BaseException) -> float:
    """Seconds that a server asks to wait for (Retry-After); 0 if it says nothing of that."""
    response = getattr(error, 'response', None)
    if isinstance(response, dict):  # botocore
        headers = response.get('ResponseMetadata', {}).get('HTTPHeaders')
    else:  # requests, httpx; aiohttp
        headers = getattr(response, 'headers', None) or getattr(error, 'headers', None)
    try:
        text = str((headers or {}).get('Retry-After') or (headers or {}).get('retry-after') or '')
        if text.isdecimal() and len(text) < 10:
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (AttributeError, TypeError, ValueError, OverflowError):
        return 0.0


def _file_pieces(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with os.fdopen(open_regular(path), 'rb') as file:
        while piece := file.read(size):
            yield piece


def _md5(path: Path) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    for piece in _file_pieces(path):
        digest.update(piece)
    return digest.digest()


def _etag(path: Path) -> str:
    """The ETag that S3 gives a file which is uploaded as `_FileSystem.write` does it."""
    if path.stat().st_size < 2 * PART:
        return _md5(path).hex()
    parts = [
        hashlib.md5(piece, usedforsecurity=False).digest() for piece in _file_pieces(path, PART)
    ]
    return f'{hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}'


def _blob_id(path: Path) -> str:
    """The name that git gives a file's content."""
    digest = hashlib.sha1(b'blob %d\0' % path.stat().st_size, usedforsecurity=False)
    for piece in _file_pieces(path):
        digest.update(piece)
    return digest.hexdigest()
