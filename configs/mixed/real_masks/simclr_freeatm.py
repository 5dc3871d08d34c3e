"""SimCLR with Free-ATM, mixed, with masks on both halves: real images first, then generated ones.

As `mixed/simclr_freeatm.py`, except that a generator added masks to the real images of stage 1 by
looking at them; the paper has masks for generated images only.

Needs: captioned real images, and what `mixed/simclr_freeatm.py` needs otherwise. The
masks, stage 1, then stage 2:

    python tools/add_masks.py IMAGES PIPELINE data/real_masks
    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT \
        tools/train.py configs/real/simclr_freeatm.py --launcher pytorch --amp \
        --work-dir work_dirs/mixed/simclr_real_freeatm \
        --data-root data/real_masks --cfg-options train_dataloader.dataset.share=0.5
    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT \
        tools/train.py configs/mixed/real_masks/simclr_freeatm.py --launcher pytorch --amp \
        --data-root STORE
"""

_base_ = '../simclr_freeatm.py'

model = dict(pretrained='work_dirs/mixed/simclr_real_freeatm/epoch_200.pth')
