"""MoCo v2 on real images first, then on generated ones without masks: the baseline of
`mixed/mocov2_freeatm.py`, after the same stage 1.

The paper (Table 1, "Mixed", Stable Diffusion): VOC AP50 82.2, COCO AP box / mask 39.2 / 36.0,
Cityscapes mIoU 74.6, ImageNet linear 66.8.

    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/mixed/baselines/mocov2.py --launcher pytorch --amp --data-root STORE
"""

_base_ = '../mocov2_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
