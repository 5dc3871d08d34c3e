"""`imagenet_linear_r50_100e.py` at the miniature's scale: top-1 on the objects of real scenes.

    python tools/train.py configs/miniature/downstream/linear_resnet.py \
        --data-root WORLD --cfg-options init=CHECKPOINT          # or init=random
"""

_base_ = ['../../downstream/mmpretrain/imagenet_linear_r50_100e.py', '../_base_/objects.py']

custom_hooks = [_base_.world_resnet_weights, *_base_.world_checks]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(40, 40)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(40, 40)),
    dict(type='PackInputs'),
]
train_dataloader = _base_.world_train
train_dataloader['dataset']['pipeline'] = train_pipeline
val_dataloader = _base_.world_test
val_dataloader['dataset']['pipeline'] = test_pipeline
test_dataloader = val_dataloader

model = dict(
    backbone=dict(
        **_base_.world_resnet,
        out_indices=(2,),
        frozen_stages=3,
    ),
    # Features differ in scale (their deviation is 0.01 of random weights, 0.4 of SimCLR, 0.6 of
    # MoCo v2), so that no one rate fits all. MAE's linear protocol normalizes them by a layer
    # without parameters; so does this one.
    neck=[dict(type='GlobalAveragePooling'), dict(type='ClsBatchNormNeck', input_features=96)],
    head=dict(num_classes=len(_base_.world_nouns), in_channels=96),
)

epochs = 16
optim_wrapper = dict(optimizer=dict(lr=0.3))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=epochs, by_epoch=True, begin=0, end=epochs)]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=2))
randomness = dict(seed=0)
