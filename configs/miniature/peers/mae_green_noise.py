"""ColorMAE's green noise instead of masks, arXiv 2407.13036, everything else alike.

Nothing is guided: chance hides patches in clumps, from the same draw as MAE's.

python tools/train.py configs/miniature/peers/mae_green_noise.py --data-root STORE
"""

_base_ = '../mae_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
model = dict(mask_generator=dict(ceiling=0.0, noise='green'))
