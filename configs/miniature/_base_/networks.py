"""The miniature's networks, under names that no framework's config has."""

# The backbone that the contrastive methods pretrain; benchmarks say which stages they take.
world_resnet = dict(
    depth=18,
    num_stages=3,
    stem_channels=16,
    base_channels=24,
    strides=(1, 2, 1),
    dilations=(1, 1, 1),
)
# The backbone that MAE pretrains.
world_vit = dict(embed_dims=128, num_layers=6, num_heads=4, feedforward_channels=512)
