"""MAE with Free-ATM on real images, whose masks a generator added by looking at them.

Not in the paper, which has masks for generated images only. `real/mae.py` is the same without
masks; on the same store, its `--data-root` may be the store too.

Needs: captioned real images and a pipeline, and what `mae_freeatm.py` needs otherwise.

    python tools/add_masks.py IMAGES PIPELINE data/real_masks
    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/real/mae_freeatm.py --launcher pytorch \
        --data-root data/real_masks
"""

_base_ = '../mae_freeatm.py'

train_dataloader = dict(dataset=dict(data_root='data/real_masks'))
