"""The old paths of tools: each runs the tool at its new place and says where that is."""

import runpy
import subprocess
import sys

import pytest
from helpers.tools import ROOT

MOVED = {
    'convert_checkpoint': 'convert/checkpoint',
    'detect_objects': 'convert/detect_objects',
    'edit_store': 'store/edit',
    'export_store': 'store/export',
    'judge_generator': 'miniature/evaluate_generator',
    'judge_masks': 'miniature/evaluate_masks',
    'lavis_miniature': 'miniature/blip',
    'make_tiny_datasets': 'convert/tiny_datasets',
    'miniature': 'miniature/run',
    'miniature_tables': 'miniature/tables',
    'report': 'results/report',
    'tables': 'results/tables',
    'verify_store': 'store/verify',
}


@pytest.mark.parametrize('old', MOVED)
def test_an_old_path_answers(monkeypatch, capsys, old):
    path = ROOT / 'tools' / f'{old}.py'
    monkeypatch.setattr(sys, 'argv', [str(path), '--help'])
    monkeypatch.setattr(sys, 'path', [str(path.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name='__main__')
    printed = capsys.readouterr()
    assert not ended.value.code and printed.out.startswith('usage: ')
    assert printed.err == f'{old}.py: this tool is now tools/{MOVED[old]}.py\n'


def test_arguments_and_exit_code_pass_through(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/verify_store.py', tmp_path / 'none'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and 'none: there is no such folder' in done.stdout
