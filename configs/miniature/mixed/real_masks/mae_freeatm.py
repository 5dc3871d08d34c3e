"""`mixed/real_masks/mae_freeatm.py` at the miniature's scale: stage 1, then stage 2.

    python tools/train.py configs/miniature/real/mae_freeatm.py \
        --work-dir work_dirs/miniature/mixed/mae_real_freeatm --data-root REAL_STORE \
        --cfg-options train_dataloader.dataset.share=0.5
    python tools/train.py configs/miniature/mixed/real_masks/mae_freeatm.py --data-root STORE
"""

_base_ = '../mae_freeatm.py'

model = dict(pretrained='work_dirs/miniature/mixed/mae_real_freeatm/epoch_40.pth')
