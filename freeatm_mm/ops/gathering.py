"""Rows of all processes, whatever their numbers, with `torch.distributed`'s default group.

    >>> rows = torch.randn(3, 8)  # this process has three instances
    >>> counts = count_rows(rows)  # where there is no other process
    >>> counts, process_rank(), gather_rows_with_gradient(rows, counts).shape
    ([3], 0, torch.Size([3, 8]))

Shapes: M rows of this process, N of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ['count_rows', 'gather_rows', 'gather_rows_with_gradient', 'process_rank']


def process_rank() -> int:
    """Return the number of this process; 0 where there is one alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def count_rows(rows: Tensor) -> list[int]:
    """Return the number of rows of each process, the same list everywhere.

    Args:
        rows: (M, ...) rows of this process.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return [len(rows)]
    told = _all_gather(torch.tensor([len(rows)], device=rows.device))
    return [int(part) for part in torch.cat(told).tolist()]


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Gather the rows of all processes in the order of ranks, whatever their numbers; no gradient.

    Every process sends the same number of rows, padded with zeros, as collectives want equal shapes
    and would otherwise wait for ever.

    Args:
        rows: (M, ...) rows of this process.
        counts: Number of rows of each process, the same list everywhere.

    Returns:
        (N, ...), N the sum of counts.
    """
    return rows if len(counts) == 1 else _gather(rows, counts)


@torch.compiler.disable
def _gather(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """`gather_rows` of several processes."""
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(_all_gather(padded), counts)])


def gather_rows_with_gradient(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """`gather_rows` for losses: what any process does with the rows reaches their own process.

    Every process must go back through what it gathered, or the others wait for ever.

    Args:
        rows: (M, ...) rows of this process.
        counts: Number of rows of each process, the same list everywhere.

    Returns:
        (N, ...), N the sum of counts.
    """
    return rows if len(counts) == 1 else _GatherWithGradient.apply(rows, counts)


class _GatherWithGradient(torch.autograd.Function):
    """`gather_rows`, and back: each process gets the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        return gather_rows(rows, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # A copy, as it may be another operation's gradient, too.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        _all_reduce(gradient)
        start = sum(ctx.counts[: process_rank()])
        return gradient[start : start + ctx.counts[process_rank()]], None


def _all_gather(rows: Tensor) -> list[Tensor]:
    """The rows of each process, all of one shape."""
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return parts


def _all_reduce(rows: Tensor) -> None:
    """Sum over processes, in place."""
    dist.all_reduce(rows)
