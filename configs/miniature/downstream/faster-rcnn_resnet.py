"""`voc_faster-rcnn_r50-c4_24k.py` at the miniature's scale: AP50 on real scenes.

As there, one map and no pyramid. The small ResNet ends at stride 8 after three stages, so that
there is no fourth one to be the head on regions: two linear layers are.

    python tools/train.py configs/miniature/downstream/faster-rcnn_resnet.py \
        --data-root WORLD --cfg-options init=CHECKPOINT          # or init=random
"""

_base_ = './mask-rcnn_resnet.py'  # its data and heads

train_pipeline = _base_.train_pipeline
train_pipeline[1] = dict(type='LoadAnnotations', with_bbox=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric=['bbox'])
test_evaluator = val_evaluator

model = dict(
    type='FasterRCNN',
    backbone=dict(out_indices=(2,)),
    neck=None,
    rpn_head=dict(in_channels=96, anchor_generator=dict(scales=[1.5, 3, 6], strides=[8])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=96, featmap_strides=[8]),
        bbox_head=dict(in_channels=96),
        mask_roi_extractor=None,
        mask_head=None,
    ),
)
