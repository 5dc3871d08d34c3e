"""The miniature's supervised ResNet: classifying the objects of the real training scenes.

python tools/train.py configs/miniature/supervised/resnet.py --data-root WORLD
"""

_base_ = '../downstream/linear_resnet.py'

init = 'random'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=40, crop_ratio_range=(0.3, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
model = dict(
    backbone=dict(frozen_stages=-1), neck=dict(_delete_=True, type='GlobalAveragePooling')
)  # trained from end to end: as usual

epochs = 30
optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=5e-4))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=epochs, by_epoch=True, begin=0, end=epochs)]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
