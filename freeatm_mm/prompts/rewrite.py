"""Prompts rewritten by a language model, each answer checked, the template kept where one fails.

Sec. 3.2: "we transform labels into sentences using a large language model, avoiding unrealistic
prompts [...] we employ GPT-3.5-turbo for prompt augmentation".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import islice

from freeatm_mm.errors import counted
from freeatm_mm.prompts.answers import read_sentences
from freeatm_mm.prompts.journal import Batch, SeenTexts
from freeatm_mm.prompts.language_models import Answer, LanguageModel, LanguageModelError, Request
from freeatm_mm.prompts.reading import excerpt
from freeatm_mm.prompts.record import Noun, PromptRecord

__all__ = [
    'Checks',
    'Prices',
    'check_answer',
    'find_again',
    'read_words',
    'rewrite_batches',
    'unsafe_words',
]

#: So many requests in a row without one usable answer stop a run: something is wrong.
HOPELESS_AFTER = 20
#: So many answers that can't be read are told with their beginning.
MOST_MESSAGES = 10

_INSTRUCTION = (
    'You turn short scene descriptions into prompts for an image generator. Rewrite each numbered '
    'line as one natural English sentence that could describe a real photograph: vary the place, '
    'light, weather, colors and activity, but keep it possible in reality. Use every term that '
    'stands in square brackets after a line, spelled exactly so, and name no other main object. '
    'At most {max_words} words a sentence. Answer with one line for each number, beginning with '
    'the number and a period, and nothing else.'
)
_REFUSAL = re.compile(
    r"\b(?:as an ai|i can(?:no|'|’)t|i(?:'|’)m sorry|i am sorry|unable to|"
    r'language model)\b',
    re.IGNORECASE,
)
_MARKUP = re.compile(r'[\[\]{}<>|`#*_\\]|https?:|\n')


@dataclass(frozen=True)
class Checks:
    """What an answer must keep to.

    Args:
        min_words: The fewest words.
        max_words: The most words.
        forbidden: Words and phrases that may not come in, in any case.

    Raises:
        ValueError: If there is no word in one of ``forbidden``.
    """

    min_words: int = 4
    max_words: int = 40
    forbidden: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        empty = sorted(entry for entry in self.forbidden if not _words(entry))
        if empty:
            raise ValueError(
                f'{excerpt(empty[0])} is no word that could be forbidden: write one with letters '
                'or digits, or leave the line out'
            )


@dataclass(frozen=True)
class Prices:
    """What a server costs.

    Args:
        tokens_in: Dollars for a million tokens of requests.
        tokens_out: Dollars for a million tokens of answers.
        budget: Dollars after which the run stops; ``None`` for no limit.
    """

    tokens_in: float = 0.0
    tokens_out: float = 0.0
    budget: float | None = None


@cache
def unsafe_words() -> frozenset[str]:
    """Return the words that this package forbids."""
    text = files(__package__).joinpath('unsafe_words.txt').read_text(encoding='utf-8')
    return read_words(text)


def read_words(text: str) -> frozenset[str]:
    """Return the words of a list: one a line, ``#`` begins a comment line."""
    lines = (line.strip().lower() for line in text.splitlines())
    return frozenset(line for line in lines if line and not line.startswith('#'))


def find_again(nouns: Sequence[Noun], text: str) -> tuple[Noun, ...] | None:
    """Find the nouns of a prompt in another text.

    Each noun gets an occurrence of its own, as a whole word, in any case, singular or with a
    plural's ending; longer nouns choose first, so that a "dog" is not found in a "hot dog".

    Args:
        nouns: The nouns to find.
        text: Where to look.

    Returns:
        The nouns with their text and spans there, in the same order, or ``None`` if one is missing.
    """
    taken: list[tuple[int, int]] = []
    found: dict[int, Noun] = {}
    for index, noun in sorted(enumerate(nouns), key=lambda pair: -len(pair[1].text)):
        pattern = rf'(?<![\w-]){re.escape(noun.text)}(?:e?s)?(?![\w-])'
        for match in re.finditer(pattern, text, re.IGNORECASE):
            start, end = match.span()
            if all(end <= left or start >= right for left, right in taken):
                taken.append((start, end))
                found[index] = replace(noun, text=match[0], start=start, end=end)
                break
        else:
            return None
    return tuple(found[index] for index in range(len(nouns)))


def check_answer(template: PromptRecord, text: str, checks: Checks) -> tuple[Noun, ...] | str:
    """Check one rewritten prompt.

    Args:
        template: The prompt that was rewritten.
        text: What the model made of it.
        checks: What it must keep to.

    Returns:
        The nouns with their spans in ``text``, or what is wrong with it in a few words.
    """
    if _MARKUP.search(text) or not text.isprintable():
        return 'markup'
    if _REFUSAL.search(text):
        return 'refusal'
    words = len(text.split())
    if words < checks.min_words:
        return f'fewer than {counted(checks.min_words, "word")}'
    if words > checks.max_words:
        return f'more than {counted(checks.max_words, "word")}'
    if text.casefold() == template.prompt.casefold():
        return 'unchanged'
    forbidden = _split(checks.forbidden)
    lengths = {len(phrase) for phrase in forbidden}
    if (_phrases(text, lengths) - _phrases(template.prompt, lengths)) & forbidden:
        return 'unsafe word'
    nouns = find_again(template.nouns, text)
    return 'noun missing' if nouns is None else nouns


def rewrite_batches(
    records: Iterable[PromptRecord],
    model: LanguageModel,
    seen: SeenTexts,
    *,
    skip: int = 0,
    per_request: int = 10,
    checks: Checks | None = None,
    prices: Prices | None = None,
    spent: float = 0.0,
) -> Iterator[Batch]:
    """Rewrite prompts in batches, one record out for each record in.

    A record keeps its id; its source becomes ``<source>+<model>`` where the answer was good, and
    it stays as it is where not.

    Args:
        records: The prompts.
        model: What rewrites them.
        seen: Texts so far: an answer that comes again is not used.
        skip: Records at the beginning that an earlier run has done.
        per_request: Prompts in one request.
        checks: What answers must keep to.
        prices: What tokens cost.
        spent: Dollars that an earlier run has spent.

    Raises:
        LanguageModelError: If the model gives up, the budget is spent, or no answer at all is
            usable.
    """
    checks = checks or Checks(forbidden=unsafe_words())
    prices = prices or Prices()
    instruction = _INSTRUCTION.format(max_words=checks.max_words)
    waiting: list[list[list[PromptRecord]]] = []

    def groups() -> Iterator[list[Request]]:
        remaining = islice(records, skip, None)
        while chunk := list(islice(remaining, per_request * model.group_size)):
            group = [chunk[i : i + per_request] for i in range(0, len(chunk), per_request)]
            waiting.append(group)
            yield [Request(instruction, _numbered(part)) for part in group]

    hopeless = told = 0
    for answers in model.answers(groups()):
        group = waiting.pop(0)
        counts: Counter = Counter()
        results: list[PromptRecord] = []
        messages: list[str] = []
        for part, answer in zip(group, answers, strict=True):
            hopeless += 1
            before = counts['rewritten']
            results += _use(part, answer, checks, seen, counts, model.name)
            if counts['rewritten'] > before:
                hopeless = 0
            _count_cost(answer, prices, counts)
            counts.update({f'requests {note}': 1 for note in answer.notes})
            if (unread := _unread(answer, len(part))) and told < MOST_MESSAGES:
                told += 1
                messages.append(unread)
        spent += counts.get('dollars', 0.0)
        yield Batch(len(results), tuple(results), dict(counts), tuple(messages))
        if hopeless >= HOPELESS_AFTER:
            raise LanguageModelError(
                f'the last {hopeless} requests gave no usable prompt ({_last_words(answers[-1])}); '
                'look at the model, then run the same command to go on'
            )
        if prices.budget is not None and any(
            answer.text is not None and None in (answer.tokens_in, answer.tokens_out)
            for answer in answers
        ):
            raise LanguageModelError(
                "the server doesn't count tokens, so that a budget can't be "
                'kept; what was done is kept: go on without --budget'
            )
        if prices.budget is not None and spent >= prices.budget:
            raise LanguageModelError(
                f'the budget of {prices.budget:g} dollars is spent '
                f'({spent:.4f}); what was done is kept: go on with a larger '
                '--budget'
            )


def _last_words(answer: Answer) -> str:
    if answer.text is not None:
        return f'the last answer began {excerpt(answer.text)}'
    return f'the last one: {answer.problem}' + (f': {answer.detail}' if answer.detail else '')


def _unread(answer: Answer, count: int) -> str:
    """What to tell of an answer of which nothing could be read."""
    if answer.text is None:
        return f'{answer.problem}: {answer.detail}' if answer.detail else ''
    if any(read_sentences(answer.text, count, answer.cut)):
        return ''
    return f'no prompt could be read from an answer that began {excerpt(answer.text)}'


def _use(
    part: Sequence[PromptRecord],
    answer: Answer,
    checks: Checks,
    seen: SeenTexts,
    counts: Counter,
    name: str,
) -> Iterator[PromptRecord]:
    texts = read_sentences(answer.text or '', len(part), answer.cut)
    for template, text in zip(part, texts):
        if answer.text is None:
            problem: str = answer.problem
        elif text is None:
            problem = 'the answer was cut off' if answer.cut else 'no line for it in the answer'
        else:
            result = check_answer(template, text, checks)
            if not isinstance(result, str):
                if seen.add(text):
                    counts['rewritten'] += 1
                    yield PromptRecord(template.id, text, result, f'{template.source}+{name}')
                    continue
                result = 'duplicate'
            problem = result
        counts[f'template kept: {problem}'] += 1
        seen.add(template.prompt)
        yield template


def _count_cost(answer: Answer, prices: Prices, counts: Counter) -> None:
    counts['requests'] += 1
    if answer.retries:
        counts['requests sent again'] += answer.retries
    if answer.tokens_in is None or answer.tokens_out is None:
        counts['requests whose tokens the server did not count'] += 1
        return
    counts['tokens in'] += answer.tokens_in
    counts['tokens out'] += answer.tokens_out
    dollars = (answer.tokens_in * prices.tokens_in + answer.tokens_out * prices.tokens_out) / 1e6
    if dollars:
        counts['dollars'] += dollars  # type: ignore[assignment]  # the stubs know ints only


def _numbered(part: Sequence[PromptRecord]) -> str:
    return '\n'.join(
        f'{number}. {record.prompt} [{"; ".join(n.text for n in record.nouns)}]'
        for number, record in enumerate(part, 1)
    )


def _words(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, without the signs around them."""
    return tuple(re.findall(r"\w+(?:['-]\w+)*", text.lower().replace('’', "'")))


@cache
def _split(entries: frozenset[str]) -> frozenset[tuple[str, ...]]:
    """Words and phrases as the words that they are made of."""
    return frozenset(map(_words, entries))


def _phrases(text: str, lengths: Collection[int]) -> frozenset[tuple[str, ...]]:
    """The runs of so many neighbouring words in a text."""
    words = _words(text)
    return frozenset(
        words[start : start + length]
        for length in lengths
        for start in range(len(words) - length + 1)
    )
