"""What a recorded call of a pipeline gives: images, and one mask for each noun of each of them."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from freeatm_mm.attention.overlay import contact_sheet
from freeatm_mm.errors import counted
from freeatm_mm.files import atomic_write, sync_folder
from freeatm_mm.ops.masks import binarize, box_of, resize
from freeatm_mm.paper import THRESHOLD

__all__ = ['RECORD', 'Recording', 'generated_images']

RECORD = 'recording.json'
"""Beside the images and masks of a saved recording: which belongs to what."""
SHOWN = 8
"""Images that a notebook shows of a recording."""

Box = tuple[float, float, float, float]


def generated_images(output: Any) -> Any:
    """Return the images of a pipeline's output, whatever it calls them.

    Args:
        output: What the pipeline's call returned. Videos must have one frame each, which is the
            image.

    Raises:
        ValueError: If it holds none, as a prior's.
    """
    if isinstance(output, tuple):
        # Images with their depth are in a tuple of their own.
        return output[0][0] if isinstance(output[0], tuple) else output[0]
    for name in ('images', 'image', 'rgb'):
        if hasattr(output, name):
            return getattr(output, name)
    if not hasattr(output, 'frames'):
        raise ValueError(
            f'{type(output).__name__} holds no images: record this pipeline in a with block, or '
            'call the whole of which it is a part'
        )
    return [video[0] for video in output.frames]


@dataclass(frozen=True, repr=False, eq=False)
class Recording:
    """Images with one soft mask for each noun.

    Args:
        images: As the pipeline returned them: PIL images, or what its `output_type` asks for.
        masks: For each image a float32 CPU tensor (K, h, w) of values in [0, 1], at the size of
            the largest attention map; flat maps are zeros.
        prompts: For each image its prompt.
        names: For each image the names of its K nouns, as the prompt writes them.
        spans: For each image the K nouns' characters `(start, end)` in its prompt.
        flat: Pairs (image, noun) whose attention is the same everywhere.
        truncated: Pairs (image, noun) that the tokenizer cut off.
        left_out: Triples (image, noun, reason) whose maps leave out one of several text encoders.
        output: All that the pipeline returned.
        num_steps: Calls of the denoiser whose attention was recorded; fewer than were asked for
            where a callback interrupted the run.
    """

    images: Any
    masks: list[Tensor]
    prompts: list[str]
    names: list[list[str]]
    spans: list[list[tuple[int, int]]]
    flat: list[tuple[int, int]]
    truncated: list[tuple[int, int]]
    left_out: list[tuple[int, int, str]]
    output: Any = None
    num_steps: int = 0

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        names = list(dict.fromkeys(name for row in self.names for name in row))
        shown = ', '.join(names[:5]) + (f', and {len(names) - 5} more' if len(names) > 5 else '')
        sizes = {tuple(mask.shape[-2:]) for mask in self.masks}
        size = f' of {"x".join(map(str, sizes.pop()))}' if len(sizes) == 1 else ''
        count = sum(len(mask) for mask in self.masks)
        return (
            f'Recording({counted(len(self), "image")}, {counted(count, "mask")}{size}'
            f'{": " if shown else ""}{_shortened(shown)})'
        )

    def overlay(self, index: int = 0, size: int = 256) -> Image.Image:
        """Draw an image, and beside it each noun's mask over the image.

        Args:
            index: Which image.
            size: Longer side of each panel in pixels.

        Raises:
            IndexError: If there is no such image.
            ValueError: If the images are no pictures but latents, or `size` isn't from 16 to 4096.
        """
        if type(size) is not int or not 16 <= size <= 4096:
            raise ValueError(f'size must be a whole number of pixels from 16 to 4096, got {size!r}')
        return contact_sheet([self._shown(index)], columns=1, size=size)

    def boxes(self, threshold: float = THRESHOLD) -> list[list[Box | None]]:
        """Find the smallest box round the foreground of each mask.

        Args:
            threshold: Values of a mask at or above it are foreground, in [0, 1].

        Returns:
            For each image and noun `(x1, y1, x2, y2)` in pixels of the image, outer edges; `None`
            where there is no foreground.

        Raises:
            ValueError: If the images are no pictures but latents, or `threshold` is out of range.
        """
        if (
            isinstance(threshold, bool)
            or not isinstance(threshold, (int, float))
            or not 0 <= threshold <= 1
        ):
            raise ValueError(f'threshold must be a number from 0 to 1, got {threshold!r}')
        return [
            [
                _pixels(box_of(inside), picture.size)
                for inside in binarize(self._enlarged(index, picture), threshold)
            ]
            for index, picture in enumerate(map(self._picture, range(len(self))))
        ]

    def save(self, folder: str | Path) -> Path:
        """Write images and masks as PNG files, and `RECORD`, which says what they are.

        Masks have the size of their image, 0 to 255. The folder appears whole or not at all.

        Args:
            folder: Must not be there yet, or be empty.

        Returns:
            The folder.

        Raises:
            FileExistsError: If there is something in the folder, or it is no folder.
            ValueError: If the images are no pictures but latents.
        """
        folder = Path(folder)
        if folder.is_symlink() or folder.exists() and not _is_empty(folder):
            raise FileExistsError(
                f'{folder} is there already and is no empty folder: save to another one'
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp('.tmp', f'.{folder.name[:50]}.', folder.parent))
        try:
            self._write(made)
            umask = os.umask(0)
            os.umask(umask)
            made.chmod(0o777 & ~umask)  # mkdtemp lets only the owner in
            made.replace(folder)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            if folder.exists() and not _is_empty(folder):
                raise FileExistsError(
                    f'{folder} was filled by somebody else: save to another one'
                ) from error
            raise
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        sync_folder(folder.parent)
        return folder

    def _write(self, folder: Path) -> None:
        record = []
        for index in range(len(self)):
            picture = self._picture(index)
            file = f'{index}.png'
            _write_png(folder / file, picture)
            nouns = []
            for noun, mask in enumerate(self._enlarged(index, picture)):
                mask_file = f'{index}-{noun}.png'
                levels = (mask * 255).round().numpy().astype(np.uint8)
                _write_png(folder / mask_file, Image.fromarray(levels))
                nouns.append(
                    {
                        'name': self.names[index][noun],
                        'span': self.spans[index][noun],
                        'mask': mask_file,
                    }
                )
            record.append({'image': file, 'prompt': self.prompts[index], 'nouns': nouns})
        text = json.dumps({'images': record}, ensure_ascii=False, indent=2)
        with atomic_write(folder / RECORD) as stream:
            stream.write(f'{text}\n'.encode('utf-8', 'backslashreplace'))

    def _repr_png_(self) -> bytes | None:
        """The first images as a notebook shows them; `None` where there is no picture to show."""
        try:
            shown = [self._shown(index) for index in range(min(len(self), SHOWN))]
        except ValueError:
            return None
        buffer = io.BytesIO()
        contact_sheet(shown, columns=1).save(buffer, 'PNG')
        return buffer.getvalue()

    def _shown(self, index: int) -> _Shown:
        picture = self._picture(index)
        return _Shown(
            str(index),
            self.prompts[index],
            picture,
            [_Named(name) for name in self.names[index]],
            self.masks[index].numpy(),
        )

    def _enlarged(self, index: int, picture: Image.Image) -> Tensor:
        """The masks of an image at its size."""
        return resize(self.masks[index], (picture.height, picture.width)).clamp(0, 1)

    def _picture(self, index: int) -> Image.Image:
        if not -len(self) <= index < len(self):
            raise IndexError(f'there is no image {index} among {counted(len(self), "image")}')
        image = self.images[index]
        if isinstance(image, Image.Image):
            return image
        if isinstance(image, Tensor):
            image = image.detach().float().cpu().numpy()
            image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] not in (1, 3) or image.dtype.kind != 'f':
            raise ValueError(
                f'image {index} of shape {image.shape} is no picture but latents, perhaps: call '
                "with output_type='pil'"
            )
        if not np.isfinite(image).all():
            raise ValueError(f'image {index} holds values that are not numbers')
        levels = (image.clip(0, 1) * 255).round().astype(np.uint8)
        return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


class _Named(NamedTuple):
    text: str


class _Shown(NamedTuple):
    """An image as `freeatm_mm.attention.overlay.contact_sheet` takes it."""

    key: str
    caption: str
    image: Image.Image
    nouns: Sequence[_Named]
    masks: np.ndarray


def _pixels(box: Box | None, size: tuple[int, int]) -> Box | None:
    if box is None:
        return None
    width, height = size
    x1, y1, x2, y2 = box
    # Edges lie between pixels; the fractions are exact but for rounding.
    return (
        float(round(x1 * width)),
        float(round(y1 * height)),
        float(round(x2 * width)),
        float(round(y2 * height)),
    )


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


def _write_png(path: Path, image: Image.Image) -> None:
    with atomic_write(path) as file:
        image.save(file, 'PNG')


def _shortened(text: str, length: int = 60) -> str:
    text = ' '.join(text.split())
    return text if len(text) <= length else f'{text[: length - 3]}...'
