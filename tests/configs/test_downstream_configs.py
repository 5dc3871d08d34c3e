"""Every downstream config of the paper's scale: two real steps and one evaluation on tiny data."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip('mmcv.ops')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from helpers.tiny_downstream import (  # noqa: E402
    CONFIGS,
    PAPER_SCALE,
    pretrained_state,
    run_downstream,
    small_config,
)

from freeatm_mm.configs import open_config  # noqa: E402
from freeatm_mm.downstream.runs import BENCHMARKS  # noqa: E402
from freeatm_mm.downstream.tiny_datasets import make_tiny_dataset  # noqa: E402

#: The parts that MoCo's protocol normalises over all processes.
NORMALISED = {
    'voc': ('backbone', 'roi_head.shared_head'),
    'coco': ('backbone', 'neck', 'roi_head.bbox_head', 'roi_head.mask_head'),
    'cityscapes': ('backbone', 'decode_head', 'auxiliary_head'),
}


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """A checkpoint of MoCo's and one of MAE's, as mmengine writes them."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for kind in ('resnet', 'vit'):
        torch.save({'state_dict': pretrained_state(kind)}, folder / f'{kind}.pth')
    return folder


def test_every_config_is_tried():
    assert set(PAPER_SCALE) == {
        path.relative_to(CONFIGS / 'downstream').as_posix()
        for path in (CONFIGS / 'downstream').glob('*/*.py')
    }


@pytest.mark.parametrize('name', PAPER_SCALE)
def test_two_steps_and_an_evaluation(name, checkpoints, tmp_path):
    layout, kind = PAPER_SCALE[name]
    (benchmark,) = (known for known in BENCHMARKS.values() if known.config == f'downstream/{name}')
    data = make_tiny_dataset(layout, tmp_path / 'data')
    init = checkpoints / f'{kind}.pth'
    cfg = small_config(f'downstream/{name}', data, tmp_path / 'run', str(init))
    part, tensor = (
        ('roi_head.shared_head', 'layer4.0.conv1.weight')
        if 'c4' in name
        else ('backbone', 'layers.0.attn.qkv.weight')
        if kind == 'vit'
        else ('backbone', 'layer4.0.conv1.weight')
    )
    runner, losses, found = run_downstream(cfg, f'downstream-{name.replace("/", "-")}')
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    for metric in benchmark.metrics:
        assert 0 <= found[metric] <= 100
    # Images come as in pretraining: RGB, of the same mean and deviation.
    preprocessor = runner.model.data_preprocessor
    assert preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert preprocessor.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
    assert getattr(preprocessor, '_channel_conversion', None) or preprocessor.to_rgb
    # What was loaded, by the hook's own count, and by looking.
    # 53 convolutions and norms of 4; 12 layers of 12 and 4 more, one less without class token.
    total = 265 if kind == 'resnet' else 147 if 'rcnn_vit' in name else 148
    report = runner.message_hub.get_info('initial_weights')
    assert report.startswith(f'{total} of the {total} tensors found their weights'), report
    weights = torch.load(init)['state_dict'][f'backbone.{tensor}']
    ours = runner.model.state_dict()[f'{part}.{tensor}']
    assert (ours - weights).abs().max() < 0.2 * weights.abs().max()  # two steps away at most
    assert torch.equal(ours, weights) == ('linear' in name)


def entries(value, path=''):
    """Every key of a config, dotted, and its value."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield f'{path}.{key}', entry
            yield from entries(entry, f'{path}.{key}')
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from entries(entry, f'{path}.{number}')


@pytest.mark.parametrize('name', PAPER_SCALE)
def test_header_gives_the_command_and_nothing_else_loads_weights(name):
    text = (CONFIGS / 'downstream' / name).read_text()
    header = text.split('"""')[1]
    assert 'tools/train.py' in header and f'configs/downstream/{name}' in header
    assert 'init=CHECKPOINT' in header
    cfg = open_config(CONFIGS / 'downstream' / name)
    assert cfg.init is None
    found = dict(entries(cfg.model.to_dict()))
    assert not any(entry == 'Pretrained' for entry in found.values())
    assert not any(key.endswith('.pretrained') and entry for key, entry in found.items())
    if cfg.default_scope != 'mmpretrain' or 'finetune' in name:
        assert found.get('.backbone.frozen_stages', -1) == -1
    norms = {
        key.removesuffix('.norm_cfg.type')[1:]: entry
        for key, entry in found.items()
        if key.endswith('norm_cfg.type')
    }
    if 'r50' in name and 'linear' not in name:
        assert norms == dict.fromkeys(NORMALISED[name.split('/')[-1].split('_')[0]], 'SyncBN')
        assert not any(entry for key, entry in found.items() if key.endswith('norm_eval'))


def test_schedules_are_the_papers():
    def load(name):
        return open_config(CONFIGS / 'downstream' / name)

    voc = load('mmdet/voc_faster-rcnn_r50-c4_24k.py')
    assert voc.train_cfg.max_iters == 24000
    assert voc.param_scheduler[1].milestones == [18000, 22000] and voc.param_scheduler[0].end == 100
    assert voc.optim_wrapper.optimizer.lr == 0.02
    assert [part.ann_file for part in voc.train_dataloader.dataset.datasets] == [
        f'VOC{year}/ImageSets/Main/trainval.txt' for year in (2007, 2012)
    ]
    assert voc.test_dataloader.dataset.ann_file == 'VOC2007/ImageSets/Main/test.txt'
    assert load('mmdet/coco_mask-rcnn_r50-fpn_1x.py').train_cfg.max_epochs == 12
    vit = load('mmdet/coco_mask-rcnn_vit-b-fpn_100e.py')
    assert vit.train_cfg.max_epochs * vit.train_dataloader.dataset.times == 100
    # Judged on the squares that it is trained on: positions aren't stretched.
    assert vit.model.backbone.img_size == vit.model.data_preprocessor.pad_size_divisor == 1024
    for loader in (vit.val_dataloader, vit.test_dataloader):
        scales = [step.scale for step in loader.dataset.pipeline if step.type == 'Resize']
        assert scales == [(1024, 1024)]
    city = load('mmseg/cityscapes_fcn_r50_160e.py')
    assert city.train_cfg.max_iters == city.param_scheduler[0].end == 59500
    assert city.model.backbone.type == 'ResNet'
    ade = load('mmseg/ade20k_upernet_vit-b_160k.py')
    assert ade.train_cfg.max_iters == 160000 and ade.get('fp16') is None
    linear = load('mmpretrain/imagenet_linear_r50_100e.py')
    assert linear.train_cfg.max_epochs == 100 and linear.model.backbone.frozen_stages == 4
    assert linear.optim_wrapper.optimizer.lr == 30
    assert load('mmpretrain/imagenet_finetune_vit-b_100e.py').train_cfg.max_epochs == 100
