"""The pyramid over a plain ViT: its sizes, and what it refuses."""

import pytest
import torch
from mmengine.registry import MODELS

from freeatm_mm.models import ViTPyramid


def test_sizes():
    maps = [torch.rand(2, 8, 6, 10) for _ in range(4)]
    pyramid = MODELS.build(dict(type='ViTPyramid', channels=8, groups=2))
    shapes = [tuple(x.shape) for x in pyramid(maps)]
    assert shapes == [(2, 8, 24, 40), (2, 8, 12, 20), (2, 8, 6, 10), (2, 8, 3, 5)]
    assert pyramid(maps)[2] is maps[2]
    three = ViTPyramid(8, scales=(2, 1, 0.5))
    assert [x.shape[2] for x in three(maps[:3])] == [12, 6, 3]


def test_refusals():
    with pytest.raises(ValueError, match='scale 3 is unknown'):
        ViTPyramid(8, scales=(3, 1))
    with pytest.raises(ValueError, match='rescales 4 maps, not 2'):
        ViTPyramid(32)([torch.rand(1, 32, 4, 4)] * 2)
