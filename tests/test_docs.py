"""What the docs name exists: files, headings, tools and their options."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers.places import PLACES
from helpers.tools import command_behind, load_tool
from PIL import Image

from freeatm_mm.attention.overlay import NOUN_COLOURS
from freeatm_mm.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (
        '.',
        'docs',
        'docs/reference',
        'docs/tutorials',
        'docs/results',
        'docs/results/claims',
        'weights/miniature-generator',
    )
    for path in (ROOT / folder).glob('*.md')
)
PLACEHOLDERS = ('NAME', 'METHOD', 'FRAMEWORK')
RECORDS = [name for name in DOCS if re.fullmatch(r'docs/results/(?!README).*', name)]
"""Results keep the command that made them, in the words of its day."""


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r'^#+ (.*)$', path.read_text(encoding='utf-8'), re.MULTILINE)
    plain = (re.sub(r'[^\w\- ]', '', heading.strip().lower()) for heading in headings)
    return {heading.replace(' ', '-') for heading in plain}


def broken_links(name: str) -> list[str]:
    broken = []
    for link in re.findall(r'\]\(([^)\s]+)\)', text(name)):
        if link.startswith('https://'):
            continue
        path, _, anchor = link.partition('#')
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or anchor and anchor not in anchors(target):
            broken.append(link)
    return broken


def missing_paths(name: str) -> list[str]:
    folders = '(?:tools|configs|freeatm_mm|docs|tests|weights)'
    named = re.findall(rf'(?:`|python3? |^)({folders}/[\w./<>-]*[\w>])', text(name), re.MULTILINE)
    return [
        path
        for path in named
        if '<' not in path
        and not (ROOT / path).exists()
        and not any(word in path for word in PLACEHOLDERS)
    ]


def options_of(tool: str) -> set[str]:
    """The options of a tool by its source; a generator's plan has one for each of its fields."""
    behind = command_behind(ROOT / tool)
    source = f'{behind.replace(".", "/")}.py' if behind else tool
    content = text(source)
    for shared in set(re.findall(r'freeatm_mm\.cli\.(_\w+)', content)):  # options of several tools
        content += text(f'freeatm_mm/cli/{shared}.py')
    known = set(re.findall(r"'(--[a-z][\w-]*)'", content))
    if tool == 'tools/miniature/train_generator.py':
        fields = re.findall(r'^    (\w+): ', text('freeatm_mm/miniature/plan.py'), re.MULTILINE)
        known |= {f'--{field.replace("_", "-")}' for field in fields}
    return known


def unknown_options(name: str) -> list[str]:
    """Options in commands, each with its tool, that the tool doesn't have."""
    joined = re.sub(r'\\\n\s*', ' ', text(name)).replace(
        './run miniature', 'tools/miniature/run.py'
    )
    for name, command in COMMANDS.items():
        joined = re.sub(rf'\bfreeatm(_mm)? {name}\b', f'freeatm_mm/cli/{command.module}.py', joined)
    unknown = []
    for tool, rest in re.findall(r'((?:tools|freeatm_mm/cli)/[\w/]+\.py)([^`\n]*)', joined):
        used = re.findall(r'(?<![\w=])(--[a-z][\w-]*)', rest.split('#')[0])
        unknown += [f'{tool} {option}' for option in used if option not in options_of(tool)]
    return unknown


@pytest.mark.parametrize('name', DOCS)
def test_links_paths_and_options_exist(name):
    assert broken_links(name) == []
    assert missing_paths(name) == []
    if name not in RECORDS:
        assert unknown_options(name) == []


def test_the_refusals_that_a_page_explains_are_those_of_the_recorder():
    page = text('docs/generators.md')
    rows = page.split('## When the recorder refuses')[1].split('\n## ')[0].splitlines()
    quoted = [words for row in rows for words in re.findall(r'`([^`]+)`', row.split(' | ')[0])]
    assert len(quoted) >= 6
    messages = ''.join(
        path.read_text(encoding='utf-8') for path in (ROOT / 'freeatm_mm/attention').rglob('*.py')
    )
    messages = re.sub(r"'\n\s+f?'", '', messages)  # one text over several lines
    for words in quoted:
        assert words.replace('2 times', '{times}') in messages, words


def test_what_does_not_exist_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f'{__name__}.ROOT', tmp_path)
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools/make.py').write_text("parser.add_argument('--count')")
    (tmp_path / 'freeatm_mm/cli').mkdir(parents=True)
    (tmp_path / 'freeatm_mm/cli/train.py').write_text("add('--count')")
    (tmp_path / 'page.md').write_text(
        '# A heading: here\n[a](#a-heading-here) [b](#no) [c](no.md) `configs/no.py`\n'
        'python tools/make.py --count 3 \\\n    --colour red  # --comment\n'
        'freeatm train --count 3 --size 2\n'
    )
    assert broken_links('page.md') == ['#no', 'no.md']
    assert missing_paths('page.md') == ['configs/no.py']
    assert unknown_options('page.md') == [
        'tools/make.py --colour',
        'freeatm_mm/cli/train.py --size',
    ]


def test_the_picture_underlines_each_noun_in_the_colour_of_its_mask():
    picture = load_tool('miniature/readme_picture')
    examples = []
    for prompt, words, _ in picture.EXAMPLES:
        assert all(prompt.count(word) == 1 for word in words)
        spans = [(prompt.index(word), prompt.index(word) + len(word)) for word in words]
        panel = picture.Image.new('RGB', (picture.PANEL, picture.PANEL), 'black')
        examples.append((prompt, spans, [panel] * (1 + len(words))))
    sheet = picture.lay_out(examples)
    assert 800 <= sheet.width <= 1200
    colours = {colour for _, colour in sheet.getcolors(sheet.width * sheet.height)}
    nouns = max(len(spans) for _, spans, _ in examples)
    assert set(NOUN_COLOURS[:nouns]) <= colours


def test_pictures_are_in_true_colours():
    """A palette of 256 colours bands faces and skies, and shifts the colours that name a noun."""
    pictures = sorted((ROOT / 'docs').rglob('*.png'))
    assert pictures
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.mode == 'RGB', path.name


def test_contributing_lists_the_places_that_the_tests_of_additions_use():
    page = text('CONTRIBUTING.md')
    for addition, places in PLACES.items():
        rows = ''.join(f'| `{path}` | {what} |\n' for path, what in places.items())
        assert f'**A{"n" if addition[0] in "aeiou" else ""} {addition}**' in page or (
            f'**A pretraining {addition}**' in page
        )
        assert rows in page, rows


class SiteLoader(yaml.SafeLoader):
    """Read mkdocs.yml without what its tags stand for: the environment and Python functions."""


SiteLoader.add_multi_constructor('', lambda loader, suffix, node: None)


def pages_of(nav: list | dict | str) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in inner for page in pages_of(entry)]


def test_the_site_shows_every_page_once_and_none_that_is_not_there():
    pages = pages_of(yaml.load(text('mkdocs.yml'), SiteLoader)['nav'])
    outside = load_tool('setup/site_pages').PAGES
    assert outside['README.md'] == 'index.md'
    assert all((ROOT / path).is_file() for path in outside)
    own = [path.relative_to(ROOT / 'docs').as_posix() for path in (ROOT / 'docs').rglob('*.md')]
    assert sorted(pages) == sorted([*own, *outside.values()])


@pytest.mark.parametrize(
    'page', sorted((ROOT / 'docs/reference').glob('*.md')), ids=lambda p: p.stem
)
def test_a_page_of_the_reference_names_a_room_with_public_names(page):
    (room,) = re.findall(r'^::: (\S+)$', page.read_text(encoding='utf-8'), re.M)
    assert room == f'freeatm_mm.{page.stem}'
    assert '__all__' in text(f'{room.replace(".", "/")}/__init__.py')


@pytest.mark.parametrize(
    'page, link, turned',
    [
        ('index.md', 'docs/masks.md#filter-bad-masks', 'masks.md#filter-bad-masks'),
        ('index.md', 'examples/simclr_timm.py', 'source/examples/simclr_timm.py'),
        ('masks.md', 'results/mask-quality.md', 'results/mask-quality.md'),
        ('results/README.md', '../../README.md', '../index.md'),
        ('results/README.md', '../../CONTRIBUTING.md#style', '../CONTRIBUTING.md#style'),
        ('weights/miniature-generator/README.md', '../../docs/lavis.md', '../../lavis.md'),
        ('masks.md', 'nothing.md', 'nothing.md'),
        ('masks.md', '../../outside.md', '../../outside.md'),
        ('masks.md', '#figures', '#figures'),
        ('masks.md', 'https://arxiv.org/README.md', 'https://arxiv.org/README.md'),
    ],
)
def test_links_of_the_repository_are_turned_to_the_places_of_the_site(page, link, turned):
    site_pages = load_tool('setup/site_pages')
    here = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    markdown = site_pages.on_page_markdown(f'See ![a]({link}).', here, None, None)
    assert markdown == f'See ![a]({turned}).'
