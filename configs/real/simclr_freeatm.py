"""SimCLR with Free-ATM on real images, whose masks a generator added by looking at them.

Not in the paper, which has masks for generated images only. `real/simclr.py` is the same without
masks; on the same store, its `--data-root` may be the store too.

Needs: captioned real images and a pipeline, and what `simclr_freeatm.py` needs otherwise.

    python tools/add_masks.py IMAGES PIPELINE data/real_masks
    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT \
        tools/train.py configs/real/simclr_freeatm.py --launcher pytorch --amp \
        --data-root data/real_masks
"""

_base_ = '../simclr_freeatm.py'

train_dataloader = dict(dataset=dict(data_root='data/real_masks'))
