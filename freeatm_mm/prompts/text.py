"""Text from the web as a person would read it: entities, markup, marks that can't be seen."""

from __future__ import annotations

import html
import re
import unicodedata

__all__ = ['clean_text', 'has_half_character', 'without_invisible']

# Entities with their semicolon, and the commonest as tokenizers and sloppy pages leave them.
_ENTITY = re.compile(r'&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});')
_TORN_ENTITY = re.compile(r'&\s?(amp|quot|lt|gt|nbsp|apos|#0?39)(?:\s?;|(?![A-Za-z0-9=]))')
_PERSON = re.compile(r'<\s?PERSON\s?>')
_COMMENT = re.compile(r'<!--[^<>]{0,1000}-->|<!\[CDATA\[|\]\]>|<\?xml[^<>]{0,200}\?>')
_INLINE = (
    'a abbr b bdi bdo big cite code em font i ins kbd mark q s small span strike strong sub '
    'sup tt u'
).split()
_BLOCK = (
    'article blockquote body br center dd del div dl dt figcaption figure h1 h2 h3 h4 h5 h6 '
    'head hr html iframe img input label li link meta ol p pre script section style table '
    'tbody td th thead tr ul'
).split()
_TAG = re.compile(rf'</?({"|".join(_INLINE + _BLOCK)})(?:\s[^<>]{{0,1000}})?\s?/?>', re.IGNORECASE)
_ESCAPED_BREAK = re.compile(r'\\[nrt]')
_FOLDER = re.compile(r'\b[A-Za-z]:\\')
_SIC = re.compile(r'\s?\[\s?sic[.!]?\s?\]', re.IGNORECASE)
# Zero-width spaces, joiners of words, soft hyphens, byte-order marks, marks of direction, tags,
# interlinear annotations, variation of Mongolian, and other signs without an image.
_INVISIBLE = re.compile(
    '[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f'
    '\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-'
    '\U000e0fff]'
)
# Joiners mean something between letters of some scripts and between emoji, not beside ASCII.
_JOINER = re.compile('(?<![^\x00-\x7f\\s])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f\\s])')
_CONTROL = re.compile('[\x00-\x1f\x7f-\x9f]')


def clean_text(text: str) -> str:
    """Return a text with its HTML read, in NFC, without what can't be seen, on one line.

    Entities are unescaped (twice: many pages escaped them twice), tags of HTML are left out,
    CC12M's ``<PERSON>`` is "person", ``[sic]`` goes, control characters and spaces in a row become
    one space. Spans of nouns are those of the text that comes back.
    """
    if '&' in text:
        for _ in range(2):
            text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
            text = _TORN_ENTITY.sub(lambda match: html.unescape(f'&{match[1]};'), text)
    if '<' in text:
        text = _PERSON.sub('person', text)
        text = _COMMENT.sub(' ', text)
        text = _TAG.sub(lambda match: '' if match[1].lower() in _INLINE else ' ', text)
    if '\\' in text:
        if not _FOLDER.search(text):
            text = _ESCAPED_BREAK.sub(' ', text)
        text = text.replace('\\"', '"').replace("\\'", "'")
    if '[' in text:
        text = _SIC.sub('', text)
    if not text.isascii():
        text = without_invisible(text)
        text = unicodedata.normalize('NFC', text)
    return ' '.join(_CONTROL.sub(' ', text).split())


def without_invisible(text: str) -> str:
    """Return a text without zero-width signs, marks of direction and the like."""
    return text if text.isascii() else _JOINER.sub('', _INVISIBLE.sub('', text))


def has_half_character(text: str) -> bool:
    """Whether a text holds half a character (a lone surrogate), which no file can keep."""
    return not text.isascii() and any('\ud800' <= character <= '\udfff' for character in text)
