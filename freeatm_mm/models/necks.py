"""Attentive pooling of instances in front of mmpretrain's necks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmengine.dist import get_world_size
from mmpretrain.models.necks import MoCoV2Neck, NonLinearNeck
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from freeatm_mm.errors import InputError
from freeatm_mm.ops.pooling import pool_instances


def feature_map(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """The one (B, C, h, w) feature map that a backbone gives.

    Args:
        outputs: What the backbone returned: a tensor, or a tuple or list with one.

    Raises:
        ValueError: If it gave several outputs, or what is no feature map, saying what to set.
    """
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    if len(outputs) != 1:
        raise ValueError(
            f'The neck pools one feature map, and the backbone gave {len(outputs)}: set its '
            'out_indices to one stage (or, of an HRNet, multiscale_output=False).'
        )
    features = outputs[0]
    if not isinstance(features, Tensor) or features.ndim != 4:
        found = (
            f'something of shape {tuple(features.shape)}'
            if isinstance(features, Tensor)
            else f'a {type(features).__name__}'
        )
        raise ValueError(
            f'The neck pools a feature map (B, C, h, w), and the backbone gave {found}: set '
            "out_type='featmap' (of a vision transformer) or gap_before_final_norm=False (of a "
            'ConvNeXt).'
        )
    return features


class HandedMasks:
    """The masks of each view in turn, for necks that a method calls for one view after the other.

    Args:
        masks: (V, B, K, h, w).
        places: (M,) which of the B * K masks are meant.
    """

    def __init__(self, masks: Tensor, places: Tensor) -> None:
        self.masks, self.places = masks, places
        self._calls = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """Return masks (B, K, h, w) and places of the next view; after the last, the first."""
        self._calls += 1
        return self.masks[(self._calls - 1) % len(self.masks)], self.places


class InstancePooling:
    """Mixin for a pooling neck: one feature per instance where masks are given.

    The neck stays what it is: the same parameters under the same names, so that checkpoints are
    exchangeable, and without masks the same output bit for bit. With masks, equation 2 takes the
    place of its average pooling and the rest of the neck (the MLP of section 3.3) follows.

    Another neck with average pooling needs no more than::

        @MODELS.register_module()
        class FreeATMYourNeck(InstancePooling, YourNeck):
            pass

    Raises:
        ValueError: If the neck has no average pooling whose place could be taken.
    """

    modules: Callable[[], Iterator[nn.Module]]  # the neck's
    training: bool
    #: What `InstanceViews` hands over while it computes a loss.
    handed: HandedMasks | None = None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not getattr(self, 'with_avg_pool', True):
            raise ValueError(
                f'{type(self).__name__}: with_avg_pool=False leaves no average '
                'pooling whose place the masks could take.'
            )

    def forward(
        self,
        x: Tensor | Sequence[Tensor],
        masks: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor]:
        """The neck's output, per image or per instance.

        Args:
            x: One (B, C, h, w) feature map, in a tuple or list or by itself.
            masks: (B, K, h, w) masks, or None for the neck's own pooling.
            places: (M,) which of the B * K masks are meant. Defaults to all.

        Returns:
            A tuple with one tensor: (B, D) without masks, (M, D) with.

        Raises:
            ValueError: If there are several feature maps or none, with other channels than the
                neck's, or the masks have another grid.
            InputError: If a single feature is to be normalised by its batch.
        """
        if masks is None and self.handed is not None:
            masks, places = self.handed.next()
        features = feature_map(x)
        wanted = next(
            (layer.in_features for layer in self.modules() if isinstance(layer, nn.Linear)), None
        )
        if wanted not in (None, features.shape[1]):
            raise ValueError(
                f'{type(self).__name__}: the backbone gives {features.shape[1]} '
                f'channels: set in_channels={features.shape[1]} (not {wanted}).'
            )
        if masks is not None:
            # The neck's average pooling of a 1x1 map is the map itself.
            features = pool_instances(features, masks, places)[:, :, None, None]
        if len(features) == 1 and self.training and normalises_batch(self):
            raise InputError(
                f'{type(self).__name__} normalises the features of a batch by their mean and '
                'spread (BatchNorm), and this batch has one: set train_dataloader.drop_last=True, '
                'or another train_dataloader.batch_size'
            )
        return super().forward((features,))  # type: ignore[misc]  # the neck's


@MODELS.register_module()
class FreeATMMoCoV2Neck(InstancePooling, MoCoV2Neck):
    """mmpretrain's `MoCoV2Neck`, pooling instances where masks are given."""


@MODELS.register_module()
class FreeATMNonLinearNeck(InstancePooling, NonLinearNeck):
    """mmpretrain's `NonLinearNeck`, pooling instances where masks are given."""


@MODELS.register_module()
def InstancePoolNeck(neck: str, **kwargs) -> nn.Module:
    """Another way to write `dict(type='FreeATM<neck>', ...)`: the neck's name as an argument.

    Args:
        neck: 'MoCoV2Neck', 'NonLinearNeck', or any X for which a 'FreeATMX' is registered.
        **kwargs: The neck's own arguments.

    Raises:
        ValueError: If there is none.
    """
    if MODELS.get(f'FreeATM{neck}') is None:
        raise ValueError(
            f'InstancePoolNeck: there is no FreeATM{neck}: use MoCoV2Neck or '
            'NonLinearNeck, or register class '
            f'FreeATM{neck}(InstancePooling, {neck}).'
        )
    return MODELS.build(dict(kwargs, type=f'FreeATM{neck}'))


def normalises_batch(module: Any) -> bool:
    """Whether a part normalises what this process gives it by its own mean and spread.

    Of a single feature there is no spread. What is normalised over several processes has more.
    """
    return any(
        isinstance(part, _BatchNorm)
        and not (isinstance(part, nn.SyncBatchNorm) and get_world_size() > 1)
        for part in module.modules()
    )


def check_pools_instances(model: nn.Module) -> None:
    """Make sure that a model's neck pools instances.

    Raises:
        TypeError: If not, saying what to write.
    """
    if not isinstance(model.neck, InstancePooling):
        name = type(model.neck).__name__
        known = f'FreeATM{name}' if MODELS.get(f'FreeATM{name}') else 'FreeATMMoCoV2Neck'
        raise TypeError(
            f"{type(model).__name__}: the neck {name} can't pool instances: write "
            f"neck=dict(type='{known}', ...)."
        )
