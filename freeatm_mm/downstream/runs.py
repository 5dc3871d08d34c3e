"""The downstream benchmarks: which config, which metrics, which commands; and rows of results.

One checkpoint goes through a set of benchmarks, each in a folder of its own that can be resumed,
and comes out as one row of the paper's table.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freeatm_mm.downstream.tiny_datasets import LAYOUTS
from freeatm_mm.errors import RunError
from freeatm_mm.files import atomic_write, file_sha256

__all__ = [
    'BENCHMARKS',
    'Benchmark',
    'DownstreamRun',
    'identify',
    'make_smoke',
    'options_of',
    'read_metrics',
    'read_note',
    'suites',
    'told_options',
]


@dataclass(frozen=True)
class Benchmark:
    """A downstream benchmark.

    Attributes:
        config: Below ``configs/``.
        metrics: What the framework's evaluator calls a metric -> what we call it (one of
            `freeatm_mm.results.METRICS`), and the factor that makes it a share of 1.
        batch: Images of a step in all processes together, which rates and schedule are made for.
        suite: The suite that it belongs to; empty for none.
        layout: Of its data set, one of `freeatm_mm.downstream.tiny_datasets.LAYOUTS`; empty for the
            miniature's, whose world is one.
    """

    config: str
    metrics: Mapping[str, tuple[str, float]]
    batch: int
    suite: str = ''
    layout: str = ''

    @property
    def folder(self) -> str:
        """Its data set's, below the folder of all data sets."""
        return LAYOUTS[self.layout].folder if self.layout else ''


_COCO = {
    'coco/bbox_mAP': ('box_ap', 1),
    'coco/bbox_mAP_50': ('box_ap50', 1),
    'coco/segm_mAP': ('mask_ap', 1),
}
_SEGMENTATION = {'mIoU': ('miou', 0.01)}
_LINEAR = {'accuracy/top1': ('linear_top1', 0.01)}
_FINETUNED = {'accuracy/top1': ('finetune_top1', 0.01)}
#: What mmdet's metrics of boxes begin with.
_DETECTION = ('coco/', 'pascal_voc/')
#: Settings of loaders that change no figure, by the last parts of their keys.
_LOADING = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor')
_PAPER, _SMALL = 'downstream', 'miniature/downstream'

BENCHMARKS: dict[str, Benchmark] = {
    'voc': Benchmark(
        f'{_PAPER}/mmdet/voc_faster-rcnn_r50-c4_24k.py',
        {'pascal_voc/AP50': ('voc_ap50', 1)},
        16,
        'resnet',
        'voc',
    ),
    'coco': Benchmark(f'{_PAPER}/mmdet/coco_mask-rcnn_r50-fpn_1x.py', _COCO, 16, 'resnet', 'coco'),
    'cityscapes': Benchmark(
        f'{_PAPER}/mmseg/cityscapes_fcn_r50_160e.py', _SEGMENTATION, 8, 'resnet', 'cityscapes'
    ),
    'linear': Benchmark(
        f'{_PAPER}/mmpretrain/imagenet_linear_r50_100e.py', _LINEAR, 256, 'resnet', 'imagenet'
    ),
    'coco-vit': Benchmark(
        f'{_PAPER}/mmdet/coco_mask-rcnn_vit-b-fpn_100e.py', _COCO, 64, 'vit', 'coco'
    ),
    'finetune': Benchmark(
        f'{_PAPER}/mmpretrain/imagenet_finetune_vit-b_100e.py', _FINETUNED, 1024, 'vit', 'imagenet'
    ),
    'ade20k': Benchmark(
        f'{_PAPER}/mmseg/ade20k_upernet_vit-b_160k.py', _SEGMENTATION, 16, 'vit', 'ade20k'
    ),
    # `mini-coco` gives AP50 too: `mini-voc` has the same scenes, would cost as much again,
    # and is in no suite.
    'mini-voc': Benchmark(
        f'{_SMALL}/faster-rcnn_resnet.py', {'coco/bbox_mAP_50': ('voc_ap50', 1)}, 16
    ),
    'mini-coco': Benchmark(f'{_SMALL}/mask-rcnn_resnet.py', _COCO, 16, 'mini-resnet'),
    'mini-cityscapes': Benchmark(f'{_SMALL}/fcn_resnet.py', _SEGMENTATION, 16, 'mini-resnet'),
    'mini-linear': Benchmark(f'{_SMALL}/linear_resnet.py', _LINEAR, 128, 'mini-resnet'),
    'mini-coco-vit': Benchmark(f'{_SMALL}/mask-rcnn_vit.py', _COCO, 16, 'mini-vit'),
    'mini-finetune': Benchmark(f'{_SMALL}/finetune_vit.py', _FINETUNED, 128, 'mini-vit'),
    'mini-ade20k': Benchmark(f'{_SMALL}/upernet_vit.py', _SEGMENTATION, 16, 'mini-vit'),
}
"""All benchmarks; those of the miniature are called after the paper's that they stand for."""


def suites() -> dict[str, tuple[str, ...]]:
    """The suites and their benchmarks, in order.

    They are the columns of the paper's Table 1 (resnet) and Table 2 (vit), and the same in
    miniature.
    """
    names = dict.fromkeys(part.suite for part in BENCHMARKS.values() if part.suite)
    return {
        suite: tuple(name for name, part in BENCHMARKS.items() if part.suite == suite)
        for suite in names
    }


def read_metrics(path: str | Path, benchmark: Benchmark) -> dict[str, float]:
    """Read what `tools/test.py` wrote, by our names and as shares.

    A detector that finds nothing at all gets no metrics from mmdet; its AP is 0.

    Args:
        path: The file.
        benchmark: Whose metrics they are.

    Raises:
        ValueError: If a metric is missing though others are there, or couldn't be computed.
    """
    found = json.loads(Path(path).read_text())
    if not found and all(key.startswith(_DETECTION) for key in benchmark.metrics):
        return {name: 0.0 for name, _ in benchmark.metrics.values()}
    missing = [key for key in benchmark.metrics if key not in found]
    if missing:
        raise ValueError(f'{path} lacks {", ".join(missing)}; it holds {", ".join(found)}')
    unknown = [key for key in benchmark.metrics if not found[key] >= 0]
    if unknown:  # COCO's -1 and mmseg's NaN: no object or pixel to evaluate on
        raise ValueError(
            f'{path}: {", ".join(unknown)} could not be computed: the evaluation '
            'data have nothing to evaluate on'
        )
    return {name: found[key] * factor for key, (name, factor) in benchmark.metrics.items()}


def identify(init: str) -> str:
    """What a run starts from, in a form that tells two checkpoints of one name apart.

    Addresses such as ``torchvision://resnet50`` are taken by their name.

    Raises:
        FileNotFoundError: If it is a checkpoint that isn't there.
    """
    if init in ('random', 'supervised'):
        return init
    from freeatm_mm.checkpoints import is_remote, local_path
    from freeatm_mm.torch_files import check_regular

    if is_remote(init):
        return init
    return f'sha256:{file_sha256(check_regular(local_path(init)))}'


def make_smoke(cfg: Any, images: int = 4) -> None:
    """Cut a benchmark down to two steps of two images and a few images to evaluate, in place.

    Whatever the framework, model and image sizes stay as they are, and every step is logged.

    Args:
        cfg: The config.
        images: How many of each data set are used.
    """

    def shorten(dataset: Any) -> None:
        if 'dataset' in dataset or 'datasets' in dataset:
            if 'times' in dataset:
                dataset['times'] = 1
            for part in dataset.get('datasets') or [dataset['dataset']]:
                shorten(part)
        else:
            dataset['indices'] = images

    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            shorten(cfg[name]['dataset'])
            cfg[name].update(
                num_workers=0,
                persistent_workers=False,
                batch_size=2 if name == 'train_dataloader' else 1,
            )
    if cfg.get('train_cfg'):
        length = {'max_iters': 2} if 'max_iters' in cfg['train_cfg'] else {'max_epochs': 1}
        cfg['train_cfg'].update(length, val_interval=2)
    hooks = cfg.get('default_hooks') or {}
    for hook in ('logger', 'checkpoint'):
        if hooks.get(hook):
            hooks[hook]['interval'] = 1


def options_of(benchmark: str, options: Iterable[str]) -> tuple[str, ...]:
    """Those ``[BENCHMARK:]KEY=VALUE`` that are for a benchmark, without its name.

    Raises:
        ValueError: If one names a benchmark that there isn't, or is no ``KEY=VALUE``.
    """
    found = []
    for option in options:
        key, equals, value = option.partition('=')
        name, colon, inner = key.rpartition(':')
        if not equals or not key or colon and name not in BENCHMARKS:
            raise ValueError(
                f'--cfg-options {option}: KEY=VALUE or BENCHMARK:KEY=VALUE is wanted, '
                f'with one of {", ".join(BENCHMARKS)}'
            )
        if not colon or name == benchmark:
            found.append(f'{inner}={value}')
    return tuple(found)


@dataclass(frozen=True)
class DownstreamRun:
    """One benchmark from one checkpoint, in a folder of its own.

    Attributes:
        benchmark: Its name in `BENCHMARKS`.
        init: ``random``, ``supervised`` or a checkpoint.
        folder: Its folder.
        data: Folder of all data sets; its own is `Benchmark.folder` in it.
        seed: Random seed.
        options: Further ``key=value`` for the config.
        gpus: Processes to start, one a GPU; 0 for one process as it is.
        amp: Train in mixed precision.
        smoke: Two steps and a few images only.
    """

    benchmark: str
    init: str
    folder: Path
    data: Path = Path('data')
    seed: int = 0
    options: tuple[str, ...] = ()
    gpus: int = 0
    amp: bool = False
    smoke: bool = False

    @property
    def metrics_file(self) -> Path:
        """Where the metrics are once it is done."""
        return self.folder / 'metrics.json'

    @property
    def data_root(self) -> Path:
        """Where its data set lies."""
        return Path(self.data) / BENCHMARKS[self.benchmark].folder

    def commands(self, launcher: Iterable[str] = ()) -> list[list[str]]:
        """The two commands: train on or go on, then evaluate.

        Args:
            launcher: What stands in front of them, such as ``srun``; with it the tools are told so.

        Raises:
            ValueError: If the processes can't share the benchmark's batch equally.
        """
        launcher, benchmark = list(launcher), BENCHMARKS[self.benchmark]
        config = f'configs/{benchmark.config}'
        # A config's own size is that of one process, for the number of them that its header gives.
        size, rest = divmod(benchmark.batch, max(self.gpus, 1))
        if rest:
            raise ValueError(
                f"{self.benchmark}: the batch of {benchmark.batch} can't be shared "
                f'by {self.gpus} GPUs equally: choose another number of them'
            )
        if launcher:
            start, told = [*launcher, sys.executable], ['--launcher', 'slurm']
        elif self.gpus:
            start = [
                sys.executable,
                '-m',
                'torch.distributed.run',
                '--standalone',
                '--nproc-per-node',
                str(self.gpus),
            ]
            told = ['--launcher', 'pytorch']
        else:
            start, told = [sys.executable], []
        data = ['--data-root', str(self.data_root)]
        smoke = ['--smoke'] if self.smoke else []
        train = [
            *start,
            'tools/train.py',
            config,
            '--work-dir',
            str(self.folder),
            '--resume',
            '--seed',
            str(self.seed),
            '--no-validate',
            *data,
            *told,
            *(['--amp'] if self.amp else []),
            *smoke,
            '--cfg-options',
            f'init={self.init}',
            f'train_dataloader.batch_size={size}',
            *self.options,
        ]
        test = [
            *start,
            'tools/test.py',
            config,
            str(self.folder),
            '--work-dir',
            str(self.folder / 'test'),
            '--out',
            str(self.metrics_file),
            *data,
            *told,
            *smoke,
        ]
        if self.options:
            test += ['--cfg-options', *self.options]
        return [train, test]

    def _wanted(self) -> dict[str, Any]:
        """What tells this run from others."""
        return {
            'benchmark': self.benchmark,
            'init': identify(self.init),
            'seed': self.seed,
            'options': list(self.options),
            'data': str(Path(self.data).resolve()),
            **({'amp': True} if self.amp else {}),
            **({'smoke': True} if self.smoke else {}),
        }

    def prepare(self) -> bool:
        """Claim the folder for this very run; whether there is anything left to do.

        Raises:
            ValueError: If the folder holds a run of something else, or the processes can't share
                the benchmark's batch.
            FileNotFoundError: If the checkpoint or the data set isn't there.
        """
        wanted = self._wanted()
        note = self.folder / 'run.json'
        # Old notes don't say of which data.
        found = {'data': wanted['data'], **read_note(self.folder)} if note.exists() else wanted
        if found != wanted:
            differing = ', '.join(
                key for key in {**found, **wanted} if found.get(key) != wanted.get(key)
            )
            raise ValueError(
                f'{self.folder} holds a run with another {differing}: choose another '
                '--out, or delete that folder'
                + (
                    f' (if the data have only been moved, say so in {note})'
                    if differing == 'data'
                    else ''
                )
            )
        if self.metrics_file.exists():
            return False
        self.commands()
        if not self.data_root.is_dir():
            raise FileNotFoundError(
                f'{self.benchmark}: there is no folder {self.data_root}: say '
                'with --data where the data sets lie'
            )
        with atomic_write(note) as file:
            file.write(json.dumps(wanted, indent=1).encode())
        return True

    def earlier(self) -> tuple[list[str], dict[str, str]]:
        """Other benchmarks that are done beside its folder.

        Returns:
            Those of the same start and seed, whatever their data and options; and those of another,
            with what differs.
        """
        note = self.folder / 'run.json'
        own = read_note(self.folder) if note.exists() else self._wanted()
        same, others = [], {}
        for name in BENCHMARKS:
            folder = self.folder.parent / name
            if name == self.benchmark or not all(
                (folder / file).exists() for file in ('run.json', 'metrics.json')
            ):
                continue
            theirs = read_note(folder)
            differing = [
                key for key in ('init', 'seed', 'smoke') if theirs.get(key) != own.get(key)
            ]
            if differing:
                others[name] = ' and '.join(differing)
            else:
                same.append(name)
        return same, others

    def run(self) -> None:
        """Run the commands, one after the other.

        Raises:
            RunError: If one fails; what it did before is kept and gone on from next time. Or if
                a SLURM job still works in the folder, or may.
        """
        if number := self.pending():
            raise RunError(
                f'{self.benchmark}: job {number} still works in {self.folder}: wait '
                'for it, or cancel it'
            )
        for command in self.commands():
            print(shlex.join(command), flush=True)
            code = subprocess.run(command, check=False).returncode
            if code:
                raise RunError(
                    f'{self.benchmark} failed (exit code {code}); the message is above. Once '
                    'mended, start the same command again: it goes on from here'
                )

    def submit(self, partition: str, extra: Iterable[str] = ()) -> str:
        """Hand the commands to SLURM as one job; its number.

        Args:
            partition: Where to run.
            extra: Further options of sbatch, such as ``--time=2-00:00``.

        Raises:
            RunError: If sbatch refuses.
        """
        gpus = max(self.gpus, 1)
        # Jobs may share a node: each meets at a port of its own. srun doesn't take over sbatch's
        # cores a process by itself; one that fails, such as by a missing file, ends the others.
        script = (
            'export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) '
            'SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; '
            + ' && '.join(
                shlex.join(command) for command in self.commands(['srun', '--kill-on-bad-exit=1'])
            )
        )
        command = [
            'sbatch',
            '--parsable',
            f'--job-name={self.benchmark}',
            f'--partition={partition}',
            f'--ntasks={gpus}',
            f'--ntasks-per-node={min(gpus, 8)}',
            f'--gres=gpu:{min(gpus, 8)}',
            '--cpus-per-task=6',
            f'--output={self.folder}/slurm-%j.out',
            *extra,
            f'--wrap={script}',
        ]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise RunError(
                'there is no sbatch here: start this where SLURM jobs are '
                'submitted, or leave --slurm out'
            ) from error
        if done.returncode:
            raise RunError(f'sbatch refused {self.benchmark}: {done.stderr.strip()}')
        number = done.stdout.strip().split(';')[0]
        with atomic_write(self._job_note) as file:
            file.write(number.encode())
        return number

    @property
    def _job_note(self) -> Path:
        return self.folder / 'job.txt'

    def last_job(self) -> str | None:
        """The number of the SLURM job that was submitted last, if one was."""
        return self._job_note.read_text() if self._job_note.exists() else None

    def pending(self) -> str | None:
        """The number of its SLURM job, if that still waits or runs.

        Raises:
            RunError: If SLURM doesn't say.
        """
        number = self.last_job()
        if number is None:
            return None
        try:
            queue = subprocess.run(
                ['squeue', '--noheader', f'--jobs={number}'],
                check=False,
                capture_output=True,
                text=True,
            )
        except FileNotFoundError as error:
            raise RunError(
                f'{self.benchmark}: job {number} was submitted for {self.folder}, and there is no '
                f'squeue here to ask whether it has ended: once it has, delete {self._job_note}'
            ) from error
        if queue.returncode == 0:
            return number if queue.stdout.strip() else None
        if 'Invalid job id' in queue.stderr:  # SLURM forgets jobs some minutes after their end
            return None
        raise RunError(
            f'{self.benchmark}: squeue does not say whether job {number} has ended '
            f'({queue.stderr.strip()}): start the same command again later'
        )


def told_options(note: Mapping[str, Any]) -> list[str]:
    """What of a command line changes a benchmark's figures: ``--amp`` and ``KEY=VALUE``.

    How data are loaded changes none.

    Args:
        note: From `read_note`.
    """
    return ['--amp'] * bool(note.get('amp')) + [
        option
        for option in note.get('options', ())
        if option.partition('=')[0].rpartition('.')[2] not in _LOADING
    ]


def read_note(folder: Path) -> dict[str, Any]:
    """What the run of a folder is, as `DownstreamRun.prepare` noted it."""
    return json.loads((folder / 'run.json').read_text())
