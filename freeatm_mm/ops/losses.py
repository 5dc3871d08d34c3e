"""Contrastive losses over instances: SimCLR's, the paper's equation 3 as printed, and MoCo's.

    >>> import torch, torch.nn.functional as F
    >>> first, second = torch.randn(2, 5, 128)  # five instances in two views
    >>> loss = instance_nt_xent(first, second, temperature=0.1)
    >>> queue, pointer = F.normalize(torch.randn(128, 4096), dim=0), torch.tensor([0])
    >>> loss = loss + instance_info_nce(first, second, queue, temperature=0.2)
    >>> enqueue(queue, pointer, F.normalize(second, dim=1))

Each loss is the cross-entropy of logits that a function of its own gives, for those who have a head
of their own or instances on several processes.

Shapes: M instances (of this process), N instances of all processes, D the width of an embedding, Q
keys in a queue, A anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from freeatm_mm.ops.choices import check_choice
from freeatm_mm.ops.nouns import UNKNOWN_NOUN, same_noun

__all__ = [
    'NEGATIVES',
    'POSITIVES',
    'ContrastiveLogits',
    'at_least_float32',
    'contrastive_accuracy',
    'contrastive_loss',
    'distillation_loss',
    'enqueue',
    'equation3_logits',
    'info_nce_logits',
    'instance_equation3',
    'instance_info_nce',
    'instance_nt_xent',
    'multi_positive_loss',
    'nt_xent_logits',
    'other_positives',
]

#: Which instances are negatives: all others (the paper), or those of another noun alone.
NEGATIVES = ('all', 'other_nouns')
#: Which instances are positives: the other view alone (the paper), or also those of the same noun.
POSITIVES = ('own', 'same_noun')


class ContrastiveLogits(NamedTuple):
    """Cosines of A anchors, before any temperature.

    Args:
        positive: (A, 1) with the other view of the same instance.
        negative: (A, X) with other instances; minus infinity for what is no negative.
    """

    positive: Tensor
    negative: Tensor


def instance_nt_xent(
    first: Tensor,
    second: Tensor,
    nouns: Tensor | None = None,
    *,
    temperature: float = 0.1,
    negatives: str = 'all',
    positives: str = 'own',
) -> Tensor:
    """Compute SimCLR's loss (NT-Xent) over instances.

    Both views are anchors; the negatives are the other instances in both views. SimCLR: arXiv
    2002.05709, equation 1.

    Args:
        first: (M, D) embeddings of the instances in one view; they are normalised here.
        second: (M, D) embeddings of the same instances in the other view.
        nouns: (M,) int64 nouns, for `negatives` 'other_nouns' and `positives` 'same_noun'.
        temperature: What cosines are divided by, above 0.
        negatives: One of `NEGATIVES`.
        positives: One of `POSITIVES`: with 'same_noun' the instances of an anchor's own noun are
            positives, too (`multi_positive_loss`).

    Returns:
        The mean over the 2M anchors.

    Raises:
        ValueError: If the shapes differ, `negatives` or `positives` is unknown, they contradict
            each other, or nouns are missing.
    """
    logits = nt_xent_logits(_pairs(first, second), nouns, negatives)
    same = other_positives(positives, negatives, nouns, nouns)
    same = None if same is None else same.repeat(2, 2)
    return contrastive_loss(*logits, temperature, same=same)


def instance_equation3(
    first: Tensor,
    second: Tensor,
    nouns: Tensor | None = None,
    *,
    temperature: float = 1.0,
    negatives: str = 'all',
    positives: str = 'own',
) -> Tensor:
    """Compute Free-ATM's equation 3 as printed.

    The first view's instances are the anchors, the negatives are the other instances in the same
    view, and there is no temperature.

    Args:
        first: (M, D) embeddings of the instances in one view; they are normalised here.
        second: (M, D) embeddings of the same instances in the other view.
        nouns: (M,) int64 nouns, for `negatives` 'other_nouns' and `positives` 'same_noun'.
        temperature: What cosines are divided by, above 0; 1 is the paper's.
        negatives: One of `NEGATIVES`.
        positives: One of `POSITIVES`, as in `instance_nt_xent`.

    Returns:
        The mean over the M anchors.

    Raises:
        ValueError: As `instance_nt_xent`.
    """
    logits = equation3_logits(_pairs(first, second), nouns, negatives)
    same = other_positives(positives, negatives, nouns, nouns)
    return contrastive_loss(*logits, temperature, same=same)


def instance_info_nce(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor,
    nouns: Tensor | None = None,
    queue_nouns: Tensor | None = None,
    *,
    temperature: float = 0.2,
    negatives: str = 'all',
    positives: str = 'own',
) -> Tensor:
    """Compute MoCo's loss (InfoNCE) over instances; keys and queue get no gradient.

    MoCo v2: arXiv 2003.04297.

    Args:
        queries: (M, D) embeddings of the instances by the trained encoder; normalised here.
        keys: (M, D) those of the same instances by the momentum encoder; normalised here.
        queue: (D, Q) normalised keys of earlier batches (`enqueue`).
        nouns: (M,) int64 nouns, for `negatives` 'other_nouns' and `positives` 'same_noun'.
        queue_nouns: (Q,) int64 nouns of the queue's keys, likewise.
        temperature: What cosines are divided by, above 0.
        negatives: One of `NEGATIVES`: 'other_nouns' leaves out keys of the query's own noun.
        positives: One of `POSITIVES`: with 'same_noun' these keys are positives, too
            (`multi_positive_loss`).

    Returns:
        The mean over the M queries.

    Raises:
        ValueError: As `instance_nt_xent`.
    """
    queries, keys = (
        F.normalize(at_least_float32(rows), dim=1) for rows in (queries, keys.detach())
    )
    logits = info_nce_logits(queries, keys, queue, nouns, queue_nouns, negatives)
    same = other_positives(positives, negatives, nouns, queue_nouns)
    return contrastive_loss(*logits, temperature, same=same)


def nt_xent_logits(
    embeddings: Tensor,
    nouns: Tensor | None = None,
    negatives: str = 'all',
    *,
    everything: Tensor | None = None,
    every_noun: Tensor | None = None,
    offset: int = 0,
) -> ContrastiveLogits:
    """Return the cosines of NT-Xent; the anchors are the first views, then the second ones.

    Args:
        embeddings: (M, 2, D) normalised embeddings of the instances in both views.
        nouns: (M,) int64 nouns, for `negatives` 'other_nouns'.
        negatives: One of `NEGATIVES`.
        everything: (N, 2, D) embeddings of all processes; by default those given.
        every_noun: (N,) their nouns.
        offset: Where this process's instances begin among all.

    Returns:
        (2M, 1) and (2M, 2N).

    Raises:
        ValueError: If `negatives` is unknown, or nouns are missing.
    """
    everything = embeddings if everything is None else everything
    excluded = _excluded(embeddings, nouns, negatives, everything, every_noun, offset)
    positive = (embeddings[:, 0] * embeddings[:, 1]).sum(1)
    # Rows and columns: first view, second view.
    anchors = torch.cat((embeddings[:, 0], embeddings[:, 1]))
    negative = anchors @ torch.cat((everything[:, 0], everything[:, 1])).T
    return ContrastiveLogits(
        positive.repeat(2)[:, None], negative.masked_fill(excluded.repeat(2, 2), float('-inf'))
    )


def equation3_logits(
    embeddings: Tensor,
    nouns: Tensor | None = None,
    negatives: str = 'all',
    *,
    everything: Tensor | None = None,
    every_noun: Tensor | None = None,
    offset: int = 0,
) -> ContrastiveLogits:
    """Return the cosines of equation 3; the anchors are the first views.

    Args:
        embeddings: (M, 2, D) normalised embeddings of the instances in both views.
        nouns: (M,) int64 nouns, for `negatives` 'other_nouns'.
        negatives: One of `NEGATIVES`.
        everything: (N, 2, D) embeddings of all processes; by default those given.
        every_noun: (N,) their nouns.
        offset: Where this process's instances begin among all.

    Returns:
        (M, 1) and (M, N).

    Raises:
        ValueError: If `negatives` is unknown, or nouns are missing.
    """
    everything = embeddings if everything is None else everything
    excluded = _excluded(embeddings, nouns, negatives, everything, every_noun, offset)
    positive = (embeddings[:, 0] * embeddings[:, 1]).sum(1)
    negative = embeddings[:, 0] @ everything[:, 0].T
    return ContrastiveLogits(positive[:, None], negative.masked_fill(excluded, float('-inf')))


def info_nce_logits(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor,
    nouns: Tensor | None = None,
    queue_nouns: Tensor | None = None,
    negatives: str = 'all',
) -> ContrastiveLogits:
    """Return the cosines of InfoNCE with a queue.

    Args:
        queries: (M, D) normalised embeddings.
        keys: (M, D) normalised embeddings of the same instances.
        queue: (D, Q) normalised keys; they may change afterwards.
        nouns: (M,) int64 nouns, for `negatives` 'other_nouns'.
        queue_nouns: (Q,) int64 nouns of the queue's keys, likewise.
        negatives: One of `NEGATIVES`.

    Returns:
        (M, 1) and (M, Q).

    Raises:
        ValueError: If `negatives` is unknown, or nouns are missing.
    """
    own_noun = _own_noun(negatives, nouns, queue_nouns)
    positive = torch.einsum('md,md->m', queries, keys).unsqueeze(-1)
    negative = torch.einsum('md,dq->mq', queries, queue.clone().detach())
    if own_noun is not None:
        negative = negative.masked_fill(own_noun, float('-inf'))
    return ContrastiveLogits(positive, negative)


def contrastive_loss(
    positive: Tensor,
    negative: Tensor,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    same: Tensor | None = None,
) -> Tensor:
    """Compute the mean over anchors of -log(exp(p / T) / (exp(p / T) + sum exp(n / T))).

    Args:
        positive: (A, 1) p.
        negative: (A, X) n; minus infinity for what is no negative.
        temperature: T, above 0.
        weights: (A,) of the anchors in the mean, not negative; by default all alike.
        same: (A, X) booleans, which of the negatives are positives after all; with it the loss is
            `multi_positive_loss`.
    """
    if same is not None:
        return multi_positive_loss(positive, negative, same, temperature, weights)
    logits = torch.cat((positive, negative), dim=1) / temperature
    targets = logits.new_zeros(len(logits), dtype=torch.long)
    if weights is None:
        return F.cross_entropy(logits, targets)
    return _mean(F.cross_entropy(logits, targets, reduction='none'), weights)


def multi_positive_loss(
    positive: Tensor,
    negative: Tensor,
    same: Tensor,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Compute the contrastive loss of anchors with several positives each.

    The mean over anchors of the mean over an anchor's positives p of
    -log(exp(p / T) / sum of exp(x / T) over all x, positive or negative). "Supervised contrastive
    learning" (arXiv 2004.11362), equation 2, with nouns in the place of labels.

    Args:
        positive: (A, 1) cosines with the other view.
        negative: (A, X) those with other instances; minus infinity for what is neither.
        same: (A, X) booleans: it is a positive after all. Ignored where `negative` is minus
            infinity.
        temperature: T, above 0.
        weights: (A,) of the anchors in the mean, not negative; by default all alike.
    """
    logits = torch.cat((positive, negative), dim=1) / temperature
    own = same.new_ones(len(same), 1)
    wanted = torch.cat((own, same & negative.isfinite()), dim=1)
    found = logits.log_softmax(1).masked_fill(~wanted, 0.0)
    return _mean(-found.sum(1) / wanted.sum(1), weights)


def other_positives(
    positives: str, negatives: str, nouns: Tensor | None, others: Tensor | None
) -> Tensor | None:
    """Tell which other instances are positives.

    Args:
        positives: One of `POSITIVES`.
        negatives: One of `NEGATIVES`.
        nouns: (M,) int64 nouns of the anchors' instances; for 'same_noun'.
        others: (N,) int64 nouns of the others; likewise.

    Returns:
        (M, N) booleans; None where there are none for 'own'.

    Raises:
        ValueError: If `positives` is unknown, both of the arguments treat the same noun in their
            own way, or nouns are missing.
    """
    check_choice('positives', positives, POSITIVES)
    if positives == 'own':
        return None
    if negatives != 'all':
        raise ValueError(f"positives 'same_noun' and negatives {negatives!r} exclude each other")
    if nouns is None or others is None:
        raise ValueError("positives 'same_noun' needs the nouns of all instances")
    return same_noun(nouns, others)


def contrastive_accuracy(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the share of the anchors whose positive is nearer than any negative.

    Args:
        positive: (A, 1).
        negative: (A, X); minus infinity for what is no negative.
    """
    return (positive[:, 0] > negative.amax(1)).float().mean()


def distillation_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor | float = 0.0,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    weights: Tensor | None = None,
) -> Tensor:
    """Compute DINO's loss over instances: cross-entropy of every student's with other views.

    DINO: arXiv 2104.14294, equations 3 and 4. The teacher gets no gradient.

    Args:
        student: For each of S views the (M, D) outputs of the student's head.
        teacher: The same of the teacher's, for the first T of these views.
        center: (1, D) what is taken off the teacher's outputs.
        student_temperature: Above 0.
        teacher_temperature: Above 0.
        weights: (M,) what each instance counts; all alike if not given.

    Returns:
        The mean over instances and over the pairs of different views.

    Raises:
        ValueError: If there is no pair of different views, or shapes differ.
    """
    outputs = [*student, *teacher]
    if len({output.shape for output in outputs}) > 1 or len(teacher) > len(student):
        raise ValueError(
            'student and teacher need outputs of one shape (M, D), the teacher for the first of '
            f"the student's views, got {[tuple(output.shape) for output in outputs]}"
        )
    targets = [((view.detach() - center) / teacher_temperature).softmax(1) for view in teacher]
    predicted = [(view / student_temperature).log_softmax(1) for view in student]
    losses = [
        _mean(-(target * predicted[number]).sum(1), weights)
        for other, target in enumerate(targets)
        for number in range(len(predicted))
        if number != other
    ]
    if not losses:
        raise ValueError('self-distillation needs two different views')
    return torch.stack(losses).mean()


@torch.compiler.disable  # the pointer's value decides
@torch.no_grad()
def enqueue(
    queue: Tensor,
    pointer: Tensor,
    keys: Tensor,
    queue_nouns: Tensor | None = None,
    nouns: Tensor | None = None,
) -> None:
    """Put keys into a queue over its oldest ones, in place.

    The queue may have any length and takes any number of keys; of more than it holds, the newest
    stay, where they would have come to stand. Of a key that is NaN or infinite zeros join, which
    are near to nothing and of no noun, so that they are nobody's positives: a step that overflowed,
    as steps of mixed precision may, is over after it.

    Args:
        queue: (D, Q) the queue.
        pointer: (1,) integer, the place of its oldest key; it is moved on.
        keys: (M, D) normalised keys of all processes, in the same order everywhere.
        queue_nouns: (Q,) int64 nouns of the queue's keys, if they are kept.
        nouns: (M,) int64 nouns of the keys; unknown if not given.
    """
    length, start, total = queue.shape[1], int(pointer), len(keys)
    skipped = max(total - length, 0)
    places = (start + torch.arange(skipped, total, device=keys.device)) % length
    keys = keys[skipped:]
    finite = keys.isfinite().all(1)
    queue[:, places] = keys.masked_fill(~finite[:, None], 0).T.to(queue.dtype)
    if queue_nouns is not None:
        if nouns is not None:
            nouns = nouns[skipped:].to(queue_nouns.dtype).masked_fill(~finite, UNKNOWN_NOUN)
        queue_nouns[places] = UNKNOWN_NOUN if nouns is None else nouns
    pointer[0] = (start + total) % length


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The weighted mean; 0 where all weights are."""
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def _pairs(first: Tensor, second: Tensor) -> Tensor:
    """Normalise and put side by side: (M, 2, D)."""
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            'the two views need embeddings of one shape (M, D), got '
            f'{tuple(first.shape)} and {tuple(second.shape)}'
        )
    return F.normalize(at_least_float32(torch.stack((first, second), dim=1)), dim=2)


def at_least_float32(rows: Tensor) -> Tensor:
    """Half-precision rows as float32, others as they are.

    float16 knows no length as small as what normalising is guarded by.
    """
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def _own_noun(negatives: str, nouns: Tensor | None, others: Tensor | None) -> Tensor | None:
    """Tell which pairs are no negatives as they are of one noun; None where that is no reason."""
    check_choice('negatives', negatives, NEGATIVES)
    if negatives == 'all':
        return None
    if nouns is None or others is None:
        raise ValueError("negatives 'other_nouns' needs the nouns of all instances")
    return same_noun(nouns, others)


def _excluded(
    embeddings: Tensor,
    nouns: Tensor | None,
    negatives: str,
    everything: Tensor,
    every_noun: Tensor | None,
    offset: int,
) -> Tensor:
    """Return (M, N): instance n of all is not a negative for the own instance m."""
    own_noun = _own_noun(negatives, nouns, nouns if every_noun is None else every_noun)
    own = offset + torch.arange(len(embeddings), device=embeddings.device)
    excluded = own[:, None] == torch.arange(len(everything), device=own.device)
    return excluded if own_noun is None else excluded | own_noun
