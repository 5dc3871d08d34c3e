"""The one style: formatter, linter and type checker find nothing."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    'command',
    ['ruff format --check .', 'ruff check .', 'mypy -p freeatm_mm'],
    ids=['formatter', 'linter', 'types'],
)
def test_finds_nothing(command):
    name, *arguments = command.split()
    if importlib.util.find_spec(name) is None:
        pytest.skip(f'{name} is not installed (part dev)')
    result = subprocess.run(
        [sys.executable, '-m', name, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_docstrings_hold_no_roles_of_sphinx():
    """The site is made of Markdown, where a name is code between single backticks."""
    role = re.compile(r':(class|func|meth|mod|data|attr|exc|obj|ref):`')
    files = [
        path
        for folder in ('configs', 'examples', 'freeatm_mm', 'tests', 'tools')
        for path in (ROOT / folder).rglob('*.py')
    ]
    assert not [str(path) for path in files if role.search(path.read_text(encoding='utf-8'))]
