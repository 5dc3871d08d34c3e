"""The baseline of `miniature/simclr_freeatm.py`: the same without masks.

python tools/train.py configs/miniature/baselines/simclr.py --data-root STORE
"""

_base_ = '../simclr_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
