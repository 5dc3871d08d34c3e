"""What is looked at before the first step: splits, their first samples, and batches."""

from __future__ import annotations

from typing import Any

from lavis.common.dist_utils import get_world_size
from lavis.tasks.image_text_pretrain import ImageTextPretrainTask
from lavis.tasks.retrieval import RetrievalTask
from torch.utils.data import ConcatDataset

from freeatm_mm.errors import InputError, counted
from freeatm_mm.lavis_ext.resuming import random_state, set_random_state
from freeatm_mm.lavis_ext.settings import check_entries

__all__ = ['check_batch', 'check_items', 'check_splits']


def check_splits(runner: Any) -> None:
    """Look at every split that will be needed, and at its first sample.

    Args:
        runner: A `FreeATMRunner`, its model and datasets built.

    Raises:
        InputError: If one is missing, or its views don't fit the model.
    """
    run, there = runner.config.run_cfg, runner.dataloaders
    needed = {'run.test_splits': list(runner.test_splits)}
    if not runner.evaluate_only:
        needed = {
            'run.train_splits': ['train'],
            'run.valid_splits': list(run.get('valid_splits', [])),
            **needed,
        }
    evaluated = {*needed['run.test_splits'], *needed.get('run.valid_splits', ())}
    if (
        evaluated
        and isinstance(runner.task, (RetrievalTask, ImageTextPretrainTask))
        and not (
            # The task of pretraining has an evaluation, which does nothing.
            isinstance(runner.task, RetrievalTask) and hasattr(runner._model, 'compute_sim_matrix')
        )
    ):
        raise InputError(
            f'nothing can evaluate the split {sorted(evaluated)[0]}: the task is '
            f'{run.task} and the model {type(runner._model).__name__}; leave '
            'run.valid_splits and run.test_splits empty'
        )
    state = random_state(runner.device)
    for entry, splits in needed.items():
        check_entries(splits, there, entry[:-1] + ', among the splits that the datasets have,')
        for split in splits:
            dataset = runner.datasets[split]
            if (
                split in evaluated
                and isinstance(runner.task, RetrievalTask)
                and not hasattr(dataset, 'txt2img')
            ):
                raise InputError(
                    f'the split {split} is one to train on, and retrieval is evaluated on val '
                    'or test: change run.valid_splits or run.test_splits'
                )
            parts: list[Any] = [dataset]
            if isinstance(dataset, ConcatDataset):
                parts = [part for part in dataset.datasets if len(part)]  # type: ignore[arg-type]
            firsts = [part[0] for part in parts]
            for first in firsts:
                _check_view(runner._model, split, getattr(first.get('image'), 'shape', ())[-2:])
            if split == 'train':
                check_items(runner._model, parts, firsts)
            if split in evaluated and hasattr(runner._model, 'check_set'):
                runner._model.check_set(runner.datasets[split])
    set_random_state(state, runner.device)


def check_items(model: Any, parts: list, firsts: list) -> None:
    """Refuse datasets that lack what the model needs, or hold masks that it has no use for.

    Args:
        model: The model.
        parts: The datasets to train on.
        firsts: The first item of each.

    Raises:
        InputError: For the first of them.
    """
    masked = ['noun_masks' in first for first in firsts]
    for part, first, has_masks in zip(parts, firsts, masked):
        name = type(part).__name__
        for key in getattr(model, 'NEEDED', ()):
            if key not in first:
                raise InputError(
                    f'{type(model).__name__} is trained with {key}, and the data set {name} '
                    'gives none: train on other datasets, or another model'
                )
        if any(masked) and not has_masks:  # LAVIS keeps what all items of a batch have
            raise InputError(
                f'mask_grid and model.mask_loss need masks of all pairs, and the data set '
                f'{name} gives none: train on freeatm_pretrain alone'
            )
        if hasattr(model, 'check_masks'):
            model.check_masks(first.get('noun_masks'))
        elif has_masks:
            raise InputError(
                f'mask_grid has no effect with the model {type(model).__name__}: leave it out'
            )


def _check_view(model: Any, split: str, size: Any) -> None:
    encoder = getattr(model, 'visual_encoder', None)
    wanted = getattr(getattr(encoder, 'patch_embed', None), 'img_size', None)
    if wanted is not None and size and tuple(size) != tuple(wanted):
        raise InputError(
            f'the image processor of the split {split} makes views of {size[0]} x '
            f'{size[1]} pixels, and model.image_size is {wanted[0]}: set both '
            'alike'
        )


def check_batch(runner: Any) -> None:
    """Refuse batches that would fail later with less to say.

    Args:
        runner: A `FreeATMRunner`.

    Raises:
        InputError: If there is less than one step an epoch, or queue and batch don't fit.
    """
    batch = int(runner.config.run_cfg.batch_size_train)
    processes = get_world_size()
    together = batch * processes
    samples = runner.count_samples()
    if samples < together:  # with less, processes would share samples
        raise InputError(
            f'a batch of {batch} on each of {counted(processes, "process")} needs '
            f'{together} samples at least, and the data set holds {samples}: set '
            'run.batch_size_train'
        )
    whole = getattr(runner._model, 'negative_all_rank', False)
    if (together if whole else batch) < 2 and hasattr(runner._model, 'queue_size'):
        raise InputError(
            'run.batch_size_train must be at least 2: the matching loss takes its '
            'wrong pairs from the batch'
        )
    queue = getattr(runner._model, 'queue_size', together)
    if queue % together:
        raise InputError(
            f'model.queue_size {queue} must be a multiple of the whole batch, '
            f'{together} = {batch} x {counted(processes, "process")}'
        )
