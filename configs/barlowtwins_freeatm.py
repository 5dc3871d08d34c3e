"""Barlow Twins with instance features, ResNet-50, 300 epochs, on one GPU: beyond the paper.

mmpretrain's own config but for the masks and the batch: the correlation takes the same number of
instances from each process, so with masks it runs in a single one. There is no published figure to
compare with.

Needs: a store with masks (`freeatm generate`), one GPU with 48 GB (batch 256).

    python tools/train.py configs/barlowtwins_freeatm.py --amp --data-root STORE
"""

_base_ = [
    'mmpretrain::barlowtwins/barlowtwins_resnet50_8xb256-coslr-300e_in1k.py',
    '_base_/freeatm.py',
]

# The same crops and flips, number for number; they also note where the view lies.
view_pipelines = [_base_.view_pipeline1, _base_.view_pipeline2]
for view_pipeline in view_pipelines:
    view_pipeline[0]['type'] = 'FreeATMRandomResizedCrop'
    view_pipeline[1]['type'] = 'FreeATMRandomFlip'

train_pipeline = [
    dict(type='LoadFromStore'),
    dict(type='FreeATMMultiView', num_views=[1, 1], transforms=view_pipelines),
    dict(type='PackFreeATMInputs', grid_size=7, mask_values='attention', min_visible=0.05),
]

train_dataloader = _base_.freeatm_dataloader
train_dataloader['dataset']['pipeline'] = train_pipeline

model = dict(type='FreeATMBarlowTwins', neck=dict(type='FreeATMNonLinearNeck'))

# An eighth of the batch, and so of the rates.
optim_wrapper = dict(optimizer=dict(lr=0.2))
param_scheduler = _base_.param_scheduler
param_scheduler[1]['eta_min'] = 0.0002
auto_scale_lr = dict(base_batch_size=256)

custom_hooks = _base_.freeatm_hooks
randomness = dict(seed=0)
