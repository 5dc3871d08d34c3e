"""The table of docs/generators.md says what the code does, and names tests that exist."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from freeatm_mm.attention.families import FAMILIES, TEXTLESS, TextKeys, find_family

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / 'docs' / 'generators.md').read_text(encoding='utf-8')


def rows():
    lines = [line for line in DOC.splitlines() if line.startswith('| ')]
    cells = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines]
    return {row[0]: row[1:] for row in cells if len(row) == 6 and row[0] not in ('family', '---')}


def guidance(family):
    if family.two_passes:
        return "two passes, the prompt's first"
    if family.further_parts:
        return "one batch, the prompt's second part"
    which = 'first' if family.conditional_first else 'second'
    part = {2: 'half', 3: 'third'}[family.guidance_parts]
    return f"one batch, the prompt's {which} {part}"


@functools.cache
def defined_tests():
    return frozenset(_defined_tests())


def _defined_tests():
    for path in sorted((ROOT / 'tests' / 'attention').glob('test_*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith('test_'):
                yield f'{path.name}::{node.name}'


def test_every_family_has_its_row_and_no_other_is_there():
    assert list(rows()) == [family.name for family in FAMILIES]


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.name)
def test_a_row_says_what_the_code_does(family):
    pipelines, where, kind, how_guided, tested_by = rows()[family.name]
    assert tuple(name.strip('`') for name in pipelines.split(', ')) == family.pipelines
    assert where == family.where
    assert kind == family.text_keys.value
    assert how_guided == guidance(family)
    assert set(tested_by.strip('`').split('`, `')) <= defined_tests()


def test_the_three_ways_are_explained():
    for kind in TextKeys:
        assert f'**{kind.value}**' in DOC


@pytest.mark.parametrize('name', TEXTLESS)
def test_pipelines_without_text_keys_say_so(name):
    assert name in DOC
    with pytest.raises(ValueError) as refusal:
        find_family(type(name, (), {})())
    assert f'gives no masks of nouns: {TEXTLESS[name]}' in str(refusal.value)


def test_no_class_is_in_two_rows():
    names = [name for family in FAMILIES for name in family.pipelines] + list(TEXTLESS)
    assert len(names) == len(set(names))
