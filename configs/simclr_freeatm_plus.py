"""SimCLR with Free-ATM and four options beyond the paper.

Keys of the query's own noun in other images are positives too; an instance's loss is weighted by
the trust in its mask; masks are stretched to [0, 1]; all views of an image are cropped around one
of its nouns. In the miniature it is ahead of `simclr_freeatm.py`; at the paper's scale it has not
been run: see "Beyond the paper" in docs/pretraining.md.

    python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:PORT \
        tools/train.py configs/simclr_freeatm_plus.py --launcher pytorch --amp --data-root STORE
"""

_base_ = 'simclr_freeatm.py'

train_pipeline = _base_.train_pipeline
train_pipeline[0]['trust'] = True
train_pipeline[1]['object_crops'] = 1.0
train_pipeline[2]['mask_values'] = 'normalized'
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

model = dict(positives='same_noun')
