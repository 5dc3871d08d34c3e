"""What the miniature's benchmarks share, under names that no framework's config has."""

world_root = 'data/miniature_world/'
world_nouns = (
    'shirt',
    'trouser',
    'pullover',
    'dress',
    'sandal',
    'sneaker',
    'bag',
    'boot',
    'bird',
    'fish',
    'insect',
    'mammal',
    'flower',
    'fruit',
    'mushroom',
    'tree',
    'guitar',
    'planet',
    'ball',
    'car',
    'tool',
)
# The backbone that the contrastive methods pretrain; benchmarks say which stages they take.
world_resnet = dict(
    depth=18,
    num_stages=3,
    stem_channels=16,
    base_channels=24,
    strides=(1, 2, 1),
    dilations=(1, 1, 1),
)
world_resnet_weights = dict(
    type='InitialWeightsHook', supervised='work_dirs/miniature/supervised/resnet/epoch_30.pth'
)
# The backbone that MAE pretrains.
world_vit = dict(embed_dims=128, num_layers=6, num_heads=4, feedforward_channels=512)
world_vit_weights = dict(
    type='InitialWeightsHook', supervised='work_dirs/miniature/supervised/vit/epoch_10.pth'
)
world_checks = [dict(type='CheckFilesHook'), dict(type='CheckTrainingHook')]
