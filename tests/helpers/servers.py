"""Servers on this machine for tests of addresses: files over HTTP that fail as asked, and an S3."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class FileServer(ThreadingHTTPServer):
    """Serves a folder by HTTP, with ranges.

    Attributes:
        mode: How it answers: 'sound', 'no ranges', 'short' (a part of what was asked), 'other'
            (another range), 'slow' (no answer), 'trickle', 'redirect', or a status to answer with.
        failures: How many requests `mode` still holds for; -1 for all.
        asked: (method, path, range) of every request.
        etag: Sent with every file where it isn't ''.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.folder, self.mode, self.failures, self.etag = folder, 'sound', -1, ''
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
        if isinstance(mode, int):
            return self._send(b'', mode)
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
