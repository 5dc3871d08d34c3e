"""SimCLR with Free-ATM, mixed: on real images first, then on generated ones with masks.

The paper (Table 1, "Mixed", Stable Diffusion): VOC AP50 80.6, COCO AP box / mask 38.7 / 34.8,
Cityscapes mIoU 75.0, ImageNet linear 67.2, against 79.8, 37.5 / 33.7, 74.1 and 66.3 without masks
(`baselines/simclr.py`).

"A 50:50 combination ... with equal image counts" (section 4.1): each stage takes a random half of
its images, for 200 epochs as everywhere, so that different images, images seen and steps are as
many as in the other regimes. The paper leaves open how the stages share the schedule; here each
has it whole. The network is taken from stage 1; the optimizer starts anew.

Needs: what `simclr_freeatm.py` needs, and a folder of real images. Stage 1, then stage 2:

    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT \
        tools/train.py configs/real/simclr.py --launcher pytorch --amp \
        --work-dir work_dirs/mixed/simclr_real \
        --data-root FOLDER --cfg-options train_dataloader.dataset.share=0.5
    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT \
        tools/train.py configs/mixed/simclr_freeatm.py --launcher pytorch --amp --data-root STORE
"""

_base_ = '../simclr_freeatm.py'

train_dataloader = dict(dataset=dict(share=0.5))
# Not `load_from`, which a resumed run would start again from.
model = dict(pretrained='work_dirs/mixed/simclr_real/epoch_200.pth')
