"""Hooks, initial weights, learning rates by layer.

Two registries are in use. What works with mmpretrain's models alone is in `mmpretrain.registry`;
what runs with mmdet and mmseg as well, under their scopes, is in `mmengine.registry`, the root
which every scope falls back to.
"""

from freeatm_mm.compat import format_configs_once, read_checkpoints_safely
from freeatm_mm.engine.check_training import CheckTrainingHook
from freeatm_mm.engine.data_files import CheckFilesHook
from freeatm_mm.engine.hooks import ChannelsLastHook, LogViewsHook, SeedEachIterationHook
from freeatm_mm.engine.initial_weights import InitialWeightsHook
from freeatm_mm.engine.layer_decay import BackboneLayerDecayConstructor
from freeatm_mm.engine.precision import BFloat16Hook

__all__ = [
    'BFloat16Hook',
    'BackboneLayerDecayConstructor',
    'ChannelsLastHook',
    'CheckFilesHook',
    'CheckTrainingHook',
    'InitialWeightsHook',
    'LogViewsHook',
    'SeedEachIterationHook',
]

# Whoever trains with these hooks, in a tool of any framework, loads and resumes checkpoints.
read_checkpoints_safely()
format_configs_once()
