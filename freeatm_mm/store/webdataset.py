"""Samples as other readers of the shards hand them out, with a mask for each noun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from freeatm_mm.errors import InputError, counted, one_sentence
from freeatm_mm.files import parse_json
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.sample import RawSample, check_info, decode_masks, from_file

__all__ = ['masks_per_noun']

#: What readers decode to besides uint8; these hold 256 levels from 0 to 1.
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def masks_per_noun(example: Mapping[str, Any]) -> dict[str, Any]:
    """Take a sample apart that `datasets` or the `webdataset` package read from a shard.

    For `load_dataset('webdataset', ...)` and `WebDataset(...)`, with pictures decoded or not:
    `.map(masks_per_noun)`. The masks are the same, bit for bit, however they were decoded.

    Args:
        example: With `__key__`, `json` and `masks.png`: the PNG's bytes, or what readers decode it
            to: PIL's picture, or an array or tensor of uint8, or of floats from 0 to 1, grey or
            with three equal colours, which may come first or last.

    Returns:
        `key`, `caption`, `nouns` (the K names), `masks` (uint8, K, h, w) and `scales` (float32,
        K, 2): noun k's attention is `lo + (hi - lo) * masks[k] / 255` with `lo, hi = scales[k]`.

    Raises:
        StoreError: If it is no sample of a store, or its masks are damaged or were changed.
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
    raw = RawSample(key, b'', 'png', info, b'')
    count, size = len(info['nouns']), info['masks']
    try:
        if isinstance(picture, bytes):
            masks = decode_masks(picture, count, size['height'], size['width'])
        else:
            masks = _decoded_masks(picture, count, size['height'], size['width'])
    except StoreError as error:
        raise StoreError(f'sample {key!r}: the picture {error}') from None
    return {
        'key': key,
        'caption': info['caption'],
        'nouns': raw.names(),
        'masks': np.asarray(masks),
        'scales': raw.scales(),
    }


def _decoded_masks(picture: Any, count: int, height: int, width: int) -> np.ndarray:
    """Take the masks from what a reader made of their picture.

    Args:
        picture: PIL's picture, or an array or tensor: uint8, or float from 0 to 1; grey, or
            with three equal colours and maybe an alpha, which come last or first.
        count: Number of masks K.
        height: Height h of each mask.
        width: Width w of each mask.

    Returns:
        uint8 array (K, h, w), the same as of the picture's bytes.

    Raises:
        StoreError: If it is anything else.
    """
    if not count:
        return np.zeros((0, height, width), np.uint8)
    if isinstance(picture, Image.Image) and picture.mode not in ('L', 'RGB', 'RGBA'):
        raise StoreError(f'of the masks is not 8-bit grey but {picture.mode}')
    try:
        levels = np.asarray(picture)
    except (TypeError, ValueError, RuntimeError) as error:  # bfloat16, or on a GPU
        raise StoreError(
            f'of the masks is no array that can be used ({one_sentence(error)}): decode it to '
            "uint8, or don't decode it"
        ) from None
    if levels.dtype != np.uint8 and levels.dtype not in _FLOATS:
        raise StoreError(
            f"of the masks is {levels.dtype}, neither uint8 nor float: decode it so, or don't "
            'decode it'
        )
    # Tensors have their colours first, as a rule.
    axes = (2, 0) if isinstance(picture, (np.ndarray, Image.Image)) else (0, 2)
    layouts = [levels[..., None]] if levels.ndim == 2 else []
    layouts += [np.moveaxis(levels, axis, 2) for axis in axes if levels.ndim == 3]
    fitting = [
        layout
        for layout in layouts
        if layout.shape[:2] == (count * height, width) and layout.shape[2] in (1, 3, 4)
    ]
    if not fitting:
        raise StoreError(
            f'of the masks is {levels.shape}, and {counted(count, "mask")} of {height} x {width} '
            f'make ({count * height}, {width}), with or without colours: map before anything is '
            'resized or cropped'
        )
    grey = [layout for layout in fitting if (layout[..., :3] == layout[..., :1]).all()]
    if not grey:
        raise StoreError(
            'of the masks is not grey, or not a number somewhere: map before anything changes it'
        )
    found = grey[0][..., 0]
    if found.dtype != np.uint8:
        if found.min() < 0 or found.max() > 1:
            raise StoreError(
                f'of the masks is {found.dtype} from {found.min():g} to {found.max():g}, and '
                'floats go from 0 to 1: map before it is normalised'
            )
        found = (found.astype(np.float64) * 255).round().astype(np.uint8)
    return np.array(found).reshape(count, height, width)
