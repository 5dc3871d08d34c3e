"""Which of the recorder's running sums an average is made of, and what each of them counts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from torch import nn

__all__ = [
    'SEPARATE',
    'Heads',
    'Part',
    'Size',
    'Size',
    'block_names',
    'check_heads',
    'check_steps',
    'choose_parts',
    'heads_of',
    'in_blocks',
    'is_wrapper',
    'named_parts',
    'plain_name',
    'separate_names',
    'size_matches',
    'sizes',
    'whole_number',
]

Size = tuple[int, int]
"""Height and width."""
"""Height and width."""
Heads = Iterable[int] | Mapping[str, Iterable[int]]

MAX_SIDE = 2**14
"""Of a map, in pixels; no denoiser comes near."""
MAX_WEIGHT = 1e6
"""Of a resolution; only their proportions matter."""
MAX_STEPS = 10**6
"""Steps that can be named one by one; a range may be of any length."""

SEPARATE = ('layers', 'steps', 'heads')
"""What a recorder can keep apart, so that `AttentionRecorder.masks` can choose later."""


class Part(NamedTuple):
    """What one running sum sums up. ``None``: over all of them.

    Attributes:
        group: Block group, such as ``'down'``.
        size: Height and width of the maps.
        layer: Name of the attention module in the denoiser.
        step: Number of the denoiser's call, from 0.
        head: Number of the head.
    """

    group: str
    size: Size
    layer: str | None = None
    step: int | None = None
    head: int | None = None


def whole_number(value: Any, name: str, least: int, most: int) -> int:
    """A number of an option, checked.

    Raises:
        ValueError: If it is no integer, or out of range.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral)
        or not least <= int(value) <= most
    ):
        raise ValueError(f'{name} must be a whole number from {least} to {most}, got {value!r}')
    return int(value)


def sizes(
    resolutions: Iterable[int | Size] | None, name: str = 'resolutions'
) -> tuple[int | Size, ...] | None:
    """The wanted map sizes, ``None`` for all of them.

    Raises:
        ValueError: If there are none, or one is neither a number of pixels nor a pair of them.
    """
    if resolutions is None:
        return None
    if isinstance(resolutions, str) or not isinstance(resolutions, Iterable):
        raise ValueError(f'{name} must be a list of sizes, got {resolutions!r}')
    wanted = tuple(resolutions)
    if not wanted:
        raise ValueError(f'{name} are none; leave them out for all')
    side = f'a side of {name}'
    return tuple(
        (whole_number(size[0], side, 1, MAX_SIDE), whole_number(size[1], side, 1, MAX_SIDE))
        if isinstance(size, (tuple, list)) and len(size) == 2
        else whole_number(size, name, 1, MAX_SIDE)
        for size in wanted
    )


def check_steps(steps: Container[int] | None) -> None:
    """Refuse steps that are no numbers from 0, or none.

    Args:
        steps: ``None``, a range, an iterable of numbers, or whatever else can be asked
            ``number in steps``.

    Raises:
        ValueError: As said.
    """
    if steps is None:
        return
    if isinstance(steps, (str, bytes, Mapping)) or not isinstance(steps, Container):
        raise ValueError(f'steps must be a range or numbers of steps, got {steps!r}')
    if isinstance(steps, range):
        if not steps or min(steps[0], steps[-1]) < 0:
            raise ValueError(
                f'steps are counted from 0, and {steps!r} names '
                + ('none' if not steps else 'steps before')
            )
    elif isinstance(steps, Collection):
        if not 0 < len(steps) <= MAX_STEPS:
            raise ValueError(f'steps must name 1 to {MAX_STEPS} steps, got {len(steps)}')
        for step in steps:
            whole_number(step, 'steps', 0, sys.maxsize)


def check_heads(heads: Heads | None, layers: Mapping[str, int]) -> None:
    """Refuse heads that no layer has, and names that are no layers.

    Args:
        heads: As `heads_of` takes them.
        layers: The layers there are, with their number of heads.

    Raises:
        ValueError: As said.
    """
    if heads is None:
        return
    for name, wanted in heads.items() if isinstance(heads, Mapping) else [(None, heads)]:
        counts = {
            layer: count
            for layer, count in layers.items()
            if name is None or _inside(layer, str(name))
        }
        if not counts:
            raise ValueError(
                f'heads name {name!r}, which holds none of the layers to record: {list(layers)}'
            )
        if isinstance(wanted, (str, bytes)) or not isinstance(wanted, Collection) or not wanted:
            raise ValueError(f'heads must be numbers of heads, got {wanted!r}')
        least = min(counts, key=counts.__getitem__)
        strangers = [
            head
            for head in wanted
            if isinstance(head, bool)
            or not isinstance(head, Integral)
            or not 0 <= int(head) < counts[least]
        ]
        if strangers:
            raise ValueError(
                f'{least} has heads 0 to {counts[least] - 1}, but heads asks for {strangers[:9]}'
            )


def separate_names(separate: str | Iterable[str]) -> frozenset[str]:
    """What to keep apart. Heads of different layers share a number only, so they bring layers.

    Args:
        separate: Names of `SEPARATE`.

    Raises:
        ValueError: If a name is unknown.
    """
    names = _names(separate, 'separate')
    if not names <= set(SEPARATE):
        raise ValueError(f'separate must be of {SEPARATE}, got {separate!r}')
    return frozenset(names | {'layers'} if 'heads' in names else names)


def block_names(
    blocks: str | Iterable[str], groups: Iterable[str], denoiser: nn.Module
) -> frozenset[str] | None:
    """The wanted blocks, ``None`` for all of them.

    Args:
        blocks: Names of block groups, or of modules of the denoiser, such as ``'up_blocks.1'``.
        groups: The block groups there are.
        denoiser: Where the modules are.

    Raises:
        ValueError: If a name is neither.
    """
    names = _names(blocks, 'blocks')
    known = {'all', *groups}
    modules = {name for name, _ in named_parts(denoiser)} if names - known else set()
    if not names or names - known - modules:
        raise ValueError(
            f'blocks must be of {sorted(known)}, or names of modules such as '
            f"'up_blocks.1', got {blocks!r}"
        )
    return None if 'all' in names else frozenset(names)


def named_parts(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a network by their names in it, without what wraps it."""
    for name, module in denoiser.named_modules():
        if not is_wrapper(module):
            yield plain_name(name), module


def is_wrapper(module: nn.Module) -> bool:
    """Tell whether a module is what `torch.compile` puts round another."""
    # hasattr writes an error for each module that has no such attribute, nearly all of them.
    return '_orig_mod' in module._modules


def plain_name(name: str) -> str:
    """Return a module's name without the wrappers that `torch.compile` and PEFT put round it."""
    plain = name
    if '_orig_mod' in name:
        plain = '.'.join(part for part in name.split('.') if part != '_orig_mod')
    for wrapped in ('base_model.model', 'base_model'):  # PEFT's `get_peft_model`
        if plain == wrapped or plain.startswith(f'{wrapped}.'):
            return plain[len(wrapped) + 1 :]
    return plain


def in_blocks(blocks: frozenset[str] | None, group: str, layer: str) -> bool:
    """Tell whether a layer belongs to the wanted blocks."""
    return blocks is None or group in blocks or any(_inside(layer, name) for name in blocks)


def heads_of(heads: Heads | None, layer: str) -> frozenset[int] | None:
    """The wanted heads of a layer, ``None`` for all of them.

    Args:
        heads: ``None``, numbers of heads for all layers, or for each layer (or block) that is
            wanted its own. Of several names that hold a layer the longest counts.
        layer: Name of the layer.
    """
    if heads is None:
        return None
    if not isinstance(heads, Mapping):
        return frozenset(heads)
    names = [name for name in heads if _inside(layer, name)]
    return frozenset(heads[max(names, key=len)]) if names else frozenset()


def size_matches(size: Size, wanted: tuple[int | Size, ...] | None) -> bool:
    """Tell whether a map is of a wanted size: (height, width), or the shorter side alone."""
    return wanted is None or any(
        min(size) == name if isinstance(name, int) else size == tuple(name) for name in wanted
    )


def choose_parts(
    counts: Mapping[Part, int],
    *,
    groups: Iterable[str] = (),
    blocks: frozenset[str] | None = None,
    resolutions: tuple[int | Size, ...] | None = None,
    steps: Container[int] | None = None,
    heads: Heads | None = None,
    weights: str | Mapping[int | Size, float] | None = None,
) -> dict[Part, float]:
    """Pick the running sums to average, and what one map in each of them counts.

    A layer's heads share what the layer counts, so a mean over them stays a mean. A layer that was
    left out of some steps counts as much as the others.

    Args:
        counts: The sums there are, and how many maps are in each.
        groups: The block groups there are; other names of ``blocks`` are modules.
        blocks: From `block_names`.
        resolutions: Sizes, or shorter sides.
        steps: Numbers of steps.
        heads: As `heads_of` takes them.
        weights: ``None``: every layer counts the same. ``'resolution'``: every resolution does.
            A mapping from resolution to a number: what a layer of that resolution counts.

    Returns:
        The chosen sums, each with its weight.

    Raises:
        ValueError: If a choice needs what wasn't kept apart, is unknown, or leaves nothing.
    """
    named = set() if blocks is None else blocks - set(groups)
    for wanted, field, name in (
        (bool(named), 'layer', 'layers'),
        (steps is not None, 'step', 'steps'),
        (heads is not None, 'head', 'heads'),
    ):
        if wanted and any(getattr(part, field) is None for part in counts):
            raise ValueError(
                f'{name} were not kept apart, so none can be chosen now: make the '
                f'recorder with separate={name!r}, or give it the choice'
            )
    parts = [
        part
        for part in counts
        if in_blocks(blocks, part.group, part.layer or '')
        and size_matches(part.size, resolutions)
        and (heads is None or part.head in (heads_of(heads, part.layer or '') or ()))
    ]
    if steps is not None:
        layers = {part.layer for part in parts}
        parts = [part for part in parts if part.step in steps]
        missing = sorted(layers - {part.layer for part in parts}, key=str)
        if parts and missing:
            raise ValueError(
                f'{missing[0]} was computed in none of the steps chosen, a step cache '
                'answered for it; choose more steps'
            )
    heads_kept = Counter(part._replace(head=None) for part in parts)
    share = {part: 1 / heads_kept[part._replace(head=None)] for part in parts}
    maps: Counter = Counter()
    for part in parts:
        maps[part.layer, part.head] += counts[part]
    if all(part.layer is not None for part in parts) and len(set(maps.values())) > 1:
        share = {part: value / maps[part.layer, part.head] for part, value in share.items()}
    if weights is None:
        chosen = share
    elif weights == 'resolution':
        totals = dict.fromkeys((part.size for part in parts), 0.0)
        for part in parts:
            totals[part.size] += share[part] * counts[part]
        chosen = {part: share[part] / totals[part.size] for part in parts}
    elif isinstance(weights, Mapping):
        names = sizes(weights, 'weights') or ()
        if not all(
            isinstance(weight, Real) and 0 <= weight <= MAX_WEIGHT for weight in weights.values()
        ):
            raise ValueError(
                f'weights must be from 0 to {MAX_WEIGHT:g}, not negative, got {weights!r}'
            )
        chosen = {
            part: float(weight)
            for part in parts
            for name, weight in zip(names, weights.values())
            if size_matches(part.size, (name,))
        }
        chosen = {part: share[part] * weight for part, weight in chosen.items() if weight}
    else:
        raise ValueError(f"weights must be None, 'resolution' or a mapping, got {weights!r}")
    if not chosen:
        recorded = ', '.join(
            f'{group} {height}x{width}'
            for group, (height, width) in sorted({(part.group, part.size) for part in counts})
        )
        raise ValueError(
            'blocks, resolutions, steps, heads and weights leave nothing of what was '
            f'recorded: {recorded}'
        )
    return chosen


def _names(names: str | Iterable[str], option: str) -> set[str]:
    """One name, or several."""
    if isinstance(names, str):
        return {names}
    found = set(names) if isinstance(names, Iterable) else {names}
    if not all(isinstance(name, str) for name in found):
        raise ValueError(f'{option} must be a name or a list of names, got {names!r}')
    return found


def _inside(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(name + '.')
