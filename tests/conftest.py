"""Shared by all tests. Its place makes pytest put this folder on the import path, so that a
test in any subfolder can import from `helpers`."""

import functools
import importlib.util
import os
import stat
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
#: Folders whose tests use OpenMMLab's libraries; passed over where these aren't installed.
OPENMMLAB = ('configs', 'datasets', 'engine', 'models', 'tools')
collect_ignore = [] if importlib.util.find_spec('mmpretrain') else list(OPENMMLAB)


def uses_openmmlab(path):
    """Whether a test file, or a folder of such, is in one of those folders."""
    return path.is_relative_to(TESTS) and path.relative_to(TESTS).parts[:1] in zip(OPENMMLAB)


@functools.cache
def prepare_openmmlab():
    """Set up what must be so before a test file imports mmpretrain's models."""
    import torch

    from freeatm_mm import compat

    compat.skip_multimodal_models()  # not needed here, and seconds to import
    torch.set_num_threads(1)  # the nets are tiny; threads would only get in each other's way


def pytest_collectstart(collector):
    if uses_openmmlab(collector.path):
        prepare_openmmlab()


@pytest.fixture(autouse=True)
def mmpretrain_scope(request):
    """Look names up where configs look them up."""
    if uses_openmmlab(request.path):
        from mmengine.registry import init_default_scope

        init_default_scope('mmpretrain')


@pytest.fixture
def single_threaded_at_root(monkeypatch):
    """Where the tools that run others are started, with what they would set in the environment."""
    monkeypatch.chdir(TESTS.parent)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')


def pytest_configure(config):
    """Let pytest-xdist notice that a worker died.

    It does by the end of the worker's pipes, which every process that the worker forked holds open.
    """
    if not hasattr(config, 'workerinput'):
        return
    pipes = []
    for name in os.listdir('/proc/self/fd'):
        try:
            if int(name) > 2 and stat.S_ISFIFO(os.fstat(int(name)).st_mode):
                pipes.append(int(name))
        except OSError:  # the listing's own
            pass
    null = os.open(os.devnull, os.O_RDWR)
    os.register_at_fork(after_in_child=lambda: [os.dup2(null, pipe) for pipe in pipes])


# The same examples in every run, so that a change breaks a test and chance doesn't; to look for
# more: ./run tests --hypothesis-profile search
settings.register_profile('repeatable', derandomize=True, deadline=None)
settings.register_profile('search', max_examples=1000, deadline=None)
settings.load_profile('repeatable')
