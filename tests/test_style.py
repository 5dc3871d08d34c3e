"""The one style: formatter, linter and type checker find nothing."""

from __future__ import annotations

import importlib.util
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
