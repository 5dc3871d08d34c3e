"""SimCLR with Free-ATM, ResNet-50, 200 epochs, batch 4096: everything as SimCLR, plus masks.

The paper (Table 1): on Stable Diffusion images VOC AP50 80.0, COCO AP box / mask 37.8 / 34.2,
Cityscapes mIoU 74.7, ImageNet linear 65.4, against 79.1, 36.4 / 33.1, 73.7 and 64.4 without masks
(`baselines/simclr.py`).

Needs: a store of about 1.28 million images with masks (`tools/generate.py`), 16 GPUs with 32 GB
each (batch 16 x 256).

    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT \
        tools/train.py configs/simclr_freeatm.py --launcher pytorch --amp --data-root STORE
"""

_base_ = ['mmpretrain::simclr/simclr_resnet50_16xb256-coslr-200e_in1k.py', '_base_/freeatm.py']

# The same crop and flip, number for number; they also note where the view lies.
view_pipeline = _base_.view_pipeline
view_pipeline[0]['type'] = 'FreeATMRandomResizedCrop'
view_pipeline[1]['type'] = 'FreeATMRandomFlip'

train_pipeline = [
    dict(type='LoadFromStore'),
    dict(type='FreeATMMultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackFreeATMInputs', grid_size=7, mask_values='attention', min_visible=0.05),
]

train_dataloader = _base_.freeatm_dataloader
train_dataloader['dataset']['pipeline'] = train_pipeline

# loss='equation3' is the paper's equation 3 to the letter: same-view negatives, no temperature.
model = dict(
    type='FreeATMSimCLR',
    loss='nt_xent',
    negatives='all',
    positives='own',
    neck=dict(type='FreeATMNonLinearNeck'),
)

# What the learning rate is meant for, which mmpretrain's config doesn't say: --auto-scale-lr.
auto_scale_lr = dict(base_batch_size=4096)

custom_hooks = _base_.freeatm_hooks
randomness = dict(seed=0)
