"""Pictures that come as data: decoded whole and upright, as RGB or grey, and nothing else."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from freeatm_mm.errors import InputError, one_sentence
from freeatm_mm.store.sample import IMAGE_FORMATS, MAX_PIXELS, ORIENTATION

__all__ = ['PICTURE_FORMATS', 'DecodedPicture', 'decode_picture']

#: What is decoded, by Pillow's names. No other format is tried, whatever a file is called: Pillow
#: hands PostScript, for one, to Ghostscript, and so runs what is in it.
PICTURE_FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')


class DecodedPicture(NamedTuple):
    """A picture, and whether a store can hold its bytes as they are.

    Args:
        image: RGB or grey (L), upright.
        kept: The store's name of its format where it can; `''` where it has to be encoded anew.
        changed: Why it has to, in a few words; `''` where it has not.
    """

    image: Image.Image
    kept: str
    changed: str


def decode_picture(data: bytes) -> DecodedPicture:
    """Decode a picture: turned as its EXIF says, on white where it is transparent, to 8 bits.

    Args:
        data: A picture in one of `PICTURE_FORMATS`.

    Raises:
        InputError: If it is no picture, or has more pixels than an image may have.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # looked at below
            image: Image.Image = Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(
                    f'its image has {width}x{height} pixels, more than {MAX_PIXELS:,} in all'
                )
            image.load()
            own_format, own_mode = image.format, image.mode
            upright = ImageOps.exif_transpose(image)
            turned = upright is not image and image.getexif().get(ORIENTATION, 1) != 1
            image = upright
            transparent = image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info
            if transparent:
                image = image.convert('RGBA')
                white = Image.new('RGBA', image.size, 'white')
                image = Image.alpha_composite(white, image)
            elif image.mode.startswith('I') or image.mode == 'F':  # of more than 8 bits
                values = np.asarray(image, np.float64)
                low, high = values.min(), values.max()
                if image.mode.startswith('I;16'):
                    low, high = 0, 65535
                image = Image.fromarray(
                    ((values - low) / max(high - low, 1e-9) * 255).round().astype(np.uint8)
                )
            if image.mode not in ('RGB', 'L'):
                image = image.convert('RGB')
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError("its image can't be read: no picture of a format that is known") from None
    except Exception as error:  # Pillow raises whatever a broken picture leads it to
        raise InputError(f"its image can't be read: {one_sentence(error)}") from None
    stored = {full: short for short, full in IMAGE_FORMATS.items()}.get(own_format or '', '')
    if stored and own_mode == image.mode and not turned and not transparent:
        return DecodedPicture(image, stored, '')
    changed = 'turned upright' if turned else f'{own_format} in mode {own_mode}'
    return DecodedPicture(image, '', changed)
