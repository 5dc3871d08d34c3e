"""Nouns as people write them, made into character spans of their prompts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from numbers import Integral
from typing import Any

from freeatm_mm.errors import counted, listed, pip_install

__all__ = [
    'AUTO',
    'is_mark',
    'noun_name',
    'places_of',
    'quoted',
    'span_of',
    'spans_of_prompts',
    'word_spans',
]

AUTO = 'auto'
"""In place of a prompt's nouns: they are found by a part-of-speech tagger."""

# Scripts that write no spaces, so that a word may begin or end anywhere.
_NO_SPACES = re.compile(
    '[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff]'
)
_JOINER = '\u200d'
"""Makes one character of two, as in emoji of families and in Indic scripts."""


def places_of(words: str, text: str) -> list[tuple[int, int]]:
    """Find all places where words stand in a text, at word boundaries.

    Upper or lower case, the kind and amount of white space, and whether accents are composed do
    not matter.

    Args:
        words: One word or several.
        text: The text.

    Returns:
        Character spans `(start, end)` in `text`, in order.
    """
    forms = {unicodedata.normalize(form, words) for form in ('NFC', 'NFD')} | {words}
    patterns = sorted(r'\s+'.join(map(re.escape, form.split())) for form in forms if form.split())
    found: set[tuple[int, int]] = set()
    for pattern in patterns:
        start, wanted = 0, re.compile(pattern, re.IGNORECASE)
        while (match := wanted.search(text, start)) is not None:
            whole = _is_edge(text, match.start()) and _is_edge(text, match.end())
            if whole:
                found.add(match.span())
            start = match.end() if whole else match.start() + 1
    return sorted(found)


def _is_edge(text: str, place: int) -> bool:
    """Tell whether a word may begin or end before a character of a text."""
    if not 0 < place < len(text):
        return True
    left, right = text[place - 1], text[place]
    if is_mark(right) or _JOINER in (left, right):
        return False  # in the middle of what is read as one character
    return not (_is_of_word(left) and _is_of_word(right))


def _is_of_word(character: str) -> bool:
    if _NO_SPACES.match(character):
        return False
    return character.isalnum() or character == '_' or is_mark(character)


def is_mark(character: str) -> bool:
    """Return whether a character is an accent or a vowel sign of the one before it."""
    # Variation selectors only choose how it looks.
    return unicodedata.category(character)[0] == 'M' and not '\ufe00' <= character <= '\ufe0f'


def spans_of_prompts(
    prompts: Sequence[str], nouns: Any, one_prompt: bool = False
) -> list[list[Any]]:
    """Make spans of the nouns of a batch of prompts.

    Args:
        prompts: The prompts.
        nouns: For each prompt its nouns: words (`'dog'`), words with the number of their
            occurrence from 1 (`('dog', 2)`), pairs `(start, end)` of characters, objects with
            `start` and `end`; or `AUTO` for a prompt, or for all of them.
        one_prompt: `nouns` are those of the only prompt, and not a list of them for each prompt.

    Returns:
        For each prompt a span for each noun, `(start, end)` or the object as given.

    Raises:
        TypeError: If a noun is nothing of the kind.
        ValueError: If there aren't nouns for each prompt, or a word stands nowhere in its prompt,
            more than once, or not as often as its occurrence says.
        ImportError: If nouns are to be found and textblob is not installed.
    """
    if isinstance(nouns, str) and nouns == AUTO:
        return _found(prompts, range(len(prompts)))
    if one_prompt:
        if isinstance(nouns, Sequence) and any(_is_words(noun) for noun in nouns):
            raise TypeError(
                f'one prompt has one list of nouns, such as {nouns[0]}, and no list of lists; '
                f'got {nouns!r}'
            )
        nouns = [nouns]
    elif isinstance(nouns, str) or not isinstance(nouns, Sequence):
        raise TypeError(
            f'nouns must be a list with the nouns of each prompt, or {AUTO!r}; got {nouns!r}'
        )
    if len(nouns) != len(prompts):
        words = [noun for noun in nouns if isinstance(noun, str) and noun != AUTO]
        each = ', '.join([f'{words}'] * len(prompts)) if len(prompts) < 3 else f'{words}, ...'
        advice = f': give each its own list, nouns=[{each}]' if words else ''
        raise ValueError(
            f'{counted(len(prompts), "prompt")} but {counted(len(nouns), "list")} of nouns{advice}'
        )
    found = []
    for number, (prompt, row) in enumerate(zip(prompts, nouns)):
        if isinstance(row, str) and row == AUTO:
            found += _found(prompts, [number])
            continue
        if isinstance(row, str) or not isinstance(row, Sequence):
            raise TypeError(
                f'the nouns of prompt {number} must be a list, such as [{row!r}], or {AUTO!r}; '
                f'got {row!r}'
            )
        found.append([_span(prompt, noun, number) for noun in row])
    return found


def _is_words(noun: Any) -> bool:
    """Whether what stands in a noun's place is a list of words, as several prompts have them."""
    return isinstance(noun, list) and bool(noun) and all(isinstance(word, str) for word in noun)


def quoted(text: str, length: int = 200) -> str:
    """Return a text in quotes for a message, a long one cut."""
    if len(text) <= length:
        return repr(text)
    return f'{text[:length]!r}... ({len(text):,} characters)'


def word_spans(prompt: str) -> list[tuple[int, int]]:
    """Find the characters of each word of a prompt, punctuation left out."""
    # Python's \w takes letters alone.
    letters = ''.join('_' if is_mark(character) else character for character in prompt)
    return [found.span() for found in re.finditer(r"\w+(?:['\u2019-]\w+)*", letters)]


def span_of(noun: Any) -> tuple[int, int]:
    """Read a noun's character span.

    Args:
        noun: A pair `(start, end)`, or an object with `start` and `end`.

    Returns:
        `(start, end)`: the first character and one past the last.

    Raises:
        TypeError: If `noun` is neither.
    """
    if hasattr(noun, 'start') and hasattr(noun, 'end'):
        start, end = noun.start, noun.end
    elif isinstance(noun, (tuple, list)) and len(noun) == 2:
        start, end = noun
    else:
        start, end = None, None
    if not (isinstance(start, Integral) and isinstance(end, Integral)):
        raise TypeError(
            'a noun must be a word, (word, occurrence), a pair (start, end) of characters as '
            f'integers, or have start and end; got {noun!r}'
        )
    return int(start), int(end)


def noun_name(prompt: str, noun: Any) -> str:
    """Return what to call a noun: its word, its own text, or the characters of its span.

    Raises:
        TypeError: If `noun` is nothing that `spans_of_prompts` takes.
    """
    text = (_word(noun) or [getattr(noun, 'text', None)])[0]
    if isinstance(text, str):
        return text
    start, end = span_of(noun)
    return prompt[start:end]


def _word(noun: Any) -> tuple[str, int | None] | None:
    """The word of a noun that is given by one, and which of its occurrences is meant."""
    if isinstance(noun, str):
        return noun, None
    if not (isinstance(noun, (tuple, list)) and len(noun) == 2 and isinstance(noun[0], str)):
        return None
    word, occurrence = noun
    if isinstance(occurrence, bool) or not isinstance(occurrence, Integral) or occurrence < 1:
        raise TypeError(
            f'the second of (word, occurrence) must be a whole number from 1, got {noun!r}'
        )
    return word, int(occurrence)


def _span(prompt: str, noun: Any, number: int) -> Any:
    """The span of a noun, or the noun itself where it is one."""
    try:
        given = _word(noun)
        if given is None:
            span_of(noun)
            return noun
    except TypeError as error:
        raise TypeError(f'prompt {number}: {error}') from None
    word, occurrence = given
    places = places_of(word, prompt)
    times = 'once' if len(places) == 1 else f'{len(places)} times'
    if not places:
        advice = _advice(word, prompt)
        raise ValueError(f'prompt {number}: the noun {word!r} is not in {quoted(prompt)}{advice}')
    if occurrence is None and len(places) > 1:
        where = listed([f'{start}:{end}' for start, end in places], 10)
        raise ValueError(
            f'prompt {number}: the noun {word!r} occurs {times} in {quoted(prompt)} (characters '
            f'{where}): choose one by ({word!r}, 1) to ({word!r}, {len(places)}), or by its span '
            '(start, end)'
        )
    if occurrence is not None and occurrence > len(places):
        raise ValueError(
            f'prompt {number}: the noun {word!r} occurs {times} in {quoted(prompt)}, so there is '
            f'no ({word!r}, {occurrence})'
        )
    return places[(occurrence or 1) - 1]


def _advice(word: str, prompt: str) -> str:
    """Where a word that isn't in a prompt is part of one that is."""
    if not word.strip():
        return ''
    longer = [part for part in re.findall(r'[\w-]+', prompt) if word.lower() in part.lower()]
    if not longer:
        return ''
    return f', but is part of {longer[0]!r}: write nouns as the prompt does'


def _found(prompts: Sequence[str], numbers: Sequence[int]) -> list[list[Any]]:
    """The nouns of some of the prompts that name something one can see."""
    finder = _finder()
    for number in numbers:
        if not finder.can_read(prompts[number]):
            raise ValueError(
                f'prompt {number}: nouns={AUTO!r} finds the nouns of English prompts only, and '
                f'{quoted(prompts[number])} seems to be none: name its nouns'
            )
    return [list(nouns) for nouns in finder([prompts[number] for number in numbers])]


@cache
def _finder() -> Any:
    from freeatm_mm.prompts.nouns import NounFinder, TextBlobTagger

    try:
        return NounFinder(TextBlobTagger(), concrete=True)
    except ImportError:
        raise ImportError(
            f'nouns={AUTO!r} needs textblob: {pip_install("prompts")}, or name the nouns'
        ) from None
