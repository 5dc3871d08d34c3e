"""ImageNet fine-tuning: ViT-B/16, 100 epochs of batch 1024.

MAE's protocol, column "ImageNet" of the paper's Table 2: top-1 81.0 supervised, 83.6 MAE on real
images; about a day on 8 V100s.

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py \
        configs/downstream/mmpretrain/imagenet_finetune_vit-b_100e.py --launcher pytorch --amp \
        --data-root imagenet --cfg-options init=CHECKPOINT       # or init=random, init=supervised
"""

_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py'
custom_imports = dict(imports=['freeatm_mm.openmmlab'], allow_failed_imports=False)

init = None
custom_hooks = [
    # `ln2` normalises the averaged patches, which no pretraining does.
    dict(
        type='InitialWeightsHook',
        new=[r'^ln2\.'],
        supervised='https://mmassets.onedl.ai/mmclassification/v0/deit/'
        'deit-base_pt-16xb64_in1k_20220216-db63c16c.pth',
    ),
    dict(type='CheckFilesHook'),
    dict(type='CheckTrainingHook'),
]
model = dict(backbone=dict(init_cfg=None))
