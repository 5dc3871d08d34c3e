"""What the miniature's benchmarks share, under names that no framework's config has."""

_base_ = './networks.py'

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
world_resnet_weights = dict(
    type='InitialWeightsHook', supervised='work_dirs/miniature/supervised/resnet/epoch_30.pth'
)
world_vit_weights = dict(
    type='InitialWeightsHook', supervised='work_dirs/miniature/supervised/vit/epoch_10.pth'
)
world_checks = [dict(type='CheckFilesHook'), dict(type='CheckTrainingHook')]
