"""Prompts from the paper's templates, with the span of every noun known by construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freeatm_mm.prompts.record import Noun, PromptRecord

__all__ = ['TEMPLATES', 'Subject', 'fill_template']


@dataclass(frozen=True)
class Subject:
    """One thing to name in a prompt.

    Args:
        noun: The noun (``'dress'``).
        modifier: Words before the noun (``'red'``), or ``''``.
        category: The class the noun names; the noun itself if not given.
        determiner: The words before all that (``'a pair of'``); "a" or "an" if not given.
    """

    noun: str
    modifier: str = ''
    category: str | None = None
    determiner: str | None = None

    @property
    def words(self) -> str:
        """The modifier and the noun."""
        return f'{self.modifier} {self.noun}'.strip()


#: Sec. 3.2: "[Class (with other class)] is/are [somewhere]". ``{0}``, ``{1}``, ... are subjects
#: with their article, ``{be}`` agrees with their number, ``{place}`` is the somewhere.
TEMPLATES: dict[int, tuple[str, ...]] = {
    1: ('{0} {be} {place}',),
    2: ('{0} with {1} {be} {place}', '{0} and {1} {be} {place}'),
    3: ('{0} with {1} and {2} {be} {place}', '{0}, {1} and {2} {be} {place}'),
}


def fill_template(
    record_id: str, template: str, subjects: Sequence[Subject], place: str
) -> PromptRecord:
    """Fill a template and note where each noun stands.

    Args:
        record_id: The record's id.
        template: One of `TEMPLATES`, or any text with the same fields.
        subjects: The subjects for ``{0}``, ``{1}``, ..., in order.
        place: The words for ``{place}`` (``'on the sand'``).

    Returns:
        The prompt record; ``nouns[i]`` is ``subjects[i]``'s.

    Raises:
        ValueError: If a subject has no field in the template.
    """
    text = template.replace('{be}', 'is' if len(subjects) == 1 or ' with ' in template else 'are')
    text = text.replace('{place}', place)
    nouns: dict[int, Noun] = {}
    for index, subject in sorted(enumerate(subjects), key=lambda pair: text.find(f'{{{pair[0]}}}')):
        field = f'{{{index}}}'
        position = text.find(field)
        if position < 0:
            raise ValueError(f'template {template!r} has no field {field} for {subject.noun!r}')
        words = f'{subject.determiner or _article(subject.words)} {subject.words}'
        text = text[:position] + words + text[position + len(field) :]
        end = position + len(words)
        nouns[index] = Noun(
            subject.noun, end - len(subject.noun), end, subject.category or subject.noun
        )
    in_order = tuple(nouns[index] for index in range(len(subjects)))
    return PromptRecord(record_id, text, in_order, 'template')


def _article(words: str) -> str:
    return 'an' if words[0] in 'aeiou' else 'a'
