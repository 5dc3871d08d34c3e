"""The baseline of `miniature/mixed/mocov2_freeatm.py`: the same, stage 2 without masks.

python tools/train.py configs/miniature/mixed/baselines/mocov2.py --data-root STORE
"""

_base_ = '../mocov2_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
