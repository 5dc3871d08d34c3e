"""`dino_freeatm.py` at the miniature's scale: 64x64 images, a small ResNet, two CPU cores.

python tools/train.py configs/miniature/dino_freeatm.py --data-root STORE
"""

_base_ = '../dino_freeatm.py'

epochs = 40

# Colour tells this world's nouns apart, so it is changed only mildly, and never taken away.
view_pipeline = [
    dict(type='FreeATMRandomResizedCrop', scale=40, crop_ratio_range=(0.2, 1.0)),
    dict(
        type='RandomApply',
        prob=0.8,
        transforms=[dict(type='ColorJitter', brightness=0.3, saturation=0.3, backend='cv2')],
    ),
    dict(type='FreeATMRandomFlip', prob=0.5),
]
train_pipeline = [
    dict(type='LoadFromStore'),
    dict(type='FreeATMMultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackFreeATMInputs', grid_size=5),
]
train_dataloader = dict(
    batch_size=256,
    num_workers=1,
    dataset=dict(data_root='data/miniature', pipeline=train_pipeline),
)

model = dict(
    base_momentum=0.01,
    freeze_prototypes=1 / epochs,
    backbone=dict(
        depth=18,
        num_stages=3,
        stem_channels=16,
        base_channels=24,
        strides=(1, 2, 1),
        dilations=(1, 1, 1),
        out_indices=(2,),
        norm_cfg=dict(type='BN'),
    ),
    neck=dict(
        in_channels=96, hid_channels=256, bottleneck_channels=64, out_channels=1024, with_bn=True
    ),
)

optim_wrapper = dict(optimizer=dict(lr=0.06, weight_decay=5e-4))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True,
    ),
    dict(type='CosineAnnealingLR', T_max=epochs - 2, by_epoch=True, begin=2, end=epochs),
]
auto_scale_lr = dict(base_batch_size=256)
train_cfg = dict(max_epochs=epochs)
custom_hooks = [*_base_.custom_hooks, dict(type='ChannelsLastHook')]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=2))
