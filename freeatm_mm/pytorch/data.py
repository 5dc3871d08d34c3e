"""Views of a store's images, with the masks of the nouns that all of them show.

How masks follow a view: beside the image, the transform is given the position of every pixel, as a
`tv_tensors.Mask` of three planes: row, column, and a number that no filling has, by which what a
transform adds round the image is told. Whatever crops, resizes, flips or turns the image does the
same to them (torchvision's v2 transforms do), and the masks are then read at these positions. So
any transform goes, any number of masks costs the same, and masks keep the resolution of the store.

torchvision resizes a `Mask` by torch's 'nearest', which lies half a pixel of the view beside the
image; positions are resized about the centres of pixels instead, as images are.
What turns or warps gives a pixel of the view the position of the nearest pixel before. A transform
that resizes masks by another library is followed as that library resizes them.

Shapes: V views, K nouns, (gh, gw) the grid of a view, B images, M instances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from freeatm_mm.errors import InputError, counted
from freeatm_mm.ops import MASK_VALUES, THRESHOLD, noun_id, pad_instances
from freeatm_mm.store import Sample, Store, decode_sample

__all__ = ['StoreDataset', 'ViewBatch', 'ViewItem', 'collate_views', 'masks_in_view', 'track_view']

#: Samples of a mask along a side of each cell of the grid.
_SAMPLES = 16
#: Along a side of a grid.
_MOST_CELLS = 1024
#: Points along a side of a view by which its scale is measured.
_POINTS = 32
#: Third plane of positions: a pixel of the image. Transforms fill with what images hold, up to 255.
_INSIDE = float(2**20)
#: How far from the border of two cells of a mask a place may be to lie on it.
_ROUNDING = 1e-3
#: Types that hold positions exactly.
_EXACT = (torch.float32, torch.float64, torch.int32, torch.int64)


class ViewItem(NamedTuple):
    """One image's views.

    Args:
        views: V tensors (C, H, W); their sizes may differ between views.
        masks: V tensors (K, gh, gw) float32, of the K nouns that all views show.
        nouns: (K,) int64, their numbers (`freeatm_mm.ops.noun_id`); None of a data set without
            masks, which has none (K is 0).
    """

    views: list[Tensor]
    masks: list[Tensor]
    nouns: Tensor | None


class ViewBatch(NamedTuple):
    """The views of B images; an image without an instance has one all-ones mask: pooled whole.

    Args:
        views: V tensors (B, C, H, W).
        masks: V tensors (B, K, gh, gw) float32, 0 where an image has fewer than K instances.
        places: (M,) int64, where the instances stand among the B * K places.
        nouns: (M,) int64, their nouns; `freeatm_mm.ops.UNKNOWN_NOUN` for a whole image. None where
            no image is of a data set with masks, so that a loss that goes by nouns is refused.
    """

    views: list[Tensor]
    masks: list[Tensor]
    places: Tensor
    nouns: Tensor | None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewBatch:
        """Return the batch on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        views, masks = [[move(part) for part in parts] for parts in (self.views, self.masks)]
        nouns = None if self.nouns is None else move(self.nouns)
        return ViewBatch(views, masks, move(self.places), nouns)


class StoreDataset(Dataset):
    """The images of a store in several views, each with its nouns' masks on the encoder's grid.

    A noun that one of the views cut away is left out of all, as a pair needs both. Several stores:
    `torch.utils.data.ConcatDataset`. Loaded with `collate_fn=collate_views`, which a `DataLoader`
    also takes by itself.

    Args:
        store: A store, or its folder or address.
        transform: Makes a view, a float tensor (C, H, W): one of `torchvision.transforms.v2`,
            or another callable that takes (image, `tv_tensors.Mask`) and returns both. Or one
            for each view (global and local crops).
        views: Number of views, where there is one transform.
        grid: Side of the encoder's feature map, or (height, width); a list has one for each view.
        mask_values: 'attention', 'normalized' or 'binary'; see `freeatm_mm.ops.masks_on_views`.
        min_visible: Smallest share of a noun's foreground that each view must show, in (0, 1].
        masks: False leaves them out: every image is pooled whole (the baseline).

    Raises:
        InputError: If a setting is out of range.
        StoreError: If there is no store.
    """

    def __init__(
        self,
        store: Store | str | Path,
        transform: Callable[..., Any] | Sequence[Callable[..., Any]],
        *,
        views: int = 2,
        grid: int | tuple[int, int] | Sequence[int | tuple[int, int]] = 7,
        mask_values: str = 'attention',
        min_visible: float = 0.05,
        masks: bool = True,
    ) -> None:
        self.store = store if isinstance(store, Store) else Store(store)
        if not callable(transform) and not isinstance(transform, Sequence):
            raise InputError(f'transform must be callable, or a list of such, got {transform!r}')
        if type(views) is not int:
            raise InputError(f'views must be a whole number, got {views!r}')
        self.transforms = [transform] * views if callable(transform) else list(transform)
        grids = list(grid) if isinstance(grid, list) else [grid] * len(self.transforms)
        if not self.transforms or len(grids) != len(self.transforms):
            raise InputError(
                f'there must be at least one view, and one grid for each: got '
                f'{counted(len(grids), "grid")} for {counted(len(self.transforms), "view")}'
            )
        self.grids = [_two_sides(side) for side in grids]
        if masks and (1, 1) in self.grids:
            raise InputError(
                'a grid of 1x1 leaves nothing of a mask, which would be the whole image: take '
                'larger views, features of an earlier layer, or masks=False'
            )
        if mask_values not in MASK_VALUES:
            raise InputError(f'mask_values {mask_values!r} is none of {", ".join(MASK_VALUES)}')
        if not 0 < min_visible <= 1:
            raise InputError(f'min_visible {min_visible} is not above 0 and at most 1')
        self.mask_values, self.min_visible, self.masks = mask_values, min_visible, masks
        self._gives_nouns = masks and self.store.has_nouns

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.store!r}, {counted(len(self.transforms), "view")})'

    def __getitem__(self, index: int) -> ViewItem:
        """Image number `index` in all its views.

        Raises:
            IndexError: If there is no such image.
            StoreError: If it is missing or damaged.
            InputError: If the transform gives no view.
        """
        return self._views(self.store[index])

    def __getitems__(self, indices: Sequence[int]) -> list[ViewItem]:
        """The images of a batch; where the store is at an address, read several at a time."""
        return [self._views(decode_sample(raw)) for raw in self.store.read_many(indices)]

    def _views(self, sample: Sample) -> ViewItem:
        image = sample.image.convert('RGB')
        masks = sample.masks if self.masks else sample.masks[:0]
        views, maps, visible = [], [], []
        for transform, grid in zip(self.transforms, self.grids):
            view, positions = track_view(transform, image)
            found, share = masks_in_view(
                masks,
                positions,
                image.size[::-1],
                grid,
                scales=sample.scales[: len(masks)],
                values=self.mask_values,
            )
            views.append(view)
            maps.append(found)
            visible.append(share)
        kept = np.flatnonzero(np.min(visible, axis=0) >= self.min_visible)
        names = [noun_id(sample.nouns[number].name) for number in kept]
        return ViewItem(
            views,
            [torch.from_numpy(found[kept]) for found in maps],
            torch.tensor(names, dtype=torch.int64) if self._gives_nouns else None,
        )


def _two_sides(grid: Any) -> tuple[int, int]:
    """Height and width of a grid that is given by its side or by both.

    Raises:
        InputError: If it is no grid that a feature map could have.
    """
    sides = (grid, grid) if isinstance(grid, int) else grid
    if (
        not isinstance(sides, tuple)
        or len(sides) != 2
        or not all(type(side) is int and 1 <= side <= _MOST_CELLS for side in sides)
    ):
        raise InputError(
            f'grid must be a side or (height, width) from 1 to {_MOST_CELLS}, got {grid!r}'
        )
    return sides


def collate_views(items: Sequence[ViewItem]) -> ViewBatch:
    """Make a batch of images with any numbers of instances.

    Raises:
        InputError: If images of one batch differ in their number of views, in a view's size or
            grid, there is no image, one has other numbers of masks than of nouns, or masks are NaN,
            infinite or negative.
    """
    if not items:
        raise InputError('a batch of no images')
    if len({len(item.views) for item in items}) > 1:
        raise InputError(
            'images of one batch have different numbers of views '
            f'{sorted({len(item.views) for item in items})}: give all stores the same transforms'
        )
    for number, item in enumerate(items):
        counts = [len(found) for found in item.masks]
        named = 0 if item.nouns is None else len(item.nouns)
        if {*counts} != {named} or len(counts) != len(item.views):
            raise InputError(
                f'image {number} of a batch has {counted(len(item.views), "view")} and '
                f'{counted(named, "noun")}, and masks {counts}: each view needs one mask '
                'for each noun'
            )
    views = []
    for parts in zip(*(item.views for item in items)):
        if len({part.shape for part in parts}) > 1:
            shapes = sorted({tuple(part.shape) for part in parts})
            raise InputError(f'views of one batch have different sizes {shapes}: resize them')
        views.append(torch.stack(parts))
    # On the grid that is known, not pad_instances's own 1 x 1, so that a map's layout can be told.
    nouns = [None if item.nouns is None or not len(item.nouns) else item.nouns for item in items]
    masks = []
    for maps in zip(*(item.masks for item in items)):
        if len({found.shape[1:] for found in maps}) > 1:
            grids = sorted({tuple(found.shape[1:]) for found in maps})
            raise InputError(f'masks of one batch have different grids {grids}: give all the same')
        given = [found if len(found) else found.new_ones(1, *found.shape[1:]) for found in maps]
        try:
            padded = pad_instances([found[None] for found in given], nouns, views=1)
        except ValueError as error:
            raise InputError(str(error)) from None
        masks.append(padded.masks[0])
    known = any(item.nouns is not None for item in items)
    return ViewBatch(views, masks, padded.places, padded.nouns if known else None)


def _collate(batch: Sequence[ViewItem], *, collate_fn_map: Any = None) -> ViewBatch:
    return collate_views(batch)


# `default_collate` could not stack images with different numbers of nouns.
default_collate_fn_map[ViewItem] = _collate


class _CentredResizing(TorchFunctionMode):
    """While it is active, positions are resized about the centres of pixels; see the module."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:
        """Call a function of torch, or `_resize` for `interpolate`."""
        return (_resize if func is interpolate else func)(*args, **(kwargs or {}))


def _resize(
    planes: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = 'nearest',
    *rest: Any,
    **options: Any,
) -> Tensor:
    """`torch.nn.functional.interpolate`, but for positions that it would take the nearest of."""
    if (
        mode not in ('nearest', 'nearest-exact')
        or planes.shape[1:-2] != (3,)
        or not planes.is_floating_point()
        or not (planes[:, 2] > _INSIDE / 2).any()  # another picture than `_positions`
    ):
        return interpolate(planes, size, scale_factor, mode, *rest, **options)
    nearest = interpolate(planes, size, scale_factor, 'nearest-exact')
    between = interpolate(planes, size, scale_factor, 'bilinear', align_corners=False)
    # Where the image ends, what is filled in would be mixed into the positions.
    return torch.where((between[:, 2:] - _INSIDE).abs() < 1, between, nearest)


def _positions(height: int, width: int) -> Tensor:
    """(3, height, width) float32: row and column of each pixel, counted from 1, and `_INSIDE`."""
    # Made anew for each image, as a transform may write into it.
    positions = torch.full((3, height, width), _INSIDE)
    positions[0] = torch.arange(1, height + 1)[:, None]
    positions[1] = torch.arange(1, width + 1)
    return positions


def track_view(transform: Callable[..., Any], image: Image.Image) -> tuple[Tensor, np.ndarray]:
    """Make a view and find out where each of its pixels comes from.

    Args:
        transform: As of `StoreDataset`.
        image: The image.

    Returns:
        The view, a float tensor (C, H, W), and (2, H, W) float32: row and column of the centre of
        each of its pixels in the image, where the first pixel's is 1; 0 where it shows nothing of
        it.

    Raises:
        InputError: If it returns something else, or changed the mask's values.
    """
    from torchvision.tv_tensors import Mask

    positions = Mask(_positions(image.height, image.width))
    try:
        with _CentredResizing():
            result = transform(image, positions)
    except (TypeError, ValueError) as error:
        raise InputError(
            'the transform must take (image, mask) and do the same to both, as geometric ones of '
            'torchvision.transforms.v2 do (not those of torchvision.transforms, not '
            'AutoAugment, RandAugment and their like; one fill for all channels, or '
            f'fill={{tv_tensors.Image: ..., "others": 0}}): {error}'
        ) from error
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise InputError(
            'the transform must take (image, mask) and return both, as those of '
            'torchvision.transforms.v2 do'
        )
    view, positions = result
    if not isinstance(view, Tensor) or not view.is_floating_point():
        raise InputError(
            'the transform must give a float tensor: end it with v2.ToImage() and '
            'v2.ToDtype(torch.float32, scale=True)'
        )
    if view.ndim != 3 or not view.numel() or not isinstance(positions, Tensor):
        raise InputError(
            f'the transform must give a view (C, H, W) and a mask, both tensors, got '
            f'{tuple(view.shape)} and {type(positions).__name__}'
        )
    if positions.shape != (3, *view.shape[-2:]):
        raise InputError(
            f'the transform moved the image ({tuple(view.shape[-2:])}) and its mask '
            f'({tuple(positions.shape[-2:])}) differently'
        )
    if positions.dtype not in _EXACT:
        raise InputError(
            f'the transform made the mask {positions.dtype}, in which the positions of pixels are '
            'lost: leave masks as they are (of v2.ToDtype, give torch.float32, or a dict without '
            'tv_tensors.Mask and "others": None)'
        )
    places = positions.as_subclass(Tensor).detach().cpu().numpy()
    # A transform that interpolates may be off by a rounding error.
    inside = np.abs(places[2] - _INSIDE) < 1
    if _changed(places, inside, view):
        raise InputError(
            "the transform changed the mask's values, which tell the positions of pixels: have "
            'what changes colours, such as v2.Lambda, change the image alone, by '
            'v2.Lambda(function, tv_tensors.Image) after v2.ToImage()'
        )
    return view.as_subclass(Tensor), (places[:2] * inside).astype(np.float32)


def _changed(places: np.ndarray, inside: np.ndarray, view: Tensor) -> bool:
    """Whether a transform changed the values of positions, not only where they are.

    Args:
        places: (3, H, W) what it made of them.
        inside: (H, W) where the third plane is that of a pixel of the image.
        view: (C, H, W) what it made of the image.
    """
    # Filling and interpolation give less; but for what bicubic weights overshoot along a border.
    if (places[2] > _INSIDE + 1).sum() > inside.sum():
        return True
    if inside.any():
        return False
    # Nothing of the image is seen. Where it was moved out of the view, what is filled in is one
    # colour, in the image too; or it is 0 in the mask, whatever noise the image got.
    first = places[:, :1, :1]
    if (places != first).any():
        return True
    return bool(first.any()) and bool((view != view[:, :1, :1]).any())


def masks_in_view(
    masks: np.ndarray,
    positions: np.ndarray,
    size: tuple[int, int],
    grid: tuple[int, int],
    *,
    scales: np.ndarray | None = None,
    values: str = 'normalized',
) -> tuple[np.ndarray, np.ndarray]:
    """Read stored masks where a view's pixels come from.

    Args:
        masks: (K, h, w) uint8 masks over the whole image.
        positions: (2, H, W) of `track_view`.
        size: (height, width) of the image in pixels.
        grid: (height, width) of the encoder's feature map.
        scales: (K, 2) each noun's lowest and highest attention; for `values` 'attention'.
        values: One of `freeatm_mm.ops.MASK_VALUES`.

    Returns:
        (K, *grid) float32, means over the cells of the grid, 0 where the view shows nothing; and
        (K,) float32, the share of each foreground that the view shows.

    Raises:
        InputError: If `values` is 'attention' without scales.
    """
    if not len(masks):
        return np.zeros((0, *grid), np.float32), np.zeros(0, np.float32)
    foreground = masks >= THRESHOLD * 255
    inside = positions[0] > 0
    rows, columns = _cells(positions, masks.shape[1:], size)

    shown = (foreground[:, rows, columns] & inside).mean((1, 2)) * _area(positions, inside, size)
    whole = foreground.mean((1, 2))
    visible = np.minimum(shown / np.maximum(whole, 1e-12), 1.0) * (whole > 0)

    picked = np.ix_(*(_spread(side, cells * _SAMPLES) for side, cells in zip(inside.shape, grid)))
    rows, columns = rows[picked], columns[picked]
    source = foreground if values == 'binary' else masks
    result = source[:, rows, columns].astype(np.float32)
    if values != 'binary':
        result *= np.float32(1 / 255)
    if values == 'attention':
        if scales is None:
            raise InputError("values 'attention' needs the scales of the masks")
        lowest, highest = scales.T[:, :, None, None]
        result = lowest + (highest - lowest) * result
    result *= inside[picked]
    cells = result.reshape(len(masks), grid[0], _SAMPLES, grid[1], _SAMPLES).mean((2, 4))
    return cells.astype(np.float32), visible.astype(np.float32)


def _cells(
    positions: np.ndarray, shape: tuple[int, ...], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Which row and column of a mask of this shape each pixel of a view comes from.

    Of a place between two, by turns the one and the other.
    """
    turns = np.add.outer(*map(np.arange, positions.shape[1:])) % 2
    found = []
    for plane, cells, pixels in zip(positions, shape, size):
        place = (plane - 0.5) * (cells / pixels)
        border = np.rint(place)
        place = np.where(np.abs(place - border) < _ROUNDING, border - turns, place)
        found.append(np.clip(np.floor(place), 0, cells - 1).astype(np.int64))
    return found[0], found[1]


def _spread(length: int, number: int) -> np.ndarray:
    """`number` indices spread evenly over a side; between two, by turns the one and the other."""
    turns = np.arange(number)
    found, rest = np.divmod((2 * turns + 1) * length, 2 * number)
    return found - ((rest == 0) & (turns % 2 == 0))


def _area(positions: np.ndarray, inside: np.ndarray, size: tuple[int, int]) -> float:
    """The area of a view in areas of the image: from the affine map that fits it best."""
    picked = np.ix_(*(_spread(side, min(side, _POINTS)) for side in inside.shape))
    known = inside[picked]
    if known.sum() < 3:
        return 0.0
    where = np.stack([np.broadcast_to(axis, known.shape)[known] for axis in picked], axis=1)
    design = np.concatenate([where, np.ones((len(where), 1))], axis=1)
    target = np.stack([plane[picked][known] for plane in positions], axis=1)
    fit = np.linalg.lstsq(design, target, rcond=None)[0]
    if min(size) > 1:
        return abs(float(np.linalg.det(fit[:2]))) * inside.size / (size[0] * size[1])
    # An image one pixel wide: all of its width is seen, and of its length what the view runs over.
    length = max(size)
    return float((np.abs(fit[:2]).T @ inside.shape).max()) / length if length > 1 else 1.0
