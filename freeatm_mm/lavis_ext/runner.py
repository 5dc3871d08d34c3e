"""A runner that works on a CPU, one GPU or many, and whose runs can be stopped and resumed exactly.

The training itself is LAVIS's: tasks, schedules, optimiser and evaluation are its own.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import lavis.common.optims  # noqa: F401  registers the schedules, which `import lavis` does not
import numpy as np
import torch
import torch.distributed as dist
from lavis.common.dist_utils import get_rank, get_world_size, is_main_process
from lavis.common.registry import registry
from lavis.datasets.datasets.dataloader_utils import PrefetchLoader
from lavis.runners.runner_base import RunnerBase
from lavis.tasks.image_text_pretrain import ImageTextPretrainTask
from lavis.tasks.retrieval import RetrievalTask
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from freeatm_mm.checkpoints import read_state
from freeatm_mm.compat import let_lavis_average_on_cpus, name_lavis_folder
from freeatm_mm.errors import InputError, MissingFileError, one_sentence
from freeatm_mm.files import atomic_write, check_json, read_json
from freeatm_mm.lavis_ext.checks import check_batch, check_splits
from freeatm_mm.lavis_ext.datasets import batch_items
from freeatm_mm.lavis_ext.resuming import (
    CHECKPOINT,
    check_steps,
    completed,
    differences,
    epoch_files,
    newest_checkpoint,
    random_state,
    set_random_state,
)
from freeatm_mm.lavis_ext.settings import check_run, find_device
from freeatm_mm.origins import blip_origin, describe_blip

__all__ = ['FreeATMRunner']

#: Which epoch was evaluated last, and which one is the best.
_NOTE = 'validated.json'
#: Losses in a row that may be 0, as OpenMMLab's `CheckTrainingHook` has it.
_PATIENCE = 20
#: What the items of a batch count (`freeatm_mm.lavis_ext.datasets.batch_items`).
_COUNTED = {'prompted', 'unreadable'}


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


class _WholeWarmUp:
    """LAVIS's schedule, with a warm-up that may be longer than the first epoch.

    LAVIS warms up while the epoch is 0, by the number of the step in it, and jumps from there.

    Args:
        schedule: LAVIS's.
        steps: Of an epoch.
    """

    def __init__(self, schedule: Any, steps: int) -> None:
        self.schedule, self.steps = schedule, steps

    def step(self, cur_epoch: int, cur_step: int) -> None:
        """Set the rate of a step."""
        done = cur_epoch * self.steps + cur_step
        if done < self.schedule.warmup_steps:
            cur_epoch, cur_step = 0, done
        self.schedule.step(cur_epoch=cur_epoch, cur_step=cur_step)


@registry.register_runner('freeatm_runner')
class FreeATMRunner(RunnerBase):
    """LAVIS's `RunnerBase` that runs anywhere and resumes exactly.

    Every epoch ends with `checkpoint_EPOCH.pth`: all weights, also those that take no gradient
    (the momentum encoders), optimiser, loss scale and the random state of every process. It is
    written before the epoch is evaluated; `validated.json` says which epoch was evaluated last, and
    evaluating draws no random number that training would notice. Resumed from there by as many
    processes, with as many loading workers, a run ends bit-equal to one that was never stopped.
    `log.txt` has one JSON object an epoch: losses, of the texts how many were cut at
    `max_txt_len` and how many hold position prompts, where these are asked for, and of the pictures
    how many couldn't be read, where these are passed over.

    Whatever can be looked at is looked at before the first step. A loss or a weight that is no
    number stops the training before anything is written, and so does a loss that is exactly 0 in
    20 steps in a row, or in all of a shorter run. Gradients are accumulated as a mean, and
    an epoch's last step is made of the batches that are left.

    Further options of `run`: `keep_checkpoints` (how many epochs' to keep; 0 for all),
    `find_unused_parameters` (of DistributedDataParallel).

    Args:
        cfg: LAVIS's config.
        task: LAVIS's task.
        model: The model.
        datasets: Builder name -> split -> dataset.
        job_id: Folder below `run.output_dir`; '' for `run.output_dir` itself.

    Attributes:
        same_run: Whether what is gone on from must have been written by a run of the same config,
            but for `run.max_epoch`; otherwise a warning names the differences.

    Raises:
        InputError: If an entry of `run` can't be honoured, a split or a picture is missing, or the
            batch doesn't fit the data or the model's queues.
    """

    # LAVIS's, made when first asked for.
    _device: torch.device | None
    _lr_sched: _WholeWarmUp | None
    _model: Any
    _wrapped_model: Any

    def __init__(self, cfg, task, model, datasets, job_id: str = '') -> None:
        check_run(cfg.run_cfg)
        for name in [name for name, value in cfg.run_cfg.items() if value is None]:
            cfg.run_cfg.pop(name)  # LAVIS would take null for a value
        let_lavis_average_on_cpus()
        super().__init__(cfg, task, model, datasets, job_id)
        if not self.cuda_enabled and 'cuda_enabled' in signature(task.evaluation).parameters:
            task.evaluation = partial(task.evaluation, cuda_enabled=False)  # LAVIS takes its True
        self._origin = None if self.evaluate_only else self._find_origin()
        self.best = {'epoch': None, 'metric': -1.0}
        self.same_run = False
        self._evaluated = True
        self._epoch = 0
        self._losses: Counter = Counter()
        self._idle = 0
        check_splits(self)
        if not self.evaluate_only:
            check_batch(self)

    # --- where and with what ----------------------------------------------------------------------

    def setup_output_dir(self) -> None:
        """Make the run's folder, relative to where the command was started."""
        self.output_dir = (Path(self.config.run_cfg.output_dir) / self.job_id).resolve()
        self.result_dir = self.output_dir / 'result'
        self.result_dir.mkdir(parents=True, exist_ok=True)
        name_lavis_folder('output_dir', self.output_dir)
        name_lavis_folder('result_dir', self.result_dir)

    @property
    def device(self) -> torch.device:
        """`run.device`; 'auto', or none, is a GPU where there is one."""
        if self._device is None:
            self._device = find_device(self.config.run_cfg)
        return self._device

    @property
    def evaluate_only(self) -> bool:
        """`run.evaluate`: no training."""
        return bool(self.config.run_cfg.get('evaluate', False))

    @property
    def use_dist_eval_sampler(self) -> bool:
        """Whether several processes share a split's samples; retrieval compares all with all."""
        shared = not isinstance(self.task, RetrievalTask)
        return bool(self.config.run_cfg.get('use_dist_eval_sampler', shared))

    @property
    def use_distributed(self) -> bool:
        """Whether several processes were started (LAVIS's `run.distributed`)."""
        return dist.is_available() and dist.is_initialized()

    @property
    def lr_scheduler(self) -> _WholeWarmUp:
        """LAVIS's schedule of `run.lr_sched`."""
        if self._lr_sched is None:
            self._lr_sched = _WholeWarmUp(super().lr_scheduler, len(self.train_loader))
        return self._lr_sched

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """LAVIS's; what it accumulates is a mean."""
        if self._optimizer is None:
            super().optimizer.register_step_pre_hook(self._average_gradients)
        return self._optimizer

    @property
    def model(self) -> nn.Module:
        """The model on its device, wrapped where several processes train it."""
        if self._wrapped_model is None:
            self._model = self._model.to(self.device)
            self._wrapped_model = self._model
            if self.use_distributed and not self.evaluate_only:
                on_gpu = self.device.type == 'cuda'
                # The queues start equal and stay so, as each process gathers all keys: there is
                # no need to send them round at every step, nor does DistributedDataParallel then
                # do it at the start.
                for buffer in self._model.buffers():
                    dist.broadcast(buffer, src=0)
                self._wrapped_model = DistributedDataParallel(
                    self._model,
                    device_ids=[self.config.run_cfg.gpu] if on_gpu else None,
                    broadcast_buffers=False,
                    find_unused_parameters=self.config.run_cfg.get('find_unused_parameters', False),
                )
            self._model.register_forward_hook(self._note_losses)
            for name in ('vision_proj', 'text_proj'):
                if hasattr(self._model, name):
                    getattr(self._model, name).register_forward_hook(self._check_features)
        return self._wrapped_model

    def unwrap_dist_model(self, model: nn.Module) -> nn.Module:
        """The model itself, which is wrapped only where several processes train it."""
        return model.module if isinstance(model, DistributedDataParallel) else model

    def _note_losses(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        """Add up the parts of the loss, of which LAVIS logs the sum alone.

        Raises:
            InputError: As `_check_loss` does.
        """
        if not module.training:
            return
        loss = getattr(output, 'loss', None)
        if loss is not None:
            self._check_loss(loss.detach())
        for name in ('loss', 'loss_itc', 'loss_itm', 'loss_lm', 'loss_mask'):
            value = getattr(output, name, None)
            if value is not None:
                self._losses[name] += value.detach()
        self._losses['steps'] += 1
        if inputs and isinstance(inputs[0], Mapping):
            for name in _COUNTED & inputs[0].keys():
                self._losses[name] += int(inputs[0][name].sum())

    def _check_features(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        """Stop before wrong pairs are drawn by features that are no numbers, which torch can't."""
        if module.training and not torch.isfinite(output).all():
            self._stop(
                f'the features of a batch are no numbers at step {int(self._losses["steps"])} of '
                f'epoch {self._epoch}'
            )

    def _check_loss(self, loss: torch.Tensor) -> None:
        """Stop where a step teaches nothing, or ruins all.

        Raises:
            InputError: If the loss of a process is no number, or if that of all was exactly 0 in 20
                steps in a row, or in all of a shorter run; in all processes at once.
        """
        found = torch.stack([(~torch.isfinite(loss)).any(), (loss != 0).any()]).float()
        if self.use_distributed:
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        wrong, learns = found.bool().tolist()
        if wrong:
            self._stop(
                f'the loss is {float(loss)} at step '
                f'{int(self._losses["steps"])} of epoch {self._epoch}'
            )
        self._idle = 0 if learns else self._idle + 1
        steps = (self.max_epoch - self.start_epoch) * len(self.train_loader)
        if self._idle >= min(_PATIENCE, steps):
            raise InputError(
                f'nothing is trained: the loss was exactly 0 in {self._idle} steps in a row: look '
                "at the model's losses and at the texts that it is given"
            )

    def _stop(self, reason: str) -> NoReturn:
        newest = newest_checkpoint(self.output_dir)
        kept = f'{newest.name} is the last good one' if newest else 'there is none to go on from'
        advice = f'{"run.amp=False or " if self.scaler else ""}a smaller run.init_lr'
        raise InputError(
            f'{reason}: training stops, and this epoch leaves no checkpoint ({kept} '
            f'in {self.output_dir}); try {advice}'
        )

    def _check_weights(self, epoch: int) -> None:
        """Refuse weights that are no numbers, before they take a good checkpoint's place."""
        for name, value in self.unwrap_dist_model(self.model).state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                self._stop(f'{name} holds values that are no numbers after epoch {epoch}')

    def _average_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Make a mean of the batches that a step accumulates, which LAVIS adds up."""
        batches = int(self._losses['steps']) % self.accum_grad_iters or self.accum_grad_iters
        if batches > 1:
            for group in optimizer.param_groups:
                for value in group['params']:
                    if value.grad is not None:
                        value.grad.div_(batches)

    def _finish_accumulation(self) -> None:
        """Step with the batches that an epoch's end leaves, which LAVIS hands to the next one."""
        if int(self._losses['steps']) % self.accum_grad_iters:
            if self.scaler:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                self.optimizer.step()
            self.optimizer.zero_grad()

    @property
    def seed(self) -> int:
        """The run's seed, the same in all processes."""
        return int(self.config.run_cfg.get('seed', 0))

    def create_loaders(
        self, datasets, num_workers, batch_sizes, is_trains, collate_fns, dataset_ratios=None
    ) -> list:
        """One loader a split; the order of a training epoch follows from seed and epoch alone.

        Raises:
            InputError: If `train_dataset_ratios` is set: sources are joined in the builder.
        """
        if dataset_ratios is not None:
            raise InputError(
                'freeatm_runner does not mix datasets by train_dataset_ratios: name '
                'several sources in build_info, and a share'
            )
        loaders = []
        for dataset, size, train, collate in zip(datasets, batch_sizes, is_trains, collate_fns):
            sampler: DistributedSampler | None = None
            if train or (self.use_distributed and self.use_dist_eval_sampler):
                sampler = DistributedSampler(
                    dataset, get_world_size(), get_rank(), shuffle=train, seed=self.seed
                )
            dataset.__getitems__ = partial(batch_items, dataset)  # asked for by loaders
            loader = DataLoader(
                dataset,
                batch_size=size,
                num_workers=num_workers,
                sampler=sampler,
                collate_fn=collate,
                drop_last=train,
                pin_memory=self.cuda_enabled,
                # Base of the workers' seeds, set anew for every epoch.
                generator=torch.Generator() if train else None,
            )
            loaders.append(PrefetchLoader(loader) if self.cuda_enabled else loader)
        return loaders

    def count_samples(self) -> int:
        """Count the pairs that an epoch is drawn from."""
        return len(self.dataloaders['train'].dataset)

    # --- training ---------------------------------------------------------------------------------

    def train(self) -> dict[str, Any] | None:
        """Train, resuming if `run.resume_ckpt_path` is set; evaluate the test splits at the end.

        Returns:
            What `evaluate` does.

        Raises:
            InputError: If the folder holds another run's checkpoints, what is to be gone on from
                doesn't fit, the loss or a weight is no number, or the loss stays exactly 0.
        """
        start = time.monotonic()
        if not self.evaluate_only:
            earlier, named = newest_checkpoint(self.output_dir), self.resume_ckpt_path
            if earlier and not (named and Path(named).parent.resolve() == self.output_dir):
                raise InputError(
                    f'{self.output_dir} holds the checkpoints of an earlier run, '
                    f'{earlier.name} for one: go on from it (--resume), choose '
                    'another folder, or delete this one'
                )
            if named:
                self._load_checkpoint(named)
            _barrier()  # before the first checkpoint is written
        self.log_config()
        if not self.evaluate_only:
            if not self._evaluated:  # stopped between the last checkpoint and its evaluation
                self._validate(self.start_epoch - 1)
            for epoch in range(self.start_epoch, self.max_epoch):
                self.log_stats(self.train_epoch(epoch), 'train')
                self._check_weights(epoch)
                self._save_checkpoint(epoch)
                self._validate(epoch)
        evaluated = self.evaluate(
            'best' if self.best['epoch'] is not None else self.max_epoch - 1,
            skip_reload=self.evaluate_only,
        )
        logging.info('%s in all', datetime.timedelta(seconds=round(time.monotonic() - start)))
        return evaluated

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """One epoch of LAVIS's loop.

        Returns:
            `epoch`, `lr`, this process's means of `loss` and its parts, and for the texts of all
            processes `texts`, `empty`, `truncated` and `lost_tokens`, with position prompts also
            `prompted`, with `model.mask_loss` `nouns`, `nouns_not_in_text` and
            `nouns_out_of_view`.
        """
        loader = self.train_loader
        loader.sampler.set_epoch(epoch)
        entropy = [self.seed, epoch, get_rank()]
        loader.generator.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        self._losses.clear()
        self._epoch = epoch
        stats = super().train_epoch(epoch)
        self._finish_accumulation()
        steps = max(self._losses.pop('steps', 0), 1)
        counts = {name: self._losses.pop(name) for name in sorted(_COUNTED) if name in self._losses}
        # LAVIS rounds its own to three digits.
        means = {name: float(total) / steps for name, total in self._losses.items()}
        return {
            'epoch': epoch,
            **{name: float(value) for name, value in stats.items()},
            'lr': self.optimizer.param_groups[0]['lr'],
            **means,
            **self._text_counts(),
            **self._item_counts(counts),
        }

    def _of_all(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts of this process as those of all, which count the same."""
        if not self.use_distributed or not counts:
            return dict(counts)
        total = torch.tensor(list(counts.values()), device=self.device)
        dist.all_reduce(total)
        return dict(zip(counts, total.tolist()))

    def _item_counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Prompted texts and passed-over pictures of all processes; warnings tell of them."""
        counts = self._of_all(counts)
        if counts.get('unreadable'):
            logging.warning(
                '%d pictures could not be read; the pairs after them took their place',
                counts['unreadable'],
            )
        if not counts.get('prompted', 1):
            logging.warning(
                'no text of this epoch holds a position prompt: none of its pairs has an object '
                'that its view shows, or text_processor.train.min_visible is too high'
            )
        return counts

    def _text_counts(self) -> dict[str, int]:
        """What the model's tokenizer counted since the last call, in all processes."""
        take = getattr(self.unwrap_dist_model(self.model), 'take_text_counts', None)
        if take is None:
            return {}
        counts = self._of_all(take())
        if counts['empty']:
            logging.warning(
                '%d of %d texts were empty once cleaned, as LAVIS takes out . ! " ( ) * # : ; ~',
                counts['empty'],
                counts['texts'],
            )
        if counts['truncated']:
            logging.warning(
                '%d of %d texts were longer than max_txt_len and lost %d tokens in '
                'all: raise model.max_txt_len, the same for all that is compared',
                counts['truncated'],
                counts['texts'],
                counts['lost_tokens'],
            )
        if not counts.get('nouns', 1):
            logging.warning(
                'no pair of this epoch has a mask of a noun: model.mask_loss has no effect without '
                'masks, objects or detections'
            )
        if counts.get('nouns_not_in_text'):
            logging.warning(
                '%d of %d nouns that have masks are not in their texts as they are written: no '
                'attention of theirs is trained',
                counts['nouns_not_in_text'],
                counts['nouns'],
            )
        return counts

    def _validate(self, epoch: int) -> None:
        """Evaluate the validation splits, and keep the weights that do best on 'val'."""
        if not self.config.run_cfg.get('valid_splits'):
            return
        state = random_state(self.device)  # making a loader draws a number
        for split in self.valid_splits:
            log = self.eval_epoch(split_name=split, cur_epoch=epoch)
            if log is None and is_main_process():
                logging.warning(
                    'the task %s gives no figures of the split %s: no epoch counts as the best',
                    self.config.run_cfg.task,
                    split,
                )
            if log is not None and is_main_process():
                if split == 'val' and log['agg_metrics'] > self.best['metric']:
                    self.best = {'epoch': epoch, 'metric': float(log['agg_metrics'])}
                    self._write(
                        self.output_dir / 'checkpoint_best.pth',
                        {
                            'model': self.unwrap_dist_model(self.model).state_dict(),
                            'epoch': epoch,
                            **self._described(epoch),
                        },
                    )
                self.log_stats({'epoch': epoch, **log, 'best_epoch': self.best['epoch']}, split)
        set_random_state(state, self.device)
        if self.use_distributed:
            best = [self.best]
            dist.broadcast_object_list(best, src=0, device=self.device)
            self.best = best[0]
        if is_main_process():
            with atomic_write(self.output_dir / _NOTE) as file:
                file.write(json.dumps({'epoch': epoch, 'best': self.best}).encode())

    def log_stats(self, stats: dict[str, Any], split_name: str) -> None:
        """Append one line to `log.txt`, as LAVIS does."""
        super().log_stats(stats, split_name)
        logging.info('%s: %s', split_name, json.dumps(stats))

    # --- checkpoints ------------------------------------------------------------------------------

    def _find_origin(self) -> dict[str, Any] | None:
        """What checkpoints will say of the pretraining: this one, or the one it starts from."""
        config = self.config.to_dict()
        path, ours = config['model'].get('pretrained'), 'freeatm_pretrain' in config['datasets']
        if config['model'].get('load_finetuned'):
            path = config['model'].get('finetuned')
        earlier = blip_origin(path) if path else None
        if not ours:
            if earlier and isinstance(self.task, ImageTextPretrainTask):  # on other images
                return {**earlier, 'regime': None, 'generator': None}
            return earlier
        sources = getattr(self.datasets['freeatm_pretrain']['train'], 'sources', ())
        return describe_blip(
            config, [source.store.config for source in sources if hasattr(source, 'store')], earlier
        )

    def _described(self, epoch: int) -> dict[str, Any]:
        """What a checkpoint says of the run that wrote it."""
        origin = self._origin
        if origin is not None and 'freeatm_pretrain' in self.config.datasets_cfg:
            origin = {**origin, 'epochs': float(epoch + 1)}
        return {'config': self.config.to_dict(), 'pretraining': origin}

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        with atomic_write(path) as file:
            torch.save(content, file)
        logging.info('%s written', path)

    def _save_checkpoint(self, cur_epoch: int, is_best: bool = False) -> None:
        """Write the checkpoint of an epoch, whole or not at all."""
        states: list[Any] = [random_state(self.device)]
        if self.use_distributed:
            own, states = states[0], [None] * get_world_size()
            dist.all_gather_object(states, own)
        if is_main_process():
            self._write(
                self.output_dir / f'checkpoint_{cur_epoch}.pth',
                {
                    'model': self.unwrap_dist_model(self.model).state_dict(),
                    'optimizer': self.optimizer.state_dict(),
                    'scaler': self.scaler.state_dict() if self.scaler else None,
                    'epoch': cur_epoch,
                    'best': self.best,
                    'random': states,
                    'samples': self.count_samples(),
                    **self._described(cur_epoch),
                },
            )
            keep = int(self.config.run_cfg.get('keep_checkpoints', 0))
            for epoch, path in epoch_files(self.output_dir).items():
                if keep and epoch <= cur_epoch - keep:
                    path.unlink()
        _barrier()

    def _load_checkpoint(self, url_or_filename: str | Path) -> None:
        """Go on from a checkpoint of this runner.

        Raises:
            MissingFileError: If there is no such file.
            InputError: If it is damaged or not one of this runner's, of another model, or, where
                it has to be of the same run, of another config.
        """
        path = Path(url_or_filename)
        if not path.exists():
            raise MissingFileError(f'there is no checkpoint {path} to go on from')
        checkpoint = read_state(path)
        try:
            check_json(checkpoint, CHECKPOINT, '')
        except InputError as error:
            raise InputError(
                f"{path} can't be gone on from: it was not written by "
                f'freeatm_runner at the end of an epoch ({error})'
            ) from None
        changes = differences(
            completed(checkpoint['config'], self.config.model_cfg), self.config.to_dict()
        )
        batch = int(self.config.run_cfg.batch_size_train)
        changes = check_steps(path, checkpoint, changes, batch, self.same_run)
        there, here = checkpoint.get('samples', self.count_samples()), self.count_samples()
        if there != here:  # of the same files, whose content has changed
            changes.append(f'samples {there} there, {here} here')
        workers = checkpoint['config'].get('run', {}).get('num_workers')
        if workers is not None and workers != self.config.run_cfg.num_workers:
            logging.warning(
                '%s was written with run.num_workers=%s and is gone on from with %s: the images '
                'are cropped otherwise, and it does not end bit-equal',
                path,
                workers,
                self.config.run_cfg.num_workers,
            )
        if self.same_run and any(not change.startswith('run.max_epoch ') for change in changes):
            raise InputError(
                f'{path} is of a run with other settings ({"; ".join(changes)}): '
                'choose another folder, delete this one, or name the checkpoint in '
                'run.resume_ckpt_path, which goes on all the same'
            )
        if changes:
            logging.warning('%s was written with other settings: %s', path, '; '.join(changes))
        try:
            self.unwrap_dist_model(self.model).load_state_dict(checkpoint['model'])
        except RuntimeError as error:
            raise InputError(f'{path} is of another model: {one_sentence(error)[:200]}') from None
        states = checkpoint['random']
        try:
            self.optimizer.load_state_dict(checkpoint['optimizer'])
            if self.scaler and checkpoint.get('scaler'):
                self.scaler.load_state_dict(checkpoint['scaler'])
            if len(states) == get_world_size():
                set_random_state(states[get_rank()], self.device)
        except Exception as error:  # of many kinds, as what is in there may be anything
            raise InputError(
                f'{path} is damaged: its optimizer or random state cannot be used '
                f'({type(error).__name__}: {one_sentence(error)[:200]})'
            ) from None
        self._align_queue(path)
        self.start_epoch = checkpoint['epoch'] + 1
        self._recall_evaluation(path, checkpoint)
        if len(states) != get_world_size():
            logging.warning(
                '%s was written by %d processes and is gone on from by %d: random '
                'numbers start anew',
                path,
                len(states),
                get_world_size(),
            )
        logging.info('going on from %s with epoch %d', path, self.start_epoch)

    def _align_queue(self, path: Path) -> None:
        """Have whole batches fit behind the queue's pointer, whatever size it was left by."""
        pointer = getattr(self.unwrap_dist_model(self.model), 'queue_ptr', None)
        together = int(self.config.run_cfg.batch_size_train) * get_world_size()
        if pointer is not None and int(pointer) % together:
            logging.warning(
                "%s left the model's queue at place %d, which is no multiple of the whole batch of "
                '%d: it is filled from its start again',
                path,
                int(pointer),
                together,
            )
            pointer.zero_()

    def _recall_evaluation(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """The best epoch up to a checkpoint, and whether the checkpoint itself was evaluated."""
        folder, epoch = path.resolve().parent, checkpoint['epoch']
        note: dict[str, Any] = {'epoch': None}
        if (folder / _NOTE).exists():
            note = read_json(
                folder / _NOTE,
                shape={'epoch': int, 'best': {'epoch': (int, None), 'metric': float}},
            )
        self._evaluated = folder == self.output_dir and note['epoch'] == epoch
        self.best = note['best'] if self._evaluated else checkpoint['best']
        if self.best['epoch'] is not None and (
            folder != self.output_dir
            or (note['epoch'] or 0) > epoch
            or not (folder / 'checkpoint_best.pth').exists()
        ):
            logging.warning(
                'checkpoint_best.pth of the epochs up to %d is not in %s: the best '
                'epoch is looked for from this one on',
                epoch,
                self.output_dir,
            )
            self.best, self._evaluated = {'epoch': None, 'metric': -1.0}, False

    def _reload_best_model(self, model: nn.Module) -> nn.Module:
        """The weights that did best on 'val'."""
        checkpoint = read_state(self.output_dir / 'checkpoint_best.pth')
        model.load_state_dict(checkpoint['model'])
        return model
