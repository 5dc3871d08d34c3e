"""ImageNet linear probing: a frozen ResNet-50 and a linear classifier, 100 epochs of batch 256.

MoCo's protocol, column "ImageNet" of the paper's Table 1: top-1 66.8 SimCLR and 67.3 MoCo v2 on
real images; about a day on 8 V100s.

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py \
        configs/downstream/mmpretrain/imagenet_linear_r50_100e.py --launcher pytorch \
        --data-root imagenet --cfg-options init=CHECKPOINT       # or init=random, init=supervised
"""

_base_ = 'mmpretrain::mocov2/benchmarks/resnet50_8xb32-linear-steplr-100e_in1k.py'
custom_imports = dict(imports=['freeatm_mm.openmmlab'], allow_failed_imports=False)

init = None
custom_hooks = [
    dict(type='InitialWeightsHook', supervised='torchvision://resnet50'),
    dict(type='CheckFilesHook'),
    dict(type='CheckTrainingHook'),
]
model = dict(backbone=dict(init_cfg=None))
