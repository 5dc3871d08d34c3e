"""What ``./run setup`` brings works together: mmcv's compiled ops, mmdet, mmseg, LAVIS."""

from __future__ import annotations

import importlib.util

import pytest
from helpers.warm import run_warm

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ('mmdet', 'mmseg', 'lavis')),
    reason='looks at what ./run setup installs, and this is another Python',
)


def test_compiled_ops_compute():
    import torch
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    _, kept = nms(boxes, torch.tensor([0.5, 0.9, 0.1]), iou_threshold=0.5)
    assert kept.tolist() == [1, 2]


# In processes of their own: they register scopes and change global settings.
@pytest.mark.parametrize(
    'program',
    [
        pytest.param(
            """
import torch
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
import mmdet.models
config = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
config.model.backbone.init_cfg = None
init_default_scope('mmdet')
size = (64, 96)
sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size,
                                     batch_input_shape=size, scale_factor=(1.0, 1.0)))
with torch.no_grad():
    result, = MODELS.build(config.model).eval()(torch.rand(1, 3, *size), [sample], mode='predict')
assert result.pred_instances.masks.shape[1:] == size
""",
            id='mmdet',
        ),
        pytest.param(
            """
import torch
from mmseg.registry import MODELS
import mmseg.models
head = MODELS.build(dict(type='FCNHead', in_channels=8, channels=4, in_index=0, num_classes=3,
                         norm_cfg=dict(type='BN')))
assert head([torch.rand(2, 8, 5, 7)]).shape == (2, 3, 5, 7)
""",
            id='mmseg',
        ),
        pytest.param(
            """
from lavis.common.registry import registry
import lavis
assert registry.get_model_class('blip_pretrain') is not None
""",
            id='lavis',
        ),
    ],
)
def test_works(program):
    result = run_warm('-c', program)
    assert result.returncode == 0, result.stderr
