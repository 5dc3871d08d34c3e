"""The page: cards of samples, and a whole store's samples in one file."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from freeatm_mm.browse.index import ORDERS, StoreIndex, measures_of
from freeatm_mm.colours import NOUN_COLOURS
from freeatm_mm.files import atomic_write, check_replaceable
from freeatm_mm.store import RawSample, Store, decode_sample

__all__ = ['PAGE_MARK', 'card', 'mask_picture', 'render', 'write_page']

#: Pages of this module hold it, and no other file of a user's.
PAGE_MARK = '<meta name="generator" content="freeatm view">'

#: Largest side of a picture in a page of one file, in pixels.
_THUMBNAIL = 256
_OPACITY = 0.7


def card(index: int, raw: RawSample) -> dict[str, Any]:
    """Return what the page shows of a sample, as JSON; pictures not among it."""
    nouns = []
    each = zip(raw.info['nouns'], raw.names(), measures_of(raw))
    for number, (noun, name, (trust, area)) in enumerate(each):
        nouns.append(
            {
                'text': noun['text'],
                'name': name,
                'span': [noun['start'], noun['end']],
                'trust': None if math.isnan(trust) else round(trust, 3),
                'size': round(area, 3),
                'colour': '#{:02x}{:02x}{:02x}'.format(*NOUN_COLOURS[number % len(NOUN_COLOURS)]),
            }
        )
    return {'index': index, 'key': raw.key, 'caption': raw.info['caption'], 'nouns': nouns}


def mask_picture(mask: np.ndarray, number: int) -> bytes:
    """Return a mask as a PNG to lay over the image: the noun's colour, as opaque as it is high.

    Args:
        mask: (h, w) uint8.
        number: Of the noun, which chooses the colour.
    """
    layers = np.empty((*mask.shape, 4), np.uint8)
    layers[..., :3] = NOUN_COLOURS[number % len(NOUN_COLOURS)]
    layers[..., 3] = np.rint(mask * _OPACITY)
    buffer = io.BytesIO()
    Image.fromarray(layers, 'RGBA').save(buffer, 'PNG')
    return buffer.getvalue()


def render(title: str, content: dict[str, Any] | None = None) -> str:
    """Make the HTML of the page.

    Args:
        title: Of the store.
        content: `cards` and `summary` of a page in one file; None for the server's, which asks.
    """
    # Jinja2 escapes what is text; tojson also hides what would end the script.
    environment = Environment(loader=PackageLoader('freeatm_mm.browse', '.'), autoescape=True)
    template = environment.get_template('page.html')
    return template.render(title=title, content=content, orders=ORDERS)


def write_page(
    store: Store, path: str | Path, indices: Iterable[int], title: str | None = None
) -> int:
    """Write samples of a store into one HTML file, with their pictures in small.

    Args:
        store: The store.
        path: Where the file goes; an earlier page may be there.
        indices: Which samples.
        title: By default the store's folder.

    Returns:
        How many samples are in it.

    Raises:
        InputError: If another file is there.
        StoreError: If one of them is damaged.
    """
    check_replaceable(path, 'a page of freeatm view', PAGE_MARK)
    index, cards = StoreIndex(), []
    for number in indices:
        raw = store.read(number)
        sample = decode_sample(raw)
        index.add(number, raw)
        entry = card(number, raw)
        image = sample.image.convert('RGB')
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        entry['image'] = _embed('image/jpeg', _jpeg(image))
        for each, (noun, mask) in enumerate(zip(entry['nouns'], sample.masks)):
            noun['mask'] = _embed('image/png', mask_picture(mask, each))
        cards.append(entry)
    text = render(
        title or f'{Path(store.path).resolve().name}: {len(cards)} of {len(store)} samples',
        {'cards': cards, 'summary': index.summary()},
    )
    with atomic_write(path) as file:
        file.write(text.encode())
    return len(cards)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=85)
    return buffer.getvalue()


def _embed(kind: str, data: bytes) -> str:
    """A picture as an address that holds it."""
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'
