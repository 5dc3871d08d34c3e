"""`mixed/real_masks/simclr_freeatm.py` at the miniature's scale: stage 1, then stage 2.

    python tools/train.py configs/miniature/real/simclr_freeatm.py \
        --work-dir work_dirs/miniature/mixed/simclr_real_freeatm --data-root REAL_STORE \
        --cfg-options train_dataloader.dataset.share=0.5
    python tools/train.py configs/miniature/mixed/real_masks/simclr_freeatm.py --data-root STORE
"""

_base_ = '../simclr_freeatm.py'

model = dict(pretrained='work_dirs/miniature/mixed/simclr_real_freeatm/epoch_40.pth')
