"""Any entry of a yaml with any value: it is taken, or refused by one sentence of ours."""

from __future__ import annotations

import random

import pytest

pytest.importorskip('lavis')

from helpers.tiny_blip import PRETRAIN, make_parts, pretrain_options  # noqa: E402

from freeatm_mm.errors import InputError  # noqa: E402
from freeatm_mm.lavis_ext import launch  # noqa: E402
from freeatm_mm.store import StoreError  # noqa: E402

VALUES = (
    'null',
    '-1',
    '0',
    '1',
    '3',
    '1.5',
    'nan',
    'inf',
    'abc',
    '""',
    '[]',
    '{}',
    '[1,2]',
    '{a: 1}',
    'true',
    '1e30',
    '99999999999999999999',
    '" "',
    '${nope}',
    '"a/b"',
    '[a,[b]]',
    '"\\0"',
    '2147483648',
)


def names(config, start=''):
    for name, value in config.items():
        yield f'{start}{name}'
        if isinstance(value, dict):
            yield from names(value, f'{start}{name}.')


def test_any_value_of_any_entry(tmp_path):
    base = pretrain_options(*make_parts(tmp_path / 'parts'), tmp_path / 'out')
    keys = [
        key
        for key in names(launch.load_config(PRETRAIN, base).to_dict())
        if key != 'run.output_dir'
    ]
    draw, refused = random.Random(0), 0
    for _ in range(60):
        option = f'{draw.choice(keys)}={draw.choice(VALUES)}'
        try:
            launch.build_runner(launch.load_config(PRETRAIN, [*base, option]))
        except (InputError, FileNotFoundError, StoreError) as error:
            assert '\n' not in str(error), option
            refused += 1
        except Exception as error:
            pytest.fail(f'{option}: {error!r}')
    assert refused > 30
