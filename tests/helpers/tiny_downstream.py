"""Downstream configs shrunk to what a CPU does in seconds, and checkpoints to start them from."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from mmengine.runner import Runner
from PIL import Image
from pycocotools import mask as coco_mask

from freeatm_mm import compat
from freeatm_mm.configs import complete_config, open_config
from freeatm_mm.downstream.runs import BENCHMARKS
from freeatm_mm.miniature.sources import NOUNS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
#: Each paper-scale config: its data set's layout, and what pretrained it.
PAPER_SCALE = {
    part.config.removeprefix('downstream/'): (part.layout, part.suite)
    for part in BENCHMARKS.values()
    if part.layout
}


def pretrained_state(kind: str) -> dict[str, torch.Tensor]:
    """State of a pretraining's network: MoCo's, with both encoders, or MAE's.

    The weights are random, those of the key encoder zero: to load them would show.
    """
    from mmpretrain.models import ResNet
    from mmpretrain.models.selfsup import MAEViT

    if kind == 'resnet':
        backbone = ResNet(depth=50)
        extra = {
            f'encoder_k.module.0.{name}': torch.zeros_like(value)
            for name, value in backbone.state_dict().items()
            if name.startswith('conv1')
        }
        extra['queue'] = torch.zeros(4, 4)
    else:
        backbone, extra = MAEViT(arch='base'), {'neck.mask_token': torch.zeros(1, 1, 8)}
        backbone.init_weights()
    return {f'backbone.{name}': value for name, value in backbone.state_dict().items()} | extra


def shrink(value, side: int):
    """Make every size in a pipeline small, whatever transform it belongs to."""
    if isinstance(value, (list, tuple)):
        for entry in value:
            shrink(entry, side)
    elif isinstance(value, dict):
        kind = value.get('type')
        if kind == 'RandomChoiceResize':
            value['scales'] = [(side * 5 // 4, side)]
        elif kind in ('Resize', 'RandomResize'):
            value['scale'] = (side * 5 // 4, side)
        elif kind == 'RandomCrop':
            value['crop_size'] = (side, side)
        elif kind == 'BatchFixedSizePad':
            value['size'] = (side, side)
        elif kind in ('RandomResizedCrop', 'ResizeEdge'):
            value['scale'] = side
        elif kind == 'CenterCrop':
            value['crop_size'] = side
        for entry in value.values():
            if isinstance(entry, (dict, list, tuple)):
                shrink(entry, side)


def small_config(name: str, data_root: Path, work_dir: Path, init: str, side: int = 64):
    """A config whose model is what it is, but sees small images, two at a time, for two steps.

    Args:
        name: Its path below `configs/`.
        data_root: A tiny data set.
        work_dir: Where logs go.
        init: What to start from.
        side: Of the images.
    """
    cfg = open_config(CONFIGS / name, str(work_dir))
    loaders = {'train_dataloader': 2, 'val_dataloader': 1, 'test_dataloader': 1}
    options = {
        f'{loader}.{key}': value
        for loader, size in loaders.items()
        for key, value in (('batch_size', size), ('num_workers', 0))
    }
    complete_config(cfg, str(data_root), {**options, 'init': init})
    shrink([cfg[name] for name in loaders] + [cfg.model], side)
    cfg.log_level = 'WARNING'
    cfg.default_hooks.checkpoint = None  # nothing of it is needed here
    cfg.default_hooks.pop('visualization', None)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (side, side)
        if cfg.model.backbone.type == 'MAE':
            cfg.model.backbone.img_size = (side, side)  # its positions are of one size
            cfg.model.test_cfg.update(crop_size=(side, side), stride=(side, side))
    if cfg.default_scope == 'mmdet':
        preprocessor = cfg.model.data_preprocessor
        preprocessor.pad_size_divisor = min(preprocessor.get('pad_size_divisor', 1), side)
        cfg.model.train_cfg.rcnn.sampler.num = 16
        cfg.model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=50)
        cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=10)
        cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
        if cfg.train_dataloader.dataset.type == 'RepeatDataset':
            cfg.train_dataloader.dataset.times = 1
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    return cfg


def run_downstream(cfg, name: str):
    """Trains and evaluates; the runner, and what the hooks saw: losses and metrics.

    Args:
        cfg: The config.
        name: A new one for each run in a process (mmengine keeps logs by it).
    """
    compat.skip_multimodal_models()
    cfg.experiment_name = name
    with mock.patch('yapf.yapflib.yapf_api.FormatCode', lambda text, **kwargs: (text, True)):
        runner = Runner.from_cfg(cfg)
    losses, metrics = [], {}

    from mmengine.hooks import Hook

    class Watch(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            losses.append(float(outputs['loss']))

        def after_val_epoch(self, runner, metrics=None):
            found.update(metrics)

    found = metrics
    runner.register_hook(Watch())
    runner.train()
    return runner, losses, metrics


def make_tiny_world(folder: Path, images: int = 8, seed: int = 0) -> Path:
    """A world as make_world.py lays it out: coloured squares, each of the 21 nouns."""
    rng = np.random.default_rng(seed)
    for split in ('train', 'test'):
        for name in ('images', 'labels'):
            (folder / split / name).mkdir(parents=True)
        coco = {
            'categories': [{'id': i, 'name': noun} for i, noun in enumerate(NOUNS, 1)],
            'images': [],
            'annotations': [],
        }
        for number in range(images):
            pixels = rng.integers(90, 160, (64, 64, 3)).astype(np.uint8)
            labels = np.zeros((64, 64), np.uint8)
            category = number % len(NOUNS) + 1
            x, y = rng.integers(2, 38, 2)
            pixels[y : y + 22, x : x + 24] = rng.integers(0, 256, 3)
            labels[y : y + 22, x : x + 24] = category
            name = f'{number:06d}.png'
            Image.fromarray(pixels).save(folder / split / 'images' / name)
            Image.fromarray(labels).save(folder / split / 'labels' / name)
            coco['images'].append({'id': number, 'file_name': name, 'width': 64, 'height': 64})
            encoded = coco_mask.encode(np.asfortranarray(labels > 0, np.uint8))
            coco['annotations'].append(
                {
                    'id': number + 1,
                    'image_id': number,
                    'category_id': category,
                    'iscrowd': 0,
                    'bbox': [int(x), int(y), 24, 22],
                    'area': 24 * 22,
                    'segmentation': {'size': encoded['size'], 'counts': encoded['counts'].decode()},
                }
            )
        (folder / split / 'coco.json').write_text(json.dumps(coco))
        for noun in NOUNS:
            (folder / split / 'objects' / noun).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(
                folder / split / 'objects' / noun / '000000_0.png'
            )
    return folder
