"""MoCo v2 with Free-ATM and four options beyond the paper: not decided yet.

Keys of the query's own noun in other images are positives too; an instance's loss is weighted by
the trust in its mask; masks are stretched to [0, 1]; all views of an image are cropped around one
of its nouns. No figure says that it is better than `mocov2_freeatm.py`, and none is claimed: see
"Beyond the paper" in docs/pretraining.md.

    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/mocov2_freeatm_plus.py --launcher pytorch --amp --data-root STORE
"""

_base_ = 'mocov2_freeatm.py'

train_pipeline = _base_.train_pipeline
train_pipeline[0]['trust'] = True
train_pipeline[1]['object_crops'] = 1.0
train_pipeline[2]['mask_values'] = 'normalized'
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

model = dict(positives='same_noun')
