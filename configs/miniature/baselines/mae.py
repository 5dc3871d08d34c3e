"""The baseline of `miniature/mae_freeatm.py`: the same without masks.

python tools/train.py configs/miniature/baselines/mae.py --data-root STORE
"""

_base_ = '../mae_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
