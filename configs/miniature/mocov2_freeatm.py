"""`mocov2_freeatm.py` at the miniature's scale: 64x64 images, a small ResNet, two CPU cores.

python tools/train.py configs/miniature/mocov2_freeatm.py --data-root STORE
"""

_base_ = ['../mocov2_freeatm.py', '_base_/pretraining.py']

epochs = _base_.small_epochs
batch_size = 256

view_pipeline = _base_.small_views
train_pipeline = _base_.small_pipeline
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    dataset=dict(data_root='data/miniature', pipeline=train_pipeline),
)

model = dict(
    queue_len=4096,
    feat_dim=64,
    momentum=0.01,
    backbone=dict(
        **_base_.world_resnet,
        out_indices=(2,),
    ),
    neck=dict(in_channels=96, hid_channels=128, out_channels=64),
)

optim_wrapper = dict(optimizer=dict(lr=0.06, weight_decay=5e-4))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=epochs, by_epoch=True, begin=0, end=epochs)]
train_cfg = dict(max_epochs=epochs)
custom_hooks = [*_base_.custom_hooks, dict(type='ChannelsLastHook')]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
