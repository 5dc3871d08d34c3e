"""MAE on real images first, then on generated ones without masks: the baseline of
`mixed/mae_freeatm.py`, after the same stage 1.

The paper (Table 2, "Mixed", Stable Diffusion): COCO AP box / mask 49.9 / 44.7, ImageNet fine-tuned
83.3, ADE20K mIoU 48.2.

    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/mixed/baselines/mae.py --launcher pytorch --data-root STORE
"""

_base_ = '../mae_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
