"""A server on this machine alone that shows a store of any size, a page at a time."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from freeatm_mm.browse.index import ORDERS, StoreIndex
from freeatm_mm.browse.page import card, mask_picture, render
from freeatm_mm.errors import InputError
from freeatm_mm.store import Store, StoreError
from freeatm_mm.store.errors import UnreachableStoreError

__all__ = ['make_server']

_LOG = logging.getLogger(__name__)
_MOST_CARDS = 60
_MOST_TEXT = 100
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds, for a server that can't be reached
_IMAGE, _MASK = re.compile(r'/image/(\d{1,12})'), re.compile(r'/mask/(\d{1,12})/(\d{1,12})')
_HERE = re.compile(r'(127\.0\.0\.1|localhost)(:\d{1,5})?', re.IGNORECASE)
_TYPES = {'jpg': 'image/jpeg', 'png': 'image/png'}
_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'"
)


class _Server(ThreadingHTTPServer):
    """Knows the store, and reads through it once for its index."""

    daemon_threads = True

    def __init__(self, store: Store, port: int) -> None:
        self.store, self.index, self.damaged = store, StoreIndex(), 0
        self.unreachable = ''  # why, as long as reading waits for the store's server
        self._stopped = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        super().__init__(('127.0.0.1', port), _Handler)  # raises where the port is taken
        self.reader.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over browsers that no longer wait for a picture; a fault keeps its traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def _read(self) -> None:
        number, wait = 0, _FIRST_WAIT
        while number < len(self.store) and not self._stopped.is_set():
            try:
                self.index.add(number, self.store.read(number))
            except UnreachableStoreError as error:  # says nothing of the sample: it is asked again
                if not self.unreachable:
                    _LOG.warning('%s; it is tried again until it can be', error)
                self.unreachable = str(error)
                self._stopped.wait(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            except StoreError as error:
                self.damaged += 1
                _LOG.warning('not shown: %s', error)
            number, wait, self.unreachable = number + 1, _FIRST_WAIT, ''

    def server_close(self) -> None:
        """Stop reading, too."""
        self._stopped.set()
        super().server_close()
        if self.reader.is_alive():
            self.reader.join(timeout=10)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET for the page, its cards and their pictures; nothing names a file."""

    server: _Server
    protocol_version = 'HTTP/1.1'
    timeout = 30

    def do_GET(self) -> None:
        """Answer, or say why not."""
        # Another site's name that was made to lead here must not read the store. A tunnel may begin
        # at any port, and keeps its own in the name.
        if not _HERE.fullmatch(self.headers.get('Host', '')):
            self._send(b'only 127.0.0.1 and localhost are served', status=HTTPStatus.FORBIDDEN)
            return
        try:
            try:
                url = urlsplit(self.path)
            except ValueError:  # such as //[
                raise InputError('this is no address') from None
            if url.path == '/':
                title = f'{Path(self.server.store.path).resolve().name}: a store'
                self._send(render(title).encode(), 'text/html; charset=utf-8')
            elif url.path == '/cards':
                self._send(json.dumps(self._cards(url.query)).encode(), 'application/json')
            elif found := _IMAGE.fullmatch(url.path):
                raw = self.server.store.read(int(found[1]))
                self._send(raw.image_bytes, _TYPES[raw.image_format])
            elif found := _MASK.fullmatch(url.path):
                mask = self.server.store.read(int(found[1])).masks()[int(found[2])]
                self._send(mask_picture(mask, int(found[2])), 'image/png')
            else:
                self._send(b'there is nothing here', status=HTTPStatus.NOT_FOUND)
        except IndexError:
            self._send(b'there is no such sample', status=HTTPStatus.NOT_FOUND)
        except (StoreError, InputError) as error:
            self._send(str(error).encode(), status=HTTPStatus.UNPROCESSABLE_ENTITY)

    def _cards(self, query: str) -> dict[str, Any]:
        """Samples that fit what was asked for.

        Raises:
            InputError: If what was asked for can't be understood.
        """
        try:
            asked = {name: values[-1] for name, values in parse_qs(query, max_num_fields=8).items()}
            text, order = asked.get('noun', '')[:_MOST_TEXT], asked.get('order', ORDERS[0])
            trust, offset = float(asked.get('trust', 0)), int(asked.get('offset', 0))
        except ValueError:
            raise InputError('noun, trust, order and offset are understood') from None
        if order not in ORDERS or offset < 0:
            raise InputError(f'order is one of {", ".join(ORDERS)}, offset not negative')
        found = self.server.index.find(text, trust, order)
        cards = []
        for number in found[offset : offset + _MOST_CARDS].tolist():
            entry = card(number, self.server.store.read(number))
            entry['image'] = f'image/{number}'
            for each, noun in enumerate(entry['nouns']):
                noun['mask'] = f'mask/{number}/{each}'
            cards.append(entry)
        return {
            'cards': cards,
            'found': len(found),
            'read': len(self.server.index) + self.server.damaged,
            'all': len(self.server.store),
            'damaged': self.server.damaged,
            'unreachable': self.server.unreachable,
            'summary': self.server.index.summary() if not offset else None,
        }

    def _send(
        self,
        body: bytes,
        kind: str = 'text/plain; charset=utf-8',
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        self.send_response(status)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(body)))
        self.send_header('Content-Security-Policy', _POLICY)
        self.send_header('X-Content-Type-Options', 'nosniff')
        self.send_header('Referrer-Policy', 'no-referrer')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Not a line for each picture."""


def make_server(store: Store, port: int = 0) -> ThreadingHTTPServer:
    """Return a server for this machine alone, which begins to read through the store at once.

    Args:
        store: The store.
        port: Where it listens on 127.0.0.1; 0 for any that is free (`server_address[1]`).

    Raises:
        OSError: If the port is taken.
    """
    return _Server(store, port)
