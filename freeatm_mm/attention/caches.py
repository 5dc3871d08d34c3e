"""Step caches of diffusers: which of the hooks in a denoiser leave layers out of some steps.

A cache reuses what blocks or attention modules gave a few steps before, so that their attention is
not computed at every step. diffusers keeps its hooks in a registry on each module they change.
"""

from __future__ import annotations

from torch import nn

__all__ = ['may_be_skipped', 'uses_step_cache']

# By the module of diffusers.hooks that they come from; a hook's own name may be the user's.
_SKIP = frozenset(
    {
        'first_block_cache',
        'mag_cache',
        'sea_cache',
        'taylorseer_cache',
        'pyramid_attention_broadcast',
    }
)
# The last keeps the text's keys and values, and attends at every step.
_KEEP = frozenset({'group_offloading', 'layerwise_casting', 'text_kv_cache'})


def uses_step_cache(denoiser: nn.Module) -> bool:
    """Tell whether a denoiser leaves layers out of some steps.

    Raises:
        ValueError: If it has a hook of diffusers that changes its attention otherwise: FasterCache,
            which drops half the batch, layer skipping, guidance by smoothed attention, parallel
            sequences, or one unknown.
    """
    found = set()
    for name, module in denoiser.named_modules():
        for kind in _kinds(module):
            if kind not in _SKIP | _KEEP:
                raise ValueError(
                    f"{name or type(denoiser).__name__} has diffusers' hook {kind}, with which its "
                    'attention is not that of all images and steps; record without it '
                    '(pipe.transformer.disable_cache(), for a cache)'
                )
            found.add(kind)
    return bool(found & _SKIP)


def may_be_skipped(module: nn.Module) -> bool:
    """Tell whether a step cache may answer for a module without running it."""
    return any(kind in _SKIP for kind in _kinds(module))


def _kinds(module: nn.Module) -> list[str]:
    # getattr writes an error for each module that has none, nearly all of them.
    registry = vars(module).get('_diffusers_hook')
    return (
        []
        if registry is None
        else [type(hook).__module__.rpartition('.')[2] for hook in registry.hooks.values()]
    )
