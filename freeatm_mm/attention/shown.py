"""Taps on modules in compiled code, which is shown to them instead of hooked: see `compiled`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from freeatm_mm.attention.families import Family, TextKeys, head_count
from freeatm_mm.attention.sequence import AttentionCall
from freeatm_mm.attention.taps import (
    Attention,
    SelfTap,
    SequenceTap,
    Sink,
    WatchedTap,
    behind_pixels,
    map_size,
)

__all__ = ['ShownSelfTap', 'ShownSequenceTap', 'ShownTap', 'make_shown_self_tap', 'make_shown_tap']


class ShownTap(WatchedTap):
    """Adds up attention from pixels to the text, alone or with the pixels' own keys behind it.

    The first attention call of the module that can be the one to record is added up while it is
    shown, and nothing of it is kept: compiled code uses its memory again.
    """

    def install(self) -> list:
        """Register nothing."""
        return []

    def watch_block(self, block: nn.Module) -> list[RemovableHandle]:
        """Refuse a block of another package, which may merge tokens where none are counted.

        Raises:
            ValueError: As said.
        """
        if type(block).__module__.partition('.')[0] not in ('diffusers', 'torch'):
            raise ValueError(
                f'{self.layer} is compiled in a {type(block).__name__} of '
                f'{type(block).__module__}, which may merge tokens (ToMe): record it as it was '
                'before torch.compile'
            )
        return []

    def start(self) -> None:
        """Begin a run of the compiled part that holds the module."""
        self._forget()
        self.active = self.sink.recording
        if self.active:
            self.sink.ran.add(self.layer)

    def look(self, call: AttentionCall) -> None:
        """Add up an attention call of the module, if it is the one to record."""
        if self.active and self._fits(call):
            self.call = call
            self._see(call)
            self._forget()

    def finish(self) -> None:
        """End the run.

        Raises:
            RuntimeError: If the module showed no attention call to record.
        """
        active = self.active
        self._forget()
        if active:
            around = self.layer.rpartition('.')[0] or 'its parts'
            raise RuntimeError(
                f'{self.layer} ran in compiled code without a scaled_dot_product_attention that '
                'can be recorded; record with the network as it was before torch.compile, with '
                f"diffusers' own attention processors, or, if its graphs break, with {around} and "
                'its like compiled each by itself'
            )

    def _fits(self, call: AttentionCall) -> bool:
        batch, heads = call.query.shape[:2]
        return batch in self.sink.batches and heads == head_count(self.module)

    def _see(self, call: AttentionCall) -> None:
        assert self.sink.input is not None
        queries, self.keys = call.query.shape[2], call.key.shape[2]
        if self.sink.text_keys is TextKeys.ADDED and self.module.to_k is not None:
            self.keys -= queries
        if call.mask is not None:
            # diffusers repeats its masks for every head.
            mask = call.mask[(None,) * (4 - call.mask.ndim)]
            self.call = call._replace(mask=mask[:, :1])
        self.size = map_size(self.sink.input.size, queries)
        self._record_if_wanted()

    def attention(self, rows: slice) -> Attention:
        """The queries, keys and mask of some rows of the batch."""
        seen = super().attention(rows)
        return behind_pixels(seen) if self.sink.text_keys is TextKeys.BEHIND else seen

    def _record_if_wanted(self) -> None:
        if self.sink.wants(self.size):
            self._record(True)


class ShownSequenceTap(ShownTap, SequenceTap):
    """The same where text and image are one sequence."""

    def watch_block(self, block: nn.Module) -> list[RemovableHandle]:
        """Watch nothing, as the sequence's length is known."""
        return SequenceTap.watch_block(self, block)

    def _fits(self, call: AttentionCall) -> bool:
        return SequenceTap._fits(self, call)

    def _see(self, call: AttentionCall) -> None:
        assert self.sink.input is not None
        self.size, self.keys = self.sink.input.size, self.sink.input.length
        self._record_if_wanted()

    def attention(self, rows: slice) -> Attention:
        """The image's queries, all keys, and the mask of some rows of the batch."""
        return SequenceTap.attention(self, rows)


class ShownSelfTap(ShownTap, SelfTap):
    """The same for attention among pixels, alone or behind the text."""

    def __init__(self, sink: Sink, module: Any, layer: str) -> None:
        SelfTap.__init__(self, sink, module, layer)

    def _see(self, call: AttentionCall) -> None:
        assert self.sink.input is not None and self.sink.self_attention is not None
        self.size = map_size(self.sink.input.size, call.query.shape[2])
        if min(self.size) <= self.sink.self_attention:
            self._record_affinity(True)

    def affinity(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The pixels' queries and keys of some rows, shape (B, N, H, C)."""
        assert self.call is not None
        pixels = self.call.query.shape[2]
        return (
            self.call.query[rows].transpose(1, 2),
            self.call.key[rows, :, -pixels:].transpose(1, 2),
        )


def make_shown_tap(
    sink: Sink, family: Family, module: Any, group: str, layer: str, heads: tuple[int, ...]
) -> ShownTap:
    """Make the tap for a compiled module's attention to the text."""
    kind = ShownSequenceTap if family.text_keys is TextKeys.SEQUENCE else ShownTap
    return kind(sink, module, group, layer, heads)


def make_shown_self_tap(sink: Sink, family: Family, module: Any, layer: str) -> ShownSelfTap:
    """Make the tap for a compiled module's attention among pixels."""
    return ShownSelfTap(sink, module, layer)
