"""PASCAL VOC detection: Faster R-CNN R50-C4, trainval07+12 to test07, 24k iterations of batch 16.

MoCo's protocol (detectron2's `pascal_voc_R_50_C4_24k_moco.yaml`), column "PASVOC" of the paper's
Table 1: AP50 59.0 from random weights, 81.6 supervised, 82.4 MoCo v2 on real images; about 10
hours on 8 V100s. Objects marked difficult are trained on, as there; mmdet's own would ignore them.

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py \
        configs/downstream/mmdet/voc_faster-rcnn_r50-c4_24k.py --launcher pytorch \
        --data-root VOCdevkit --cfg-options init=CHECKPOINT      # or init=random, init=supervised
"""

_base_ = 'mmdet::pascal_voc/faster-rcnn_r50-caffe-c4_ms-18k_voc0712.py'
custom_imports = dict(
    imports=['freeatm_mm.openmmlab', 'freeatm_mm.engine.voc'], allow_failed_imports=False
)

init = None
custom_hooks = [
    # C4's head on regions is the backbone's last stage and needs its weights too; the
    # normalisation after it is this protocol's own.
    dict(
        type='InitialWeightsHook',
        supervised='torchvision://resnet50',
        modules=['backbone', 'roi_head.shared_head'],
        new=[r'^norm\.'],
    ),
    dict(type='CheckFilesHook'),
    dict(type='CheckTrainingHook'),
]

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    # In here, since the base has one here for Caffe's weights: at the top level it would be
    # ignored. The same numbers as in pretraining.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, style='pytorch', init_cfg=None
    ),
    roi_head=dict(
        shared_head=dict(
            type='ResLayerExtraNorm',
            norm_cfg=norm_cfg,
            norm_eval=False,
            style='pytorch',
            init_cfg=None,
        )
    ),
)

train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(part, type='VOCWithDifficult') for part in _base_.train_dataloader.dataset.datasets
        ]
    )
)

max_iter = 24000
train_cfg = dict(max_iters=max_iter, val_interval=max_iter)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iter,
        milestones=[18000, 22000],
        gamma=0.1,
    ),
]
