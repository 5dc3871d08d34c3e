"""Plots of results and of training curves, as SVG that reads on light and dark pages."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from freeatm_mm.results import (
    METRICS,
    Group,
    arm_names,
    is_untrained,
    metric_title,
    summarise_rows,
)
from freeatm_mm.results.claims import Finding
from freeatm_mm.results.curves import Curve
from freeatm_mm.results.rules import Difference

__all__ = ['claim_plot', 'claims_plot', 'curve_plot', 'result_plots', 'to_svg']

# Text and axes are drawn in this colour, which to_svg replaces by the page's own.
_INK = '#010203'
_GREY = '#8a8a8a'
_LINES: tuple[LineStyleType, ...] = ('-', '--', '-.', (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = 'osD^v'
_COLOURS = ('#1f83c4', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_STYLE: dict[Any, Any] = {
    'axes.edgecolor': _INK,
    'axes.labelcolor': _INK,
    'text.color': _INK,
    'xtick.color': _INK,
    'ytick.color': _INK,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.facecolor': 'none',
    'figure.facecolor': 'none',
    'axes.titlesize': 10,
    'axes.titlelocation': 'left',
    'axes.titlecolor': _INK,
    'font.size': 9.5,
    'grid.color': _GREY,
    'grid.alpha': 0.3,
    'legend.frameon': False,
}


def to_svg(figure: Figure, label: str = '', inline: bool = False) -> str:
    """Render a figure; the same figure gives the same text.

    Args:
        figure: From this module.
        label: Told to readers who cannot see the plot.
        inline: For use inside an HTML page: without XML header, text as text, in the page's text
            colour, as wide as its container. Otherwise a file of its own on white.

    Returns:
        The SVG's text.
    """
    buffer = io.StringIO()
    # ids come from the salt: two figures on one page must not share them
    options: dict[Any, str] = {
        'svg.hashsalt': label or 'freeatm',
        'svg.fonttype': 'none' if inline else 'path',
    }
    with matplotlib.rc_context(options):
        figure.savefig(
            buffer, format='svg', metadata={'Date': None}, facecolor='none' if inline else 'white'
        )
    text = buffer.getvalue()
    if not inline:
        return text.replace(_INK, '#222222')
    text = text[text.index('<svg') :].replace(_INK, 'currentColor')
    text = re.sub(r'font: ([\d.]+px) [^;\"]*', r'font-size: \1; font-family: inherit', text)
    text = re.sub(r'<g id="[^"]*"', '<g', text)  # nothing points at groups; shapes stay named
    text = re.sub(r'\s*<metadata>.*?</metadata>', '', text, flags=re.S)
    return re.sub(
        r'<svg ([^>]*?)width="([\d.]+)pt" height="[\d.]+pt"',
        rf'<svg \1role="img" aria-label="{html.escape(label, quote=True)}" '
        r'style="width:100%;max-width:\2pt;height:auto"',
        text,
        count=1,
        flags=re.S,
    )


def _colour(group: Group, groups: list[Group]) -> str:
    """One colour for each kind of mask, the same in every plot of a result; grey for random."""
    if is_untrained(group.method):
        return _GREY
    kinds = [False, True] + [g.masks for g in groups if isinstance(g.masks, str)]
    return _COLOURS[list(dict.fromkeys(kinds)).index(group.masks) % len(_COLOURS)]


def _line(group: Group, groups: list[Group]) -> tuple[LineStyleType, str]:
    """Line style and marker: one of each for every method and regime, as colours tell masks."""
    kinds = [(g.method, g.regime) for g in groups if not is_untrained(g.method)]
    if is_untrained(group.method):
        return ':', 'o'
    number = list(dict.fromkeys(kinds)).index((group.method, group.regime))
    return _LINES[number % len(_LINES)], _MARKERS[number % len(_MARKERS)]


def result_plots(results: Mapping[str, Any]) -> dict[str, Figure]:
    """The plots that a result file's runs give.

    Args:
        results: The content of a result file.

    Returns:
        By suffix of the file name: ``''``, each metric with every seed as a dot, the mean as a
        line and the spread as a bar, for the longest pretraining of each arm; ``'-epochs'``,
        each metric over epochs, where an arm has several lengths. Empty for benchmarks.
    """
    groups = summarise_rows(results)
    metrics = [name for name in METRICS if any(name in g.values for g in groups)]
    metrics += sorted({name for g in groups for name in g.values} - set(metrics))
    if not metrics:
        return {}
    arms: dict[str, list[Group]] = {}
    for name, group in zip(arm_names(groups), groups):
        arms.setdefault(name, []).append(group)
    with matplotlib.rc_context(_STYLE):
        plots = {
            '': _dots(
                {name: max(arm, key=lambda g: g.epochs) for name, arm in arms.items()},
                metrics,
                groups,
            )
        }
        if any(len(arm) > 1 for arm in arms.values()):
            plots['-epochs'] = _over_epochs(arms, metrics, groups)
    return plots


def _columns(count: int) -> int:
    return min(count, 4)


def _grid(count: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    columns = _columns(count)
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches: labels keep apart
    figure = Figure(figsize=(width * columns, height * rows), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _dots(arms: Mapping[str, Group], metrics: list[str], groups: list[Group]) -> Figure:
    figure, axes = _grid(len(metrics), 2.5, 0.8 + 0.3 * len(arms))
    columns = _columns(len(metrics))
    for number, (axis, metric) in enumerate(zip(axes, metrics)):
        for row, group in enumerate(arms.values()):
            values = list(group.values.get(metric, {}).values())
            if not values:
                continue
            colour = _colour(group, groups)
            axis.errorbar(
                group.mean(metric),
                row,
                xerr=np.nan_to_num(group.spread(metric)),
                fmt='|',
                markersize=13,
                markeredgewidth=2,
                color=colour,
                capsize=0,
                linewidth=2,
                alpha=0.8,
            )
            axis.plot(
                values,
                [row] * len(values),
                _line(group, groups)[1],
                color=colour,
                markersize=4.5,
                markeredgewidth=0,
            )
        axis.set_title(metric_title(metric))
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set_yticks(range(len(arms)), arms if number % columns == 0 else [''] * len(arms))
        axis.tick_params(axis='y', length=0)
        axis.spines['left'].set_visible(False)
        axis.grid(axis='x')
        axis.locator_params(axis='x', nbins=3, steps=[1, 2, 5, 10])
        axis.margins(x=0.15)
    return figure


def _over_epochs(
    arms: Mapping[str, list[Group]], metrics: list[str], groups: list[Group]
) -> Figure:
    figure, axes = _grid(len(metrics), 2.5, 2.3)
    for axis, metric in zip(axes, metrics):
        for arm in arms.values():
            arm = sorted((g for g in arm if metric in g.values), key=lambda g: g.epochs)
            if not arm:
                continue
            colour = _colour(arm[0], groups)
            means = np.array([g.mean(metric) for g in arm])
            if len(arm) == 1:  # one length only: a level to compare with
                axis.axhline(means[0], color=colour, linewidth=1.2, linestyle=':')
                continue
            epochs = [g.epochs for g in arm]
            spread = np.nan_to_num([g.spread(metric) for g in arm])
            line, marker = _line(arm[0], groups)
            axis.plot(
                epochs,
                means,
                linestyle=line,
                marker=marker,
                color=colour,
                markersize=4,
                linewidth=1.6,
            )
            axis.fill_between(
                epochs, means - spread, means + spread, color=colour, alpha=0.18, linewidth=0
            )
        axis.set_title(metric_title(metric))
        axis.set_xlabel('epochs')
        axis.grid(axis='y')
    handles = [
        Line2D(
            [],
            [],
            color=_colour(arm[0], groups),
            markersize=4,
            linestyle=':' if len(arm) == 1 else _line(arm[0], groups)[0],
            marker='' if len(arm) == 1 else _line(arm[0], groups)[1],
        )
        for arm in arms.values()
    ]
    figure.legend(
        handles, arms, loc='outside lower center', ncols=min(len(arms), _columns(len(metrics)))
    )
    return figure


def claim_plot(findings: list[Finding]) -> Figure:
    """Differences with their intervals, one a line; those that decide in colour.

    Args:
        findings: Of a claim.
    """
    shown = [each for each in findings if each.has_interval]
    with matplotlib.rc_context(_STYLE):
        figure, (axes,) = _grid(1, 7.5, 0.8 + 0.34 * len(shown))
        names = []
        for line, finding in enumerate(shown):
            colour = _COLOURS[0] if finding.verdict else _GREY
            _draw_interval(axes, line, finding, 1, colour, colour)
            names.append(f'{finding.name}\n{metric_title(finding.metric)}')
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(range(len(names)), names, fontsize=7.5)
        axes.invert_yaxis()
        axes.set_xlabel('difference, 95 % interval')
        axes.grid(axis='x')
    return figure


def _draw_interval(
    axes: Any, line: int, finding: Finding, scale: float, colour: str, inside: str
) -> Difference:
    """Draw a finding's mean and interval on a line; what was drawn."""
    difference = finding.difference
    assert difference is not None
    ends = [scale * difference.low, scale * difference.high]
    axes.plot(ends, [line, line], color=colour)
    axes.plot(scale * difference.mean, line, 'o', color=colour, markerfacecolor=inside)
    return difference


def claims_plot(claims: Mapping[str, list[Finding]]) -> Figure:
    """What decides each of several claims, one line a comparison, in points of accuracy.

    Args:
        claims: A claim's name -> its primary comparisons, by measures that are accuracies. Those
            without an interval are left out.
    """
    looks: dict[str, tuple[str, str]] = {  # of line and marker
        'shown': (_COLOURS[0], _COLOURS[0]),
        'opposite': (_COLOURS[1], _COLOURS[1]),
        'not shown': (_INK, _INK),
        'undecided': (_GREY, 'white'),
        'undecidable': (_GREY, 'white'),
    }
    lines = [
        (name, each) for name, findings in claims.items() for each in findings if each.has_interval
    ]
    said = {finding.verdict for _, finding in lines}
    found = [verdict for verdict in looks if verdict in said]
    with matplotlib.rc_context(_STYLE):
        figure, (axes,) = _grid(1, 8.0, 1.0 + 0.27 * len(lines))
        for line, (_, finding) in enumerate(lines):
            difference = _draw_interval(axes, line, finding, 100, *looks[finding.verdict])
            axes.annotate(
                f'{difference.seeds}',
                (1.02, line),
                xycoords=('axes fraction', 'data'),
                va='center',
                fontsize=7.5,
            )
        axes.axvline(0, color=_INK, linewidth=0.8)
        for line, (one, two) in enumerate(zip(lines, lines[1:])):
            if one[0] != two[0]:
                axes.axhline(line + 0.5, color=_GREY, linewidth=0.5, alpha=0.5)
        axes.set_yticks(range(len(lines)), [each.name for _, each in lines], fontsize=7.5)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.annotate('seeds', (1.02, -0.9), xycoords=('axes fraction', 'data'), fontsize=7.5)
        axes.set_xlabel('difference in points of accuracy, 95 % interval')
        axes.grid(axis='x')
        axes.legend(
            [
                Line2D([], [], marker='o', color=colour, markerfacecolor=inside)
                for colour, inside in map(looks.__getitem__, found)
            ],
            found,
            loc='lower center',
            bbox_to_anchor=(0.3, 1.0),
            ncols=len(found),
            fontsize=8,
        )
    return figure


def curve_plot(
    curves: Mapping[str, Curve], ylabel: str = 'loss', smooth: float = 0.03, xlabel: str = 'step'
) -> Figure:
    """Training curves in one plot: the logged values faint, their running mean strong.

    Args:
        curves: By label, such as ``{'MoCo v2': ..., 'MoCo v2 + Free-ATM': ...}``.
        ylabel: What the values are.
        smooth: Width of the running mean as a share of the curve's points.
        xlabel: What the steps are.

    Raises:
        ValueError: If there is no curve.
    """
    if not curves:
        raise ValueError('curve_plot got no curve to show.')
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.0), layout='constrained')
        axis = figure.subplots()
        styles = ('-', '--', '-.', ':')
        for number, (label, curve) in enumerate(curves.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            half = int(len(curve.values) * smooth) // 2
            if half:
                axis.plot(curve.steps, curve.values, color=colour, linewidth=0.7, alpha=0.3)
            axis.plot(
                curve.steps,
                _running_mean(curve.values, half),
                styles[number % 4],
                color=colour,
                linewidth=1.7,
                label=label,
            )
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        axis.grid(axis='y')
        axis.legend(loc='upper right')
    return figure


def _running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over up to ``half`` neighbours on each side, fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    place = np.arange(len(values))
    first, last = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)
