"""The baseline of `miniature/mixed/simclr_freeatm.py`: the same, stage 2 without masks.

python tools/train.py configs/miniature/mixed/baselines/simclr.py --data-root STORE
"""

_base_ = '../simclr_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
