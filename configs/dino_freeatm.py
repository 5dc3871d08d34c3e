"""DINO with instance-level targets, ResNet-50, 100 epochs: beyond the paper.

The student predicts its teacher's view of each object. The recipe is the one that DINO's authors
give for ResNet-50 (github.com/facebookresearch/dino), with three differences: global crops alone,
as masks are on one grid; gradients clipped by their norm over all parameters, not over each; the
warm-up of the rate by epochs' shares. They report 75.3 ImageNet linear for 800 epochs with local
crops on ImageNet itself; with masks there is no number to compare with.

Needs: a store of about 1.28 million images with masks (`freeatm generate`), 8 GPUs with 16 GB each
(batch 8 x 64).

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py configs/dino_freeatm.py \
        --launcher pytorch --amp --data-root STORE
"""

_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs32_byol.py',
    'mmpretrain::_base_/default_runtime.py',
    '_base_/freeatm.py',
]

epochs = 100

# Both views are BYOL's, which are DINO's; their crops note where the view lies.
first_pipeline, second_pipeline = _base_.view_pipeline1, _base_.view_pipeline2
for view_pipeline in (first_pipeline, second_pipeline):
    view_pipeline[0].update(type='FreeATMRandomResizedCrop', crop_ratio_range=(0.14, 1.0))
    view_pipeline[1]['type'] = 'FreeATMRandomFlip'

train_pipeline = [
    dict(type='LoadFromStore'),
    dict(type='FreeATMMultiView', num_views=[1, 1], transforms=[first_pipeline, second_pipeline]),
    dict(type='PackFreeATMInputs', grid_size=7, mask_values='attention', min_visible=0.05),
]

train_dataloader = dict(_base_.freeatm_dataloader, batch_size=64, drop_last=True)
train_dataloader['dataset']['pipeline'] = train_pipeline

model = dict(
    type='FreeATMDINO',
    base_momentum=0.004,
    student_temperature=0.1,
    teacher_temperature=0.04,
    center_momentum=0.9,
    freeze_prototypes=1 / epochs,
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='SyncBN'), zero_init_residual=False),
    neck=dict(type='FreeATMDINONeck', in_channels=2048, out_channels=65536),
)

# 0.03 for 256 images, as DINO scales it.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=3.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=epochs - 10,
        eta_min=1e-6,
        by_epoch=True,
        begin=10,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs)
auto_scale_lr = dict(base_batch_size=512)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))

custom_hooks = _base_.freeatm_hooks
randomness = dict(seed=0)
