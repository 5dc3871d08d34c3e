"""`real/simclr.py` at the miniature's scale.

python tools/train.py configs/miniature/real/simclr.py --data-root FOLDER
"""

_base_ = '../baselines/simclr.py'

train_dataloader = dict(dataset=dict(data_root='data/world/train/images'))
