"""What command lines change in configs, and what can be checked before anything is built."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from freeatm_mm.errors import InputError, MissingFileError, first_line, pip_install
from freeatm_mm.packaged import find_config

__all__ = [
    'ChangesAction',
    'add_checks',
    'check_datasets',
    'check_honoured',
    'check_init',
    'check_precision',
    'check_read',
    'complete_config',
    'find_datasets',
    'open_config',
    'scale_rate',
    'set_data_root',
    'use_bfloat16',
]

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_EVALUATORS = ('val_evaluator', 'test_evaluator')
#: What mmengine's runner reads at the top of a config, and what this project does.
_READ = {
    'activation_checkpointing',
    'auto_scale_lr',
    'compile',
    'custom_hooks',
    'custom_imports',
    'data_preprocessor',
    'default_hooks',
    'default_scope',
    'efficient_conv_bn_eval',
    'env_cfg',
    'experiment_name',
    'find_unused_parameters',
    'init',
    'launcher',
    'load_from',
    'log_level',
    'log_processor',
    'model',
    'model_wrapper_cfg',
    'optim_wrapper',
    'param_scheduler',
    'randomness',
    'resume',
    'sync_bn',
    'test_cfg',
    'test_dataloader',
    'test_evaluator',
    'train_cfg',
    'train_dataloader',
    'tta_model',
    'tta_pipeline',
    'val_cfg',
    'val_dataloader',
    'val_evaluator',
    'vis_backends',
    'visualizer',
    'work_dir',
}


def open_config(path: str | Path, work_dir: str | None = None, launcher: str = 'none') -> Any:
    """Read a config of any of the frameworks and settle where its files go.

    Args:
        path: The config, or `freeatm_mm::NAME` for one that comes with the package.
        work_dir: Where logs and checkpoints go; by default the config's own, or
            ``work_dirs/<path of the config below configs/>``.
        launcher: What started the processes.

    Raises:
        FileNotFoundError: If the config, or one that it inherits, doesn't exist.
        InputError: If a package that it needs can't be imported.
    """
    from mmengine.config import Config

    from freeatm_mm import compat

    path = find_config(path)
    if not path.is_file():
        raise MissingFileError.of('config', path)
    compat.accept_mmseg_fork()
    compat.find_packaged_configs()
    try:
        cfg = Config.fromfile(path)
    except ImportError as error:  # also where a package's metadata are missing
        raise InputError(
            f'{path} needs a package that is missing or broken ({first_line(error)}): '
            f'{pip_install("core")} brings mmpretrain, and {pip_install("core,downstream")} '
            'mmdet and mmseg too (core-upstream, downstream-upstream: the upstream packages)'
        ) from error
    cfg.launcher = launcher
    if work_dir or not cfg.get('work_dir'):
        parts = path.with_suffix('').parts
        below = parts[parts.index('configs') + 1 :] if 'configs' in parts else parts[-1:]
        cfg.work_dir = work_dir or str(Path('work_dirs', *below))
    return cfg


def complete_config(
    cfg: Any,
    data_root: str | None = None,
    options: Mapping | None = None,
    pin_memory: bool = True,
    persistent_workers: bool = True,
) -> None:
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


def check_read(options: Iterable[str]) -> None:
    """Refuse options for a config that would be merged into it and read by nothing.

    Args:
        options: Their dotted keys, as given on the command line.

    Raises:
        InputError: Naming the key and what to set in its place.
    """
    for key in options:
        top = key.split('.')[0]
        if top not in _READ:
            raise InputError(
                f'--cfg-options {key}: nothing reads {top} once the config is put together: set '
                'what it was put into, such as train_cfg.max_epochs, train_dataloader.batch_size '
                'or optim_wrapper.optimizer.lr'
            )


def check_honoured(cfg: Any, options: Mapping | None = None) -> None:
    """Refuse what a user asked for and training would pass over without a word.

    Args:
        cfg: The whole config.
        options: Dotted keys and their values, as given on the command line.

    Raises:
        InputError: Naming the key and what to set in its place.
    """
    for key in ('strategy', 'runner_type'):
        if cfg.get(key) and cfg[key] != 'Runner':
            raise InputError(
                f'{key} is not supported: FSDP, DeepSpeed and the like divide weights and '
                'optimizer in ways that hooks and checkpoints here do not know; take it out and '
                'train with --launcher, by which each process holds the whole model'
            )
    check_read(options or ())
    for key in ('max_epochs', 'max_iters'):
        length = (cfg.get('train_cfg') or {}).get(key, 1)
        if not isinstance(length, int) or length < 1:
            raise InputError(
                f'nothing would be trained: train_cfg.{key}={length}: set a whole number from 1'
            )


def check_precision(cfg: Mapping) -> None:
    """Refuse mixed precision where mmengine has none.

    Raises:
        InputError: If the config asks for it and there is no GPU.
    """
    from mmengine.device import get_device

    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise InputError(
            "AmpOptimWrapper, the config's optim_wrapper, is for GPUs, and there is none here: "
            'train with --bf16 (bfloat16), or give the config an optim_wrapper of type '
            'OptimWrapper without loss_scale (float32)'
        )


def use_bfloat16(cfg: Any, options: Mapping | None = None) -> None:
    """Have a config train its backbone in bfloat16 (`freeatm_mm.engine.BFloat16Hook`).

    Args:
        cfg: The whole config, changed in place.
        options: Dotted keys and their values, as given on the command line.

    Raises:
        InputError: If it asks for float16, or a loss scale was given, which bfloat16 has no use
            for.
    """
    wrapper = cfg.optim_wrapper
    dtype = wrapper.pop('dtype', None)
    if str(dtype) not in ('None', 'bfloat16', 'torch.bfloat16'):
        raise InputError(
            f'optim_wrapper.dtype={dtype} contradicts bfloat16, which --bf16 (and --amp on a CPU) '
            'trains in: float16 needs a GPU, on which --amp without --bf16 takes it'
        )
    if 'optim_wrapper.loss_scale' in (options or ()):
        raise InputError(
            'optim_wrapper.loss_scale is for float16, and --bf16 (and --amp on a CPU) trains in '
            'bfloat16, which needs none: leave it out'
        )
    wrapper.pop('loss_scale', None)
    if wrapper.get('type') == 'AmpOptimWrapper':
        wrapper.type = 'OptimWrapper'
    hooks = list(cfg.get('custom_hooks') or ())
    cfg.custom_hooks = [*hooks, dict(type='mmengine.BFloat16Hook')]


def scale_rate(cfg: Any, wanted: bool) -> None:
    """Switch on the scaling of the learning rate by the images of a step, where it is wanted.

    mmengine counts processes and their batches; what is accumulated counts as well.

    Args:
        cfg: The whole config, changed in place.
        wanted: Whether the command line asks for it; the config may do so, too.

    Raises:
        InputError: If the config doesn't say for which batch its rate is meant, or sets another
            rate by itself.
    """
    scale = cfg.get('auto_scale_lr') or {}
    if not wanted and not scale.get('enable'):
        return
    if not scale.get('base_batch_size'):
        raise InputError(
            'the config does not say for which batch its learning rate is meant: set '
            'it with --cfg-options optim_wrapper.optimizer.lr=... in the place of '
            '--auto-scale-lr'
        )
    if any(hook.get('type') == 'SimSiamHook' for hook in cfg.get('custom_hooks') or ()):
        raise InputError(
            '--auto-scale-lr would leave the predictor at the rate that SimSiamHook '
            'gives it every epoch: set both rates by --cfg-options, '
            'optim_wrapper.optimizer.lr=... custom_hooks.0.lr=...'
        )
    counts = cfg.optim_wrapper.get('accumulative_counts', 1)
    cfg.auto_scale_lr.update(enable=True, base_batch_size=scale['base_batch_size'] / counts)


class ChangesAction(argparse.Action):
    """mmengine's `DictAction`, of an option that changes a config, imported once it is given.

    It drops spaces and quotes and makes lists at commas. A file or folder that is there by just the
    name that was given keeps it.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Parse the values as mmengine's own tools do."""
        from mmengine.config import DictAction

        pairs = {}
        for value in map(str, values or ()):
            key, equals, pairs[key] = value.partition('=')
            if not equals:
                raise InputError(f'{option_string} wants KEY=VALUE, got {value!r}')
        action = DictAction(self.option_strings, self.dest, nargs=self.nargs)
        action(parser, namespace, values, option_string)
        for key, given in pairs.items():
            named = os.path.exists(os.path.expanduser(given))
            if named and re.search(r'[\s,\'"()\[\]]', given):
                getattr(namespace, self.dest)[key] = given


def add_checks(cfg: Any) -> None:
    """Give a config `CheckTrainingHook`, which those of this project have by themselves."""
    hooks = list(cfg.get('custom_hooks') or ())
    if not any(str(hook.get('type')).endswith('CheckTrainingHook') for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='mmengine.CheckTrainingHook')]


def find_datasets(cfg: Mapping, loaders: tuple[str, ...] = _LOADERS) -> Iterator[tuple[str, Any]]:
    """Yield key and config of every data set with a `data_root`, wrapped ones too.

    A `FreeATMDataset` is among them before it has one.
    """

    def search(key: str, value: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, Mapping):
            return
        if value.get('data_root') or _is_ours(value):
            yield key, value
            return
        if 'dataset' in value:
            yield from search(f'{key}.dataset', value['dataset'])
        for number, part in enumerate(value.get('datasets', ())):
            yield from search(f'{key}.datasets.{number}', part)

    for loader in loaders:
        yield from search(loader, cfg.get(loader))


def _is_ours(dataset: Mapping) -> bool:
    """Whether it is a `FreeATMDataset`, which also takes several folders."""
    kind = dataset.get('type')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2] == 'FreeATMDataset'


def _roots(dataset: Mapping) -> tuple[str, ...]:
    """The folders of a data set's config."""
    root = dataset.get('data_root') or ()
    return (str(root),) if isinstance(root, (str, Path)) else tuple(map(str, root))


def _split_roots(text: str | Path) -> list[str]:
    """Folders that a command line names with commas between them; one with a comma, if it exists.

    Raises:
        InputError: If one of the names is empty.
    """
    roots = [str(text)] if os.path.exists(text) else str(text).split(',')
    if not all(roots):
        raise InputError(f'--data-root {text}: a name of a folder is empty')
    return roots


def set_data_root(cfg: Any, root: str | Path) -> None:
    """Put another folder in the place of a config's data folder, in loaders and evaluators alike.

    Args:
        cfg: An mmengine config, changed in place.
        root: The folder; for `FreeATMDataset` a store or a folder of images, or several with commas
            between them.

    Raises:
        ValueError: If the config's data sets have no data folder, or not the same, or one that
            takes a single folder is given several.
    """
    new, datasets = _split_roots(root), list(find_datasets(cfg))
    folders = {tuple(name.rstrip('/') for name in _roots(dataset)) for _, dataset in datasets}
    folders.discard(())
    if len(folders) > 1 or not datasets:
        found = ' and '.join(sorted(map(', '.join, folders))) or 'none'
        raise ValueError(
            f'a data root can be given where the data sets share one; here they have '
            f'{found}: set each with --cfg-options'
        )
    single = [key for key, dataset in datasets if not _is_ours(dataset)]
    if single and len(new) > 1:
        raise InputError(f'--data-root {root}: {single[0]} takes one folder, not {len(new)}')
    old = folders.pop()[0] if single else ''

    def replace(value: Any) -> Any:
        if isinstance(value, str) and (value == old or value.startswith(f'{old}/')):
            return f'{new[0].rstrip("/")}{value[len(old) :]}'
        if isinstance(value, dict):
            for key in value:
                value[key] = replace(value[key])
        elif isinstance(value, (list, tuple)):
            return type(value)(map(replace, value))
        return value

    for key in (*_LOADERS, *_EVALUATORS):
        if single and cfg.get(key):
            cfg[key] = replace(cfg[key])
    for _, dataset in find_datasets(cfg):
        if _is_ours(dataset):
            dataset['data_root'] = new[0] if len(new) == 1 else new


def check_datasets(cfg: Mapping, loaders: tuple[str, ...] = _LOADERS) -> None:
    """Check that the stores, folders and annotation files that a config names are there.

    Stores are opened; of other data sets only names are looked at.

    Raises:
        FileNotFoundError: Naming the first that is not, the key that names it, and what to do.
        StoreError: If a store or image folder doesn't exist, is empty or damaged; likewise.
        InputError: If pictures are to be kept on a GPU that isn't there, that the loader could not
            hand them over from, or in each of several worker processes.
    """
    for key, dataset in find_datasets(cfg, loaders):
        if _is_ours(dataset):
            _check_sources(key, dataset)
            _check_device(key, dataset, cfg[key.split('.')[0]])
            continue
        prefix = dataset.get('data_prefix') or dataset.get('split') or ''
        parts = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
        parts = [part for part in ['', *parts, dataset.get('ann_file')] if isinstance(part, str)]
        for path in (Path(root, part) for root in _roots(dataset) for part in parts):
            if not path.exists():
                raise FileNotFoundError(
                    f'{key}: there is no {path}: say with --data-root where the data set lies, in '
                    'the layout that docs/downstream.md describes'
                )


def _check_sources(key: str, dataset: Mapping) -> None:
    """Open the stores and image folders of a `FreeATMDataset`, as it will itself."""
    from freeatm_mm.datasets.dataset import FreeATMDataset
    from freeatm_mm.store import StoreError

    try:
        FreeATMDataset(_roots(dataset), masks=False)
    except StoreError as error:
        raise StoreError(
            f'{key}: {error} (say with --data-root where the store, or the folder of images, lies)'
        ) from None


def _check_device(key: str, dataset: Mapping, loader: Mapping) -> None:
    """Refuse pictures that a `FreeATMDataset` could not keep, or not give from there."""
    device, name = str(dataset.get('device', 'cpu')), key.split('.')[0]
    if device == 'cpu':
        if dataset.get('in_memory') and loader.get('num_workers'):
            raise InputError(
                f'{key}.in_memory: each worker process would keep decoded pictures of its own: set '
                f'{name}.num_workers=0'
            )
        return
    import torch

    if device.startswith('cuda') and not torch.cuda.is_available():
        raise InputError(f'{key}.device={device}: there is no GPU here: leave it out')
    if loader.get('num_workers') or loader.get('pin_memory'):
        raise InputError(
            f'{key}.device={device}: worker processes and pinned memory have no part in pictures '
            f'that are on a GPU already: set {name}.num_workers=0 and {name}.pin_memory=False'
        )


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
        raise InputError(f'this config does not say what to start from: {how}')
    if not isinstance(init, str):
        raise InputError(
            f'init is one path, and --cfg-options makes a list of one with commas, '
            f'{init}: give the checkpoint a path without'
        )
    if init not in ('random', 'supervised') and '://' not in init and not Path(init).is_file():
        raise MissingFileError(f'there is no checkpoint {init}: {how}')
