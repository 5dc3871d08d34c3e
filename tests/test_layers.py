"""The layers: what makes data needs no OpenMMLab and no LAVIS, what trains needs no diffusers.

They meet in the store. Checked twice: by reading every import statement, also those inside
functions, and by importing each layer in a process where the other side's packages are missing.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'freeatm_mm'

OPENMMLAB = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg')
DATA_LAYERS = ('attention', 'prompts', 'generation', 'store', 'miniature')
TRAINING_LAYERS = ('datasets', 'models', 'engine')
FORBIDDEN = {
    **{
        layer: (*OPENMMLAB, 'lavis', *(f'freeatm_mm.{name}' for name in TRAINING_LAYERS))
        for layer in DATA_LAYERS
    },
    **{layer: ('diffusers', 'freeatm_mm.generation') for layer in TRAINING_LAYERS},
}


def imported_names(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Yield line and full name of all that a module imports, wherever the statement stands.

    Args:
        source: The module's text.
        module: Its full name, against which relative imports are resolved.
        is_package: Whether it is a package's ``__init__``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parents = module.split('.')[
                    : None
                    if is_package and node.level == 1
                    else (1 if is_package else 0) - node.level
                ]
                base = '.'.join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f'{base}.{alias.name}'
        elif (
            isinstance(node, ast.Call)
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
            and getattr(node.func, 'attr', getattr(node.func, 'id', None))
            in ('import_module', '__import__')
        ):
            yield node.lineno, node.args[0].value


def is_within(name: str, package: str) -> bool:
    """Whether a full name is a package or something in it."""
    return name == package or name.startswith(f'{package}.')


def violations(layer: str) -> list[str]:
    """Imports in a layer of what it must not know, as ``file:line: name``."""
    found = []
    for path in sorted((PACKAGE / layer).rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        is_package = parts[-1] == '__init__'
        module = '.'.join(parts[:-1] if is_package else parts)
        for line, name in imported_names(path.read_text(encoding='utf-8'), module, is_package):
            if any(is_within(name, package) for package in FORBIDDEN[layer]):
                found.append(f'{path.relative_to(ROOT)}:{line}: {name}')
    return found


@pytest.mark.parametrize('layer', DATA_LAYERS + TRAINING_LAYERS)
def test_no_import_across_the_layers(layer):
    assert list((PACKAGE / layer).rglob('*.py')), f'freeatm_mm/{layer} holds no module'
    assert violations(layer) == []


@pytest.mark.parametrize(
    'source, module, is_package, expected',
    [
        ('import mmcv.ops', 'a.b', False, 'mmcv.ops'),
        ('def f():\n    from mmcv import ops', 'a.b', False, 'mmcv.ops'),
        ('from . import x', 'a.b.c', False, 'a.b.x'),
        ('from .d import x', 'a.b.c', False, 'a.b.d.x'),
        ('from ..d import x', 'a.b.c', False, 'a.d.x'),
        ('from . import x', 'a.b', True, 'a.b.x'),
        ('from ..d import x', 'a.b', True, 'a.d.x'),
        ('import importlib\nimportlib.import_module("mmcv")', 'a.b', False, 'mmcv'),
    ],
)
def test_the_reading_of_imports(source, module, is_package, expected):
    assert expected in [name for _, name in imported_names(source, module, is_package)]


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a program in a fresh interpreter, from the checkout."""
    return subprocess.run(
        [sys.executable, '-c', program, *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )


IMPORT_ALL_WITHOUT = """
import importlib, importlib.machinery, pkgutil, sys
missing, layers = sys.argv[1].split(','), sys.argv[2].split(',')

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split('.')[0] in missing else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
for name in missing:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f'{name} was to be missing')
import freeatm_mm
count = 0
for layer in layers:
    package = importlib.import_module(f'freeatm_mm.{layer}')
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
        importlib.import_module(module.name)
        count += 1
print(count)
"""


@pytest.mark.parametrize(
    'missing, layers',
    [
        ((*OPENMMLAB, 'lavis'), DATA_LAYERS),
        (('diffusers', 'lavis'), TRAINING_LAYERS),
    ],
    ids=['data', 'training'],
)
def test_a_layer_works_where_the_other_side_is_not_installed(missing, layers):
    result = run_python(IMPORT_ALL_WITHOUT, ','.join(missing), ','.join(layers))
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) >= len(layers)


def test_the_package_alone_needs_nothing_heavy():
    heavy = (*OPENMMLAB, 'lavis', 'diffusers', 'transformers', 'torch', 'matplotlib', 'sklearn')
    result = run_python(
        f'import sys, freeatm_mm\nprint([name for name in {heavy!r} if name in sys.modules])'
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '[]'


def test_only_import_names_are_used_so_that_forks_and_upstream_both_do():
    """The maintained forks are installed as onedl-...; their import names are upstream's."""
    for path in PACKAGE.rglob('*.py'):
        for line, name in imported_names(path.read_text(encoding='utf-8'), 'freeatm_mm'):
            assert not name.startswith('onedl'), f'{path.relative_to(ROOT)}:{line}: {name}'
