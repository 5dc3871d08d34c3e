"""`real/mocov2.py` at the miniature's scale.

    python tools/train.py configs/miniature/real/mocov2.py \
        --cfg-options train_dataloader.dataset.store=FOLDER
"""

_base_ = '../baselines/mocov2.py'

train_dataloader = dict(dataset=dict(store='data/world/train/images'))
