"""A runner that works on a CPU, one GPU or many, and whose runs can be stopped and resumed exactly.

The training itself is LAVIS's: tasks, schedules, optimiser and evaluation are its own.
"""
from __future__ import annotations

import datetime
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lavis.common.optims  # noqa: F401  registers the schedules, which `import lavis` does not
import numpy as np
import torch
import torch.distributed as dist
from lavis.common.dist_utils import get_rank, get_world_size, is_main_process
from lavis.common.registry import registry
from lavis.datasets.datasets.dataloader_utils import PrefetchLoader
from lavis.runners.runner_base import RunnerBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from freeatm_mm.compat import let_lavis_average_on_cpus, name_lavis_folder
from freeatm_mm.files import atomic_write

__all__ = ['FreeATMRunner', 'newest_checkpoint']

_EPOCH_FILE = re.compile(r'checkpoint_(\d+)\.pth')


def _epoch_files(folder: str | Path) -> dict[int, Path]:
    """The checkpoints of a run, by epoch."""
    found = {int(match[1]): path for path in Path(folder).glob('checkpoint_*.pth')
             if (match := _EPOCH_FILE.fullmatch(path.name))}
    return dict(sorted(found.items()))


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of a run's last finished epoch, or ``None`` if there is none yet."""
    files = list(_epoch_files(folder).values())
    return files[-1] if files else None


#: What may differ between a run and its continuation.
_MAY_DIFFER = {f'run.{name}' for name in (
    'output_dir', 'device', 'num_workers', 'rank', 'world_size', 'gpu', 'distributed', 'dist_url',
    'dist_backend', 'resume_ckpt_path', 'evaluate', 'keep_checkpoints', 'batch_size_eval',
    'valid_splits', 'test_splits', 'k_test', 'find_unused_parameters')}


def _flat(config: Mapping[str, Any], start: str = '') -> dict[str, Any]:
    """Nested entries by their whole names."""
    found = {}
    for name, value in config.items():
        found |= (_flat(value, f'{start}{name}.') if isinstance(value, Mapping) and value
                  else {f'{start}{name}': value})
    return found


def _differences(earlier: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """What two configs say differently of model, datasets and run."""
    earlier, config = _flat(earlier), _flat(config)
    return [f'{name} {earlier.get(name)} there, {config.get(name)} here'
            for name in sorted({*earlier, *config} - _MAY_DIFFER)
            if earlier.get(name) != config.get(name)]


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def _random_state(device: torch.device) -> dict[str, Any]:
    """The state of all random generators of this process, of types that can be read back safely."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state = {'python': random.getstate(), 'torch': torch.get_rng_state(),
             'numpy': (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss)}
    if device.type == 'cuda':
        state['cuda'] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    name, keys, *rest = state['numpy']
    random.setstate(state['python'])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if device.type == 'cuda' and 'cuda' in state:
        torch.cuda.set_rng_state(state['cuda'].cpu(), device)


@registry.register_runner('freeatm_runner')
class FreeATMRunner(RunnerBase):
    """LAVIS's `RunnerBase` that runs anywhere and resumes exactly.

    Every epoch ends with `checkpoint_EPOCH.pth`: all weights, also those that take no gradient
    (the momentum encoders), optimiser, loss scale and the random state of every process. Resumed
    from there by as many processes, with as many loading workers, a run ends bit-equal to one that
    was never stopped. `log.txt` has one JSON object an epoch: losses, and of the texts how many
    were cut at `max_txt_len`.

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
            but for `run.max_epoch`; otherwise a warning tells of the differences.

    Raises:
        ValueError: If the batch doesn't fit the data or the model's queues.
    """

    def __init__(self, cfg, task, model, datasets, job_id: str = '') -> None:
        let_lavis_average_on_cpus()
        super().__init__(cfg, task, model, datasets, job_id)
        self.best = {'epoch': None, 'metric': -1.0}
        self.same_run = False
        self._losses: Counter = Counter()
        if not self.evaluate_only:
            self._check_batch()
            if registry.get_lr_scheduler_class(cfg.run_cfg.lr_sched) is None:
                raise ValueError(f'LAVIS knows no schedule {cfg.run_cfg.lr_sched!r}; run.lr_sched '
                                 f'is one of {", ".join(registry.list_lr_schedulers())}')

    # --- where and with what ----------------------------------------------------------------------

    def setup_output_dir(self) -> None:
        """Makes the run's folder, relative to where the command was started."""
        self.output_dir = (Path(self.config.run_cfg.output_dir) / self.job_id).resolve()
        self.result_dir = self.output_dir / 'result'
        self.result_dir.mkdir(parents=True, exist_ok=True)
        name_lavis_folder('output_dir', self.output_dir)
        name_lavis_folder('result_dir', self.result_dir)

    @property
    def model(self) -> nn.Module:
        """The model on its device, wrapped where several processes train it."""
        if self._wrapped_model is None:
            self._model = self._model.to(self.device)
            self._wrapped_model = self._model
            if self.use_distributed:
                on_gpu = self.device.type == 'cuda'
                # The queues start equal and stay so, as each process gathers all keys: there is
                # no need to send them round at every step, nor does DistributedDataParallel then
                # do it at the start.
                for buffer in self._model.buffers():
                    dist.broadcast(buffer, src=0)
                self._wrapped_model = DistributedDataParallel(
                    self._model, device_ids=[self.config.run_cfg.gpu] if on_gpu else None,
                    broadcast_buffers=False, find_unused_parameters=self.config.run_cfg.get(
                        'find_unused_parameters', False))
            self._model.register_forward_hook(self._note_losses)
        return self._wrapped_model

    def _note_losses(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        """Adds up the parts of the loss; LAVIS logs their sum alone."""
        if not module.training:
            return
        for name in ('loss', 'loss_itc', 'loss_itm', 'loss_lm'):
            value = getattr(output, name, None)
            if value is not None:
                self._losses[name] += value.detach()
        self._losses['steps'] += 1

    @property
    def seed(self) -> int:
        """The run's seed, the same in all processes."""
        return int(self.config.run_cfg.get('seed', 0))

    def create_loaders(self, datasets, num_workers, batch_sizes, is_trains, collate_fns,
                       dataset_ratios=None) -> list:
        """One loader a split; the order of a training epoch follows from seed and epoch alone.

        Raises:
            ValueError: If `train_dataset_ratios` is set: sources are joined in the builder.
        """
        if dataset_ratios is not None:
            raise ValueError('freeatm_runner does not mix datasets by train_dataset_ratios: name '
                             'several sources in build_info, and a share')
        loaders = []
        for dataset, size, train, collate in zip(datasets, batch_sizes, is_trains, collate_fns):
            sampler = None
            if train or (self.use_distributed and self.use_dist_eval_sampler):
                sampler = DistributedSampler(dataset, get_world_size(), get_rank(), shuffle=train,
                                             seed=self.seed)
            loader = DataLoader(
                dataset, batch_size=size, num_workers=num_workers, sampler=sampler,
                collate_fn=collate, drop_last=train, pin_memory=self.cuda_enabled,
                # Base of the workers' seeds, set anew for every epoch.
                generator=torch.Generator() if train else None)
            loaders.append(PrefetchLoader(loader) if self.cuda_enabled else loader)
        return loaders

    def _check_batch(self) -> None:
        """Refuses what would fail later with less to say; tells of a warm-up that is cut off."""
        batch = int(self.config.run_cfg.batch_size_train)
        together = batch * get_world_size()
        samples = len(self.dataloaders['train'].dataset)
        if not len(self.dataloaders['train']):
            raise ValueError(f'a batch of {batch} on each of {get_world_size()} processes needs '
                             f'more than the {samples} samples there are: set '
                             'run.batch_size_train')
        queue = getattr(self._model, 'queue_size', together)
        if queue % together:
            raise ValueError(f'model.queue_size {queue} must be a multiple of the whole batch, '
                             f'{together} = {batch} x {get_world_size()} processes')
        steps, warmup = len(self.dataloaders['train']), self.config.run_cfg.get('warmup_steps', 0)
        if warmup > steps:
            logging.warning('LAVIS warms up in the first epoch alone: its %d steps take the rate '
                            'to %.0f %% of run.init_lr, and the second epoch jumps from there; set '
                            'run.warmup_steps to %d at most, not %d', steps, 100 * steps / warmup,
                            steps, warmup)

    # --- training ---------------------------------------------------------------------------------

    def train(self) -> dict[str, Any] | None:
        """Trains, resuming if `run.resume_ckpt_path` is set; judges the test splits at the end.

        Returns:
            What :meth:`evaluate` does.

        Raises:
            ValueError: If the folder holds another run's checkpoints, or what is to be gone on
                from doesn't fit.
        """
        start = time.monotonic()
        if not self.evaluate_only:
            earlier = newest_checkpoint(self.output_dir)
            if self.resume_ckpt_path:
                self._load_checkpoint(self.resume_ckpt_path)
            elif earlier:
                raise ValueError(f'{self.output_dir} holds the checkpoints of an earlier run, '
                                 f'{earlier.name} for one: go on from it (--resume), choose '
                                 'another folder, or delete this one')
            _barrier()  # before the first checkpoint is written
        self.log_config()
        if not self.evaluate_only:
            for epoch in range(self.start_epoch, self.max_epoch):
                self.log_stats(self.train_epoch(epoch), 'train')
                self._validate(epoch)
                self._save_checkpoint(epoch)
        judged = self.evaluate('best' if self.best['epoch'] is not None else self.max_epoch - 1,
                               skip_reload=self.evaluate_only)
        logging.info('%s in all', datetime.timedelta(seconds=round(time.monotonic() - start)))
        return judged

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """One epoch of LAVIS's loop.

        Returns:
            `epoch`, `lr`, this process's means of `loss` and its parts, and for the texts of all
            processes `texts`, `truncated` and `lost_tokens`.
        """
        loader = self.train_loader
        loader.sampler.set_epoch(epoch)
        entropy = [self.seed, epoch, get_rank()]
        loader.generator.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        self._losses.clear()
        stats = super().train_epoch(epoch)
        steps = max(self._losses.pop('steps', 0), 1)
        # LAVIS rounds its own to three digits.
        means = {name: float(total) / steps for name, total in self._losses.items()}
        return {'epoch': epoch, **{name: float(value) for name, value in stats.items()},
                'lr': self.optimizer.param_groups[0]['lr'], **means, **self._text_counts()}

    def _text_counts(self) -> dict[str, int]:
        """What the model's tokenizer counted since the last call, in all processes."""
        take = getattr(self.unwrap_dist_model(self.model), 'take_text_counts', None)
        if take is None:
            return {}
        counts = take()
        if self.use_distributed:
            total = torch.tensor(list(counts.values()), device=self.device)
            dist.all_reduce(total)
            counts = dict(zip(counts, total.tolist()))
        if counts['truncated']:
            logging.warning('%d of %d texts were longer than max_txt_len and lost %d tokens in '
                            'all: raise model.max_txt_len, the same for all that is compared',
                            counts['truncated'], counts['texts'], counts['lost_tokens'])
        return dict(counts)

    def _validate(self, epoch: int) -> None:
        """Judges the validation splits, and keeps the weights that do best on 'val'."""
        for split in self.valid_splits:
            log = self.eval_epoch(split_name=split, cur_epoch=epoch)
            if log is not None and is_main_process():
                if split == 'val' and log['agg_metrics'] > self.best['metric']:
                    self.best = {'epoch': epoch, 'metric': float(log['agg_metrics'])}
                    self._write(self.output_dir / 'checkpoint_best.pth', {
                        'model': self.unwrap_dist_model(self.model).state_dict(),
                        'epoch': epoch})
                self.log_stats({'epoch': epoch, **log, 'best_epoch': self.best['epoch']}, split)
        if self.use_distributed:
            best = [self.best]
            dist.broadcast_object_list(best, src=0, device=self.device)
            self.best = best[0]

    def log_stats(self, stats: dict[str, Any], split_name: str) -> None:
        """Appends one line to `log.txt`, as LAVIS does."""
        super().log_stats(stats, split_name)
        logging.info('%s: %s', split_name, json.dumps(stats))

    # --- checkpoints ------------------------------------------------------------------------------

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        with atomic_write(path) as file:
            torch.save(content, file)
        logging.info('%s written', path)

    def _save_checkpoint(self, cur_epoch: int, is_best: bool = False) -> None:
        """Writes the checkpoint of an epoch, whole or not at all."""
        states = [_random_state(self.device)]
        if self.use_distributed:
            own, states = states[0], [None] * get_world_size()
            dist.all_gather_object(states, own)
        if is_main_process():
            self._write(self.output_dir / f'checkpoint_{cur_epoch}.pth', {
                'model': self.unwrap_dist_model(self.model).state_dict(),
                'optimizer': self.optimizer.state_dict(),
                'scaler': self.scaler.state_dict() if self.scaler else None,
                'config': self.config.to_dict(), 'epoch': cur_epoch, 'best': self.best,
                'random': states})
            keep = int(self.config.run_cfg.get('keep_checkpoints', 0))
            for epoch, path in _epoch_files(self.output_dir).items():
                if keep and epoch <= cur_epoch - keep:
                    path.unlink()
        _barrier()

    def _load_checkpoint(self, url_or_filename: str | Path) -> None:
        """Goes on from a checkpoint of this runner.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not one of this runner's, of another model, or, where it has to
                be of the same run, of another config.
        """
        path = Path(url_or_filename)
        if not path.is_file():
            raise FileNotFoundError(f'there is no checkpoint {path} to go on from')
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        if 'random' not in checkpoint or 'optimizer' not in checkpoint:
            raise ValueError(f'{path} can\'t be gone on from: it was not written by '
                             'freeatm_runner at the end of an epoch')
        changes = _differences(checkpoint['config'], self.config.to_dict())
        if self.same_run and any(not change.startswith('run.max_epoch ') for change in changes):
            raise ValueError(f'{path} is of a run with other settings ({"; ".join(changes)}): '
                             'choose another folder, delete this one, or name the checkpoint in '
                             'run.resume_ckpt_path, which goes on all the same')
        if changes:
            logging.warning('%s was written with other settings: %s', path, '; '.join(changes))
        try:
            self.unwrap_dist_model(self.model).load_state_dict(checkpoint['model'])
        except RuntimeError as error:
            raise ValueError(f'{path} is of another model: {error}') from None
        self.optimizer.load_state_dict(checkpoint['optimizer'])
        if self.scaler and checkpoint['scaler']:
            self.scaler.load_state_dict(checkpoint['scaler'])
        self.start_epoch = checkpoint['epoch'] + 1
        self.best = checkpoint['best']
        if len(checkpoint['random']) == get_world_size():
            _set_random_state(checkpoint['random'][get_rank()], self.device)
        else:
            logging.warning('%s was written by %d processes and is gone on from by %d: random '
                            'numbers start anew', path, len(checkpoint['random']),
                            get_world_size())
        logging.info('going on from %s with epoch %d', path, self.start_epoch)

    def _reload_best_model(self, model: nn.Module) -> nn.Module:
        """The weights that did best on 'val'."""
        checkpoint = torch.load(self.output_dir / 'checkpoint_best.pth', map_location='cpu',
                                weights_only=True)
        model.load_state_dict(checkpoint['model'])
        return model
