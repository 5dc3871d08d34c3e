"""`mae_freeatm.py` at the miniature's scale: 64x64 images, a small ViT, two CPU cores.

python tools/train.py configs/miniature/mae_freeatm.py --data-root STORE
"""

_base_ = ['../mae_freeatm.py', '_base_/pretraining.py']

epochs = _base_.small_epochs

train_pipeline = [
    dict(type='LoadFromStore'),
    dict(type='FreeATMRandomResizedCrop', scale=48, crop_ratio_range=(0.2, 1.0)),
    dict(type='FreeATMRandomFlip', prob=0.5),
    dict(type='PackFreeATMInputs', grid_size=8),
]
train_dataloader = dict(
    batch_size=256,
    num_workers=1,
    drop_last=True,
    dataset=dict(data_root='data/miniature', pipeline=train_pipeline),
)

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_base_.world_vit),
        img_size=48,
        patch_size=6,
    ),
    neck=dict(
        num_patches=64,
        patch_size=6,
        embed_dim=128,
        decoder_embed_dim=64,
        decoder_depth=2,
        decoder_num_heads=4,
    ),
    head=dict(patch_size=6),
)

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=_base_.optim_wrapper.paramwise_cfg,
)
param_scheduler = _base_.small_schedule
param_scheduler[1]['convert_to_iter_based'] = True
auto_scale_lr = dict(base_batch_size=256)
train_cfg = dict(max_epochs=epochs)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
