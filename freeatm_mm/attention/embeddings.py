"""Notice when the embeddings that a run generates from are no longer those of its first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ['EmbeddingWatch', 'differ', 'rows_differ']


class EmbeddingWatch:
    """Compares the prompts' embeddings of each step with those of a run's first step.

    A callback can put others in their place, or write into them.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin a new run: what the next step gets is taken to be right."""
        self._first: list[Tensor] = []
        self._seen: list[tuple[Tensor, int | None]] = []

    def check(
        self, given: Mapping[str, Any], dims: Mapping[str, int], rows: slice, batch: int
    ) -> None:
        """Compare what a call of the network gets.

        Args:
            given: The embeddings by the names of the network's arguments: tensors, or lists of
                tensors.
            dims: Along which dimension each has the rows of the batch, that of a list being 0.
            rows: The rows of the prompts.
            batch: How many rows there are.

        Raises:
            ValueError: If the prompts' embeddings are others than those of the run's first step.
        """
        there = {name: value for name, value in given.items() if _size(value, dims[name]) == batch}
        seen = [(tensor, _version(tensor)) for tensor in _tensors(list(there.values()))]
        # Values are compared where it may be that they changed, for on an accelerator that waits
        # for all work before it.
        if _is_unchanged(seen, self._seen):
            return
        own = [part for name, value in there.items() for part in _part(value, rows, dims[name])]
        if self._first and differ(own, self._first):
            raise ValueError(
                'the embeddings of the prompts were changed in the middle of the run, by a '
                'callback perhaps, and where the nouns stand in the new ones is not known: '
                'generate with those that the text encoders made, or pass check_prompts=False to '
                'record all the same'
            )
        if not self._first:
            # A copy, for the tensor itself may be written into.
            self._first = [part.clone() for part in own]
        self._seen = seen


def differ(one: Any, other: Any) -> bool:
    """Tell whether two tensors, or lists of them, hold other values. NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one is other:
            return False
        return one.shape != other.shape or not bool(
            ((one == other) | ((one != one) & (other != other))).all()
        )
    if isinstance(one, Sequence) and isinstance(other, Sequence):
        return len(one) != len(other) or any(map(differ, one, other))
    return False


def rows_differ(given: Mapping[str, Any], dims: Mapping[str, int], one: int, other: int) -> bool:
    """Tell whether two rows of a batch have other embeddings.

    Args:
        given: As of `EmbeddingWatch.check`.
        dims: As there.
        one: Number of a row.
        other: Number of the other.
    """
    return any(
        differ(*(_part(value, slice(row, row + 1), dims[name]) for row in (one, other)))
        for name, value in given.items()
        if (_size(value, dims[name]) or 0) > max(one, other)
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _part(value: Any, rows: slice, dim: int) -> list[Tensor]:
    """The tensors of some rows."""
    if isinstance(value, Tensor):
        return [value[(slice(None),) * dim + (rows,)]]
    if dim == 0:
        return [*_tensors(value[rows])]
    return [tensor for part in value for tensor in _part(part, rows, dim - 1)]


def _size(value: Any, dim: int) -> int | None:
    """How many rows embeddings have; `None` if they are none."""
    if isinstance(value, Tensor):
        return value.shape[dim] if dim < value.ndim else None
    if not isinstance(value, (list, tuple)):
        return None
    return len(value) if dim == 0 else _size(value[0], dim - 1) if value else None


def _version(tensor: Tensor) -> int | None:
    """A number that grows with each change in place; `None` where PyTorch does not count."""
    return None if tensor.is_inference() else tensor._version


def _is_unchanged(
    seen: Sequence[tuple[Tensor, int | None]], before: Sequence[tuple[Tensor, int | None]]
) -> bool:
    return len(seen) == len(before) and all(
        tensor is other and version is not None and version == count
        for (tensor, version), (other, count) in zip(seen, before)
    )
