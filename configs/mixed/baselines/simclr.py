"""SimCLR on real images first, then on generated ones without masks: the baseline of
`mixed/simclr_freeatm.py`, after the same stage 1.

The paper (Table 1, "Mixed", Stable Diffusion): VOC AP50 79.8, COCO AP box / mask 37.5 / 33.7,
Cityscapes mIoU 74.1, ImageNet linear 66.3.

    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT \
        tools/train.py configs/mixed/baselines/simclr.py --launcher pytorch --amp --data-root STORE
"""

_base_ = '../simclr_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
