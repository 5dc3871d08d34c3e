"""The layers: an order of the package's rooms, and the frameworks that each of them may know.

What makes data needs no OpenMMLab and no LAVIS, what trains needs no diffusers; they meet in the
store, and `ops`, what the paper is, needs no framework at all. Checked twice: by reading every
import statement, also those inside functions, and by importing each layer in a process where the
packages that it must not need are missing.
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

#: The rooms (folders and modules of the package) from the ground up. A room imports only what
#: stands in rows before its own: so no two import each other, and no arrow runs back.
LAYERS = (
    ('colours', 'methods', 'paper', 'progress', 'signals'),
    ('errors',),
    ('files', 'packaged', 'torch_files', 'ops'),
    ('checkpoints',),
    ('addresses',),
    ('prompts',),
    ('store',),
    ('attention', 'datasets', 'models', 'origins', 'pytorch'),
    ('configs',),
    ('browse', 'engine', 'generation', 'results'),
    ('openmmlab',),
    ('lavis_ext', 'probing', 'downstream'),
    ('hub', 'miniature'),
    ('cli',),
    ('__main__',),
)
#: `compat` lets mmengine read checkpoints through `checkpoints`, which asks it to: one room.
SAME_ROOM = {'compat': 'checkpoints'}

OPENMMLAB = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg')
FRAMEWORKS = (*OPENMMLAB, 'lavis', 'diffusers', 'transformers', 'lightly', 'timm')
DATA_LAYERS = ('attention', 'prompts', 'generation', 'store', 'miniature')
TRAINING_LAYERS = ('datasets', 'models', 'engine')
FORBIDDEN = {
    **{
        layer: (*OPENMMLAB, 'lavis', *(f'freeatm_mm.{name}' for name in TRAINING_LAYERS))
        for layer in DATA_LAYERS
    },
    **{layer: ('diffusers', 'freeatm_mm.generation') for layer in TRAINING_LAYERS},
    'ops': FRAMEWORKS,
    'pytorch': FRAMEWORKS,
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


def imports_in(folder: Path, root: Path = ROOT) -> Iterator[tuple[Path, int, str]]:
    """Yield file, line and full name of all that the modules in a folder import."""
    for path in sorted(folder.rglob('*.py')):
        parts = path.relative_to(root).with_suffix('').parts
        is_package = parts[-1] == '__init__'
        module = '.'.join(parts[:-1] if is_package else parts)
        for line, name in imported_names(path.read_text(encoding='utf-8'), module, is_package):
            yield path.relative_to(root), line, name


def violations(layer: str) -> list[str]:
    """Imports in a layer of what it must not know, as ``file:line: name``."""
    return [
        f'{path}:{line}: {name}'
        for path, line, name in imports_in(PACKAGE / layer)
        if any(is_within(name, package) for package in FORBIDDEN[layer])
    ]


def room_of(name: str) -> str | None:
    """The room of a full name of the package; None for the package itself and for other names."""
    parts = name.split('.')
    if parts[0] != PACKAGE.name or len(parts) == 1 or parts[1] == '__version__':
        return None
    return SAME_ROOM.get(parts[1], parts[1])


def arrows(root: Path = ROOT) -> dict[tuple[str, str], list[str]]:
    """The imports between rooms: (importing, imported) -> ``file:line: name``."""
    found: dict[tuple[str, str], list[str]] = {}
    for path, line, name in imports_in(root / PACKAGE.name, root):
        source = room_of('.'.join(path.with_suffix('').parts))
        target = room_of(name)
        if source != '__init__' and target not in (None, source):
            found.setdefault((source, target), []).append(f'{path}:{line}: {name}')
    return found


def wrong_arrows(root: Path = ROOT) -> list[str]:
    """Imports that don't run down the layers."""
    level = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
    return [
        place
        for (source, target), places in arrows(root).items()
        if level[source] <= level[target]
        for place in places
    ]


def test_rooms_import_only_rooms_below():
    assert wrong_arrows() == []
    assert len(arrows()) > 30  # that there is something to look at


def test_every_room_has_its_layer():
    rooms = {
        SAME_ROOM.get(path.stem, path.stem)
        for path in PACKAGE.iterdir()
        if path.suffix == '.py' or (path / '__init__.py').exists()
    }
    listed = [room for rooms in LAYERS for room in rooms]
    assert len(listed) == len(set(listed))
    assert rooms - {'__init__'} <= set(listed), 'give a new room its row in LAYERS'


def test_no_circle_of_rooms_whatever_the_order_says():
    """The graph itself can be taken down from its ends; the written order isn't asked."""
    below: dict[str, set[str]] = {}
    for source, target in arrows():
        below.setdefault(source, set()).add(target)
        below.setdefault(target, set())
    while ends := [room for room, targets in below.items() if not targets & below.keys()]:
        for room in ends:
            del below[room]
    assert not below, f'these rooms import each other: {sorted(below)}'


@pytest.mark.parametrize(
    'room, text, expected',
    [
        ('store', 'from freeatm_mm.prompts import Noun', 0),
        ('store', 'def f():\n    from freeatm_mm.datasets import FreeATMDataset', 1),
        ('ops', 'import freeatm_mm.models.necks', 1),
        ('models', 'from freeatm_mm import datasets, ops', 1),
        ('store', 'from freeatm_mm.store import tar', 0),
    ],
)
def test_the_reading_of_arrows(tmp_path, room, text, expected):
    (tmp_path / PACKAGE.name / room).mkdir(parents=True)
    (tmp_path / PACKAGE.name / room / 'module.py').write_text(text, encoding='utf-8')
    assert len(wrong_arrows(tmp_path)) == expected


@pytest.mark.parametrize('layer', FORBIDDEN)
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
        (FRAMEWORKS, ('ops', 'pytorch')),
    ],
    ids=['data', 'training', 'ops'],
)
def test_a_layer_works_where_the_other_side_is_not_installed(missing, layers):
    result = run_python(IMPORT_ALL_WITHOUT, ','.join(missing), ','.join(layers))
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) >= len(layers)


def test_ops_and_numpy_and_torch_are_all_that_ops_imports():
    allowed = (*sys.stdlib_module_names, 'numpy', 'torch', 'freeatm_mm.ops', 'freeatm_mm.paper')
    found = {name for _, _, name in imports_in(PACKAGE / 'ops')}
    assert [name for name in found if not any(is_within(name, one) for one in allowed)] == []


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
