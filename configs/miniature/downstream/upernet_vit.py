"""`ade20k_upernet_vit-b_160k.py` at the miniature's scale: mIoU on real scenes.

    python tools/train.py configs/miniature/downstream/upernet_vit.py \
        --data-root WORLD --cfg-options init=CHECKPOINT          # or init=random
"""

_base_ = ['../../downstream/mmseg/ade20k_upernet_vit-b_160k.py', '../_base_/segmentation.py']

custom_hooks = [
    dict(_base_.world_vit_weights, new=['gamma_', 'relative_position']),
    *_base_.world_checks,
]
num_classes = len(_base_.world_classes)
data_root = _base_.world_root

# Patches of 6 pixels as in pretraining: a grid of 10 x 10. Colour is left as it is.
side = (60, 60)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=side),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=side),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = _base_.world_train
train_dataloader['dataset']['pipeline'] = train_pipeline
val_dataloader = _base_.world_test
val_dataloader['dataset']['pipeline'] = test_pipeline
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(size=side),
    backbone=dict(
        img_size=side,
        patch_size=6,
        embed_dims=128,
        num_layers=6,
        num_heads=4,
        drop_path_rate=0.0,
        out_indices=[1, 2, 4, 5],
    ),
    # To strides 3, 6, 12 and 24: finer ones would be finer than the scenes' pixels.
    neck=dict(embed_dim=128, rescales=[2, 1, 0.5, 0.25]),
    decode_head=dict(
        in_channels=[128, 128, 128, 128],
        channels=48,
        num_classes=num_classes,
        pool_scales=(1, 2, 3),
    ),
    auxiliary_head=dict(in_channels=128, channels=32, num_classes=num_classes),
    test_cfg=dict(_delete_=True, mode='whole'),
)

optim_wrapper = dict(
    optimizer=dict(lr=2e-3), paramwise_cfg=dict(num_layers=6, layer_decay_rate=0.8)
)
max_iters = 1200
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=100, end=max_iters, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=400))
randomness = dict(seed=0)
