"""The nouns of a free caption and where each stands, by a tagger that needs no network.

The tagger of textblob is the default: it is kept up, its lexicon lies inside its package (no NLTK
data is read, whatever textblob's own documents say about its other taggers) and it does thousands
of captions a second. Any installed spaCy model is the other choice: better and slower.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

from freeatm_mm.errors import pip_install
from freeatm_mm.prompts.record import Noun

__all__ = [
    'NounFinder',
    'SpacyTagger',
    'Tagger',
    'TextBlobTagger',
    'Word',
    'concrete_nouns',
    'singular',
]

#: A longer word is none.
LONGEST_WORD = 40

# A word is letters, digits and the marks that combine with them, with hyphens or apostrophes
# inside; "'s", "n't" and the like are parts of their own; any other sign stands alone.
_LETTER = '[^\\W_ʼ][\u0300-\u036f\ufe0f\u200d]*'
_APOSTROPHES = "'’‘ʼ`´＇"
_TOKEN = re.compile(
    f'[{_APOSTROPHES}](?:s|re|ve|ll|d|m|t)\\b|{_LETTER}(?:[-{_APOSTROPHES}]?'
    f'(?!(?<=[{_APOSTROPHES}])(?:s|re|ve|ll|d|m|t)\\b){_LETTER})*|[^\\w\\s]|_|ʼ',
    re.IGNORECASE,
)
# What a caption's layout and grammar words are tagged as by mistake.
_NEVER = frozenset(
    'a an the this that these those it its he she they his her their who which what '
    'is are was be been and or not no of in on at to with by from up down'.split()
)
# Parts of addresses and files, abbreviations, numerals: no thing, whatever the tagger says.
_NEVER |= frozenset(
    'quot nbsp apos http https www com org html htm jpg jpeg png gif webp '
    'px dpi vs etc eg ie aka feat ft vol pt ii iii iv vi vii viii ix xi xii xiii '
    "xiv xv xvi xvii xviii xix xx sic n/a lol omg o'clock y'all "
    'mr mrs ms dr st ph usd eur'.split()
)
_UNITS = frozenset(
    'mm cm dm km nm um mg kg kgs lb lbs oz ml cl ltr ft inch inches yd mi mph kmh kph hp hz khz '
    'mhz ghz kb mb gb tb mp mpx fps px dpi pt sq th st nd rd am pm bc ad bce ce usd eur gbp hrs '
    'hr min mins sec secs yrs yr'.split()
)
# What is no word of a language, as it stands between spaces.
_NO_WORDS = re.compile(
    r'[^\s\w]{0,3}(?:'
    r'(?:https?:|www\.)\S*'  # an address
    r'|[#@]\w\S*'  # a hashtag, a user
    r'|[\w.+-]{1,64}@[\w-]\S*'  # a mail address
    # A domain or a file; not "a dog.It sits".
    r'|[\w-]{1,64}\.(?:(?-i:com|net|org|edu|gov|info|biz|co|ru|de|fr|uk|eu|nl|pl|jp|cn|tv|ly|blog|'
    r'shop)|html?|php|aspx?|jpe?g|png|gif|webp|tiff?|bmp|svg|raw|cr2|nef|heic|mp4|mov|avi|pdf|zip|'
    r'txt|docx?|pptx?|psd)(?:[/?#:.]\S*)?(?![\w-])'
    r'|[A-Za-z]:\\\S*|\\\\\S+|~?/[\w.-]+/\S*'  # a path
    r'|\S{0,40}?%[0-9A-Fa-f]{2}\S{0,40}?%[0-9A-Fa-f]{2}\S*'  # percent-encoding
    r'|(?=\w*\d)(?=\w*_)\w+'  # IMG_2034
    r'|:[a-z0-9_+]{2,30}:(?!\w)'  # :smile:
    r')',
    re.IGNORECASE,
)
_ENTITY = re.compile(r'&#?\w{1,32};')
# Scripts that write no spaces: an English tagger takes a whole sentence for one word.
_NO_SPACES = re.compile(
    '[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f'
    '\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]'
)
# Small words by which a caption's language is told; none of the first is an English word.
_FOREIGN = frozenset(
    'un une le les des du et avec dans sur aux ses der das und ein eine einem einen einer eines '
    'mit auf im vor dem zum zur ist von für über el los las una del al se su unos para il lo gli '
    'di della nel nella sul sulla alla dei delle um uma os em na nas pelo een het aan bij de '
    'la och ett på med som til og på av är się ve bir yang pada dengan của và trên với một'.split()
)
# Those of them that stand in names in English, too: "Los Angeles", "Playa del Carmen".
_IN_NAMES = frozenset('al de dei del della des di du el il la las le les lo los'.split())
_ENGLISH = frozenset(
    'a an the of in on at with and is are to for by from his her their this that '
    'near under over next while it its as has two'.split()
)
# Plurals whose singular by textblob is another word.
_IRREGULAR = {
    'bases': 'base',
    'booties': 'bootie',
    'foes': 'foe',
    'hoes': 'hoe',
    'hoodies': 'hoodie',
    'selfies': 'selfie',
}
# The endings of plurals and what a singular has in their places, the likeliest first.
_ENDINGS = (
    ('s', ''),
    *((ending + 'es', ending) for ending in ('s', 'x', 'z', 'ch', 'sh', 'o')),
    ('es', 'is'),
    ('ves', 'f'),
    ('ves', 'fe'),
    ('ies', 'y'),
)
# What a noun may follow directly.
_BEFORE_NOUN = frozenset(('DT', 'PRP$', 'CD', 'JJ', 'NN', 'NNS', 'POS', 'VBG'))


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Args:
        start: Its first character.
        end: One past its last character.
        tag: Its part of speech in the Penn Treebank's names (``'NN'``, ``'VBZ'``, ...).
    """

    start: int
    end: int
    tag: str


class Tagger(Protocol):
    """What names the parts of speech."""

    def __call__(self, texts: Iterable[str]) -> Iterator[list[Word]]:
        """Yield the words of each text, in order, with exact spans."""


class TextBlobTagger:
    """The lexicon and rules of textblob (``textblob.en``), with exact spans.

    A word that the lexicon takes for a verb or an adjective is a noun all the same where an
    article, adjective or noun stands before it, none after it, and WordNet has it as a thing:
    "near the net", "bamboo leaves".

    Raises:
        ImportError: If textblob is not installed.
    """

    def __init__(self) -> None:
        try:
            from textblob.en import parser
        except ImportError:
            raise ImportError(
                f'finding nouns in captions needs textblob: {pip_install("prompts")}'
            ) from None
        self._find_tags = parser.find_tags

    def can_read(self, text: str) -> bool:
        """Whether a text may be English; of what isn't, the tagger would take most for nouns.

        It isn't where most letters are of other scripts than Latin, or where two different words
        or more are other languages' articles and the like, and fewer are English ones. Those that
        are part of a name, as in "Las Vegas", don't count unless they begin the text.
        """
        if not text.isascii():
            letters = [character for character in text if character.isalpha()]
            if 2 * sum(
                character > '\u024f'
                and not '\u1e00' <= character <= '\u1eff'
                and not '\ufb00' <= character <= '\ufb06'
                for character in letters
            ) > len(letters):
                return False
        written = re.findall(r'[^\W\d_]+', text.lower() if text.isupper() else text)
        words = [word.lower() for word in written]
        foreign = {
            word
            for place, word in enumerate(words)
            if word in _FOREIGN and not (place and _is_in_name(written, place))
        }
        return len(foreign) < 2 or len(foreign) <= sum(word in _ENGLISH for word in words)

    def __call__(self, texts: Iterable[str]) -> Iterator[list[Word]]:
        """Yield the words of each text."""
        for text in texts:
            spans = [match.span() for match in _TOKEN.finditer(text)]
            words = [text[start:end] for start, end in spans]
            # The lexicon writes "naive" and "fish" for "naïve" and "ﬁsh".
            plain = [_without_accents(word) for word in words]
            tags = [tag for _, tag in self._find_tags(plain)] if words else []
            for index in range(1, len(tags)):
                if (
                    tags[index] in ('VB', 'VBP', 'VBZ', 'JJ')
                    and tags[index - 1] in _BEFORE_NOUN
                    and self._ends_phrase(words, tags, index)
                    and not (
                        tags[index].startswith('VB')
                        and index + 1 < len(tags)
                        and tags[index - 1] in ('NN', 'NNS')
                    )
                    and _is_concrete(words[index])
                ):
                    tags[index] = 'NNS' if tags[index] == 'VBZ' else 'NN'
            yield [Word(start, end, tag) for (start, end), tag in zip(spans, tags)]

    @staticmethod
    def _ends_phrase(words: Sequence[str], tags: Sequence[str], index: int) -> bool:
        if index + 1 == len(tags):
            return True
        following = tags[index + 1]
        return following in ('IN', 'CC', 'TO', 'VBZ', 'VBP') or not words[index + 1][0].isalnum()


class SpacyTagger:
    """Any spaCy model that is installed and has a tagger.

    Args:
        model: A model's package or folder, or a loaded pipeline.

    Raises:
        ImportError: If spaCy is not installed.
        ValueError: If there is no such model, or it has no tagger.
    """

    def __init__(self, model: Any = 'en_core_web_sm') -> None:
        if isinstance(model, str):
            try:
                import spacy
            except ImportError:
                raise ImportError(
                    'the spaCy tagger needs spaCy and one of its models: pip install spacy'
                ) from None
            try:
                model = spacy.load(model, exclude=['parser', 'ner', 'lemmatizer'])
            except OSError:
                raise ValueError(
                    f'spaCy has no model {model!r}; install one (python -m spacy '
                    'download en_core_web_sm) or name a folder'
                ) from None
        if not {'tagger', 'attribute_ruler'} & set(model.pipe_names):
            raise ValueError(
                'this spaCy model has no tagger: its steps are '
                f'{", ".join(model.pipe_names) or "none"}'
            )
        self._model = model

    def __call__(self, texts: Iterable[str]) -> Iterator[list[Word]]:
        """Yield the words of each text."""
        for document in self._model.pipe(texts, batch_size=256):
            yield [
                Word(token.idx, token.idx + len(token), token.tag_)
                for token in document
                if not token.is_space
            ]


class NounFinder:
    """Finds the nouns of captions.

    Nouns with only a space or a hyphen between them are one ("tennis racket", "fire truck"). A
    noun that comes twice is found twice, each with its own span. A noun's category is its singular
    in lower case.

    Args:
        tagger: What names the parts of speech.
        concrete: Keep only what one can see: nouns whose last word is in
            `concrete_nouns`.
        join: Make one noun of several in a row.
    """

    def __init__(self, tagger: Tagger, concrete: bool = False, join: bool = True) -> None:
        self.tagger = tagger
        self.concrete = concrete
        self.join = join

    def can_read(self, text: str) -> bool:
        """Whether the tagger knows enough of a text's words; a tagger that doesn't say, knows."""
        return getattr(self.tagger, 'can_read', lambda text: True)(text)

    def __call__(self, texts: Iterable[str]) -> Iterator[tuple[Noun, ...]]:
        """Yield the nouns of each text in the order of their spans."""
        texts = list(texts)
        for text, words in zip(texts, self.tagger(texts), strict=True):
            yield tuple(self._nouns(text, words))

    def _nouns(self, text: str, words: Sequence[Word]) -> Iterator[Noun]:
        groups: list[list[Word]] = []
        skipped = [
            match.span()
            for chunk in re.finditer(r'\S+', text)
            for match in (_NO_WORDS.match(text, *chunk.span()),)
            if match
        ]
        skipped = sorted([*skipped, *(match.span() for match in _ENTITY.finditer(text))])
        before = ''
        for word in words:
            written, earlier = text[word.start : word.end], before
            before = written
            if not _is_noun(written, word.tag) or (
                written.lower() in _UNITS and earlier[-1:].isdigit()
            ):
                continue
            while skipped and skipped[0][1] <= word.start:
                skipped.pop(0)
            if skipped and skipped[0][0] < word.end:
                continue
            # Half of a word that was damaged, or of a code.
            if '\ufffd' in text[max(0, word.start - 1) : word.end + 1]:
                continue
            previous = groups[-1][-1] if groups else None
            if (
                self.join
                and previous is not None
                and text[previous.end : word.start] in (' ', '-', '')
            ):
                groups[-1].append(word)
            else:
                groups.append([word])
        for group in groups:
            start, end = group[0].start, group[-1].end
            last = group[-1]
            head = text[last.start : last.end].lower()
            base = singular(head, last.tag)
            if self.concrete and not {head, base, base.rpartition('-')[2]} & concrete_nouns():
                continue
            yield Noun(text[start:end], start, end, text[start : last.start].lower() + base)


def singular(word: str, tag: str = 'NNS') -> str:
    """Return the singular of a noun in lower case; of a plural by its tag only.

    It is textblob's where that is a word of WordNet's list (`concrete_nouns`) or of textblob's
    lexicon; where not ("ty" for "ties", "olife" for "olives"), the first word of either that
    English spelling allows, if there is one. Of the 34,295 nouns of the list, put into the plural
    by textblob, 33,880 come back as they were (by textblob alone 33,576). The others are mostly
    plurals that are in the list themselves ("braces") or have two singulars ("hankies").

    Args:
        word: The noun.
        tag: Its part of speech; only ``NNS`` and ``NNPS`` are changed.

    Raises:
        ImportError: If textblob is not installed.
    """
    word = word.lower()
    if tag not in ('NNS', 'NNPS') or word in concrete_nouns():
        return word
    try:
        from textblob.en import lexicon
        from textblob.en.inflect import singularize
    except ImportError:
        raise ImportError(
            f'finding nouns in captions needs textblob: {pip_install("prompts")}'
        ) from None

    def is_known(noun: str) -> bool:
        last = noun.rpartition('-')[2]
        return last in concrete_nouns() or lexicon.get(last) == 'NN'

    guess = _IRREGULAR.get(word) or singularize(word)
    if is_known(guess):
        return guess
    others = (
        word[: -len(ending)] + instead
        for ending, instead in _ENDINGS
        if word.endswith(ending) and len(word) > len(ending)
    )
    return next(filter(is_known, others), guess)


@cache
def concrete_nouns() -> frozenset[str]:
    """Return the singular nouns that name something one can see, from WordNet 3.0."""
    text = files(__package__).joinpath('concrete_nouns.txt').read_text(encoding='utf-8')
    return frozenset(line for line in text.splitlines() if not line.startswith('#'))


def _without_accents(word: str) -> str:
    if word.isascii():
        return word
    letters = unicodedata.normalize('NFKD', word)
    return ''.join(c for c in letters if not unicodedata.combining(c)) or word


def _is_noun(word: str, tag: str) -> bool:
    letters = sum(character.isalpha() for character in word)
    if (
        len(word) > LONGEST_WORD
        or any(character.isdigit() for character in word)
        or (not word.isascii() and _NO_SPACES.search(word))
    ):
        return False
    return (
        tag in ('NN', 'NNS', 'NNP', 'NNPS')
        and letters >= 2
        and word[0].isalnum()
        and word[0] not in _APOSTROPHES
        and word.lower() not in _NEVER
    )


def _is_in_name(words: Sequence[str], place: int) -> bool:
    """Whether one of the words that names may hold has capitalised ones about it."""
    if words[place].lower() not in _IN_NAMES:
        return False

    def is_capital(others: Iterable[str]) -> bool:
        own = (word for word in others if word.lower() not in _IN_NAMES)
        return next(own, '')[:1].isupper()

    begins = words[place][0].isupper() or is_capital(reversed(words[:place]))
    return begins and is_capital(words[place + 1 :])


def _is_concrete(word: str) -> bool:
    return word.lower() in concrete_nouns() or singular(word) in concrete_nouns()
