"""From the nouns of a batch of prompts to the columns of a pipeline's text keys."""
from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from freeatm_mm.attention.families import Call, Encoder, Family, argument
from freeatm_mm.attention.nouns import NounTokens, locate_nouns

__all__ = ['EncoderWatch', 'TextColumns', 'find_columns']


@dataclass(frozen=True)
class TextColumns:
    """Where the nouns of a batch of prompts stand among the text keys.

    Args:
        positions: ``positions[prompt][noun]``: for each text encoder that has tokens of the noun,
            the columns of these tokens. Empty for a noun that was cut off.
        truncated: Pairs (prompt index, noun index) of nouns that every tokenizer cut off.
        watches: Look at what each text encoder gets.
    """

    positions: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]
    truncated: tuple[tuple[int, int], ...]
    watches: tuple[EncoderWatch, ...]


def find_columns(
        call: Call,
        family: Family,
        prompts: Sequence[str],
        nouns: Sequence[Sequence[Any]],
        *,
        text_encoders: Iterable[str] | None = None,
        truncated: str = 'raise') -> TextColumns:
    """Finds the columns of each noun of each prompt among the text keys.

    Args:
        call: The pipeline and how it is called.
        family: The pipeline's family.
        prompts: The prompts.
        nouns: For each prompt, its nouns' character spans.
        text_encoders: Which text encoders' keys to use, by their attributes of the pipeline;
            ``None``: all.
        truncated: ``'raise'`` or ``'skip'``, as for :func:`~.nouns.locate_nouns`; a noun that one
            of several tokenizers cuts off is taken from the others.

    Returns:
        The columns.

    Raises:
        ValueError: If the pipeline has none of the family's tokenizers, or ``text_encoders`` names
            none of its text encoders.
        NounTruncatedError: If every tokenizer cuts a noun off and ``truncated`` is ``'raise'``.
        NounAlignmentError: If a noun can't be found among the tokens.
    """
    if truncated not in ('raise', 'skip'):
        raise ValueError(f"truncated must be 'raise' or 'skip', got {truncated!r}")
    parts = _present(call, family, text_encoders)
    located = [_Located(call, family, *part, prompts, nouns) for part in parts]
    positions, lost = [], []
    for prompt in range(len(prompts)):
        row = []
        for noun in range(len(nouns[prompt])):
            columns = tuple(filter(None, (part.columns(prompt, noun) for part in located)))
            if not columns:
                lost.append((prompt, noun))
                if truncated == 'raise':
                    located[0].locate(prompt, [nouns[prompt][noun]], truncated)
            row.append(columns)
        positions.append(tuple(row))
    watches = tuple(part.watch() for part in located if part.text_encoder is not None)
    return TextColumns(tuple(positions), tuple(lost), watches)


def _present(call: Call, family: Family,
             names: Iterable[str] | None) -> list[tuple[Encoder, Any, nn.Module | None]]:
    """The family's encoders that the pipeline has: encoder, tokenizer, text encoder."""
    found, missing = [], []
    known = {name for encoder in family.encoders for name in encoder.text_encoders}
    wanted = known if names is None else set(names)
    if not wanted or not wanted <= known:
        raise ValueError(f'text_encoders must be of {sorted(known)}, got {sorted(wanted)}')
    for encoder in family.encoders:
        if not wanted.intersection(encoder.text_encoders):
            continue
        for tokenizer, text_encoder in zip(encoder.tokenizers, encoder.text_encoders):
            if getattr(call.pipe, tokenizer, None) is not None:
                found.append((encoder, getattr(call.pipe, tokenizer),
                              getattr(call.pipe, text_encoder, None)))
                break
        else:
            missing += encoder.tokenizers
    # A pipeline loaded without one of its text encoders feeds zeros in its place, which say nothing
    # of any noun; without all of them, the embeddings were made elsewhere.
    if names is None and any(part[2] is not None for part in found):
        found = [part for part in found if part[2] is not None]
    if not found:
        raise ValueError(f'{type(call.pipe).__name__} was loaded without a tokenizer '
                         f'({", ".join(missing)}), which is needed to find the nouns')
    return found


class _Located:
    """The nouns among the tokens of one text encoder."""

    def __init__(self, call: Call, family: Family, encoder: Encoder, tokenizer: Any,
                 text_encoder: nn.Module | None, prompts: Sequence[str],
                 nouns: Sequence[Sequence[Any]]) -> None:
        tokenizer = getattr(tokenizer, 'tokenizer', tokenizer)  # a processor's
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self._prompts, self._encoder = list(prompts), encoder
        self._prepared = family.prepare_prompts(call, tokenizer, prompts)
        self._before, self._after = encoder.frame(call, tokenizer)
        self._dropped = encoder.dropped(call, tokenizer)
        self._start = encoder.start(call.pipe)
        length = encoder.max_length
        length = length(call, tokenizer) if callable(length) else length
        self._max_length = length + self._dropped
        self._tokens = []
        for prompt, spans in enumerate(nouns):
            self._tokens.append(self.locate(prompt, spans, 'skip'))

    def locate(self, prompt: int, nouns: Sequence[Any], truncated: str) -> NounTokens:
        """Finds nouns of one prompt among the tokens of its whole text."""
        try:
            return locate_nouns(
                self.tokenizer, self._prompts[prompt], nouns, prepared=self._prepared[prompt],
                before=self._before, after=self._after, max_length=self._max_length,
                any_padding=self._encoder.padding != 'right',
                special_tokens=self._encoder.special_tokens, truncated=truncated)
        except ValueError as error:
            error.args = (f'prompt {prompt}: {error}', )
            raise

    def columns(self, prompt: int, noun: int) -> tuple[int, ...]:
        """The columns of a noun among all text keys; none if it was cut off."""
        tokens = self._tokens[prompt]
        shift = self._start - self._dropped
        if self._encoder.padding == 'either' and self.tokenizer.padding_side == 'left':
            shift += self._max_length - tokens.length
        return tuple(position + shift for position in tokens.positions[noun])

    def watch(self) -> EncoderWatch:
        """A watch over the text encoder."""
        texts = [self._before + prompt + self._after for prompt in self._prepared]
        encode = functools.partial(
            self.tokenizer, max_length=self._max_length, truncation=True,
            add_special_tokens=self._encoder.special_tokens)
        return EncoderWatch(
            self.text_encoder, encode(texts).input_ids,
            encode(['', self._before + self._after]).input_ids, self.tokenizer.pad_token_id,
            self._prompts)


class EncoderWatch:
    """Notices when the pipeline encodes other prompts than the recorder was given, or not in order.

    Args:
        encoder: The text encoder.
        expected: The tokens it should get, a row for each prompt.
        empty: Rows that don't count as other prompts: the usual negative ones.
        padding: The padding token, which doesn't count.
        prompts: The prompts, for the message.
    """

    def __init__(
            self, encoder: nn.Module, expected: Sequence[Sequence[int]],
            empty: Sequence[Sequence[int]], padding: int, prompts: Sequence[str]) -> None:
        self._encoder = encoder
        self._padding = padding
        self._empty = {self._without_padding(row) for row in empty}
        self._expected = [self._without_padding(row) for row in expected]
        self._prompts = list(prompts)
        self._seen: list[tuple[int, ...]] = []
        self._strangers = False

    def _without_padding(self, row: Sequence[int]) -> tuple[int, ...]:
        start, end = 0, len(row)
        while start < end and row[start] == self._padding:
            start += 1
        while end > start and row[end - 1] == self._padding:
            end -= 1
        return tuple(row[start:end])

    def install(self):
        """Starts watching; returns the hook's handle."""
        self._seen, self._strangers = [], False
        return self._encoder.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = argument(args, kwargs, 0, 'input_ids')
        if ids is None:
            return
        rows = [self._without_padding(row) for row in ids.tolist()]
        self._seen += [row for row in rows if row in self._expected]
        # The empty prompt is the usual negative one, encoded alone when the caller brings the
        # embeddings of the prompts themselves.
        self._strangers |= not {*rows} <= {*self._expected, *self._empty}

    def check(self) -> None:
        """Raises if the pipeline encoded other prompts, in another number or in another order.

        Raises:
            ValueError: As said.
        """
        # An empty prompt may have been seen as the negative one, at any time.
        due, seen = ([row for row in rows if row not in self._empty]
                     for rows in (self._expected, self._seen))
        if (seen or self._strangers) and (seen[:len(due)] != due
                                          or not {*self._expected} <= {*self._seen}):
            raise ValueError(
                f'the pipeline encoded other prompts than the recorder was given ({self._prompts}),'
                ' or in another order: give both the same prompts and the same clean_caption, or '
                'pass check_prompts=False to record all the same')
