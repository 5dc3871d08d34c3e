"""MoCo v2 with Free-ATM, mixed, with masks on both halves: real images first, then generated ones.

As `mixed/mocov2_freeatm.py`, except that a generator added masks to the real images of stage 1 by
looking at them; the paper has masks for generated images only.

Needs: captioned real images, and what `mixed/mocov2_freeatm.py` needs otherwise. The
masks, stage 1, then stage 2:

    python tools/add_masks.py IMAGES PIPELINE data/real_masks
    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/real/mocov2_freeatm.py --launcher pytorch --amp \
        --work-dir work_dirs/mixed/mocov2_real_freeatm \
        --data-root data/real_masks --cfg-options train_dataloader.dataset.share=0.5
    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/mixed/real_masks/mocov2_freeatm.py --launcher pytorch --amp \
        --data-root STORE
"""

_base_ = '../mocov2_freeatm.py'

model = dict(pretrained='work_dirs/mixed/mocov2_real_freeatm/epoch_200.pth')
