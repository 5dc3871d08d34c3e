"""The baseline of `miniature/simclr_freeatm.py`: the same without masks.

    python tools/train.py configs/miniature/baselines/simclr.py \
        --cfg-options train_dataloader.dataset.store=STORE
"""

_base_ = '../simclr_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
