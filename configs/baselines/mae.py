"""MAE on the same images without masks: the baseline of `mae_freeatm.py`.

The paper (Table 2): on Stable Diffusion images COCO AP box / mask 48.0 / 42.7, ImageNet
fine-tuned 82.7, ADE20K mIoU 47.6. Needs what `mae_freeatm.py` needs; a folder of plain images
does, too.

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py configs/baselines/mae.py \
        --launcher pytorch --data-root STORE
"""

_base_ = '../mae_freeatm.py'

# Without masks FreeATMMAE is mmpretrain's MAE, bit for bit.
train_dataloader = dict(dataset=dict(masks=False))
