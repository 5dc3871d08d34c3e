"""Queries and keys as they reach ``scaled_dot_product_attention``.

Models that let text and image attend to each other as one sequence normalise and rotate their
queries and keys after projecting them. Here they are seen where all that is done. The call itself
goes on untouched, with whatever processor and backend makes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from freeatm_mm.compat import show_attention_backends

__all__ = [
    'AttentionCall',
    'WatchAttention',
    'attention_call',
    'bias_of',
    'deciding_arguments',
    'watched_backends',
]


class AttentionCall(NamedTuple):
    """The arguments of ``scaled_dot_product_attention`` that decide its probabilities.

    Args:
        query: Shape (batch, heads, queries, channels).
        key: Shape (batch, heads or fewer, keys, channels).
        mask: Boolean (``True`` takes part) or added to the logits; broadcast to (batch, heads,
            queries, keys).
        scale: Factor of the logits.
        output: What it returned, where that was asked for; shape (batch, heads, queries, channels).
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float
    output: Tensor | None = None


_looks: ContextVar[tuple[Callable[[AttentionCall], None], ...]] = ContextVar('looks', default=())
"""What the watches of this thread show attention to."""


class WatchAttention(TorchFunctionMode):
    """Shows each call of ``scaled_dot_product_attention`` of this thread to a function.

    Args:
        look: Gets each `AttentionCall`. Inside `watched_backends` also those that
            diffusers hands to other functions, once more where these call this one.
        outputs: Whether to show what the call returned, too, and no other calls than PyTorch's.
    """

    def __init__(self, look: Callable[[AttentionCall], None], outputs: bool = False) -> None:
        super().__init__()
        self._look = look
        self._outputs = outputs

    def __enter__(self) -> Any:
        """Begin."""
        if not self._outputs:
            _looks.set((*_looks.get(), self._look))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """End."""
        if not self._outputs:
            _looks.set(_looks.get()[:-1])
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        call = attention_call(*deciding_arguments(*args, **kwargs))
        if not self._outputs:
            self._look(call)
            return func(*args, **kwargs)
        output = func(*args, **kwargs)
        self._look(call._replace(output=output.detach()))
        return output


class _Backends:
    """What shows the attention backends of diffusers: one for all recorders at work."""

    lock = threading.Lock()
    users = 0
    end: Callable[[], None]


def watched_backends() -> Callable[[], None]:
    """Have watches see what diffusers hands to attention backends other than PyTorch's.

    Returns:
        What ends that. Recorders may begin and end in any order.
    """
    with _Backends.lock:
        if not _Backends.users:
            _Backends.end = staticmethod(_show_backends())
        _Backends.users += 1

    def end() -> None:
        with _Backends.lock:
            _Backends.users -= 1
            if not _Backends.users:
                _Backends.end()

    return end


def _show_backends() -> Callable[[], None]:

    def show(call: dict[str, Any]) -> None:
        if looks := _looks.get():
            query, key, mask, scale = deciding_arguments(**call)
            if mask is not None and mask.ndim == 2:  # of the keys, for backends that cut them out
                mask = mask[:, None, None]
            shown = attention_call(query.transpose(1, 2), key.transpose(1, 2), mask, scale)
            for look in looks:
                look(shown)

    return show_attention_backends(show)


def deciding_arguments(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    **others: Any,
) -> tuple[Any, Any, Any, Any]:
    """Pick query, key, mask and scale from the arguments of ``scaled_dot_product_attention``."""
    return query, key, attn_mask, scale


def attention_call(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None
) -> AttentionCall:
    """Make an `AttentionCall` of them; the scale's default is that of the function."""
    return AttentionCall(
        query.detach(), key.detach(), mask, query.shape[-1] ** -0.5 if scale is None else scale
    )


def bias_of(mask: Tensor, name: str) -> Tensor:
    """A mask of ``scaled_dot_product_attention`` as a bias of the logits.

    Args:
        mask: Boolean or floating, broadcast to (batch, heads, queries, keys), the same for all
            heads.
        name: The module's name, for the message.

    Returns:
        The bias, shape (batch or 1, queries or 1, keys).

    Raises:
        ValueError: If the mask differs between heads.
    """
    mask = mask[(None,) * (4 - mask.ndim)]
    # Fused processors repeat a mask for every head.
    if mask.shape[1] != 1 and mask.stride(1) != 0 and not (mask == mask[:, :1]).all():
        raise ValueError(
            f'{name} has an attention mask of its own for each head, which the '
            'recorder does not take'
        )
    mask = mask[:, 0]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    return mask
