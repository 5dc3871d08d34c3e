"""The objects of the world's real scenes, cut out, for classification."""

_base_ = './world.py'

world_objects = dict(type='CustomDataset', data_root=_base_.world_root)
world_train, world_test = (
    dict(
        batch_size=128,
        num_workers=1,
        dataset=dict(_delete_=True, data_prefix=f'{split}/objects', **world_objects),
    )
    for split in ('train', 'test')
)
