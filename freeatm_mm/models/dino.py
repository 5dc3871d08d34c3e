"""DINO with instance-level targets: a student predicts its teacher's view of each object.

Beyond the paper. DINO: arXiv 2104.14294; official code: github.com/facebookresearch/dino. Built on
mmpretrain's `BaseSelfSupervisor` and `CosineEMA`: it has no DINO in its package.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import BaseModule
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.models.utils import CosineEMA
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from freeatm_mm.models.instances import Instances, check_views, collect_instances
from freeatm_mm.models.mask_generators import training_progress
from freeatm_mm.models.necks import InstancePooling, check_pools_instances, feature_map
from freeatm_mm.ops.losses import distillation_loss


class DINONeck(BaseModule):
    """DINO's projection head behind average pooling: an MLP, and cosines with prototypes.

    Args:
        in_channels: Channels of the feature map.
        out_channels: Number of prototypes, the width of the output.
        hid_channels: Width of the MLP's hidden layers.
        bottleneck_channels: Width of its output, which is normalised.
        num_layers: Layers of the MLP, at least 1.
        with_bn: Whether hidden layers are followed by batch normalisation.
        init_cfg: Of mmengine; by default the MLP's weights are DINO's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 65536,
        hid_channels: int = 2048,
        bottleneck_channels: int = 256,
        num_layers: int = 3,
        with_bn: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02))
        widths = [in_channels, *[hid_channels] * (num_layers - 1)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers.append(nn.Linear(before, after))
            if with_bn:
                layers.append(nn.BatchNorm1d(after))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], bottleneck_channels))
        bound = bottleneck_channels**-0.5
        self.prototypes = nn.Parameter(
            torch.empty(out_channels, bottleneck_channels).uniform_(-bound, bound)
        )
        #: While it is set, the prototypes are not trained.
        self.frozen = False

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor]:
        """The neck's output.

        Args:
            x: One (B, C, h, w) feature map in a tuple.

        Returns:
            A tuple with one (B, out_channels) tensor.
        """
        rows = F.normalize(self.mlp(x[0].mean((2, 3))), dim=1)
        prototypes = F.normalize(self.prototypes, dim=1)
        if self.frozen and prototypes.requires_grad:
            # Only their direction counts, which no weight decay changes.
            prototypes.register_hook(torch.zeros_like)
        return (F.linear(rows, prototypes),)


@MODELS.register_module()
class FreeATMDINONeck(InstancePooling, DINONeck):
    """DINO's projection head, pooling instances where masks are given."""


@MODELS.register_module()
class FreeATMDINO(BaseSelfSupervisor):
    """DINO whose student and teacher see instances instead of images.

    Each instance that all views show is pooled under its mask in each of them; the student's output
    for it in one view is to be the teacher's in another. An image without such an instance is
    pooled whole. Without any mask in the batch (of all processes) it is DINO with views of one size
    (global crops) and pooled features.

    The teacher is the student's moving average, without stochastic depth and dropout; it moves at
    the beginning of a step, as mmpretrain's BYOL has it. The teacher sees the first two views, the
    student all. Shares of the training are counted in iterations.

    Args:
        base_momentum: What the teacher takes of the student at first; it falls to 0 by a cosine.
        student_temperature: Above 0.
        teacher_temperature: Above 0, not above the student's.
        warmup_teacher_temperature: Where the teacher's temperature begins, by default at its end.
        warmup: Share of the training in which it goes there, in [0, 1].
        center_momentum: Of the running mean of the teacher's outputs, in [0, 1).
        freeze_prototypes: Share of the training, at its beginning, in which the prototypes are not
            trained.
        **kwargs: Arguments of `mmpretrain.models.BaseSelfSupervisor`; the neck must be one that
            pools instances (`InstancePooling`), as `FreeATMDINONeck` does.

    Raises:
        ValueError: If a setting is out of range, or there is a head.
        TypeError: If the neck can't pool instances.
    """

    center: Tensor

    def __init__(
        self,
        *,
        base_momentum: float = 0.004,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float | None = None,
        warmup: float = 0.3,
        center_momentum: float = 0.9,
        freeze_prototypes: float = 0.01,
        **kwargs,
    ) -> None:
        if kwargs.get('head') is not None:
            raise ValueError(
                'FreeATMDINO has a loss of its own and no use for a head: leave it out.'
            )
        super().__init__(**kwargs)
        check_pools_instances(self)
        if warmup_teacher_temperature is None:
            warmup_teacher_temperature = teacher_temperature
        for name, value in (
            ('teacher_temperature', teacher_temperature),
            ('warmup_teacher_temperature', warmup_teacher_temperature),
        ):
            if not 0 < value <= student_temperature:
                raise ValueError(
                    f'FreeATMDINO: {name} must be above 0 and at most student_temperature='
                    f'{student_temperature}, got {value}.'
                )
        shares = dict(warmup=warmup, freeze_prototypes=freeze_prototypes)
        for name, value in {**shares, 'base_momentum': base_momentum}.items():
            if not 0 <= value <= 1:
                raise ValueError(f'FreeATMDINO: {name} must be in [0, 1], got {value}.')
        if not 0 <= center_momentum < 1:
            raise ValueError(
                f'FreeATMDINO: center_momentum must be in [0, 1), got {center_momentum}.'
            )
        self.student_temperature = student_temperature
        self.teacher_temperatures = (warmup_teacher_temperature, teacher_temperature)
        self.warmup, self.freeze_prototypes = warmup, freeze_prototypes
        self.center_momentum = center_momentum
        self.teacher = CosineEMA(nn.Sequential(self.backbone, self.neck), momentum=base_momentum)
        outputs = self.teacher.module[1].prototypes.shape[0]
        self.register_buffer('center', torch.zeros(1, outputs))

    def train(self, mode: bool = True) -> FreeATMDINO:
        """Set the mode; in training the teacher only normalises as in training."""
        super().train(mode)
        for module in self.teacher.modules():
            if not isinstance(module, _BatchNorm):
                module.training = False
        return self

    @torch.compiler.disable  # the running state is no constant
    def teacher_temperature(self, progress: float | None = None) -> float:
        """The teacher's temperature at a point of the training.

        Args:
            progress: In [0, 1]; by default that of the running training.
        """
        progress = training_progress() if progress is None else progress
        first, last = self.teacher_temperatures
        return last if progress >= self.warmup else first + (last - first) * progress / self.warmup

    def loss(
        self, inputs: list[Tensor], data_samples: list[DataSample] | None, **kwargs
    ) -> dict[str, Tensor]:
        """The loss and what is logged beside it.

        Args:
            inputs: Two views or more, each (B, 3, H, W).
            data_samples: B data samples of `PackFreeATMInputs`, with or without masks.
            **kwargs: Not used.

        Returns:
            `loss`, `teacher_entropy` (of the mean of its targets, as a share of the largest: near 0
            or with a loss that stays there near 1, the training has collapsed) and
            `teacher_temperature`; where there are masks also `instances_per_image`, `pooled_whole`
            (share of the images) and `cut_away` (share of the instances that a crop took away).

        Raises:
            ValueError: If there are other numbers of views, or masks of other views.
        """
        check_views(self, inputs, data_samples, most=None)
        instances = collect_instances(data_samples, inputs)
        temperature = self.teacher_temperature()
        self._freeze()
        student = _outputs(self.backbone, self.neck, inputs, instances)
        with torch.no_grad():
            self.teacher.update_parameters(nn.Sequential(self.backbone, self.neck))
            backbone, neck = self.teacher.module
            teacher = _outputs(backbone, neck, inputs[:2], instances)
        loss = distillation_loss(
            student,
            teacher,
            self.center,
            student_temperature=self.student_temperature,
            teacher_temperature=temperature,
            weights=None if instances is None else instances.weights,
        )
        statistics = {} if instances is None else instances.statistics()
        with torch.no_grad():
            targets = ((torch.cat(teacher) - self.center) / temperature).softmax(1)
            entropy = torch.special.entr(targets.mean(0)).sum()
            statistics['teacher_entropy'] = entropy / torch.tensor(targets.shape[1]).log()
            statistics['teacher_temperature'] = torch.tensor(temperature)
            self._move_center(torch.cat(teacher), instances)
        if instances is not None:
            loss = loss * instances.loss_weight
        return dict(loss=loss, **statistics)

    @torch.compiler.disable  # as `teacher_temperature`
    def _freeze(self) -> None:
        """Tell the neck whether its prototypes are trained now."""
        self.neck.frozen = training_progress() < self.freeze_prototypes

    @torch.compiler.disable  # numbers of instances
    def _move_center(self, outputs: Tensor, instances: Instances | None) -> None:
        """Move the centre towards the mean of all processes' (2M, D) teacher's outputs."""
        total, number = outputs.sum(0, keepdim=True), len(outputs) * get_world_size()
        if instances is not None:
            number = sum(instances.counts) * len(outputs) // len(instances.places)
        all_reduce(total)
        momentum, mean = self.center_momentum, total / number
        # A step that overflowed, as steps of mixed precision may, must not outlast itself.
        mean = torch.where(mean.isfinite().all(), mean, self.center)
        self.center.copy_(self.center * momentum + mean * (1 - momentum))


def _outputs(
    backbone: nn.Module, neck: nn.Module, views: Sequence[Tensor], instances: Instances | None
) -> list[Tensor]:
    """For each view the head's (M, D) float32 outputs, or (B, D) without instances.

    All views go through the network at once, as they do in DINO: batch normalisation sees them all.
    """
    features = feature_map(backbone(torch.cat(list(views))))
    if instances is None:
        rows = neck((features,))[0]
    else:
        masks = instances.masks[: len(views)].flatten(0, 1)
        step = len(masks) // len(views) * masks.shape[1]
        places = torch.cat([instances.places + number * step for number in range(len(views))])
        rows = neck(features, masks, places)[0]
    return list(rows.float().chunk(len(views)))
