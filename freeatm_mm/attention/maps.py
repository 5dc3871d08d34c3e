"""From running sums of attention to one map for each noun of each image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from freeatm_mm.attention.nouns import merge_tokens
from freeatm_mm.attention.parts import Part, Size
from freeatm_mm.attention.targets import Targets
from freeatm_mm.errors import counted
from freeatm_mm.ops.masks import resize

__all__ = ['RunningSum', 'average', 'check_layer_steps', 'noun_maps', 'running_sum']

_LEAST = 1e-12  # of the sum over words that maps are divided by


@dataclass
class RunningSum:
    """Sum of maps.

    Args:
        total_BTN: The sum.
        count: How many maps are in it.
    """

    total_BTN: Tensor
    count: int = 0


def running_sum(*shape: int, device: torch.device) -> RunningSum:
    """Make an empty sum that can be added to, inside `torch.inference_mode` and after it."""
    with torch.inference_mode(False):
        return RunningSum(torch.zeros(*shape, device=device))


def check_layer_steps(layer_steps: Mapping[str, int], parts: Iterable[Part]) -> None:
    """Refuse what no mean over layers is: sums in which some layers have more maps.

    Args:
        layer_steps: In how many steps each layer was recorded.
        parts: What the sums are of.

    Raises:
        ValueError: As said.
    """
    never = [layer for layer, count in layer_steps.items() if not count]
    if never:
        raise ValueError(
            f'{never[0]} was never computed, only taken from a step cache; record without the cache'
        )
    if len(set(layer_steps.values())) > 1 and any(part.layer is None for part in parts):
        raise ValueError(
            f'some layers were computed in {counted(min(layer_steps.values()), "step")} and '
            f'others in {max(layer_steps.values())}, as with a step cache: make the recorder with '
            "separate='layers', so that each layer counts the same"
        )


def average(sums: Mapping[Part, RunningSum], chosen: Mapping[Part, float], sides: Size) -> Tensor:
    """Average the maps of some sums at one size.

    Args:
        sums: The sums.
        chosen: The sums to use, each with what one of its maps counts.
        sides: Height and width of the mean.

    Returns:
        float32 CPU tensor (B, T, h, w).
    """
    divisor = sum(weight * sums[part].count for part, weight in chosen.items())
    # Resizing is linear, so once at the end gives the mean of the resized maps.
    by_size: dict[Size, Tensor] = {}
    for part, weight in chosen.items():
        total_BTN = sums[part].total_BTN.cpu() * (weight / divisor)
        by_size[part.size] = by_size.get(part.size, 0) + total_BTN
    images, columns, _ = next(iter(by_size.values())).shape
    average_BThw = torch.zeros(images, columns, *sides)
    for native, total_BTN in by_size.items():
        average_BThw += resize(total_BTN.unflatten(-1, native), sides)
    return average_BThw


def noun_maps(average_BThw: Tensor, targets: Targets, *, merge: str, softmax: bool) -> list[Tensor]:
    """Make each noun's map from its tokens' maps.

    Args:
        average_BThw: A map for each column of each image; changed in place where words compete.
        targets: Which columns are whose.
        merge: As of `freeatm_mm.attention.nouns.merge_tokens`.
        softmax: Where words compete, whether by a softmax rather than by their sum.

    Returns:
        For each image a tensor (nouns, h, w).
    """
    masks = []
    for image, prompt in enumerate(targets.prompt_of_image):
        place = {column: index for index, column in enumerate(targets.columns[prompt])}
        positions, words = targets.positions[prompt], targets.words[prompt]
        if words:
            own = [place[column] for column in words]
            if softmax:
                average_BThw[image, own] = average_BThw[image, own].softmax(0)
            else:
                average_BThw[image] /= average_BThw[image, own].sum(0).clamp_min(_LEAST)
        maps = average_BThw.new_zeros(len(positions), *average_BThw.shape[-2:])
        for noun, encoders in enumerate(positions):
            for columns in encoders:
                rows = [place[column] for column in columns]
                merged = merge_tokens(average_BThw[image, rows], merge)
                maps[noun] += merged / len(encoders)
        masks.append(maps)
    return masks
