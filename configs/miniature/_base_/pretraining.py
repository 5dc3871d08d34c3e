"""What the miniature's pretrainings share, under names that no framework's config has."""

_base_ = './networks.py'

small_epochs = 40

small_crop = dict(type='FreeATMRandomResizedCrop', scale=40, crop_ratio_range=(0.2, 1.0))
small_flip = dict(type='FreeATMRandomFlip', prob=0.5)
# Colour tells this world's nouns apart, so it is changed only mildly, and never taken away.
small_colour = dict(
    type='RandomApply',
    prob=0.8,
    transforms=[dict(type='ColorJitter', brightness=0.3, saturation=0.3, backend='cv2')],
)
small_views = [small_crop, small_colour, small_flip]
small_pipeline = [
    dict(type='LoadFromStore'),
    dict(type='FreeATMMultiView', num_views=2, transforms=[small_views]),
    dict(type='PackFreeATMInputs', grid_size=5),
]

small_schedule = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR', T_max=small_epochs - 2, by_epoch=True, begin=2, end=small_epochs
    ),
]
