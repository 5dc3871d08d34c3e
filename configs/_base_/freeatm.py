"""What every pretraining config shares, whatever method of mmpretrain's it inherits beside this.

mmengine lets no two bases have an entry in common, so entries that mmpretrain's configs have, too,
bear names of their own here, and each config puts them in their place:

    _base_ = ['mmpretrain::...', '_base_/freeatm.py']
    train_dataloader = _base_.freeatm_dataloader
    train_dataloader['dataset']['pipeline'] = [...]
    custom_hooks = _base_.freeatm_hooks
"""

custom_imports = dict(imports=['freeatm_mm.openmmlab'], allow_failed_imports=False)

freeatm_dataloader = dict(
    sampler=dict(type='SeededSampler'),
    # Without the `_scope_` that mmengine adds to what is inherited and hands to the function.
    collate_fn=dict(_delete_=True, type='default_collate'),
    dataset=dict(
        _delete_=True,
        type='FreeATMDataset',
        data_root='data/freeatm_imagenet',
        masks=True,
    ),
)

# A resumed run ends bit-equal to one that was never stopped.
freeatm_hooks = [dict(type='SeedEachIterationHook'), dict(type='CheckTrainingHook')]
