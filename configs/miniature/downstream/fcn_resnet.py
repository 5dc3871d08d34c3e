"""`cityscapes_fcn_r50_160e.py` at the miniature's scale: mIoU on real scenes.

    python tools/train.py configs/miniature/downstream/fcn_resnet.py \
        --data-root WORLD --cfg-options init=CHECKPOINT          # or init=random
"""

_base_ = ['../../downstream/mmseg/cityscapes_fcn_r50_160e.py', '../_base_/segmentation.py']

custom_hooks = [_base_.world_resnet_weights, *_base_.world_checks]
num_classes = len(_base_.world_classes)
data_root = _base_.world_root

# Colour tells this world's nouns apart, so it is left as it is.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = _base_.world_train
train_dataloader['dataset']['pipeline'] = train_pipeline
val_dataloader = _base_.world_test
val_dataloader['dataset']['pipeline'] = test_pipeline
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        **_base_.world_resnet,
        out_indices=(0, 1, 2),
    ),
    decode_head=dict(in_channels=96, in_index=2, channels=64, num_classes=num_classes),
    auxiliary_head=dict(in_channels=48, in_index=1, channels=32, num_classes=num_classes),
)

max_iters = 500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=max_iters, by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=2))
randomness = dict(seed=0)
