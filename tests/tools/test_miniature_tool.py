"""The main job's runner: each command once, a failure stops it, a second start goes on."""
from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def job_class(monkeypatch):
    spec = importlib.util.spec_from_file_location('miniature_tool', ROOT / 'tools/miniature.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Job


@pytest.fixture
def tool(tmp_path):
    """A tool that notes its arguments in a file and ends with the code it is given."""
    path = tmp_path / 'tool.py'
    path.write_text('import sys\n'
                    f'open({str(tmp_path / "calls")!r}, "a").write(" ".join(sys.argv[1:]) + ";")\n'
                    'sys.exit(int(sys.argv[1]))\n')
    return path


def test_a_command_runs_once(job_class, tool, tmp_path):
    for _ in range(2):
        job = job_class(tmp_path)
        job.run('Do it', tool, 0, 'a b')
        job.run('Do another', tool, 0, 'c')
        assert [step.what for step in job.steps] == ['Do it', 'Do another']
        assert job.steps[0].command == f"python {tool} 0 'a b'" and job.steps[0].seconds > 0
    assert (tmp_path / 'calls').read_text() == '0 a b;0 c;'


def test_a_failure_stops_and_is_tried_again(job_class, tool, tmp_path):
    job = job_class(tmp_path)
    job.run('Do it', tool, 0)
    for _ in range(2):
        with pytest.raises(SystemExit, match=r'"Fail" failed \(exit code 3\).*goes on from here'):
            job_class(tmp_path).run('Fail', tool, 3)
    assert (tmp_path / 'calls').read_text() == '0;3;3;'
    assert len(json.loads((tmp_path / 'steps.json').read_text())) == 1


def test_the_python_that_runs_it_runs_the_tools(job_class, tmp_path):
    path = tmp_path / 'tool.py'
    path.write_text(f'import sys\nassert sys.executable == {sys.executable!r}\n')
    job_class(tmp_path).run('Look', path)
