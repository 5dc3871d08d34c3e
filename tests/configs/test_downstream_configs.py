"""Every downstream config of the paper's scale: two real steps and one evaluation on tiny data."""
from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip('mmcv.ops')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from tiny_downstream import (  # noqa: E402
    CONFIGS,
    PAPER_SCALE,
    pretrained_state,
    run_downstream,
    small_config,
)

from freeatm_mm.evaluation.tiny_datasets import make_tiny_dataset  # noqa: E402


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """A checkpoint of MoCo's and one of MAE's, as mmengine writes them."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for kind in ('resnet', 'vit'):
        torch.save({'state_dict': pretrained_state(kind)}, folder / f'{kind}.pth')
    return folder


def test_every_config_is_tried():
    assert set(PAPER_SCALE) == {path.relative_to(CONFIGS / 'downstream').as_posix()
                                for path in (CONFIGS / 'downstream').glob('*/*.py')}


@pytest.mark.parametrize('name', PAPER_SCALE)
def test_two_steps_and_an_evaluation(name, checkpoints, tmp_path):
    layout, kind, metrics = PAPER_SCALE[name]
    data = make_tiny_dataset(layout, tmp_path / 'data')
    init = checkpoints / f'{kind}.pth'
    cfg = small_config(f'downstream/{name}', data, tmp_path / 'run', str(init))
    part, tensor = (('roi_head.shared_head', 'layer4.0.conv1.weight') if 'c4' in name else
                    ('backbone', 'layers.0.attn.qkv.weight') if kind == 'vit' else
                    ('backbone', 'layer4.0.conv1.weight'))
    runner, losses, found = run_downstream(cfg, f'downstream-{name.replace("/", "-")}')
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    for metric in metrics:
        assert 0 <= found[metric] <= 100
    # What was loaded, by the hook's own count, and by looking.
    # 53 convolutions and norms of 4; 12 layers of 12 and 4 more, one less without class token.
    total = 265 if kind == 'resnet' else 147 if 'rcnn_vit' in name else 148
    report = runner.message_hub.get_info('initial_weights')
    assert report.startswith(f'{total} of the {total} tensors found their weights'), report
    weights = torch.load(init)['state_dict'][f'backbone.{tensor}']
    ours = runner.model.state_dict()[f'{part}.{tensor}']
    assert (ours - weights).abs().max() < 0.2 * weights.abs().max()  # two steps away at most
    assert torch.equal(ours, weights) == ('linear' in name)
