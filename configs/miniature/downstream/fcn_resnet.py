"""`cityscapes_fcn_r50_160e.py` at the miniature's scale: mIoU on real scenes.

    python tools/train.py configs/miniature/downstream/fcn_resnet.py \
        --data-root WORLD --cfg-options init=CHECKPOINT          # or init=random
"""

_base_ = '../../downstream/mmseg/cityscapes_fcn_r50_160e.py'

custom_hooks = [
    dict(
        type='InitialWeightsHook', supervised='work_dirs/miniature/supervised/resnet/epoch_30.pth'
    ),
    dict(type='CheckFilesHook'),
    dict(type='CheckTrainingHook'),
]
classes = (
    'background',
    'shirt',
    'trouser',
    'pullover',
    'dress',
    'sandal',
    'sneaker',
    'bag',
    'boot',
    'bird',
    'fish',
    'insect',
    'mammal',
    'flower',
    'fruit',
    'mushroom',
    'tree',
    'guitar',
    'planet',
    'ball',
    'car',
    'tool',
)
num_classes = len(classes)
data_root = 'data/miniature_world/'
dataset = dict(
    type='BaseSegDataset',
    metainfo=dict(classes=classes),
    data_root=data_root,
    img_suffix='.png',
    seg_map_suffix='.png',
)

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
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        pipeline=train_pipeline,
        indices=1000,
        data_prefix=dict(img_path='train/images', seg_map_path='train/labels'),
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        pipeline=test_pipeline,
        data_prefix=dict(img_path='test/images', seg_map_path='test/labels'),
        **dataset,
    ),
)
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        depth=18,
        num_stages=3,
        stem_channels=16,
        base_channels=24,
        strides=(1, 2, 1),
        dilations=(1, 1, 1),
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
