"""MoCo v2 on the same images without masks: the baseline of `mocov2_freeatm.py`.

The paper (Table 1): on Stable Diffusion images VOC AP50 81.6, COCO AP box / mask 37.9 / 35.2,
Cityscapes mIoU 74.1, ImageNet linear 65.1. Needs what `mocov2_freeatm.py` needs; a folder of plain
images does, too.

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py configs/baselines/mocov2.py \
        --launcher pytorch --amp --data-root STORE
"""

_base_ = '../mocov2_freeatm.py'

# Without masks FreeATMMoCo is mmpretrain's MoCo, bit for bit.
train_dataloader = dict(dataset=dict(masks=False))
