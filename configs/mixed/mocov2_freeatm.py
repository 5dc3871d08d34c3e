"""MoCo v2 with Free-ATM, mixed: on real images first, then on generated ones with masks.

The paper (Table 1, "Mixed", Stable Diffusion): VOC AP50 82.8, COCO AP box / mask 40.8 / 37.2,
Cityscapes mIoU 75.3, ImageNet linear 67.8, against 82.2, 39.2 / 36.0, 74.6 and 66.8 without masks
(`baselines/mocov2.py`).

"A 50:50 combination ... with equal image counts" (section 4.1): each stage takes a random half of
its images, for 200 epochs as everywhere, so that different images, images seen and steps are as
many as in the other regimes. The paper leaves open how the stages share the schedule; here each
has it whole. The network, its momentum encoder and its queue are taken from stage 1; the optimizer
starts anew.

Needs: what `mocov2_freeatm.py` needs, and a folder of real images. Stage 1, then stage 2:

    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/real/mocov2.py --launcher pytorch --amp \
        --work-dir work_dirs/mixed/mocov2_real \
        --data-root FOLDER --cfg-options train_dataloader.dataset.share=0.5
    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/mixed/mocov2_freeatm.py --launcher pytorch --amp --data-root STORE
"""

_base_ = '../mocov2_freeatm.py'

train_dataloader = dict(dataset=dict(share=0.5))
# Not `load_from`, which a resumed run would start again from.
model = dict(pretrained='work_dirs/mixed/mocov2_real/epoch_200.pth')
