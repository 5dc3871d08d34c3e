"""HPM's learned guidance instead of masks, arXiv 2304.05919, everything else alike.

A small predictor learns which patches are hard to reconstruct; up to half of the hidden patches are
those that its moving average expects to be hardest. HPM's predictor is as large as MAE's decoder
(8 layers); this one has a single layer.

python tools/train.py configs/miniature/peers/mae_hpm.py --data-root STORE
"""

_base_ = '../mae_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
model = dict(guide=dict(type='LossGuide'), mask_generator=dict(ceiling=0.5))
