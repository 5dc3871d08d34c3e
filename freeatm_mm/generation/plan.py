"""Which sample stands in which shard, and from which noise it is generated.

The plan depends on the prompts and the settings only, so any number of workers, started any number
of times, agree on it without talking to each other.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freeatm_mm.addresses import file_here
from freeatm_mm.errors import InputError
from freeatm_mm.files import lines_of, open_regular, parse_json
from freeatm_mm.generation.limits import MAX_SAMPLES, MAX_SHARDS
from freeatm_mm.prompts import PromptRecord
from freeatm_mm.store import Sample, StoreError
from freeatm_mm.store.layout import MANIFEST, read_manifest
from freeatm_mm.store.sample import check_key

__all__ = [
    'Plan',
    'PromptFile',
    'StorePlan',
    'read_manifest_of_run',
    'sample_key',
    'sample_seed',
]

#: Bytes of the longest line of a prompt file.
MAX_LINE = 1 << 20


class PromptFile(Sequence[PromptRecord]):
    """The records of a prompt file by number, without holding them in memory.

    Opening reads the whole file once and checks every record, so that a bad line stops a run
    before it starts; afterwards a record is read from its place in the file.

    Args:
        path: A JSON Lines file of prompt records; one at an address is copied into the cache.
        limit: Use the first ``limit`` records only.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not a valid record, or no longer what it was when the file was
            opened; names the file and the line.
    """

    #: What a line becomes.
    record_class: type[PromptRecord] = PromptRecord

    def __init__(self, path: str | Path, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f'limit must be at least 1, got {limit}')
        self.path = file_here(path)
        self._place = self.path.absolute()  # whatever folder the process is in later
        self._offsets, self._checksums = array('q'), array('L')
        with os.fdopen(open_regular(self.path, 'prompt file'), 'rb') as file:
            lines = lines_of(file, self.path, MAX_LINE)
            while limit is None or len(self._offsets) < limit:
                offset = file.tell()
                number, line = next(lines, (0, None))
                if line is None:
                    break
                if line.strip():
                    try:
                        self._record(line)
                    except ValueError as error:
                        raise ValueError(f'{self.path}, line {number}: {error}') from None
                    self._offsets.append(offset)
                    self._checksums.append(zlib.crc32(line.encode()))

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> PromptRecord:  # type: ignore[override]  # no slices
        offset = self._offsets[index]
        with os.fdopen(open_regular(self._place, 'prompt file'), 'rb') as file:
            file.seek(offset)
            line = file.readline(MAX_LINE + 2).removeprefix(codecs.BOM_UTF8).rstrip(b'\r\n')
        if zlib.crc32(line) != self._checksums[index]:
            raise InputError(
                f'{self.path} was changed while it was in use: its record {index} (counted from 0) '
                'is another one by now; put the file back as it was, or use another folder'
            )
        return self._record(line)

    def _record(self, line: bytes | str) -> PromptRecord:
        """The record that stands in a line.

        Raises:
            ValueError: If it holds none.
        """
        try:
            content = parse_json(line)
        except ValueError as error:
            raise ValueError(f'it is not JSON: {error}') from None
        return self.record_class.from_json(content)


class Plan:
    """The samples of a run in order, and their division into shards.

    Prompt after prompt, ``images_per_prompt`` samples each; shard i holds samples
    ``i * samples_per_shard`` up to ``(i + 1) * samples_per_shard``.

    Args:
        prompts: The prompt records.
        images_per_prompt: Samples generated from each.
        samples_per_shard: Samples in each shard but the last.

    Attributes:
        num_samples: Samples in all.
        num_shards: Shards in all.
        fingerprint: Hex sha256 of the records, to tell whether a later run has the same.

    Raises:
        ValueError: If there are no prompts, a number is below 1, an id is unfit for a file name,
            or two records share one.
    """

    def __init__(
        self, prompts: Sequence[PromptRecord], images_per_prompt: int, samples_per_shard: int
    ) -> None:
        for name, value in (
            ('images_per_prompt', images_per_prompt),
            ('samples_per_shard', samples_per_shard),
        ):
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        if not len(prompts):
            raise ValueError(f'there are no prompts in {getattr(prompts, "path", "the list")}')
        self.prompts = prompts
        self._place = f'{prompts.path}: ' if hasattr(prompts, 'path') else ''
        self.images_per_prompt = images_per_prompt
        self.samples_per_shard = samples_per_shard
        self.num_samples = len(prompts) * images_per_prompt
        self.num_shards = -(-self.num_samples // samples_per_shard)
        if self.num_samples > MAX_SAMPLES or self.num_shards > MAX_SHARDS:
            raise ValueError(
                f'{self.num_samples:,} samples in {self.num_shards:,} shards are more '
                f'than a store may hold ({MAX_SAMPLES:,} and {MAX_SHARDS:,})'
            )
        self.fingerprint = self._check(prompts)

    def shard(self, index: int) -> list[tuple[PromptRecord, int]]:
        """The samples of a shard: each the record to generate and the number of its image."""
        first = index * self.samples_per_shard
        last = min(first + self.samples_per_shard, self.num_samples)
        each = self.images_per_prompt
        records = {
            number: self.prompts[number] for number in range(first // each, (last - 1) // each + 1)
        }
        return [(records[number // each], number % each) for number in range(first, last)]

    def keys(self, shard: int) -> list[str]:
        """The keys of a shard's samples, in order."""
        return [
            sample_key(record.id, number, self.images_per_prompt)
            for record, number in self.shard(shard)
        ]

    def _check(self, prompts: Iterable[PromptRecord]) -> str:
        """Check the ids and return the fingerprint."""
        digest = hashlib.sha256()
        # Eight bytes a record, where a set of the ids of millions of records would take gigabytes.
        hashes = array('Q')
        for record in prompts:
            try:
                check_key(sample_key(record.id, self.images_per_prompt - 1, self.images_per_prompt))
            except StoreError as error:
                raise ValueError(
                    f"{self._place}the prompt id {record.id!r} can't be used: {error}"
                ) from None
            text = json.dumps(record.to_json(), ensure_ascii=False, sort_keys=True).encode()
            digest.update(text + b'\n')
            hashes.append(_hash64(record.id))
        order = np.argsort(hashes, kind='stable')
        ordered = np.asarray(hashes)[order]
        for place in np.flatnonzero(ordered[1:] == ordered[:-1]):
            first, second = (self.prompts[int(number)].id for number in order[place : place + 2])
            if first == second:
                raise ValueError(
                    f'{self._place}prompts {order[place]} and {order[place + 1]} '
                    f'(counted from 0) have the same id {first!r}; ids must be '
                    'unique'
                )
        return digest.hexdigest()


class StorePlan:
    """The samples that a store should hold, from its prompts alone: it generates nothing.

    Args:
        path: The store's folder.
        prompts: The prompt file that it was generated from.

    Raises:
        StoreError: If ``store.json`` isn't readable or says nothing of prompts.
        ValueError: If these are not the prompts that the store was generated from.
    """

    def __init__(self, path: str | Path, prompts: str | Path) -> None:
        manifest = read_manifest_of_run(path)
        try:
            self.config: dict[str, Any] = dict(manifest['config'])
            self.samples_per_shard: int = manifest['samples_per_shard']
            self.num_samples: int = self.config['num_samples']
            each, fingerprint = self.config['images_per_prompt'], self.config['prompts_sha256']
            records = PromptFile(prompts, self.num_samples // each)
        except (KeyError, TypeError):
            raise StoreError(
                f"{Path(path) / MANIFEST} doesn't say from which prompts the store was generated"
            ) from None
        self.plan = Plan(records, each, self.samples_per_shard)
        if self.plan.fingerprint != fingerprint:
            raise ValueError(
                f'the prompts in {prompts} are not those that {path} was generated from'
            )

    def keys(self, shard: int) -> list[str]:
        """The keys that a shard holds, in order."""
        return self.plan.keys(shard)

    def generate(self, shard: int, rows: Sequence[int], notes: dict[str, Any]) -> dict[int, Sample]:
        """Refused: generating takes a `ShardSource`."""
        raise StoreError('samples can only be generated again with their pipeline')


def read_manifest_of_run(path: str | Path) -> dict[str, Any]:
    """Read the records of a store that a run made.

    Raises:
        StoreError: If there are none, or they can't be read.
    """
    try:
        return read_manifest(path)
    except FileNotFoundError:
        raise StoreError(
            f'{path}/{MANIFEST} is missing, and with it the settings of the '
            'run: start the command that made the store once more with the same arguments'
        ) from None


def sample_key(prompt_id: str, image_number: int, images_per_prompt: int) -> str:
    """Name of a sample in the store: the prompt's id, and the image's number where several."""
    return prompt_id if images_per_prompt == 1 else f'{prompt_id}-{image_number}'


def sample_seed(run_seed: int, prompt_id: str, image_number: int, stage: int = 1) -> int:
    """The seed of a sample's own noise: a hash, so that samples don't depend on each other.

    Args:
        run_seed: The run's.
        prompt_id: The prompt's.
        image_number: Number of the image among those of the prompt.
        stage: Stage of a cascade, from 1; each has noise of its own.

    Returns:
        An integer from 0 to 2^63 - 1.
    """
    further = f'/stage {stage}' if stage > 1 else ''
    return _hash64(f'{run_seed}/{prompt_id}/{image_number}{further}') >> 1


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big')
