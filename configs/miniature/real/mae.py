"""`real/mae.py` at the miniature's scale.

    python tools/train.py configs/miniature/real/mae.py \
        --cfg-options train_dataloader.dataset.store=FOLDER
"""

_base_ = '../baselines/mae.py'

train_dataloader = dict(dataset=dict(store='data/world/train/images'))
