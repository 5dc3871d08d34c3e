"""A run of the tests ends, and ends red, whatever a test does to its process."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('xdist')

ROOT = Path(__file__).resolve().parents[1]


def test_a_dead_and_a_hanging_worker_end_the_run_red(tmp_path):
    """One dies and leaves a child that sleeps on, one hangs; both tests are named."""
    child = tmp_path / 'child'
    shutil.copy(ROOT / 'tests' / 'conftest.py', tmp_path)
    (tmp_path / 'test_dead.py').write_text(
        'import multiprocessing, os, time\n'
        'def test_before(): pass\n'
        'def test_dead():\n'
        "    fork = multiprocessing.get_context('fork')\n"
        '    child = fork.Process(target=time.sleep, args=(3600, ))\n'
        '    child.start()\n'
        f'    open({str(child)!r}, "w").write(str(child.pid))\n'
        '    os.abort()\n'
    )
    (tmp_path / 'test_hangs.py').write_text('import time\ndef test_hangs(): time.sleep(3600)\n')
    options = re.search(r'pytest -n "[^"]*" (.*?)"\$\{@:2\}"', (ROOT / 'run').read_text(), re.S)
    output = tmp_path / 'output'  # no pipe: the child has it open, too
    with output.open('w') as file:
        ended = subprocess.run(
            [
                sys.executable,
                '-m',
                'pytest',
                '-n',
                '2',
                *options[1].replace('\\', '').split(),
                '-p',
                'no:cacheprovider',
                '-c',
                str(ROOT / 'pyproject.toml'),
                '--rootdir',
                str(tmp_path),
                '-o',
                'faulthandler_timeout=5',
                str(tmp_path),
            ],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
        )
    os.kill(int(child.read_text()), signal.SIGKILL)
    said = output.read_text()
    assert ended.returncode == 1, said
    assert "crashed while running 'test_dead.py::test_dead'" in said
    assert "crashed while running 'test_hangs.py::test_hangs'" in said


def test_every_process_collects_the_same_tests(request):
    """Or the workers of pytest-xdist end at once: no name holds a time, an address or a draw."""
    command = [sys.executable, '-m', 'pytest', '--collect-only', '-q', '-p', 'no:cacheprovider']
    listed = subprocess.run(
        [*command, '-p', 'no:xdist', 'tests'],
        cwd=ROOT,
        env=os.environ | {'PYTHONHASHSEED': '1'},  # here it was drawn, or is another
        capture_output=True,
        text=True,
    ).stdout
    names = [line for line in listed.splitlines() if '::' in line]
    assert len(set(names)) == len(names)
    # What this process collected a while ago: all, where the whole suite is run.
    assert {item.nodeid for item in request.session.items} <= set(names)
