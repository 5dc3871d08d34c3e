"""Reading what may be anything, and writing the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from freeatm_mm.errors import InputError, MissingFileError
from freeatm_mm.files import (
    atomic_write,
    check_json,
    check_replaceable,
    open_in_place,
    parse_json,
    read_bytes,
    read_json,
    read_lines,
    read_text,
)


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / 'folder' / 'file'
    for content in (b'old', b'new'):
        with atomic_write(path) as file:
            file.write(content)
    assert path.read_bytes() == b'new' and os.listdir(path.parent) == ['file']


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b'half')
        raise RuntimeError
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['file']


def test_others_may_read_it_as_the_umask_says(tmp_path):
    old = os.umask(0o022)
    try:
        with atomic_write(tmp_path / 'file'):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / 'file').stat().st_mode & 0o777 == 0o644


# --- reading ---

BAD_JSON = {
    'nothing': (b'', 'it is empty'),
    'spaces': (b' \n', 'it is empty'),
    'half': (b'{"a": ', 'not JSON'),
    'no text': (b'\xff\xfe{\x00}\x00', 'UTF-16'),
    'no UTF-8': (b'{"a": "\xe9"}', 'save it as UTF-8'),
    'nested lists': (b'[' * 100_000, 'nested too deeply'),
    'nested objects': (b'{"a":' * 100_000, 'nested too deeply'),
    'nested, whole': (b'[' * 200 + b']' * 200, 'nested too deeply'),
    'a number too large': (b'{"a": 1e999}', '1e999'),
    'minus such a number': (b'[-1e999]', '-1e999'),
    'NaN': (b'[NaN]', 'NaN'),
    'infinity': (b'[-Infinity]', '-Infinity'),
    'an integer without end': (b'[1' + b'0' * 10_000 + b']', 'digits'),
    'a key twice': (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is there twice"),
    'half a pair': (b'["\\ud800"]', 'surrogate'),
    'half a pair as key': (b'{"\\udc00": 1}', 'surrogate'),
    'more after the end': (b'{} {}', 'not JSON'),
}


@pytest.mark.parametrize('content, message', BAD_JSON.values(), ids=BAD_JSON)
def test_json_that_cannot_be_trusted_is_one_sentence_with_the_files_name(
    tmp_path, content, message
):
    path = tmp_path / 'file.json'
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    'content, value',
    [
        (b'\xef\xbb\xbf{"a": "\xc3\xa9"}', {'a': 'é'}),
        (b'["\\ud83d\\ude00"]', ['\U0001f600']),
        (b'[' * 100 + b']' * 100, None),
        (b'[1e308, -0.0, 12345678901234567890]', [1e308, -0.0, 12345678901234567890]),
        (b'"[[[[["', '[[[[['),
    ],
)
def test_sound_json_is_read(tmp_path, content, value):
    path = tmp_path / 'file.json'
    path.write_bytes(content)
    found = read_json(path)
    assert value is None or found == value
    assert parse_json(content.decode()) == found


def place_pipe(path):
    os.mkfifo(path)


def place_huge(path):
    with path.open('wb') as file:
        file.truncate(1 << 40)  # takes no room on the disk


PLACED = {
    'nothing': (lambda path: None, 'there is no file'),
    'a pipe': (place_pipe, 'no plain file but a pipe'),
    'a folder': (lambda path: path.mkdir(), 'no plain file but a folder'),
    'endless': (lambda path: path.symlink_to('/dev/zero'), 'no plain file but a device'),
    'a link to itself': (lambda path: path.symlink_to(path), "can't be opened"),
    'huge': (place_huge, 'more than the'),
}


@pytest.mark.parametrize('place, message', PLACED.values(), ids=PLACED)
@pytest.mark.parametrize(
    'read',
    [read_bytes, read_text, read_json, lambda path: next(read_lines(path))],
    ids=['bytes', 'text', 'json', 'lines'],
)
def test_what_is_no_file_to_read_is_refused_and_not_waited_for(tmp_path, place, message, read):
    path = tmp_path / 'file.json'
    place(path)
    with pytest.raises(InputError, match=f'{message}|more than') as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) == (message == 'there is no file')


@pytest.mark.parametrize('path', ['https://host/a.json', Path('s3://bucket/a.json')], ids=str)
def test_an_address_is_no_file_to_read_or_write(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match='it is an address, .* copy it here'):
        read_json(path)
    with pytest.raises(InputError, match="is an address, and can't be written to"):
        with atomic_write(path):
            pass
    assert not any(tmp_path.iterdir())
    folder, _, _ = str(path).partition('/')
    os.mkdir(folder)  # then it is the path of a file
    with atomic_write(path) as file:
        file.write(b'{}')
    assert read_json(path) == {}


def test_a_name_that_no_file_can_have_is_refused():
    for name in ('a\0b', 'x' * 5000):
        with pytest.raises(InputError, match="can't be"):
            read_json(name)


def test_the_limit_holds_and_can_be_raised(tmp_path):
    path = tmp_path / 'file'
    path.write_text('[1234567]\n' * 3)
    assert len(read_text(path, 30)) == 30
    with pytest.raises(InputError, match='more than the 29 bytes'):
        read_text(path, 29)
    assert [number for number, _ in read_lines(path, 9)] == [1, 2, 3]
    with pytest.raises(InputError, match='line 1: it has more than 8 bytes'):
        list(read_lines(path, 8))


def test_lines_are_read_one_by_one_and_the_bad_one_is_named(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'\xef\xbb\xbfone\r\n\ntwo')
    assert list(read_lines(path)) == [(1, 'one'), (2, ''), (3, 'two')]
    path.write_bytes(b'one\n\xff\n')
    with pytest.raises(InputError, match='line 2: it is not UTF-8'):
        list(read_lines(path))


@pytest.mark.parametrize(
    'value, message',
    [
        ([], 'must be an object'),
        ({'name': 1, 'sizes': []}, 'name must be text, got 1'),
        ({'sizes': []}, "the field 'name' is missing"),
        ({'name': 'a', 'sizes': [1, True]}, r'sizes\[1\] must be an integer, got True'),
        ({'name': 'a', 'sizes': [], 'share': '1'}, 'share must be a number or null'),
        ({'name': 'a' * 500, 'sizes': 'x' * 500}, r'sizes must be a list, got .x{56}\.\.\.$'),
    ],
)
def test_types_are_checked_and_the_entry_named(tmp_path, value, message):
    path = tmp_path / 'file.json'
    path.write_text(json.dumps(value))
    shape = {'name': str, 'sizes': [int], 'share?': (float, None)}
    with pytest.raises(InputError, match=message) as caught:
        read_json(path, shape=shape)
    assert str(caught.value).startswith(str(path))
    for sound in (
        {'name': '', 'sizes': [1, 2], 'share': 1, 'more': 2},
        {'name': '', 'sizes': [], 'share': None},
    ):
        check_json(sound, shape, '')


# --- writing ---


@pytest.mark.parametrize('link', [os.symlink, os.link], ids=['symbolic', 'hard'])
def test_no_link_is_written_through(tmp_path, link):
    outside, path = tmp_path / 'outside', tmp_path / 'file'
    outside.write_bytes(b'precious')
    link(outside, path)
    with pytest.raises(InputError, match=f'{path} is a (symbolic|hard) link'):
        open_in_place(path)
    with atomic_write(path) as file:
        file.write(b'new')
    assert outside.read_bytes() == b'precious' and path.read_bytes() == b'new'
    assert not path.is_symlink()


def test_a_folder_or_pipe_in_the_place_of_a_file_to_write(tmp_path):
    (tmp_path / 'folder').mkdir()
    for write in (open_in_place, lambda path: atomic_write(path).__enter__()):
        with pytest.raises(InputError, match='folder|directory'):
            write(tmp_path / 'folder')
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(InputError, match='a pipe: remove it'):
        open_in_place(tmp_path / 'pipe')
    with atomic_write(tmp_path / 'pipe') as file:
        file.write(b'new')
    assert (tmp_path / 'pipe').read_bytes() == b'new'


@pytest.mark.parametrize('text', ['this is mine: 1', ''])
def test_a_file_of_its_kind_is_replaced(tmp_path, text):
    check_replaceable(tmp_path / 'new', 'a file of mine', 'mine')
    (tmp_path / 'old').write_text(text)
    check_replaceable(tmp_path / 'old', 'a file of mine', 'mine')


def test_a_file_of_its_kind_that_holds_nothing_is_replaced(tmp_path):
    (tmp_path / 'old').write_text('{}\n')
    check_replaceable(tmp_path / 'old', 'a file of mine', 'mine', empty='{}')
    (tmp_path / 'old').write_text('{}, yours')
    with pytest.raises(InputError, match='old is there already and is not a file of mine'):
        check_replaceable(tmp_path / 'old', 'a file of mine', 'mine', empty='{}')


@pytest.mark.parametrize(
    'mark, said', [('mine', 'is not a file of mine'), ('', 'replaces nothing')]
)
def test_another_file_is_not_replaced(tmp_path, mark, said):
    (tmp_path / 'old').write_text('yours')
    with pytest.raises(InputError, match=f'old is there already.* {said}: name another'):
        check_replaceable(tmp_path / 'old', 'a file of mine', mark)


def test_a_file_is_changed_where_it_is(tmp_path):
    with open_in_place(tmp_path / 'file') as file:
        file.write(b'one')
    with open_in_place(tmp_path / 'file') as file:
        file.write(b'O')
    with open_in_place(tmp_path / 'file', append=True) as file:
        file.seek(0)
        assert file.read() == b'One'
        file.seek(0)
        file.write(b'!')
    assert (tmp_path / 'file').read_bytes() == b'One!'


def test_a_long_name_can_be_written(tmp_path):
    with atomic_write(tmp_path / ('x' * 250)) as file:
        file.write(b'new')
