"""`coco_mask-rcnn_r50-fpn_1x.py` at the miniature's scale: box and mask AP on real scenes.

    python tools/train.py configs/miniature/downstream/mask-rcnn_resnet.py \
        --data-root WORLD --cfg-options init=CHECKPOINT          # or init=random
"""

_base_ = ['../../downstream/mmdet/coco_mask-rcnn_r50-fpn_1x.py', '../_base_/world.py']

custom_hooks = [_base_.world_resnet_weights, *_base_.world_checks]
classes = _base_.world_nouns
data_root = _base_.world_root
backend_args = None

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    _delete_=True,
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        metainfo=dict(classes=classes),
        data_root=data_root,
        ann_file='train/coco.json',
        data_prefix=dict(img='train/images/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        indices=1000,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    _delete_=True,
    batch_size=50,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        metainfo=dict(classes=classes),
        data_root=data_root,
        ann_file='test/coco.json',
        data_prefix=dict(img='test/images/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True, type='CocoMetric', ann_file=data_root + 'test/coco.json', metric=['bbox', 'segm']
)
test_evaluator = val_evaluator

num_classes = len(classes)
model = dict(
    backbone=dict(
        **_base_.world_resnet,
        out_indices=(0, 2),
    ),
    neck=dict(in_channels=[24, 96], out_channels=48, num_outs=3),
    rpn_head=dict(
        in_channels=48, feat_channels=48, anchor_generator=dict(scales=[3], strides=[4, 8, 16])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1),
            out_channels=48,
            featmap_strides=[4, 8],
            finest_scale=14,
        ),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=48, fc_out_channels=192, num_classes=num_classes
        ),
        # Objects are some 20 pixels wide: masks of 14x14.
        mask_roi_extractor=dict(
            roi_layer=dict(output_size=7, sampling_ratio=1),
            out_channels=48,
            featmap_strides=[4, 8],
            finest_scale=14,
        ),
        mask_head=dict(
            num_convs=2,
            roi_feat_size=7,
            in_channels=48,
            conv_out_channels=32,
            num_classes=num_classes,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32), mask_size=14),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=20)),
)

epochs = 8
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        T_max=epochs,
        by_epoch=True,
        begin=0,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(_delete_=True, type='CheckpointHook', interval=1, max_keep_ckpts=2),
)
randomness = dict(seed=0)
