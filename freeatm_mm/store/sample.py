"""One sample, and how it becomes the members of a tar shard and comes back.

``KEY.json`` holds caption, nouns (span, category, and the two numbers that turn a mask back into
attention), sizes and where the sample comes from. ``KEY.masks.png`` is one 8-bit grey picture with
the K masks below each other. ``KEY.jpg`` or ``KEY.png`` is the image as it was encoded once; it is
never encoded again.

In the files all samples have the same members, and their JSON the same names and types, since
other readers (Hugging Face ``datasets``) infer columns from the first few: an image without nouns
has one empty noun and one black mask, a category that isn't known is ``''``, and ``meta``, whose
names come and go, is JSON in a string. `to_file` and `from_file` are that difference.

Why one stacked PNG: it is lossless, opens in any viewer, and one picture of three 64x64 masks is
smaller and decodes faster than three pictures. On smooth attention-like maps (blobs at four
resolutions with 2 to 10 % noise) it took 5.4 to 7.2 kB and about 0.15 ms, against 7.9 to 10.0 kB
for zlib on the raw bytes and 12.3 kB uncompressed; WebP was smaller by 7 % but decodes slower.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from freeatm_mm.errors import InputError, counted
from freeatm_mm.files import check_json, parse_json
from freeatm_mm.prompts import Noun, PromptRecord
from freeatm_mm.store.errors import StoreError

__all__ = [
    'IMAGE_FORMATS',
    'MAX_PIXELS',
    'RawSample',
    'Sample',
    'check_info',
    'check_key',
    'decode_masks',
    'decode_sample',
    'empty_masks',
    'encode_image',
    'encode_masks',
    'encode_sample',
    'from_file',
    'to_file',
]

#: File ending of an image -> name of its format in Pillow.
IMAGE_FORMATS = {'jpg': 'JPEG', 'png': 'PNG'}
#: Larger pictures are refused before they are decompressed.
MAX_PIXELS = 1 << 26

# A key becomes a file name, and WebDataset ends it at the first dot.
_KEY = re.compile(r'[A-Za-z0-9_-]{1,80}')
_MOST_PIXELS = 65_535  # along a side of a mask
#: EXIF's tag: how a picture is to be turned.
ORIENTATION = 0x0112
_SIZE = {'width': int, 'height': int}
_NOUN = {'text': str, 'start': int, 'end': int, 'category?': (str, None), 'lo': float, 'hi': float}
_INFO = {'caption': str, 'nouns': [_NOUN], 'image?': _SIZE, 'masks': _SIZE, 'meta': dict}
#: What stands in the JSON of a sample without nouns; no noun has an empty span.
_NO_NOUN = {'text': '', 'start': 0, 'end': 0, 'category': '', 'lo': 0.0, 'hi': 0.0}


#: Longer side in pixels, and most nouns, of a sample that a notebook shows.
_SHOWN_SIDE, _SHOWN_NOUNS = 192, 8


class RawSample(NamedTuple):
    """A sample as it stands in the shard: nothing decoded but the JSON.

    Args:
        key: The sample's name, unique in its store.
        image_bytes: The encoded image.
        image_format: ``'jpg'`` or ``'png'``.
        info: The parsed ``KEY.json``: ``caption``, ``nouns`` (each with ``lo`` and ``hi``),
            ``image`` and ``masks`` (``width`` and ``height`` in pixels) and ``meta``.
        masks_bytes: The encoded masks (`decode_masks`), ``b''`` if there are no nouns.
    """

    key: str
    image_bytes: bytes
    image_format: str
    info: dict[str, Any]
    masks_bytes: bytes

    def names(self) -> list[str]:
        """Return what each of the K nouns is called (`freeatm_mm.prompts.Noun.name`).

        Raises:
            StoreError: If the JSON is not a sample's.
        """
        try:
            return [Noun.from_json(noun).name for noun in self.info['nouns']]
        except _NO_SAMPLE as error:
            raise _not_a_sample(self.key, error) from None

    def scales(self) -> np.ndarray:
        """Return the lowest and the highest attention of each noun, float32 array (K, 2).

        Raises:
            StoreError: If the JSON is not a sample's, or a number is not finite.
        """
        try:
            nouns = self.info['nouns']
            scales = np.array([(noun['lo'], noun['hi']) for noun in nouns], np.float32)
            if not np.isfinite(scales).all():
                raise ValueError('an attention is no finite number')
            return scales.reshape(-1, 2)
        except _NO_SAMPLE as error:
            raise _not_a_sample(self.key, error) from None

    def masks(self) -> np.ndarray:
        """Decode the masks, uint8 array (K, h, w).

        Raises:
            StoreError: If the JSON is not a sample's, or the picture is broken or of another size.
        """
        try:
            count, size = len(self.info['nouns']), self.info['masks']
            height, width = size['height'], size['width']
        except _NO_SAMPLE as error:
            raise _not_a_sample(self.key, error) from None
        try:
            return decode_masks(self.masks_bytes, count, height, width)
        except StoreError as error:
            raise StoreError(f'sample {self.key!r}: the picture {error}') from None

    def __repr__(self) -> str:
        return (
            f'RawSample({self.key!r}, {len(self.image_bytes)} bytes of {self.image_format}, '
            f'{len(self.masks_bytes)} bytes of masks, {_shortened(self.info.get("caption"))})'
        )


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its caption, nouns and one soft mask per noun.

    The attention of noun k is ``lo + (hi - lo) * masks[k] / 255`` with ``lo, hi = scales[k]``.

    Args:
        key: Name, unique in its store: letters, digits, ``-`` and ``_``, at most 80.
        image_bytes: The encoded image.
        image_format: ``'jpg'`` or ``'png'``.
        caption: The text that the image was made from.
        nouns: The K nouns, each a span of the caption.
        masks: uint8 array (K, h, w); 0 is the noun's lowest attention, 255 its highest.
        scales: float32 array (K, 2): lo and hi of each noun.
        meta: Where the sample comes from, JSON values only.

    Raises:
        StoreError: If the key is no safe file name, a span doesn't fit the caption, or masks and
            scales don't fit the nouns.
    """

    key: str
    image_bytes: bytes
    image_format: str
    caption: str = ''
    nouns: tuple[Noun, ...] = ()
    masks: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))
    scales: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_key(self.key)
        if self.image_format not in IMAGE_FORMATS:
            raise StoreError(
                f'sample {self.key!r}: unknown image format {self.image_format!r}; '
                f'use one of {", ".join(IMAGE_FORMATS)}'
            )
        try:
            PromptRecord(self.key, self.caption, self.nouns)  # checks the spans
        except ValueError as error:
            raise StoreError(str(error)) from None
        count = len(self.nouns)
        if self.masks.dtype != np.uint8 or self.masks.ndim != 3 or len(self.masks) != count:
            raise StoreError(
                f'sample {self.key!r}: {counted(count, "noun")} and masks: these need the shape '
                f'({count}, h, w) and type uint8, got {self.masks.shape} '
                f'{self.masks.dtype}'
            )
        if count and 0 in self.masks.shape:
            raise StoreError(f'sample {self.key!r}: masks of shape {self.masks.shape} are empty')
        if self.masks.size > MAX_PIXELS or max(self.masks.shape[1:]) > _MOST_PIXELS:
            raise StoreError(
                f'sample {self.key!r}: masks of shape {self.masks.shape} are too large to be read '
                f'again: at most {MAX_PIXELS:,} values, and {_MOST_PIXELS:,} along a side'
            )
        if self.scales.shape != (count, 2) or not np.isfinite(self.scales).all():
            raise StoreError(
                f'sample {self.key!r}: scales must be finite and of shape '
                f'({count}, 2), got {self.scales.shape}'
            )

    def __repr__(self) -> str:
        nouns = ', '.join(noun.text for noun in self.nouns)
        return (
            f'Sample({self.key!r}, {len(self.image_bytes)} bytes of {self.image_format}, '
            f'{_shortened(self.caption)}, nouns: {_shortened(nouns)}, masks: '
            f'{"x".join(map(str, self.masks.shape))})'
        )

    def _repr_html_(self) -> str:
        """The image and the masks over it, small, as a notebook shows them."""
        try:
            image = self.image.convert('RGB')
        except StoreError as error:
            return f'<p>{html.escape(str(error))}</p>'
        image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
        grey = image.convert('L').convert('RGB')
        panels = [(self.key, image)]
        for noun, mask in zip(self.nouns[:_SHOWN_NOUNS], self.masks):
            weight = Image.fromarray(mask).resize(image.size, Image.Resampling.BILINEAR)
            colour = Image.new('RGB', image.size, (230, 159, 0))
            panels.append((noun.text, Image.composite(colour, grey, weight.point(_faded))))
        figures = ''.join(
            '<figure style="display:inline-block;margin:4px;text-align:center">'
            f'<img src="{_data_url(picture)}" alt="{_escaped(name)}">'
            f'<figcaption>{_escaped(name)}</figcaption></figure>'
            for name, picture in panels
        )
        more = len(self.nouns) - _SHOWN_NOUNS
        rest = f'<p>and {more} more nouns</p>' if more > 0 else ''
        return f'<div><p>{_escaped(self.caption, 300)}</p>{figures}{rest}</div>'

    @classmethod
    def from_image(
        cls,
        key: str,
        image: Image.Image,
        *,
        image_format: str = 'jpg',
        quality: int = 95,
        **fields: Any,
    ) -> Sample:
        """Make a sample from a picture, encoding it (see `encode_image`)."""
        return cls(key, encode_image(image, image_format, quality), image_format, **fields)

    @cached_property
    def image(self) -> Image.Image:
        """The decoded image, decoded when first asked for.

        Raises:
            StoreError: If the bytes are no picture of the stated format, or too large a one.
        """
        try:
            return _open_picture(self.image_bytes, self.image_format)
        except StoreError as error:
            raise StoreError(f'sample {self.key!r}: the image {error}') from None


def _faded(level: int) -> int:
    """A mask's level as opacity: the image stays visible."""
    return level * 7 // 10


def _escaped(text: str, length: int = 60) -> str:
    """A text as HTML, at most so long."""
    return html.escape(text if len(text) <= length else f'{text[: length - 3]}...')


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', quality=85)
    return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _shortened(text: Any) -> str:
    text = str(text)
    return repr(text if len(text) <= 60 else f'{text[:57]}...')


def check_key(key: str) -> None:
    """Refuse a key that can't be the name of a file in a tar.

    Raises:
        StoreError: If it isn't 1 to 80 letters, digits, ``-`` or ``_``.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise StoreError(
            f'sample key {key!r} is not usable as a file name: use 1 to 80 letters, '
            'digits, "-" or "_"'
        )


def encode_image(image: Image.Image, image_format: str = 'jpg', quality: int = 95) -> bytes:
    """Encode a picture.

    Args:
        image: An RGB or grey picture.
        image_format: ``'jpg'`` (lossy, small) or ``'png'`` (lossless).
        quality: JPEG quality, 1 to 100; chroma is not subsampled from 90 on.

    Raises:
        StoreError: If the format is unknown or the picture's mode can't be stored exactly.
    """
    if image_format not in IMAGE_FORMATS:
        raise StoreError(
            f'unknown image format {image_format!r}; use one of {", ".join(IMAGE_FORMATS)}'
        )
    if image.mode not in ('RGB', 'L'):
        raise StoreError(f'an image to store must be RGB or grey (L), got mode {image.mode}')
    buffer = io.BytesIO()
    options: dict[str, Any] = {}
    if image_format == 'jpg':
        options = {'quality': quality, 'subsampling': 0 if quality >= 90 else 2}
    image.save(buffer, IMAGE_FORMATS[image_format], **options)
    return buffer.getvalue()


def encode_masks(masks: np.ndarray) -> bytes:
    """Encode uint8 masks (K, h, w), K at least 1, as one grey PNG of size (K·h, w)."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(masks).reshape(-1, masks.shape[2])).save(buffer, 'PNG')
    return buffer.getvalue()


def decode_masks(data: bytes, count: int, height: int, width: int) -> np.ndarray:
    """Decode what `encode_masks` wrote.

    Args:
        data: The PNG.
        count: Number of masks K.
        height: Height h of each mask.
        width: Width w of each mask.

    Returns:
        uint8 array (K, h, w).

    Raises:
        StoreError: If the PNG is broken or has another shape.
    """
    if not count:
        return np.zeros((0, height, width), np.uint8)
    picture = _open_picture(data, 'png', expected=(width, count * height))
    if picture.mode != 'L':
        raise StoreError(f'of the masks is not 8-bit grey but {picture.mode}')
    return np.array(picture).reshape(count, height, width)


def encode_sample(sample: Sample) -> RawSample:
    """Turn a sample into what stands in the shard.

    Raises:
        StoreError: If the image can't be read or is one that readers show in different ways, or
            ``meta`` holds something JSON can't.
    """
    try:
        width, height = _stored_size(sample.image_bytes, sample.image_format)
    except StoreError as error:
        raise StoreError(f'sample {sample.key!r}: the image {error}') from None
    nouns = []
    scales: np.ndarray = sample.scales.astype(np.float32)
    for noun, (low, high) in zip(sample.nouns, scales):
        # str() of a float32 is the shortest decimal that reads back as the same float32.
        nouns.append(noun.to_json() | {'lo': float(str(low)), 'hi': float(str(high))})
    info = {
        'caption': sample.caption,
        'nouns': nouns,
        'image': {'width': width, 'height': height},
        'masks': {'width': sample.masks.shape[2], 'height': sample.masks.shape[1]},
        'meta': sample.meta,
    }
    masks_bytes = encode_masks(sample.masks) if sample.nouns else b''
    return RawSample(sample.key, sample.image_bytes, sample.image_format, info, masks_bytes)


def decode_sample(raw: RawSample) -> Sample:
    """Turn what stands in the shard into a sample; the image stays encoded until it is used.

    Raises:
        StoreError: If the JSON lacks a field, or masks or image don't fit it.
    """
    info = raw.info
    check_info(raw.key, info)
    try:
        nouns = tuple(Noun.from_json(noun) for noun in info['nouns'])
    except _NO_SAMPLE as error:
        raise _not_a_sample(raw.key, error) from None
    return Sample(
        raw.key,
        raw.image_bytes,
        raw.image_format,
        info['caption'],
        nouns,
        raw.masks(),
        raw.scales(),
        info['meta'],
    )


#: What reading a JSON of another form leads to.
_NO_SAMPLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def _not_a_sample(key: str, error: Exception) -> StoreError:
    return StoreError(f'sample {key!r}: its JSON is not a sample ({error!r})')


def check_info(key: str, info: Any) -> None:
    """Check that the JSON of a sample has all that a sample's has, of the right types.

    Raises:
        StoreError: If it hasn't; names the entry.
    """
    try:
        check_json(info, _INFO, '')
    except InputError as error:
        raise StoreError(f'sample {key!r}: its JSON is not a sample ({error})') from None
    height, width = info['masks']['height'], info['masks']['width']
    if not (0 <= height <= _MOST_PIXELS and 0 <= width <= _MOST_PIXELS):
        raise StoreError(
            f"sample {key!r}: its JSON is not a sample (masks can't have {height}x{width} pixels)"
        )


def to_file(info: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's JSON as it stands in a shard: the same names and types in every sample."""
    nouns = [
        {
            'text': noun['text'],
            'start': noun['start'],
            'end': noun['end'],
            'category': noun.get('category') or '',
            'lo': float(noun['lo']),
            'hi': float(noun['hi']),
        }
        for noun in info['nouns']
    ]
    meta = json.dumps(info['meta'], ensure_ascii=False, allow_nan=False, separators=(',', ':'))
    return {**info, 'nouns': nouns or [_NO_NOUN], 'meta': meta}


def from_file(info: dict[str, Any]) -> dict[str, Any]:
    """The opposite of `to_file`; what writers of version 1 made is returned as it is.

    Raises:
        InputError: If ``meta`` isn't JSON.
    """
    if not isinstance(info.get('meta'), str):
        return info
    nouns = (
        []
        if info['nouns'] == [_NO_NOUN]
        else [
            {**noun, 'category': noun.get('category') or None} if isinstance(noun, dict) else noun
            for noun in info['nouns']
        ]
    )
    return {**info, 'nouns': nouns, 'meta': parse_json(info['meta'])}


def empty_masks(info: Mapping[str, Any]) -> bytes:
    """The one black mask of a sample without nouns."""
    size = info['masks']
    return encode_masks(np.zeros((1, max(1, size['height']), max(1, size['width'])), np.uint8))


def _open_picture(
    data: bytes, image_format: str, expected: tuple[int, int] | None = None
) -> Image.Image:
    """Decode a picture, looking at its size before decompressing anything."""
    try:
        picture = Image.open(io.BytesIO(data), formats=(IMAGE_FORMATS[image_format],))
        if expected is not None and picture.size != expected:
            raise StoreError(f'has size {picture.size} (width, height), not {expected}')
        if picture.width * picture.height > MAX_PIXELS:
            raise StoreError(f'has size {picture.size}, more than {MAX_PIXELS} pixels')
        picture.load()
    except StoreError:
        raise
    except Exception as error:  # Pillow raises whatever a broken picture leads it to
        raise StoreError(f'is no readable {image_format} ({error})') from None
    return picture


def _stored_size(data: bytes, image_format: str) -> tuple[int, int]:
    """Width and height of a picture to store, from its header only."""
    try:
        picture = Image.open(io.BytesIO(data), formats=(IMAGE_FORMATS[image_format],))
        size, mode = picture.size, picture.mode
        # To look for the EXIF data of a PNG that has none at its beginning, Pillow decodes it.
        known = image_format == 'jpg' or 'exif' in picture.info
        turned = known and picture.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception as error:  # as above
        raise StoreError(f'is no readable {image_format} ({error})') from None
    if size[0] * size[1] > MAX_PIXELS:
        raise StoreError(f'has size {size}, more than {MAX_PIXELS} pixels')
    if mode not in ('RGB', 'L') or turned:
        # Some readers turn it and some don't, and masks would be beside the objects; 16 bits are
        # cut to white; under what is transparent anything may be.
        told = 'to be turned, as its EXIF says' if turned else f'of mode {mode}'
        raise StoreError(
            f'is {told}, and one to store must be upright and RGB or grey (L) of 8 bits: '
            'freeatm_mm.store.pictures.decode_picture makes it so, Sample.from_image encodes it'
        )
    return size
