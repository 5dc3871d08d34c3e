"""Necks and algorithms: mmpretrain's own, with instances where masks are given."""
from freeatm_mm.models.moco import FreeATMMoCo
from freeatm_mm.models.necks import InstancePoolNeck

__all__ = ['FreeATMMoCo', 'InstancePoolNeck']
