"""The command `freeatm`: what it lists, what it says of bad input, and that it is quick."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.tools import ROOT, command_behind, exit_code

from freeatm_mm import __version__, cli


def test_help_lists_every_command(capsys):
    assert cli.main([]) == cli.main(['--help']) == 0
    shown = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f'  {name} ' in shown and command.about in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert cli.main(['--version']) == 0 and capsys.readouterr().out == f'{__version__}\n'


def test_every_command_has_its_module_and_every_module_its_command():
    modules = {path.stem for path in (ROOT / 'freeatm_mm/cli').glob('[a-z]*.py')}
    assert modules == {command.module for command in cli.COMMANDS.values()}
    scripts = {command_behind(path) for path in (ROOT / 'tools').rglob('*.py')} - {None}
    assert scripts < {f'freeatm_mm.cli.{module}' for module in modules}


def test_what_it_says_of_unknown_commands(capsys):
    assert exit_code(cli, ['generat']) == 2
    assert "no command 'generat': did you mean generate?" in capsys.readouterr().err
    assert exit_code(cli, ['dance']) == 2
    assert "no command 'dance' (freeatm --help" in capsys.readouterr().err


def test_a_command_bears_its_own_name_and_ends_as_it_does(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['a program'])
    assert exit_code(cli, ['verify', tmp_path / 'none']) == 1
    assert 'no such folder' in capsys.readouterr().out
    assert exit_code(cli, ['edit', '--help']) == 0
    assert capsys.readouterr().out.startswith('usage: freeatm edit ')
    assert exit_code(cli, ['verify', tmp_path, '--stage', 'x']) == 2
    assert capsys.readouterr().err == 'freeatm verify: --stage goes with --pipeline\n'
    assert sys.argv == ['a program']


def test_what_is_not_installed_is_named_with_its_extra(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, 'freeatm_mm.cli.train', raising=False)
    monkeypatch.setitem(sys.modules, 'mmengine', None)
    monkeypatch.setitem(sys.modules, 'mmengine.config', None)
    assert exit_code(cli, ['train', 'config.py']) == 2
    # Which module of mmengine is asked for first depends on what is imported already.
    assert 'mmengine' in (said := capsys.readouterr().err)
    assert "pip install '.[core]' brings what train needs" in said


def test_tiny_datasets_say_what_brings_mmdet(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    monkeypatch.setitem(sys.modules, 'mmdet.datasets', None)
    assert exit_code(cli, ['tiny-datasets', tmp_path, '--layouts', 'coco']) == 2
    said = capsys.readouterr().err
    assert "pip install '.[downstream]' brings what tiny-datasets needs" in said


@pytest.mark.parametrize(
    'argv, expected',
    [
        (['freeatm tables', 'a b'], "freeatm tables 'a b'"),
        (['tools/results/tables.py', 'a'], 'python tools/results/tables.py a'),
    ],
)
def test_the_command_line_can_be_given_again(monkeypatch, argv, expected):
    monkeypatch.setattr(sys, 'argv', argv)
    assert cli.command_line() == expected


def test_help_imports_nothing_heavy():
    program = (
        'import sys\nfrom freeatm_mm.cli import main\nmain(["--help"])\n'
        'heavy = {"torch", "numpy", "mmengine", "PIL"} & set(sys.modules)\n'
        'assert not heavy, heavy'
    )
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'freeatm COMMAND' in done.stdout, done.stderr


def test_configs_are_listed_found_and_shown(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['configs']) == 0
    names = capsys.readouterr().out.split()
    assert {'mocov2_freeatm.py', 'baselines/mae.py', 'lavis/blip_pretrain_freeatm.yaml'} <= set(
        names
    )
    assert not any('_base_' in name for name in names)
    assert cli.main(['configs', 'mocov2_freeatm', '--show']) == 0
    assert capsys.readouterr().out == (ROOT / 'configs/mocov2_freeatm.py').read_text() + '\n'
    assert exit_code(cli, ['configs', 'mocov2_freatm.py']) == 2
    assert 'did you mean freeatm_mm::mocov2_freeatm.py?' in capsys.readouterr().err
    assert exit_code(cli, ['configs', '../setup.cfg']) == 2
    assert 'has no config ../setup.cfg' in capsys.readouterr().err
