"""COCO detection and instance segmentation: Mask R-CNN R50-FPN, 12 epochs of batch 16.

MoCo's protocol: batch normalisation synchronised and trained everywhere, nothing frozen, sizes 640
to 800. Columns "COCO" of the paper's Table 1: box / mask AP 31.4 / 28.5 from random weights,
39.2 / 35.5 supervised, 39.8 / 36.9 MoCo v2 on real images; about 10 hours on 8 V100s.

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py \
        configs/downstream/mmdet/coco_mask-rcnn_r50-fpn_1x.py --launcher pytorch \
        --data-root coco --cfg-options init=CHECKPOINT           # or init=random, init=supervised
"""

_base_ = 'mmpretrain::byol/benchmarks/mask-rcnn_r50_fpn_ms-1x_coco.py'
custom_imports = dict(imports=['freeatm_mm.openmmlab'], allow_failed_imports=False)

init = None
custom_hooks = [
    dict(type='InitialWeightsHook', supervised='torchvision://resnet50'),
    dict(type='CheckFilesHook'),
    dict(type='CheckTrainingHook'),
]
model = dict(backbone=dict(init_cfg=None))
