"""Where objects lie in a view, and the sentences that say so (Free-ATM, section 3.2, 3).

    >>> import numpy as np
    >>> masks = np.zeros((1, 64, 64), np.uint8)
    >>> masks[0, :20, 40:] = 255  # upper right
    >>> dog = objects_from_masks(['dog'], masks)
    >>> PositionPrompts().join('A dog.', dog, flip_matrix())
    'A dog. The dog is in block 0.'

All positions are fractions of a picture's width and height: x to the right, y downwards, the whole
picture being [0, 1] x [0, 1]. A *view* is what augmentation made of an image; a 3x3 matrix takes
places in the image to places in the view, whatever crops, flips, shears and turns there were.
An object is a set of rectangles in its image: one for a detector's box, one for each foreground
cell of a mask.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from freeatm_mm.ops.masks import binarize, minmax
from freeatm_mm.paper import THRESHOLD

__all__ = [
    'ORDERS',
    'POSITIONS',
    'PRESETS',
    'WHOLE_VIEW',
    'PlacedObject',
    'PositionPrompts',
    'box_in_view',
    'cover_in_view',
    'crop_matrix',
    'flip_matrix',
    'object_from_box',
    'objects_from_masks',
    'pixel_matrix',
    'preset_prompts',
]

#: The matrix of a view that shows the image as it is.
WHOLE_VIEW = np.eye(3)

#: Orders of the sentences: as the objects are given, at random, by block number.
ORDERS = ('given', 'random', 'block')

#: Whose blocks are told: the object's own, or, as a control, those of objects of another image.
POSITIONS = ('own', 'others')


@dataclass(frozen=True)
class PlacedObject:
    """An object and where it is.

    Args:
        name: The noun.
        parts: float array (n, 4): rectangles x1, y1, x2, y2 in its image that together cover it.
            None at all where a mask shows no foreground.
        word: How the caption writes the noun, where that is known.
    """

    name: str
    parts: np.ndarray
    word: str = ''


def object_from_box(name: str, box: Sequence[float], size: tuple[int, int]) -> PlacedObject:
    """Place the object in a detector's box.

    Args:
        name: The noun.
        box: x1, y1, x2, y2 in pixels; what sticks out of the image is cut off.
        size: Width and height of the image in pixels.

    Raises:
        ValueError: If the box is not four finite numbers, is empty or lies outside the image.
    """
    corners = np.asarray(box, dtype=np.float64)
    if corners.shape != (4,) or not np.isfinite(corners).all():
        raise ValueError(
            f'the box of {name!r} must be four numbers x1, y1, x2, y2, got {corners.tolist()}'
        )
    relative = np.clip(corners / (*size, *size), 0, 1)
    if not (relative[2:] > relative[:2]).all():
        raise ValueError(
            f'the box {corners.tolist()} of {name!r} is empty or lies outside its image '
            f'of {size[0]}x{size[1]} pixels'
        )
    return PlacedObject(name, relative[None])


def objects_from_masks(
    names: Sequence[str], masks: np.ndarray, threshold: float = THRESHOLD
) -> list[PlacedObject]:
    """Place the objects under stored masks: the cells that reach the threshold once stretched.

    Args:
        names: The K nouns.
        masks: (K, h, w) levels, of any range; each is stretched to [0, 1] first.
        threshold: Foreground from here on (paper, section 4: 0.45).
    """
    stretched, _ = minmax(np.asarray(masks, dtype=np.float32))
    height, width = stretched.shape[1:]
    objects = []
    for name, foreground in zip(names, binarize(stretched, threshold)):
        rows, columns = np.nonzero(foreground)
        corners = np.stack([columns, rows, columns + 1, rows + 1], axis=1)
        objects.append(PlacedObject(name, corners / np.array([width, height] * 2, np.float64)))
    return objects


def crop_matrix(box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the (3, 3) matrix of a crop that is then stretched to the whole view.

    Args:
        box: top, left, height, width in pixels, as torchvision says it.
        size: Width and height in pixels of the picture that is cropped.
    """
    top, left, height, width = box
    return np.array(
        [[size[0] / width, 0, -left / width], [0, size[1] / height, -top / height], [0, 0, 1]]
    )


def flip_matrix() -> np.ndarray:
    """Return the (3, 3) matrix of a flip from left to right."""
    return np.array([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]])


def pixel_matrix(affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the (3, 3) matrix of a map that OpenCV takes (`cv2.warpAffine`).

    Args:
        affine: (2, 3): takes a pixel's number (x, y) to where it goes; the centre of the first
            pixel is (0, 0).
        size: Width and height in pixels of the picture, which stays as large.
    """
    width, height = size
    to_pixels = np.array([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1]])
    return np.linalg.inv(to_pixels) @ np.vstack([affine, [0, 0, 1]]) @ to_pixels


def box_in_view(parts: np.ndarray, view: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Find the smallest box round what a view shows of an object.

    Exact for crops and flips. Where a view is turned or sheared, each part counts as the upright
    box round it.

    Args:
        parts: (n, 4) rectangles in the image.
        view: (3, 3) matrix from the image to the view.

    Returns:
        The box, float array (4,) x1, y1, x2, y2 in the view, or `None` where the view shows
        nothing of it; and the share of the object that it shows.
    """
    if not len(parts):
        return None, 0.0
    low, high = _boxes_in_view(parts, view)
    shown_low, shown_high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    shown = (shown_high - shown_low).prod(1)
    seen = shown > 0
    if not seen.any():
        return None, 0.0
    box = np.concatenate([shown_low[seen].min(0), shown_high[seen].max(0)])
    return box, float(shown.sum() / (high - low).prod(1).sum())


def cover_in_view(parts: np.ndarray, view: np.ndarray, grid: int) -> np.ndarray:
    """Measure how much of each cell of a view an object covers.

    Exact for crops and flips of parts that don't overlap. Where a view is turned or sheared, each
    part counts as the upright box round it.

    Args:
        parts: (n, 4) rectangles in the image.
        view: (3, 3) matrix from the image to the view.
        grid: Cells along each side of the view.

    Returns:
        Shares in [0, 1], float32 array (grid, grid), row by row from the top.
    """
    low, high = _boxes_in_view(parts, view)
    edges = np.arange(grid + 1) / grid
    overlap = np.minimum(high[:, :, None], edges[1:]) - np.maximum(low[:, :, None], edges[:-1])
    across, down = np.moveaxis(overlap.clip(0) * grid, 1, 0)  # (n, grid) each
    return np.minimum(down.T @ across, 1).astype(np.float32)


def _boxes_in_view(parts: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (n, 2) of the upright boxes round rectangles, once they are in a view."""
    corners = parts[:, [[0, 1], [2, 1], [0, 3], [2, 3]]] @ view[:2, :2].T + view[:2, 2]  # (n, 4, 2)
    return corners.min(1), corners.max(1)


@dataclass(frozen=True)
class PositionPrompts:
    """Sentences that say in which block of a picture each object is (paper, section 3.2, 3).

    The picture is divided into `grid` x `grid` blocks, numbered row by row. An object is where
    the centre of the box round its visible part is.

    Args:
        template: The sentence; `[O]` stands for the object, `[P]` for the block.
        grid: Blocks along each side.
        index_base: Number of the first block.
        max_objects: At most so many objects a picture, drawn at random where there are more; all
            if not given. Those of one name in one block, of which the text says the same, are one.
        order: One of `ORDERS`.
        track: Whether blocks are those of the view; otherwise they are those of the whole image,
            whatever the view shows of it (as PTP's released code has it).
        min_visible: An object of which the view shows no more than this share isn't named; 0 names
            whatever can be seen at all.
        positions: One of `POSITIONS`. With 'others' the text has the same objects, sentences
            and length, and what it says of places is of another image, as is their order by block.

    Raises:
        ValueError: If an option is out of range.
    """

    template: str = 'The [O] is in block [P].'
    grid: int = 3
    index_base: int = 0
    max_objects: int | None = None
    order: str = 'given'
    track: bool = True
    min_visible: float = 0.0
    positions: str = 'own'

    def __post_init__(self) -> None:
        if '[O]' not in self.template or '[P]' not in self.template:
            raise ValueError(
                f'the template {self.template!r} must hold [O] for the object and [P] for the block'
            )
        if self.grid < 1:
            raise ValueError(f'grid must be at least 1, got {self.grid}')
        if self.max_objects is not None and self.max_objects < 1:
            raise ValueError(f'max_objects must be at least 1 or left out, got {self.max_objects}')
        if self.order not in ORDERS:
            raise ValueError(f'order must be one of {", ".join(ORDERS)}, got {self.order!r}')
        if self.positions not in POSITIONS:
            raise ValueError(
                f'positions must be one of {", ".join(POSITIONS)}, got {self.positions!r}'
            )
        if not 0 <= self.min_visible < 1:
            raise ValueError(f'min_visible must be at least 0 and below 1, got {self.min_visible}')

    def block(self, box: np.ndarray) -> int:
        """Return the number of the block that the centre of a box (x1, y1, x2, y2) lies in."""
        x, y = (box[:2] + box[2:]) / 2
        # A centre on the far edge belongs to the last block, not to one beyond it.
        column, row = (min(int(place * self.grid), self.grid - 1) for place in (x, y))
        return self.index_base + self.grid * row + column

    def placed(self, objects: Sequence[PlacedObject], view: np.ndarray) -> list[tuple[int, str]]:
        """Return block and name of each object that is to be named, without repetitions.

        Args:
            objects: The objects of an image.
            view: (3, 3) matrix from the image to the view.
        """
        placed = []
        for thing in objects:
            box, share = box_in_view(thing.parts, view if self.track else WHOLE_VIEW)
            if box is not None and share > self.min_visible:
                placed.append((self.block(box), thing.name))
        placed = list(dict.fromkeys(placed))  # before drawing, so that all have the same chance
        if self.max_objects is not None and len(placed) > self.max_objects:
            kept = sorted(random.sample(range(len(placed)), self.max_objects))
            placed = [placed[number] for number in kept]
        if self.order == 'random':
            random.shuffle(placed)
        elif self.order == 'block':
            placed.sort(key=lambda pair: pair[0])
        return placed

    def sentences(
        self, objects: Sequence[PlacedObject], view: np.ndarray, others: Sequence[PlacedObject] = ()
    ) -> list[str]:
        """Return the sentences for what a view shows.

        Random choices are drawn from Python's own generator: torch's and NumPy's, which decide
        crops and dropout, stay the same with and without them.

        Args:
            objects: The objects of the image.
            view: (3, 3) matrix from the image to the view.
            others: Those of another image, for `positions` 'others'; where the view shows none of
                them, blocks are drawn evenly.
        """
        return [
            ''.join(piece for piece, _ in pieces) for pieces in self._split(objects, view, others)
        ]

    def _split(
        self, objects: Sequence[PlacedObject], view: np.ndarray, others: Sequence[PlacedObject]
    ) -> list[list[tuple[str, bool]]]:
        """Return the pieces of each sentence: the noun (`True`), and what the template writes."""
        if self.positions == 'own':
            placed = self.placed(objects, view)
        else:
            placed = self._exchanged(objects, view, others)
        found = []
        for block, name in placed:
            # The noun last, as it may be written with brackets, too.
            first, *rest = self.template.replace('[P]', str(block)).split('[O]')
            pieces = [(first, False)]
            for written in rest:
                pieces += [(name, True), (written, False)]
            found.append(pieces)
        return found

    def _exchanged(
        self, objects: Sequence[PlacedObject], view: np.ndarray, others: Sequence[PlacedObject]
    ) -> list[tuple[int, str]]:
        """Return what `placed` does with blocks of others, from whose order nothing is learned."""
        by_block = self.order == 'block'
        # Sorted by their own blocks, the order of the names would tell where the objects are.
        placed = (replace(self, order='given') if by_block else self).placed(objects, view)
        if placed:
            blocks = [block for block, _ in self.placed(others, view)] or range(
                self.index_base, self.index_base + self.grid**2
            )
            placed = [(random.choice(blocks), name) for _, name in placed]
        return sorted(placed, key=lambda pair: pair[0]) if by_block else placed

    def join(
        self,
        caption: str,
        objects: Sequence[PlacedObject],
        view: np.ndarray,
        others: Sequence[PlacedObject] = (),
    ) -> str:
        """Return the caption with its sentences after it."""
        return ''.join(piece for piece, _ in self.pieces(caption, objects, view, others))

    def pieces(
        self,
        caption: str,
        objects: Sequence[PlacedObject],
        view: np.ndarray,
        others: Sequence[PlacedObject] = (),
    ) -> list[tuple[str, bool]]:
        """Return the text of `join` in pieces, in order.

        Returns:
            Each piece, and whether it is the caption or a noun: what the template itself writes
            ('The', 'block', the number) is neither.
        """
        found = [(caption, True)]
        for sentence in self._split(objects, view, others):
            found += [(' ', False), *sentence]
        return found


#: No position prompts; the paper's; those of PTP (arXiv 2212.09737).
PRESETS: dict[str, PositionPrompts | None] = {
    'none': None,
    'freeatm': PositionPrompts(),
    'ptp': PositionPrompts(template='. The block [P] has a [O] .', max_objects=1),
}


def preset_prompts(name: str, **changes) -> PositionPrompts | None:
    """Return a preset with options changed.

    Args:
        name: One of `PRESETS`.
        **changes: Fields of `PositionPrompts`.

    Raises:
        ValueError: If there is no such preset or option, or 'none' is given options.
    """
    if name not in PRESETS:
        raise ValueError(
            f'there is no preset {name!r} of position prompts: use one of {", ".join(PRESETS)}'
        )
    unknown = sorted(set(changes) - set(PositionPrompts.__dataclass_fields__))
    if unknown:
        raise ValueError(
            f'position prompts have no option {", ".join(unknown)}; known are '
            f'{", ".join(PositionPrompts.__dataclass_fields__)}'
        )
    preset = PRESETS[name]
    if preset is None:
        if changes:
            raise ValueError(
                f'the preset {name!r} makes no position prompts, so that '
                f'{", ".join(sorted(changes))} would be without effect'
            )
        return None
    return replace(preset, **changes)
