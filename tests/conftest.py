"""Shared by all tests. Its place makes pytest put this folder on the import path, so that a
test in any subfolder can ``import tiny_pipelines``."""

from hypothesis import settings

# The same examples in every run, so that a change breaks a test and chance doesn't; to look for
# more: ./run tests --hypothesis-profile search
settings.register_profile('repeatable', derandomize=True, deadline=None)
settings.register_profile('search', max_examples=1000, deadline=None)
settings.load_profile('repeatable')
