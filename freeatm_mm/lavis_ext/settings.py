"""What may stand in a LAVIS yaml: unknown names and unusable values are refused, never ignored."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lavis.common.registry import registry
from lavis.tasks.retrieval import RetrievalTask
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from freeatm_mm.errors import InputError, counted

__all__ = [
    'RUN',
    'check_entries',
    'check_processors',
    'check_run',
    'check_values',
    'find_device',
    'plain',
]

Check = Callable[[Any], 'str | None']
"""Takes a value; returns what it must be where it doesn't fit, else ``None``."""


def plain(cfg: Any, where: str) -> dict[str, Any]:
    """A part of a yaml as plain containers, references resolved.

    Raises:
        InputError: If it is no mapping, or a reference leads nowhere.
    """
    try:
        if not isinstance(cfg, DictConfig):
            cfg = OmegaConf.create({'part': {} if cfg is None else cfg}).part
        if isinstance(cfg, DictConfig):
            content: Any = OmegaConf.to_container(cfg, resolve=True)
            return content
    except OmegaConfBaseException as error:
        raise InputError(f'{where}: {str(error).splitlines()[0]}') from None
    raise InputError(f'{where} must hold names and values, got {cfg!r}')


def check_entries(
    given: Iterable[str], known: Iterable[str], where: str, reasons: Mapping[str, str] | None = None
) -> None:
    """Refuse a name that nothing reads, such as a mistyped one.

    Args:
        given: The names that are there.
        known: Those that may be.
        where: What they are entries of.
        reasons: Why a name that LAVIS knows elsewhere has no place here.

    Raises:
        InputError: For the first name that isn't known, with the nearest one that is.
    """
    known = sorted(map(str, known))
    for name in map(str, given):
        if name in known:
            continue
        if reasons and name in reasons:
            raise InputError(f'{where} has no {name}: {reasons[name]}')
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f'; did you mean {near[0]}?' if near else ''
        raise InputError(f'{where} has no {name}{hint} (known are {", ".join(known)})')


def check_values(values: Mapping[str, Any], checks: Mapping[str, Check], where: str) -> None:
    """Refuse a value that can't be used; entries that are null count as left out.

    Raises:
        InputError: Naming the entry, its value and what it must be.
    """
    for name, check in checks.items():
        if values.get(name) is not None and (wanted := check(values[name])):
            raise InputError(f'{where}.{name} must be {wanted}, got {values[name]!r}')


# --- kinds of values ------------------------------------------------------------------------------


def number(
    low: float | None = None, high: float | None = None, integer: bool = False, above: bool = False
) -> Check:
    """A finite number of at least (or above) ``low``; no text, even of a number."""
    limits = [
        '' if low is None else f'{"above" if above else "of at least"} {low:.15g}',
        '' if high is None else f'{"of " if low is None else ""}at most {high:.15g}',
    ]
    wanted = ' '.join(
        ['an integer' if integer else 'a number', ' and '.join(filter(None, limits))]
    ).strip()

    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int if integer else (int, float)):
            return wanted
        try:
            found = float(value)
        except OverflowError:
            return wanted
        fits = (
            math.isfinite(found)
            and (low is None or found > low or found == low and not above)
            and (high is None or found <= high)
        )
        return None if fits else wanted

    return check


def count(low: int = 1, high: float | None = None) -> Check:
    """An integer of at least ``low``."""
    return number(low, high, integer=True)


def truth(value: Any) -> str | None:
    """True or False."""
    return None if isinstance(value, bool) else 'True or False'


def text(value: Any) -> str | None:
    """Text that isn't empty, or a path."""
    return None if isinstance(value, Path) or isinstance(value, str) and value.strip() else 'text'


def names(value: Any) -> str | None:
    """A list of texts."""
    fits = isinstance(value, list) and not any(map(text, value))
    return None if fits else 'a list of names, for example [test]'


def _device(value: Any) -> str | None:
    kind, _, index = str(value).partition(':')
    if kind in ('auto', 'cpu') and not index or kind == 'cuda' and (not index or index.isdigit()):
        return None
    return 'auto, cpu, cuda or cuda:NUMBER'


# --- run ------------------------------------------------------------------------------------------

#: Entries of `run` that the runner honours.
RUN: dict[str, Check] = {
    'task': text,
    'runner': text,
    'lr_sched': text,
    'init_lr': number(0, above=True),
    'min_lr': number(0),
    'warmup_lr': number(),
    'warmup_steps': count(0),
    'lr_decay_rate': number(0, 1, above=True),
    'weight_decay': number(0),
    'beta2': number(0, 0.9999999),
    'max_epoch': count(),
    'batch_size_train': count(),
    'batch_size_eval': count(),
    'num_workers': count(0, 1024),
    'accum_grad_iters': count(),
    'log_freq': count(),
    'seed': count(0, 2**31),
    'output_dir': text,
    'resume_ckpt_path': text,
    'keep_checkpoints': count(0),
    'amp': truth,
    'evaluate': truth,
    'train_splits': names,
    'valid_splits': names,
    'test_splits': names,
    'k_test': count(),
    'device': _device,
    'use_dist_eval_sampler': truth,
    'find_unused_parameters': truth,
    # What LAVIS's train.py and our start of processes write there.
    'distributed': truth,
    'rank': count(0),
    'world_size': count(),
    'gpu': count(0),
    'dist_url': text,
    'dist_backend': text,
}
_ITERATIONS = 'freeatm_runner trains whole epochs (run.max_epoch)'
_OTHER_TASK = 'no task of freeatm_mm.lavis_ext generates text'
_NEWER = "LAVIS 1.0.2 doesn't read it"
_NO_PLACE = {
    'train_dataset_ratios': 'name several sources in build_info, and a share',
    'max_iters': _ITERATIONS,
    'iters_per_inner_epoch': _ITERATIONS,
    'iters_per_epoch': _ITERATIONS,
    'save_freq': 'each epoch is saved, and run.keep_checkpoints says how many are kept',
    'val_freq': 'each epoch is evaluated on run.valid_splits',
    'save_last': 'each epoch is saved',
    'lr_layer_decay': _NEWER,
    'max_len': _OTHER_TASK,
    'min_len': _OTHER_TASK,
    'num_beams': _OTHER_TASK,
    'num_ans_candidates': _OTHER_TASK,
    'inference_method': _OTHER_TASK,
}
_NEEDED = ('task', 'output_dir', 'num_workers')
_NEEDED_TO_TRAIN = (
    'lr_sched',
    'init_lr',
    'min_lr',
    'weight_decay',
    'max_epoch',
    'batch_size_train',
    'train_splits',
)


def check_run(cfg: DictConfig) -> None:
    """Refuse what `freeatm_runner` can't honour in a config's `run`.

    Raises:
        InputError: If an entry is unknown, missing, unusable or contradicts another.
    """
    run = plain(cfg, 'run')
    check_entries(run, RUN, 'run', _NO_PLACE)
    check_values(run, RUN, 'run')
    evaluates_only = run.get('evaluate') or False
    needed: tuple[str, ...] = _NEEDED if evaluates_only else _NEEDED + _NEEDED_TO_TRAIN
    if run.get('valid_splits') or run.get('test_splits'):
        needed += ('batch_size_eval',)
    task = registry.get_task_class(run.get('task'))
    retrieval = isinstance(task, type) and issubclass(task, RetrievalTask)
    if retrieval:
        needed += ('k_test',)
    missing = [name for name in needed if run.get(name) is None]
    if missing:
        raise InputError(f'run lacks {", ".join(missing)}')
    if task is None:
        near = difflib.get_close_matches(run['task'], registry.list_tasks(), 1)
        raise InputError(
            f'LAVIS knows no task {run["task"]!r}' + (f'; did you mean {near[0]}?' if near else '')
        )
    if retrieval and run.get('use_dist_eval_sampler'):
        raise InputError(
            'run.use_dist_eval_sampler=True would show each of several processes only some of the '
            'images that texts are compared with: set it to False for retrieval'
        )
    if evaluates_only:
        if not run.get('test_splits'):
            raise InputError('run.evaluate is of run.test_splits, which names none')
        if run.get('resume_ckpt_path'):
            raise InputError(
                'run.evaluate takes model.pretrained or model.finetuned, and '
                'run.resume_ckpt_path goes on with a training: leave one of them out'
            )
        return
    schedules = registry.list_lr_schedulers()
    if run['lr_sched'] not in schedules:
        raise InputError(
            f'LAVIS knows no schedule {run["lr_sched"]!r}; run.lr_sched is one of '
            f'{", ".join(schedules)}'
        )
    decays = run['lr_sched'] == 'linear_warmup_step_lr'
    if decays and run.get('lr_decay_rate') is None:
        raise InputError('run lacks lr_decay_rate, which run.lr_sched linear_warmup_step_lr needs')
    if run['lr_sched'] == 'linear_warmup_cosine_lr' and run.get('lr_decay_rate') is not None:
        raise InputError(
            'run.lr_decay_rate has no effect with linear_warmup_cosine_lr: set it to null'
        )
    if run['train_splits'] != ['train']:
        raise InputError(
            f'run.train_splits must be [train], the split that is trained on, got '
            f'{run["train_splits"]}'
        )
    on_gpu = str(run.get('device', 'auto')).startswith('cuda') or (
        run.get('device', 'auto') == 'auto' and torch.cuda.is_available()
    )
    if run.get('amp') and not on_gpu:
        raise InputError(
            'run.amp computes with half precision on GPUs only: set run.amp=False on a CPU'
        )


def find_device(run: Mapping[str, Any]) -> torch.device:
    """What `run.device` names; 'auto', or none, is a GPU where there is one.

    Raises:
        InputError: If the machine shows no such GPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = run.get('device') or 'auto'
    device = torch.device(('cuda' if gpus else 'cpu') if name == 'auto' else name)
    if device.type == 'cuda' and (device.index or 0) >= gpus:
        shown = counted(gpus, 'GPU') if gpus else 'no GPU'
        raise InputError(
            f'run.device is {name}, and this machine shows {shown}: set run.device=cpu'
        )
    return device


# --- datasets -------------------------------------------------------------------------------------


def check_processors(config: DictConfig, kinds: tuple[str, ...], name: str) -> None:
    """Refuse unknown entries of a dataset's configuration, down to its processors' options.

    A processor's options are its class's `OPTIONS`, or the arguments of its constructor.

    Args:
        config: The configuration, `build_info` apart.
        kinds: Which processors the builder uses: train, eval.
        name: Of the builder.

    Raises:
        InputError: If an entry or a processor is unknown.
    """
    content = plain(config, name)
    check_entries(
        content,
        ('data_type', 'type', 'dataset_card', 'vis_processor', 'text_processor', 'build_info'),
        f'datasets.{name}',
    )
    if content.get('data_type', 'images') != 'images':
        raise InputError(f'datasets.{name}.data_type must be images, got {content["data_type"]!r}')
    for part in ('vis_processor', 'text_processor'):
        for kind, options in _entries(content, part, kinds, f'datasets.{name}'):
            where = f'datasets.{name}.{part}.{kind}'
            if not isinstance(options, dict) or text(options.get('name')):
                raise InputError(f'{where} must name a processor')
            processor = registry.get_processor_class(options['name'])
            if processor is None:
                known = registry.mapping['processor_name_mapping']
                near = difflib.get_close_matches(options['name'], known, 1)
                raise InputError(
                    f'{where}: LAVIS knows no processor {options["name"]!r}'
                    + (f'; did you mean {near[0]}?' if near else '')
                )
            known = getattr(processor, 'OPTIONS', None) or [
                key for key in inspect.signature(processor.__init__).parameters if key != 'self'
            ]
            check_entries(options, ['name', *known], f'{where} ({options["name"]})')


def _entries(
    content: Mapping[str, Any], part: str, known: Iterable[str], where: str
) -> Iterable[tuple[str, Any]]:
    found = {} if content.get(part) is None else content[part]
    if not isinstance(found, dict):
        raise InputError(f'{where}.{part} must hold names and values, got {found!r}')
    check_entries(found, known, f'{where}.{part}')
    return found.items()
