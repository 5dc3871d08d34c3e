"""DINO on the same images without masks: the baseline of `dino_freeatm.py`.

Needs what `dino_freeatm.py` needs; a folder of plain images does, too.

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py configs/baselines/dino.py \
        --launcher pytorch --amp --data-root STORE
"""

_base_ = '../dino_freeatm.py'

# Without masks FreeATMDINO is DINO with global crops.
train_dataloader = dict(dataset=dict(masks=False))
