"""HPM's learned guidance instead of masks, arXiv 2304.05919, everything else alike.

A small predictor learns which patches are hard to reconstruct; up to half of the hidden patches are
those that its moving average expects to be hardest. HPM's predictor is as large as MAE's decoder
(8 layers), and so is this one.

    python -m torch.distributed.run --nproc-per-node 8 \
        tools/train.py configs/peers/mae_hpm.py --launcher pytorch --data-root STORE
"""

_base_ = '../mae_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
model = dict(
    guide=dict(type='LossGuide', channels=512, depth=8, heads=16), mask_generator=dict(ceiling=0.5)
)
