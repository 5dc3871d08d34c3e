"""Looking at a store: a page of its samples, or a local server for large ones.

`freeatm view` is the command; `write_page` and `make_server` are what it calls.
"""

from freeatm_mm.browse.index import StoreIndex
from freeatm_mm.browse.page import write_page
from freeatm_mm.browse.server import make_server

__all__ = ['StoreIndex', 'make_server', 'write_page']
