"""BERT's tokenizer, as LAVIS sets it up, that counts the texts it cuts."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from transformers import BertTokenizer

from freeatm_mm.errors import InputError, MissingFileError, one_sentence
from freeatm_mm.files import read_text
from freeatm_mm.packaged import own_or_packaged

__all__ = ['CountingTokenizer', 'load_tokenizer', 'make_vocabulary', 'no_nouns', 'no_texts']

_MOST_BYTES = 1 << 26  # of a vocabulary
_MOST_WORDS = 1 << 17  # whose tokens are remembered
# Of what BERT reads as words of their own; control characters, which it drops, part none.
_WORD = re.compile(r'[!-/:-@\[-`{-~]|(?:[\x0b\x0c\x1c-\x1f\x85]|[^\s!-/:-@\[-`{-~])+')
_SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')


def no_texts() -> Counter:
    """The counts of `CountingTokenizer` before its first text."""
    return Counter(texts=0, empty=0, truncated=0, lost_tokens=0)


def no_nouns() -> Counter:
    """The counts of nouns that have masks, before the first."""
    return Counter(nouns=0, nouns_not_in_text=0, nouns_out_of_view=0)


class CountingTokenizer(BertTokenizer):
    """transformers' `BertTokenizer`, same tokens, that counts its texts and what it cuts off.

    Attributes:
        counts: `texts`, `empty` (texts without any token), `truncated` (texts that were cut) and
            `lost_tokens`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.counts = no_texts()
        self._words: dict[str, list[int]] = {}

    @cached_property
    def continuing(self) -> frozenset[int]:
        """The tokens that continue the word before them."""
        vocabulary = self.get_vocab()
        return frozenset(vocabulary[token] for token in vocabulary if token.startswith('##'))

    def ids_of(self, word: str) -> list[int]:
        """The tokens of a word, which is not counted as a text; none if one of them is unknown."""
        ids = self._ids_of(word)
        return [] if self.unk_token_id in ids else ids  # [UNK] may be any word

    def _ids_of(self, word: str) -> list[int]:
        if word not in self._words:
            if len(self._words) >= _MOST_WORDS:
                self._words.clear()
            self._words[word] = self.convert_tokens_to_ids(self.tokenize(word))
        return self._words[word]

    def spans_of_tokens(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Which part of a text each of its tokens is in.

        Args:
            text: The text, which is not counted.
            spans: Start and end of each part. A word that is only partly in one is.

        Returns:
            For [CLS] and each token of the text, however long it is, the number of its part; -1
            outside all.
        """
        found = [-1]
        for word in _WORD.finditer(text):
            inside = (
                number
                for number, (start, end) in enumerate(spans)
                if start < word.end() and word.start() < end
            )
            found += [next(inside, -1)] * len(self._ids_of(word[0]))
        return found

    def prepare_for_model(self, ids, *args, **kwargs):
        """One text's tokens, as there; counts the text."""
        self.counts['texts'] += 1
        self.counts['empty'] += not ids
        return super().prepare_for_model(ids, *args, **kwargs)

    def truncate_sequences(self, ids, pair_ids=None, num_tokens_to_remove=0, **kwargs):
        """Cut a text, as there; count what is cut."""
        if num_tokens_to_remove > 0:
            self.counts['truncated'] += 1
            self.counts['lost_tokens'] += num_tokens_to_remove
        return super().truncate_sequences(ids, pair_ids, num_tokens_to_remove, **kwargs)


def load_tokenizer(name: str | Path) -> CountingTokenizer:
    """BERT's tokenizer with BLIP's two further tokens, [DEC] and [ENC].

    Args:
        name: Folder that holds `vocab.txt`, or a name that transformers finds in its cache. One
            below `configs/` that is not here is the one that comes with the package.

    Returns:
        The tokenizer, with `enc_token_id` set as LAVIS does.

    Raises:
        MissingFileError: If there is none; the network isn't asked.
        InputError: If its vocabulary can't be used.
    """
    name = own_or_packaged(name)
    if Path(name).is_dir():
        if not os.path.lexists(Path(name) / 'vocab.txt'):
            raise MissingFileError(f'the folder {name} holds no tokenizer: vocab.txt is missing')
        words: dict[str, int] = {}
        # Lines as transformers reads them, which numbers a word by its last one.
        text = io.StringIO(read_text(Path(name) / 'vocab.txt', _MOST_BYTES), newline=None)
        for number, line in enumerate(text, 1):
            first = words.setdefault(line.rstrip('\n'), number)
            if first != number:
                raise InputError(
                    f'{Path(name) / "vocab.txt"} holds {line.rstrip()!r} twice, in lines {first} '
                    f'and {number}: tokens would share a number; remove one of them'
                )
        lacking = [word for word in _SPECIAL if word not in words]
        if lacking:
            raise InputError(
                f'{Path(name) / "vocab.txt"} is no vocabulary of BERT: it lacks '
                f'{", ".join(lacking)}'
            )
    try:
        if '://' in str(name) or Path(name).is_file():  # transformers would fetch an address
            raise ValueError('neither a folder nor a name')
        tokenizer = CountingTokenizer.from_pretrained(str(name), local_files_only=True)
    except Exception as error:  # of many kinds: no folder, an address, half a cache
        if Path(name).is_dir():
            raise InputError(
                f"the tokenizer in {name} can't be read ({one_sentence(error)[:200]})"
            ) from None
        raise MissingFileError(
            f'there is no tokenizer {name}: it is neither a folder with vocab.txt nor in '
            "transformers' cache; set model.tokenizer to a folder with BERT's vocab.txt"
        ) from None
    tokenizer.add_special_tokens({'bos_token': '[DEC]'})
    tokenizer.add_special_tokens({'additional_special_tokens': ['[ENC]']})
    tokenizer.enc_token_id = tokenizer.additional_special_tokens_ids[0]
    return tokenizer


def make_vocabulary(texts: Iterable[str]) -> list[str]:
    """A small vocabulary for `vocab.txt` that knows every word of some texts.

    The language modelling head computes one score for each word of the vocabulary at each place of
    a text: with a hundred words instead of 30,522 a small model's step is several times cheaper.

    Args:
        texts: The texts, as the caption processor hands them on.

    Returns:
        BERT's special tokens, then the words and punctuation marks in alphabetical order.
    """
    words = {word for text in texts for word in re.findall(r'\w+|[^\w\s]', text.lower())}
    return [*_SPECIAL, *sorted(words)]
