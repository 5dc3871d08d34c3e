"""SimCLR with instance features, "Free-ATM", section 3.3 (arXiv 2308.06739).

SimCLR: arXiv 2002.05709; official code: github.com/google-research/simclr. Built on
`mmpretrain.models.selfsup.SimCLR`.
"""

from __future__ import annotations

import torch
from mmengine.dist import get_rank, get_world_size
from mmpretrain.models.selfsup import SimCLR
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from freeatm_mm.models.instances import (
    Instances,
    check_positives,
    check_views,
    collect_instances,
)
from freeatm_mm.models.necks import check_pools_instances
from freeatm_mm.ops.choices import check_choice
from freeatm_mm.ops.gathering import gather_rows, gather_rows_with_gradient
from freeatm_mm.ops.losses import (
    NEGATIVES,
    contrastive_accuracy,
    equation3_logits,
    nt_xent_logits,
    other_positives,
)
from freeatm_mm.ops.nouns import mean_of_known, same_noun_counts

LOSSES = {'nt_xent': nt_xent_logits, 'equation3': equation3_logits}


@MODELS.register_module()
class FreeATMSimCLR(SimCLR):
    """SimCLR that contrasts instances instead of images.

    Each instance that both views show gives a pair; the instances of all processes are each other's
    negatives. An image without such an instance is pooled whole. Without any mask in the batch (of
    all processes) it is mmpretrain's `SimCLR`, bit for bit, or with 'equation3' that loss of whole
    images: so a baseline without masks differs by these alone.

    Two losses, as the paper says two things:

    - 'nt_xent' (default): SimCLR's own. Both views are anchors, the negatives are the other
      instances in both views, similarities are divided by the head's temperature. This is what "all
      hyperparameters are aligned with the original SimCLR" (section 4.2) asks for, and what makes
      the baseline differ by the masks alone.
    - 'equation3': as printed. The first view's instances are the anchors, the negatives are the
      other instances in the same view, there is no temperature.

    Args:
        loss: 'nt_xent' or 'equation3'.
        negatives: 'all' (the paper) or 'other_nouns', which leaves out instances of the same noun.
        positives: 'own' (the paper) or 'same_noun': instances of the same noun are positives, too
            (`freeatm_mm.ops.multi_positive_loss`, with the head's temperature).
        exact_gradients: With W processes mmpretrain's SimCLR gives 1/W of the gradient that one
            process would give on the whole batch: each process differentiates the whole loss by
            its own images only, and DistributedDataParallel takes the mean. False keeps this, with
            masks and without, so that learning rates found for it hold. True gives the gradient of
            one process.
        **kwargs: Arguments of `mmpretrain.models.SimCLR`; the neck must be one that pools
            instances (`InstancePooling`), as `FreeATMNonLinearNeck` does.

    Raises:
        ValueError: If `loss`, `negatives` or `positives` is unknown, or the last two exclude each
            other.
        TypeError: If the neck can't pool instances.
    """

    def __init__(
        self,
        *,
        loss: str = 'nt_xent',
        negatives: str = 'all',
        positives: str = 'own',
        exact_gradients: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        check_choice('FreeATMSimCLR: loss', loss, LOSSES)
        check_choice('FreeATMSimCLR: negatives', negatives, NEGATIVES)
        check_positives(self, positives, negatives)
        check_pools_instances(self)
        self.loss_form = loss
        self.negatives = negatives
        self.positives = positives
        self.exact_gradients = exact_gradients

    def loss(
        self, inputs: list[Tensor], data_samples: list[DataSample] | None, **kwargs
    ) -> dict[str, Tensor]:
        """The loss and what is logged beside it.

        Args:
            inputs: Two views, each (B, 3, H, W).
            data_samples: B data samples of `PackFreeATMInputs`, with or without masks.
            **kwargs: As of the class it extends.

        Returns:
            `loss`; where there are masks, and with 'equation3' always, also `instances_per_image`,
            `pooled_whole` (share of the images), `cut_away` (share of the instances that a crop
            took away), `accuracy` (share of the anchors nearest to their positive) and
            `same_noun_negatives` (share of the negatives, among the anchors of a known noun).

        Raises:
            ValueError: If there are other numbers of views, or masks of other views.
        """
        check_views(self, inputs, data_samples)
        # mmpretrain's has another loss.
        instances = collect_instances(data_samples, inputs, always=self.loss_form != 'nt_xent')
        if instances is None:
            losses = super().loss(inputs, data_samples, **kwargs)
            if self.exact_gradients and get_world_size() > 1:
                losses['loss'] = scale_gradient(losses['loss'], get_world_size())
            return losses

        embeddings = self._embed(inputs, instances)
        if not self.exact_gradients:
            embeddings = scale_gradient(embeddings, 1 / get_world_size())
        nouns = gather_rows(instances.nouns, instances.counts)
        positive, negative = LOSSES[self.loss_form](
            embeddings,
            instances.nouns,
            self.negatives,
            everything=gather_rows_with_gradient(embeddings, instances.counts),
            every_noun=nouns,
            offset=sum(instances.counts[: get_rank()]),
        )
        same = other_positives(self.positives, self.negatives, instances.nouns, nouns)
        if same is not None and self.loss_form == 'nt_xent':
            same = same.repeat(2, 2)
        if self.loss_form == 'nt_xent':
            loss = instances.loss(self.head, positive, negative, same)
        elif same is None and instances.weights is None:
            logits = torch.cat((positive, negative), dim=1)
            loss = self.head.loss_module(logits, logits.new_zeros(len(logits), dtype=torch.long))
        else:
            loss = instances.plain_loss(self.head, positive, negative, same, 1.0)

        with torch.no_grad():
            statistics = instances.statistics()
            statistics['accuracy'] = contrastive_accuracy(positive, negative)
            # Both views of an instance have the same noun: the shares are those of the instances.
            same = (same_noun_counts(instances.nouns, nouns) - 1) / max(len(nouns) - 1, 1)
            statistics['same_noun_negatives'] = mean_of_known(same, instances.nouns)
        return dict(loss=loss * instances.loss_weight, **statistics)

    def _embed(self, inputs: list[Tensor], instances: Instances) -> Tensor:
        """(M, 2, D) normalised embeddings of the instances in both views."""
        # As in SimCLR both views go through the encoder together, image by image: 2B images.
        features = self.backbone(torch.stack(inputs, dim=1).flatten(0, 1))
        masks = instances.masks.transpose(0, 1).flatten(0, 1)
        most = masks.shape[1]
        image, number = instances.places // most, instances.places % most
        places = torch.stack([(2 * image + view) * most + number for view in (0, 1)], dim=1)
        embeddings = self.neck(features, masks, places.flatten())[0]
        embeddings = embeddings / (embeddings.norm(dim=1, keepdim=True) + 1e-10)
        return embeddings.unflatten(0, (-1, 2))


def scale_gradient(value: Tensor, factor: float) -> Tensor:
    """The same value, whose gradient is multiplied on the way back."""
    return value if factor == 1 else value * factor + (value * (1 - factor)).detach()
