"""Which patches a masked autoencoder hides, guided by attention (Free-ATM, section 3.3, part 2).

    >>> import torch
    >>> tokens = torch.randn(2, 196, 768)
    >>> scores = patch_scores([torch.rand(3, 14, 14), None], 196)  # three nouns; no masks
    >>> beta = beta_at(progress=0.5)
    >>> order = attention_guided_order(scores, 196 - num_visible(196, 0.75), beta)
    >>> visible, mask, restore = mask_patches(tokens, order, num_visible(196, 0.75))
    >>> visible.shape, int(mask[0].sum())
    (torch.Size([2, 49, 768]), 147)

Shapes: B images, L patches, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from freeatm_mm.ops.choices import check_choice
from freeatm_mm.ops.pooling import check_masks
from freeatm_mm.paper import THRESHOLD

__all__ = [
    'BAND',
    'COMBINE',
    'NOISES',
    'SCHEDULES',
    'SHARES',
    'attention_guided_order',
    'beta_at',
    'check_band',
    'foreground_masked',
    'green_noise',
    'kth_largest',
    'mask_patches',
    'num_visible',
    'patch_scores',
    'relative_order_loss',
    'score_levels',
]

#: How the attention of several nouns becomes one score for each patch.
COMBINE = ('sum', 'max')

_STEPS = 10_000  # of an image's range of scores

#: What beta is a share of: all hidden patches (the paper), or each image's own foreground.
SHARES = ('hidden', 'foreground')

#: What chance is like: each patch by itself (MAE), or clumps of a few patches (ColorMAE).
NOISES = ('white', 'green')

#: Standard deviations of green noise's two blurs, in patches: clumps of two to three patches, whose
#: distance is six. (ColorMAE's own are not published as numbers.)
BAND = (1.0, 2.0)

#: Share of the ceiling that beta has reached, for the progress of the training in [0, 1].
SCHEDULES: dict[str, Callable[[float], float]] = {
    'linear': lambda progress: progress,
    'constant': lambda progress: 1.0,
    'reverse': lambda progress: 1.0 - progress,
    'cosine': lambda progress: (1.0 - math.cos(math.pi * progress)) / 2,
}


def beta_at(progress: float, ceiling: float = 0.8, schedule: str = 'linear') -> float:
    """Return beta, the share of the hidden patches that attention chooses.

    It goes from 0 to its ceiling over the training (section 4.3: linearly, to 0.8), so that the
    network learns whole images first and foregrounds later.

    Args:
        progress: How far the training is, in [0, 1].
        ceiling: The largest beta, in [0, 1].
        schedule: How beta grows: 'linear' (the paper), 'cosine', 'constant' (always the ceiling),
            'reverse' (from the ceiling to 0).

    Raises:
        ValueError: If `ceiling` or `schedule` is out of range.
    """
    if not 0 <= ceiling <= 1:
        raise ValueError(f'ceiling {ceiling} is not in [0, 1]')
    check_choice('schedule', schedule, SCHEDULES)
    return ceiling * SCHEDULES[schedule](progress)


def num_visible(length: int, mask_ratio: float) -> int:
    """Return how many of `length` patches stay visible, as MAE counts them."""
    return int(length * (1 - mask_ratio))


def patch_scores(
    masks: Sequence[Tensor | None],
    length: int,
    combine: str = 'sum',
    device: torch.device | str | None = None,
) -> Tensor:
    """Make one score for each patch of the attention of an image's nouns.

    Args:
        masks: For each of B images the masks (K_b, h, w) of its nouns on the grid of the patches,
            finite, or None; K_b may be 0.
        length: Number of patches L = h * w.
        combine: 'sum', the nouns' attention together (the attention of one pixel to all words sums
            to 1, so that this is its attention to any of the nouns), or 'max', meant for masks
            stretched to [0, 1].
        device: Where the result is to lie; by default where the masks lie.

    Returns:
        (B, L) float32; 0 for images without masks.

    Raises:
        ValueError: If `combine` is unknown, masks have another number of cells, or they lie on a
            CPU and are NaN or infinite (a GPU would have to be waited for).
    """
    check_choice('combine', combine, COMBINE)
    given = [(image, mask) for image, mask in enumerate(masks) if mask is not None and len(mask)]
    if device is None and given:
        device = given[0][1].device
    scores = torch.zeros(len(masks), length, device=device)
    if not given:
        return scores
    flat = torch.cat([mask.flatten(1) for _, mask in given])
    if flat.shape[1] != length:
        raise ValueError(f'masks of {flat.shape[1]} cells do not fit {length} patches')
    rows = torch.tensor([image for image, mask in given for _ in mask], device=device)
    reduce = 'sum' if combine == 'sum' else 'amax'
    scores.scatter_reduce_(0, rows[:, None].expand(-1, length), flat.to(scores), reduce)
    check_masks(scores, signed=True)
    return scores


@torch.compiler.disable  # NumPy selects
def attention_guided_order(
    scores: Tensor,
    num_masked: int,
    beta: float,
    share_of: str = 'hidden',
    noise: str = 'white',
    band: tuple[float, float] = BAND,
) -> Tensor:
    """Order each image's patches such that the last `num_masked` are to be hidden.

    Of those, the share beta are the ones with the highest scores, the rest are drawn from all
    others.

    Chance is the very draw that MAE makes. So with the same seed the baseline hides the same
    patches where beta is 0 (bit for bit the same order) and in images of equal scores, and what is
    not chosen by score follows the same draw; whatever is drawn later is the same, too.

    Exactly floor(beta * num_masked) patches are chosen by score, in every image as many: 60 % of
    all at the paper's 0.8 and 0.75, more than most objects cover. Or, with `share_of` 'foreground',
    floor(beta * F) where F patches of the image reach 0.45 of the way from its lowest to its
    highest score: objects are hidden from the inside, and whole at beta 1 alone.

    Scores are compared in steps of 1/10,000 of an image's range, so that rounding, which differs
    between processors, doesn't order equal ones. Among equal scores chance decides, independently
    of the rest.

    Args:
        scores: (B, L) attention of the patches, finite.
        num_masked: How many patches of each image to hide, in 0 ... L.
        beta: Share by score, in [0, 1].
        share_of: One of `SHARES`.
        noise: One of `NOISES`, what is left to chance: 'white', the draw as it is, or 'green', the
            same draw made `green_noise`.
        band: Of green noise.

    Returns:
        (B, L) int64, each row a permutation of the patches: those that stay visible, then those to
        be hidden.

    Raises:
        ValueError: If `share_of` or `noise` is unknown, or green noise is asked for a grid that
            is not square.
    """
    check_choice('share_of', share_of, SHARES)
    check_choice('noise', noise, NOISES)
    drawn = torch.rand(scores.shape, device=scores.device)
    chance = drawn if noise == 'white' else green_noise(drawn, band)
    chosen = int(beta * num_masked + 1e-9)
    if not (chosen if share_of == 'hidden' else beta):
        return chance.argsort(dim=1)
    # Nothing is sorted: a patch is hidden if its key is among the largest. All keys of an image
    # differ, as their lowest bits are the patch's number; so counts are exact.
    length = scores.shape[1]
    bits = length.bit_length()
    patches = torch.arange(length, device=scores.device)
    levels = score_levels(scores)
    # Ties decided by the noise itself would leave its small values to the rest. Its bits times an
    # odd number, modulo 2^24, are as good as independent of it and cost no further draw.
    draws = (drawn * 2**24).long()
    by_score = (levels << 24 | draws * 0x9E3779 & 0xFFFFFF) << bits | patches
    if noise != 'white':
        draws = (chance * 2**24).long()
    if share_of == 'hidden':
        by_score = by_score >= kth_largest(by_score, chosen)
    else:
        area = (levels >= THRESHOLD * _STEPS).sum(dim=1, keepdim=True)
        count = (beta * area + 1e-9).long().clamp(max=num_masked)
        ranked = by_score.sort(dim=1, descending=True).values
        by_score = (by_score >= ranked.gather(1, (count - 1).clamp(min=0))) & (count > 0)
    by_score &= levels.amax(dim=1, keepdim=True) > 0
    keys = (draws << bits | patches).masked_fill_(by_score, torch.iinfo(torch.int64).max)
    hidden = keys >= kth_largest(keys, num_masked)
    num_hidden = hidden.cumsum(dim=1)
    places = torch.where(hidden, num_hidden + (length - num_masked - 1), patches - num_hidden)
    return torch.empty_like(places).scatter_(1, places, patches.expand_as(places))


def green_noise(noise: Tensor, band: tuple[float, float] = BAND) -> Tensor:
    """Make white noise green: what lies between a fine and a coarse blur of it, as ranks.

    ColorMAE's masks (arXiv 2407.13036, section 3) are cut from large pictures of such noise; here
    the grid of the patches itself is filtered, as if it went on round its edges, so that every
    patch is hidden equally often and the draw is MAE's own.

    Args:
        noise: (B, L) white noise on a square grid of L patches.
        band: Standard deviations of the two blurs in patches, the finer first.

    Returns:
        (B, L) float32 in [0, 1): each patch's rank in its image, divided by L.

    Raises:
        ValueError: If L is no square, or the band is empty.
    """
    side = math.isqrt(noise.shape[1])
    if side * side != noise.shape[1]:
        raise ValueError(f'green noise needs a square grid, and {noise.shape[1]} patches are none')
    check_band(band)
    grid = noise.double().unflatten(1, (side, side))
    fine, coarse = (torch.from_numpy(_blur(side, width)).to(noise.device) for width in band)
    filtered = (fine @ grid @ fine - coarse @ grid @ coarse).flatten(1)
    return filtered.argsort(dim=1).argsort(dim=1) / noise.shape[1]


def check_band(band: Sequence[float]) -> None:
    """Refuse a band of green noise that is none.

    Raises:
        ValueError: If it isn't two widths, the first smaller and not negative.
    """
    if len(band) != 2 or not 0 <= band[0] < band[1]:
        raise ValueError(f'band {tuple(band)} must be two widths, the smaller first')


@lru_cache(maxsize=16)
def _blur(side: int, width: float) -> np.ndarray:
    """(side, side) a Gaussian blur of a line that goes on round its ends; symmetric."""
    # An array, as a tensor that is kept would stay of the mode (inference, fake) it was made in.
    places = np.arange(side, dtype=np.float64)
    away = np.abs(places[:, None] - places)
    away = np.minimum(away, side - away)
    weights = np.exp(-(away**2) / (2 * width**2)) if width else (away == 0).astype(np.float64)
    return weights / weights.sum(axis=1, keepdims=True)


def relative_order_loss(predicted: Tensor, losses: Tensor) -> Tensor:
    """Loss of a predictor that is to tell which of two patches is harder to reconstruct.

    As HPM's (arXiv 2304.05919, equation 4): binary cross-entropy over all pairs of an image's
    patches, with the difference of the two predictions as logit; how much harder doesn't matter.

    Args:
        predicted: (B, M) what is predicted for M patches, on any scale.
        losses: (B, M) their reconstruction losses; no gradient reaches them.

    Returns:
        The mean over all pairs of the batch whose losses differ; 0 without any.
    """
    harder = losses[:, :, None] > losses[:, None]
    difference = predicted[:, :, None] - predicted[:, None]
    pairs = torch.nn.functional.softplus(-difference) * harder
    return pairs.sum() / harder.sum().clamp(min=1)


def mask_patches(tokens: Tensor, order: Tensor, visible: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hide patches in a given order, as MAE's `random_masking` does in a random one.

    Args:
        tokens: (B, L, C) the patches.
        order: (B, L) int64, each row a permutation of the patches, the hidden ones last.
        visible: How many stay visible.

    Returns:
        The visible patches (B, visible, C), in that order; the mask (B, L) float32, 1 where a patch
        is hidden; and (B, L) int64, where each patch stands in the order (MAE's `ids_restore`).
    """
    batch, length, channels = tokens.shape
    places = torch.arange(length, device=tokens.device).expand_as(order)
    restore = torch.empty_like(order).scatter_(1, order, places)
    kept = order[:, :visible]
    shown = tokens.gather(1, kept[:, :, None].expand(-1, -1, channels))
    mask = torch.ones(batch, length, device=tokens.device).scatter_(1, kept, 0)
    return shown, mask, restore


def foreground_masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the share of foreground patches that are hidden, over images that have a foreground.

    Foreground is what reaches 0.45 of the way from an image's lowest to its highest score.

    Args:
        scores: (B, L) attention of the patches.
        mask: (B, L) 1 where a patch is hidden.

    Returns:
        A number in [0, 1]; 0 if no image has a foreground.
    """
    lowest, highest = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    foreground = ((scores - lowest >= THRESHOLD * (highest - lowest)) & (highest > lowest)).float()
    return (foreground * mask).sum() / foreground.sum().clamp(min=1)


def score_levels(scores: Tensor) -> Tensor:
    """Bring scores to whole steps: 0 for an image's lowest, at most 10,000 for its highest.

    A step is 1/10,000 of the image's range, but not less than a millionth of its largest score,
    which is as fine as sums of several float32 numbers are: a range of rounding errors is none.

    Args:
        scores: (B, L) finite.

    Returns:
        (B, L) int64.
    """
    lowest, highest = scores.float().aminmax(dim=1, keepdim=True)
    step = torch.maximum((highest - lowest) / _STEPS, torch.maximum(highest, -lowest) * 1e-6)
    return ((scores - lowest) / step.clamp(min=torch.finfo(step.dtype).tiny)).round().long()


def kth_largest(keys: Tensor, number: int) -> Tensor:
    """Return (B, 1) the `number`-th largest of each row of (B, L) integers; 1 is the largest."""
    place = keys.shape[1] - number
    if keys.is_cpu:  # where NumPy selects four times as fast as torch
        found = np.partition(keys.numpy(), place, axis=1)[:, place : place + 1]
        return torch.from_numpy(found)
    # Not `kthvalue`, which CUDA refuses where deterministic algorithms are asked for.
    return keys.topk(number, dim=1).values[:, -1:]
