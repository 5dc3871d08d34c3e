"""DenseCL with instances in its global branch, ResNet-50, 200 epochs, on one GPU: beyond the paper.

mmpretrain's own config but for the masks and the number of processes: the queues take the same
number of keys from each, so with masks it runs in a single one. There is no published figure to
compare with.

Needs: a store with masks (`freeatm generate`), one GPU with 40 GB (batch 256).

    python tools/train.py configs/densecl_freeatm.py --amp --data-root STORE
"""

_base_ = ['mmpretrain::densecl/densecl_resnet50_8xb32-coslr-200e_in1k.py', '_base_/freeatm.py']

# The same crop and flip, number for number; they also note where the view lies.
view_pipeline = _base_.view_pipeline
view_pipeline[0]['type'] = 'FreeATMRandomResizedCrop'
view_pipeline[-1]['type'] = 'FreeATMRandomFlip'

train_pipeline = [
    dict(type='LoadFromStore'),
    dict(type='FreeATMMultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackFreeATMInputs', grid_size=7, mask_values='attention', min_visible=0.05),
]

train_dataloader = dict(_base_.freeatm_dataloader, batch_size=256)
train_dataloader['dataset']['pipeline'] = train_pipeline

model = dict(type='FreeATMDenseCL', neck=dict(type='FreeATMDenseCLNeck'))

custom_hooks = _base_.freeatm_hooks
randomness = dict(seed=0)
