"""`coco_mask-rcnn_vit-b-fpn_100e.py` at the miniature's scale: box and mask AP on real scenes.

    python tools/train.py configs/miniature/downstream/mask-rcnn_vit.py \
        --data-root WORLD --cfg-options init=CHECKPOINT          # or init=random
"""

_base_ = './mask-rcnn_resnet.py'  # its data and heads

custom_hooks = [dict(_base_.world_vit_weights, new=['rel_pos_']), *_base_.world_checks]

# Patches of 6 pixels as in pretraining: a grid of 10 x 10.
side = (60, 60)
train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(type='Resize', scale=side, keep_ratio=True)
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type='Resize', scale=side, keep_ratio=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(pad_size_divisor=12),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ViTSAM',
        arch=dict(_base_.world_vit, global_attn_indexes=[1, 3, 5]),
        img_size=60,
        patch_size=6,
        out_channels=0,
        out_indices=[1, 3, 5],
        window_size=5,
    ),
    neck=[
        dict(type='ViTPyramid', channels=128, scales=(2, 1, 0.5)),
        dict(
            type='FPN',
            in_channels=[128, 128, 128],
            out_channels=48,
            num_outs=3,
            norm_cfg=dict(type='SyncBN', requires_grad=True),
        ),
    ],
    rpn_head=dict(anchor_generator=dict(scales=[4], strides=[3, 6, 12])),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=[3, 6]),
        mask_roi_extractor=dict(featmap_strides=[3, 6]),
    ),
)

epochs = 6
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.1),
    constructor='BackboneLayerDecayConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.8,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'pos_embed': dict(decay_mult=0.0), 'rel_pos_': dict(decay_mult=0.0)},
    ),
)
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
