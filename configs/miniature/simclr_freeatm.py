"""`simclr_freeatm.py` at the miniature's scale: 64x64 images, a small ResNet, two CPU cores.

python tools/train.py configs/miniature/simclr_freeatm.py --data-root STORE
"""

_base_ = ['../simclr_freeatm.py', '_base_/pretraining.py']

epochs = _base_.small_epochs

view_pipeline = [_base_.small_crop, _base_.small_flip, _base_.small_colour]
train_pipeline = _base_.small_pipeline
train_pipeline[1]['transforms'] = [view_pipeline]
train_dataloader = dict(
    batch_size=256,
    num_workers=1,
    drop_last=True,
    dataset=dict(data_root='data/miniature', pipeline=train_pipeline),
)

model = dict(
    backbone=dict(
        **_base_.world_resnet,
        out_indices=(2,),
        norm_cfg=dict(type='BN'),
    ),
    neck=dict(in_channels=96, hid_channels=128, out_channels=64, norm_cfg=dict(type='BN1d')),
)

optim_wrapper = dict(optimizer=dict(lr=0.3))
param_scheduler = _base_.small_schedule
auto_scale_lr = dict(base_batch_size=256)
train_cfg = dict(max_epochs=epochs)
custom_hooks = [*_base_.custom_hooks, dict(type='ChannelsLastHook')]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=2))
