"""The instances of a batch, and how many each process has.

Shapes: B images of this process, K the largest number of instances in one of them, M instances in
all of them, V views, D the width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_gather, get_rank, get_world_size
from mmpretrain.models.losses import CrossEntropyLoss, cross_entropy
from torch import Tensor

from freeatm_mm.ops.losses import contrastive_loss, other_positives
from freeatm_mm.ops.pooling import pad_instances


def check_positives(model: object, positives: str, negatives: str) -> None:
    """Refuse positives that are unknown or don't go with the negatives.

    Raises:
        ValueError: Naming the model and what to choose.
    """
    unknown = torch.empty(0, dtype=torch.int64)
    try:
        other_positives(positives, negatives, unknown, unknown)
    except ValueError as error:
        raise ValueError(f'{type(model).__name__}: {error}.') from None


@torch.compiler.disable  # once more for each pattern of missing masks
def check_views(
    model: object, inputs: Any, data_samples: Sequence | None, most: int | None = 2
) -> None:
    """Refuse other numbers of views than a method takes: it would leave out or mix some.

    Args:
        model: The method.
        inputs: The views.
        data_samples: Data samples of `PackFreeATMInputs`, with or without masks.
        most: How many views it takes, at least two; None for any.

    Raises:
        ValueError: Naming the method and what to set.
    """
    number = len(inputs) if isinstance(inputs, (list, tuple)) else 1
    if number < 2 or most is not None and number > most:
        raise ValueError(
            f'{type(model).__name__} takes two views{"" if most else " or more"}, got {number}: '
            'set num_views of FreeATMMultiView.'
        )
    for sample in data_samples or ():
        masks = sample.get('instance_masks')
        if masks is not None and len(masks) != number:
            raise ValueError(
                f'{type(model).__name__} got {number} views of each image and masks of '
                f'{len(masks)}: use one FreeATMMultiView and PackFreeATMInputs for both.'
            )


@dataclass
class Instances:
    """The instances of B images, image by image.

    Images without an instance have one all-ones mask: they are pooled whole, so that every image
    contributes and no process is ever left without a key.

    Args:
        masks: (V, B, K, h, w) masks, 0 where an image has fewer than K instances.
        places: (M,) int64, where the instances stand among the B * K places.
        nouns: (M,) int64, the noun of each instance, `UNKNOWN_NOUN` for a whole image.
        num_whole: How many images are pooled whole.
        num_cut: How many instances were left out as a view cut them away.
        counts: For each process its number of instances, M for this one.
        weights: (M,) float32, what each instance counts in the loss; None for all alike.
        totals: For each process the sum of its weights; None for `counts`.
    """

    masks: Tensor
    places: Tensor
    nouns: Tensor
    num_whole: int
    num_cut: int
    counts: list[int]
    weights: Tensor | None = None
    totals: list[float] | None = None

    @property
    def loss_weight(self) -> float:
        """What this process's mean loss is multiplied with.

        Gradients are averaged over processes, whatever their numbers of instances; this makes the
        average that of all instances. It is 1 on one process, and 0 where all weights are 0.
        """
        totals = self.counts if self.totals is None else self.totals
        total = sum(totals)
        return totals[get_rank()] * len(totals) / total if total else 0.0

    def statistics(self) -> dict[str, Tensor]:
        """Numbers for the log: instances per image, shares pooled whole and cut away."""
        batch = self.masks.shape[1]
        found = len(self.places) - self.num_whole
        statistics = {
            'instances_per_image': torch.tensor(found / batch),
            'pooled_whole': torch.tensor(self.num_whole / batch),
            'cut_away': torch.tensor(self.num_cut / max(found + self.num_cut, 1)),
        }
        if self.weights is not None:
            statistics['trust'] = self.weights.mean()
        return statistics

    def loss(
        self, head: Any, positive: Tensor, negative: Tensor, same: Tensor | None = None
    ) -> Tensor:
        """The contrastive loss: the head's own where all instances count alike.

        Args:
            head: mmpretrain's `ContrastiveHead`.
            positive: (A, 1) cosines; A is M, or 2M for the first and then the second views.
            negative: (A, X) cosines.
            same: (A, X) booleans, which of these are positives after all.

        Raises:
            ValueError: As `plain_loss`.
        """
        if same is None and self.weights is None:
            return head.loss(positive, negative)
        return self.plain_loss(head, positive, negative, same, head.temperature)

    def plain_loss(
        self, head: Any, positive: Tensor, negative: Tensor, same: Tensor | None, temperature: float
    ) -> Tensor:
        """The contrastive loss by `freeatm_mm.ops`, times the weight that the head's has.

        Args:
            head: As of `loss`.
            positive: As of `loss`.
            negative: As of `loss`.
            same: As of `loss`.
            temperature: What cosines are divided by.

        Raises:
            ValueError: If the head's loss is more than a cross-entropy with a weight.
        """
        own = head.loss_module
        plain = type(own) is CrossEntropyLoss and own.cls_criterion is cross_entropy
        if not plain or own.reduction != 'mean' or own.class_weight is not None:
            raise ValueError(
                'with positives of the same noun or with trust, the loss is a cross-entropy: set '
                "loss=dict(type='CrossEntropyLoss') of the head, with loss_weight alone."
            )
        return own.loss_weight * self._contrast(positive, negative, same, temperature)

    def _contrast(
        self, positive: Tensor, negative: Tensor, same: Tensor | None, temperature: float
    ) -> Tensor:
        weights = self.weights
        if weights is not None:
            weights = weights.repeat(len(positive) // len(weights))
        return contrastive_loss(positive, negative, temperature, weights, same)


# Lists of any lengths: with `compile=True` in a config each batch would be compiled anew.
@torch.compiler.disable
def collect_instances(
    data_samples: Sequence | None, views: Sequence[Tensor], always: bool = False
) -> Instances | None:
    """The instances of a batch, or None where no process has a single one.

    All processes get the same answer, since they take different paths afterwards: this is where
    they tell each other how many instances they have.

    Args:
        data_samples: B data samples of `freeatm_mm.datasets.PackFreeATMInputs`, with or
            without masks; None stands for samples without.
        views: The views of the images, each (B, ...), for the numbers of both and the device.
        always: Also where no process has one: then all images are pooled whole.

    Returns:
        The instances, or None.

    Raises:
        ValueError: If the masks of the samples have different grids or numbers of views.
    """
    batch, device = len(views[0]), views[0].device
    data_samples = data_samples or [{}] * batch
    masks = [sample.get('instance_masks') for sample in data_samples]
    found = [0 if mask is None else mask.shape[1] for mask in masks]
    counts, any_found = [sum(max(count, 1) for count in found)], any(found)
    weights = _weights(data_samples, found)
    totals = [float(counts[0]) if weights is None else float(weights.sum())]
    if get_world_size() > 1:
        told = torch.tensor([counts[0], any_found, totals[0]], device=device)
        rows = torch.stack(all_gather(told)).tolist()
        counts, any_found = [int(row[0]) for row in rows], any(row[1] for row in rows)
        totals = [row[2] for row in rows]
    if not any_found and not always:
        return None
    nouns = [sample.get('noun_ids') for sample in data_samples]
    padded = pad_instances(masks, nouns, views=len(views), device=device)
    named = sum(sample.get('num_nouns', count) for sample, count in zip(data_samples, found))
    return Instances(
        *padded,
        num_whole=found.count(0),
        num_cut=named - sum(found),
        counts=counts,
        weights=None if weights is None else weights.to(device),
        totals=totals,
    )


def _weights(data_samples: Sequence, found: Sequence[int]) -> Tensor | None:
    """What each instance counts by the trust in its mask, 1 for whole images; None without."""
    trusts = [sample.get('trust') for sample in data_samples]
    if all(trust is None for trust in trusts):
        return None
    rows = [
        torch.ones(max(count, 1)) if trust is None or not count else trust.cpu()
        for trust, count in zip(trusts, found)
    ]
    return torch.cat(rows)
