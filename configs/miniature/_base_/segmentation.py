"""The world's real scenes with their label maps, for semantic segmentation."""

_base_ = './world.py'

world_classes = ('background', *_base_.world_nouns)
world_train, world_test = (
    dict(
        batch_size=batch_size,
        num_workers=1,
        dataset=dict(
            _delete_=True,
            type='BaseSegDataset',
            metainfo=dict(classes=world_classes),
            data_root=_base_.world_root,
            img_suffix='.png',
            seg_map_suffix='.png',
            data_prefix=dict(img_path=f'{split}/images', seg_map_path=f'{split}/labels'),
            **some,
        ),
    )
    for split, batch_size, some in (('train', 16, dict(indices=1000)), ('test', 50, {}))
)
