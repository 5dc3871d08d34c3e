"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

from freeatm_mm import ops

MODULES = [
    'freeatm_mm.ops',
    *(f'freeatm_mm.ops.{m.name}' for m in pkgutil.iter_modules(ops.__path__)),
]


@pytest.mark.parametrize('name', MODULES)
def test_the_example_of_a_module(name):
    torch.manual_seed(0)
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 2 and not failed


def test_everything_public_is_imported_from_the_package():
    for name in MODULES[1:]:
        module = importlib.import_module(name)
        for public in module.__all__:
            assert getattr(module, public).__doc__ or public.isupper()
    assert all(hasattr(ops, name) for name in ops.__all__)
