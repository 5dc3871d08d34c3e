"""Equation 1 of the paper, ``softmax(QK^T / sqrt(d))``, for what is recorded of it, in pieces.

Shape suffixes: B images, N queries (pixels of a feature map), K keys, H heads, C channels of a
head, T noun tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ['add_affinity', 'noun_attention']

# Attention logits held at once. On a CPU a piece must fit the cache (three times faster than
# all at once); an accelerator wants large ones, here 64 MiB.
CPU_LOGITS = 2**18
ACCELERATOR_LOGITS = 2**24


@torch.no_grad()
def noun_attention(
    query_BNHC: Tensor,
    key_BKHC: Tensor,
    columns_BT: Tensor,
    scale: float,
    *,
    bias_BNK: Tensor | None = None,
    weights_BNH: Tensor | None = None,
    out_BTN: Tensor | None = None,
) -> Tensor:
    """Add up the noun columns of ``softmax(scale * QK^T + bias)``, averaged over heads (eq. 1).

    Computed in float32 whatever the inputs' type, in pieces that bound the memory.

    Args:
        query_BNHC: Queries.
        key_BKHC: Keys.
        columns_BT: int64 indices of the wanted keys, one row for each image.
        scale: Factor of the logits, ``1 / sqrt(C)`` as a rule.
        bias_BNK: Added to the logits before the softmax (an attention mask); its N may be 1.
        weights_BNH: What each head counts at each pixel, in place of a mean; float32.
        out_BTN: float32 sums to add to; zeros when left out. Its device may be another one, as
            where the layers of a network lie on several.

    Returns:
        ``out_BTN``, shape (B, T, N).
    """
    num_images, num_queries, num_heads, _ = query_BNHC.shape
    num_keys, num_columns = key_BKHC.shape[1], columns_BT.shape[1]
    if out_BTN is None:
        out_BTN = torch.zeros(num_images, num_columns, num_queries, device=query_BNHC.device)
    if num_columns == 0:
        return out_BTN
    device = query_BNHC.device.type
    budget = _logits_at_once(device)
    queries_at_once = min(num_queries, max(1, budget // (num_heads * num_keys)))
    images_at_once = min(num_images, max(1, budget // (num_heads * num_keys * queries_at_once)))
    # Memory for all pieces: made anew for each, its pages would cost more than the softmax.
    memory = torch.empty(
        2,
        images_at_once * num_heads * queries_at_once * num_keys,
        dtype=torch.float32,
        device=query_BNHC.device,
    )
    # Autocast would turn the products back to half precision.
    with torch.autocast(device_type=device, enabled=False):
        for first in range(0, num_images, images_at_once):
            images = slice(first, first + images_at_once)
            key_BHCK = key_BKHC[images].permute(0, 2, 3, 1).float() * scale
            index_BHNT = columns_BT[images, None, None].expand(-1, num_heads, queries_at_once, -1)
            for start in range(0, num_queries, queries_at_once):
                queries = slice(start, start + queries_at_once)
                query_BHNC = query_BNHC[images, queries].transpose(1, 2).float()
                shape = (*query_BHNC.shape[:3], num_keys)
                logits_BHNK, attention_BHNK = (
                    piece[: math.prod(shape)].view(shape) for piece in memory
                )
                torch.matmul(query_BHNC, key_BHCK, out=logits_BHNK)
                if bias_BNK is not None:
                    bias = bias_BNK[images] if bias_BNK.shape[1] == 1 else bias_BNK[images, queries]
                    logits_BHNK += bias[:, None].float()
                # One pass of softmax is faster than logsumexp and exp of the columns, and its
                # result is no larger than the logits.
                torch.softmax(logits_BHNK, -1, out=attention_BHNK)
                columns_BHNT = attention_BHNK.gather(-1, index_BHNT[:, :, : query_BHNC.shape[2]])
                if weights_BNH is None:
                    columns_BNT = columns_BHNT.mean(1)
                else:
                    columns_BNT = torch.einsum(
                        'bhnt,bnh->bnt', columns_BHNT, weights_BNH[images, queries]
                    )
                out_BTN[images, :, queries] += columns_BNT.transpose(1, 2).to(out_BTN.device)
    return out_BTN


@torch.no_grad()
def add_affinity(query_BNHC: Tensor, key_BNHC: Tensor, scale: float, out_BNN: Tensor) -> None:
    """Add ``softmax(scale * QK^T)``, averaged over heads, to a running sum (equation 1).

    Computed in float32, a few rows at a time, so that memory stays that of the sum.

    Args:
        query_BNHC: Queries of B images, N pixels, H heads, C channels.
        key_BNHC: Keys.
        scale: Factor of the logits, ``1 / sqrt(C)`` as a rule.
        out_BNN: float32 sum to add to; row i is what pixel i attends to.
    """
    images, pixels, heads, _ = query_BNHC.shape
    device = query_BNHC.device.type
    budget = _logits_at_once(device)
    at_once = max(1, budget // (heads * pixels))
    with torch.autocast(device_type=device, enabled=False):
        for image in range(images):
            key_HCN = key_BNHC[image].permute(1, 2, 0).float() * scale
            for start in range(0, pixels, at_once):
                rows = slice(start, start + at_once)
                attention_HRN = (query_BNHC[image, rows].transpose(0, 1).float() @ key_HCN).softmax(
                    -1
                )
                out_BNN[image, rows] += attention_HRN.mean(0).to(out_BNN.device)


def _logits_at_once(device: str) -> int:
    return CPU_LOGITS if device == 'cpu' else ACCELERATOR_LOGITS
