"""The paper's Tables 1 to 3, its numbers beside ours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freeatm_mm.methods import methods_of
from freeatm_mm.results import (
    METRICS,
    Group,
    arm_name,
    check_options,
    holm,
    is_smoke,
    metric_title,
    paired_difference,
)

__all__ = [
    'TABLES',
    'Arm',
    'Table',
    'belongs',
    'gather_rows',
    'improvements',
    'own_metrics',
    'paper_rows',
    'row_markdown',
    'table_markdown',
]

_PLAIN = ('random', 'supervised')
_AMP = '--amp'
_PAPER = Path(__file__).with_name('paper_tables.json')


@dataclass(frozen=True)
class Table:
    """One of the paper's tables.

    Attributes:
        title: What it shows.
        columns: Our names of its columns -> the data sets that they are measured on, in the order
            of `paper_tables.json`; columns that the paper doesn't have come last.
        architecture: Of the methods that it compares.
    """

    title: str
    columns: Mapping[str, str]
    architecture: str

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it compares, in order."""
        return (*_PLAIN, *methods_of(self.architecture))

    @property
    def metrics(self) -> dict[str, str]:
        """Our names of its columns -> their titles."""
        return {
            metric: f'{data} {METRICS[metric].column}'.strip()
            for metric, data in self.columns.items()
        }


TABLES: dict[int, Table] = {
    1: Table(
        'Table 1: SimCLR and MoCo v2, ResNet-50',
        {
            'voc_ap50': 'VOC',
            'box_ap': 'COCO',
            'mask_ap': 'COCO',
            'miou': 'Cityscapes',
            'linear_top1': 'ImageNet',
            'box_ap50': 'COCO',
        },
        'resnet',
    ),
    2: Table(
        'Table 2: MAE, ViT-B',
        {
            'box_ap': 'COCO',
            'mask_ap': 'COCO',
            'finetune_top1': 'ImageNet',
            'miou': 'ADE20K',
            'box_ap50': 'COCO',
        },
        'vit',
    ),
    3: Table(
        'Table 3: BLIP, COCO retrieval',
        {'finetuned_TR@1': '', 'finetuned_IR@1': '', 'zeroshot_TR@1': '', 'zeroshot_IR@1': ''},
        'blip',
    ),
}
"""The tables by their numbers."""


@dataclass(frozen=True)
class Arm(Group):
    """The runs that differ by nothing but their seed, in a table.

    Attributes:
        scale: ``paper``, ``miniature``, or empty where the rows don't say.
        options: What metrics were measured with beside their configs, such as ``--amp``.
    """

    scale: str = ''
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def is_changed(self, metrics: Iterable[str]) -> bool:
        """Whether any of these was measured by another protocol than its config's.

        Mixed precision alone is none.
        """
        return any(set(self.options.get(metric, ())) - {_AMP} for metric in metrics)


Key = tuple[str, str, str, Any]
"""Method, regime, generator (empty for real images), masks."""


def paper_rows(table: int) -> dict[Key, dict[str, float]]:
    """The paper's numbers, in per cent, in its order; what it has no number for is left out."""
    metrics = list(TABLES[table].columns)
    rows = {}
    for method, regime, generator, masks, values in json.loads(_PAPER.read_text())[str(table)]:
        rows[(method, regime, generator, masks)] = {
            metric: value for metric, value in zip(metrics, values) if value is not None
        }
    return rows


def belongs(row: Mapping[str, Any], table: int) -> bool:
    """Whether a row of a result file has its place in a table; one of ``--smoke`` has none.

    Which architecture a row of random or supervised weights was measured with shows in its metrics:
    Table 1 has `linear_top1` or `voc_ap50`, Table 2 `finetune_top1`.
    """
    return (
        row.get('method') in TABLES[table].methods
        and not is_smoke(row)
        and (row['method'] not in _PLAIN or bool(own_metrics(table) & set(row['metrics'])))
    )


def own_metrics(table: int) -> set[str]:
    """The columns that no other table has."""
    others = [TABLES[number].columns for number in TABLES if number != table]
    return {metric for metric in TABLES[table].columns if not any(metric in o for o in others)}


def gather_rows(results: Iterable[Mapping[str, Any]], table: int) -> dict[Key, Arm]:
    """Gather the rows of result files that belong into a table, seeds together.

    Args:
        results: Contents of result files.
        table: Number of the table.

    Raises:
        ValueError: If two rows give the same number for one seed, or the rows to be averaged are
            of pretrainings of different length, of the miniature and the paper's scale, or
            measured with unlike options.
    """
    values: dict[Key, dict[str, dict[Any, float]]] = {}
    epochs: dict[Key, float] = {}
    scales: dict[Key, str] = {}
    options: dict[Key, dict[str, tuple[str, ...]]] = {}
    for result in results:
        for row in result['rows']:
            if not belongs(row, table):
                continue
            plain = row['method'] in _PLAIN
            generator = '' if row['regime'] == 'real' else row.get('generator') or 'unknown'
            key = (
                row['method'],
                'real' if plain else row['regime'],
                '' if plain else generator,
                row['masks'],
            )
            for found, what in ((epochs, 'epochs'), (scales, 'scale')):
                if what in row and found.setdefault(key, row[what]) != row[what]:
                    raise ValueError(
                        f'the rows of {arm_name(*_arm(key))} differ in {what}, '
                        f'{found[key]} and {row[what]}: make a table of each'
                    )
            for metric, value in row['metrics'].items():
                seeds = values.setdefault(key, {}).setdefault(metric, {})
                if row['seed'] in seeds:
                    raise ValueError(
                        f'two rows give {metric} for {arm_name(*_arm(key))}, seed '
                        f'{row["seed"]}: leave one of the files out'
                    )
                check_options(options.setdefault(key, {}), row, metric, arm_name(*_arm(key)))
                seeds[row['seed']] = value
    return {
        key: Arm(key[0], key[1], key[3], epochs[key], found, scales.get(key, ''), options[key])
        for key, found in values.items()
    }


def _arm(key: Key) -> tuple[str, str, Any]:
    method, regime, generator, masks = key
    return method, f'{regime}, {generator}' if generator else regime, masks


def _counterpart(key: Key) -> Key:
    """The paper's row that ours stands by: of the same generator, or else of SD 1.5."""
    method, regime, generator, masks = key
    return method, regime, generator if generator in ('', 'deepif') else 'sd15', masks


def table_markdown(ours: Mapping[Key, Arm], table: int, whole: bool = True) -> str:
    """A table as Markdown: ``ours ± spread (the paper's)`` in each cell, in per cent.

    Only rows of the paper's scale, of its own generators and by the protocols of the configs have
    its numbers beside them. Rows that we have no number for show the paper's alone, in brackets.
    What was measured with options of its own is listed below.

    Args:
        ours: From `gather_rows`.
        table: Number of the table.
        whole: With the paper's rows and columns that we have no number for.
    """
    layout, paper = TABLES[table], paper_rows(table)
    keys, metrics = _in_order(ours, paper), list(layout.metrics)
    changed = {key for key in keys if ours[key].is_changed(metrics)}
    alike = {
        key for key in keys if key in paper and ours[key].scale == 'paper' and key not in changed
    }
    if whole:  # ours of another scale stand right behind the paper's
        places = [
            *(
                place
                for key in paper
                for place in (
                    [(key, False)]
                    if key in alike
                    else [(key, True), *[(key, False)] * (key in ours)]
                )
            ),
            *((key, False) for key in keys if key not in paper),
        ]
    else:
        places = [(key, False) for key in keys]
        metrics = [
            metric for metric in metrics if any(group.values.get(metric) for group in ours.values())
        ]
    brackets = "; the paper's numbers in brackets" if whole or alike else ''
    lines = [
        f'**{layout.title}** (per cent{brackets})',
        '',
        '| Pretraining | Seeds | '
        + ' | '.join(layout.metrics[metric] for metric in metrics)
        + ' |',
        '| --- |' + ' ---: |' * (1 + len(metrics)),
    ]
    for key, papers in places:
        group = None if papers else ours.get(key)
        theirs = paper[key] if papers or key in alike else {}
        cells = []
        for metric in metrics:
            cell = group.text(metric, digits=1, scale=100) if group else ''
            if metric in theirs:
                cell = f'{cell} ({theirs[metric]:.1f})'.strip()
            cells.append(cell or '–')
        seeds = str(len(group.seeds)) if group else ''
        name = arm_name(*_arm(key))
        if (whole or alike) and group and key in paper and key not in alike:
            scale = group.scale or 'unknown'
            name += f' [{"other options" if scale == "paper" else f"{scale} scale"}]'
        lines.append(f'| {name} | {seeds} | ' + ' | '.join(cells) + ' |')
    told = [
        f'{arm_name(*_arm(key))}: {text}'
        for key in keys
        if (text := _told_options(ours[key].options, layout.metrics))
    ]
    return '\n'.join(lines) + '\n' + (f'\nNot as configured: {"; ".join(told)}.\n' if told else '')


def _told_options(options: Mapping[str, Sequence[str]], titles: Mapping[str, str]) -> str:
    """Which metrics were measured with what options; empty for none."""
    metrics: dict[str, list[str]] = {}
    for metric, title in titles.items():
        if words := options.get(metric):
            metrics.setdefault(' '.join(words), []).append(title)
    return ', '.join(f'{" and ".join(names)} with `{words}`' for words, names in metrics.items())


def _in_order(ours: Mapping[Key, Group], paper: Mapping[Key, Any]) -> list[Key]:
    """Our rows in the order of the paper's that they stand beside; others last."""
    order = list(paper)
    return sorted(
        ours,
        key=lambda key: (
            key not in paper,
            order.index(_counterpart(key)) if _counterpart(key) in paper else len(order),
        ),
    )


def improvements(ours: Mapping[Key, Arm], table: int) -> str:
    """Each of the paper's improvements by masks beside ours, and how many have the same sign.

    Of other generators and scales as well: signs can be compared, sizes can't, which is said.
    Differences are paired by seed, with the p of the paired t-test, also
    corrected by Holm's method for the metrics of one row; empty where we have none. Pretrainings
    of unlike length or scale, and metrics that the two were measured with unlike options for, are
    not compared, which is said, too.
    """
    titles, paper = TABLES[table].metrics, paper_rows(table)
    lines, same, ties, counted = [], 0, 0, 0
    unlike: list[str] = []
    otherwise: list[str] = []
    sure = {True: 0, False: 0}  # of the same sign, of the other
    for key in _in_order(ours, paper):
        group = ours[key]
        baseline = (*key[:3], False)
        if key[3] is False or baseline not in ours:
            continue
        if differing := [
            f'{what} {mine or "unknown"}, not {other or "unknown"}'
            for what, mine, other in (
                ('epochs', f'{group.epochs:g}', f'{ours[baseline].epochs:g}'),
                ('scale', group.scale, ours[baseline].scale),
            )
            if mine != other
        ]:
            otherwise.append(f'{arm_name(*_arm(key))} ({", ".join(differing)})')
            continue
        theirs = paper.get((*_counterpart(key)[:3], True), {})
        reference = paper.get(_counterpart(baseline), {})
        shared = [
            metric
            for metric in titles
            if set(group.values.get(metric, ())) & set(ours[baseline].values.get(metric, ()))
        ]
        other = [
            metric
            for metric in shared
            if group.options.get(metric) != ours[baseline].options.get(metric)
        ]
        unlike += [f'{titles[metric]} of {arm_name(*_arm(key))}' for metric in other]
        found = [
            paired_difference(group, ours[baseline], metric)
            for metric in shared
            if metric not in other
        ]
        for difference, corrected in zip(found, holm([part.p for part in found])):
            metric, expected = difference.metric, ''
            if key[3] is True and metric in theirs and metric in reference:
                gain = theirs[metric] - reference[metric]
                expected = f'{gain:+.1f}'
                counted += 1
                product = 0 if abs(difference.mean) < 1e-9 else gain * difference.mean
                same, ties = same + (product > 0), ties + (product == 0)
                if product:
                    sure[product > 0] += difference.p < 0.05
            spread = '' if math.isnan(difference.spread) else f' ± {100 * difference.spread:.1f}'
            p = '' if math.isnan(difference.p) else f'{difference.p:.3f} | {corrected:.3f}'
            lines.append(
                f'| {arm_name(*_arm(key))} | {titles[metric]} | {100 * difference.mean:+.1f}'
                f'{spread} | {p or " | "} | {len(difference.seeds)} | {expected} |'
            )
    note = [
        part
        for why, names in (
            ('pretrained otherwise than without masks', otherwise),
            ('measured with other options than without masks', unlike),
        )
        if names
        for part in (f'Not compared, as {why}: {", ".join(names)}.', '')
    ]
    if not lines:
        return '\n'.join(note)
    if any(
        key not in paper or group.scale != 'paper' or group.is_changed(titles)
        for key, group in ours.items()
    ):
        note += ["The paper's are of its own scale and generators: compare signs, not sizes.", '']
    head = [
        *note,
        '| With masks | Metric | Ours, points | p | p (Holm) | Seeds | The paper |',
        '| --- | --- | ---: | ---: | ---: | ---: | ---: |',
    ]
    tied = f', {ties} are no difference at all' if ties else ''
    tail = (
        f"\n\n{same} of {counted} of the paper's improvements have the same sign here{tied}. "
        f'With p below 0.05: {sure[True]} of these, and {sure[False]} of the '
        f'{counted - same - ties} of the other sign.'
    )
    return '\n'.join([*head, *lines]) + tail + '\n'


def row_markdown(row: Mapping[str, Any]) -> str:
    """One run's metrics as a Markdown table of one row, in per cent, and its options."""
    metrics = sorted(row['metrics'], key=[*METRICS, *row['metrics']].index)
    told = _told_options(row.get('options', {}), {name: metric_title(name) for name in metrics})
    name = arm_name(row['method'], row['regime'], row['masks'])
    return (
        '| Pretraining | ' + ' | '.join(map(metric_title, metrics)) + ' |\n'
        '| --- |' + ' ---: |' * len(metrics) + '\n'
        f'| {name} | '
        + ' | '.join(f'{100 * row["metrics"][name]:.1f}' for name in metrics)
        + ' |\n'
        + (f'\nNot as configured: {told}.\n' if told else '')
    )
