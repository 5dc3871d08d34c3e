"""Taps: hooks that catch the queries and keys of one attention module as it computes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from freeatm_mm.attention.caches import may_be_skipped
from freeatm_mm.attention.families import DenoiserInput, Family, TextKeys, argument, head_count
from freeatm_mm.attention.hooks import own_hook
from freeatm_mm.attention.outputs import head_weights, output_projection
from freeatm_mm.attention.parts import Size, in_blocks, named_parts, size_matches
from freeatm_mm.attention.sequence import AttentionCall, WatchAttention, bias_of

__all__ = [
    'Attention',
    'BehindTap',
    'ForeignTap',
    'SelfTap',
    'SequenceTap',
    'Sink',
    'Tap',
    'WatchedSelfTap',
    'WatchedTap',
    'behind_pixels',
    'make_self_tap',
    'make_tap',
    'map_size',
    'self_attention_modules',
    'split_heads',
    'text_attention_modules',
]


@dataclass
class Sink:
    """What the taps of one denoiser ask, and where they give what they caught.

    Args:
        text_keys: How the modules get their text keys.
        accumulate: Takes a tap on text attention that holds all of a module's call.
        accumulate_affinity: Takes a tap on the attention between pixels.
        resolutions: Map sizes to catch; ``None``: all.
        self_attention: The largest shorter side of a map whose self-attention is caught.
        recording: Whether the denoiser's present call is one to record.
        input: What that call is about.
        batches: Numbers of rows that a module may attend with: those of the batch, or fewer where
            it attends for the first of them apart.
        outputs: Whether the outputs of attention calls are wanted.
        layer_steps: In how many calls each layer was caught.
        seen: Sizes of all maps that there were to catch, of layers and calls that are recorded.
        ran: Layers that ran in calls that are recorded, at whatever size.
    """

    text_keys: TextKeys
    accumulate: Callable[[Tap], None]
    accumulate_affinity: Callable[[SelfTap], None]
    resolutions: tuple[int | Size, ...] | None = None
    self_attention: int | None = None
    recording: bool = False
    input: DenoiserInput | None = None
    batches: tuple[int, ...] = ()
    outputs: bool = False
    layer_steps: dict[str, int] = field(default_factory=dict)
    seen: set[Size] = field(default_factory=set)
    ran: set[str] = field(default_factory=set)

    def wants(self, size: Size) -> bool:
        """Say whether maps of this size are caught."""
        self.seen.add(size)
        return size_matches(size, self.resolutions)


class Attention(NamedTuple):
    """What a module's attention to the text is computed from, for the images recorded."""

    query_BNHC: Tensor
    key_BKHC: Tensor
    bias_BNK: Tensor | None
    scale: float
    text_start: int
    text_length: int


class Tap:
    """Catches the queries and keys of one attention module as it computes them."""

    block_tokens: int | None = None

    def __init__(
        self, sink: Sink, module: nn.Module, group: str, layer: str, heads: tuple[int, ...]
    ) -> None:
        self.sink = sink
        self.module: Any = module  # what it holds beyond nn.Module is diffusers'
        self.name = type(module).__name__
        self.group = group
        self.layer = layer
        self.heads = heads
        self.processor: Any = getattr(module, 'processor', None)
        self.active = False
        self.hooked: list[tuple[str, nn.Module]] = []
        self._forget()

    def _forget(self) -> None:
        self.active = False
        self.size: Size = (0, 0)
        self.query: Tensor | None = None
        self.text_key: Tensor | None = None
        self.pixel_key: Tensor | None = None
        self.mask: Tensor | None = None
        self.projected: tuple[Tensor, Tensor] | None = None
        self.projections: list[str] = []

    def install(self) -> list:
        """Register the hooks and return their handles."""
        return [
            self._hook_before(),
            *self._install_projections(),
            self._hook_after(),
        ]

    def _hook_before(self) -> RemovableHandle:
        hook = own_hook(self.module, self._before)
        return self.module.register_forward_pre_hook(hook, with_kwargs=True)

    def _hook_after(self, always: bool = False) -> RemovableHandle:
        hook = own_hook(self.module, self._after)
        return self.module.register_forward_hook(hook, always_call=always)

    def _install_projections(self) -> list:
        joint = self.sink.text_keys is TextKeys.ADDED
        handles = [
            self._catch('to_q', 'query'),
            self._catch('add_k_proj' if joint else 'to_k', 'text_key'),
        ]
        if joint and self.module.to_k is not None:
            handles.append(self._catch('to_k', 'pixel_key'))
        return handles

    def stop(self) -> None:
        """End what a call of the module left open that was broken off."""
        self._forget()

    def watch_projection(self) -> RemovableHandle:
        """Register a hook for `head_weights` and return its handle."""

        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            if self.active and self.projected is None:
                self.projected = args[0].detach(), output.detach()

        projection = output_projection(self.module, self.layer)
        return projection.register_forward_hook(own_hook(projection, hook))

    def watch_block(self, block: nn.Module) -> list[RemovableHandle]:
        """Count the tokens of the block that holds the module, and return the hooks' handles.

        The module must attend from as many: one that merged some of them may be left with just as
        many as a smaller map has.
        """

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden = argument(args, kwargs, 0, 'hidden_states')
            tokens = isinstance(hidden, Tensor) and hidden.ndim == 3
            self.block_tokens = hidden.shape[1] if tokens else None

        return [block.register_forward_pre_hook(own_hook(block, hook), with_kwargs=True)]

    def head_weights(self, rows: slice) -> Tensor:
        """What each wanted head counts at each pixel in some rows of the batch, (B, N, H)."""
        if self.projected is None:
            raise RuntimeError(
                f"{self.layer} ran without calling its own output projection, so its heads' "
                "contributions are unknown; give it back diffusers' own processor"
            )
        heads, output = (self._of_pixels(tensor, rows) for tensor in self.projected)
        projection = output_projection(self.module, self.layer)
        if projection.weight.device != heads.device:
            raise RuntimeError(
                f"head_weights='contribution' needs the output projection of {self.layer} where it "
                f'was computed, on {heads.device}, and it was offloaded at once: offload whole '
                'networks (pipe.enable_model_cpu_offload())'
            )
        return head_weights(heads, output, projection, head_count(self.module), self.heads)

    def _of_pixels(self, tensor_BNX: Tensor, rows: slice) -> Tensor:
        """The pixels of some rows in a module's tensor, which may hold the text's tokens, too."""
        return tensor_BNX[rows]

    def _catch(self, projection_name: str, name: str) -> RemovableHandle:
        projection = getattr(self.module, projection_name)
        self.hooked.append((projection_name, projection))

        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            if self.active:
                setattr(self, name, output.detach())
                self.projections.append(name)

        return projection.register_forward_hook(own_hook(projection, hook))

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        # Also drops what a call that failed half-way left here.
        self._forget()
        tokens, self.block_tokens = self.block_tokens, None
        processor = getattr(module, 'processor', None)
        if processor is not self.processor:
            self._check_processor(module)
            self.processor = processor
        if not self.sink.recording:
            return
        self.sink.ran.add(self.layer)
        hidden = argument(args, kwargs, 0, 'hidden_states')
        if tokens is not None and hidden.ndim == 3 and hidden.shape[1] != tokens:
            raise RuntimeError(
                f'{self.layer} attends from {hidden.shape[1]} of the {tokens} tokens of its block, '
                'which are merged or left out before it, so which pixels they are is not known; '
                'record without token merging (tomesd.remove_patch)'
            )
        self._check_projections()
        self.size = self._map_size(hidden)
        self.mask = argument(args, kwargs, 2, 'attention_mask')
        self.active = self.sink.wants(self.size)

    def _check_processor(self, module: nn.Module) -> None:
        """Refuse a processor of somebody's own that was put in place after the tap was."""
        if type(self) is Tap and _is_foreign(module):
            raise ValueError(
                f'{self.layer} was given another attention processor while it was being recorded: '
                'set it before the with block, or before generate()'
            )

    def _check_projections(self) -> None:
        """Refuse projections that an adapter was put round, or taken off, after the hooks."""
        for name, projection in self.hooked:
            if getattr(self.module, name) is not projection:
                raise ValueError(
                    f'the {name} of {self.layer} was replaced while it was being recorded, by a '
                    'LoRA that was loaded or unloaded perhaps: do that before the with block, or '
                    'before generate()'
                )

    def _map_size(self, hidden: Tensor) -> Size:
        if hidden.ndim == 4:
            height, width = hidden.shape[-2:]
            return height, width
        assert self.sink.input is not None
        return map_size(self.sink.input.size, hidden.shape[1])

    def _after(self, module: nn.Module, args: tuple, output: Any) -> None:
        if not self.active:
            return
        self._record(self.query is not None and self.text_key is not None)

    def _record(self, computed: bool) -> None:
        """Add up what was caught; nothing if a step cache answered in the module's place."""
        self.sink.layer_steps.setdefault(self.layer, 0)
        if computed or not may_be_skipped(self.module):
            self._check(computed)
            self.sink.accumulate(self)
        self._forget()

    def attention(self, rows: slice) -> Attention:
        """The queries, keys and mask of some rows of the batch."""
        assert self.query is not None and self.text_key is not None
        heads, norm_k = self.module.heads, self.module.norm_k
        query_BNHC = split_heads(self.query[rows], heads, self.module.norm_q)
        key_BKHC = split_heads(self.text_key[rows], heads, norm_k)
        text_length = key_BKHC.shape[1]
        if self.pixel_key is not None:
            key_BKHC = torch.cat(
                [key_BKHC, split_heads(self.pixel_key[rows], heads, norm_k)], dim=1
            )
        bias_BNK = None
        if self.mask is not None:
            bias_BNK = _bias(self.mask, key_BKHC.shape[1], self.query.shape[0], self.name)[rows]
        return Attention(query_BNHC, key_BKHC, bias_BNK, self.module.scale, 0, text_length)

    def _check(self, computed: bool) -> None:
        if not computed:
            raise RuntimeError(
                f'{self.name} ran without calling its own query and key projections, so its '
                'attention cannot be recorded; give it back a processor of diffusers, and fuse '
                'projections before recording'
            )
        caught = [
            tensor for tensor in (self.query, self.text_key, self.pixel_key) if tensor is not None
        ]
        if (
            len(self.projections) > len(caught)
            or any(tensor.shape[0] not in self.sink.batches for tensor in caught)
            or (self.query is not None and self.query.shape[1] != math.prod(self.size))
        ):
            raise RuntimeError(
                f'the attention processor of {self.layer}, {type(self.module.processor).__name__}, '
                'projects queries or keys more than once, or in parts, so what attends to what is '
                'not known; give it back a processor of diffusers'
            )


class BehindTap(Tap):
    """Catches attention to pixels and, behind them, text."""

    def attention(self, rows: slice) -> Attention:
        """The queries, all keys and the mask of some rows of the batch."""
        return behind_pixels(super().attention(rows))


def behind_pixels(seen: Attention) -> Attention:
    """Attention to pixels and text, with the text where it stands: behind the pixels."""
    pixels = seen.query_BNHC.shape[1]
    return seen._replace(text_start=pixels, text_length=seen.key_BKHC.shape[1] - pixels)


class WatchedTap(Tap):
    """Catches the attention of a module where it reaches ``scaled_dot_product_attention``.

    For cross-attention whose queries are rotated after their projection, or whose keys and values
    are projected together.
    """

    watch: WatchAttention | None = None

    def _forget(self) -> None:
        super()._forget()
        self.call: AttentionCall | None = None

    def install(self) -> list:
        """Register the hooks and return their handles."""
        # The watch must end with the module's call, also when that fails.
        return [self._hook_before(), self._hook_after(always=True)]

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        super()._before(module, args, kwargs)
        if self.active:
            self.keys = self._num_keys(args, kwargs)
            self.watch = WatchAttention(self._look, self.sink.outputs)
            self.watch.__enter__()

    def stop(self) -> None:
        """End the watch of a call that was broken off by no `Exception`, as by Ctrl-C."""
        self._end_watch()
        super().stop()

    def _end_watch(self) -> None:
        watch, self.watch = self.watch, None
        if watch is not None:
            watch.__exit__(None, None, None)

    def _num_keys(self, args: tuple, kwargs: dict) -> int:
        text = argument(args, kwargs, 1, 'encoder_hidden_states')
        # An adapter's image keys come beside the text's, for a call of their own.
        return (text[0] if isinstance(text, tuple) else text).shape[1]

    def _look(self, call: AttentionCall) -> None:
        if self.call is None and self._fits(call):
            self.call = call

    def _fits(self, call: AttentionCall) -> bool:
        # A processor that goes through images or heads one by one shows none of them whole.
        batch, heads, queries, _ = call.query.shape
        return (
            call.key.shape[2] == self.keys
            and queries == math.prod(self.size)
            and batch in self.sink.batches
            and heads == head_count(self.module)
        )

    def _after(self, module: nn.Module, args: tuple, output: Any) -> None:
        if not self.active:
            return
        self._end_watch()
        self.active = False
        if output is None:
            self._forget()  # the module failed, and says so itself
            return
        self._caught()

    def _caught(self) -> None:
        self._record(self.call is not None)

    def _check(self, computed: bool) -> None:
        if not computed:
            raise RuntimeError(
                f'{self.layer} ran without scaled_dot_product_attention over its {self.keys} keys, '
                "so it cannot be recorded; give it back diffusers' own processor and the "
                "attention backend 'native'"
            )

    def attention(self, rows: slice) -> Attention:
        """The queries, keys and mask of some rows of the batch."""
        return self._part(rows, slice(None), 0, self.keys)

    def _part(self, rows: slice, pixels: slice, text_start: int, text_length: int) -> Attention:
        call = self.call
        assert call is not None
        query_BNHC = call.query[rows, :, pixels].transpose(1, 2)
        key_BKHC = call.key[rows].transpose(1, 2)
        # Several heads may share a key.
        shared = query_BNHC.shape[2] // key_BKHC.shape[2]
        if shared > 1:
            key_BKHC = key_BKHC.repeat_interleave(shared, 2)
        bias_BNK = None
        if call.mask is not None:
            bias_BNK = bias_of(call.mask, self.layer)
            bias_BNK = bias_BNK if bias_BNK.shape[0] == 1 else bias_BNK[rows]
            bias_BNK = bias_BNK if bias_BNK.shape[1] == 1 else bias_BNK[:, pixels]
            bias_BNK = bias_BNK.expand(key_BKHC.shape[0], -1, -1)
        return Attention(query_BNHC, key_BKHC, bias_BNK, call.scale, text_start, text_length)


class ForeignTap(WatchedTap):
    """Catches the attention of a module with a processor that is none of diffusers'.

    Such a one may change queries and keys behind their projections, or mask some of them: they are
    taken as they reach ``scaled_dot_product_attention``, and only without that as projected.
    """

    def _forget(self) -> None:
        super()._forget()
        self.seen, self.fitting = 0, 0

    def install(self) -> list:
        """Register the hooks and return their handles."""
        return [*super().install(), *self._install_projections()]

    def _num_keys(self, args: tuple, kwargs: dict) -> int:
        return 0  # known when they are projected

    def _look(self, call: AttentionCall) -> None:
        self.seen += 1
        if self._fits(call):
            self.call = call
            self.fitting += 1

    def _fits(self, call: AttentionCall) -> bool:
        keys = [key.shape[1] for key in (self.text_key, self.pixel_key) if key is not None]
        self.keys = sum(keys)
        return super()._fits(call)

    def _caught(self) -> None:
        self._record(self.query is not None and self.text_key is not None)

    def _check(self, computed: bool) -> None:
        Tap._check(self, computed)
        if self.fitting != 1 and self.seen:
            how = f'{self.fitting} times' if self.fitting else 'in parts'
            raise RuntimeError(
                f'the attention processor of {self.layer}, {type(self.module.processor).__name__}, '
                f'attends to the text {how}, where one softmax of all images, heads and pixels can '
                'be recorded; give it back a processor of diffusers'
            )

    def attention(self, rows: slice) -> Attention:
        """The queries, keys and mask of some rows of the batch."""
        if self.call is None:
            return Tap.attention(self, rows)
        assert self.text_key is not None
        return self._part(rows, slice(None), 0, self.text_key.shape[1])


class SequenceTap(WatchedTap):
    """Catches the attention of a module in which text and image are one sequence."""

    def watch_block(self, block: nn.Module) -> list[RemovableHandle]:
        """Watch nothing: what is recorded is as long as the whole sequence."""
        return []

    def _map_size(self, hidden: Tensor) -> Size:
        assert self.sink.input is not None
        return self.sink.input.size

    def _num_keys(self, args: tuple, kwargs: dict) -> int:
        return 0 if self.sink.input is None else self.sink.input.length

    def _fits(self, call: AttentionCall) -> bool:
        # An adapter may attend to an image of its own; text and image are all in one sequence,
        # which attends to itself, or to which the image attends.
        layout, (batch, heads, queries, _) = self.sink.input, call.query.shape
        assert layout is not None
        return (
            call.key.shape[2] == layout.length
            and batch in self.sink.batches
            and heads == head_count(self.module)
            and queries in (layout.length, math.prod(layout.size))
        )

    def _check(self, computed: bool) -> None:
        if not computed:
            raise RuntimeError(
                f'{self.layer} ran without scaled_dot_product_attention over its sequence of '
                f'{self.keys} text and image tokens, so it cannot be recorded; '
                "give it back diffusers' own processor and the attention backend 'native'"
            )

    def _of_pixels(self, tensor_BNX: Tensor, rows: slice) -> Tensor:
        layout = self.sink.input
        assert layout is not None
        pixels, tensor_BNX = math.prod(layout.size), tensor_BNX[rows]
        if tensor_BNX.shape[1] != layout.length:
            return tensor_BNX[:, :pixels]
        if layout.places:
            starts = [place.image_start for place in layout.places[rows]]
        else:
            starts = [layout.image_start] * len(tensor_BNX)
        return torch.stack(
            [tensor_NX[start : start + pixels] for tensor_NX, start in zip(tensor_BNX, starts)]
        )

    def attention(self, rows: slice) -> Attention:
        """The image's queries, all keys, and the mask of some rows of the batch."""
        layout, call = self.sink.input, self.call
        assert layout is not None and call is not None
        if layout.places:
            return self._gathered(rows, layout)
        first = layout.image_start if call.query.shape[2] == layout.length else 0
        pixels = slice(first, first + math.prod(layout.size))
        return self._part(rows, pixels, layout.text_start, layout.text_length)

    def outputs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The outputs of the pixels (B, N, X) and of the text's tokens (B, K, X) of some rows.

        Raises:
            ValueError: If the text attends to nothing.
        """
        layout, call = self.sink.input, self.call
        assert layout is not None and call is not None and call.output is not None
        if call.query.shape[2] != layout.length:
            raise ValueError(
                f"maps='output' compares the outputs of words and pixels, and the text of "
                f'{self.layer} attends to nothing; record attention'
            )
        whole_BLX = call.output.transpose(1, 2).flatten(2)
        whole_rows = whole_BLX[rows]
        if layout.places:
            spans = [(place.text_start, place.text_length) for place in layout.places[rows]]
        else:
            spans = [(layout.text_start, layout.text_length)] * len(whole_rows)
        texts = [
            row_LX[start : start + length] for row_LX, (start, length) in zip(whole_rows, spans)
        ]
        text_BKX = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        return self._of_pixels(whole_BLX, rows), text_BKX

    def _gathered(self, rows: slice, layout: DenoiserInput) -> Attention:
        """As `attention`, each row's own text put first, filled up and masked behind it."""
        call = self.call
        assert call is not None
        whole = self._part(rows, slice(None), 0, 0)
        pixels, places = math.prod(layout.size), layout.places[rows]
        query_BNHC = whole.query_BNHC
        if query_BNHC.shape[1] == layout.length:
            query_BNHC = torch.stack(
                [
                    query_NHC[place.image_start : place.image_start + pixels]
                    for query_NHC, place in zip(query_BNHC, places)
                ]
            )
        texts, longest = [], max(place.text_length for place in places)
        bias_BNK = query_BNHC.new_zeros(len(places), 1, longest + layout.length)
        if whole.bias_BNK is not None:
            if whole.bias_BNK.shape[1] != 1:
                raise ValueError(
                    f'{self.layer} has an attention mask of its own for each query, which the '
                    'recorder does not take where the text stands at another place for each image'
                )
            bias_BNK[..., longest:] = whole.bias_BNK
        for row, place in enumerate(places):
            text = slice(place.text_start, place.text_start + place.text_length)
            texts.append(whole.key_BKHC[row, text])
            bias_BNK[row, :, place.text_length : longest] = -torch.inf
            # It would count twice.
            bias_BNK[row, :, longest + text.start : longest + text.stop] = -torch.inf
        text_BKHC = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        key_BKHC = torch.cat([text_BKHC, whole.key_BKHC], 1)
        return Attention(query_BNHC, key_BKHC, bias_BNK, call.scale, 0, longest)


class SelfTap(Tap):
    """Catches the queries and keys with which the pixels attend to each other."""

    def __init__(self, sink: Sink, module: nn.Module, layer: str) -> None:
        super().__init__(sink, module, '', layer, ())

    def install(self) -> list:
        """Register the hooks and return their handles."""
        return [
            self._hook_before(),
            self._catch('to_q', 'query'),
            self._catch('to_k', 'pixel_key'),
            self._hook_after(),
        ]

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        super()._before(module, args, kwargs)
        largest = self.sink.self_attention
        assert largest is not None
        self.active = self.sink.recording and min(self.size) <= largest

    def _after(self, module: nn.Module, args: tuple, output: Any) -> None:
        computed = self.query is not None and self.pixel_key is not None
        if self.active:
            self._record_affinity(computed)
        self._forget()

    def _record_affinity(self, computed: bool) -> None:
        if computed or not may_be_skipped(self.module):
            self._check(computed)
            self.sink.accumulate_affinity(self)

    def affinity(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The pixels' queries and keys of some rows, shape (B, N, H, C)."""
        assert self.query is not None and self.pixel_key is not None
        heads = self.module.heads
        return (
            split_heads(self.query[rows], heads, self.module.norm_q),
            split_heads(self.pixel_key[rows], heads, self.module.norm_k),
        )


class WatchedSelfTap(WatchedTap, SelfTap):
    """As `SelfTap`, where the projections are fused."""

    def _num_keys(self, args: tuple, kwargs: dict) -> int:
        return math.prod(self.size)

    def _caught(self) -> None:
        self._record_affinity(self.call is not None)
        self._forget()

    def affinity(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The pixels' queries and keys of some rows, shape (B, N, H, C)."""
        assert self.call is not None
        return self.call.query[rows].transpose(1, 2), self.call.key[rows].transpose(1, 2)


def make_tap(
    sink: Sink, family: Family, module: Any, group: str, layer: str, heads: tuple[int, ...]
) -> Tap:
    """The tap for a module's attention to the text."""
    if family.text_keys is TextKeys.SEQUENCE:
        kind: type[Tap] = SequenceTap
    elif family.text_keys is TextKeys.BEHIND:
        kind = BehindTap
    elif family.watched or _is_fused(module):
        kind = WatchedTap
    else:
        kind = ForeignTap if _is_foreign(module) else Tap
    return kind(sink, module, group, layer, heads)


def make_self_tap(sink: Sink, family: Family, module: Any, layer: str) -> SelfTap:
    """The tap for a module's attention among pixels."""
    watched = family.watched or _is_fused(module)
    return (WatchedSelfTap if watched else SelfTap)(sink, module, layer)


def _is_fused(module: nn.Module) -> bool:
    # The module's own flag says 'fused' for ever after; the processor tells what is used.
    return type(getattr(module, 'processor', None)).__name__.startswith('Fused')


def _is_foreign(module: nn.Module) -> bool:
    """Tell whether a module's attention processor is somebody's own."""
    processor = getattr(module, 'processor', None)
    return processor is not None and type(processor).__module__.partition('.')[0] != 'diffusers'


def text_attention_modules(
    denoiser: nn.Module, family: Family, blocks: frozenset[str] | None
) -> list[tuple[str, Any, str]]:
    """The modules to record: name, module and block group."""
    found: list[tuple[str, Any, str]] = []
    for name, module in named_parts(denoiser):
        if not family.is_text_attention(name, module):
            continue
        group = family.block_groups.get(name.split('.')[0], 'other')
        if in_blocks(blocks, group, name):
            found.append((name, module, group))
    if not found:
        where = 'anywhere' if blocks is None else f'in its blocks {sorted(blocks)}'
        raise ValueError(
            f'{type(denoiser).__name__} has no attention from pixels to text {where}, '
            f'as the family {family.name} would'
        )
    return found


def self_attention_modules(denoiser: nn.Module, family: Family) -> list[tuple[str, nn.Module]]:
    """The modules in which pixels attend to pixels, alone or beside the text."""
    found = []
    for name, module in named_parts(denoiser):
        pixels_only = (
            getattr(module, 'is_cross_attention', None) is False
            and getattr(module, 'added_kv_proj_dim', None) is None
            # Sana's attention among pixels has no softmax.
            and 'Linear' not in type(getattr(module, 'processor', None)).__name__
        )
        behind = family.text_keys is TextKeys.BEHIND
        beside_text = family.text_keys is TextKeys.ADDED and family.is_text_attention(name, module)
        if ((pixels_only and not behind) or beside_text) and getattr(
            module, 'to_k', None
        ) is not None:
            found.append((name, module))
    if not found:
        raise ValueError(
            f'{type(denoiser).__name__} has no self-attention that can be recorded; '
            'leave self_attention out'
        )
    return found


def split_heads(projected: Tensor, heads: int, norm: nn.Module | None) -> Tensor:
    """(B, N, heads * C) to (B, N, heads, C), through the module's own norm where it has one."""
    if norm is None:
        return projected.unflatten(-1, (heads, -1))
    weight = getattr(norm, 'weight', None)
    across_heads = weight is not None and weight.numel() == projected.shape[-1] and heads > 1
    if across_heads:
        return norm(projected).unflatten(-1, (heads, -1))
    return norm(projected.unflatten(-1, (heads, -1)))


def _bias(mask: Tensor, num_keys: int, batch: int, name: str) -> Tensor:
    """An attention mask as diffusers hands it on, as a bias for all keys."""
    if mask.ndim != 3 or mask.shape[0] != batch or mask.shape[-1] > num_keys:
        raise ValueError(
            f'{name} got an attention mask of shape {tuple(mask.shape)} for a batch '
            f'of {batch} and {num_keys} keys; the recorder needs (batch, 1 or '
            'queries, keys) as the UNet makes it of encoder_attention_mask'
        )
    # Keys that the mask does not speak of (the pixels' own) are not masked.
    return torch.nn.functional.pad(mask, (0, num_keys - mask.shape[-1]))


def map_size(input_size: Size, num_queries: int) -> Size:
    """Height and width of a flattened feature map: the input's, halved until they fit."""
    height, width = input_size
    while height * width > max(num_queries, 1):
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != num_queries:
        raise ValueError(
            f'a feature map of {num_queries} pixels is not the {input_size[0]}x{input_size[1]} '
            'input halved some times, so its height and width are unknown'
        )
    return height, width
