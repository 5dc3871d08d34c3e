"""The baseline of `miniature/dino_freeatm.py`: the same without masks.

python tools/train.py configs/miniature/baselines/dino.py --data-root STORE
"""

_base_ = '../dino_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
