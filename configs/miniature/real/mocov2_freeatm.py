"""`real/mocov2_freeatm.py` at the miniature's scale.

python tools/train.py configs/miniature/real/mocov2_freeatm.py --data-root STORE
"""

_base_ = '../mocov2_freeatm.py'

train_dataloader = dict(dataset=dict(data_root='data/world/real_masks'))
