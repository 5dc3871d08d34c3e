"""SimCLR on the same images without masks: the baseline of `simclr_freeatm.py`.

The paper (Table 1): on Stable Diffusion images VOC AP50 79.1, COCO AP box / mask 36.4 / 33.1,
Cityscapes mIoU 73.7, ImageNet linear 64.4. Needs what `simclr_freeatm.py` needs; a folder of plain
images does, too.

    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT \
        tools/train.py configs/baselines/simclr.py --launcher pytorch --amp --data-root STORE
"""

_base_ = '../simclr_freeatm.py'

# Without masks FreeATMSimCLR is mmpretrain's SimCLR, bit for bit.
train_dataloader = dict(dataset=dict(masks=False))
