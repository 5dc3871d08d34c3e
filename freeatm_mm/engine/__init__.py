"""Hooks."""
from freeatm_mm.engine.hooks import ChannelsLastHook, SeedEachIterationHook

__all__ = ['ChannelsLastHook', 'SeedEachIterationHook']
