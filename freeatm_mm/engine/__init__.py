"""Hooks."""
from freeatm_mm.engine.hooks import SeedEachIterationHook

__all__ = ['SeedEachIterationHook']
