"""MAE with Free-ATM, ViT-B/16, 1600 epochs, batch 4096: everything as MAE, plus guided masks.

The paper (Table 2): on Stable Diffusion images COCO AP box / mask 48.9 / 43.7, ImageNet
fine-tuned 83.4, ADE20K mIoU 48.4, against 48.0 / 42.7, 82.7 and 47.6 without guidance
(`baselines/mae.py`).

Needs: a store of about 1.28 million images with masks (`tools/generate.py`), 8 GPUs with 40 GB
each (batch 8 x 512).

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py configs/mae_freeatm.py \
        --launcher pytorch --data-root STORE
"""

_base_ = ['mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-1600e_in1k.py', '_base_/freeatm.py']

train_pipeline = [
    dict(type='LoadFromStore'),
    # The same crop and flip, number for number; they also note where the view lies.
    dict(
        type='FreeATMRandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.2, 1.0),
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='FreeATMRandomFlip', prob=0.5),
    dict(type='PackFreeATMInputs', grid_size=14, mask_values='attention', min_visible=0.05),
]

train_dataloader = _base_.freeatm_dataloader
train_dataloader['dataset']['pipeline'] = train_pipeline

# Overall ratio 0.75; of the masked patches the share beta by attention, growing linearly to 0.8.
model = dict(
    type='FreeATMMAE',
    combine='sum',
    guide=dict(type='NounGuide'),
    mask_generator=dict(
        type='AttentionGuidedMaskGenerator',
        ceiling=0.8,
        schedule='linear',
        share_of='hidden',
        noise='white',
    ),
    backbone=dict(type='FreeATMMAEViT'),
)

custom_hooks = _base_.freeatm_hooks
# `SeedEachIterationHook` gives each process its own random numbers: the seed itself needn't differ.
randomness = dict(seed=0, diff_rank_seed=False)
# With --resume, as the other methods: mmpretrain's MAE goes on unasked with what it finds.
resume = False
