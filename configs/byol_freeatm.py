"""BYOL with instance features, ResNet-50, 200 epochs: the pooling neck beyond the paper.

mmpretrain's own config but for the masks. With masks there is no number to compare with.

Needs: a store of about 1.28 million images with masks (`freeatm generate`), 16 GPUs with 32 GB each
(batch 16 x 256).

    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT \
        tools/train.py configs/byol_freeatm.py --launcher pytorch --amp --data-root STORE
"""

_base_ = ['mmpretrain::byol/byol_resnet50_16xb256-coslr-200e_in1k.py', '_base_/freeatm.py']

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

model = dict(type='FreeATMBYOL', neck=dict(type='FreeATMNonLinearNeck'))

custom_hooks = _base_.freeatm_hooks
randomness = dict(seed=0)
