"""`imagenet_finetune_vit-b_100e.py` at the miniature's scale: top-1 on the objects of real scenes.

    python tools/train.py configs/miniature/downstream/finetune_vit.py \
        --data-root WORLD --cfg-options init=CHECKPOINT          # or init=random
"""

_base_ = ['../../downstream/mmpretrain/imagenet_finetune_vit-b_100e.py', '../_base_/objects.py']

custom_hooks = [dict(_base_.world_vit_weights, new=[r'^ln2\.']), *_base_.world_checks]
# Colour tells this world's nouns apart, so it is left as it is.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=48, crop_ratio_range=(0.5, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(48, 48)),
    dict(type='PackInputs'),
]
train_dataloader = _base_.world_train
train_dataloader['dataset']['pipeline'] = train_pipeline
val_dataloader = _base_.world_test
val_dataloader['dataset']['pipeline'] = test_pipeline
test_dataloader = val_dataloader

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_base_.world_vit),
        img_size=48,
        patch_size=6,
        drop_path_rate=0.0,
    ),
    head=dict(num_classes=len(_base_.world_nouns), in_channels=128),
    train_cfg=None,
)

epochs = 5
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay_rate=0.8))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=1,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=epochs - 1,
        by_epoch=True,
        begin=1,
        end=epochs,
        eta_min=1e-6,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=2))
