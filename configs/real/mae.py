"""MAE on real images, ViT-B/16, 1600 epochs, batch 4096: what generated ones are compared with.

The paper (Table 2, "Real"): COCO AP box / mask 50.3 / 44.9, ImageNet fine-tuned 83.6, ADE20K mIoU
48.1.

Needs: a folder of plain images, in any folders below it (ImageNet's `train`), and what
`mae_freeatm.py` needs otherwise.

    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/real/mae.py --launcher pytorch --data-root FOLDER
"""

_base_ = '../baselines/mae.py'

train_dataloader = dict(dataset=dict(data_root='data/imagenet/train'))
