"""Tables of a result file, as text cells and as a Markdown page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from freeatm_mm.errors import listed
from freeatm_mm.files import atomic_write
from freeatm_mm.results.comparison import (
    Group,
    PairedDifference,
    arm_names,
    comparisons,
    epochs_to_match,
    holm,
    is_untrained,
    paired_difference,
    runs_of,
    summarise_rows,
)
from freeatm_mm.results.file import update_results, validate_results, write_results
from freeatm_mm.results.metrics import METRICS, metric_title

__all__ = ['result_tables', 'to_markdown', 'write_with_page']

#: Title, header, and rows of text cells.
Table = tuple[str, list[str], list[list[str]]]

_DOTS = 'A dot is a seed, the upright line the mean, the bar one standard deviation to each side.'
_CURVES = (
    ' Over epochs: mean and standard deviation; a dotted line has one length of training only.'
)


def _metrics(results: Mapping[str, Any]) -> list[str]:
    """The metrics of a result file, the known ones first and in their order."""
    found = dict.fromkeys(name for row in runs_of(results) for name in row['metrics'])
    known = [name for name in METRICS if name in found]
    return known + [name for name in found if name not in METRICS]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ['| ' + ' | '.join(header) + ' |', '| --- |' + ' ---: |' * (len(header) - 1)]
    lines += ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join(lines)


def _p_text(p: float) -> str:
    return '–' if math.isnan(p) else f'{p:.3f}' if p >= 0.001 else '< 0.001'


def _difference_cells(difference: PairedDifference, corrected: float) -> list[str]:
    """Mean difference, confidence interval, p, p by Holm and number of seeds."""
    interval = '–'
    if not math.isnan(difference.p):
        interval = f'{difference.low:+.3f} to {difference.high:+.3f}'
    return [
        f'{difference.mean:+.3f}',
        interval,
        _p_text(difference.p),
        _p_text(corrected),
        str(len(difference.seeds)),
    ]


def result_tables(results: Mapping[str, Any]) -> list[Table]:
    """The tables of a result file as text cells: (title, header, rows) each.

    The first shows mean ± sample standard deviation over seeds; the second, where there are arms
    with and without masks, the paired differences, one a line; benchmarks have one of their own.
    """
    groups, metrics = summarise_rows(results), _metrics(results)
    tables = (
        _means_table(groups, metrics),
        _differences_table(groups, metrics),
        _matching_table(groups, metrics),
        _benchmarks_table([row for row in results['rows'] if 'case' in row]),
    )
    return [table for table in tables if table[2]]


def _means_table(groups: Sequence[Group], metrics: Sequence[str]) -> Table:
    several = any(len(group.seeds) > 1 for group in groups)
    return (
        'Mean ± standard deviation over seeds' if several else 'Figures of one seed',
        ['Pretraining', 'Epochs', 'Seeds', *map(metric_title, metrics)],
        [
            [
                name,
                f'{group.epochs:g}',
                str(len(group.seeds)),
                *(group.text(metric) or '–' for metric in metrics),
            ]
            for name, group in zip(arm_names(groups), groups)
        ],
    )


def _differences_table(groups: Sequence[Group], metrics: Sequence[str]) -> Table:
    names = arm_names(groups)
    rows = []
    for arm, reference in comparisons(groups):
        found = [
            paired_difference(arm, reference, metric)
            for metric in metrics
            if set(arm.values.get(metric, ())) & set(reference.values.get(metric, ()))
        ]
        rows += [
            [
                names[groups.index(arm)],
                f'{arm.epochs:g}',
                metric_title(difference.metric),
                *_difference_cells(difference, corrected),
            ]
            for difference, corrected in zip(found, holm([part.p for part in found]))
        ]
    header = ['Pretraining', 'Epochs', 'Metric', 'Difference']
    if all(row[-1] == '1' for row in rows):
        return (
            'Difference to the same pretraining without masks, of one seed: how '
            'much seeds spread cannot be told from it',
            header,
            [row[: len(header)] for row in rows],
        )
    return (
        'Difference to the same pretraining without masks, paired by seed: '
        'mean, its 95 % confidence interval, p of the paired t-test, and p corrected '
        "by Holm's method for the number of metrics",
        [*header, '95 % interval', 'p', 'p (Holm)', 'Seeds'],
        rows,
    )


def _matching_table(groups: Sequence[Group], metrics: Sequence[str]) -> Table:
    return (
        'On the way, before the schedule has ended: the epoch at which the same '
        'pretraining without masks has what this one has after a quarter of its '
        'epochs (means over seeds)',
        ['Pretraining', 'Metric', 'Epochs', 'Value', 'Epochs without masks'],
        _matching_rows(groups, metrics),
    )


def _benchmarks_table(benchmarks: Sequence[Mapping[str, Any]]) -> Table:
    header = ['Case', 'Baseline', 'Ours', 'Unit', 'Ours / baseline']
    rows = [
        [
            row['case'],
            f'{row["baseline"]:.4g}',
            f'{row["ours"]:.4g}',
            row['unit'],
            f'{row["ratio"]:.3f}',
        ]
        for row in benchmarks
    ]
    if any('target' in row for row in benchmarks):
        header.append('Target, at most')
        for cells, row in zip(rows, benchmarks):
            cells.append(f'{row["target"]:g}' if 'target' in row else '–')
    return 'Benchmarks: ours against the baseline of the same run', header, rows


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
                rows.append(
                    [
                        names[id(arm[0])],
                        metric_title(metric),
                        f'{at:g}',
                        f'{value:.3f}',
                        f'more than {longest:g}' if needed is None else f'{needed:.0f}',
                    ]
                )
    return rows


def _is_over_epochs(plot: str) -> bool:
    return Path(plot).stem.endswith('-epochs')


def _alt_text(results: Mapping[str, Any], plot: str) -> str:
    """What a plot shows, for readers who can't see it."""
    metrics = listed(map(metric_title, _metrics(results)), separator='; ')
    arms = listed(dict.fromkeys(arm_names(summarise_rows(results))), separator='; ')
    what = 'Every seed as a dot, with mean and standard deviation'
    if _is_over_epochs(plot):
        what = 'Mean and standard deviation over the epochs of pretraining'
    return f'{what}, for {arms}, measured by {metrics}.'


def to_markdown(results: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """Render a result file as a Markdown page.

    Args:
        results: The content of a result file.
        plots: File names of plots beside the page, to be shown in it.

    Raises:
        ValueError: If the content is not a result file's.
    """
    validate_results(results)
    regimes = sorted(
        {group.regime for group in summarise_rows(results) if not is_untrained(group.method)}
    )
    parts = [f'# {results["name"]}', results.get('description', '')]
    if len(regimes) == 1:
        parts.append(f'Pretrained on {regimes[0]} images.')
    for title, header, rows in result_tables(results):
        parts += [f'**{title}**', _table(header, rows)]
    parts += [f'![{_alt_text(results, plot)}]({plot})' for plot in plots]
    if plots:
        curves = any(map(_is_over_epochs, plots))
        parts.append(f'*{_DOTS}{_CURVES * curves}*')
    versions = ', '.join(f'{name} {version}' for name, version in results['versions'].items())
    parts += [
        f'Made with\n\n```sh\n{results["command"]}\n```',
        f'on {results["date"]}; {results["hardware"]}; {versions}.',
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def write_with_page(path: Path, results: Mapping[str, Any]) -> None:
    """Write a result file and, beside it, its page; their folder is made if missing.

    Raises:
        ValueError: If the content is not a result file's.
    """
    write_results(path, results)
    _write_page(path, results)


def update_with_page(
    path: Path, change: Callable[[dict[str, Any]], None], name: str, command: str
) -> None:
    """Change a result file and write its page, as `update_results` and `write_with_page` do."""

    def change_both(results: dict[str, Any]) -> None:
        change(results)
        validate_results(results)
        _write_page(path, results)

    update_results(path, change_both, name, command)


def _write_page(path: Path, results: Mapping[str, Any]) -> None:
    with atomic_write(path.with_suffix('.md')) as file:
        file.write(to_markdown(results).encode())
