"""Shared by all tests. Its place makes pytest put this folder on the import path, so that a
test in any subfolder can ``import tiny_pipelines``."""

import os
import stat

from hypothesis import settings


def pytest_configure(config):
    """Lets pytest-xdist notice that a worker died.

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
