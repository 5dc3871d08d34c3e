"""Writing a store, shard by shard, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import tarfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from freeatm_mm.addresses import local_folder
from freeatm_mm.errors import counted
from freeatm_mm.files import parse_json
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.layout import (
    BLOCK,
    ENTRY_FIELDS,
    MANIFEST,
    SHARD_FORMAT,
    STORE_FORMAT,
    TOTALS,
    VERSION,
    config_digest,
    dump_json,
    dump_manifest,
    file_sha256,
    index_dtype,
    left_out_keys,
    load_manifest,
    mask_bytes,
    name_differences,
    planned_samples,
    read_manifest,
    shard_name,
)
from freeatm_mm.store.locking import locked_write
from freeatm_mm.store.sample import (
    RawSample,
    Sample,
    check_info,
    empty_masks,
    encode_sample,
    to_file,
)
from freeatm_mm.store.tar import MAX_JSON, MAX_SAMPLE

__all__ = ['StoreWriter', 'write_store']

_LOG = logging.getLogger(__name__)
_TAR_RECORD = 10240  # what tar pads an archive to


class StoreWriter:
    """Writes the shards of a store; several workers may write different shards of one store.

    A shard appears under its name only when it is whole: tar, then index, then the shard's JSON,
    which says that it is there. The same samples give the same bytes. When all shards are there,
    `finish` writes ``store.json``, and `freeatm_mm.store.Store` can open the folder.

    Args:
        path: The store's folder; made if missing.
        samples_per_shard: Samples in each shard but the last.
        config: What makes the samples what they are, JSON values only. It is written to
            ``store.json``; going on with another configuration is refused.

    Raises:
        StoreError: If the folder holds a store made with another configuration, or no store but
            something in its place.
    """

    def __init__(
        self, path: str | Path, samples_per_shard: int, config: dict[str, Any] | None = None
    ) -> None:
        if samples_per_shard < 1:
            raise StoreError(f'samples_per_shard must be at least 1, got {samples_per_shard}')
        self.path = local_folder(path).absolute()
        self.samples_per_shard = samples_per_shard
        # As it will be read: no tuples, names that are text. Refused before any work is done.
        self.config: dict[str, Any] = parse_json(dump_json(dict(config or {})))
        self._digest = config_digest(self.config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            what = 'a link that leads nowhere' if self.path.is_symlink() else 'a file'
            raise StoreError(
                f"{self.path} can't be a store: it is {what}, or lies in one"
            ) from None
        if not self._check_existing():
            self._write_manifest(complete=False, shards=[])

    def shard_manifest(self, shard_index: int) -> dict[str, Any] | None:
        """The JSON of a shard that is whole and belongs to this store, else ``None``.

        A shard whose files are missing or have another size than its JSON says is logged and
        counted as not there, so that it is written again.

        Raises:
            StoreError: If the shard was made with another configuration.
        """
        base = self.path / shard_name(shard_index)
        try:
            manifest = load_manifest(base.with_suffix('.json'), SHARD_FORMAT)
        except FileNotFoundError:
            return None
        except StoreError as error:
            _LOG.warning('%s; the shard will be written again', error)
            return None
        if manifest['name'] != base.name:
            _LOG.warning(
                '%s.json is that of %s; the shard will be written again', base, manifest['name']
            )
            return None
        if manifest['config_sha256'] != self._digest:
            raise StoreError(
                f'{base.name} in {self.path} was made with another configuration '
                'than store.json states; remove it or use another folder'
            )
        for ending, size in (('.tar', manifest['bytes']), ('.index.npy', manifest['index_bytes'])):
            file = base.with_suffix(ending)
            if not file.is_file() or file.stat().st_size != size:
                _LOG.warning(
                    '%s is missing or not of %d bytes; the shard will be written again', file, size
                )
                return None
        return manifest

    def is_complete(self, shard_index: int) -> bool:
        """Whether a shard is whole and belongs to this store (see `shard_manifest`)."""
        return self.shard_manifest(shard_index) is not None

    def write_shard(
        self,
        shard_index: int,
        samples: Iterable[Sample | RawSample],
        notes: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write one shard, holding one sample at a time in memory.

        Args:
            shard_index: Number of the shard, from 0.
            samples: The samples in order, at least one and at most ``samples_per_shard``; those
                that come encoded from another store are copied as they are.
            notes: What to remember about how the shard was made, JSON values only. The samples
                that it lists under ``left_out``, each with its ``key``, need not be there, not
                even if these are all; the rest binds nothing.

        Returns:
            The shard's JSON: ``samples``, ``nouns``, ``bytes``, ``image_bytes``, ``mask_bytes``...

        Raises:
            StoreError: If a sample can't be stored, two have one key, there are none or too many,
                or another process is writing this shard. What ``samples`` raises passes through.
                In each case the shard stays as it was.
        """
        name = shard_name(shard_index)
        base = self.path / name
        # The JSON's lock is held until all three files are there: a worker that came between the
        # tar and the JSON would take the shard for missing, and write it a second time.
        with locked_write(base.with_suffix('.json'), wait=False) as note:
            self._check_existing()  # begun anew with other settings, before there was a shard?
            with locked_write(base.with_suffix('.tar'), wait=False) as file:
                shard = _ShardFile(file)
                for sample in samples:
                    if len(shard.rows) == self.samples_per_shard:
                        raise StoreError(
                            f'{name} was given more than its '
                            f'{counted(self.samples_per_shard, "sample")}'
                        )
                    shard.add(sample if isinstance(sample, RawSample) else encode_sample(sample))
                # Notes may name, once all is generated, the samples that are left out.
                if not shard.rows and not left_out_keys(notes):
                    raise StoreError(f'{name} was given no samples')
                shard.close()
            return self._write_index(
                note, name, shard.index(), shard.position, shard.hash.hexdigest(), notes
            )

    def adopt_shard(
        self, shard_index: int, rows: np.ndarray, notes: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write index and JSON for a tar that lies in the folder already.

        Args:
            shard_index: Number of the shard.
            rows: Its index, from `freeatm_mm.store.tar.scan_shard`.
            notes: As for `write_shard`.

        Returns:
            The shard's JSON.
        """
        name = shard_name(shard_index)
        tar = self.path / f'{name}.tar'
        with locked_write(tar.with_suffix('.json')) as note:
            return self._write_index(note, name, rows, tar.stat().st_size, file_sha256(tar), notes)

    def _write_index(
        self,
        note: BinaryIO,
        name: str,
        index: np.ndarray,
        size: int,
        digest: str,
        notes: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """Write a shard's index, and its JSON into the open file ``note``; returns the JSON."""
        base = self.path / name
        buffer = io.BytesIO()
        np.save(buffer, index, allow_pickle=False)
        with locked_write(base.with_suffix('.index.npy')) as file:
            file.write(buffer.getvalue())
        manifest = {
            'format': SHARD_FORMAT,
            'version': VERSION,
            'name': name,
            'samples': len(index),
            'nouns': int(index['nouns'].sum()),
            'bytes': size,
            'image_bytes': int(index['image_size'].sum()),
            'mask_bytes': mask_bytes(index),
            'sha256': digest,
            'index_bytes': buffer.tell(),
            'index_sha256': hashlib.sha256(buffer.getvalue()).hexdigest(),
            'config_sha256': self._digest,
            'notes': notes or {},
        }
        note.write(dump_manifest(manifest))
        return manifest

    def finish(self, num_samples: int) -> list[int]:
        """Write the store's manifest if every shard is there.

        Each worker calls this when its own shards are done; the last one finishes the store.

        Args:
            num_samples: Samples in the whole store, at least 1.

        Returns:
            The numbers of the shards still missing; empty when the store is finished.

        Raises:
            StoreError: If the store would be empty, or shards don't hold what the plan says.
        """
        if num_samples < 1:
            raise StoreError(f'{self.path} would be an empty store: there are no samples')
        count = -(-num_samples // self.samples_per_shard)
        shards, missing = [], []
        for index in range(count):
            manifest = self.shard_manifest(index)
            if manifest is None:
                missing.append(index)
                continue
            expected = min(self.samples_per_shard, num_samples - index * self.samples_per_shard)
            if planned_samples(manifest) != expected:
                raise StoreError(
                    f'{manifest["name"]} in {self.path} holds '
                    f'{counted(planned_samples(manifest), "sample")} where {expected} should be'
                )
            shards.append({field: manifest[field] for field in ENTRY_FIELDS if field in manifest})
        if (self.path / f'{shard_name(count)}.json').exists():
            raise StoreError(
                f'{self.path} holds more shards than {counted(num_samples, "sample")} would take; '
                'use another folder'
            )
        if not missing:
            self._write_manifest(complete=True, shards=shards)
        return missing

    def _check_existing(self) -> bool:
        """Whether the folder holds this store already; raises if it holds another one."""
        try:
            manifest = read_manifest(self.path)
        except FileNotFoundError:
            return False
        found = manifest['config'] | {'samples_per_shard': manifest['samples_per_shard']}
        wanted = self.config | {'samples_per_shard': self.samples_per_shard}
        differences = name_differences(found, wanted)
        if differences and not manifest.get('complete') and not any(self.path.glob('shard-*')):
            return False  # begun with settings that generated nothing
        if differences:
            raise StoreError(
                f'{self.path} holds a store made otherwise: {"; ".join(differences)}. '
                'Use the same settings to go on, or another folder'
            )
        return True

    def _is_recorded(self, shards: list[dict[str, Any]]) -> bool:
        """Whether ``store.json`` is finished and lists these shards."""
        try:
            manifest = read_manifest(self.path)
        except (StoreError, OSError):
            return False
        return manifest['complete'] and manifest['shards'] == parse_json(dump_json(shards))

    def _write_manifest(self, complete: bool, shards: list[dict[str, Any]]) -> None:
        totals = {field: sum(shard.get(field, 0) for shard in shards) for field in TOTALS}
        manifest = {
            'format': STORE_FORMAT,
            'version': VERSION,
            'complete': complete,
            'samples_per_shard': self.samples_per_shard,
            **totals,
            'config': self.config,
            'config_sha256': self._digest,
            'shards': shards,
        }
        if complete and self._is_recorded(shards):
            return  # nothing to write: the disk may be read-only by now
        with suppress(_Begun), locked_write(self.path / MANIFEST) as file:
            # Looked at once more, as the lock is held only now: a worker that began at the same
            # moment may have written it, of another store or even finished.
            if self._check_existing() and not complete:
                raise _Begun
            file.write(dump_manifest(manifest))


class _Begun(Exception):
    """The store was begun by another worker in the meantime."""


class _ShardFile:
    """A tar being written, with its index and checksum kept as it grows."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.position = 0
        self.hash = hashlib.sha256()
        self.rows: list[tuple] = []
        self._crc = 0
        self._keys: set[bytes] = set()

    def add(self, raw: RawSample) -> None:
        key = raw.key.encode()
        if key in self._keys:
            raise StoreError(f'two samples of one shard have the key {raw.key!r}')
        self._keys.add(key)
        check_info(raw.key, raw.info)
        try:
            dump_json(raw.info['meta'])  # also where it goes into a string
            info = dump_json(to_file(raw.info))
        except StoreError as error:
            raise StoreError(f'sample {raw.key!r}: {error}') from None
        if len(info) > MAX_JSON:
            raise StoreError(
                f'sample {raw.key!r}: its JSON has {len(info)} bytes, more than the '
                f'{MAX_JSON} that a sample may take'
            )
        masks = raw.masks_bytes if raw.info['nouns'] else empty_masks(raw.info)
        self._crc = 0
        start = self.position
        places: list[int] = []
        for ending, content in (
            ('json', info),
            ('masks.png', masks),
            (raw.image_format, raw.image_bytes),
        ):
            places += [self._member(f'{raw.key}.{ending}', content), len(content)]
        if self.position - start > MAX_SAMPLE:
            raise StoreError(f'sample {raw.key!r} has more than {MAX_SAMPLE} bytes')
        self.rows.append(
            (key, *places, raw.image_format.encode(), len(raw.info['nouns']), self._crc)
        )

    def close(self) -> None:
        """Write the two empty blocks that end a tar, and its padding."""
        end = self.position + 2 * BLOCK
        self._write(b'\0' * (end + -end % _TAR_RECORD - self.position))

    def index(self) -> np.ndarray:
        return np.array(self.rows, index_dtype(max((len(row[0]) for row in self.rows), default=1)))

    def _member(self, name: str, content: bytes) -> int:
        """Write one member and return where its content starts."""
        header = tarfile.TarInfo(name)  # owner 0, time 0, mode 644: nothing that changes by run
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.position
        self._write(content)
        self._write(b'\0' * (-len(content) % BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self._crc = zlib.crc32(data, self._crc)
        self.position += len(data)


def write_store(
    path: str | Path,
    samples: Iterable[Sample],
    samples_per_shard: int = 5000,
    config: dict[str, Any] | None = None,
) -> int:
    """Write a whole store from samples in order, and return how many there were.

    Samples are taken as they are written; a shard's are never in memory together.
    Shards that are there already are not written again, but their samples are asked for; a loop
    whose samples are dear should use `StoreWriter` and skip them.

    Raises:
        StoreError: As `StoreWriter` does, or if there are no samples.
    """
    writer = StoreWriter(path, samples_per_shard, config)
    count = 0

    def counting() -> Iterator[Sample]:
        nonlocal count
        for sample in samples:
            count += 1
            yield sample

    remaining = counting()
    for index in itertools.count():
        # One sample says whether there is another shard; a shard of photos can fill the memory.
        first = list(itertools.islice(remaining, 1))
        if not first:
            break
        part = itertools.chain(first, itertools.islice(remaining, samples_per_shard - 1))
        if writer.is_complete(index):
            deque(part, maxlen=0)  # asked for, so that they are counted
        else:
            writer.write_shard(index, part)
    writer.finish(count)
    return count
