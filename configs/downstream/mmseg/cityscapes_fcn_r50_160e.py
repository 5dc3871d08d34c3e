"""Cityscapes segmentation: FCN on a plain, dilated ResNet-50, 160 epochs of batch 8.

Column "Cityscapes" of the paper's Table 1: mIoU 65.2 from random weights, 74.2 supervised, 75.0
MoCo v2 on real images. The paper gives the 160 epochs alone; crop, rates and batch are mmseg's.
About 15 hours on 4 V100s.

    python -m torch.distributed.run --nproc-per-node 4 tools/train.py \
        configs/downstream/mmseg/cityscapes_fcn_r50_160e.py --launcher pytorch \
        --data-root cityscapes --cfg-options init=CHECKPOINT     # or init=random, init=supervised
"""

# mmseg's usual ResNetV1c has another stem, for which no pretraining has weights; r50b has ours.
# By its path: `mmseg::` looks for a distribution of that name, and the maintained fork has another.
_base_ = (
    __import__('mmseg').__path__[0]
    + '/.mim/configs/fcn/fcn_r50b-d8_4xb2-80k_cityscapes-512x1024.py'
)
custom_imports = dict(imports=['freeatm_mm.openmmlab'], allow_failed_imports=False)

init = None
custom_hooks = [
    dict(type='InitialWeightsHook', supervised='torchvision://resnet50'),
    dict(type='CheckFilesHook'),
    dict(type='CheckTrainingHook'),
]
model = dict(pretrained=None)

max_iters = 160 * 2975 // 8
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 10)
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=max_iters, by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=max_iters // 10, max_keep_ckpts=2))
