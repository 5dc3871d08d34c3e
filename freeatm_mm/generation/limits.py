"""What the settings of a run may be, known before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ['LIMITS', 'MAX_SAMPLES', 'MAX_SHARDS', 'MAX_STEPS', 'MAX_WORKERS', 'check_settings']

MAX_STEPS, MAX_WORKERS = 10_000, 1024
MAX_SIDE = 16_384
#: Samples and shards of a run.
MAX_SAMPLES, MAX_SHARDS = 10**10, 10**6

#: Setting -> the least and the greatest whole number that it may be.
LIMITS = {
    'steps': (1, MAX_STEPS),
    'batch_size': (1, 4096),
    'samples_per_shard': (1, 10**6),
    'images_per_prompt': (1, 10**6),
    'height': (1, MAX_SIDE),
    'width': (1, MAX_SIDE),
    'quality': (1, 100),
    'seed': (-(2**63), 2**63 - 1),
}
_MASK_LIMITS = {'propagate': (0, 100), 'crf': (0, 96), 'stage': (1, 3)}
_MAX_GUIDANCE = 1000


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse numbers that no run could have.

    Args:
        settings: Arguments of `freeatm_mm.generation.ShardSource`, some or all.

    Raises:
        ValueError: If one is no number of its kind, or out of range; says which.
    """
    for name, limits in LIMITS.items():
        value = settings.get(name)
        if value is not None:
            _whole(name, value, limits)
    for name in ('guidance', 'stage_guidance'):
        values = settings.get(name)
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if value is not None:
                _scale(name, value)
    for value in settings.get('stage_steps') or ():
        _whole('stage_steps', value, LIMITS['steps'])
    if (settings.get('height') is None) != (settings.get('width') is None):
        # Pipelines would silently generate their own size.
        raise ValueError(
            'give height and width together, got '
            f'{settings.get("height")} and {settings.get("width")}'
        )
    masks = settings.get('masks')
    if isinstance(masks, Mapping):
        _check_masks(masks)


def _check_masks(masks: Mapping[str, Any]) -> None:
    for name, limits in _MASK_LIMITS.items():
        if name in masks:
            _whole(name, masks[name], limits)
    steps, resolutions = masks.get('steps'), masks.get('resolutions')
    if steps is not None:
        if not isinstance(steps, Sequence) or len(steps) not in (2, 3):
            raise ValueError(f'steps must be start, stop and maybe stride, got {_shown(steps)}')
        for name, value in zip(('start', 'stop', 'stride'), steps):
            _whole(
                f"the {name} of the masks' steps", value, (1 if name == 'stride' else 0, MAX_STEPS)
            )
    if resolutions is not None and not isinstance(resolutions, Sequence):
        raise ValueError(
            f"the masks' resolutions must be a list of sides in pixels, got {_shown(resolutions)}"
        )
    for value in resolutions or ():
        for side in value if isinstance(value, (list, tuple)) else [value]:
            _whole("the masks' resolutions", side, (1, MAX_SIDE))


def _whole(name: str, value: Any, limits: tuple[int, int]) -> None:
    least, most = limits
    if type(value) is not int or not least <= value <= most:
        raise ValueError(
            f'{name} must be a whole number from {least} to {most}, got {_shown(value)}'
        )


def _scale(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or abs(value) > _MAX_GUIDANCE:
        raise ValueError(
            f'{name} must be a number from {-_MAX_GUIDANCE} to {_MAX_GUIDANCE}, got {_shown(value)}'
        )


def _shown(value: Any) -> str:
    # Python refuses to print integers of more than 4300 digits.
    if isinstance(value, int) and abs(value) > 10**30:
        return 'a number of more than 30 digits'
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
