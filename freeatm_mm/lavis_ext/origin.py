"""What a checkpoint was pretrained on and how, read from what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from freeatm_mm.checkpoints import read_state
from freeatm_mm.errors import InputError
from freeatm_mm.files import check_json
from freeatm_mm.ops.position import PRESETS

__all__ = ['FACTS', 'describe_pretraining', 'label_row', 'origin_of', 'scale_of']

#: What a row of results says of its pretraining, and of which type.
FACTS = {
    'regime': (str, None),
    'masks': (bool, str, None),
    'generator': (str, None),
    'seed': (int, None),
    'epochs': (float, None),
    'scale': (str, None),
}

#: The paper's two generators, by what diffusers' pipelines and their weights are called.
_GENERATORS = {
    'sd15': r'stable[-_]?diffusion[-_]v?1[-_.]?5',
    'deepif': r'deepfloyd|\bif(img2img|'
    r'superresolution)?pipeline|\bif-i',
}


def _generator(config: Mapping[str, Any]) -> str | None:
    """What made a store's images; ``None`` where it doesn't say, as in a store of photographs."""
    pipeline = config.get('pipeline')
    if not isinstance(pipeline, str) or not pipeline.strip():
        return None
    text = f'{pipeline} {config.get("pipeline_class", "")}'.lower()
    for name, pattern in _GENERATORS.items():
        if re.search(pattern, text):
            return name
    return 'miniature' if 'miniature' in text else Path(pipeline).name


def _train(data: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return (data.get(part) or {}).get('train') or {}


def _masks(data: Mapping[str, Any]) -> bool | str:
    """False, True or the name of a variant."""
    options = dict(_train(data, 'text_processor'))
    preset = options.pop('preset', None) or 'freeatm'
    if options.pop('name', 'freeatm_caption') != 'freeatm_caption':
        preset = 'none'
    options.pop('prompt', None)
    flips = _train(data, 'vis_processor').get('hflip')
    flips = True if flips is None else flips
    flipped = [] if flips == (preset != 'ptp') else [f'hflip={flips}']  # PTP trains without
    if preset == 'none':
        return ', '.join(['no prompts', *flipped]) if flipped else False
    boxes = bool((data.get('build_info') or {}).get('detections'))
    changes = [
        f'{name}={value}'
        for name, value in sorted(options.items())
        if value is not None and value != getattr(PRESETS.get(preset), name, None)
    ]
    changes += flipped
    if preset == 'ptp':
        parts = ['PTP', *([] if boxes else ['masks']), *changes]
    else:
        parts = ['Free-ATM', *(['boxes'] if boxes else []), *changes]
    return True if parts == ['Free-ATM'] else ', '.join(parts)


def scale_of(model: Mapping[str, Any]) -> str:
    """'paper' for a model of the sizes of LAVIS's, else 'miniature'."""
    return 'miniature' if model.get('vit') or model.get('bert') else 'paper'


def describe_pretraining(
    config: Mapping[str, Any],
    stores: Sequence[Mapping[str, Any]] = (),
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a pretraining's config says of its row.

    Args:
        config: The whole config, as `to_dict` gives it.
        stores: What its stores say made them, where they are at hand.
        earlier: What the checkpoint that it starts from says, where it starts from one.

    Returns:
        :data:`FACTS` but for the epochs, which are a checkpoint's; ``None`` for what isn't known.
    """
    data = config['datasets']['freeatm_pretrain']
    info = data.get('build_info') or {}
    made = [_generator(store) for store in stores]
    generator = made[0] if made and made.count(made[0]) == len(made) else None
    regime = None
    if info.get('annotations'):
        regime = 'mixed' if info.get('store') else 'real'
    elif made and None not in made:
        regime = 'synthetic'
    if config['model'].get('pretrained'):
        before = (earlier or {}).get('regime')
        regime = regime if before == regime else 'mixed' if before and regime else None
    return {
        'regime': regime,
        'masks': _masks(data),
        'generator': generator,
        'seed': config['run'].get('seed', 0),
        'scale': scale_of(config['model']),
    }


def origin_of(path: str | Path) -> dict[str, Any] | None:
    """What a checkpoint of a pretraining, or of a fine-tuning of one, says of the pretraining.

    Returns:
        :data:`FACTS`, ``None`` where it doesn't say; ``None`` for a checkpoint of others.

    Raises:
        InputError: If it can't be read.
    """
    if Path(path).suffix == '.safetensors':
        return None
    content = read_state(path)
    if not isinstance(content, Mapping):
        return None
    known, config = content.get('pretraining'), content.get('config')
    if known is None:
        if not isinstance(config, Mapping) or 'freeatm_pretrain' not in config.get('datasets', {}):
            return None
        known = describe_pretraining(config)
        known['epochs'] = float(content['epoch'] + 1) if 'epoch' in content else None
    check_json(known, FACTS, f'{path}: pretraining')
    return dict(known)


def label_row(
    given: Mapping[str, Any], known: Mapping[str, Any] | None, source: str | Path
) -> dict[str, Any]:
    """What a row says of its pretraining: what the checkpoint knows, and what the user adds.

    A name of the user's own may stand for a variant; what the paper's tables have a row for
    (``False``, ``True``, 'PTP', 'sd15', 'deepif') must be what the checkpoint says.

    Args:
        given: :data:`FACTS` that the user gave, ``None`` where he gave none.
        known: From :func:`origin_of`.
        source: Name of the checkpoint, for messages.

    Returns:
        The facts, complete; `generator` is empty for real images.

    Raises:
        InputError: If the two contradict each other, or neither says something.
    """
    known = known or {}
    for fact, value in given.items():
        told = known.get(fact)
        named = (
            isinstance(value, str)
            and value not in ('PTP', *_GENERATORS)
            and (
                fact == 'generator'
                and told not in _GENERATORS
                or fact == 'masks'
                and isinstance(told, str)
            )
        )
        if value is not None and told is not None and value != told and not named:
            raise InputError(
                f'{source} is of a pretraining whose {fact} is {told}, and --{fact} '
                f'says {value}: leave --{fact} out'
            )
    row = {fact: known.get(fact) if value is None else value for fact, value in given.items()}
    if row['regime'] == 'real':
        row['generator'] = ''
    for fact, value in row.items():
        if value is None:
            raise InputError(f'{source} does not say its {fact}: give --{fact}')
    return row
