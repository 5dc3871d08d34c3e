"""`mixed/mocov2_freeatm.py` at the miniature's scale: stage 1, then stage 2.

    python tools/train.py configs/miniature/real/mocov2.py \
        --work-dir work_dirs/miniature/mixed/mocov2_real --data-root FOLDER \
        --cfg-options train_dataloader.dataset.share=0.5
    python tools/train.py configs/miniature/mixed/mocov2_freeatm.py --data-root STORE
"""

_base_ = '../mocov2_freeatm.py'

train_dataloader = dict(dataset=dict(share=0.5))
model = dict(pretrained='work_dirs/miniature/mixed/mocov2_real/epoch_40.pth')
