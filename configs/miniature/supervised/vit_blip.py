"""The ViT that the miniature's BLIP can start from, as the paper's starts from DeiT.

`vit.py` in the sizes of configs/lavis/miniature/blip_pretrain_freeatm.yaml, with that model's class
token and colours; `tools/convert/checkpoint.py --to timm` makes of it what `model.image_weights`
takes. tools/miniature/blip.py --start-trained does both.

python tools/train.py configs/miniature/supervised/vit_blip.py --data-root WORLD
"""

_base_ = './vit.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1]['scale'] = 64
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_pipeline = _base_.test_pipeline
test_pipeline[1]['scale'] = (64, 64)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# As CLIP's, which BLIP has.
data_preprocessor = dict(
    mean=[122.7709383, 116.7460125, 104.09373615],
    std=[68.5005327, 66.6321579, 70.32316305],
    to_rgb=True,
)
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, embed_dims=96, num_layers=3, num_heads=4, feedforward_channels=384
        ),
        img_size=64,
        patch_size=8,
        out_type='cls_token',
        final_norm=True,
    ),
    head=dict(in_channels=96),
)
