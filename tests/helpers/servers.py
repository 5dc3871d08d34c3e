"""Servers on this machine for tests of addresses: files over HTTP that fail as asked, and an S3."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


class FileServer(ThreadingHTTPServer):
    """Serves a folder by HTTP, with ranges.

    Attributes:
        mode: How it answers: 'sound', 'no ranges', 'short' (a part of what was asked), 'other'
            (another range), 'slow' (no answer), 'trickle' (of the body, or 'trickle headers'),
            'redirect', or a status to answer with.
        failures: How many requests `mode` still holds for; -1 for all.
        asked: (method, path, range) of every request.
        etag: Sent with every file where it isn't ''.
        retry_after: Sent with a status where it isn't ''.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.folder, self.mode, self.failures, self.etag = folder, 'sound', -1, ''
        self.retry_after = ''
        self.asked: list[tuple[str, str, str | None]] = []
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f'http://127.0.0.1:{self.server_address[1]}'


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = 'HTTP/1.1'

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = self.headers.get('Range')
        self.server.asked.append((self.command, self.path, asked))
        mode = self.server.mode if self.server.failures else 'sound'
        self.server.failures -= mode != 'sound' and self.server.failures > 0
        if mode == 'slow':
            self.server.closing.wait(20)
            self.close_connection = True
            return
        if mode == 'trickle headers':
            self.close_connection = True
            while not self.server.closing.wait(0.05):
                self.wfile.write(b'H')
            return
        if isinstance(mode, int):
            wait = self.server.retry_after
            return self._send(b'', mode, **({'Retry_After': wait} if wait else {}))
        if mode == 'redirect':
            return self._send(b'', 302, Location='http://127.0.0.1:1/elsewhere')
        file = self.server.folder / self.path.lstrip('/')
        if not file.is_file():
            return self._send(b'', 404)
        data, tag = file.read_bytes(), self.server.etag
        headers = {'ETag': tag} if tag else {}
        if asked is None or mode == 'no ranges':
            return self._send(data, 200, **headers)
        start, _, stop = asked.removeprefix('bytes=').partition('-')
        first, last = int(start), min(int(stop) + 1, len(data))
        part = data[first:last]
        if mode == 'other':
            first += 1
        headers['Content-Range'] = f'bytes {first}-{last - 1}/{len(data)}'
        if mode == 'short':
            part = part[: len(part) // 2]
        self._send(part, 206, **headers)

    def _send(self, body: bytes, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            if self.server.mode == 'trickle':
                for byte in body[:20]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
                self.close_connection = True
                return
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve_files(folder: Path) -> Iterator[FileServer]:
    """Serve a folder while the block runs."""
    server = FileServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


#: What botocore takes as settings, here of an account that there is only in tests.
S3_ACCOUNT = {
    'AWS_ACCESS_KEY_ID': 'AKIATESTTESTTEST',
    'AWS_SECRET_ACCESS_KEY': 'secret-of-the-test',
    'AWS_DEFAULT_REGION': 'us-east-1',
    'AWS_EC2_METADATA_DISABLED': 'true',
}


@contextmanager
def serve_s3(monkeypatch: pytest.MonkeyPatch, bucket: str = 'bucket') -> Iterator[str]:
    """Run an S3 in this process, with an empty bucket, and have it found by the environment."""
    moto = pytest.importorskip('moto.server')
    boto3 = pytest.importorskip('boto3')
    pytest.importorskip('s3fs')
    server = moto.ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f'http://{host}:{port}'
    for name, value in {**S3_ACCOUNT, 'AWS_ENDPOINT_URL': endpoint}.items():
        monkeypatch.setenv(name, value)
    try:
        boto3.client('s3').create_bucket(Bucket=bucket)
        yield endpoint
    finally:
        server.stop()


#: Files that the Hub wants apart, by their sha256.
_LARGE = ('.tar', '.safetensors', '.pth')


class HubServer(ThreadingHTTPServer):
    """As much of the Hub as reading and committing takes, in memory.

    Attributes:
        repos: 'datasets/me/name' or 'models/me/name' -> name of a file -> its bytes.
        commits: (repository, names) of every commit.
        tokens: The tokens that came with requests.
        asked: The paths that were asked for, one for each request.
        together: Where it is set, the requests for ranges wait here for each other.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _HubHandler)
        self.asked: list[str] = []
        self.together: threading.Barrier | None = None
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[tuple[str, list[str]]] = []
        self.tokens: set[str | None] = set()
        self.fail_commit: str | None = None

    @property
    def address(self) -> str:
        return f'http://127.0.0.1:{self.server_address[1]}'


class _HubHandler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = 'HTTP/1.1'

    def _body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') == 'chunked':
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b''.join(parts)
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))

    def _answer(self) -> None:
        self.server.tokens.add(self.headers.get('Authorization'))
        body, path = self._body(), unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        if path.startswith('/objects/'):
            self.server.objects[path.removeprefix('/objects/')] = body
            return self._send(b'')
        if path == '/api/validate-yaml':
            return self._json({'errors': [], 'warnings': []})
        if path == '/api/repos/create':
            asked = json.loads(body)
            name = f'{asked.get("type", "model")}s/{asked["organization"]}/{asked["name"]}'
            status = 409 if name in self.server.repos else 200
            self.server.repos.setdefault(name, {})
            return self._json({'url': f'{self.server.address}/{name}'}, status)
        if '.git/info/lfs/objects/batch' in path:
            href = f'{self.server.address}/objects/'
            objects = [
                {**each, 'actions': {'upload': {'href': href + each['oid']}}}
                for each in json.loads(body)['objects']
            ]
            return self._json({'transfer': 'basic', 'objects': objects})
        parts = path.removeprefix('/api').strip('/').split('/')
        if parts[0] not in ('datasets', 'models'):
            parts.insert(0, 'models')
        name, what = '/'.join(parts[:3]), parts[3] if len(parts) > 3 else 'info'
        files = self.server.repos.get(name)
        if files is None:
            return self._json({'error': 'Repository not found'}, 404, 'RepoNotFound')
        if what == 'preupload':
            asked = json.loads(body)['files']
            modes = [
                {
                    'path': file['path'],
                    'uploadMode': 'lfs' if file['path'].endswith(_LARGE) else 'regular',
                    'shouldIgnore': False,
                }
                for file in asked
            ]
            return self._json({'files': modes})
        if what == 'commit':
            return self._commit(name, files, body)
        if what == 'paths-info':
            asked = json.loads(body) if body[:1] == b'{' else parse_qs(body.decode())
            found = [self._info(files, file) for file in asked['paths'] if file in files]
            return self._json(found)
        if what == 'tree':
            return self._json([self._info(files, file) for file in files])
        if what == 'resolve':
            return self._file(files, '/'.join(parts[5:]))
        self._json({'id': name.partition('/')[2], 'sha': 40 * 'a', 'siblings': []})

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _info(self, files: dict[str, bytes], name: str) -> dict[str, object]:
        data = files[name]
        info = {
            'type': 'file',
            'path': name,
            'size': len(data),
            'oid': hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest(),
        }
        if name.endswith(_LARGE):
            info['lfs'] = {
                'oid': hashlib.sha256(data).hexdigest(),
                'size': len(data),
                'pointerSize': 9,
            }
        return info

    def _commit(self, name: str, files: dict[str, bytes], body: bytes) -> None:
        added = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry['value']
            if entry['key'] == 'file':
                added[value['path']] = base64.b64decode(value['content'])
            elif entry['key'] == 'lfsFile':
                added[value['path']] = self.server.objects[value['oid']]
            elif entry['key'] == 'deletedFile':
                files.pop(value['path'], None)
        if self.server.fail_commit in added:
            return self._json({'error': 'busy'}, 503)
        files.update(added)
        self.server.commits.append((name, list(added)))
        where = f'{self.server.address}/{name.removeprefix("models/")}/commit/{40 * "b"}'
        self._json({'commitUrl': where, 'commitOid': 40 * 'b', 'pullRequestUrl': ''})

    def _file(self, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            return self._json({'error': 'Entry not found'}, 404, 'EntryNotFound')
        data, asked = files[name], self.headers.get('Range')
        headers = {'ETag': '"x"', 'X-Repo-Commit': 40 * 'a'}
        if asked is None:
            return self._send(data, 200, **headers)
        if self.server.together is not None:
            with suppress(threading.BrokenBarrierError):  # the test looks whether it is broken
                self.server.together.wait()
        first, _, last = asked.removeprefix('bytes=').partition('-')
        stop = min(int(last) + 1, len(data))
        headers['Content-Range'] = f'bytes {first}-{stop - 1}/{len(data)}'
        self._send(data[int(first) : stop], 206, **headers)

    def _json(self, value: object, status: int = 200, error: str = '') -> None:
        headers = {'Content-Type': 'application/json', **({'X-Error-Code': error} if error else {})}
        self._send(json.dumps(value).encode(), status, **headers)

    def _send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run a Hub in this process, and have huggingface_hub find it."""
    constants = pytest.importorskip('huggingface_hub.constants')
    from huggingface_hub import file_download
    from huggingface_hub.utils import reset_sessions

    server = HubServer()
    monkeypatch.setattr(constants, 'ENDPOINT', server.address)
    template = server.address + '/{repo_id}/resolve/{revision}/{filename}'
    for module in (constants, file_download):  # whichever has been asked for it
        if hasattr(module, 'HUGGINGFACE_CO_URL_TEMPLATE'):
            monkeypatch.setattr(module, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setenv('HF_TOKEN', 'hf_secretofthetest')
    reset_sessions()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        monkeypatch.undo()
        reset_sessions()
