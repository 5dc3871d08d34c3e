"""Hooks, initial weights, learning rates by layer."""

from freeatm_mm.engine.check_training import CheckTrainingHook
from freeatm_mm.engine.data_files import CheckFilesHook
from freeatm_mm.engine.hooks import ChannelsLastHook, SeedEachIterationHook
from freeatm_mm.engine.initial_weights import InitialWeightsHook
from freeatm_mm.engine.layer_decay import BackboneLayerDecayConstructor

__all__ = [
    'BackboneLayerDecayConstructor',
    'ChannelsLastHook',
    'CheckFilesHook',
    'CheckTrainingHook',
    'InitialWeightsHook',
    'SeedEachIterationHook',
]
