"""The miniature's supervised ViT: classifying the objects of the real training scenes.

python tools/train.py configs/miniature/supervised/vit.py --data-root WORLD
"""

_base_ = '../downstream/finetune_vit.py'

init = 'random'
train_pipeline = _base_.train_pipeline
train_pipeline[1]['crop_ratio_range'] = (0.3, 1.0)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

epochs = 10
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=2)
param_scheduler[1].update(T_max=epochs - 2, begin=2, end=epochs)
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
