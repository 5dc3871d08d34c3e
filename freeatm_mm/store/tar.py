"""Reading a shard's tar without its index, and trusting nothing in it.

Nothing is ever extracted, and no name in an archive is used as a path. Only what a shard may hold
is let through: plain files called ``KEY.json``, ``KEY.masks.png``, ``KEY.jpg`` or ``KEY.png``, one
after the other, of sizes that the archive really has.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from freeatm_mm.errors import InputError, counted
from freeatm_mm.files import parse_json
from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.layout import BLOCK, index_dtype, open_regular, read_exactly
from freeatm_mm.store.sample import IMAGE_FORMATS, RawSample, check_info, from_file

__all__ = [
    'MAX_JSON',
    'MAX_SAMPLE',
    'TarMember',
    'parse_info',
    'parse_sample',
    'parse_text',
    'read_members',
    'read_sample',
    'sample_span',
    'scan_shard',
]

#: A sample's JSON takes some hundred bytes; one beyond this is refused before it is read.
MAX_JSON = 1 << 24
#: A sample of more bytes than this is refused before it is read.
MAX_SAMPLE = 1 << 28

_NAME = re.compile(r'([A-Za-z0-9_-]{1,80})\.(json|masks\.png|jpg|png)')
_TYPES = {
    tarfile.LNKTYPE: 'a hard link',
    tarfile.SYMTYPE: 'a symbolic link',
    tarfile.CHRTYPE: 'a device',
    tarfile.BLKTYPE: 'a device',
    tarfile.DIRTYPE: 'a folder',
    tarfile.FIFOTYPE: 'a pipe',
    tarfile.XHDTYPE: 'an extended header',
    tarfile.XGLTYPE: 'an extended header',
    tarfile.GNUTYPE_LONGNAME: 'a long name',
    tarfile.GNUTYPE_LONGLINK: 'a long link',
    tarfile.GNUTYPE_SPARSE: 'a sparse file',
}


class TarMember(NamedTuple):
    """A file in a tar.

    Args:
        key: Key of the sample that it belongs to.
        kind: ``'json'``, ``'masks.png'``, ``'jpg'`` or ``'png'``.
        header: Where its header starts, in bytes from the start of the archive.
        offset: Where its content starts.
        size: Bytes of its content.
    """

    key: str
    kind: str
    header: int
    offset: int
    size: int

    @property
    def name(self) -> str:
        """The member's name in the tar."""
        return f'{self.key}.{self.kind}'

    @property
    def end(self) -> int:
        """Where the next member starts."""
        return self.offset + self.size + -self.size % BLOCK


def read_members(handle: int) -> Iterator[TarMember]:
    """Yield the members of an open tar in order, reading their headers only.

    Raises:
        StoreError: At the first thing that has no place in a shard: a name that is no sample's
            (with a folder, absolute, too long), a link or device, a size that the archive doesn't
            have, a header that is none, an archive that ends too early.
    """
    end = os.fstat(handle).st_size
    position = 0
    while True:
        block = read_exactly(handle, BLOCK, position)
        if len(block) < BLOCK:
            raise StoreError(f'it is cut off: no end of archive up to byte {position}')
        if not any(block):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, 'utf-8', 'strict')
        except (tarfile.HeaderError, ValueError) as error:
            raise StoreError(f'at byte {position} stands no header of a member ({error})') from None
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or header.linkname:
            what = _TYPES.get(header.type, f'of type {header.type!r}')
            raise StoreError(f'its member {header.name!r} is {what}; a shard holds plain files')
        match = _NAME.fullmatch(header.name)
        if match is None:
            raise StoreError(f'its member {header.name!r} has a name that no sample has')
        key, kind = match.groups()
        member = TarMember(key, kind, position, position + BLOCK, header.size)
        if header.size < 0 or member.end > end:
            raise StoreError(
                f'its member {member.name!r} says it has {header.size} bytes, more '
                'than the archive holds'
            )
        if member.kind == 'json' and member.size > MAX_JSON:
            raise StoreError(
                f'its member {member.name!r} has {member.size} bytes, more than the '
                f'{MAX_JSON} that a sample may take'
            )
        yield member
        position = member.end


def read_sample(handle: int, size: int, row: tuple) -> RawSample:
    """Read the sample that a row of an index points at, in one read, and check it.

    Args:
        handle: The open tar.
        size: Its size in bytes.
        row: The row, as plain values.

    Raises:
        StoreError: As `sample_span` and `parse_sample`.
    """
    start, stop = sample_span(size, row)
    return parse_sample(row, read_exactly(handle, stop - start, start))


def sample_span(size: int, row: tuple) -> tuple[int, int]:
    """Say between which bytes of a tar a sample stands.

    Args:
        size: Bytes of the tar.
        row: Of its index, as plain values.

    Raises:
        StoreError: If the row points at nothing that a tar of this size can hold.
    """
    (
        key,
        json_at,
        json_size,
        masks_at,
        masks_size,
        image_at,
        image_size,
        image_format,
        _,
        _,
    ) = row
    start, end = json_at - BLOCK, image_at + image_size + -image_size % BLOCK
    fits = (
        0 <= start < json_at <= json_at + json_size <= image_at <= image_at + image_size
        and (not masks_size or json_at <= masks_at <= masks_at + masks_size <= image_at)
        and 0 <= masks_size
        and 0 <= json_size <= MAX_JSON
        and end - start <= MAX_SAMPLE
        and image_format.decode('ascii', 'replace') in IMAGE_FORMATS
    )
    if not fits or end > size:
        key = key.decode('ascii', 'replace')
        raise StoreError(f'sample {key!r}: the index points outside the shard; one is corrupt')
    return start, end


def parse_sample(row: tuple, data: bytes) -> RawSample:
    """Make a sample of its bytes in a tar, and check it.

    The checksum proves the bytes, headers included; the headers prove whose they are, and where
    each member starts and ends.

    Args:
        row: Of the index, as plain values.
        data: What stands in the tar at its `sample_span`.

    Raises:
        StoreError: If the bytes don't match the row's checksum, or the JSON is no sample's.
    """
    (
        key,
        json_at,
        json_size,
        masks_at,
        masks_size,
        image_at,
        image_size,
        image_format,
        nouns,
        crc,
    ) = row
    key, image_format = key.decode('ascii', 'replace'), image_format.decode('ascii', 'replace')
    start, end = json_at - BLOCK, image_at + image_size + -image_size % BLOCK
    if len(data) != end - start or zlib.crc32(data) != crc:
        raise StoreError(f"sample {key!r} is corrupt: its bytes don't match the checksum")
    members = [
        ('json', json_at, json_size),
        ('masks.png', masks_at, masks_size),
        (image_format, image_at, image_size),
    ]
    position = 0
    for kind, member_at, member_size in members:
        if kind == 'masks.png' and not member_at and not member_size:
            continue
        name, found = _name_and_size(data[position : position + BLOCK])
        if (name, position + BLOCK, found) != (f'{key}.{kind}', member_at - start, member_size):
            raise StoreError(
                f'sample {key!r}: the index says otherwise than the shard, where '
                f'{name!r} of {found} bytes stands; one is corrupt'
            )
        position += BLOCK + member_size + -member_size % BLOCK
    info = _checked_info(key, data[BLOCK : BLOCK + json_size], nouns)
    # Without nouns, the masks are there only so that all samples have the same members.
    masks = data[masks_at - start : masks_at - start + masks_size] if nouns and masks_size else b''
    image = data[image_at - start : image_at - start + image_size]
    return RawSample(key, image, image_format, info, masks)


def parse_text(row: tuple, data: bytes) -> RawSample:
    """Make a sample of its JSON alone, without image and masks.

    The checksum is of the whole sample and can't prove it: not that a letter is as it was written.

    Args:
        row: Of the index, as plain values.
        data: The JSON and the header before it, with which the sample begins.

    Raises:
        StoreError: If that isn't the JSON of the row's sample.
    """
    key, size, nouns = row[0].decode('ascii', 'replace'), row[2], row[8]
    if len(data) != BLOCK + size or _name_and_size(data[:BLOCK]) != (f'{key}.json', size):
        raise StoreError(f'sample {key!r}: the index says otherwise than the shard; one is corrupt')
    return RawSample(key, b'', '', _checked_info(key, data[BLOCK:], nouns), b'')


def _checked_info(key: str, text: bytes, nouns: int) -> dict[str, Any]:
    """A sample's JSON, of which the index says that it has so many nouns."""
    info = parse_info(key, text)
    check_info(key, info)
    if len(info['nouns']) != nouns:
        raise StoreError(
            f'sample {key!r}: the index says it has {counted(nouns, "noun")}, and it has '
            f'{len(info["nouns"])}; one is corrupt'
        )
    return info


def _name_and_size(header: bytes) -> tuple[str, int]:
    """What a header says that the checksum of its sample has proved; fast, as every read does it.

    The reading of headers that nothing has proved is left to `tarfile`.
    """
    try:
        size = int(header[124:136].rstrip(b'\0 ') or b'0', 8)
    except ValueError:
        size = -1
    return header[:100].rstrip(b'\0').decode('ascii', 'replace'), size


def parse_info(key: str, text: bytes) -> dict[str, Any]:
    """Parse a sample's JSON, as it stands in the file, to what a sample's JSON is in memory.

    Raises:
        StoreError: If it is not JSON or has no list of nouns.
    """
    try:
        info = parse_json(text)
    except ValueError as error:
        raise StoreError(f'sample {key!r}: its JSON is corrupt ({error})') from None
    if not isinstance(info, dict) or not isinstance(info.get('nouns'), list):
        raise StoreError(f'sample {key!r}: its JSON is not a sample')
    try:
        return from_file(info)
    except InputError as error:
        raise StoreError(f'sample {key!r}: its JSON is not a sample ({error})') from None


def scan_shard(path: Path, empty: bool = False) -> np.ndarray:
    """Make a shard's index from its tar alone.

    Args:
        path: The tar.
        empty: Whether it may hold no samples.

    Returns:
        The rows, as the writer makes them.

    Raises:
        StoreError: If the tar isn't what a writer makes, saying where.
    """
    handle = open_regular(path)
    try:
        groups: list[list[TarMember]] = []
        for member in read_members(handle):
            if not groups or groups[-1][0].key != member.key:
                groups.append([])
            groups[-1].append(member)
        if not groups and not empty:
            raise StoreError('it holds no samples')
        rows = []
        seen: set[str] = set()
        for group in groups:
            key, kinds = group[0].key, [member.kind for member in group]
            if key in seen:
                raise StoreError(f'it holds the sample {key!r} twice')
            seen.add(key)
            if (
                kinds[:1] != ['json']
                or kinds[1:-1] not in ([], ['masks.png'])
                or kinds[-1] not in ('jpg', 'png')
            ):
                raise StoreError(
                    f'its sample {key!r} consists of {", ".join(kinds)}; a sample is '
                    'json, masks.png where there are nouns, and jpg or png'
                )
            json_member, image = group[0], group[-1]
            masks = (group[1].offset, group[1].size) if len(group) == 3 else (0, 0)
            if image.end - json_member.header > MAX_SAMPLE:
                raise StoreError(f'its sample {key!r} has more than {MAX_SAMPLE} bytes')
            data = read_exactly(handle, image.end - json_member.header, json_member.header)
            text = data[BLOCK : BLOCK + json_member.size]
            rows.append(
                (
                    key.encode(),
                    json_member.offset,
                    json_member.size,
                    *masks,
                    image.offset,
                    image.size,
                    image.kind.encode(),
                    len(parse_info(key, text)['nouns']),
                    zlib.crc32(data),
                )
            )
    finally:
        os.close(handle)
    return np.array(rows, index_dtype(max((len(row[0]) for row in rows), default=1)))
