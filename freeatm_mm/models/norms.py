"""Batch normalisation by parts of the batch, for MoCo on one process."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

__all__ = ['SplitBatchNorm2d']


@MODELS.register_module('SplitBN')  # the root's: mmcv asks there, whatever the scope
class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of each part of the batch by itself, as if each were on a GPU of its own.

    MoCo's positive key is of the query's own batch, its negatives are of earlier ones: a network
    that feels its batch's statistics tells them apart without looking at the image. MoCo shuffles
    the keys' images over GPUs against that (arXiv 1911.05722, section 3.3); on one process there is
    nothing to shuffle over, unless the batch is split. Parameters, buffers and evaluation are those
    of `torch.nn.BatchNorm2d`, so checkpoints go both ways.

        backbone=dict(norm_cfg=dict(type='SplitBN', num_splits=8))

    Args:
        num_features: Channels.
        num_splits: How many parts, of sizes that differ by one at most.
        **kwargs: Arguments of `torch.nn.BatchNorm2d`.

    Raises:
        ValueError: If `num_splits` is below 1; in training, if a batch has fewer images.
    """

    def __init__(self, num_features: int, num_splits: int = 8, **kwargs) -> None:
        super().__init__(num_features, **kwargs)
        if num_splits < 1:
            raise ValueError(f'SplitBN: num_splits must be 1 or more, got {num_splits}')
        self.num_splits = num_splits

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W), in training by the statistics of each part of the batch."""
        if not self.training:
            return super().forward(input)
        if len(input) < self.num_splits:
            raise ValueError(
                f'SplitBN: a batch of {len(input)} cannot be split into {self.num_splits} parts: '
                'set a smaller num_splits, or a larger batch_size'
            )
        momentum = self.momentum
        if (
            momentum is not None
        ):  # all parts together move the running statistics as far as one does
            self.momentum = 1 - (1 - momentum) ** (1 / self.num_splits)
        try:
            parts = [
                super(SplitBatchNorm2d, self).forward(part)
                for part in input.tensor_split(self.num_splits)
            ]
        finally:
            self.momentum = momentum
        return torch.cat(parts)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f'{super().extra_repr()}, num_splits={self.num_splits}'
