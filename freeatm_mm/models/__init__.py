"""Necks and algorithms: mmpretrain's own, with instances where masks are given."""

from freeatm_mm.models.dino import FreeATMDINO, FreeATMDINONeck
from freeatm_mm.models.guides import LossGuide, NounGuide, OwnAttentionGuide
from freeatm_mm.models.mae import FreeATMMAE, FreeATMMAEViT
from freeatm_mm.models.mask_generators import AttentionGuidedMaskGenerator
from freeatm_mm.models.moco import FreeATMMoCo
from freeatm_mm.models.necks import (
    FreeATMMoCoV2Neck,
    FreeATMNonLinearNeck,
    InstancePooling,
    InstancePoolNeck,
)
from freeatm_mm.models.simclr import FreeATMSimCLR
from freeatm_mm.models.simsiam import FreeATMSimSiam
from freeatm_mm.models.two_view import (
    FreeATMBarlowTwins,
    FreeATMBYOL,
    FreeATMDenseCL,
    FreeATMDenseCLNeck,
    FreeATMSwAV,
    FreeATMSwAVNeck,
    InstanceViews,
)
from freeatm_mm.models.vit_pyramid import ViTPyramid

__all__ = [
    'AttentionGuidedMaskGenerator',
    'FreeATMBYOL',
    'FreeATMBarlowTwins',
    'FreeATMDINO',
    'FreeATMDINONeck',
    'FreeATMDenseCL',
    'FreeATMDenseCLNeck',
    'FreeATMMAE',
    'FreeATMMAEViT',
    'FreeATMMoCo',
    'FreeATMMoCoV2Neck',
    'FreeATMNonLinearNeck',
    'FreeATMSimCLR',
    'FreeATMSimSiam',
    'FreeATMSwAV',
    'FreeATMSwAVNeck',
    'InstancePoolNeck',
    'InstancePooling',
    'InstanceViews',
    'LossGuide',
    'NounGuide',
    'OwnAttentionGuide',
    'ViTPyramid',
]
