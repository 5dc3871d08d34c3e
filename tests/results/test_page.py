"""Plots, the page and the report tool."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from freeatm_mm.prompts import Noun
from freeatm_mm.results import add_row, new_results, write_results
from freeatm_mm.results.curves import Curve
from freeatm_mm.results.page import write_page
from freeatm_mm.results.plots import curve_plot, result_plots, to_svg
from freeatm_mm.store import Sample

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results():
    results = new_results('trial', 'python tools/trial.py --text "<b>"')
    for seed in range(2):
        for masks in (False, True):
            add_row(
                results,
                {
                    'method': 'mocov2',
                    'regime': 'synthetic',
                    'masks': masks,
                    'seed': seed,
                    'epochs': 4,
                    'metrics': {'linear': 0.3 + 0.1 * masks + 0.01 * seed, 'knn': 0.2},
                },
            )
    return results


def sample(caption='a <leaf> & a bag'):
    masks = np.zeros((2, 8, 8), np.uint8)
    masks[0, :4], masks[1, :, :4] = 255, 255
    nouns = tuple(
        Noun(word, caption.index(word), caption.index(word) + len(word), word)
        for word in ('leaf', 'bag')
    )
    return Sample.from_image(
        '000000',
        Image.new('RGB', (32, 32), (10, 90, 200)),
        caption=caption,
        nouns=nouns,
        masks=masks,
        scales=np.tile(np.float32([0, 1]), (2, 1)),
    )


class Page(HTMLParser):
    """What a reader of the page meets."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ('meta', 'img', 'br'):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_shows_everything_and_loads_nothing(results, tmp_path):
    path = tmp_path / 'page.html'
    curves = {
        'Baseline': Curve(np.arange(100), np.linspace(8, 6, 100)),
        'Free-ATM': Curve(np.arange(100), np.linspace(8, 5, 100)),
    }
    write_page(
        path,
        'Trial & error',
        [sample(), sample()],
        curves,
        results,
        {'Parameters': '2.4 million'},
        [('Generate', 'generate a<b', 754), ('Train', 't', 8.3)],
        intro='What it is.',
    )
    text = path.read_text()
    page = Page(text)
    words = ' '.join(' '.join(page.words).split())
    for expected in (
        'Trial & error',
        'What it is.',
        'a < leaf > & a bag',
        'MoCo v2 + Free-ATM',
        '0.405 ± 0.007',
        '+0.100',
        '2.4 million',
        'generate a<b',
        '12 min 34 s',
        results['hardware'],
        results['command'],
        results['versions']['python'],
    ):
        assert expected in words, expected
    pictures = page.all('img')
    assert len(pictures) == 6 and all(picture['alt'] for picture in pictures)
    assert pictures[1]['alt'] == 'Mask of “leaf” over the image'
    data = base64.b64decode(pictures[0]['src'].removeprefix('data:image/png;base64,'))
    assert Image.open(io.BytesIO(data)).size == (160, 160)
    plots = [attributes for attributes in page.all('svg') if attributes.get('role') == 'img']
    assert len(plots) == 2 and all(plot['aria-label'] for plot in plots)
    # nothing is fetched: no script or link, no address but those that name a format
    assert not {'script', 'link', 'iframe'} & {tag for tag, _ in page.tags}
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert not re.findall(r'url\((?!#)', text)
    ids = [attributes['id'] for _, attributes in page.tags if 'id' in attributes]
    assert len(ids) == len(set(ids))


def test_parts_that_are_not_given_are_left_out(tmp_path):
    write_page(tmp_path / 'page.html', 'Empty')
    page = Page((tmp_path / 'page.html').read_text())
    assert page.all('h2') == [] and page.all('svg') == []


def test_plots_repeat_byte_for_byte_and_are_well_formed(results):
    for inline in (False, True):
        first, again = (
            to_svg(result_plots(results)[''], 'The “plot” & more', inline) for _ in range(2)
        )
        assert first == again and '#010203' not in first
        ElementTree.fromstring(first.encode())


def test_inline_plots_take_the_pages_text_colour(results):
    inline = to_svg(result_plots(results)[''], 'Plot', inline=True)
    assert inline.startswith('<svg') and 'currentColor' in inline
    assert 'Scenes, linear (mAP)' in inline  # text stays text
    alone = to_svg(result_plots(results)[''])
    assert alone.startswith('<?xml') and 'currentColor' not in alone


def test_every_seed_is_a_dot_at_its_value(results):
    axis = result_plots(results)[''].axes[0]
    dots = [line for line in axis.lines if line.get_marker() == 'o']
    assert [list(map(float, line.get_xdata())) for line in dots] == [
        pytest.approx([0.30, 0.31]),
        pytest.approx([0.40, 0.41]),
    ]


def test_curves_of_two_regimes_can_be_told_apart():
    """Colours tell masks; without another mark, a real and a synthetic baseline were one line."""
    results = new_results('trial', 'x')
    for regime in ('real', 'synthetic'):
        for masks in (False, True):
            for epochs in (1, 2):
                add_row(
                    results,
                    {
                        'method': 'mocov2',
                        'regime': regime,
                        'masks': masks,
                        'seed': 0,
                        'epochs': epochs,
                        'metrics': {'linear': 0.1 * epochs},
                    },
                )
    axis = result_plots(results)['-epochs'].axes[0]
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axis.lines]
    assert len(looks) == len(set(looks)) == 4


def test_several_lengths_of_pretraining_give_a_plot_over_epochs(results):
    assert set(result_plots(results)) == {''}
    add_row(results, {**results['rows'][0], 'epochs': 8, 'metrics': {'linear': 0.5}})
    figures = result_plots(results)
    assert set(figures) == {'', '-epochs'}
    line = figures['-epochs'].axes[0].lines[0]
    assert list(line.get_xdata()) == [4, 8]
    assert list(line.get_ydata()) == pytest.approx([0.305, 0.5])


def test_curves_are_smoothed_without_being_shifted():
    steps = np.arange(0, 2000, 10)
    figure = curve_plot({'straight': Curve(steps, 5 - steps / 1000)}, smooth=0.1)
    faint, strong = figure.axes[0].lines
    np.testing.assert_allclose(faint.get_ydata(), 5 - steps / 1000)
    np.testing.assert_allclose(strong.get_ydata()[20:-20], (5 - steps / 1000)[20:-20])
    assert len(strong.get_ydata()) == len(steps)
    with pytest.raises(ValueError, match='no curve'):
        curve_plot({})


def test_report_tool_writes_table_and_plot_beside_the_results(results, tmp_path):
    write_results(tmp_path / 'trial.json', results)
    tool = [sys.executable, str(ROOT / 'tools/results/report.py')]
    done = subprocess.run(
        [*tool, str(tmp_path / 'trial.json')],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={'PYTHONPATH': str(ROOT), 'PATH': ''},
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / 'trial.md').read_text()
    assert '| MoCo v2 + Free-ATM | 4 | 2 | 0.405 ± 0.007 |' in page and '(trial.svg)' in page
    assert (tmp_path / 'trial.svg').read_text().startswith('<?xml')
    (tmp_path / 'trial.json').write_text('{}')
    done = subprocess.run(
        [*tool, str(tmp_path / 'trial.json')],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={'PYTHONPATH': str(ROOT), 'PATH': ''},
    )
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'missing' in done.stderr
