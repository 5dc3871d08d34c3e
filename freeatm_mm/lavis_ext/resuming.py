"""What a run is gone on from: its checkpoints, what they must hold, and what may have changed."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lavis.common.dist_utils import get_world_size
from lavis.common.registry import registry
from omegaconf import OmegaConf

from freeatm_mm.errors import InputError, counted
from freeatm_mm.lavis_ext.settings import plain

__all__ = [
    'CHECKPOINT',
    'check_steps',
    'completed',
    'differences',
    'epoch_files',
    'newest_checkpoint',
    'random_state',
    'set_random_state',
]

_EPOCH_FILE = re.compile(r'checkpoint_(\d+)\.pth')


def epoch_files(folder: str | Path) -> dict[int, Path]:
    """The checkpoints of a run, by epoch."""
    found = {
        int(match[1]): path
        for path in Path(folder).glob('checkpoint_*.pth')
        if (match := _EPOCH_FILE.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of a run's last finished epoch, or ``None`` if there is none yet."""
    files = list(epoch_files(folder).values())
    return files[-1] if files else None


#: What a checkpoint must hold to be gone on from.
CHECKPOINT = {
    'model': dict,
    'optimizer': dict,
    'random': [dict],
    'config': dict,
    'epoch': int,
    'best': {'epoch': (int, None), 'metric': float},
}

#: What may differ between a run and its continuation.
_MAY_DIFFER = {
    f'run.{name}'
    for name in (
        'output_dir',
        'device',
        'num_workers',
        'rank',
        'world_size',
        'gpu',
        'distributed',
        'dist_url',
        'dist_backend',
        'resume_ckpt_path',
        'evaluate',
        'keep_checkpoints',
        'batch_size_eval',
        'valid_splits',
        'test_splits',
        'k_test',
        'find_unused_parameters',
    )
}


def _flat(config: Mapping[str, Any], start: str = '') -> dict[str, Any]:
    """Nested entries by their whole names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= (
            _flat(value, f'{start}{name}.')
            if isinstance(value, Mapping) and value
            else {f'{start}{name}': value}
        )
    return found


def differences(earlier: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """What two configs say differently of model, datasets and run."""
    earlier, config = _flat(earlier), _flat(config)
    return [
        f'{name} {earlier.get(name)} there, {config.get(name)} here'
        for name in sorted({*earlier, *config} - _MAY_DIFFER)
        if earlier.get(name) != config.get(name)
    ]


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of all random generators of this process, of types that can be read back safely."""
    numpy_state: Any = np.random.get_state()
    name, keys, position, has_gauss, gauss = numpy_state
    state = {
        'python': random.getstate(),
        'torch': torch.get_rng_state(),
        'numpy': (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
    }
    if device.type == 'cuda':
        state['cuda'] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put all random generators of this process into a state of `random_state`."""
    name, keys, *rest = state['numpy']
    random.setstate(state['python'])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if device.type == 'cuda' and 'cuda' in state:
        torch.cuda.set_rng_state(state['cuda'].cpu(), device)


def completed(earlier: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """A checkpoint's config; options of the model that are newer have their defaults.

    Args:
        earlier: The checkpoint's config.
        model: This run's `model`.
    """
    path = registry.get_model_class(model.arch).default_config_path(model.model_type)
    defaults = plain(OmegaConf.load(path).model, str(path))
    return {**earlier, 'model': {**defaults, **earlier.get('model', {})}}


def check_steps(
    path: Path, checkpoint: Mapping[str, Any], changes: list[str], here: int, same_run: bool
) -> list[str]:
    """Tell whether a step has as many images as before, whatever the number of processes.

    Args:
        path: Of the checkpoint.
        checkpoint: Its content.
        changes: What differs between the runs' settings.
        here: This run's `batch_size_train`.
        same_run: Whether it has to be the same run.

    Returns:
        The changes, without the batch of each process where that of all is the same.

    Raises:
        InputError: If the run has to be the same, and its steps have other numbers of images.
    """
    key, processes = 'batch_size_train', len(checkpoint['random'])
    there = checkpoint['config'].get('run', {}).get(key)
    if processes == get_world_size() or not isinstance(there, int):
        return changes
    if there * processes == here * get_world_size():
        return [change for change in changes if not change.startswith(f'run.{key} ')]
    if same_run:
        raise InputError(
            f'{path} was written by {counted(processes, "process")} with {there * processes} '
            f'images a step, and this run has {get_world_size()} with '
            f'{here * get_world_size()}: resume with processes and run.{key} whose product is '
            f'{there * processes}, or name the checkpoint in run.resume_ckpt_path, which goes '
            'on all the same'
        )
    return changes
