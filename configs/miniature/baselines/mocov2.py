"""The baseline of `miniature/mocov2_freeatm.py`: the same without masks.

python tools/train.py configs/miniature/baselines/mocov2.py --data-root STORE
"""

_base_ = '../mocov2_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
