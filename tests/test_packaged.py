"""The built package, used from an empty folder: its command, its configs, mim's files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from helpers.tools import load_tool

ROOT = Path(__file__).resolve().parents[1]


FILES = [
    path
    for path in (ROOT / 'freeatm_mm').rglob('*')
    if '__pycache__' not in path.parts and '.mim' not in path.parts
]


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """An environment with the built wheel in it, and this one's packages behind; its python."""
    folder = tmp_path_factory.mktemp('packaged')
    source = folder / 'source'
    source.mkdir()
    for name in ('freeatm_mm', 'configs', 'tools'):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__')
        )
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, source)
    build = 'from setuptools.build_meta import build_wheel; build_wheel("..")'
    subprocess.run([sys.executable, '-c', build], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob('*.whl')
    venv = folder / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', venv], check=True)
    (packages,) = venv.glob('lib/python*/site-packages')
    zipfile.ZipFile(wheel).extractall(packages)
    # A plain path: .pth files of the other environment, that of a checkout among them, do not run.
    (packages / 'others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return venv / 'bin/python'


def run(python: Path, folder: Path, *words: object) -> subprocess.CompletedProcess:
    variables = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    return subprocess.run(
        [str(python), *map(str, words)],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_the_package_is_the_built_one_and_has_its_command(environment, tmp_path):
    done = run(environment, tmp_path, '-c', 'import freeatm_mm; print(freeatm_mm.__file__)')
    assert done.stdout.startswith(str(environment.parents[1]))
    for words in (['-m', 'freeatm_mm'], ['-c', COMMAND]):
        done = run(environment, tmp_path, *words, 'configs', 'mocov2_freeatm.py')
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith('freeatm_mm/.mim/configs/mocov2_freeatm.py\n')
    done = run(environment, tmp_path, '-m', 'freeatm_mm', 'verify', 'none')
    assert done.returncode == 1 and 'no such folder' in done.stdout


COMMAND = """
from importlib.metadata import distribution
(entry,) = distribution('freeatm_mm').entry_points.select(group='console_scripts', name='freeatm')
raise SystemExit(entry.load()())
"""
"""What an installer writes into bin/freeatm."""


def test_all_files_that_a_user_needs_are_in_it(environment):
    (package,) = environment.parents[1].glob('lib/*/site-packages/freeatm_mm')
    for folder in ('configs', 'tools'):
        inside = package / '.mim' / folder
        assert not inside.is_symlink() and inside.is_dir()
    configs = {path.relative_to(ROOT) for path in (ROOT / 'configs').rglob('*') if path.is_file()}
    missing = {path for path in configs if not (package / '.mim' / path).is_file()}
    assert not {path for path in missing if '__pycache__' not in path.parts}
    assert (package / '.mim/model-index.yml').is_file() and (package / 'py.typed').is_file()
    assert not (package / '.mim/tools/setup').exists()
    # What lies beside the modules, whatever it is and in whatever folder.
    beside = {path.relative_to(ROOT / 'freeatm_mm') for path in FILES if path.is_file()}
    assert len(beside) > 150 and not {path for path in beside if not (package / path).is_file()}


def test_configs_are_inherited_from_another_project(environment, tmp_path):
    pytest.importorskip('mmpretrain')
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'freeatm_mm::mocov2_freeatm.py'\ntrain_cfg = dict(max_epochs=7)\n"
    )
    program = """
import freeatm_mm.openmmlab
from mmengine.config import Config
whole = Config.fromfile('freeatm_mm::mocov2_freeatm.py')
assert whole.model.type == 'FreeATMMoCo' and whole.model.neck.type == 'FreeATMMoCoV2Neck'
mine = Config.fromfile('mine.py')
assert mine.train_cfg.max_epochs == 7 and mine.model == whole.model
from mmengine.config.utils import _get_cfg_metainfo
from mmengine.utils import get_installed_path
found = _get_cfg_metainfo(get_installed_path('freeatm_mm'), 'mocov2_freeatm.py')
assert found['Name'] == 'mocov2_freeatm'
"""
    done = run(environment, tmp_path, '-c', program)
    assert done.returncode == 0, done.stderr


def test_a_packaged_config_trains_by_mims_tool(environment, tmp_path):
    pytest.importorskip('mmpretrain')
    from helpers.tiny_stores import make_store

    store = make_store(tmp_path / 'store', count=8)
    (tool,) = environment.parents[1].glob('lib/*/site-packages/freeatm_mm/.mim/tools/train.py')
    done = run(
        environment,
        tmp_path,
        *(tool, 'freeatm_mm::miniature/mocov2_freeatm.py', '--data-root', store),
        *('--cfg-options', 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=4'),
        *('train_dataloader.num_workers=0',),
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob('work_dirs/miniature/mocov2_freeatm/epoch_1.pth'))


@pytest.mark.journey
def test_a_new_users_whole_way(environment, tmp_path, capsys):
    """Record, generate, view, push, pretrain in each framework from there, stream, pull."""
    journey = load_tool('setup/journey')
    assert journey.main([str(tmp_path / 'empty'), '--python', str(environment)]) == 0
    said = capsys.readouterr().out
    assert f'{len(journey.STEPS) - said.count("left out")} steps in ' in said
    assert 'first mask after ' in said
