"""Tiny data sets: labels lie on what they name. (Each layout is read in tests/configs.)"""

from __future__ import annotations

import numpy as np
import pytest
from helpers.tools import load_tool
from PIL import Image

from freeatm_mm.downstream.tiny_datasets import LAYOUTS, make_tiny_dataset


def test_label_maps_lie_on_the_rectangles(tmp_path):
    """Rectangles are of one colour, the rest is noise; ADE20K counts its classes from 1."""
    folder = make_tiny_dataset('cityscapes', tmp_path, images=3)
    images = sorted(folder.glob('leftImg8bit/val/*/*.png'))
    assert len(images) == 3
    for path in images:
        labels = np.asarray(
            Image.open(
                str(path)
                .replace('leftImg8bit', 'gtFine', 1)
                .replace('_leftImg8bit.png', '_gtFine_labelTrainIds.png')
            )
        )
        pixels = np.asarray(Image.open(path))
        assert set(np.unique(labels)) - {255} <= set(range(19)) and (labels != 255).any()
        inside = (pixels[1:, 1:] == pixels[:-1, :-1]).all(2)[labels[1:, 1:] != 255].mean()
        outside = (pixels[1:, 1:] == pixels[:-1, :-1]).all(2)[labels[1:, 1:] == 255].mean()
        assert inside > 0.8 and outside < 0.05
    ade = make_tiny_dataset('ade20k', tmp_path / 'ade', images=2)
    labels = np.stack(
        [np.asarray(Image.open(path)) for path in ade.glob('annotations/training/*.png')]
    )
    assert labels.min() == 0 and 1 <= labels.max() <= 150


def test_the_tool_and_an_unknown_layout(tmp_path, capsys):
    tool = load_tool('convert/tiny_datasets')
    tool.main([str(tmp_path), '--layouts', 'imagenet', '--images', '4', '--side', '32'])
    assert capsys.readouterr().out.strip() == str(tmp_path / 'imagenet')
    assert len((tmp_path / 'imagenet/meta/val.txt').read_text().splitlines()) == 4
    for line in (tmp_path / 'imagenet/meta/train.txt').read_text().splitlines():
        assert (tmp_path / 'imagenet/train' / line.split()[0]).is_file()
    with pytest.raises(ValueError, match=f'use one of {", ".join(LAYOUTS)}'):
        make_tiny_dataset('lvis', tmp_path)
