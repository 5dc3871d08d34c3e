"""Archives and stores made to do harm are refused, and nothing outside the store is touched."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from helpers.examples import examples
from helpers.store_samples import varied_sample
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.store import Store, StoreError, repair_store, verify_store, write_store
from freeatm_mm.store.layout import TOTALS, dump_manifest
from freeatm_mm.store.tar import MAX_JSON, scan_shard


@pytest.fixture
def path(tmp_path):
    write_store(tmp_path / 'store', map(varied_sample, range(3)), 3, {'steps': 5})
    return tmp_path / 'store'


def member(name='abc.json', content=b'{"nouns": []}', size=None, **fields):
    """Header, content and padding of a member, with whatever fields are wished."""
    header = tarfile.TarInfo(name)
    header.size = len(content) if size is None else size
    for field, value in fields.items():
        setattr(header, field, value)
    return header.tobuf(tarfile.GNU_FORMAT) + content + b'\0' * (-len(content) % 512)


def vouch(path, entry_changes=(), **files):
    """Replace files of shard 0 and make all that is recorded fit them, as an attacker would."""
    manifest = json.loads((path / 'store.json').read_bytes())
    entry = manifest['shards'][0]
    for ending, content in files.items():
        file = path / f'shard-000000{ {"tar": ".tar", "index": ".index.npy"}[ending] }'
        file.write_bytes(content)
        prefix = '' if ending == 'tar' else 'index_'
        entry[f'{prefix}bytes'] = len(content)
        entry[f'{prefix}sha256'] = hashlib.sha256(content).hexdigest()
    entry.update(entry_changes)
    manifest.update({name: entry[name] for name in TOTALS}, samples_per_shard=entry['samples'])
    (path / 'store.json').write_bytes(dump_manifest(manifest))
    own = json.loads((path / 'shard-000000.json').read_bytes())
    (path / 'shard-000000.json').write_bytes(dump_manifest(own | entry))


HOSTILE = {
    'path traversal': (member('../../etc/passwd.json'), 'a name that no sample has'),
    'absolute path': (member('/etc/passwd.json'), 'a name that no sample has'),
    'a folder in the name': (member('a/b.json'), 'a name that no sample has'),
    'a drive': (member('C:abc.json'), 'a name that no sample has'),
    'an ending that is no sample': (member('abc.pkl'), 'a name that no sample has'),
    'a hidden name': (member('.json'), 'a name that no sample has'),
    'a long name': (member('x' * 90 + '.json'), 'a name that no sample has'),
    'a very long name': (member('x' * 300 + '.json'), 'is a long name'),
    'a symbolic link': (
        member('abc.json', b'', type=tarfile.SYMTYPE, linkname='/etc/passwd'),
        'is a symbolic link',
    ),
    'a hard link': (
        member('abc.json', b'', type=tarfile.LNKTYPE, linkname='/etc/passwd'),
        'is a hard link',
    ),
    'a device': (member('abc.json', b'', type=tarfile.CHRTYPE), 'is a device'),
    'a pipe': (member('abc.json', b'', type=tarfile.FIFOTYPE), 'is a pipe'),
    'a folder': (member('abc.json', b'', type=tarfile.DIRTYPE), 'is a folder'),
    'an extended header': (
        member('abc.json', b'11 path=/x\n', type=tarfile.XHDTYPE),
        'is an extended header',
    ),
    'a sparse file': (member('abc.json', type=tarfile.GNUTYPE_SPARSE), 'is a sparse file'),
    'a size beyond the archive': (member(size=1 << 33), 'more than the archive holds'),
    'a size of 2^62': (member(size=1 << 62), 'more than the archive holds'),
    'a negative size': (member(size=-1024), 'more than the archive holds'),
    'a wrong header checksum': (member()[:148] + b'0000000\0' + member()[156:], 'no header'),
    'no tar': (b'PK\3\4' * 600, 'no header'),
    'a compressed tar': (gzip.compress(os.urandom(4096)), 'no header|cut off'),
    'an end that is missing': (member(), 'cut off'),
    'nothing': (b'\0' * 10240, 'no samples'),
    'a sample without image': (member() + b'\0' * 1024, 'consists of json'),
    'members in disorder': (
        member('a.png', b'x') + member('a.json') + b'\0' * 1024,
        'consists of png, json',
    ),
    'a sample twice': (
        (
            member('a.json')
            + member('a.png', b'x')
            + member('b.json')
            + member('b.png', b'x')
            + member('a.json')
            + member('a.png', b'x')
            + b'\0' * 1024
        ),
        "'a' twice",
    ),
    'JSON that is none': (
        member('a.json', b'{') + member('a.png', b'x') + b'\0' * 1024,
        'JSON is corrupt',
    ),
    'JSON of another type': (
        member('a.json', b'[1]') + member('a.png', b'x') + b'\0' * 1024,
        'not a sample',
    ),
    'a number that is none': (
        member('a.json', b'{"nouns": [], "x": 1e999}') + member('a.png', b'x') + b'\0' * 1024,
        'JSON is corrupt .1e999',
    ),
    'a key twice': (
        member('a.json', b'{"nouns": [], "nouns": []}') + member('a.png', b'x') + b'\0' * 1024,
        'JSON is corrupt .*twice',
    ),
    'half a surrogate pair': (
        member('a.json', b'{"nouns": [], "caption": "\\ud800"}')
        + member('a.png', b'x')
        + b'\0' * 1024,
        'surrogate',
    ),
    'meta that is no JSON': (
        member('a.json', b'{"nouns": [], "meta": "{"}') + member('a.png', b'x') + b'\0' * 1024,
        'not a sample',
    ),
    'JSON nested for ever': (
        member('a.json', b'[' * 100_000) + member('a.png', b'x') + b'\0' * 1024,
        'nested too deeply',
    ),
}


@pytest.mark.parametrize('content, message', HOSTILE.values(), ids=HOSTILE)
def test_hostile_archives_are_refused_and_named(path, tmp_path, content, message):
    tar = tmp_path / 'hostile.tar'
    tar.write_bytes(content)
    with pytest.raises(StoreError, match=message):
        scan_shard(tar)
    vouch(path, tar=content)
    assert any('shard-000000.tar' in problem.where for problem in verify_store(path))
    repair_store(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ['hostile.tar', 'store']


def test_json_larger_than_any_sample_is_refused_before_it_is_read(tmp_path):
    tar = tmp_path / 'big.tar'
    with tar.open('wb') as file:
        file.write(member(size=MAX_JSON + 1, content=b''))
        file.truncate(MAX_JSON + 10240)  # takes no room on the disk
    with pytest.raises(StoreError, match=f'more than the {MAX_JSON}'):
        scan_shard(tar)


@examples(200)
@given(st.binary(max_size=3000))
def test_no_bytes_break_the_scanner(tmp_path_factory, content):
    tar = tmp_path_factory.mktemp('any') / 'any.tar'
    tar.write_bytes(content)
    with pytest.raises(StoreError):
        scan_shard(tar)


@examples(100)
@given(st.integers(0, 511), st.integers(1, 255))
def test_a_changed_header_is_refused_or_read_as_before(tmp_path_factory, place, change):
    sound = member('a.json') + member('a.png', b'x') + b'\0' * 1024
    content = bytearray(sound)
    content[place] ^= change
    tar = tmp_path_factory.mktemp('any') / 'any.tar'
    tar.write_bytes(content)
    try:
        rows = scan_shard(tar)
    except StoreError:
        return
    assert rows['key'].tolist() == [b'a']


def png(width, height):
    """A PNG that claims a size, with almost nothing in it."""

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', zlib.compress(b'\0' * 1000))
        + chunk(b'IEND', b'')
    )


def store_of(path, info, image, masks=b''):
    """A store whose one sample has any JSON and pictures, with checksums that fit."""
    content = member('a.json', json.dumps(info).encode())
    content += member('a.masks.png', masks) if masks else b''
    content += member('a.png', image) + b'\0' * 1024
    tar = path / 'x.tar'
    tar.write_bytes(content)
    rows = scan_shard(tar)
    tar.unlink()
    buffer = io.BytesIO()
    np.save(buffer, rows)
    vouch(path, {'samples': 1}, tar=content, index=buffer.getvalue())


NOUN = {'text': 'a', 'start': 0, 'end': 1, 'category': 'a', 'lo': 0.0, 'hi': 1.0}
INFO = {
    'caption': 'a',
    'nouns': [NOUN],
    'image': {'width': 4, 'height': 4},
    'masks': {'width': 4, 'height': 4},
    'meta': {},
}


@pytest.mark.parametrize(
    'info, image, masks, message',
    [
        (INFO, png(60_000, 60_000), png(4, 4), 'more than .* pixels|exceeds limit'),
        (
            INFO | {'nouns': [], 'masks': {'width': 0, 'height': 0}},
            png(60_000, 60_000),
            b'',
            'more than .* pixels|exceeds limit',
        ),
        (
            INFO | {'masks': {'width': 60_000, 'height': 60_000}},
            png(4, 4),
            png(60_000, 60_000),
            'more than .* pixels|exceeds limit',
        ),
        (INFO | {'masks': {'width': 8, 'height': 8}}, png(4, 4), png(4, 4), 'has size'),
        (INFO | {'masks': {'width': -4, 'height': -4}}, png(4, 4), png(4, 4), 'not a sample'),
        (INFO, b'GIF89a' + b'\0' * 50, png(4, 4), 'no readable png'),
        (INFO, png(4, 4), b'', 'no readable png'),
        (INFO | {'nouns': ['x']}, png(4, 4), png(4, 4), 'not a sample'),
        (INFO | {'nouns': [NOUN | {'lo': 'x'}]}, png(4, 4), png(4, 4), 'not a sample'),
        (INFO | {'nouns': [NOUN | {'end': 9}]}, png(4, 4), png(4, 4), 'outside|span'),
        (INFO | {'caption': 7}, png(4, 4), png(4, 4), 'sample'),
        ({'nouns': [NOUN]}, png(4, 4), png(4, 4), 'not a sample'),
        (INFO | {'nouns': [NOUN | {'lo': 10**400}]}, png(4, 4), png(4, 4), 'not a sample'),
        (INFO | {'nouns': [], 'masks': {'width': 4, 'height': -1}}, png(4, 4), b'', 'not a sample'),
        (
            INFO | {'nouns': [], 'masks': {'width': 4, 'height': 10**30}},
            png(4, 4),
            b'',
            'not a sample',
        ),
    ],
    ids=range(15),
)
def test_bombs_and_wrong_types_inside_a_sample_are_refused(path, info, image, masks, message):
    store_of(path, info, image, masks)
    with pytest.raises(StoreError, match=message):
        _ = Store(path)[0].image
    found = list(verify_store(path))
    assert found and all('shard-000000' in problem.where for problem in found)


@pytest.mark.parametrize(
    'field, value',
    [
        ('json_offset', -512),
        ('json_offset', 1 << 62),
        ('json_size', -1),
        ('json_size', 1 << 40),
        ('masks_offset', -1),
        ('masks_offset', 1 << 40),
        ('masks_size', -5),
        ('masks_size', 1 << 40),
        ('image_offset', 0),
        ('image_offset', 1 << 62),
        ('image_size', -1),
        ('image_size', 1 << 62),
        ('image_format', b'gif'),
        ('image_format', b'\xff'),
    ],
)
def test_an_index_that_lies_is_refused_whatever_its_checksum(path, field, value):
    rows = np.load(path / 'shard-000000.index.npy')
    rows[field][1] = value
    buffer = io.BytesIO()
    np.save(buffer, rows)
    vouch(path, index=buffer.getvalue())
    with pytest.raises(StoreError, match="sample '000001'"):
        Store(path)[1]
    assert any('index.npy' in problem.where for problem in verify_store(path))


def test_keys_that_are_no_text_are_named_where_the_tar_is_gone(path):
    rows = np.load(path / 'shard-000000.index.npy')
    rows['key'][0] = b'\xff\xfe'
    buffer = io.BytesIO()
    np.save(buffer, rows)
    vouch(path, index=buffer.getvalue())
    (path / 'shard-000000.tar').unlink()
    (problem,) = (problem for problem in verify_store(path) if problem.where.endswith('.tar'))
    assert problem.kind == 'missing' and 'is missing, with its 3 samples' in problem.what
    assert '3 of its 3 samples lost' in repair_store(path).left[0]


@pytest.mark.parametrize(
    'header',
    [
        b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }",
        b"__import__('os').system('true')",
        b'{' * 4000,
        b'-' * 4000 + b'1',
        b'',
    ],
    ids=range(7),
)
def test_an_index_with_a_hostile_header_is_refused(path, header):
    content = b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + b'\0' * 300
    vouch(path, index=content)
    with pytest.raises(StoreError, match='is corrupt|not an index'):
        Store(path)[0]
    assert any('index.npy' in problem.where for problem in verify_store(path))


def test_an_index_that_claims_more_rows_than_it_has_is_refused(path):
    content = (path / 'shard-000000.index.npy').read_bytes()
    vouch(path, {'samples': 9}, index=content.replace(b'(3,)', b'(9,)'))
    with pytest.raises(StoreError, match='is corrupt: it has'):
        Store(path)[0]


@pytest.mark.parametrize(
    'manifest',
    [
        b'[' * 100_000,
        b'null',
        b'[]',
        b'{"format": "freeatm-store", "version": 1}',
        b'\xff\xfe',
        b'{"format": "freeatm-store", "version": 1, "complete": true, "shards": [1]}',
        b'{"format": "freeatm-store", "version": 1, "complete": true, "shards": {"name": 1}}',
        (
            b'{"format": "freeatm-store", "version": 1, "complete": true, "shards": [{"name": '
            b'"../../x", "samples": 1, "bytes": 1}]}'
        ),
        *(
            b'{"format": "freeatm-store", "version": 1, "complete": true, "shards": [{"name": '
            b'"shard-000000", "samples": %s, "bytes": 1}]}' % number
            for number in (b'1' + b'0' * 40, b'1e300', b'NaN', b'Infinity', b'true', b'1.5', b'"1"')
        ),
    ],
)
def test_a_hostile_manifest_is_refused(path, manifest):
    (path / 'store.json').write_bytes(manifest)
    with pytest.raises(StoreError):
        Store(path)
    assert any('store.json' in problem.where for problem in verify_store(path))


def test_an_index_that_its_samples_cannot_fill_is_refused(path):
    """At an address it would be fetched, to any size, before it could be found wrong."""
    from freeatm_mm.store.layout import dump_manifest

    manifest = json.loads((path / 'store.json').read_bytes())
    manifest['shards'][0]['index_bytes'] = 1 << 40
    (path / 'store.json').write_bytes(dump_manifest(manifest))
    with pytest.raises(StoreError, match="can't have an index of 1099511627776 bytes"):
        Store(path)


@pytest.mark.parametrize('name', ['shard-000000.tar', 'shard-000000.index.npy'])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(path, name):
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(StoreError, match='no plain file'):
        Store(path)[0]
    assert any(name in problem.where for problem in verify_store(path))
