"""Masks over their images: single panels, and contact sheets of many samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from freeatm_mm.colours import NOUN_COLOURS
from freeatm_mm.paper import THRESHOLD

__all__ = ['NOUN_COLOURS', 'SampleLike', 'contact_sheet', 'noun_panels', 'overlay']


class SampleLike(Protocol):
    """What is shown of a sample, as `freeatm_mm.store.Sample` has it."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def caption(self) -> str:
        """The text the image was made from."""

    @property
    def image(self) -> Image.Image:
        """The image."""

    @property
    def nouns(self) -> Sequence[Any]:
        """K nouns, each with its `text`."""

    @property
    def masks(self) -> np.ndarray:
        """Shape (K, h, w), one mask for each noun."""


def overlay(
    image: Image.Image,
    mask: np.ndarray,
    colour: tuple[int, int, int] = NOUN_COLOURS[0],
    size: int = 160,
    opacity: float = 0.7,
    contour: float | None = THRESHOLD,
) -> Image.Image:
    """Lay a soft mask over an image: the stronger the mask, the more of the colour.

    The image is shown in grey, so that the colour means the mask alone.

    Args:
        image: Any size.
        mask: (h, w) uint8, or real numbers in [0, 1]; any size.
        colour: RGB in [0, 255].
        size: Longer side of the result in pixels.
        opacity: Of the colour where the mask is highest, in [0, 1].
        contour: Draw the outline of the mask at this threshold; None draws none.

    Returns:
        An RGB image with the aspect of ``image``.

    Raises:
        ValueError: If the mask is not two-dimensional or its numbers leave [0, 1].
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f'overlay needs one mask (h, w), got shape {mask.shape}.')
    soft = mask.astype(np.float32) / (255 if mask.dtype == np.uint8 else 1)
    if soft.size == 0 or not (soft.min() >= 0 and soft.max() <= 1):
        raise ValueError('overlay needs mask values in [0, 1], or uint8.')
    grey = _enlarge(image.convert('L'), size)
    soft = np.asarray(Image.fromarray(soft).resize(grey.size, Image.Resampling.BICUBIC))
    soft = soft.clip(0, 1)[..., None]
    base = np.repeat(np.asarray(grey, dtype=np.float32)[..., None], 3, axis=2)
    pixels = base * (1 - opacity * soft) + np.array(colour, dtype=np.float32) * opacity * soft
    if contour is not None:
        inside = soft[..., 0] >= contour
        pixels[_edge(inside)] = 255
    return Image.fromarray(pixels.round().astype(np.uint8))


def _edge(inside: np.ndarray) -> np.ndarray:
    """The pixels of a region that touch a pixel outside it; the image's border is no edge."""
    padded = np.pad(inside, 1, mode='edge')
    whole = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~whole


def _enlarge(image: Image.Image, size: int) -> Image.Image:
    """Scale the longer side to ``size``, smoothly."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def noun_panels(sample: SampleLike, size: int = 160) -> list[tuple[str, Image.Image]]:
    """The image itself, then each noun's mask over it.

    Args:
        sample: Its K masks are (K, h, w) uint8, each from its lowest to its highest attention.
        size: Longer side of each panel in pixels.

    Returns:
        (label, RGB image) for each of the 1 + K panels; the first label is empty.
    """
    panels = [('', _enlarge(sample.image.convert('RGB'), size))]
    for number, (noun, mask) in enumerate(zip(sample.nouns, sample.masks, strict=True)):
        colour = NOUN_COLOURS[number % len(NOUN_COLOURS)]
        panels.append((noun.text, overlay(sample.image, mask, colour, size)))
    return panels


def contact_sheet(samples: Iterable[SampleLike], columns: int = 2, size: int = 128) -> Image.Image:
    """One picture of many samples: each its image and masks in a row, the caption above.

    Args:
        samples: Such as ``(store[i] for i in range(12))``.
        columns: Samples beside each other.
        size: Longer side of each panel in pixels.

    Raises:
        ValueError: If there is no sample.
    """
    rows = [(sample.caption, noun_panels(sample, size)) for sample in samples]
    if not rows:
        raise ValueError('contact_sheet got no sample to show.')
    gap, line = 6, max(14, size // 9)
    font = ImageFont.load_default(line * 0.8)
    width = max(len(panels) for _, panels in rows) * (size + gap) + gap
    height = line + size + line + 2 * gap
    columns = min(columns, len(rows))
    sheet = Image.new('RGB', (columns * width, -(-len(rows) // columns) * height), 'white')
    draw = ImageDraw.Draw(sheet)
    for number, (caption, panels) in enumerate(rows):
        left, top = number % columns * width + gap, number // columns * height + gap
        draw.text((left, top), _shorten(caption, font, width - 2 * gap), 'black', font)
        for label, panel in panels:
            sheet.paste(panel, (left, top + line))
            draw.text((left, top + line + size), _shorten(label, font, size), (70, 70, 70), font)
            left += size + gap
    return sheet


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, or as much of it as fits into so many pixels with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + '...') > width:
        text = text[:-1]
    return text.rstrip() + '...'
