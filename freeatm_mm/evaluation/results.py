"""Results that are kept: one JSON file each, and the tables made from it.

The file holds how the numbers came about and one row for each run::

    {"name": "miniature-contrastive", "command": "...", "date": "2024-05-01", "hardware": "...",
     "versions": {"torch": "..."},
     "rows": [{"method": "mocov2", "regime": "synthetic", "masks": true, "seed": 0, "epochs": 40,
               "metrics": {"linear": 0.41, "knn": 0.38}}]}

``masks`` is false for the baseline, true for Free-ATM, or the name of a variant. Benchmarks are
kept the same way, their rows being
``{"case": "record-sd15-512", "ratio": 1.03, "baseline": 2.10, "ours": 2.16, "unit": "s"}``, where
it is set with the ``"target"`` that the ratio should not exceed.
Metrics are shares in [0, 1] unless their name says otherwise, higher being better.
"""
from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freeatm_mm.files import atomic_write

__all__ = [
    'Group', 'METRIC_TITLES', 'PairedDifference', 'add_row', 'arm_name', 'arm_names',
    'comparisons', 'describe_hardware', 'epochs_to_match', 'is_untrained', 'new_results',
    'package_versions', 'paired_difference', 'read_results', 'result_tables', 'summarise_rows',
    'to_markdown', 'validate_results', 'write_results',
]

METRIC_TITLES = {
    'linear': 'Scenes, linear (mAP)',
    'knn': 'Scenes, k-NN (mAP)',
    'linear_object': 'Objects, linear (acc.)',
    'knn_object': 'Objects, k-NN (acc.)',
    'linear_crop': 'Crops, linear (acc.)',
    'knn_crop': 'Crops, k-NN (acc.)',
    'segmentation_miou': 'Segmentation (mIoU)',
    'finetune_top1': 'Objects, fine-tuned (acc.)',
    'box_ap': 'Detection (box AP)',
    'mask_ap': 'Detection (mask AP)',
    'box_ap50': 'Detection (box AP50)',
    'voc_ap50': 'VOC (AP50)',
    'miou': 'Segmentor (mIoU)',
    'linear_top1': 'Classifier, linear (acc.)',
    **{f'{what}_{figure}': f'{title}, {figure}'
       for what, title in (('zeroshot', 'Zero-shot'), ('zeroshot_blocks', 'Zero-shot, blocks'),
                           ('finetuned', 'Fine-tuned'))
       for figure in ('TR@1', 'TR@5', 'TR@10', 'IR@1', 'IR@5', 'IR@10', 'mirror')},
}
"""What the metrics of :mod:`freeatm_mm.evaluation.features`, of fine-tuning and of retrieval are
called in tables and plots."""

_HEADER = ('name', 'command', 'date', 'hardware', 'versions', 'rows')
_RUN_KEYS = ('method', 'regime', 'masks', 'seed', 'epochs', 'metrics')
_BENCHMARK_KEYS = ('case', 'ratio', 'baseline', 'ours', 'unit')
_PACKAGES = ('torch', 'torchvision', 'numpy', 'mmengine', 'onedl-mmengine', 'mmcv', 'onedl-mmcv',
             'mmpretrain', 'onedl-mmpretrain', 'mmdet', 'onedl-mmdetection', 'mmsegmentation',
             'onedl-mmsegmentation', 'diffusers', 'transformers', 'salesforce-lavis')


# --- the file ---------------------------------------------------------------------------------


def package_versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Versions of the packages that decide a result, those installed; and Python's own."""
    versions = {'python': platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_hardware() -> str:
    """Processor, usable cores and memory in one line, with the GPU where torch sees one."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                name = line.split(':', 1)[1].strip()
                break
    try:
        cores = len(os.sched_getaffinity(0))
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    except (AttributeError, ValueError, OSError):  # not Linux
        return f'{name}, {os.cpu_count()} cores'
    parts = [name, f'{cores} cores', f'{memory:.0f} GiB']
    try:
        import torch
        if torch.cuda.is_available():
            parts.append(torch.cuda.get_device_name())
    except ImportError:
        pass
    return ', '.join(parts)


def new_results(name: str, command: str) -> dict[str, Any]:
    """An empty result file's content for this machine, these versions, today.

    Args:
        name: What was measured; also the file's stem.
        command: The command that makes the rows again.
    """
    return {
        'name': name,
        'command': command,
        'date': datetime.date.today().isoformat(),
        'hardware': describe_hardware(),
        'versions': package_versions(),
        'rows': [],
    }


def validate_results(results: Any, source: str = 'results') -> None:
    """Check a result file's content.

    Args:
        results: What ``json.load`` returned.
        source: How to call it in an error.

    Raises:
        ValueError: Naming the key or row that is missing or wrong.
    """
    if not isinstance(results, dict):
        raise ValueError(f'{source}: a result file holds one JSON object, '
                         f'not {type(results).__name__}.')
    missing = [key for key in _HEADER if key not in results]
    if missing:
        raise ValueError(f'{source}: {missing} missing; a result file needs {list(_HEADER)}.')
    if not isinstance(results['rows'], list):
        raise ValueError(f'{source}: rows must be a list.')
    seen: dict[str, int] = {}
    for number, row in enumerate(results['rows']):
        where = f'{source}: row {number}'
        if not isinstance(row, dict):
            raise ValueError(f'{where} must be a JSON object.')
        benchmark = 'case' in row
        needed = _BENCHMARK_KEYS if benchmark else _RUN_KEYS
        missing = [key for key in needed if key not in row]
        if missing:
            raise ValueError(f'{where} lacks {missing}.')
        numbers = ({key: row[key] for key in ('ratio', 'baseline', 'ours')}
                   if benchmark else row['metrics'])
        if not isinstance(numbers, dict):
            raise ValueError(f'{where}: metrics must be an object of numbers.')
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or \
                    not math.isfinite(value):
                raise ValueError(f'{where}: {key} must be a finite number, got {value!r}.')
        if not benchmark and not isinstance(row['masks'], (bool, str)):
            raise ValueError(f'{where}: masks must be false, true or the name of a variant.')
        identity = _identity(row)
        if identity in seen:
            raise ValueError(f'{where} repeats row {seen[identity]}: {identity}.')
        seen[identity] = number


def read_results(path: str | Path) -> dict[str, Any]:
    """Read and check a result file.

    Raises:
        ValueError: If it is not JSON or not a result file, naming what is wrong.
        FileNotFoundError: If there is no such file.
    """
    try:
        results = json.loads(Path(path).read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        raise ValueError(f'{path} is not JSON: {error}.') from error
    validate_results(results, str(path))
    return results


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Check a result file's content and write it atomically, one row a line.

    Raises:
        ValueError: If the content is not a result file's; nothing is written then.
    """
    validate_results(results)
    head = json.dumps({key: value for key, value in results.items() if key != 'rows'},
                      indent=1, ensure_ascii=False)
    rows = ',\n  '.join(json.dumps(row, ensure_ascii=False) for row in results['rows'])
    rows = f'[\n  {rows}\n ]' if rows else '[]'
    text = f'{head[:-2]},\n "rows": {rows}\n}}\n'
    with atomic_write(path) as file:
        file.write(text.encode('utf-8'))


def _identity(row: Mapping[str, Any]) -> str:
    """What makes a row the same run as another: everything but what was measured."""
    measured = {'metrics', 'details', 'ratio', 'baseline', 'ours', 'unit', 'target'}
    return json.dumps({key: row[key] for key in sorted(row) if key not in measured})


def add_row(results: dict[str, Any], row: Mapping[str, Any]) -> None:
    """Add a row in place; a row of the same run (method, masks, seed, ...) is replaced.

    Raises:
        ValueError: If the row is not complete.
    """
    identity = _identity(row)
    rows = [old for old in results['rows'] if _identity(old) != identity] + [dict(row)]
    validate_results({**results, 'rows': rows})
    results['rows'] = rows


# --- mean and spread --------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """The runs that differ by nothing but their seed.

    Attributes:
        method: Such as ``mocov2``.
        regime: real, synthetic or mixed.
        masks: False, True or the name of a variant.
        epochs: Length of the pretraining.
        values: For each metric, its value for each seed.
    """

    method: str
    regime: str
    masks: bool | str
    epochs: float
    values: Mapping[str, Mapping[Any, float]]

    @property
    def seeds(self) -> list:
        """The seeds that any metric was measured with."""
        return sorted({seed for values in self.values.values() for seed in values}, key=str)

    def mean(self, metric: str) -> float:
        """Mean over seeds; NaN where the metric was not measured."""
        values = list(self.values.get(metric, {}).values())
        return float(np.mean(values)) if values else float('nan')

    def spread(self, metric: str) -> float:
        """Sample standard deviation over seeds (n - 1 below); NaN for fewer than two."""
        values = list(self.values.get(metric, {}).values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else float('nan')

    def text(self, metric: str, digits: int = 3, scale: float = 1.0) -> str:
        """Mean ± spread, for a table; with their number where some of :attr:`seeds` lack it.

        Empty where the metric was not measured.
        """
        values = self.values.get(metric, {})
        if not values:
            return ''
        text = f'{scale * self.mean(metric):.{digits}f}'
        if len(values) > 1:
            text += f' ± {scale * self.spread(metric):.{digits}f}'
        if len(values) < len(self.seeds):
            text += f', {len(values)} seed{"s" * (len(values) > 1)}'
        return text


def _runs(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in results['rows'] if 'case' not in row]


def _metrics(results: Mapping[str, Any]) -> list[str]:
    """The metrics of a result file, the known ones first and in their order."""
    found = dict.fromkeys(name for row in _runs(results) for name in row['metrics'])
    known = [name for name in METRIC_TITLES if name in found]
    return known + [name for name in found if name not in METRIC_TITLES]


def summarise_rows(results: Mapping[str, Any]) -> list[Group]:
    """Gather the runs of a result file by method, regime, masks and epochs, in file order."""
    groups: dict[tuple, dict[str, dict[Any, float]]] = {}
    for row in _runs(results):
        key = (row['method'], row['regime'], row['masks'], row['epochs'])
        values = groups.setdefault(key, {})
        for name, value in row['metrics'].items():
            if row['seed'] in values.setdefault(name, {}):
                raise ValueError(
                    f'Two rows give {name} for {arm_name(*key[:3])}, epochs {key[3]}, '
                    f'seed {row["seed"]}: name the variant in masks or keep it in another file.')
            values[name][row['seed']] = value
    return [Group(method, regime, masks, epochs, values)
            for (method, regime, masks, epochs), values in groups.items()]


_METHOD_TITLES = {'random': 'Random weights', 'random-vit': 'Random ViT',
                  'supervised': 'Supervised', 'mocov2': 'MoCo v2', 'simclr': 'SimCLR',
                  'mae': 'MAE', 'blip': 'BLIP', 'byol': 'BYOL',
                  'simsiam': 'SimSiam', 'densecl': 'DenseCL'}


def is_untrained(method: str) -> bool:
    """Whether a row is of weights that no training made: ``random``, ``random-vit``."""
    return method.split('-')[0] == 'random'


def arm_name(method: str, regime: str, masks: bool | str) -> str:
    """What an arm of an experiment is called, such as 'MoCo v2 + Free-ATM (synthetic)'.

    Args:
        method: Such as ``mocov2``; a method without a known title keeps its name.
        regime: What was pretrained on; left out for random weights, or where empty.
        masks: False, True or the name of a variant.
    """
    name = _METHOD_TITLES.get(method, method)
    if masks is True:
        name += ' + Free-ATM'
    elif masks:
        name += f' + {masks}'
    return f'{name} ({regime})' if regime and not is_untrained(method) else name


def arm_names(groups: Sequence[Group]) -> list[str]:
    """The groups' names for one table or plot: without the regime where all share it."""
    shared = len({group.regime for group in groups if not is_untrained(group.method)}) < 2
    return [arm_name(group.method, '' if shared else group.regime, group.masks)
            for group in groups]


# --- differences ------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedDifference:
    """How much better one arm is than another, seed by seed.

    Attributes:
        metric: Name of the metric.
        seeds: The seeds that both arms have.
        differences: Arm minus reference for each of them.
        mean: Their mean.
        spread: Their sample standard deviation; NaN for one seed.
        t: Student's t of the paired test; NaN for one seed, or where all differences are equal.
        p: Its two-sided p-value; NaN likewise.
        low: Lower end of the 95 % confidence interval of the mean difference; NaN likewise.
        high: Upper end.
    """

    metric: str
    seeds: tuple
    differences: tuple[float, ...]
    mean: float
    spread: float
    t: float
    p: float
    low: float
    high: float


def paired_difference(arm: Group, reference: Group, metric: str) -> PairedDifference:
    """Compare two arms over the seeds that both have (paired two-sided t-test).

    Args:
        arm: The arm that is asked about, such as with masks.
        reference: The arm that it is compared with, such as without.
        metric: Which metric.

    Raises:
        ValueError: If the arms share no seed for this metric.
    """
    from scipy import stats
    ours, theirs = arm.values.get(metric, {}), reference.values.get(metric, {})
    seeds = tuple(seed for seed in ours if seed in theirs)
    if not seeds:
        raise ValueError(f'No seed has {metric} for both '
                         f'{arm_name(arm.method, arm.regime, arm.masks)} and '
                         f'{arm_name(reference.method, reference.regime, reference.masks)}.')
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
    spread = t = p = low = high = float('nan')
    if len(seeds) > 1:
        spread = float(differences.std(ddof=1))
        # rounding alone makes equal differences differ by some 1e-17: that is no spread
        if spread > 1e-12:
            test = stats.ttest_1samp(differences, 0.0)
            interval = test.confidence_interval(0.95)
            t, p = float(test.statistic), float(test.pvalue)
            low, high = float(interval.low), float(interval.high)
    return PairedDifference(metric, seeds, tuple(map(float, differences)),
                            float(differences.mean()), spread, t, p, low, high)


def comparisons(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Arms worth comparing: each arm with masks, and the one without that is the same otherwise.

    Where arms were judged after several numbers of epochs, only their longest is compared.
    """
    def rest(group: Group) -> tuple:
        return group.method, group.regime, group.epochs
    baselines = {rest(group): group for group in groups if group.masks is False}
    pairs = [(group, baselines[rest(group)]) for group in groups
             if group.masks is not False and rest(group) in baselines]
    longest: dict[tuple, tuple[Group, Group]] = {}
    for arm, baseline in pairs:
        key = arm.method, arm.regime, arm.masks
        if key not in longest or arm.epochs > longest[key][0].epochs:
            longest[key] = arm, baseline
    return list(longest.values())


def epochs_to_match(arm: Sequence[Group], baseline: Sequence[Group], metric: str,
                    share: float = 0.25) -> tuple[float, float, float | None] | None:
    """How long a baseline needs for what an arm has after a share of its pretraining (Fig. 4).

    Args:
        arm: One arm after several numbers of epochs.
        baseline: What it is compared with, likewise.
        metric: Which metric, higher being better; means over seeds are compared.
        share: Of the arm's longest pretraining.

    Returns:
        The arm's epochs there and its value; and the epochs at which the baseline first has that
        value, on straight lines between those that were judged, or None if it never has. None
        instead if the arm wasn't judged there.
    """
    ours = {group.epochs: group.mean(metric) for group in arm if metric in group.values}
    theirs = sorted((group.epochs, group.mean(metric)) for group in baseline
                    if metric in group.values)
    at = share * max(ours, default=0)
    if at not in ours or not theirs:
        return None
    wanted, before = ours[at], None
    for epochs, value in theirs:
        if value >= wanted:
            if before is None:
                return at, wanted, epochs
            return at, wanted, before[0] + (epochs - before[0]) * (
                (wanted - before[1]) / (value - before[1]))
        before = epochs, value
    return at, wanted, None


# --- tables -----------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ['| ' + ' | '.join(header) + ' |',
             '| --- |' + ' ---: |' * (len(header) - 1)]
    lines += ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join(lines)


def _difference_cells(difference: PairedDifference) -> list[str]:
    """Mean difference, confidence interval, p and number of seeds."""
    interval = p = '–'
    if not math.isnan(difference.p):
        interval = f'{difference.low:+.3f} to {difference.high:+.3f}'
        p = f'{difference.p:.3f}' if difference.p >= 0.001 else '< 0.001'
    return [f'{difference.mean:+.3f}', interval, p, str(len(difference.seeds))]


def result_tables(results: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """The tables of a result file as text cells: (title, header, rows) each.

    The first shows mean ± sample standard deviation over seeds; the second, where there are arms
    with and without masks, the paired differences, one a line; benchmarks have one of their own.
    """
    groups, metrics = summarise_rows(results), _metrics(results)
    tables = []
    if groups:
        titles = [METRIC_TITLES.get(metric, metric) for metric in metrics]
        names = arm_names(groups)
        tables.append((
            'Mean ± standard deviation over seeds' if any(len(g.seeds) > 1 for g in groups)
            else 'Figures of one seed',
            ['Pretraining', 'Epochs', 'Seeds', *titles],
            [[name, f'{g.epochs:g}', str(len(g.seeds)),
              *(g.text(metric) or '–' for metric in metrics)] for name, g in zip(names, groups)]))
        rows = []
        for arm, reference in comparisons(groups):
            for metric, title in zip(metrics, titles):
                if set(arm.values.get(metric, ())) & set(reference.values.get(metric, ())):
                    rows.append([names[groups.index(arm)], f'{arm.epochs:g}',
                                 title, *_difference_cells(
                                     paired_difference(arm, reference, metric))])
        if rows and all(row[-1] == '1' for row in rows):
            tables.append(('Difference to the same pretraining without masks, of one seed: how '
                           'much seeds spread cannot be told from it',
                           ['Pretraining', 'Epochs', 'Metric', 'Difference'],
                           [row[:4] for row in rows]))
        elif rows:
            tables.append(('Difference to the same pretraining without masks, paired by seed: '
                           'mean, its 95 % confidence interval, and p of the paired t-test',
                           ['Pretraining', 'Epochs', 'Metric', 'Difference', '95 % interval', 'p',
                            'Seeds'], rows))
    rows = _matching_rows(groups, metrics)
    if rows:
        tables.append(('On the way, before the schedule has ended: the epoch at which the same '
                       'pretraining without masks has what this one has after a quarter of its '
                       'epochs (means over seeds)',
                       ['Pretraining', 'Metric', 'Epochs', 'Value', 'Epochs without masks'], rows))
    benchmarks = [row for row in results['rows'] if 'case' in row]
    if benchmarks:
        header = ['Case', 'Baseline', 'Ours', 'Unit', 'Ours / baseline']
        rows = [[row['case'], f'{row["baseline"]:.4g}', f'{row["ours"]:.4g}', row['unit'],
                 f'{row["ratio"]:.3f}'] for row in benchmarks]
        if any('target' in row for row in benchmarks):
            header.append('Target, at most')
            rows = [[*cells, f'{row["target"]:g}' if 'target' in row else '–']
                    for cells, row in zip(rows, benchmarks)]
        tables.append(('Benchmarks: ours against the baseline of the same run', header, rows))
    return tables


def _matching_rows(groups: Sequence[Group], metrics: Sequence[str]) -> list[list[str]]:
    arms: dict[tuple, list[Group]] = {}
    names = dict(zip(map(id, groups), arm_names(groups)))
    for group in groups:
        arms.setdefault((group.method, group.regime, group.masks), []).append(group)
    rows = []
    for (method, regime, masks), arm in arms.items():
        baseline = arms.get((method, regime, False), [])
        if masks is False or len(arm) < 2 or len(baseline) < 2:
            continue
        for metric in metrics:
            found = epochs_to_match(arm, baseline, metric)
            if found is not None:
                at, value, needed = found
                longest = max(group.epochs for group in baseline)
                rows.append([names[id(arm[0])], METRIC_TITLES.get(metric, metric), f'{at:g}',
                             f'{value:.3f}',
                             f'more than {longest:g}' if needed is None else f'{needed:.0f}'])
    return rows


def to_markdown(results: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """Render a result file as a Markdown page.

    Args:
        results: The content of a result file.
        plots: File names of plots beside the page, to be shown in it.

    Raises:
        ValueError: If the content is not a result file's.
    """
    validate_results(results)
    regimes = sorted({group.regime for group in summarise_rows(results)
                      if not is_untrained(group.method)})
    parts = [f'# {results["name"]}', results.get('description', '')]
    if len(regimes) == 1:
        parts.append(f'Pretrained on {regimes[0]} images.')
    for title, header, rows in result_tables(results):
        parts += [f'**{title}**', _table(header, rows)]
    parts += [f'![{Path(plot).stem}]({plot})' for plot in plots]
    versions = ', '.join(f'{name} {version}' for name, version in results['versions'].items())
    parts += [f'Made with\n\n```sh\n{results["command"]}\n```',
              f'on {results["date"]}; {results["hardware"]}; {versions}.']
    return '\n\n'.join(part for part in parts if part) + '\n'
