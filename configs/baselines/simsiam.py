"""SimSiam on the same images without masks: the baseline of `simsiam_freeatm.py`.

Needs what `simsiam_freeatm.py` needs; a folder of plain images does, too.

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py configs/baselines/simsiam.py \
        --launcher pytorch --amp --data-root STORE
"""

_base_ = '../simsiam_freeatm.py'

# Without masks FreeATMSimSiam is mmpretrain's SimSiam, bit for bit.
train_dataloader = dict(dataset=dict(masks=False))
