"""MoCo v2 with Free-ATM, ResNet-50, 200 epochs: everything as MoCo v2's own config, plus masks.

The paper (Table 1): on Stable Diffusion images VOC AP50 82.2, COCO AP box / mask
39.6 / 36.4, Cityscapes mIoU 74.9, ImageNet linear 66.2, against 81.6, 37.9 / 35.2, 74.1 and 65.1
without masks (`baselines/mocov2.py`).

Needs: a store of about 1.28 million images with masks (`tools/generate.py`), 8 GPUs with 5 GB each
(batch 8 x 32); about two days on V100s, as MoCo v2.

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py configs/mocov2_freeatm.py \
        --launcher pytorch --amp --data-root STORE
"""

_base_ = ['mmpretrain::mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py', '_base_/freeatm.py']

# The same crop and flip, number for number; they also note where the view lies.
view_pipeline = _base_.view_pipeline
view_pipeline[0]['type'] = 'FreeATMRandomResizedCrop'
view_pipeline[-1]['type'] = 'FreeATMRandomFlip'

train_pipeline = [
    dict(type='LoadFromStore'),
    dict(type='FreeATMMultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackFreeATMInputs', grid_size=7, mask_values='attention', min_visible=0.05),
]

train_dataloader = _base_.freeatm_dataloader
train_dataloader['dataset']['pipeline'] = train_pipeline

model = dict(
    type='FreeATMMoCo',
    negatives='all',
    positives='own',
    neck=dict(type='FreeATMMoCoV2Neck'),
)

custom_hooks = _base_.freeatm_hooks
randomness = dict(seed=0)
