"""ADE20K segmentation: UPerNet on ViT-B, 160k iterations of batch 16.

MAE's protocol, column "ADE20K" of the paper's Table 2: mIoU 47.4 supervised, 48.1 MAE on real
images; about 20 hours on 8 V100s.

    python -m torch.distributed.run --nproc-per-node 8 tools/train.py \
        configs/downstream/mmseg/ade20k_upernet_vit-b_160k.py --launcher pytorch --amp \
        --data-root ADEChallengeData2016 --cfg-options init=CHECKPOINT   # or random, supervised
"""

# By its path: `mmseg::` looks for a distribution of that name, and the maintained fork has another.
_base_ = (
    __import__('mmseg').__path__[0]
    + '/.mim/configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py'
)
custom_imports = dict(imports=['freeatm_mm.openmmlab'], allow_failed_imports=False)

init = None
custom_hooks = [
    # The backbone's own loading (`pretrained`, `init_cfg`) takes no prefix and fills nothing from a
    # checkpoint that has one, without a word. This one does, and resizes the position embedding.
    dict(
        type='InitialWeightsHook',
        new=['gamma_', 'relative_position'],
        supervised='https://mmassets.onedl.ai/mmclassification/v0/deit/'
        'deit-base_pt-16xb64_in1k_20220216-db63c16c.pth',
    ),
    dict(type='CheckFilesHook'),
    dict(type='CheckTrainingHook'),
]
model = dict(pretrained=None)
# The base's `fp16` is a leftover that mmengine doesn't read: --amp is what switches it on.
fp16 = None
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
