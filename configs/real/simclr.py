"""SimCLR on real images, ResNet-50, 200 epochs, batch 4096: what generated ones are compared with.

The paper (Table 1, "Real"): VOC AP50 80.4, COCO AP box / mask 37.7 / 34.2, Cityscapes mIoU 74.8,
ImageNet linear 66.8.

Needs: a folder of plain images, in any folders below it (ImageNet's `train`), and what
`simclr_freeatm.py` needs otherwise.

    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT \
        tools/train.py configs/real/simclr.py --launcher pytorch --amp --data-root FOLDER
"""

_base_ = '../baselines/simclr.py'

train_dataloader = dict(dataset=dict(data_root='data/imagenet/train'))
