"""MoCo v2 on real images, ResNet-50, 200 epochs: what generated ones are compared with.

The paper (Table 1, "Real"): VOC AP50 82.4, COCO AP box / mask 39.8 / 36.9, Cityscapes mIoU 75.0,
ImageNet linear 67.3.

Needs: a folder of plain images, in any folders below it (ImageNet's `train`), and what
`mocov2_freeatm.py` needs otherwise.

    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/real/mocov2.py --launcher pytorch --amp --data-root FOLDER
"""

_base_ = '../baselines/mocov2.py'

train_dataloader = dict(dataset=dict(data_root='data/imagenet/train'))
