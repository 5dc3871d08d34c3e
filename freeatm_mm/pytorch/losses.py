"""Losses over instances as modules; what they compute is in `freeatm_mm.ops`.

All are computed in float32 (float64 where that is given), also under autocast: cosines of float16
are off by up to a thousandth, a hundredth of a temperature.

With `gather=True` the instances of all processes take part, whatever their numbers. Gradients are
averaged over processes by `DistributedDataParallel`, so each process's loss is then weighed by its
share of the instances: the average is the gradient of the mean over all instances. Every process
must call the loss equally often.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from freeatm_mm.errors import InputError
from freeatm_mm.ops import (
    NEGATIVES,
    POSITIVES,
    UNKNOWN_NOUN,
    at_least_float32,
    contrastive_loss,
    count_rows,
    distillation_loss,
    enqueue,
    equation3_logits,
    gather_rows,
    gather_rows_with_gradient,
    instance_info_nce,
    nt_xent_logits,
    other_positives,
    process_rank,
)

__all__ = ['InstanceDistillation', 'InstanceInfoNCE', 'InstanceNTXent']


def _check_temperature(name: str, value: float) -> None:
    """Refuse a temperature that is none.

    Raises:
        InputError: Naming it.
    """
    if not 0 < value < float('inf'):
        raise InputError(f'{name} {value} is not a number above 0')


def _check(temperature: float, negatives: str, positives: str) -> None:
    """Refuse settings that no loss has.

    Raises:
        InputError: Naming the setting.
    """
    _check_temperature('temperature', temperature)
    for name, value, known in (
        ('negatives', negatives, NEGATIVES),
        ('positives', positives, POSITIVES),
    ):
        if value not in known:
            raise InputError(f'{name} {value!r} is none of {", ".join(known)}')
    if positives == 'same_noun' and negatives == 'other_nouns':
        raise InputError(
            "positives 'same_noun' has the same noun's instances as positives, and negatives "
            "'other_nouns' leaves them out: choose one of the two"
        )


def _check_embeddings(
    first: Tensor, second: Tensor, nouns: Tensor | None, by_nouns: str, dim: int = 0
) -> None:
    """Refuse embeddings and nouns that don't belong together.

    Args:
        first: Of one view.
        second: Of the other.
        nouns: Their nouns, if they are known.
        by_nouns: The setting that goes by nouns; empty where none does.
        dim: The queue's D; 0 without one.

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
    if not first.is_floating_point() or not second.is_floating_point():
        raise InputError(f'embeddings must be floating point, got {first.dtype}, {second.dtype}')
    if nouns is None and by_nouns:
        raise InputError(
            f'{by_nouns} needs the nouns: give those of the batch, which has some if '
            'its StoreDataset has masks=True and its store nouns'
        )


def _by_nouns(negatives: str, positives: str) -> str:
    """The setting that goes by nouns, for messages; empty where none does."""
    if positives == 'same_noun':
        return "positives 'same_noun'"
    return "negatives 'other_nouns'" if negatives == 'other_nouns' else ''


def _share(counts: Sequence[int]) -> float:
    """What this process's mean is multiplied by; 1 on one process."""
    return counts[process_rank()] * len(counts) / max(sum(counts), 1)


class InstanceNTXent(nn.Module):
    """SimCLR's loss over instances, or the paper's equation 3 as printed.

    Args:
        temperature: What cosines are divided by, above 0.
        negatives: 'all' others (the paper), or 'other_nouns'.
        equation3: The paper's form: negatives from the same view alone; it has no temperature, so
            set 1.
        gather: Whether the instances of all processes are each other's negatives, and positives of
            one noun.
        positives: 'own', the instance in the other view (the paper), or 'same_noun': instances of
            the same noun in all images are positives, too (`ops.multi_positive_loss`).

    Raises:
        InputError: If a setting is out of range.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        negatives: str = 'all',
        equation3: bool = False,
        gather: bool = False,
        positives: str = 'own',
    ) -> None:
        super().__init__()
        _check(temperature, negatives, positives)
        self.temperature, self.negatives, self.equation3 = temperature, negatives, equation3
        self.gather, self.positives = gather, positives

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f'temperature={self.temperature}, negatives={self.negatives!r}, '
            f'equation3={self.equation3}, gather={self.gather}, positives={self.positives!r}'
        )

    def forward(self, first: Tensor, second: Tensor, nouns: Tensor | None = None) -> Tensor:
        """Compute the mean over all anchors; 0 without instances, where there is no mean.

        Args:
            first: (M, D) embeddings of the instances in one view.
            second: (M, D) embeddings of the same instances in the other.
            nouns: (M,) their nouns, for 'other_nouns' and 'same_noun'.

        Raises:
            InputError: If their shapes differ, they are no floating-point numbers, or nouns are
                missing.
        """
        _check_embeddings(first, second, nouns, _by_nouns(self.negatives, self.positives))
        counts = count_rows(first) if self.gather else [len(first)]
        if not any(counts):
            return first.sum() + second.sum()
        with torch.autocast(first.device.type, enabled=False):
            pairs = F.normalize(
                torch.stack((at_least_float32(first), at_least_float32(second)), dim=1), dim=2
            )
            everything = gather_rows_with_gradient(pairs, counts)
            every_noun = None if nouns is None else gather_rows(nouns, counts)
            if not len(first):  # the others wait for this process on the way back
                return everything.sum() * 0
            logits = equation3_logits if self.equation3 else nt_xent_logits
            positive, negative = logits(
                pairs,
                nouns,
                self.negatives,
                everything=everything,
                every_noun=every_noun,
                offset=sum(counts[: process_rank()]) if self.gather else 0,
            )
            same = other_positives(self.positives, self.negatives, nouns, every_noun)
            if same is not None and not self.equation3:
                same = same.repeat(2, 2)
            loss = contrastive_loss(positive, negative, self.temperature, same=same)
        return loss * _share(counts) if len(counts) > 1 else loss


class InstanceInfoNCE(nn.Module):
    """MoCo's loss over instances, with its queue.

    Args:
        dim: Width D of the embeddings.
        length: Keys in the queue.
        temperature: What cosines are divided by, above 0.
        negatives: 'all' others (the paper), or 'other_nouns'.
        gather: Whether the keys of all processes join the queue, which is then the same everywhere.
        positives: 'own', the instance in the other view (the paper), or 'same_noun': keys of
            the same noun in the queue are positives, too (`ops.multi_positive_loss`).

    Raises:
        InputError: If a setting is out of range.
    """

    queue: Tensor
    pointer: Tensor
    queue_nouns: Tensor

    def __init__(
        self,
        dim: int = 128,
        length: int = 65536,
        temperature: float = 0.2,
        negatives: str = 'all',
        gather: bool = False,
        positives: str = 'own',
    ) -> None:
        super().__init__()
        _check(temperature, negatives, positives)
        if not all(type(number) is int and number > 0 for number in (dim, length)):
            raise InputError(f'dim {dim!r} and length {length!r} must be whole numbers above 0')
        self.temperature, self.negatives, self.gather = temperature, negatives, gather
        self.positives = positives
        self.register_buffer('queue', F.normalize(torch.randn(dim, length), dim=0))
        self.register_buffer('pointer', torch.zeros(1, dtype=torch.long))
        self.register_buffer('queue_nouns', torch.full((length,), UNKNOWN_NOUN))

    def extra_repr(self) -> str:
        """What `print` shows."""
        dim, length = self.queue.shape
        return (
            f'dim={dim}, length={length}, temperature={self.temperature}, '
            f'negatives={self.negatives!r}, gather={self.gather}, positives={self.positives!r}'
        )

    def forward(self, queries: Tensor, keys: Tensor, nouns: Tensor | None = None) -> Tensor:
        """Compute the mean over the queries; in training the keys then join the queue.

        Without instances it is 0. A key that is NaN or infinite joins as zeros of no noun.

        Args:
            queries: (M, D) embeddings by the trained encoder.
            keys: (M, D) those of the same instances by the momentum encoder.
            nouns: (M,) their nouns, for 'other_nouns' and 'same_noun'.

        Raises:
            InputError: If their shapes differ or aren't those of the queue, they are no
                floating-point numbers, or nouns are missing.
        """
        by_nouns = _by_nouns(self.negatives, self.positives)
        _check_embeddings(queries, keys, nouns, by_nouns, len(self.queue))
        counts = count_rows(queries) if self.gather else [len(queries)]
        with torch.autocast(queries.device.type, enabled=False):
            queries, keys = at_least_float32(queries), at_least_float32(keys.detach())
            loss = queries.sum()
            if len(queries):
                loss = instance_info_nce(
                    queries,
                    keys,
                    at_least_float32(self.queue).to(queries.dtype),
                    nouns,
                    self.queue_nouns,
                    temperature=self.temperature,
                    negatives=self.negatives,
                    positives=self.positives,
                )
            if self.training and any(counts):
                keys = gather_rows(F.normalize(keys, dim=1), counts)
                nouns = None if nouns is None else gather_rows(nouns, counts)
                enqueue(self.queue, self.pointer, keys, self.queue_nouns, nouns)
        return loss * _share(counts) if len(counts) > 1 else loss


class InstanceDistillation(nn.Module):
    """DINO's loss over instances: a student predicts its teacher's view of each object.

    DINO: arXiv 2104.14294. The teacher's output is centred by a running mean and sharpened; a
    student's view is compared with every other view of the teacher's.

    Args:
        dim: Width D of the head's output.
        student_temperature: Above 0.
        teacher_temperature: Above 0, not above the student's.
        center_momentum: Of the running mean, in [0, 1).
        gather: Whether that mean is over the instances of all processes.

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
        gather: bool = False,
    ) -> None:
        super().__init__()
        _check_temperature('student_temperature', student_temperature)
        if not 0 < teacher_temperature <= student_temperature:
            raise InputError('0 < teacher_temperature <= student_temperature must hold')
        if not 0 <= center_momentum < 1:
            raise InputError(f'center_momentum {center_momentum} is not in [0, 1)')
        if type(dim) is not int or dim < 1:
            raise InputError(f'dim {dim!r} must be a whole number above 0')
        self.student_temperature, self.teacher_temperature = (
            student_temperature,
            teacher_temperature,
        )
        self.center_momentum, self.gather = center_momentum, gather
        self.register_buffer('center', torch.zeros(1, dim))

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f'dim={self.center.shape[1]}, student_temperature={self.student_temperature}, '
            f'teacher_temperature={self.teacher_temperature}, '
            f'center_momentum={self.center_momentum}, gather={self.gather}'
        )

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        teacher_temperature: float | None = None,
    ) -> Tensor:
        """Compute the mean over instances and pairs of views; in training the centre moves on.

        Without instances it is 0, and the centre stays; it stays, too, where the teacher's outputs
        are NaN or infinite.

        Args:
            student: For each view the (M, D) outputs of the student's head.
            teacher: The same of the teacher, for the first of these views (the global ones).
            teacher_temperature: Where it follows a schedule, what it is now; above 0.

        Raises:
            InputError: If shapes differ or aren't those of the centre, there is no pair of
                different views, or the temperature is out of range.
        """
        student, teacher = list(student), list(teacher)
        if teacher_temperature is None:
            teacher_temperature = self.teacher_temperature
        _check_temperature('teacher_temperature', teacher_temperature)
        shapes = {tuple(output.shape) for output in (*student, *teacher)}
        dim = self.center.shape[1]
        if len(shapes) != 1 or [len(shape) for shape in shapes] != [2] or shapes.pop()[1] != dim:
            raise InputError(
                f'student and teacher must have outputs (M, {dim}), one for each view, got '
                f'{[tuple(output.shape) for output in (*student, *teacher)]}'
            )
        if not 1 <= len(teacher) <= len(student) or len(student) < 2:
            raise InputError(
                'self-distillation needs two different views, the teacher the first of the '
                f"student's, got {len(teacher)} and {len(student)}"
            )
        counts = count_rows(student[0]) if self.gather else [len(student[0])]
        with torch.autocast(student[0].device.type, enabled=False):
            student, teacher = (
                [at_least_float32(view) for view in views] for views in (student, teacher)
            )
            loss = torch.stack([output.sum() for output in student]).sum()
            if len(student[0]):
                loss = distillation_loss(
                    student,
                    teacher,
                    self.center,
                    student_temperature=self.student_temperature,
                    teacher_temperature=teacher_temperature,
                )
            if self.training and any(counts):
                self._move_center(teacher, counts)
        return loss * _share(counts) if len(counts) > 1 else loss

    @torch.no_grad()
    def _move_center(self, teacher: Sequence[Tensor], counts: Sequence[int]) -> None:
        """Move the centre towards the mean of the teacher's (M, D) outputs."""
        total = torch.cat(list(teacher)).sum(0, keepdim=True)
        if len(counts) > 1:
            dist.all_reduce(total)
        mean = (total / (sum(counts) * len(teacher))).to(self.center.dtype)
        mean = torch.where(mean.isfinite().all(), mean, self.center)
        self.center.lerp_(mean, 1 - self.center_momentum)
