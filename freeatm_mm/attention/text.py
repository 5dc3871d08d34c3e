"""From the nouns of a batch of prompts to the columns of a pipeline's text keys."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from freeatm_mm.attention.compiled import compiled_regions
from freeatm_mm.attention.families import Call, Encoder, Family, argument
from freeatm_mm.attention.hooks import of_this_thread, own_hook
from freeatm_mm.attention.nouns import (
    NounAlignmentError,
    find_again,
    locate_nouns,
)
from freeatm_mm.attention.words import quoted, span_of
from freeatm_mm.errors import listed

__all__ = ['EncoderWatch', 'TextColumns', 'find_columns']


@dataclass(frozen=True)
class TextColumns:
    """Where the nouns of a batch of prompts stand among the text keys.

    Args:
        positions: ``positions[prompt][noun]``: for each place among the keys that has tokens of
            the noun, the columns of these tokens. Empty for a noun that was cut off.
        truncated: Pairs (prompt index, noun index) of nouns that every tokenizer cut off.
        left_out: Triples (prompt index, noun index, reason) of nouns that one of several text
            encoders has no key of.
        watches: Look at what each text encoder gets.
    """

    positions: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]
    truncated: tuple[tuple[int, int], ...] = ()
    left_out: tuple[tuple[int, int, str], ...] = ()
    watches: tuple[EncoderWatch, ...] = ()


def find_columns(
    call: Call,
    family: Family,
    prompts: Sequence[str],
    nouns: Sequence[Sequence[Any]],
    *,
    text_encoders: Iterable[str] | None = None,
    truncated: str = 'raise',
    missing: str = 'raise',
) -> TextColumns:
    """Find the columns of each noun of each prompt among the text keys.

    Each text encoder is taken to read what the pipeline's call gives it: ``prompt_2`` or
    ``prompt_3`` of ``call``'s options where it reads those and they are given, ``prompts``
    otherwise. In another text than its prompt a noun is found by `nouns.find_again`.

    Args:
        call: The pipeline and how it is called.
        family: The pipeline's family.
        prompts: The prompts.
        nouns: For each prompt, its nouns' character spans.
        text_encoders: Which text encoders' keys to use, by their attributes of the pipeline;
            ``None``: all. Of two that share their keys, the one chosen alone says where a noun is.
        truncated: ``'raise'`` or ``'skip'``, as for `nouns.locate_nouns`; a noun that one
            of several tokenizers cuts off is taken from the others.
        missing: ``'raise'``, or ``'skip'`` to give a noun that has no key of its own no columns.

    Returns:
        The columns.

    Raises:
        ValueError: If the pipeline has none of the family's tokenizers, ``text_encoders`` names
            none of its text encoders, or ``prompt_2`` or ``prompt_3`` are of another number.
        NounTruncatedError: If every tokenizer cuts a noun off and ``truncated`` is ``'raise'``.
        NounAlignmentError: If a noun can't be found among the tokens, or has no key that is its
            own.
    """
    if truncated not in ('raise', 'skip'):
        raise ValueError(f"truncated must be 'raise' or 'skip', got {truncated!r}")
    places = [
        [_Located(call, family, encoder, part, prompts, nouns, missing) for part in parts]
        for encoder, parts in _present(call, family, text_encoders)
    ]
    positions, lost, left_out = [], [], []
    for prompt in range(len(prompts)):
        row = []
        for noun in range(len(nouns[prompt])):
            found = [_common(place, prompt, noun) for place in places]
            columns = tuple(place for place in found if isinstance(place, tuple) and place)
            reasons = [place for place in found if isinstance(place, str)]
            if not columns and reasons and missing == 'raise':
                raise NounAlignmentError(
                    f'prompt {prompt}: the noun {places[0][0].word(prompt, noun)!r} has no key of '
                    f'its own: {"; ".join(reasons)}'
                )
            if not columns:
                lost.append((prompt, noun))
                if truncated == 'raise':
                    places[0][0].find(prompt, [nouns[prompt][noun]], truncated)
            elif len(columns) < len(places):
                reasons += [
                    f'{" and ".join(part.name for part in place)} cut it off'
                    for place, columns_of in zip(places, found)
                    if columns_of == ()
                ]
                left_out.append((prompt, noun, '; '.join(reasons)))
            row.append(columns)
        positions.append(tuple(row))
    watches = tuple(
        part.watch() for place in places for part in place if part.text_encoder is not None
    )
    if not watches:
        watches = (EncoderWatch(None, [], [], 0, prompts, places[0][0].name),)
    return TextColumns(tuple(positions), tuple(lost), tuple(left_out), watches)


class _Part(NamedTuple):
    """One text encoder of a pipeline."""

    name: str
    tokenizer: Any
    text_encoder: nn.Module | None
    prompt: str


def _present(
    call: Call, family: Family, names: Iterable[str] | None
) -> list[tuple[Encoder, list[_Part]]]:
    """The family's encoders that the pipeline has: those that share keys together."""
    known = {name for encoder in family.encoders for name in encoder.text_encoders}
    wanted = known if names is None else {names} if isinstance(names, str) else set(names)
    if not wanted or not wanted <= known:
        raise ValueError(f'text_encoders must be of {sorted(known)}, got {sorted(wanted, key=str)}')
    found: list[tuple[Encoder, list[_Part]]] = []
    missing: list[str] = []
    for encoder in family.encoders:
        there = [
            (name, getattr(call.pipe, tokenizer), getattr(call.pipe, name, None))
            for name, tokenizer in zip(encoder.text_encoders, encoder.tokenizers)
            if getattr(call.pipe, tokenizer, None) is not None
        ]
        # The refiner of Stable Diffusion XL has the second tokenizer alone, which gets ``prompt``.
        parts = [_Part(*part, prompt) for part, prompt in zip(there, encoder.prompts)]
        if parts:
            found.append((encoder, [part for part in parts if part.name in wanted]))
        elif wanted.intersection(encoder.text_encoders):
            missing += encoder.tokenizers
    # A pipeline loaded without one of its text encoders feeds zeros in its place, which say nothing
    # of any noun; without all of them, the embeddings were made elsewhere.
    if names is None and any(part.text_encoder is not None for _, parts in found for part in parts):
        found = [
            (encoder, [part for part in parts if part.text_encoder is not None])
            for encoder, parts in found
        ]
    found = [(encoder, parts) for encoder, parts in found if parts]
    if not found:
        raise ValueError(
            f'{type(call.pipe).__name__} was loaded without a tokenizer '
            f'({", ".join(missing)}), which is needed to find the nouns'
        )
    return found


def _common(place: Sequence[_Located], prompt: int, noun: int) -> tuple[int, ...] | str:
    """The columns of a noun's keys; none if it is cut off; a reason if they aren't its own."""
    found = [part.columns(prompt, noun) for part in place]
    reasons = [columns for columns in found if isinstance(columns, str)]
    if reasons:
        return '; '.join(reasons)
    if len(set(found)) == 1:
        return found[0]
    where = ', '.join(
        f'{part.name} has it at {" and ".join(map(str, columns))}'
        if columns
        else f'{part.name} cuts it off'
        for part, columns in zip(place, found)
    )
    return (
        f'{where}, and their tokens share one key; let it stand at the same place of '
        f'{" and ".join(part.argument for part in place)}, or choose by '
        f'text_encoders=[{place[0].name!r}] whose place counts'
    )


class _Located:
    """The nouns among the tokens of one text encoder."""

    def __init__(
        self,
        call: Call,
        family: Family,
        encoder: Encoder,
        part: _Part,
        prompts: Sequence[str],
        nouns: Sequence[Sequence[Any]],
        missing: str,
    ) -> None:
        tokenizer = part.tokenizer
        if not hasattr(tokenizer, 'padding_side'):
            tokenizer = getattr(tokenizer, 'tokenizer', tokenizer)  # a processor's
        self.tokenizer, self.text_encoder = tokenizer, part.text_encoder
        self.name, self.argument = part.name, part.prompt
        self._prompts, self._encoder, self._nouns = list(prompts), encoder, nouns
        self._texts = _texts(call, part.prompt, prompts)
        self._prepared = family.prepare_prompts(call, tokenizer, self._texts)
        self._before, self._after = encoder.frame(call, tokenizer)
        self._outside = encoder.outside(call, tokenizer)
        self._parts = None if encoder.parts is None else functools.partial(encoder.parts, call)
        self._dropped = encoder.dropped(call, tokenizer)
        self._start = encoder.start(call)
        length = encoder.max_length
        length = length(call, tokenizer) if callable(length) else length
        self._max_length = length + self._dropped
        self._padded_length = self._max_length
        self._pads_before = encoder.padding == 'before' or (
            encoder.padding == 'either' and tokenizer.padding_side == 'left'
        )
        self._longest = 0
        if encoder.multiple:
            longest = max(map(len, self._encode(self._framed())))
            if encoder.padding == 'before' and tokenizer.padding_side == 'right':
                self._longest = longest  # the tokenizer pads up to it behind the text
            self._padded_length = -(-longest // encoder.multiple) * encoder.multiple
        self._rows = [self._row(prompt, spans, missing) for prompt, spans in enumerate(nouns)]

    def _row(self, prompt: int, nouns: Sequence[Any], missing: str) -> list[tuple[int, ...] | None]:
        """The columns of the nouns of one prompt; ``None`` for those that are missing."""
        try:
            return self.find(prompt, nouns, 'skip')
        except NounAlignmentError:
            if missing == 'raise':
                raise
            if len(nouns) == 1:
                return [None]
        return [place for noun in nouns for place in self._row(prompt, [noun], missing)]

    def find(
        self, prompt: int, nouns: Sequence[Any], truncated: str
    ) -> list[tuple[int, ...] | None]:
        """The columns of some nouns of one prompt; ``None`` where this encoder lacks the noun."""
        spans, text = list(nouns), self._texts[prompt]
        if text != self._prompts[prompt]:
            spans = [
                self._named(prompt, find_again, self._prompts[prompt], noun, text) for noun in nouns
            ]
        there = [index for index, span in enumerate(spans) if span is not None]
        tokens = self._named(
            prompt,
            locate_nouns,
            self.tokenizer,
            text,
            [spans[index] for index in there],
            prepared=self._prepared[prompt],
            before=self._before,
            after=self._after,
            max_length=self._max_length,
            any_padding=self._encoder.padding != 'right',
            special_tokens=self._encoder.special_tokens,
            parts=self._parts,
            truncated=truncated,
        )
        row: list[tuple[int, ...] | None] = [None] * len(spans)
        shift = self._start - self._dropped
        if self._pads_before:
            shift += self._padded_length - (self._longest or tokens.length)
        for index, positions in zip(there, tokens.positions):
            row[index] = tuple(position + shift for position in positions)
        return row

    def _named(self, prompt: int, find: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """A result, or an error that says in which prompt."""
        try:
            return find(*args, **options)
        except ValueError as error:
            error.args = (f'prompt {prompt}: {error}',)
            raise

    def word(self, prompt: int, noun: int) -> str:
        """A noun as its prompt writes it."""
        start, end = span_of(self._nouns[prompt][noun])
        return self._prompts[prompt][start:end]

    def columns(self, prompt: int, noun: int) -> tuple[int, ...] | str:
        """The columns of a noun among all text keys; none if it was cut off; or why it has none."""
        columns = self._rows[prompt][noun]
        if columns is None:
            return (
                f'{self.name} read {self.argument} {self._texts[prompt]!r}, which does not '
                'hold it exactly once'
            )
        return columns

    def watch(self) -> EncoderWatch:
        """A watch over the text encoder."""
        encoder, padding = self.text_encoder, self._encoder.padding_token
        if encoder is not None and self._encoder.reads:
            encoder = encoder.get_submodule(self._encoder.reads)
        # The columns depend on how many tokens stand before the text: its own padding, or other
        # texts that are filled up to the same length.
        fixed = self._encoder.padding == 'either' and not any(self._outside)
        fixed = fixed and (self._pads_before or self._start > 0)
        return EncoderWatch(
            encoder,
            self._encode(self._framed()),
            self._encode(['', self._before + self._after]),
            self.tokenizer.pad_token_id if padding is None else padding,
            self._texts,
            self.name,
            self.argument,
            self._encoder.image_token
            and self.tokenizer.convert_tokens_to_ids(self._encoder.image_token),
            outside=[
                self.tokenizer(text, add_special_tokens=self._encoder.special_tokens).input_ids
                if text
                else []
                for text in self._outside
            ],
            length=self._max_length if fixed and not self._encoder.multiple else None,
        )

    def _framed(self) -> list[str]:
        """The texts that the tokenizer gets."""
        return [self._before + prompt + self._after for prompt in self._prepared]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """The tokens of some texts, without padding."""
        if self._parts is not None:
            parts = [self._parts(text) for text in texts]
            return [
                [
                    token
                    for part in row
                    for token in self.tokenizer(part, add_special_tokens=False).input_ids
                ][: self._max_length]
                for row in parts
            ]
        return self.tokenizer(
            texts,
            max_length=self._max_length,
            truncation=True,
            add_special_tokens=self._encoder.special_tokens,
        ).input_ids


def _texts(call: Call, argument: str, prompts: Sequence[str]) -> list[str]:
    """What one argument of the pipeline's call says for each prompt, ``prompts`` if nothing."""
    texts = None if argument == 'prompt' else call.option(argument)
    if not texts:
        return list(prompts)
    texts = [texts] if isinstance(texts, str) else list(texts)
    if len(texts) != len(prompts) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f'{argument} must hold a text for each prompt ({len(prompts)}), got {texts!r}'
        )
    return texts


class EncoderWatch:
    """Notices when the pipeline encodes other prompts than the recorder was given, or not in order.

    Args:
        encoder: The text encoder; ``None`` where the pipeline has none, so that nothing it
            generates can be known to be of the prompts.
        expected: The tokens it should get, a row for each prompt.
        empty: Rows that don't count as other prompts: the usual negative ones.
        padding: The padding token, which doesn't count.
        texts: What it should encode, for the message.
        name: The text encoder's name, for the message.
        argument: The argument of the pipeline's call that it reads, for the message.
        image_token: The token of a piece of an image; several in a row count as one.
        outside: Tokens that stand before and after each padded row.
        length: Tokens of each padded row; ``None``: any number.

    Attributes:
        image_tokens: How many tokens of images did not count in each prompt.
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        expected: Sequence[Sequence[int]],
        empty: Sequence[Sequence[int]],
        padding: int,
        texts: Sequence[str],
        name: str = 'text_encoder',
        argument: str = 'prompt',
        image_token: int | str = '',
        *,
        outside: Sequence[Sequence[int]] = ((), ()),
        length: int | None = None,
    ) -> None:
        self.encoder = encoder
        self._length = length
        self._image_token = image_token
        self.image_tokens = 0
        self._padding = padding
        self._before, self._after = (tuple(tokens) for tokens in outside)
        self._empty = {self._without_padding(row) for row in empty}
        self._expected = [self._without_padding(row) for row in expected]
        self._texts, self.name, self._argument = list(texts), name, argument
        self._seen: list[tuple[int, ...]] = []
        self._met = False

    def _without_padding(self, row: Sequence[int]) -> tuple[int, ...]:
        start, end = 0, len(row)
        while start < end and row[start] == self._padding:
            start += 1
        while end > start and row[end - 1] == self._padding:
            end -= 1
        return tuple(row[start:end])

    def install(self, check: Callable[[], None]) -> Callable[[], None]:
        """Start watching.

        Args:
            check: Called before each text is encoded.

        Returns:
            What ends the watch.
        """
        self._seen, self._met = [], False
        if self.encoder is None:
            return lambda: None

        def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
            check()
            self._look(module, args, kwargs)

        whole = next((part for part in compiled_regions(self.encoder) if not part.name), None)
        if whole is not None:  # a hook would be compiled with it
            look_outside = of_this_thread(functools.partial(look, self.encoder))
            return whole.watch(frozenset(), look_outside, lambda *_: None, lambda: None)
        hook = own_hook(self.encoder, look)
        return self.encoder.register_forward_pre_hook(hook, with_kwargs=True).remove

    def _look(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = argument(args, kwargs, 0, 'input_ids')
        if ids is not None:
            if self._length not in (None, ids.shape[-1]):
                raise ValueError(
                    f'{self.name} encoded rows of {ids.shape[-1]} tokens, where the recorder was '
                    f'told of {self._length}, and where the nouns are depends on it: give it the '
                    "max_sequence_length of the pipeline's call, in call_options"
                )
            self._seen += [self._without_images(self._inside(row)) for row in ids.tolist()]

    def _inside(self, row: Sequence[int]) -> Sequence[int]:
        """A row without what stands outside its padding."""
        first, last = len(self._before), len(row) - len(self._after)
        if tuple(row[:first]) == self._before and tuple(row[last:]) == self._after:
            return row[first:last]
        return row

    def _without_images(self, row: Sequence[int]) -> tuple[int, ...]:
        """A row without padding, each image one token; counts the others if it is a prompt's."""
        row = self._without_padding(row)
        if self._image_token == '':
            return row
        kept = tuple(
            token
            for token, before in zip(row, (None, *row))
            if token != self._image_token or token != before
        )
        if kept in self._expected:
            left_out, known = len(row) - len(kept), self._expected[0] in self._seen
            if known and left_out != self.image_tokens:
                raise ValueError(
                    f'{self.name} encoded images of {left_out} and of {self.image_tokens} tokens '
                    'with the prompts of one batch: give them images of one size, or '
                    'generate one by one'
                )
            self.image_tokens = left_out
        return kept

    def check(self) -> bool:
        """Check what was encoded since the last check: all of the prompts, in order, or nothing.

        Other texts may come after them: the negative prompts.

        Returns:
            Whether anything was encoded.

        Raises:
            ValueError: If it was other prompts, in another number or order; or if nothing was
                encoded up to the first check.
        """
        seen, self._seen = self._seen, []
        # An empty prompt may have been seen as the negative one, at any time.
        due, got = (
            [row for row in rows if row not in self._empty] for rows in (self._expected, seen)
        )
        if got or (seen and not due):
            self._met = True
            got = [row for row in got if row in self._expected]
            if got[: len(due)] != due or not {*self._expected} <= {*seen}:
                raise ValueError(
                    f'{self.name} encoded other prompts than the recorder was given '
                    f'({listed(map(quoted, self._texts))}), or in another order: give both the '
                    'same prompts'
                    + (
                        ''
                        if self._argument == 'prompt'
                        else f', {self._argument} by call_options={{{self._argument!r}: ...}}'
                    )
                    + ' and the same clean_caption, or pass check_prompts=False to record all the '
                    'same'
                )
        elif seen or not self._met:
            raise ValueError(
                f'{self.name} encoded no prompt inside the with block, so where the nouns stand '
                'in the embeddings is not known: generate from prompts; or say where by '
                'columns=...; or pass check_prompts=False if the embeddings are those that the '
                'pipeline itself makes of the prompts'
            )
        return bool(seen)
