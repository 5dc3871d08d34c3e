"""Bars in terminals, lines in logs."""

from __future__ import annotations

import ast
import io
import sys

import pytest
from helpers.tools import ROOT

from freeatm_mm.progress import progress_bar


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def said(monkeypatch):
    def run(terminal, count=50):
        monkeypatch.setattr(sys, 'stderr', stream := Stream(terminal))
        with progress_bar(total=count, desc='generating', mininterval=0) as bar:
            for _ in range(count):
                bar.update(1)
                bar.refresh() if terminal else None
        return stream.getvalue()

    return run


def test_a_log_gets_lines_and_few(said):
    text = said(terminal=False)
    assert '\r' not in text
    first, *_, last = text.splitlines()
    assert first.startswith('generating:   0%') and '50/50' in last
    assert len(text.splitlines()) == 2 and text.endswith('\n')


def test_a_terminal_gets_a_bar(said):
    assert said(terminal=True).count('\r') > 10


def test_every_bar_of_the_project_is_one_of_these():
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ('freeatm_mm', 'tools')
        for path in (ROOT / folder).rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ('tqdm', 'trange')
    ]
    assert set(found) == {'freeatm_mm/progress.py'}
