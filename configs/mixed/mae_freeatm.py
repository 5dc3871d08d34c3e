"""MAE with Free-ATM, mixed: on real images first, then on generated ones with masks.

The paper (Table 2, "Mixed", Stable Diffusion): COCO AP box / mask 50.8 / 45.4, ImageNet fine-tuned
83.9, ADE20K mIoU 48.7, against 49.9 / 44.7, 83.3 and 48.2 without masks (`baselines/mae.py`).

"A 50:50 combination ... with equal image counts" (section 4.1): each stage takes a random half of
its images, for 1600 epochs as everywhere, so that different images, images seen and steps are as
many as in the other regimes. The paper leaves open how the stages share the schedule; here each
has it whole. The network is taken from stage 1, and beta grows from 0 again; the optimizer starts
anew.

Needs: what `mae_freeatm.py` needs, and a folder of real images. Stage 1, then stage 2:

    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/real/mae.py --launcher pytorch \
        --work-dir work_dirs/mixed/mae_real \
        --data-root FOLDER --cfg-options train_dataloader.dataset.share=0.5
    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/mixed/mae_freeatm.py --launcher pytorch --data-root STORE
"""

_base_ = '../mae_freeatm.py'

train_dataloader = dict(dataset=dict(share=0.5))
# Not `load_from`, which a resumed run would start again from.
model = dict(pretrained='work_dirs/mixed/mae_real/epoch_1600.pth')
