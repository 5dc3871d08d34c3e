"""One HTML page to look at: images with their nouns' masks, loss curves, results, and their making.

The page is a single file that loads nothing: pictures are inline PNG, plots inline SVG, and a
content security policy forbids anything else. It follows the reader's light or dark setting.
Written without a template: it is tables and figures of any number, each made by a function that
escapes its text.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from freeatm_mm.attention.overlay import NOUN_COLOURS, SampleLike, noun_panels
from freeatm_mm.files import atomic_write
from freeatm_mm.results import result_tables, validate_results
from freeatm_mm.results.curves import Curve
from freeatm_mm.results.plots import curve_plot, result_plots, to_svg

__all__ = ['write_page']

# Columns of words, set flush left; numbers are set flush right.
_TEXT_COLUMNS = ('Pretraining', 'Metric', 'Case', 'Unit')

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #59626c; --paper: #fcfcfa;
  --line: #d9dbd7; --tile: #f1f2ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e4; --soft: #a3abb3; --paper: #15181b;
  --line: #363b40; --tile: #1e2226; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 74rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans',
  'DejaVu Sans', sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; font-weight: 600; }
p { max-width: 44rem; margin: .4rem 0 .9rem; }
.lede { font-size: 1.08rem; color: var(--soft); }
.note, figcaption { color: var(--soft); font-size: .88rem; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr));
  gap: 1rem; padding: 0; }
.sample { margin: 0; padding: .75rem; background: var(--tile); border-radius: .5rem; }
.sample > figcaption { margin-bottom: .5rem; color: var(--ink); line-height: 1.35; }
.panels { display: flex; gap: .5rem; }
.panels div { flex: 0 1 calc((100% - 1rem) / 3); min-width: 0; font-size: .82rem;
  color: var(--soft); line-height: 1.3; overflow-wrap: anywhere; }
.panels img { display: block; width: 100%; height: auto; border-radius: .25rem; }
.noun { text-decoration: underline; text-decoration-thickness: .22em;
  text-underline-offset: .18em; text-decoration-skip-ink: none; }
.wide { white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .35rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: bottom; }
th { font-weight: 600; line-height: 1.25; }
td { white-space: nowrap; vertical-align: baseline; }
th.text, td.text { text-align: left; }
.wide + .wide { margin-top: 1.6rem; }
pre { background: var(--tile); padding: .7rem .9rem; border-radius: .4rem; overflow-x: auto;
  font: .84rem/1.5 ui-monospace, 'SF Mono', 'DejaVu Sans Mono', monospace; margin: .3rem 0 .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .5rem 0;
  font-size: .93rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
svg { display: block; margin: 1rem 0; }
.wide svg { min-width: 38rem; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
"""


def write_page(
    path: str | Path,
    title: str,
    store_samples: Iterable[SampleLike] = (),
    curves: Mapping[str, Curve] | None = None,
    results: Mapping[str, Any] | None = None,
    generator_card: Mapping[str, Any] | None = None,
    commands: Sequence[tuple[str, str, float]] = (),
    intro: str = '',
) -> None:
    """Write the page; parts that are not given are left out.

    Args:
        path: The HTML file; written atomically.
        title: Heading and window title.
        store_samples: Samples of a store, such as ``(store[i] for i in range(24))``.
        curves: Loss curves by label, from `freeatm_mm.results.curves.read_curve`.
        results: The content of a result file.
        generator_card: Facts about the generator, such as ``{'Parameters': '2.4 million'}``.
        commands: How it was made, in order.
        intro: A paragraph under the title.

    Raises:
        ValueError: If the results are not a result file's content.
    """
    parts = [f'<h1>{html.escape(title)}</h1>']
    if intro:
        parts.append(f'<p class="lede">{html.escape(intro)}</p>')
    if results is not None:
        validate_results(results)
        parts += _result_section(results)
    samples = [_sample_figure(sample) for sample in store_samples]
    if samples:
        parts += [
            '<h2>Generated images and the masks of their nouns</h2>',
            '<p class="note">Each noun’s attention while the image was generated, stretched from '
            'its lowest (grey image) to its highest value (full colour); the white line is '
            'where it passes 0.45.</p>',
            f'<div class="samples">{"".join(samples)}</div>',
        ]
    if curves:
        label = 'Training loss over steps: ' + ', '.join(
            f'{name} from {curve.values[0]:.3g} to {curve.values[-1]:.3g}'
            for name, curve in curves.items()
        )
        parts += [
            '<h2>Training</h2>',
            f'<div class="wide">{to_svg(curve_plot(curves), label, inline=True)}</div>',
        ]
        if len(curves) > 1:
            parts.append(
                '<p class="note">Losses of different methods are not on one scale: with '
                'masks, the positives are instances, not whole images.</p>'
            )
    if generator_card:
        parts += ['<h2>The generator</h2>', _facts(generator_card)]
    if commands or results is not None:
        parts += ['<h2>How it was made</h2>', *_making(commands, results)]
    body = '\n'.join(parts)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n'
        f'<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )
    with atomic_write(path) as file:
        file.write(page.encode('utf-8'))


def _result_section(results: Mapping[str, Any]) -> list[str]:
    parts = ['<h2>Results</h2>']
    for title, header, rows in result_tables(results):
        kinds = [' class="text"' if name in _TEXT_COLUMNS else '' for name in header]
        head = ''.join(
            f'<th scope="col"{kind}>{html.escape(cell)}</th>' for kind, cell in zip(kinds, header)
        )
        body = ''.join(
            '<tr>'
            + ''.join(f'<td{kind}>{html.escape(cell)}</td>' for kind, cell in zip(kinds, row))
            + '</tr>'
            for row in rows
        )
        parts.append(
            f'<div class="wide"><table><caption>{html.escape(title)}</caption>'
            f'<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
    for suffix, figure in result_plots(results).items():
        label = {
            '': 'The table’s values as a plot: each dot is one seed, the upright line their '
            'mean, the bar one standard deviation to each side',
            '-epochs': 'Each metric over epochs of pretraining',
        }[suffix]
        parts.append(f'<div class="wide">{to_svg(figure, label, inline=True)}</div>')
        parts.append(f'<p class="note">{label}.</p>')
    return parts


def _sample_figure(sample: SampleLike) -> str:
    (_, image), *masks = noun_panels(sample)
    panels = [f'<div>{_picture(image, f"Generated image: {sample.caption}")}</div>']
    panels += [
        f'<div>{_picture(panel, f"Mask of “{noun}” over the image")}{html.escape(noun)}</div>'
        for noun, panel in masks
    ]
    return (
        f'<figure class="sample"><figcaption>{_marked_caption(sample)}</figcaption>'
        f'<div class="panels">{"".join(panels)}</div></figure>'
    )


def _marked_caption(sample: SampleLike) -> str:
    """The caption, each noun underlined in the colour of its mask."""
    pieces, end = [], 0
    for number, noun in sorted(enumerate(sample.nouns), key=lambda pair: pair[1].start):
        if noun.start < end:  # a noun inside another is underlined with it
            continue
        colour = NOUN_COLOURS[number % len(NOUN_COLOURS)]
        pieces.append(html.escape(sample.caption[end : noun.start]))
        pieces.append(
            '<span class="noun" style="text-decoration-color:rgb({},{},{})">'.format(*colour)
            + html.escape(sample.caption[noun.start : noun.end])
            + '</span>'
        )
        end = noun.end
    return ''.join(pieces) + html.escape(sample.caption[end:])


def _picture(image: Image.Image, alt: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, 'PNG', optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode('ascii')
    return (
        f'<img alt="{html.escape(alt, quote=True)}" width="{image.width}" '
        f'height="{image.height}" src="data:image/png;base64,{data}">'
    )


def _facts(facts: Mapping[str, Any]) -> str:
    return (
        '<dl>'
        + ''.join(
            f'<dt>{html.escape(str(name))}</dt><dd>{html.escape(str(value))}</dd>'
            for name, value in facts.items()
        )
        + '</dl>'
    )


def _making(
    commands: Sequence[tuple[str, str, float]], results: Mapping[str, Any] | None
) -> list[str]:
    parts = []
    for what, command, seconds in commands:
        parts.append(
            f'<h3>{html.escape(what)} <span class="note">{_duration(seconds)}</span></h3>'
            f'<pre>{html.escape(command)}</pre>'
        )
    if results is not None:
        versions = ', '.join(f'{name} {version}' for name, version in results['versions'].items())
        parts.append(
            _facts(
                {
                    'Results made with': results['command'],
                    'Date': results['date'],
                    'Hardware': results['hardware'],
                    'Versions': versions,
                }
            )
        )
    return parts


def _duration(seconds: float) -> str:
    """Such as '8.3 s', '12 min 30 s' or '2 h 05 min'."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes} min {rest:02} s'
    return f'{minutes // 60} h {minutes % 60:02} min'
