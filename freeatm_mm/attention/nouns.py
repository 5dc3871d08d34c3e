"""From the characters of a noun to the tokens a text encoder sees.

A noun is a span ``(start, end)`` of characters of the prompt as the user wrote it. The pipeline
may clean the prompt, the tokenizer normalises it and cuts it into pieces; the functions here
follow the span through all of that.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freeatm_mm.attention.words import places_of, quoted, span_of

__all__ = [
    'MERGE_RULES',
    'NounAlignmentError',
    'NounTokens',
    'NounTruncatedError',
    'find_again',
    'locate_nouns',
    'merge_tokens',
]

MERGE_RULES = ('mean', 'sum', 'max', 'last')


class NounAlignmentError(ValueError):
    """A noun can't be found again in what the tokenizer made of the prompt."""


class NounTruncatedError(ValueError):
    """A noun lies, wholly or in part, beyond the tokens that the text encoder keeps."""


@dataclass(frozen=True)
class NounTokens:
    """Where the nouns of one prompt stand among its tokens.

    Args:
        positions: For each noun, in order, the positions of its tokens in the padded sequence
            given to the text encoder (special tokens counted); empty for a truncated noun.
        truncated: Indices of the nouns that the tokenizer cut off.
        length: Tokens of the whole text that the text encoder keeps, without padding.
    """

    positions: tuple[tuple[int, ...], ...]
    truncated: tuple[int, ...] = ()
    length: int = 0


def locate_nouns(
    tokenizer: Any,
    prompt: str,
    nouns: Sequence[Any],
    *,
    prepared: str | None = None,
    before: str = '',
    after: str = '',
    max_length: int | None = None,
    any_padding: bool = False,
    special_tokens: bool = True,
    parts: Callable[[str], list[str]] | None = None,
    truncated: str = 'raise',
) -> NounTokens:
    """Find the tokens of each noun of a prompt.

    A token belongs to a noun if it shares a character with it. Nouns that occur more than once
    are separate spans.

    Args:
        tokenizer: A transformers tokenizer, slow or fast, that pads on the right.
        prompt: The prompt as the user wrote it.
        nouns: Character spans in ``prompt``: pairs, or objects with ``start`` and ``end``.
        prepared: The prompt as the pipeline cleans it for the tokenizer, where that differs; also
            with each placeholder of a textual inversion written out as its several vectors' tokens,
            all of which then belong to a noun that holds the placeholder.
        before: Text that the pipeline puts before the prompt, an instruction for example.
        after: Text that the pipeline puts after it.
        max_length: Tokens the text encoder keeps, special ones included; the default is the
            tokenizer's ``model_max_length``.
        any_padding: Whether the tokenizer may pad on the left; positions are counted from the
            first token that is no padding.
        special_tokens: Whether the tokenizer adds its special tokens to the text.
        parts: Splits a text into parts that are tokenized one by one; ``None``: it is tokenized
            whole.
        truncated: ``'raise'``, or ``'skip'`` to list nouns that were cut off instead.

    Returns:
        The nouns' token positions.

    Raises:
        ValueError: If a span is empty or outside the prompt.
        NounAlignmentError: If the pipeline's cleaning or the tokenizer left nothing of a noun.
        NounTruncatedError: If a token of a noun is cut off and ``truncated`` is ``'raise'``.
    """
    if truncated not in ('raise', 'skip'):
        raise ValueError(f"truncated must be 'raise' or 'skip', got {truncated!r}")
    if getattr(tokenizer, 'padding_side', 'right') != 'right' and not any_padding:
        raise ValueError(
            f'{type(tokenizer).__name__} pads on the left, which moves the tokens; '
            "set tokenizer.padding_side = 'right'"
        )
    spans = [_checked_span(prompt, noun) for noun in nouns]
    if not spans:
        return NounTokens(())
    prepared = prompt if prepared is None else prepared
    max_length = tokenizer.model_max_length if max_length is None else max_length
    places, sure = _places(tokenizer, prompt, prepared)
    text = before + prepared + after
    if parts is None:
        token_spans, suffix = _token_spans(tokenizer, text, special_tokens)
    else:
        token_spans, suffix = _token_spans_of_parts(tokenizer, text, parts(text)), 0
    # The tokenizer keeps its closing tokens and drops what stands before them.
    kept = len(token_spans) if len(token_spans) <= max_length else max_length - suffix
    positions, lost = [], []
    for index, (start, end) in enumerate(spans):
        first, last = (
            len(before) + place
            for place in _follow_span(prompt, prepared, places, sure, start, end)
        )
        tokens = tuple(
            position
            for position, (left, right) in enumerate(token_spans)
            if left < last and right > first
        )
        if not tokens:
            raise NounAlignmentError(
                f'{type(tokenizer).__name__} has no token for the noun {prompt[start:end]!r} '
                f'({start}:{end}) of the prompt {quoted(prompt)}'
            )
        if tokens[-1] >= kept:
            if truncated == 'raise':
                raise NounTruncatedError(
                    f'the noun {prompt[start:end]!r} ({start}:{end}) is cut off: its last token is '
                    f'number {tokens[-1]} and the text encoder keeps {kept} of the prompt '
                    f"{quoted(prompt)}. Shorten the prompt, or pass truncated='skip'"
                )
            lost.append(index)
            tokens = ()
        positions.append(tokens)
    return NounTokens(tuple(positions), tuple(lost), min(len(token_spans), max_length))


def merge_tokens(maps_THW: Tensor, rule: str = 'mean') -> Tensor:
    """Make one map of the maps of a noun's tokens.

    Args:
        maps_THW: One map a token, in the order of the tokens; T >= 1.
        rule: ``'mean'`` (default), ``'sum'``, ``'max'`` (pixel by pixel) or ``'last'`` (the last
            token alone: in English the head of a compound such as "fire engine").

    Returns:
        The noun's map, shape (H, W).

    Raises:
        ValueError: If ``rule`` isn't one of `MERGE_RULES`.
    """
    if rule not in MERGE_RULES:
        raise ValueError(f'unknown rule {rule!r} to merge tokens; known are {MERGE_RULES}')
    if rule == 'mean':
        return maps_THW.mean(0)
    if rule == 'sum':
        return maps_THW.sum(0)
    if rule == 'max':
        return torch.amax(maps_THW, 0)
    return maps_THW[-1]


def _checked_span(prompt: str, noun: Any) -> tuple[int, int]:
    start, end = span_of(noun)
    if not 0 <= start < end <= len(prompt):
        raise ValueError(
            f'the noun span {start}:{end} is not inside the prompt {quoted(prompt)} of '
            f'{len(prompt)} characters'
        )
    text = getattr(noun, 'text', None)
    if text is not None and prompt[start:end] != text:
        raise ValueError(
            f'the span {start}:{end} of the prompt {quoted(prompt)} reads '
            f'{prompt[start:end]!r}, not {text!r}'
        )
    return start, end


def find_again(prompt: str, noun: Any, text: str) -> tuple[int, int] | None:
    """Find a noun of a prompt in another text, such as a second text encoder's prompt.

    Args:
        prompt: The prompt.
        noun: Its character span in ``prompt``.
        text: The other text.

    Returns:
        Its span in ``text``: the same one where both texts are the same up to its end, otherwise
        that of the only place where its words stand; upper or lower case doesn't matter. ``None``
        if they stand nowhere or in several places.
    """
    start, end = _checked_span(prompt, noun)
    follows = text[end : end + 1]
    if prompt[:end].lower() == text[:end].lower() and (
        follows == prompt[end : end + 1] or not follows.isalnum()
    ):
        return start, end
    places = places_of(prompt[start:end], text)
    return places[0] if len(places) == 1 else None


def _places(
    tokenizer: Any, prompt: str, prepared: str
) -> tuple[Sequence[tuple[int, int] | None], bool]:
    """Where each character of ``prompt`` stands in the ``prepared`` prompt, and if that is sure."""
    written, places = _written_out(tokenizer, prompt)
    if written == prepared:
        return places, True
    return [
        None if place is None else (place, place + 1) for place in _align(prompt, prepared)
    ], False


def _follow_span(
    prompt: str,
    prepared: str,
    places: Sequence[tuple[int, int] | None],
    sure: bool,
    start: int,
    end: int,
) -> tuple[int, int]:
    """Find a span of ``prompt`` again in the ``prepared`` prompt."""
    kept = [place for place in places[start:end] if place is not None]
    first, last = (kept[0][0], kept[-1][1]) if kept else (0, 0)
    if not kept or not (sure or _letters(prepared[first:last]) == _letters(prompt[start:end])):
        raise NounAlignmentError(
            f'the noun {prompt[start:end]!r} ({start}:{end}) of {quoted(prompt)} is no longer '
            f'in the prompt as the pipeline cleans it: {quoted(prepared)}'
        )
    return first, last


def _written_out(tokenizer: Any, prompt: str) -> tuple[str, list[tuple[int, int]]]:
    """Write placeholders of textual inversions as diffusers does: one token for each vector.

    Returns:
        The text, and for each character of ``prompt`` where it stands there; for a placeholder's
        characters, where the whole of it stands.
    """
    added = tokenizer.get_added_vocab() if hasattr(tokenizer, 'get_added_vocab') else {}
    several = {}
    for token in added:
        vectors = [token]
        while f'{token}_{len(vectors)}' in added:
            vectors.append(f'{token}_{len(vectors)}')
        if len(vectors) > 1:
            several[token] = ' '.join(vectors)
    pattern = '|'.join(re.escape(token) for token in sorted(several, key=len, reverse=True))
    text, places, last = '', [], 0
    for match in re.finditer(pattern, prompt) if several else ():
        places += [(len(text) + step, len(text) + step + 1) for step in range(match.start() - last)]
        text += prompt[last : match.start()]
        places += [(len(text), len(text) + len(several[match[0]]))] * len(match[0])
        text += several[match[0]]
        last = match.end()
    places += [(len(text) + step, len(text) + step + 1) for step in range(len(prompt) - last)]
    return text + prompt[last:], places


def _letters(text: str) -> str:
    """Text without case and space, which a pipeline's cleaning may change."""
    return ''.join(text.lower().split())


def _align(source: Sequence, target: Sequence) -> list[int | None]:
    """Find for each element of ``source`` its place in ``target``, ``None`` where it has none.

    Letters match whatever their case.
    """
    source, target = _fold(source), _fold(target)
    if source == target:
        return list(range(len(source)))
    places: list[int | None] = [None] * len(source)
    matcher = difflib.SequenceMatcher(None, source, target, autojunk=False)
    for block in matcher.get_matching_blocks():
        for step in range(block.size):
            places[block.a + step] = block.b + step
    return places


def _fold(text: Sequence) -> Sequence:
    # Character by character, so that places stay: 'İ'.lower() is two characters long.
    if not isinstance(text, str):
        return text
    return [character.lower() for character in text]


def _token_spans(
    tokenizer: Any, text: str, special_tokens: bool = True
) -> tuple[list[tuple[int, int]], int]:
    """Find the characters of each token of ``text``, special tokens included if there are any.

    Returns:
        One ``(start, end)`` a token, ``(0, 0)`` for special ones, and the number of special
        tokens at the end.
    """
    if getattr(tokenizer, 'is_fast', False):
        encoded = tokenizer(
            text,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            add_special_tokens=special_tokens,
            verbose=False,
        )
        special = encoded['special_tokens_mask']
        spans = [
            (0, 0) if is_special else _trim(text, *span)
            for span, is_special in zip(encoded['offset_mapping'], special)
        ]
        suffix = next(
            (count for count, is_special in enumerate(reversed(special)) if not is_special),
            len(special),
        )
        return spans, suffix
    pieces = tokenizer.tokenize(text)
    framed = tokenizer.build_inputs_with_special_tokens([-1]) if special_tokens else [-1]
    prefix, suffix = framed.index(-1), len(framed) - framed.index(-1) - 1
    spans = _piece_spans(tokenizer, pieces, text)
    return [(0, 0)] * prefix + spans + [(0, 0)] * suffix, suffix


def _token_spans_of_parts(tokenizer: Any, text: str, parts: list[str]) -> list[tuple[int, int]]:
    """Find the characters of each token of a text whose parts are tokenized one by one."""
    if ''.join(parts) != text:
        raise NounAlignmentError(
            f'the pipeline changes the prompt {quoted(text)} as it splits it at its quotes'
        )
    spans, start = [], 0
    for part in parts:
        for first, last in _token_spans(tokenizer, part, False)[0]:
            spans.append((start + first, start + last) if last else (0, 0))
        start += len(part)
    return spans


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out white space at both ends: SentencePiece counts the space before a word."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else (0, 0)


def _piece_spans(tokenizer: Any, pieces: Sequence[str], text: str) -> list[tuple[int, int]]:
    """Find the characters of each piece of a tokenizer that gives no offsets.

    The pieces of a slow tokenizer, put together, are the text without white space, normalised.
    Both are compared as bytes, because a byte-level piece may hold part of a character.
    """
    piece_bytes = [_bytes_of_piece(tokenizer, piece) for piece in pieces]
    stream = b''.join(piece_bytes)
    source, owners = bytearray(), []
    for index, character in enumerate(text):
        if character.isspace():
            continue
        encoded = unicodedata.normalize('NFC', character.lower()).encode()
        source += encoded
        owners += [index] * len(encoded)
    owner_of: list[int | None] = [None] * len(stream)
    for place, owner in zip(_align(bytes(source), stream.lower()), owners):
        if place is not None:
            owner_of[place] = owner
    spans, start = [], 0
    for encoded in piece_bytes:
        owned = [owner for owner in owner_of[start : start + len(encoded)] if owner is not None]
        spans.append((owned[0], owned[-1] + 1) if owned else (0, 0))
        start += len(encoded)
    return spans


def _bytes_of_piece(tokenizer: Any, piece: str) -> bytes:
    """The text of a piece as bytes, without the marks of word starts and ends."""
    piece = piece.removesuffix('</w>').removeprefix('##').replace('\u2581', '')
    decoder = getattr(tokenizer, 'byte_decoder', None)
    if decoder is not None and all(character in decoder for character in piece):
        return bytes(decoder[character] for character in piece)
    return piece.encode()
