"""Dataset, sampler and mask-aware transforms for mmengine, on the store."""

from freeatm_mm.datasets.dataset import FreeATMDataset
from freeatm_mm.datasets.samplers import SeededInfiniteSampler, SeededSampler
from freeatm_mm.datasets.transforms import (
    FreeATMColorJitter,
    FreeATMMultiView,
    FreeATMRandomFlip,
    FreeATMRandomGrayscale,
    FreeATMRandomResizedCrop,
    LoadFromStore,
    PackFreeATMInputs,
)

__all__ = [
    'FreeATMColorJitter',
    'FreeATMDataset',
    'FreeATMMultiView',
    'FreeATMRandomFlip',
    'FreeATMRandomGrayscale',
    'FreeATMRandomResizedCrop',
    'LoadFromStore',
    'PackFreeATMInputs',
    'SeededInfiniteSampler',
    'SeededSampler',
]
