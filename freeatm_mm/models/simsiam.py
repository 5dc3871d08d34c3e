"""SimSiam with instance features: the pooling neck in a two-view method without negatives.

Beyond the paper, which applies it to SimCLR and MoCo v2 alone. SimSiam: arXiv 2011.10566; official
code: github.com/facebookresearch/simsiam. Built on `mmpretrain.models.selfsup.SimSiam`.
"""

from __future__ import annotations

from mmpretrain.models.selfsup import SimSiam
from mmpretrain.registry import MODELS

from freeatm_mm.models.two_view import InstanceViews


@MODELS.register_module()
class FreeATMSimSiam(InstanceViews, SimSiam):
    """SimSiam that predicts each instance's other view instead of the image's.

    An image without an instance that both views show is pooled whole. Without any mask in the batch
    (of all processes) it is mmpretrain's `SimSiam`, bit for bit.

    Args:
        **kwargs: Arguments of `mmpretrain.models.SimSiam`; the neck must be one that pools
            instances (`InstancePooling`), as `FreeATMNonLinearNeck` does.

    Raises:
        TypeError: If the neck can't pool instances.
    """
