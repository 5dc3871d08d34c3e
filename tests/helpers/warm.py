"""Programs in processes that are forked from one in which libraries are imported already.

Importing PyTorch and OpenMMLab takes seconds. What a program does, prints and ends with stays its
own, and nothing of this project is imported before it asks for it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The programs begin with these, or with what imports them.
LIBRARIES = (
    'torch',
    'torchvision',
    'transformers.models.bert.modeling_bert',
    'scipy.optimize',
    'matplotlib.pyplot',
    'pycocotools.coco',
    'mmengine.runner',
    'mmcv.ops',
)


def run_warm(
    *words: object, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """What `subprocess.run([sys.executable, *words])` does, without importing libraries anew.

    Args:
        words: A script and its arguments, or ``-c`` and a program.
        cwd: Folder that it runs in.
        environment: Of the program; the default is this process's.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [f'{folder}/{number}' for number in (1, 2)]
        job = {
            'words': [str(word) for word in words],
            'cwd': str(cwd),
            'environment': dict(os.environ if environment is None else environment),
            'files': files,
        }
        server = _server()
        server.stdin.write(json.dumps(job) + '\n')
        server.stdin.flush()
        code = int(server.stdout.readline())
        texts = [Path(file).read_text(errors='replace') for file in files]
    return subprocess.CompletedProcess(words, code, *texts)


@functools.cache
def _server() -> subprocess.Popen:
    """The process that has the libraries; it ends when this one does."""
    return subprocess.Popen(
        [sys.executable, '-W', 'ignore', __file__],
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _serve() -> None:
    del sys.path[0]  # this folder
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    answers = os.fdopen(os.dup(1), 'w')
    while line := sys.stdin.readline():
        if not (child := os.fork()):
            answers.close()
            _become(**json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _become(words: list[str], cwd: str, environment: dict[str, str], files: list[str]) -> None:
    for number, name in enumerate([os.devnull, *files]):
        handle = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if words[0] == '-c':
        sys.argv = ['-c', *words[2:]]
        sys.path.insert(0, '')
        exec(compile(words[1], '<string>', 'exec'), {'__name__': '__main__'})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name='__main__')


if __name__ == '__main__':
    _serve()
