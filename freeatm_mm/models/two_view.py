"""Any two-view method of mmpretrain with instance features: BYOL, Barlow Twins, DenseCL, SwAV ...

Beyond the paper, which applies it to SimCLR and MoCo v2 alone. A method's own loss runs as it is
written; only what its neck pools changes. So a further one needs no more than::

    @MODELS.register_module()
    class FreeATMYourMethod(InstanceViews, YourMethod):
        pass

if its necks, a momentum copy among them, are called for one view after the other in their order,
once or several times: the first view and then the second, by whichever neck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from mmengine.dist import all_gather, get_world_size
from mmpretrain.models.necks import DenseCLNeck, SwAVNeck
from mmpretrain.models.selfsup import BYOL, BarlowTwins, DenseCL, SwAV
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from freeatm_mm.compat import densecl_without_shuffling
from freeatm_mm.models.instances import Instances, check_views, collect_instances
from freeatm_mm.models.necks import HandedMasks, InstancePooling, check_pools_instances, feature_map
from freeatm_mm.ops.losses import enqueue
from freeatm_mm.ops.pooling import pool_instances


class InstanceViews:
    """Mixin for a two-view method: its necks pool the instances of the view that they are given.

    An image without an instance that both views show is pooled whole. Without any mask in the batch
    (of all processes) it is mmpretrain's method, bit for bit.

    Args:
        **kwargs: Arguments of the method; the neck must be one that pools instances
            (`InstancePooling`).

    Raises:
        TypeError: If the neck can't pool instances.
    """

    #: A context in which the method gives its necks the images of a batch in their order.
    in_order: Callable[[], AbstractContextManager] = staticmethod(nullcontext)

    #: How many views the method takes, at least two; None for any.
    most_views: int | None = 2

    #: Whether the loss mixes what all processes have, so that their numbers must be equal.
    equal_numbers = False

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        model: Any = self
        check_pools_instances(model)

    def loss(
        self, inputs: list[Tensor], data_samples: list[DataSample] | None, **kwargs
    ) -> dict[str, Tensor]:
        """The loss and what is logged beside it.

        Args:
            inputs: Two views (of SwAV any number), each (B, 3, H, W).
            data_samples: B data samples of `PackFreeATMInputs`, with or without masks.
            **kwargs: As of the class it extends.

        Returns:
            The method's losses; where there are masks also `instances_per_image`, `pooled_whole`
            (share of the images) and `cut_away` (share of the instances that a crop took away).

        Raises:
            ValueError: If there are other numbers of views than the method takes, or the instances
                come with trust; on several processes, if it needs equal numbers of instances.
        """
        method: Any = super()
        check_views(self, inputs, data_samples, self.most_views)
        instances = collect_instances(data_samples, inputs)
        if instances is None:
            return method.loss(inputs, data_samples, **kwargs)
        if instances.weights is not None:
            raise ValueError(
                f'{type(self).__name__} cannot weigh instances: set trust=False of LoadFromStore.'
            )
        if self.equal_numbers and get_world_size() > 1:
            raise ValueError(
                f'{type(self).__name__} trains with masks on one process: its loss takes the same '
                'number of instances from each'
            )
        with _handing_masks(self, instances), self.in_order():
            losses = method.loss(inputs, data_samples, **kwargs)
        weighted = {name: loss * instances.loss_weight for name, loss in losses.items()}
        return {**weighted, **instances.statistics()}


@contextmanager
def _handing_masks(model: Any, instances: Instances) -> Iterator[None]:
    """Give the necks of a model, momentum copies too, the masks of one view after the other.

    They take turns: DenseCL's neck is called for the first view and its copy for the second, each
    of BYOL's for the first and then the second.
    """
    necks = [module for module in model.modules() if isinstance(module, InstancePooling)]
    handed = HandedMasks(instances.masks, instances.places)
    for neck in necks:
        neck.handed = handed
    try:
        yield
    finally:
        for neck in necks:
            neck.handed = None


@MODELS.register_module()
class FreeATMBYOL(InstanceViews, BYOL):
    """BYOL (arXiv 2006.07733) that predicts each instance's other view."""


@MODELS.register_module()
class FreeATMBarlowTwins(InstanceViews, BarlowTwins):
    """Barlow Twins (arXiv 2103.03230) that correlates instances."""

    equal_numbers = True


@MODELS.register_module()
class FreeATMSwAV(InstanceViews, SwAV):
    """SwAV (arXiv 2006.09882) that assigns instances to prototypes; all views of one size."""

    equal_numbers = True
    most_views = None


@MODELS.register_module()
class FreeATMSwAVNeck(InstancePooling, SwAVNeck):
    """mmpretrain's `SwAVNeck`, pooling instances where masks are given."""

    def forward(self, x: Any, masks: Tensor | None = None, places: Tensor | None = None) -> Any:
        """The neck's output.

        Args:
            x: For each size of views what the backbone gave of them, one view after the other.
            masks: Not taken: they are handed by the method.
            places: Not taken.

        Returns:
            (V * M, D), or (V * B, D) without masks.
        """
        if self.handed is None:
            return SwAVNeck.forward(self, x)
        rows = []
        for outputs in x:
            features = feature_map(outputs)
            for view in features.split(self.handed.masks.shape[1]):
                rows.append(pool_instances(view, *self.handed.next()))
        return self.forward_projection(torch.cat(rows))


@MODELS.register_module()
class FreeATMDenseCLNeck(InstancePooling, DenseCLNeck):
    """mmpretrain's `DenseCLNeck`: its global branch pools instances, its dense one is as it was."""

    def forward(self, x: Any, masks: Tensor | None = None, places: Tensor | None = None) -> Any:
        """The neck's output.

        Args:
            x: One (B, C, h, w) feature map in a tuple.
            masks: (B, K, h, w), or None for those that the method handed, if it did.
            places: (M,) which of the B * K masks are meant.

        Returns:
            (M, D) of the instances, or (B, D); (B, D, S * S) dense; (B, D) of the dense ones' mean.
        """
        if masks is None and self.handed is not None:
            masks, places = self.handed.next()
        whole, dense, mean = DenseCLNeck.forward(self, x)
        if masks is not None:
            whole = self.mlp(pool_instances(feature_map(x), masks, places))
        return whole, dense, mean


@MODELS.register_module()
class FreeATMDenseCL(InstanceViews, DenseCL):
    """DenseCL (arXiv 2011.09157) whose global contrast is between instances."""

    equal_numbers = True
    in_order = staticmethod(densecl_without_shuffling)

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys: Tensor) -> None:
        """As of the class it extends, with any number of keys, wherever the queue's pointer is."""
        enqueue(self.queue, self.queue_ptr, torch.cat(all_gather(keys)))

    @torch.no_grad()
    def _dequeue_and_enqueue2(self, keys: Tensor) -> None:
        """The same for the queue of dense keys."""
        enqueue(self.queue2, self.queue2_ptr, torch.cat(all_gather(keys)))


__all__ = [
    'FreeATMBYOL',
    'FreeATMBarlowTwins',
    'FreeATMDenseCL',
    'FreeATMDenseCLNeck',
    'FreeATMSwAV',
    'FreeATMSwAVNeck',
    'InstanceViews',
]
