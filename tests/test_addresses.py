"""Folders at addresses: what an address may be, ranges, failures, and messages without secrets."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from pathlib import Path

import pytest
from helpers.servers import S3_ACCOUNT, serve_files, serve_s3

from freeatm_mm import addresses
from freeatm_mm.addresses import (
    RemoteFolder,
    check_address,
    file_here,
    is_address,
    local_folder,
    parse_bytes,
)
from freeatm_mm.errors import InputError, MissingFileError

DATA = bytes(range(256)) * 4


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """No waiting between tries, and a cache of the test's own."""
    monkeypatch.setattr(addresses, 'DELAYS', (0.0, 0.0))
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def server(tmp_path):
    (tmp_path / 'served').mkdir()
    (tmp_path / 'served' / 'file.bin').write_bytes(DATA)
    with serve_files(tmp_path / 'served') as server:
        yield server


@pytest.mark.parametrize(
    'address, plain',
    [
        ('s3://bucket/a/b/', 's3://bucket/a/b'),
        ('S3://bucket', 's3://bucket'),
        ('hf://datasets/me/dogs@v1', 'hf://datasets/me/dogs@v1'),
        ('https://host:8000/a%20b', 'https://host:8000/a%20b'),
    ],
)
def test_addresses_have_one_form(address, plain):
    assert is_address(address) and check_address(address) == plain


@pytest.mark.parametrize(
    'address, message',
    [
        ('ftp://host/a', 'begin with s3://'),
        ('file:///etc', 'begin with s3://'),
        ('simplecache::s3://bucket/a', 'begin with s3://'),
        ('https://me:SECRET@host/a', 'no user name, password or query'),
        ('s3://key:SECRET@bucket/a', 'no user name, password or query'),
        ('https://host/a?signature=SECRET', 'no user name, password or query'),
        ('https://host/a/../b', 'not the address of a folder'),
        ('https://host/a/%2e%2e/b', 'not the address of a folder'),
        ('https://host/a/..%2Fb', 'not the address of a folder'),
        ('s3://bucket//a', 'not the address of a folder'),
        ('s3://', 'not the address of a folder'),
        ('hf://datasets/me', 'use hf://datasets/USER/NAME'),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_and_no_secret_repeated(address, message):
    with pytest.raises(InputError, match=message) as caught:
        check_address(address)
    assert 'SECRET' not in str(caught.value)


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('s3://bucket/a', "s3://bucket/a can't be written to directly"),
        (Path('s3://bucket/a'), "s3:/bucket/a can't be written to directly"),
        ('', 'is empty'),
    ],
)
def test_what_is_no_folder_to_write_is_refused(path, message):
    with pytest.raises(InputError, match=message):
        local_folder(path)


def test_paths_are_no_addresses():
    assert not any(map(is_address, ('a/b', '/a', 'C:\\a', 'a:b', b's3://b', None, 'a::b')))


@pytest.mark.parametrize(
    'text, number', [('50GB', 50 * 10**9), ('1.5 k', 1500), (7, 7), ('2MiB', 2 * 10**6)]
)
def test_numbers_of_bytes(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize('text', ['', 'GB', '-1', '1e9', '5 apples'])
def test_what_is_no_number_of_bytes(text):
    with pytest.raises(InputError, match='no number of bytes'):
        parse_bytes(text)


def test_a_range_is_read_and_nothing_else(server):
    folder = RemoteFolder(server.address)
    assert folder.read('file.bin', 10, 300) == DATA[10:300]
    assert folder.read('file.bin', 5, 5) == b''
    assert pickle.loads(pickle.dumps(folder)).read('file.bin', 0, 2) == DATA[:2]
    assert server.asked == [
        ('GET', '/file.bin', 'bytes=10-299'),
        ('GET', '/file.bin', 'bytes=0-1'),
    ]
    for name in ('../file.bin', '/etc/passwd', 'a/../../b', 'http://x/y', ''):
        with pytest.raises(InputError, match='is no name of a file'):
            folder.read(name, 0, 1) if name else folder.read('.', 0, 1)


@pytest.mark.parametrize('mode', [500, 503, 429, 'short', 'other'])
def test_what_may_pass_is_tried_again(server, mode):
    server.mode, server.failures = mode, 2
    assert RemoteFolder(server.address).read('file.bin', 100, 200) == DATA[100:200]
    assert len(server.asked) == 3


@pytest.mark.parametrize('mode', [429, 503])
def test_a_server_that_asks_to_wait_is_waited_for(server, monkeypatch, mode):
    waits = []
    monkeypatch.setattr(addresses.time, 'sleep', waits.append)
    server.mode, server.failures, server.retry_after = mode, 2, '7'
    assert RemoteFolder(server.address).read('file.bin', 0, 9) == DATA[:9]
    assert waits == [7.0, 7.0]
    server.failures, server.retry_after = 2, 'Wed, 21 Oct 2015 07:28:00 GMT'  # long ago
    assert RemoteFolder(server.address).read('file.bin', 0, 9) == DATA[:9]
    server.failures, server.retry_after = 2, 'soon'
    assert RemoteFolder(server.address).read('file.bin', 0, 9) == DATA[:9]
    assert waits[2:] == [0.0] * 4
    server.failures, server.retry_after = 1, '3600'
    with pytest.raises(InputError, match=f'answers {mode} and asks to wait 3600 s: start'):
        RemoteFolder(server.address).read('file.bin', 0, 9)


@pytest.mark.parametrize(
    'mode, message, tries',
    [
        (500, r'server answers 500 \(3 tries\)', 3),
        (403, 'check credentials and address', 1),
        (416, 'ends before', 1),
        (418, 'answers 418', 1),
        ('short', r'ends at byte 150, before 200 \(3 tries\)', 3),
        ('other', 'other bytes than were asked for', 3),
        ('no ranges', 'sends whole files only', 1),
        ('redirect', 'leads to another address', 1),
    ],
)
def test_a_server_that_fails_is_one_sentence(server, mode, message, tries):
    server.mode = mode
    with pytest.raises(InputError, match=message) as caught:
        RemoteFolder(server.address).read('file.bin', 100, 200)
    assert str(caught.value).startswith(f'{server.address}/file.bin ')
    assert len(server.asked) == tries


def test_a_server_without_an_answer_is_given_up(server, monkeypatch):
    monkeypatch.setattr(addresses, 'TIMEOUT', 0.2)
    monkeypatch.setattr(addresses, 'DELAYS', (0.0,))
    server.mode = 'slow'
    with pytest.raises(InputError, match=r'gave no answer within 0.2 s \(2 tries\)'):
        RemoteFolder(server.address).read('file.bin', 0, 9)


@pytest.mark.parametrize('mode', ['trickle', 'trickle headers'])
def test_a_server_that_trickles_is_given_up(server, monkeypatch, mode):
    monkeypatch.setattr(addresses, 'DEADLINE', 0.3)
    monkeypatch.setattr(addresses, 'DELAYS', ())
    server.mode = mode
    folder = RemoteFolder(server.address)
    with pytest.raises(InputError, match='took more than 0.3 s'):
        folder.read('file.bin', 0, 1000)
    server.mode = 'sound'
    assert folder.read('file.bin', 0, 9) == DATA[:9]


def test_nobody_there(tmp_path):
    with serve_files(tmp_path) as server:
        address = server.address
    with pytest.raises(InputError, match=r"can't be reached: the connection failed \(3 tries\)"):
        RemoteFolder(address).read('file.bin', 0, 9)


def test_files_are_fetched_whole_or_not_at_all(server, tmp_path, monkeypatch):
    monkeypatch.setattr(addresses, 'PIECE', 300)
    folder, digest = RemoteFolder(server.address), hashlib.sha256(DATA).hexdigest()
    folder.fetch('file.bin', tmp_path / 'copy', len(DATA), digest)
    assert (tmp_path / 'copy').read_bytes() == DATA
    assert len(server.asked) == 4
    with pytest.raises(InputError, match='not the file that was written'):
        folder.fetch('file.bin', tmp_path / 'other', len(DATA), 64 * '0')
    with pytest.raises(MissingFileError, match='none.bin is not there'):
        folder.fetch('none.bin', tmp_path / 'other', 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['copy', 'served']


def test_the_cache_asks_whether_a_file_has_changed(server, tmp_path):
    folder = RemoteFolder(server.address)
    for _ in range(2):  # without a tag nothing can be known
        assert folder.read_cached('file.bin') == DATA
    assert [method for method, *_ in server.asked] == ['HEAD', 'GET', 'HEAD', 'GET']
    server.etag = '"1"'
    for _ in range(2):
        assert folder.read_cached('file.bin') == DATA
    assert [method for method, *_ in server.asked[4:]] == ['HEAD', 'GET', 'HEAD']
    server.etag = '"2"'
    (tmp_path / 'served' / 'file.bin').write_bytes(DATA[::-1])
    assert folder.read_cached('file.bin') == DATA[::-1]
    with pytest.raises(InputError, match='more than the 10 that such a file may have'):
        folder.read_cached('file.bin', limit=10)


def test_a_file_at_an_address_is_copied_here_once(server, tmp_path):
    assert file_here(tmp_path / 'x') == tmp_path / 'x' and file_here('x') == Path('x')
    server.etag = '"1"'
    copy = file_here(f'{server.address}/file.bin')
    assert copy.name == 'file.bin' and copy.read_bytes() == DATA
    assert file_here(f'{server.address}/file.bin') == copy
    assert [method for method, *_ in server.asked] == ['HEAD', 'GET', 'HEAD']
    server.etag = '"2"'
    (tmp_path / 'served' / 'file.bin').write_bytes(DATA[::-1])
    assert file_here(f'{server.address}/file.bin').read_bytes() == DATA[::-1]
    for name, message in (
        ('none.bin', 'none.bin is not there'),
        ('file.bin?token=x', 'no user name, password or query'),
        ('', 'is not the address of a file'),
    ):
        with pytest.raises(InputError, match=message):
            file_here(f'{server.address}/{name}')


def test_what_the_cache_cannot_hold_is_told(server, tmp_path, monkeypatch):
    server.etag = '"1"'

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(addresses.RemoteFolder, 'fetch', full)
    with pytest.raises(InputError, match="file.bin can't be kept in the cache .*No space.*make"):
        RemoteFolder(server.address).read_cached('file.bin')
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'served' / 'file.bin'))
    with pytest.raises(InputError, match="can't be made.*FREEATM_CACHE"):
        RemoteFolder(server.address).read_cached('file.bin')
    for name in ('FREEATM_CACHE', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, 'expanduser', str)  # nobody knows whose process this is
    with pytest.raises(InputError, match='no home folder for the cache'):
        addresses.cache_folder()


def test_http_is_read_only(server, tmp_path):
    (tmp_path / 'x').write_bytes(b'x')
    with pytest.raises(InputError, match="can't be written to: use s3://"):
        RemoteFolder(server.address).upload_many([(tmp_path / 'x', 'x', '')])


def test_a_forked_process_has_its_own_connection(tmp_path):
    pytest.importorskip('fsspec')
    folder = RemoteFolder('memory://fork')
    (tmp_path / 'x').write_bytes(DATA)
    folder.upload_many([(tmp_path / 'x', 'x', hashlib.sha256(DATA).hexdigest())])
    assert folder.read('x', 0, 4) == DATA[:4]
    folder._lock.acquire()  # as a thread of the parent may hold it
    child = os.fork()
    if not child:
        os._exit(folder.read('x', 0, 4) != DATA[:4])
    assert os.waitpid(child, 0)[1] == 0


def test_s3(monkeypatch, tmp_path):
    with serve_s3(monkeypatch):
        folder = RemoteFolder('s3://bucket/folder')
        assert folder.names() == {}
        monkeypatch.setattr(addresses, 'PART', 5 << 20)  # the least that S3 takes
        for name, data in (('small', DATA), ('large', DATA * 10500)):
            path, digest = tmp_path / name, hashlib.sha256(data).hexdigest()
            path.write_bytes(data)
            folder.upload_many([(path, name, digest)])
            reads = []
            monkeypatch.setattr(folder, 'pieces', lambda *what, reads=reads: reads.append(what))
            assert folder.holds(path, name, digest) and not reads  # by its ETag
            monkeypatch.delattr(folder, 'pieces')
            path.write_bytes(data[::-1])
            assert not folder.holds(path, name, hashlib.sha256(data[::-1]).hexdigest())
        assert folder.names() == {'small': 1024, 'large': 1024 * 10500}
        assert folder.read('large', 1000, 1030) == (DATA * 2)[1000:1030]
        # An ETag that is none, as of encrypted objects: the copy is read.
        monkeypatch.setattr(addresses, '_etag', lambda path: 'another')
        (tmp_path / 'small').write_bytes(DATA)
        assert folder.holds(tmp_path / 'small', 'small', hashlib.sha256(DATA).hexdigest())
        folder.remove('small')
        folder.remove('small')
        assert not folder.holds(tmp_path / 'small', 'small', '')
        with pytest.raises(MissingFileError, match='s3://bucket/folder/small is not there'):
            folder.read('small', 0, 9)
        with pytest.raises(MissingFileError):
            RemoteFolder('s3://nothing/folder').read('small', 0, 9)
        monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://127.0.0.1:9')
        with pytest.raises(InputError, match="can't be reached") as caught:
            RemoteFolder('s3://bucket/folder').read('large', 0, 9)
        assert not any(secret in str(caught.value) for secret in S3_ACCOUNT.values())


def test_a_package_that_is_missing_is_named():
    with pytest.raises(InputError, match='gs:// needs gcsfs: pip install gcsfs'):
        RemoteFolder('gs://bucket/folder').read('x', 0, 1)
