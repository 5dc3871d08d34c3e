"""`real/mocov2.py` at the miniature's scale.

python tools/train.py configs/miniature/real/mocov2.py --data-root FOLDER
"""

_base_ = '../baselines/mocov2.py'

train_dataloader = dict(dataset=dict(data_root='data/world/train/images'))
