"""Stores made of other stores: merged, split and filtered.

Samples are copied as they stand, image and masks byte for byte, without decoding either. What is
made depends on the sources and the arguments only, and a copy that was stopped goes on where it
was.
"""

from __future__ import annotations

import hashlib
import logging
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from freeatm_mm.files import parse_json
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.reader import Store
from freeatm_mm.store.sample import RawSample, check_key
from freeatm_mm.store.writer import StoreWriter

__all__ = [
    'Condition',
    'content_digest',
    'copy_samples',
    'filter_store',
    'merge_stores',
    'parse_condition',
    'split_store',
]

_LOG = logging.getLogger(__name__)
# What the JSON of a sample has; below meta there may be anything.
_FIELDS = {
    'caption': None,
    'nouns': ('text', 'start', 'end', 'category', 'lo', 'hi'),
    'image': ('width', 'height'),
    'masks': ('width', 'height'),
    'meta': None,
}

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    '==': operator.eq,
    '!=': operator.ne,
    '<=': operator.le,
    '>=': operator.ge,
    '<': operator.lt,
    '>': operator.gt,
}
_CONDITION = re.compile(
    r'(?:(any|all|none):)?([A-Za-z_][\w.#]*)\s*(==|!=|<=|>=|<|>)\s*(.+)', re.DOTALL
)  # a value that is text may have several lines


@dataclass(frozen=True)
class Condition:
    """A comparison with a value in a sample's JSON.

    A value that isn't there is like one that is ``null``: unequal to everything but ``null``, and
    neither smaller nor larger than anything. So ``meta.x!=true`` holds where there is no ``x``. So
    are values of different types, but that integers and other numbers are compared. A list that
    isn't there has the length 0; of an empty list, ``all`` and ``none`` hold, and ``any`` holds for
    ``!=`` alone.

    Args:
        path: Names from the top of the JSON to the value, such as ``('meta', 'steps')``. A list on
            the way stands for each of its elements; ``#`` at the end is the length of a list.
        operator: One of ``== != < <= > >=``.
        value: A number, text, truth value or ``None``.
        quantifier: For how many of the values it must hold: ``'any'``, ``'all'`` or ``'none'``.
    """

    path: tuple[str, ...]
    operator: str
    value: Any
    quantifier: str = 'any'

    def __call__(self, info: Mapping[str, Any]) -> bool:
        """Whether it holds for a sample with this JSON."""
        holds = [self._compare(value) for value in _values(info, self.path)]
        if not holds and self.quantifier == 'any':
            return self.operator == '!=' and self.value is not None
        if self.quantifier == 'none':
            return not any(holds)
        return all(holds) if self.quantifier == 'all' else any(holds)

    def __str__(self) -> str:
        return f'{self.quantifier}:{".".join(self.path)}{self.operator}{self.value!r}'

    def _compare(self, found: Any) -> bool:
        numbers = all(
            isinstance(value, (int, float)) and not isinstance(value, bool)
            for value in (found, self.value)
        )
        if not numbers and type(found) is not type(self.value):
            return self.operator == '!='
        try:
            return bool(_OPERATORS[self.operator](found, self.value))
        except TypeError:
            return False


def parse_condition(text: str) -> Condition:
    """Read a condition such as ``meta.steps>=30``, ``nouns.category==dog`` or ``nouns.#>=2``.

    ``all:meta.mask_trust.overlap<0.5`` and ``none:nouns.category==person`` say for how many;
    without either, one is enough. The value is JSON, or else text.

    Raises:
        ValueError: If it is no condition, or of what no sample has.
    """
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f'{text!r} is no condition; examples: meta.steps>=30, '
            'nouns.category==dog, all:nouns.hi>0.1, nouns.#>=2'
        )
    quantifier, path, sign, value = match.groups()
    names = tuple(path.split('.'))
    if '' in names or '#' in names[:-1]:
        raise ValueError(
            f'{path!r} in {text!r} is no path: names with single dots between, and # '
            'at the end only'
        )
    try:
        parsed = parse_json(value.encode())
        if isinstance(parsed, (list, dict)):
            parsed = value
    except ValueError:
        if value[0] in '+-.0123456789' and _is_infinite(value):
            raise ValueError(f'{value!r} in {text!r} is larger than any number') from None
        parsed = value
    _check_path(names, parsed)
    return Condition(names, sign, parsed, quantifier or 'any')


def _is_infinite(text: str) -> bool:
    try:
        return math.isinf(float(text))
    except ValueError:
        return False


def _values(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """The values that a path leads to.

    Several where it passes through lists, `None` for what is not there.
    """
    if not path:
        yield value
    elif path[0] == '#':
        yield len(value) if isinstance(value, list) else 0 if value is None else None
    elif isinstance(value, list):
        for element in value:
            yield from _values(element, path)
    else:
        yield from _values(value.get(path[0]) if isinstance(value, dict) else None, path[1:])


def filter_store(
    path: str | Path,
    out: str | Path,
    conditions: Sequence[Condition],
    *,
    samples_per_shard: int | None = None,
) -> int:
    """Copy the samples for which all conditions hold.

    Args:
        path: The store.
        out: The new store's folder.
        conditions: What to keep; see `parse_condition`.
        samples_per_shard: Of the new store; the default is the old one's.

    Returns:
        Number of samples kept.

    Every sample is read and checked whole, those that are left out as well: a damaged one would
    otherwise be left out without a word.

    Raises:
        StoreError: If nothing is kept, or the store can't be read.
    """
    store = Store(path)
    kept, absent = [], {condition.path for condition in conditions}
    for index in range(len(store)):
        info = store.read(index).info
        if all(condition(info) for condition in conditions):
            kept.append(index)
        absent -= {
            path for path in absent if any(value is not None for value in _values(info, path))
        }
    for names in sorted(absent):
        _LOG.warning('no sample of %s has %s', path, '.'.join(names))
    chosen = np.array(kept, np.int64)
    if not len(chosen):
        raise StoreError(f'no sample of {path} ({len(store)}) matches; {out} was not written')
    made_by = {'filtered_by': [str(condition) for condition in conditions]}
    return copy_samples([(store, chosen, '')], out, made_by, samples_per_shard)


def _check_path(names: Sequence[str], value: Any) -> None:
    """Refuse a path that leads nowhere in any sample, which ``!=`` would keep all samples for.

    Raises:
        ValueError: If it does.
    """
    first, *rest = names
    fields = _FIELDS.get(first)
    if first not in _FIELDS:
        raise ValueError(f'{".".join(names)!r}: a sample has no {first!r} but {", ".join(_FIELDS)}')
    if fields is not None and not rest and value is not None:
        raise ValueError(
            f'{first!r} is no single value: compare one of its own, such as {first}.{fields[0]} '
            f'({", ".join(fields)})'
        )
    if fields is not None and rest and rest[0] not in (*fields, '#'):
        raise ValueError(f'{".".join(names)!r}: {first} has no {rest[0]!r} but {", ".join(fields)}')


def split_store(
    path: str | Path,
    parts: Mapping[str | Path, float],
    *,
    seed: int = 0,
    samples_per_shard: int | None = None,
) -> dict[str, int]:
    """Share the samples of a store out among several, each sample to one.

    A sample's part follows from its key and the seed alone: it stays where it is when others are
    added to the store, and all images of a store that hold the same key in another split go the
    same way.

    Args:
        path: The store.
        parts: Folder of each part -> its share; the shares add up to 1.
        seed: Another seed shares out otherwise.
        samples_per_shard: Of the new stores; the default is the old one's.

    Returns:
        Folder of each part -> its number of samples.

    Raises:
        ValueError: If the shares are not positive or don't add up to 1.
        StoreError: If a part would be empty, or the store can't be read.
    """
    shares = np.array(list(parts.values()), float)
    if not len(shares) or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f'the shares must be above 0 and add up to 1, got {list(parts.values())}')
    store = Store(path)
    places = np.array([_fraction(seed, key) for key in store.sample_keys()])
    part_of = np.searchsorted(np.cumsum(shares)[:-1], places, side='right')
    for number, folder in enumerate(parts):
        if not (part_of == number).any():
            raise StoreError(f'the part {folder} of {path} would be empty')
    return {
        str(folder): copy_samples(
            [(store, np.flatnonzero(part_of == number), '')],
            folder,
            {'split': {'seed': seed, 'shares': shares.tolist(), 'part': number}},
            samples_per_shard,
        )
        for number, folder in enumerate(parts)
    }


def merge_stores(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    prefixes: Sequence[str] | None = None,
    samples_per_shard: int | None = None,
) -> int:
    """Put the samples of several stores one after the other into one.

    Args:
        paths: The stores.
        out: The new store's folder.
        prefixes: One for each store, put before its samples' keys (``'a'``: ``a-000001``), for
            stores that have keys in common.
        samples_per_shard: Of the new store; the default is the first one's.

    Returns:
        Number of samples.

    Raises:
        ValueError: If there are no stores, or not one prefix for each.
        StoreError: If two samples would have one key, naming it, or a store can't be read.
    """
    if not paths:
        raise ValueError('there are no stores to merge')
    if prefixes is not None and (len(prefixes) != len(paths) or len(set(prefixes)) < len(prefixes)):
        raise ValueError(
            f'{len(paths)} stores need as many different prefixes, got {list(prefixes)}'
        )
    stores = [Store(path) for path in paths]
    given: Sequence[str | None] = prefixes or [None] * len(paths)
    prefixes = ['' if prefix is None else f'{prefix}-' for prefix in given]
    seen: dict[bytes, int] = {}
    hashes = np.concatenate(
        [_hashes(prefix, store.sample_keys()) for prefix, store in zip(prefixes, stores)]
    )
    if len(np.unique(hashes)) < len(hashes):  # look closer: which, or did hashes only collide?
        for number, (prefix, store) in enumerate(zip(prefixes, stores)):
            for key in store.sample_keys():
                name = f'{prefix}{key}'.encode()
                if name in seen:
                    raise StoreError(
                        f'{paths[seen[name]]} and {paths[number]} both have a sample '
                        f'{name.decode()!r}; give prefixes to keep both (--prefixes A B)'
                    )
                seen[name] = number
    sources = [(store, np.arange(len(store)), prefix) for prefix, store in zip(prefixes, stores)]
    return copy_samples(sources, out, {'merged': len(stores)}, samples_per_shard)


def copy_samples(
    sources: Sequence[tuple[Store, np.ndarray, str]],
    out: str | Path,
    made_by: dict[str, Any],
    samples_per_shard: int | None = None,
) -> int:
    """Copy chosen samples of stores into a new one, in order.

    Args:
        sources: Stores, each with the numbers of its samples and what to put before their keys.
        out: The new store's folder.
        made_by: What to write into its ``store.json`` besides where the samples come from.
        samples_per_shard: Of the new store; the default is that of the first source.

    Returns:
        Number of samples.

    Raises:
        StoreError: If a sample can't be read or ``out`` holds another store.
    """
    for store, _, _ in sources:
        if os.path.realpath(out) == os.path.realpath(store.path):
            raise StoreError(f"{out} is one of the sources; a store isn't changed in place")
    each = (
        sources[0][0].manifest['samples_per_shard']
        if samples_per_shard is None
        else samples_per_shard
    )
    total = sum(len(numbers) for _, numbers, _ in sources)
    digest = hashlib.sha256()
    for _, numbers, _ in sources:
        digest.update(np.ascontiguousarray(numbers, '<i8').tobytes())
    config = made_by | {
        'num_samples': total,
        'selection_sha256': digest.hexdigest(),
        'sources': [
            {
                'samples': len(store),
                'config': store.config,
                'prefix': prefix,
                'shards_sha256': content_digest(store),
            }
            for store, _, prefix in sources
        ],
    }
    writer = StoreWriter(out, each, config)
    wanted = (
        (store, int(number), prefix) for store, numbers, prefix in sources for number in numbers
    )
    for shard in range(-(-total // each)):
        part = list(islice(wanted, each))
        if not writer.is_complete(shard):
            writer.write_shard(shard, _copies(part))
    writer.finish(total)
    return total


def _copies(part: Iterable[tuple[Store, int, str]]) -> Iterator[RawSample]:
    for store, number, prefix in part:
        raw = store.read(number)
        key = prefix + raw.key
        check_key(key)  # a prefix may make it too long
        yield raw._replace(key=key)


def content_digest(store: Store) -> str:
    """Return a hash of all a store's shards, from their recorded checksums."""
    text = ''.join(entry['sha256'] for entry in store.manifest['shards'])
    return hashlib.sha256(text.encode()).hexdigest()


def _hashes(prefix: str, keys: Iterable[str]) -> np.ndarray:
    """64-bit hashes of keys; 8 bytes a sample where the keys of millions would take gigabytes."""
    return np.fromiter((_hash64(prefix + key) for key in keys), np.uint64)


def _fraction(seed: int, key: str) -> float:
    """A number from 0 to 1 that follows from seed and key."""
    return _hash64(f'{seed}/{key}') / 2**64


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big')
