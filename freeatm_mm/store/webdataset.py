"""Samples as other readers of the shards hand them out, with a mask for each noun."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from freeatm_mm.errors import InputError
from freeatm_mm.files import parse_json
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.sample import RawSample, check_info, decode_masks, from_file

__all__ = ['masks_per_noun']


def masks_per_noun(example: Mapping[str, Any]) -> dict[str, Any]:
    """Take a sample apart that `datasets` or the `webdataset` package read from a shard.

    For `load_dataset('webdataset', ...)` and `WebDataset(...)`, with pictures decoded or not:
    `.map(masks_per_noun)`.

    Args:
        example: With `__key__`, `json` and `masks.png`.

    Returns:
        `key`, `caption`, `nouns` (the K names), `masks` (uint8, K, h, w) and `scales` (float32,
        K, 2): noun k's attention is `lo + (hi - lo) * masks[k] / 255` with `lo, hi = scales[k]`.

    Raises:
        StoreError: If it is no sample of a store, or its masks are damaged.
    """
    key = str(example.get('__key__', '?'))
    info, picture = example.get('json'), example.get('masks.png')
    if info is None or picture is None:
        raise StoreError(f'sample {key!r}: it has no json and masks.png, as samples of stores have')
    try:
        if isinstance(info, (bytes, str)):
            info = parse_json(info)
        info = from_file(dict(info))
    except (InputError, TypeError, ValueError, KeyError) as error:
        raise StoreError(f'sample {key!r}: its JSON is not a sample ({error})') from None
    check_info(key, info)
    if isinstance(picture, Mapping):  # of datasets, not decoded
        picture = picture.get('bytes') or b''
    if not isinstance(picture, bytes):
        # Whatever a reader made of the grey picture: PIL's, or an array of three equal channels.
        decoded = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        buffer = io.BytesIO()
        decoded.convert('L').save(buffer, 'PNG')
        picture = buffer.getvalue()
    raw = RawSample(key, b'', 'png', info, picture)
    count, size = len(info['nouns']), info['masks']
    try:
        masks = decode_masks(picture, count, size['height'], size['width'])
    except StoreError as error:
        raise StoreError(f'sample {key!r}: the picture {error}') from None
    return {
        'key': key,
        'caption': info['caption'],
        'nouns': raw.names(),
        'masks': np.asarray(masks),
        'scales': raw.scales(),
    }
