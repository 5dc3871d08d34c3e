"""MAE with Free-ATM and an option beyond the paper at this scale: not decided yet.

Beta is a share of each image's own foreground and grows to 1, so that objects are hidden from the
inside first and whole at the end; masks are stretched to [0, 1] so that each noun counts alike. No
figure says that it is better than `mae_freeatm.py`, and none is claimed: see "Beyond the paper" in
docs/pretraining.md.

python tools/train.py configs/miniature/mae_freeatm_plus.py --data-root STORE
"""

_base_ = 'mae_freeatm.py'

train_pipeline = _base_.train_pipeline
train_pipeline[-1]['mask_values'] = 'normalized'
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

model = dict(combine='max', mask_generator=dict(ceiling=1.0, share_of='foreground'))
