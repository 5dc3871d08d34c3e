"""The baseline of `miniature/mixed/mae_freeatm.py`: the same, stage 2 without masks.

python tools/train.py configs/miniature/mixed/baselines/mae.py --data-root STORE
"""

_base_ = '../mae_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
