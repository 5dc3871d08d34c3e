"""The prompt record: a prompt and the character span of each noun in it (JSON Lines)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from freeatm_mm.files import atomic_write
from freeatm_mm.prompts.reading import (
    check_text_encoding,
    excerpt,
    load_json,
    open_regular,
    read_lines,
)
from freeatm_mm.prompts.seen import SeenTexts
from freeatm_mm.prompts.text import has_half_character

__all__ = ['Noun', 'PromptRecord', 'read_prompts', 'write_prompts']

#: The longest prompt that is read, in characters. Text encoders take 77 to some hundred tokens.
LONGEST_PROMPT = 10_000
#: The longest line of a prompt file, in bytes.
LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class Noun:
    """A noun and where it stands in its prompt.

    Args:
        text: The noun as written, ``prompt[start:end]``.
        start: First character of the span, counted from 0.
        end: One past the last character of the span.
        category: The class the noun names (``'bird'``), or ``None`` where unknown.
    """

    text: str
    start: int
    end: int
    category: str | None = None

    @property
    def name(self) -> str:
        """What the noun is called: its category where it is known, or its text in lower case."""
        return self.category or self.text.lower()

    def to_json(self) -> dict:
        """Return the noun as plain JSON values."""
        return {'text': self.text, 'start': self.start, 'end': self.end, 'category': self.category}

    @classmethod
    def from_json(cls, value: dict) -> Noun:
        """Make a noun from `to_json`'s dict.

        Raises:
            ValueError: If a field is missing or of the wrong type.
        """
        if not isinstance(value, dict):
            raise ValueError(
                f'a noun must be an object with text, start and end, got {excerpt(value)}'
            )
        try:
            noun = cls(value['text'], value['start'], value['end'], value.get('category'))
        except KeyError as error:
            raise ValueError(f'noun {excerpt(value)} has no field {error}') from None
        if not (
            isinstance(noun.text, str)
            and type(noun.start) is int
            and type(noun.end) is int
            and (noun.category is None or isinstance(noun.category, str))
        ):
            raise ValueError(
                f'noun {excerpt(value)}: text and category must be strings, start and end integers'
            )
        return noun


@dataclass(frozen=True)
class PromptRecord:
    """What to generate: a prompt, its nouns and where it comes from.

    Args:
        id: Name of the record, unique in its file.
        prompt: The text given to the generator.
        nouns: The nouns to record masks for, each a span of ``prompt``.
        source: Where the prompt comes from (``'template'``, ``'cc3m'``, ...).

    Raises:
        ValueError: If a noun's span lies outside the prompt or doesn't hold the noun's text, or a
            text holds half a character (a lone surrogate), which no file can keep.
    """

    id: str
    prompt: str
    nouns: tuple[Noun, ...] = ()
    source: str = ''

    def __post_init__(self) -> None:
        for text in (self.prompt, self.id, self.source, *(n.category or '' for n in self.nouns)):
            if has_half_character(text):
                raise ValueError(
                    f'prompt {excerpt(self.id)}: {excerpt(text)} holds half a '
                    'character (a lone surrogate)'
                )
        for noun in self.nouns:
            if not 0 <= noun.start < noun.end <= len(self.prompt):
                raise ValueError(
                    f'prompt {self.id!r}: the span {noun.start}:{noun.end} of noun '
                    f'{excerpt(noun.text)} lies outside the prompt, which has {len(self.prompt)} '
                    'characters'
                )
            found = self.prompt[noun.start : noun.end]
            if found != noun.text:
                raise ValueError(
                    f'prompt {self.id!r}: the span {noun.start}:{noun.end} holds '
                    f'{found!r}, not the noun {noun.text!r}'
                )

    def to_json(self) -> dict:
        """Return the record as plain JSON values."""
        return {
            'id': self.id,
            'prompt': self.prompt,
            'nouns': [noun.to_json() for noun in self.nouns],
            'source': self.source,
        }

    @classmethod
    def from_json(cls, value: dict) -> PromptRecord:
        """Make a record from `to_json`'s dict.

        Raises:
            ValueError: If a field is missing, of the wrong type, or a span is wrong.
        """
        if not isinstance(value, dict):
            raise ValueError(f'a prompt record must be an object, got {type(value).__name__}')
        for field in ('id', 'prompt'):
            if not isinstance(value.get(field), str):
                raise ValueError(f'a prompt record needs the string field {field!r}')
        if len(value['prompt']) > LONGEST_PROMPT:
            raise ValueError(
                f'prompt {excerpt(value["id"])}: has {len(value["prompt"]):,} '
                f'characters, more than {LONGEST_PROMPT:,}; no text encoder reads '
                'them'
            )
        if not isinstance(value.get('source') or '', str):
            raise ValueError(f'prompt {excerpt(value["id"])}: source must be a string')
        nouns = value.get('nouns', [])
        if not isinstance(nouns, list):
            raise ValueError(f'prompt {value["id"]!r}: nouns must be a list')
        return cls(
            value['id'],
            value['prompt'],
            tuple(Noun.from_json(noun) for noun in nouns),
            value.get('source') or '',
        )


def read_prompts(path: str | Path) -> Iterator[PromptRecord]:
    """Yield the records of a JSON Lines file, one at a time.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not a valid record, two have the same id, or there is none; names
            the file and the line.
    """
    empty = True
    with open_regular(path, 'prompt file') as file, SeenTexts(fold=False) as ids:
        for number, line in read_lines(file, path, LONGEST_LINE):
            try:
                if line is None:
                    raise ValueError(
                        f'has more than {LONGEST_LINE:,} bytes; a prompt file has one '
                        'JSON object a line'
                    )
                if not line.strip():
                    continue
                if number == 1:
                    check_text_encoding(line[:4])
                record = PromptRecord.from_json(load_json(line))
                if not ids.add(record.id):
                    raise ValueError(f'the id {excerpt(record.id)} came before; ids must be unique')
            except ValueError as error:
                raise ValueError(f'{path}, line {number}: {error}') from None
            empty = False
            yield record
    if empty:
        raise ValueError(
            f'{path} holds no prompt; a prompt file has one JSON object a line: id, '
            'prompt, nouns (text, start, end, category), source'
        )


def write_prompts(path: str | Path, records: Iterable[PromptRecord]) -> int:
    """Write records as JSON Lines, atomically, and return how many.

    Raises:
        ValueError: If two records share an id.
    """
    seen: set[str] = set()
    with atomic_write(path) as file:
        for record in records:
            if record.id in seen:
                raise ValueError(
                    f'two prompt records have the id {record.id!r}; ids must be unique'
                )
            seen.add(record.id)
            file.write((json.dumps(record.to_json(), ensure_ascii=False) + '\n').encode())
    return len(seen)
