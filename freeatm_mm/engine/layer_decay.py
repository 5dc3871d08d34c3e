"""Layer-wise learning rates for ViTs in frameworks whose own constructors don't know them."""

from __future__ import annotations

from typing import Any

from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn

__all__ = ['BackboneLayerDecayConstructor']


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneLayerDecayConstructor(LearningRateDecayOptimWrapperConstructor):
    """mmpretrain's layer-wise decay for any model whose ``backbone`` knows its layers' depths.

    mmpretrain's own asks the model, which only its classifiers answer; mmdet's knows ConvNeXt
    alone. What is not in the backbone gets the full rate. Options are mmpretrain's
    (``layer_decay_rate``, ``norm_decay_mult`` ...).
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth=None,
        **kwargs,
    ) -> None:
        """As the parent's, asking the backbone.

        Raises:
            TypeError: If the backbone doesn't know its layers' depths.
        """
        if get_layer_depth is None:
            backbone: Any = module.backbone
            if not hasattr(backbone, 'get_layer_depth'):
                raise TypeError(
                    f'layer-wise learning rates need a backbone with get_layer_depth, '
                    f'such as mmpretrain.VisionTransformer, not '
                    f'{type(backbone).__name__}'
                )

            def get_layer_depth(name: str) -> tuple[int, int]:
                return backbone.get_layer_depth(name, 'backbone.')

        super().add_params(params, module, prefix=prefix, get_layer_depth=get_layer_depth, **kwargs)
