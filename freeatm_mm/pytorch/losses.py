"""Losses over instances as modules; what they compute is in `freeatm_mm.ops`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freeatm_mm.errors import InputError
from freeatm_mm.ops import (
    NEGATIVES,
    UNKNOWN_NOUN,
    distillation_loss,
    enqueue,
    instance_equation3,
    instance_info_nce,
    instance_nt_xent,
)

__all__ = ['InstanceDistillation', 'InstanceInfoNCE', 'InstanceNTXent']


def _check(temperature: float, negatives: str) -> None:
    """Refuse settings that no loss has.

    Raises:
        InputError: Naming the setting.
    """
    if not temperature > 0:
        raise InputError(f'temperature {temperature} is not above 0')
    if negatives not in NEGATIVES:
        raise InputError(f'negatives {negatives!r} is none of {", ".join(NEGATIVES)}')


def _check_shapes(first: Tensor, second: Tensor, nouns: Tensor | None, dim: int = 0) -> None:
    """Refuse embeddings and nouns that don't belong together.

    Raises:
        InputError: Naming their shapes.
    """
    fits = first.ndim == 2 and first.shape == second.shape and dim in (0, first.shape[-1])
    if not fits or nouns is not None and nouns.shape != first.shape[:1]:
        told = '' if nouns is None else f' and nouns {tuple(nouns.shape)}'
        raise InputError(
            f'embeddings must be (M, {dim or "D"}) in both views, and nouns (M,), got '
            f'{tuple(first.shape)}, {tuple(second.shape)}{told}'
        )


class InstanceNTXent(nn.Module):
    """SimCLR's loss over instances, or the paper's equation 3 as printed.

    Args:
        temperature: What cosines are divided by, above 0.
        negatives: 'all' others (the paper), or 'other_nouns'.
        equation3: The paper's form: negatives from the same view alone; it has no temperature, so
            set 1.

    Raises:
        InputError: If a setting is out of range.
    """

    def __init__(
        self, temperature: float = 0.1, negatives: str = 'all', equation3: bool = False
    ) -> None:
        super().__init__()
        _check(temperature, negatives)
        self.temperature, self.negatives, self.equation3 = temperature, negatives, equation3

    def forward(self, first: Tensor, second: Tensor, nouns: Tensor | None = None) -> Tensor:
        """Compute the mean over all anchors; 0 without instances, where there is no mean.

        Args:
            first: (M, D) embeddings of the instances in one view.
            second: (M, D) embeddings of the same instances in the other.
            nouns: (M,) their nouns, for 'other_nouns'.

        Raises:
            InputError: If their shapes differ.
        """
        _check_shapes(first, second, nouns)
        if not len(first):
            return first.sum() + second.sum()
        loss = instance_equation3 if self.equation3 else instance_nt_xent
        return loss(first, second, nouns, temperature=self.temperature, negatives=self.negatives)


class InstanceInfoNCE(nn.Module):
    """MoCo's loss over instances, with its queue.

    Args:
        dim: Width D of the embeddings.
        length: Keys in the queue.
        temperature: What cosines are divided by, above 0.
        negatives: 'all' others (the paper), or 'other_nouns'.

    Raises:
        InputError: If a setting is out of range.
    """

    queue: Tensor
    pointer: Tensor
    queue_nouns: Tensor

    def __init__(
        self, dim: int = 128, length: int = 65536, temperature: float = 0.2, negatives: str = 'all'
    ) -> None:
        super().__init__()
        _check(temperature, negatives)
        if min(dim, length) < 1:
            raise InputError(f'dim and length must be at least 1, got {dim} and {length}')
        self.temperature, self.negatives = temperature, negatives
        self.register_buffer('queue', F.normalize(torch.randn(dim, length), dim=0))
        self.register_buffer('pointer', torch.zeros(1, dtype=torch.long))
        self.register_buffer('queue_nouns', torch.full((length,), UNKNOWN_NOUN))

    def forward(self, queries: Tensor, keys: Tensor, nouns: Tensor | None = None) -> Tensor:
        """Compute the mean over the queries; in training the keys then join the queue.

        Without instances it is 0.

        Args:
            queries: (M, D) embeddings by the trained encoder.
            keys: (M, D) those of the same instances by the momentum encoder.
            nouns: (M,) their nouns, for 'other_nouns'.

        Raises:
            InputError: If their shapes differ, or aren't those of the queue.
        """
        _check_shapes(queries, keys, nouns, len(self.queue))
        if not len(queries):
            return queries.sum()
        loss = instance_info_nce(
            queries,
            keys,
            self.queue,
            nouns,
            self.queue_nouns,
            temperature=self.temperature,
            negatives=self.negatives,
        )
        if self.training:
            keys = F.normalize(keys.detach(), dim=1)
            enqueue(self.queue, self.pointer, keys, self.queue_nouns, nouns)
        return loss


class InstanceDistillation(nn.Module):
    """DINO's loss over instances: a student predicts its teacher's view of each object.

    DINO: arXiv 2104.14294. The teacher's output is centred by a running mean and sharpened; a
    student's view is compared with every other view of the teacher's.

    Args:
        dim: Width D of the head's output.
        student_temperature: Above 0.
        teacher_temperature: Above 0, below the student's.
        center_momentum: Of the running mean, in [0, 1).

    Raises:
        InputError: If a setting is out of range.
    """

    center: Tensor

    def __init__(
        self,
        dim: int,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if not 0 < teacher_temperature <= student_temperature:
            raise InputError('0 < teacher_temperature <= student_temperature must hold')
        if not 0 <= center_momentum < 1:
            raise InputError(f'center_momentum {center_momentum} is not in [0, 1)')
        self.student_temperature, self.teacher_temperature = (
            student_temperature,
            teacher_temperature,
        )
        self.center_momentum = center_momentum
        self.register_buffer('center', torch.zeros(1, dim))

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        teacher_temperature: float | None = None,
    ) -> Tensor:
        """Compute the mean over instances and pairs of views; in training the centre moves on.

        Without instances it is 0, and the centre stays.

        Args:
            student: For each view the (M, D) outputs of the student's head.
            teacher: The same of the teacher, for the first of these views (the global ones).
            teacher_temperature: Where it follows a schedule, what it is now; above 0.
        """
        if student and all(not len(output) for output in (*student, *teacher)):
            return torch.stack([output.sum() for output in student]).sum()
        if teacher_temperature is None:
            teacher_temperature = self.teacher_temperature
        loss = distillation_loss(
            student,
            teacher,
            self.center,
            student_temperature=self.student_temperature,
            teacher_temperature=teacher_temperature,
        )
        if self.training:
            mean = torch.cat(list(teacher)).detach().mean(0, keepdim=True)
            self.center.lerp_(mean.to(self.center.dtype), 1 - self.center_momentum)
        return loss
