"""What language models answer, out of the dress it comes in.

A model asked for numbered sentences gives them as a numbered list, in JSON, in a table, under
headings, in bold or in quotes, with thoughts before and good wishes after. Nothing here takes more
than linear time, and what isn't understood is ``None`` rather than guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from freeatm_mm.prompts.reading import load_json
from freeatm_mm.prompts.text import clean_text, without_invisible

__all__ = ['read_sentences', 'without_reasoning']

#: What is read of an answer at most, in characters and in lines.
LONGEST_ANSWER = 200_000
MOST_LINES = 5_000

_THOUGHT = (
    r'think|thinking|thought|thoughts|reasoning|reason|reflection|analysis|scratchpad|'
    r'deliberation|inner_monologue|chain_of_thought|seed:think|antml:thinking'
)
# <think> and </think>, [THINK], ◁think▷, <|begin_of_thought|>, <|END_THINKING|>, ...
_THOUGHT_TAG = re.compile(
    rf'(?:<|\[|◁)(?P<close>/?)(?:{_THOUGHT})(?:\s[^<>\[\]\n]{{0,100}})?(?:>|\]|▷)'
    r'|<\|(?:begin|start)_(?:of_)?(?:thought|thinking)\|>'
    r'|(?P<end><\|end_(?:of_)?(?:thought|thinking)\|>)',
    re.IGNORECASE,
)
_CHANNEL = re.compile(r'<\|channel\|>\s*(\w+)[^<]{0,80}<\|message\|>')
_CHANNEL_END = re.compile(r'<\|(?:end|return|call|start)\|>')
# gpt-oss once its special tokens have been taken out.
_BARE_CHANNELS = re.compile(r'(?:assistant)?\s?(?:analysis|commentary)(?=[\W\dA-Z])')
_BARE_FINAL = re.compile(r'assistant\s?final')
_ANSWER_TAG = re.compile(
    r'<(/?)(?:answer|final|final_answer|output|response|result|solution)>'
    r'|<\|(begin|end)_of_(?:solution|answer|box)\|>',
    re.IGNORECASE,
)
_SPECIAL = re.compile(
    r'<\|[^|<>\n]{1,40}\|>|</?s>|<(?:start|end)_of_turn>(?:model|user)?'
    r'|\[/?INST\]|<(?:eos|bos|pad)>'
)


def without_reasoning(text: str) -> str:
    """Return an answer without what the model thought aloud before it or in it.

    Of thoughts that have no end, all is left out; of those that only have an end (the beginning
    stood in the request), all before it.
    """
    channels = list(_CHANNEL.finditer(text))
    if channels:
        finals = [match for match in channels if match[1].lower() == 'final']
        if not finals:
            return ''
        text = text[finals[-1].end() :]
        end = _CHANNEL_END.search(text)
        text = text[: end.start()] if end else text
    elif _BARE_CHANNELS.match(text.lstrip()[:80]):
        finals = list(_BARE_FINAL.finditer(text))
        if finals:
            text = text[finals[-1].end() :]
    kept: list[str] = []
    depth = position = 0
    for tag in _THOUGHT_TAG.finditer(text):
        if depth == 0:
            kept.append(text[position : tag.start()])
        if tag['close'] or tag['end']:
            if depth == 0:
                kept.clear()
            depth = max(0, depth - 1)
        else:
            depth += 1
        position = tag.end()
    if depth == 0:
        kept.append(text[position:])
    return ''.join(kept)


def read_sentences(text: str, count: int, cut: bool = False) -> list[str | None]:
    """Read the sentences of an answer.

    Args:
        text: What the model answered, thoughts and all.
        count: How many sentences it was asked for, under the numbers 1 to ``count``.
        cut: The answer ran into its limit: its last sentence is left out unless a line end or
            what closes it in its dress follows.

    Returns:
        The sentence of each number, or ``None`` where the answer has none.
    """
    cut = cut or len(text) > LONGEST_ANSWER
    text = _SPACES.sub(' ', without_reasoning(text[:LONGEST_ANSWER]))
    answer = _tagged(text)
    text = _SPECIAL.sub('', answer)
    text = without_invisible(text)
    text = _LIST_TAG.sub('\n', _ITEM_TAG.sub('\n- ', text))
    text = text.replace('\r\n', '\n').replace('\r', '\n').replace('\u2028', '\n')
    found = _from_json(text, count)
    if found is None:
        found = _from_lines(text, count, cut)
    return [sentence and (_undress(sentence) or None) for sentence in found]


def _tagged(text: str) -> str:
    """What stands in the last pair of <answer> tags; all, where there is none."""
    start, found = None, None
    for tag in _ANSWER_TAG.finditer(text):
        if tag[1] or (tag[2] or '').lower() == 'end':
            if start is not None:
                found, start = text[start : tag.start()], None
        else:
            start = tag.end()
    return text[start:] if start is not None else text if found is None else found


_ITEM_TAG = re.compile(r'\s?<li(?:\s[^<>]{0,200})?>', re.IGNORECASE)
_LIST_TAG = re.compile(r'</?(?:ol|ul|li|p)(?:\s[^<>]{0,200})?>', re.IGNORECASE)

# JSON

_SPACES = re.compile(r'[^\S\n]{100,}')
_FENCE = re.compile(r'^[ \t]*(?:```|~~~)[^\n]*$', re.MULTILINE)
# What was made comes before what it may have been made of.
_TEXT_KEYS = (
    'rewritten',
    'rewritten_prompt',
    'rewritten_sentence',
    'rewrite',
    'new_prompt',
    'output',
    'result',
    'answer',
    'sentence',
    'prompt',
    'text',
    'caption',
    'description',
    'content',
    'line',
    'value',
)
_NUMBER_KEYS = ('number', 'num', 'no', 'n', 'id', 'index', 'idx', 'key', 'line_number', 'line')
#: Quotes that begin no string, after which a list is given up.
_MOST_MISSED = 64
_QUOTE = re.compile('["\']')
_STRING = re.compile(r'(?:"((?:[^"\\\n]|\\.)*)"|(?<!\w)\'((?:[^\'\\\n]|\\.)*)\')\s*(?=[,\]])')


def _from_json(text: str, count: int) -> list[str | None] | None:
    """The sentences of an answer in JSON, or ``None`` if it is none."""
    parts = [part for part in _FENCE.split(text) if part.lstrip()[:1] in ('[', '{')]
    if not parts:
        start = re.search(r'[\[{]\s*["\'{\[]', text)
        # Behind a numbered sentence it is its terms, not the answer.
        if start is None or any(
            _numbered(line)[1].strip()
            for line in text[: start.start()].split('\n', MOST_LINES)
            if _numbered(line)[0] is not None
        ):
            return None
        parts = [text[start.start() :]]
    for part in reversed(parts):
        end = max(part.rfind(']'), part.rfind('}')) + 1
        values: list[Any] = []
        try:
            values = [load_json(part[:end].strip())]
        except ValueError:
            try:
                values = [
                    load_json(line.strip().rstrip(','))
                    for line in part.splitlines()
                    if line.strip()
                ]
            except ValueError:
                values = []
        if values:
            found = _placed(_pairs(values[0] if len(values) == 1 else values), count)
        else:
            found = _placed(_whole_parts(part), count, whole=False)
        if any(found):
            return found
    return None


def _strings(part: str) -> Iterator[str]:
    """The strings of a list; no more are looked for where many quotes begin none."""
    place = missed = 0
    while missed < _MOST_MISSED and (quote := _QUOTE.search(part, place)):
        match = _STRING.match(part, quote.start())
        if match is None:
            missed, place = missed + 1, quote.end()
        else:
            yield match[1] or match[2] or ''
            place = match.end()


def _whole_parts(part: str) -> list[tuple[int | None, str]]:
    """What is whole of a JSON list that was cut off, or has a comma too many."""
    if re.match(r'\s*\[\s*["\']', part):
        return [(None, re.sub(r'\\(["\'])', r'\1', text)) for text in _strings(part)]
    values = []
    if re.match(r'\s*(?:\[|\{\s*"\w{1,40}"\s*:\s*\[)\s*\{', part):
        for match in re.finditer(r'\{[^{}]{1,4000}\}', part):
            try:
                values.append(load_json(match[0]))
            except ValueError:
                continue
    return _pairs(values)


def _pairs(value: Any, depth: int = 0) -> list[tuple[int | None, str]]:
    """Numbers, where given, and sentences of a JSON value."""
    if depth > 3:
        return []
    if isinstance(value, list):
        pairs: list[tuple[int | None, str]] = []
        for item in value:
            if isinstance(item, str):
                number, rest = _numbered(item)
                pairs.append((number, rest) if number is not None and rest else (None, item))
            elif isinstance(item, dict):
                fields = {str(key).lower(): field for key, field in item.items()}
                text = next(
                    (fields[key] for key in _TEXT_KEYS if isinstance(fields.get(key), str)), None
                )
                number = next(
                    (
                        _whole(fields[key])
                        for key in _NUMBER_KEYS
                        if _whole(fields.get(key)) is not None
                    ),
                    None,
                )
                if text is not None:
                    pairs.append((number, text))
                else:
                    pairs.extend(_pairs(item, depth + 1))
        return pairs
    if isinstance(value, dict):
        if value and all(isinstance(item, str) for item in value.values()):
            numbers = [_whole(key) for key in value]
            if all(number is not None for number in numbers):
                return list(zip(numbers, value.values()))
            fields = {str(key).lower(): item for key, item in value.items()}
            for key in _TEXT_KEYS:
                if key in fields:
                    return [(None, fields[key])]
        for item in value.values():
            if isinstance(item, (list, dict)) and (pairs := _pairs(item, depth + 1)):
                return pairs
    return []


def _whole(value: Any) -> int | None:
    """A number, or the number in a key such as "prompt_1"."""
    if type(value) is int:
        return value if 0 <= value < 10**6 else None
    if isinstance(value, str) and (match := re.fullmatch(r'\D{0,20}(\d{1,4})\.?', value.strip())):
        return int(match[1])
    return None


def _first_number(numbers: Collection[int], count: int) -> int:
    """Whether `count` sentences, or the first of them, are numbered from 0 or from 1."""
    return 0 if 0 in numbers and max(numbers) < count else 1


def _placed(
    pairs: Sequence[tuple[int | None, str]], count: int, whole: bool = True
) -> list[str | None]:
    """Sentences by their numbers, or in their order where they have none."""
    numbered = [(number, sentence) for number, sentence in pairs if number is not None]
    result: list[str | None] = [None] * count
    if pairs and len(numbered) == len(pairs):
        first = _first_number([number for number, _ in numbered], count)
        for number, sentence in numbered:
            if 0 <= number - first < count:
                result[number - first] = sentence
    elif len(pairs) == count or not whole:
        for place, (_, sentence) in enumerate(pairs[:count]):
            result[place] = sentence
    return result


# Lines

_KEYCAP = re.compile('([0-9]{1,3}|[0-9](?:\ufe0f?\u20e3[0-9]){1,2})\ufe0f?\u20e3')
_MARKS = r'(?:\*\*|__|\*|_|`|["“„‘«\']|\#{1,6}\s|>\s?|[-*•‣▪·–]\s|\|)'
_NUMBERED = re.compile(
    rf'\s*(?:{_MARKS}\s*){{0,4}}'
    r'(?P<word>(?:prompt|sentence|line|item|no|nr|number|answer|rewritten|rewrite|'
    r'scene|image|caption|description)\.?\s{1,3})?'
    r'[\[(]?(?P<hash>\#?)\s?(?P<number>[0-9]{1,4})\s?'
    r'(?P<sign>\*{0,2}_{0,2}(?:\\?[.)\]:|/]|\s[-–—=]\s|\s?→|\s?[-–—]>|[-–—]\s){1,3}\*{0,2}_{0,2}'
    r'|\*\*(?=\s)|(?=\s*$)|(?<=\s))(?![0-9])'
    r'(?P<rest>.*)$',
    re.IGNORECASE,
)
_BULLET = re.compile(r'\s*(?:[-*+•‣▪◦·–—○●■►➤→]|o(?=\s{2}))\s+(\S.*)$')
_LETTERED = re.compile(
    r'^\(?(?:[ivx]{1,5}|[a-z]|one|two|three|four|five|six|seven|eight|nine|ten|'
    r'first|second|third|fourth|fifth)[.):]\s+',
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"(?:sure|certainly|of course|absolutely|okay|ok|great|here(?:'s|’s| is| are| you go)|below|"
    r'the following|these are|as requested|rewritten|final|answer|i (?:have|will)|i\'ll|'
    r'understood|got it|no problem|happy to)\b',
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r'(?:let me know|(?:i )?hope (?:this|these|that)|feel free|please (?:note|let)|note\b|'
    r'notes\b|these (?:prompts|sentences|descriptions)|would you like|if you(?:\'d| would| need|'
    r' want)|do you want|is there anything|enjoy|each (?:sentence|prompt|line)|all (?:sentences|'
    r'prompts|terms)|good luck|happy )',
    re.IGNORECASE,
)


def _numbered(line: str) -> tuple[int | None, str]:
    """A line's number, if it begins with one and a sign after it, and the rest."""
    match = _NUMBERED.match(line)
    if match is None:
        return None, line
    rest = match['rest'].strip()
    if not (match['sign'] or match['word'] or match['hash']) and rest:
        return None, line  # "2 dogs play"
    if line.lstrip().startswith('|') and '|' in rest.strip('| '):
        rest = rest.strip('| ').rpartition('|')[2].strip()  # the last column of a table
    return int(match['number']), rest


def _from_lines(text: str, count: int, cut: bool) -> list[str | None]:
    text = _KEYCAP.sub(lambda m: ''.join(filter(str.isdigit, m[0])) + '. ', text)
    text = ''.join(_digit(character) for character in text)
    lines = [
        line
        for line in text.split('\n', MOST_LINES)[:MOST_LINES]
        if not _FENCE.fullmatch(line) and not re.fullmatch(r'[|\s:*_=-]{3,}', line)
    ]
    # The last line of an answer that was cut off is half a line.
    if cut and lines:
        lines.pop()
    runs = _runs(lines)
    if runs:
        # A draft may come before the list, and notes after it: the fullest list counts, and of
        # several the last.
        def full(run: dict[int, str]) -> int:
            first = _first_number(run, count)
            return sum(first <= number < first + count for number in run)

        best = max(enumerate(runs), key=lambda pair: (full(pair[1]), pair[0]))[1]
        if full(best):
            return _placed(list(best.items()), count)
    bullets = [match[1] for line in lines if (match := _BULLET.match(line))]
    if len(bullets) == count:
        return [_LETTERED.sub('', bullet) for bullet in bullets]
    plain = _plain_lines(lines)
    bare = _bare_numbers(plain, count) if count > 1 else None
    if bare is not None:
        return bare
    if len(plain) == count or (count == 1 and plain):
        return [_LETTERED.sub('', line) for line in plain[:count]]
    return [None] * count


def _runs(lines: Iterable[str]) -> list[dict[int, str]]:
    """The numbered lists among the lines; a list ends where one of its numbers comes again."""
    runs: list[dict[int, str]] = []
    last: int | None = None
    blank = False
    for line in lines:
        number, rest = _numbered(line)
        if number is not None:
            if not runs or number in runs[-1]:
                runs.append({})
            runs[-1][number] = rest
            last, blank = number, False
        elif not line.strip():
            blank = True
        elif last is not None:
            words = line.strip()
            so_far = runs[-1][last]
            bullet = _BULLET.match(line)
            broken_off = so_far[-1:] not in '.!?"”*' and (line[0].isspace() or words[0].islower())
            if not so_far.strip(' *_:"“|'):
                # Under a heading of its own.
                if not _CLOSING.match(words):
                    runs[-1][last] = bullet[1] if bullet else words
            elif broken_off and not blank and not bullet:
                runs[-1][last] = f'{so_far} {words}'
            else:
                last = None
    return [
        run
        for run in ({number: rest for number, rest in run.items() if rest.strip()} for run in runs)
        if run
    ]


def _plain_lines(lines: Iterable[str]) -> list[str]:
    """The lines that aren't chatter."""
    plain = [line.strip() for line in lines if line.strip()]
    while plain and (
        plain[0].rstrip('*_ ').endswith(':')
        or (len(plain) > 1 and _OPENING.match(plain[0].lstrip('*_# ')))
    ):
        plain.pop(0)
    while len(plain) > 1 and _CLOSING.match(plain[-1].lstrip('*_# (')):
        plain.pop()
    return plain


def _bare_numbers(lines: Sequence[str], count: int) -> list[str | None] | None:
    """Lines that begin with 1, 2, 3 ... and a space, all of them."""
    matches = [re.match(r'\s*([0-9]{1,4})\s+(\S.*)$', line) for line in lines]
    found = [match for match in matches if match]
    if [int(match[1]) for match in found] == list(range(1, count + 1)):
        return [match[2] for match in found]
    return None


def _digit(character: str) -> str:
    """Full-width and circled numbers as plain ones."""
    if character < '\u2460' or not (
        '\u2460' <= character <= '\u249b' or '\uff08' <= character <= '\uff1a'
    ):
        return character
    plain = unicodedata.normalize('NFKC', character)
    return plain + '. ' if '\u2460' <= character <= '\u2473' else plain


# Dress

_PAIRS = (
    ('"', '"'),
    ('“', '”'),
    ('”', '”'),
    ('„', '“'),
    ('„', '”'),
    ("'", "'"),
    ('‘', '’'),
    ('«', '»'),
    ('»', '«'),
    ('「', '」'),
    ('`', '`'),
    ('**', '**'),
    ('__', '__'),
    ('*', '*'),
    ('_', '_'),
    ('|', '|'),
)
_BOLD = re.compile(r'(\*\*|__|(?<!\w)\*|(?<!\w)_|`)(?=\S)([^*_`\n]{1,200})(?<=\S)\1')
_LABEL = re.compile(
    r'(?:rewritten(?: prompt| sentence)?|prompt|sentence|output|result|answer)'
    r'\s?:\s',
    re.IGNORECASE,
)
_ORIGINAL = re.compile(
    r'original\b.{1,2000}?\b(?:rewritten|revised|rewrite|new)\b[^:\n]{0,20}:\s*', re.IGNORECASE
)
_ECHO = re.compile(r'\s?\[(?:terms?: ?|nouns?: ?)?([^\[\]]{1,200})\]\s?([.!]?)$')
_TERM = re.compile(r'\[([^\[\]\n]{1,60})\](?!\()')


def _undress(sentence: str) -> str:
    """A sentence without quotes, bold and brackets round it or its terms."""
    sentence = clean_text(sentence).strip().strip('|').strip()
    for _ in range(4):
        before = sentence
        sentence = _BOLD.sub(r'\2', sentence)
        sentence = _ORIGINAL.sub('', sentence, count=1) if _ORIGINAL.match(sentence) else sentence
        sentence = _LABEL.sub('', sentence, count=1) if _LABEL.match(sentence) else sentence
        for left, right in _PAIRS:
            ending = sentence.rstrip(',; ') if left in '"“' else sentence
            if (
                len(ending) > len(left) + len(right)
                and ending.startswith(left)
                and ending.endswith(right)
                and right not in ending[len(left) : -len(right)]
            ):
                sentence = ending[len(left) : -len(right)].strip()
        # The other half of a pair stood before the number.
        bare = sentence.rstrip(', ')
        for mark in ('**', '__', '”', '"', '|'):
            if bare.endswith(mark) and bare.count(mark) == 1 and '“' not in bare:
                sentence = bare[: -len(mark)].rstrip(', ')
        if sentence == before:
            break
    if echo := _ECHO.search(sentence):
        kept = sentence[: echo.start()]
        ended = kept[-1:] in '.!?"”' or set(';"') & set(echo[1])
        if ended or echo[1].strip().lower() in kept.lower():
            sentence = kept + echo[2]
    sentence = _TERM.sub(r'\1', sentence)
    return sentence.strip()
