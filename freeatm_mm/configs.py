"""What command lines change in configs, and what can be checked before anything is built."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from freeatm_mm.errors import InputError, MissingFileError

__all__ = ['check_datasets', 'check_init', 'complete_config', 'find_datasets', 'open_config',
           'set_data_root']

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_EVALUATORS = ('val_evaluator', 'test_evaluator')


def open_config(path: str | Path, work_dir: str | None = None, launcher: str = 'none') -> Any:
    """Read a config of any of the frameworks and settle where its files go.

    Args:
        path: The config.
        work_dir: Where logs and checkpoints go; by default the config's own, or
            ``work_dirs/<path of the config below configs/>``.
        launcher: What started the processes.

    Raises:
        FileNotFoundError: If the config, or one that it inherits, doesn't exist.
        InputError: If a package that it needs can't be imported.
    """
    from mmengine.config import Config

    from freeatm_mm import compat
    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no config {path}')
    compat.accept_mmseg_fork()
    try:
        cfg = Config.fromfile(path)
    except ImportError as error:  # also where a package's metadata are missing
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f'{path} needs a package that is missing or broken ({reason}): '
                         '"./run setup downstream" installs mmdet and mmseg, "./run setup core" '
                         'mmpretrain') from error
    cfg.launcher = launcher
    if work_dir or not cfg.get('work_dir'):
        parts = Path(path).with_suffix('').parts
        below = parts[parts.index('configs') + 1:] if 'configs' in parts else parts[-1:]
        cfg.work_dir = work_dir or str(Path('work_dirs', *below))
    return cfg


def complete_config(cfg: Any, data_root: str | None = None, options: Mapping | None = None,
                    pin_memory: bool = True, persistent_workers: bool = True) -> None:
    """Apply the command line's last words and make the loaders' settings fit each other.

    Args:
        cfg: The config, changed in place.
        data_root: See `set_data_root`.
        options: Dotted keys and their values; they win over all else.
        pin_memory: False forbids it.
        persistent_workers: False forbids it.

    Raises:
        ValueError: If a data root is given and the config's data sets don't share one.
        InputError: If a detector is to run on a GPU with mmcv's ops for the CPU.
    """
    import torch

    from freeatm_mm import compat
    if data_root:
        set_data_root(cfg, data_root)
    # Images of one size are stacked; mmdet and mmseg, whose images differ, have their own way.
    stacked = cfg.get('default_scope') == 'mmpretrain'
    loaders = [cfg[name] for name in _LOADERS if cfg.get(name)]
    for loader in loaders:
        if stacked:
            loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.setdefault('pin_memory', torch.cuda.is_available())
        loader.setdefault('persistent_workers', True)
        loader.pin_memory &= pin_memory
        loader.persistent_workers &= persistent_workers
    if options:
        cfg.merge_from_dict(options)
    for loader in (cfg[name] for name in _LOADERS if cfg.get(name)):
        if not loader.get('num_workers'):
            loader.persistent_workers = False  # torch refuses it without workers
    if cfg.launcher != 'none':
        compat.launch_on_cpus(cfg)
    compat.require_cuda_ops(cfg)


def find_datasets(cfg: Mapping, loaders: tuple[str, ...] = _LOADERS
                  ) -> Iterator[tuple[str, Mapping]]:
    """Yield key and config of every data set with a ``data_root``, wrapped ones too."""
    def search(key: str, value: Any) -> Iterator[tuple[str, Mapping]]:
        if not isinstance(value, Mapping):
            return
        if value.get('data_root'):
            yield key, value
            return
        if 'dataset' in value:
            yield from search(f'{key}.dataset', value['dataset'])
        for number, part in enumerate(value.get('datasets', ())):
            yield from search(f'{key}.datasets.{number}', part)
    for loader in loaders:
        yield from search(loader, cfg.get(loader))


def set_data_root(cfg: Any, root: str | Path) -> None:
    """Put another folder in the place of a config's data folder, in loaders and evaluators alike.

    Args:
        cfg: An mmengine config, changed in place.
        root: The folder.

    Raises:
        ValueError: If the config's data sets have no data folder, or several.
    """
    roots = {dataset['data_root'].rstrip('/') for _, dataset in find_datasets(cfg)}
    if len(roots) != 1:
        found = ' and '.join(sorted(roots)) or 'none'
        raise ValueError(f'a data root can be given where the data sets share one; here they have '
                         f'{found}: set each with --cfg-options')
    old = roots.pop()

    def replace(value: Any) -> Any:
        if isinstance(value, str) and (value == old or value.startswith(f'{old}/')):
            return f'{str(root).rstrip("/")}{value[len(old):]}'
        if isinstance(value, dict):
            for key in value:
                value[key] = replace(value[key])
        elif isinstance(value, (list, tuple)):
            return type(value)(map(replace, value))
        return value

    for key in (*_LOADERS, *_EVALUATORS):
        if cfg.get(key):
            cfg[key] = replace(cfg[key])


def check_datasets(cfg: Mapping, loaders: tuple[str, ...] = _LOADERS) -> None:
    """Check that the folders and annotation files that a config names are there.

    Raises:
        FileNotFoundError: Naming the first that is not, the key that names it, and what to do.
    """
    for key, dataset in find_datasets(cfg, loaders):
        root = Path(dataset['data_root'])
        prefix = dataset.get('data_prefix') or dataset.get('split') or ''
        parts = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
        for part in ['', *parts, dataset.get('ann_file') or '']:
            if isinstance(part, str) and not (root / part).exists():
                raise FileNotFoundError(
                    f'{key}: there is no {root / part}: say with --data-root where the data set '
                    'lies, in the layout that docs/downstream.md describes')


def check_init(cfg: Mapping) -> None:
    """Check a config's ``init`` before anything is built; configs without it pass.

    Raises:
        InputError: If it isn't set.
        MissingFileError: If it names a checkpoint that isn't there.
    """
    if 'init' not in cfg:
        return
    init = cfg['init']
    how = 'set init=random, init=supervised or init=CHECKPOINT with --cfg-options'
    if not init:
        raise InputError(f'this config says not what to start from: {how}')
    if not isinstance(init, str):
        raise InputError(f'init is one path, and --cfg-options makes a list of one with commas, '
                         f'{init}: give the checkpoint a path without')
    if init not in ('random', 'supervised') and '://' not in init and not Path(init).is_file():
        raise MissingFileError(f'there is no checkpoint {init}: {how}')
