"""SimSiam with instance features: the pooling neck in a two-view method without negatives.

Beyond the paper, which applies it to SimCLR and MoCo v2 alone. SimSiam: arXiv 2011.10566; official
code: github.com/facebookresearch/simsiam. Built on `mmpretrain.models.selfsup.SimSiam`.
"""

from __future__ import annotations

from mmpretrain.models.selfsup import SimSiam
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from freeatm_mm.models.instances import collect_instances
from freeatm_mm.models.necks import check_pools_instances


@MODELS.register_module()
class FreeATMSimSiam(SimSiam):
    """SimSiam that predicts each instance's other view instead of the image's.

    An image without an instance that both views show is pooled whole. Without any mask in the batch
    (of all processes) it is mmpretrain's `SimSiam`, bit for bit.

    Args:
        **kwargs: Arguments of `mmpretrain.models.SimSiam`; the neck must be one that pools
            instances (`InstancePooling`), as `FreeATMNonLinearNeck` does.

    Raises:
        TypeError: If the neck can't pool instances.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        check_pools_instances(self)

    def loss(
        self, inputs: list[Tensor], data_samples: list[DataSample] | None, **kwargs
    ) -> dict[str, Tensor]:
        """The loss and what is logged beside it.

        Args:
            inputs: Two views, each (B, 3, H, W).
            data_samples: B data samples of `PackFreeATMInputs`, with or without masks.
            **kwargs: As of the class it extends.

        Returns:
            `loss`; where there are masks also `instances_per_image`, `pooled_whole` (share of the
            images) and `cut_away` (share of the instances that a crop took away).

        Raises:
            ValueError: If the instances come with trust.
        """
        instances = collect_instances(data_samples, inputs[0])
        if instances is None:
            return super().loss(inputs, data_samples, **kwargs)
        if instances.weights is not None:
            raise ValueError(
                'FreeATMSimSiam cannot weigh instances: set trust=False of LoadFromStore.'
            )
        first, second = (
            self.neck(self.backbone(view), masks, instances.places)[0]
            for view, masks in zip(inputs, instances.masks)
        )
        loss = 0.5 * (self.head.loss(first, second) + self.head.loss(second, first))
        return dict(loss=loss * instances.loss_weight, **instances.statistics())
