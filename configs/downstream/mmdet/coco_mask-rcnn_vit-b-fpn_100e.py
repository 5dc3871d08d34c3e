"""COCO detection and instance segmentation: Mask R-CNN, ViT-B and FPN, 100 epochs of batch 64.

MAE's protocol (arXiv 2111.11429), columns "COCO" of the paper's Table 2: box / mask AP 47.9 / 42.9
supervised, 50.3 / 44.9 MAE on real images. Large-scale jitter at 1024 pixels, windowed attention
with four global blocks and relative positions, two convolutions in the RPN, synchronised batch
normalisation in FPN and heads; layer-wise rates (0.7) as in ViTDet. Trained and evaluated on
squares of 1024 pixels, so that the positions are those that were learned. With GPUs of less than
80 GB take more of them, and train_dataloader.batch_size=2 for 32.

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py \
        configs/downstream/mmdet/coco_mask-rcnn_vit-b-fpn_100e.py --launcher pytorch --amp \
        --data-root coco --cfg-options init=CHECKPOINT           # or init=random, init=supervised
"""

_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::common/lsj-100e_coco-instance.py']
custom_imports = dict(imports=['freeatm_mm.openmmlab'], allow_failed_imports=False)

init = None
custom_hooks = [
    dict(
        type='InitialWeightsHook',
        new=['rel_pos_'],
        supervised='https://mmassets.onedl.ai/mmclassification/v0/deit/'
        'deit-base_pt-16xb64_in1k_20220216-db63c16c.pth',
    ),
    dict(type='CheckFilesHook'),
    dict(type='CheckTrainingHook'),
]

image_size = (1024, 1024)
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    data_preprocessor=dict(
        pad_size_divisor=1024,
        batch_augments=[dict(type='BatchFixedSizePad', size=image_size, pad_mask=True)],
    ),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ViTSAM',
        arch='base',
        img_size=1024,
        patch_size=16,
        out_channels=0,
        out_indices=[2, 5, 8, 11],
        drop_path_rate=0.1,
        window_size=14,
    ),
    neck=[
        dict(type='ViTPyramid', channels=768),
        dict(
            type='FPN',
            in_channels=[768, 768, 768, 768],
            out_channels=256,
            num_outs=5,
            norm_cfg=norm_cfg,
        ),
    ],
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)

train_dataloader = dict(batch_size=8, num_workers=4)
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type='Resize', scale=image_size, keep_ratio=True)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    constructor='BackboneLayerDecayConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'pos_embed': dict(decay_mult=0.0), 'rel_pos_': dict(decay_mult=0.0)},
    ),
)
# 25 epochs of the set repeated 4 times.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=25, milestones=[22, 24], gamma=0.1),
]
