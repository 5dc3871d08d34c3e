"""SwAV with instance features, ResNet-50, 200 epochs, on one GPU: beyond the paper.

mmpretrain's own config but for the masks, the number of processes (assignments take the same number
of instances from each, so with masks it runs in a single one) and the crops: two of 224 pixels, as
masks are on one grid, and no queue, which takes batches of one size. There is no published figure
to compare with.

Needs: a store with masks (`freeatm generate`), one GPU with 40 GB (batch 256).

    python tools/train.py configs/swav_freeatm.py --amp --data-root STORE
"""

_base_ = [
    'mmpretrain::swav/swav_resnet50_8xb32-mcrop-coslr-200e_in1k-224px-96px.py',
    '_base_/freeatm.py',
]

# The same crop and flip, number for number; they also note where the view lies.
view_pipeline = _base_.view_pipeline1
view_pipeline[0]['type'] = 'FreeATMRandomResizedCrop'
view_pipeline[-1]['type'] = 'FreeATMRandomFlip'

train_pipeline = [
    dict(type='LoadFromStore'),
    dict(type='FreeATMMultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackFreeATMInputs', grid_size=7, mask_values='attention', min_visible=0.05),
]

train_dataloader = dict(_base_.freeatm_dataloader, batch_size=256)
train_dataloader['dataset']['pipeline'] = train_pipeline

model = dict(
    type='FreeATMSwAV',
    neck=dict(type='FreeATMSwAVNeck'),
    head=dict(loss=dict(num_crops=[2])),
)

auto_scale_lr = dict(base_batch_size=256)

# The prototypes stay as they are in the first epoch, as in mmpretrain's.
swav_hook = dict(_base_.custom_hooks[0], batch_size=256, queue_length=0)
custom_hooks = [swav_hook, *_base_.freeatm_hooks]
randomness = dict(seed=0)
