"""SimSiam with instance features, ResNet-50, 100 epochs: the pooling neck beyond the paper.

The paper applies it to SimCLR and MoCo v2; this shows that another of mmpretrain's two-view methods
takes it as well. mmpretrain gives 68.3 ImageNet linear for SimSiam on ImageNet itself; with masks
there is no number to compare with.

Needs: a store of about 1.28 million images with masks (`tools/generate.py`), 8 GPUs with 8 GB each
(batch 8 x 32).

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py configs/simsiam_freeatm.py \
        --launcher pytorch --amp --data-root STORE
"""

_base_ = ['mmpretrain::simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k.py', '_base_/freeatm.py']

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

model = dict(type='FreeATMSimSiam', neck=dict(type='FreeATMNonLinearNeck'))

# What the learning rate is meant for, which mmpretrain's config doesn't say: --auto-scale-lr.
auto_scale_lr = dict(base_batch_size=256)

custom_hooks = [*_base_.custom_hooks, *_base_.freeatm_hooks]
randomness = dict(seed=0)
