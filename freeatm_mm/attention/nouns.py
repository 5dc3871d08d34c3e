"""From the characters of a noun to the tokens a text encoder sees.

A noun is a span ``(start, end)`` of characters of the prompt as the user wrote it. The pipeline
may clean the prompt, the tokenizer normalises it and cuts it into pieces; the functions here
follow the span through all of that.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freeatm_mm.attention.words import is_mark, places_of, quoted, span_of

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
        tokens_of_text = _tokens(tokenizer, text, special_tokens)
    else:
        tokens_of_text = _tokens_of_parts(tokenizer, text, parts(text))
    length = len(tokens_of_text.spans)
    # The tokenizer keeps its closing tokens and drops what stands before them.
    kept = length if length <= max_length else max_length - tokens_of_text.suffix
    positions, lost = [], []
    for index, (start, end) in enumerate(spans):
        first, last = (
            len(before) + place
            for place in _follow_span(prompt, prepared, places, sure, start, end)
        )
        tokens = tuple(
            position
            for position, (left, right) in enumerate(tokens_of_text.spans)
            if left < last and right > first
        )
        for left, right in tokens_of_text.unsure:
            if left < first < right or left < last < right:
                raise NounAlignmentError(
                    f'{type(tokenizer).__name__} does not read {text[left:right]!r} as it is '
                    f'written, so which of its tokens are of the noun {prompt[start:end]!r} '
                    f'({start}:{end}) is not known: write it in other characters, or name all of '
                    f'it, in the prompt {quoted(prompt)}'
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
    return NounTokens(tuple(positions), tuple(lost), min(length, max_length))


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
    return _follow(prompt, prepared).places, False


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
    if not kept or not (sure or _spelling(prepared[first:last]) == _spelling(prompt[start:end])):
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


class _Letter(NamedTuple):
    """A letter, whatever its case, and the characters of a text that write it and its accents."""

    letter: str
    start: int
    end: int


def _letters(text: str, spaces: bool = True) -> list[_Letter]:
    """Split a text into letters that are the same in any of the ways to write them.

    Cleaning and tokenizers lower a text, compose its accents or take them off, and write ligatures
    and wide letters as plain ones. White space is left out if ``spaces`` is false.
    """
    letters: list[_Letter] = []
    for place, character in enumerate(text):
        if character.isspace():
            letters += [_Letter(' ', place, place + 1)] if spaces else []
            continue
        for letter in unicodedata.normalize('NFKD', character).casefold():
            if letters and is_mark(letter):
                letters[-1] = letters[-1]._replace(end=place + 1)
            else:
                letters.append(_Letter(letter, place, place + 1))
    return letters


def _spelling(text: str) -> list[str]:
    """The letters of a text without its white space."""
    return [letter for letter, *_ in _letters(text, spaces=False)]


class _Followed(NamedTuple):
    """Where each character of a text stands in another form of it.

    Args:
        places: ``(start, end)`` in the other form, or ``None`` where it is not there.
        unsure: Stretches of the other form that are written otherwise in the text, with another
            number of letters; they are the places of all characters that stand for them.
    """

    places: list[tuple[int, int] | None]
    unsure: set[tuple[int, int]]


def _follow(text: str, other: str, spaces: bool = True) -> _Followed:
    """Find the characters of a text again in another form of it."""
    ours, theirs = _letters(text, spaces), _letters(other, spaces)
    followed = _Followed([None] * len(text), set())
    places = followed.places
    for (_, start, end), place in zip(ours, _align(_texts(ours), _texts(theirs))):
        if place is None:
            continue
        found = theirs[place[0]].start, theirs[place[1] - 1].end
        if place[1] - place[0] > 1:
            followed.unsure.add(found)
        for character in range(start, end):
            before = places[character] or found
            places[character] = min(before[0], found[0]), max(before[1], found[1])
    return followed


def _texts(letters: Sequence[_Letter]) -> list[str]:
    return [letter for letter, *_ in letters]


def _align(source: list[str], target: list[str]) -> list[tuple[int, int] | None]:
    """Find for each element of ``source`` its places ``(start, end)`` in ``target``.

    Where a stretch differs, its elements are taken one by one if they are as many, and for all of
    ``target``'s otherwise; ``None`` is for those that ``target`` leaves out.
    """
    if source == target:
        return [(place, place + 1) for place in range(len(source))]
    places: list[tuple[int, int] | None] = [None] * len(source)
    matcher = difflib.SequenceMatcher(None, source, target, autojunk=False)
    for kind, start, end, first, last in matcher.get_opcodes():
        if end - start == last - first:
            places[start:end] = [(place, place + 1) for place in range(first, last)]
        elif kind == 'replace':
            places[start:end] = [(first, last)] * (end - start)
    return places


class _Tokens(NamedTuple):
    """The tokens of a text, special ones included if there are any.

    Args:
        spans: One ``(start, end)`` of the text's characters a token, ``(0, 0)`` for special ones.
        suffix: Special tokens at the end.
        unsure: Stretches of the text of which it isn't known which tokens are of which characters.
    """

    spans: list[tuple[int, int]]
    suffix: int = 0
    unsure: Collection[tuple[int, int]] = ()


def _tokens(tokenizer: Any, text: str, special_tokens: bool = True) -> _Tokens:
    """Find the characters of each token of ``text``."""
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
        return _Tokens(spans, suffix)
    pieces = tokenizer.tokenize(text)
    framed = tokenizer.build_inputs_with_special_tokens([-1]) if special_tokens else [-1]
    prefix, suffix = framed.index(-1), len(framed) - framed.index(-1) - 1
    spans, _, unsure = _tokens_of_pieces(tokenizer, pieces, text)
    return _Tokens([(0, 0)] * prefix + spans + [(0, 0)] * suffix, suffix, unsure)


def _tokens_of_parts(tokenizer: Any, text: str, parts: list[str]) -> _Tokens:
    """Find the characters of each token of a text whose parts are tokenized one by one."""
    if ''.join(parts) != text:
        raise NounAlignmentError(
            f'the pipeline changes the prompt {quoted(text)} as it splits it at its quotes'
        )
    spans, unsure, start = [], [], 0
    for part in parts:
        found = _tokens(tokenizer, part, False)
        for first, last in found.spans:
            spans.append((start + first, start + last) if last else (0, 0))
        unsure += [(start + first, start + last) for first, last in found.unsure]
        start += len(part)
    return _Tokens(spans, 0, unsure)


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out white space at both ends: SentencePiece counts the space before a word."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else (0, 0)


def _tokens_of_pieces(tokenizer: Any, pieces: Sequence[str], text: str) -> _Tokens:
    """Find the characters of each piece of a tokenizer that gives no offsets.

    The pieces of a slow tokenizer, put together, are the text, normalised. They are put together as
    bytes, because a byte-level piece may hold part of a character.
    """
    piece_bytes = [_bytes_of_piece(tokenizer, piece) for piece in pieces]
    written = b''.join(piece_bytes).decode('utf-8', 'surrogateescape')
    followed = _follow(written, text, spaces=False)
    places = [
        place
        for character, place in zip(written, followed.places)
        for _ in character.encode('utf-8', 'surrogateescape')
    ]
    spans, start = [], 0
    for encoded in piece_bytes:
        found = [place for place in places[start : start + len(encoded)] if place is not None]
        spans.append((found[0][0], found[-1][1]) if found else (0, 0))
        start += len(encoded)
    return _Tokens(spans, 0, followed.unsure)


def _bytes_of_piece(tokenizer: Any, piece: str) -> bytes:
    """The text of a piece as bytes, without the marks of word starts and ends."""
    if piece == getattr(tokenizer, 'unk_token', None):
        return b'\xff'  # no text
    if byte := re.fullmatch('<0x([0-9A-F]{2})>', piece):
        return bytes.fromhex(byte[1])
    piece = piece.removesuffix('</w>').removeprefix('##').replace('\u2581', '')
    decoder = getattr(tokenizer, 'byte_decoder', None)
    if decoder is not None and all(character in decoder for character in piece):
        return bytes(decoder[character] for character in piece)
    return piece.encode()
