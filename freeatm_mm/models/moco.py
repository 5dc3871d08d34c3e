"""MoCo v2 with instance features, "Free-ATM", section 3.3 (arXiv 2308.06739).

MoCo v2: arXiv 2003.04297; official code: github.com/facebookresearch/moco. Built on
`mmpretrain.models.selfsup.MoCo`.
"""

from __future__ import annotations

import torch
from mmengine.dist import get_world_size
from mmpretrain.models.selfsup import MoCo
from mmpretrain.models.utils import batch_shuffle_ddp, batch_unshuffle_ddp
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from freeatm_mm.models.instances import (
    Instances,
    check_positives,
    check_views,
    collect_instances,
)
from freeatm_mm.models.necks import check_pools_instances, feature_map
from freeatm_mm.ops.choices import check_choice
from freeatm_mm.ops.gathering import gather_rows
from freeatm_mm.ops.losses import (
    NEGATIVES,
    contrastive_accuracy,
    enqueue,
    info_nce_logits,
    other_positives,
)
from freeatm_mm.ops.nouns import UNKNOWN_NOUN, mean_of_known, same_noun_counts


@MODELS.register_module()
class FreeATMMoCo(MoCo):
    """MoCo v2 whose queries, keys and queue are instances instead of images.

    Each instance that both views show is a query, its own key from the other view is the positive,
    the queue's keys are the negatives. An image without such an instance is pooled whole. Without
    any mask in the batch (of all processes) it is mmpretrain's `MoCo`, bit for bit: the baseline is
    the same code with the masks left out.

    The keys' batch normalisation is shuffled over processes as in MoCo: the images are shuffled,
    the feature maps are brought back, and each process pools its own.

    The queue may have any length and takes any number of keys a step; of more keys than it holds,
    the newest stay.

    Args:
        negatives: 'all' (the paper) or 'other_nouns', which leaves out the queue's keys of the
            query's own noun: the nouns are known as freely as the masks.
        positives: 'own' (the paper) or 'same_noun': the queue's keys of the query's own noun are
            positives, too (`freeatm_mm.ops.multi_positive_loss`, with the head's temperature).
        **kwargs: Arguments of `mmpretrain.models.MoCo`; the neck must be one that pools
            instances (`InstancePooling`), as `FreeATMMoCoV2Neck` does.

    Raises:
        ValueError: If `negatives` or `positives` is unknown, or they exclude each other.
        TypeError: If the neck can't pool instances.
    """

    def __init__(self, *, negatives: str = 'all', positives: str = 'own', **kwargs) -> None:
        super().__init__(**kwargs)
        check_choice('FreeATMMoCo: negatives', negatives, NEGATIVES)
        check_positives(self, positives, negatives)
        check_pools_instances(self)
        self.negatives = negatives
        self.positives = positives
        self.register_buffer('queue_nouns', torch.full((self.queue_len,), UNKNOWN_NOUN))

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
            images), `cut_away` (share of the instances that a crop took away), `accuracy` (share of
            the queries nearest to their own key) and `same_noun_negatives` (share of the negatives,
            among the queries of a known noun).

        Raises:
            ValueError: If there are other numbers of views, or masks of other views.
        """
        check_views(self, inputs, data_samples)
        instances = collect_instances(data_samples, inputs)
        if instances is None:
            return super().loss(inputs, data_samples, **kwargs)

        queries = self.neck(self.backbone(inputs[0]), instances.masks[0], instances.places)[0]
        queries = nn.functional.normalize(queries, dim=1)
        keys = self._keys(inputs[1], instances)

        positive, negative = info_nce_logits(
            queries, keys, self.queue, instances.nouns, self.queue_nouns, self.negatives
        )
        same = other_positives(self.positives, self.negatives, instances.nouns, self.queue_nouns)
        loss = instances.loss(self.head, positive, negative, same) * instances.loss_weight

        with torch.no_grad():
            statistics = instances.statistics()
            statistics['accuracy'] = contrastive_accuracy(positive, negative)
            same = same_noun_counts(instances.nouns, self.queue_nouns) / self.queue_len
            statistics['same_noun_negatives'] = mean_of_known(same, instances.nouns)
        self._dequeue_and_enqueue(keys, instances)
        return dict(loss=loss, **statistics)

    @torch.no_grad()
    def _keys(self, views: Tensor, instances: Instances) -> Tensor:
        """(M, D) normalised keys of the instances in the second views (B, 3, H, W)."""
        self.encoder_k.update_parameters(nn.Sequential(self.backbone, self.neck))
        backbone, neck = self.encoder_k.module
        views, back = batch_shuffle_ddp(views)
        # NCCL's gathering before torch 2.10 takes channels-last memory for the usual one.
        features = batch_unshuffle_ddp(feature_map(backbone(views)).contiguous(), back)
        keys = neck(features, instances.masks[1], instances.places)[0]
        return nn.functional.normalize(keys, dim=1)

    @torch.compiler.disable  # numbers of keys, the pointer's value
    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys: Tensor, instances: Instances | None = None) -> None:
        """Put the keys of all processes into the queue, over its oldest ones.

        Args:
            keys: (M, D) keys of this process.
            instances: What the keys stand for; None for whole images, equally many everywhere.
        """
        counts, nouns = [len(keys)] * get_world_size(), None
        if instances is not None:
            counts, nouns = instances.counts, gather_rows(instances.nouns, instances.counts)
        keys = gather_rows(keys, counts)
        enqueue(self.queue, self.queue_ptr, keys, self.queue_nouns, nouns)
