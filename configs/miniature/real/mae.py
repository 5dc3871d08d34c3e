"""`real/mae.py` at the miniature's scale.

python tools/train.py configs/miniature/real/mae.py --data-root FOLDER
"""

_base_ = '../baselines/mae.py'

train_dataloader = dict(dataset=dict(data_root='data/world/train/images'))
