"""The reader of torch's files: honest ones come back whole, of hostile ones nothing is run."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers.hostile_checkpoints import Planted, name, reduced, text, through_getattr, zipped

from freeatm_mm.errors import InputError, MissingFileError
from freeatm_mm.torch_files import read_torch_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'file.pth'


@pytest.mark.parametrize('zipped_form', [True, False])
def test_honest_contents_come_back_whole(path, zipped_form):
    shared = torch.arange(6.0).reshape(2, 3)
    state = OrderedDict(w=shared, view=shared[1], half=torch.ones(2, dtype=torch.bfloat16))
    state._metadata = OrderedDict({'': {'version': 2}})
    content = {
        'state_dict': state,
        'parameter': torch.nn.Parameter(torch.ones(2)),
        'rate': 0.1,
        'array': np.arange(6, dtype='>i4').reshape(2, 3).T,
        'none': np.zeros(0),
        'empty': b'',
        'scalar': np.float64(3.5),
        'truth': np.bool_(True),
        'bytes': b'\x00\xff',
        'big': 2**70,
        'list': [1, (2, 'x')],
        'set': {1, 2},
        'dtype': torch.float16,
        'size': torch.Size([1, 2]),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped_form)
    found = read_torch_file(path)
    assert found.keys() == content.keys()
    for key in ('rate', 'scalar', 'truth', 'bytes', 'empty', 'big', 'list', 'set', 'dtype', 'size'):
        assert found[key] == content[key] and type(found[key]) is type(content[key]), key
    for key in ('array', 'none'):
        assert np.array_equal(found[key], content[key]) and found[key].dtype == content[key].dtype
    assert isinstance(found['parameter'], torch.nn.Parameter)
    assert found['state_dict']._metadata == state._metadata
    found['state_dict']['w'][1, 0] = 99  # views share their memory as before
    assert found['state_dict']['view'][0] == 99
    with open(path, 'rb') as file:
        assert read_torch_file(file)['rate'] == 0.1


def test_mmengines_histories_come_back_working(path):
    pytest.importorskip('mmengine')
    from mmengine.logging import HistoryBuffer, MessageHub

    hub = MessageHub.get_instance('reader')
    for value in (1.0, 2.0, 6.0):
        hub.update_scalar('train/loss', value, 2)
    hub.update_info('iter', 3)
    torch.save({'message_hub': hub.state_dict(), 'empty': HistoryBuffer(max_length=5)}, path)
    found = read_torch_file(path)
    other = MessageHub.get_instance('reader_of_the_file')
    other.load_state_dict(found['message_hub'])
    history = other.get_scalar('train/loss')
    assert isinstance(history, HistoryBuffer) and history.max_length == 1000000
    assert [list(part) for part in history.data] == [[1.0, 2.0, 6.0], [2, 2, 2]]
    history.update(4.0)
    assert history.mean(1) == 4 and history.statistics('max') == 6 and history.current() == 4
    assert other.get_info('iter') == 3
    assert found['empty'].max_length == 5 and len(found['empty'].data[0]) == 0


def test_a_scripts_command_line_is_passed_over_and_told(path, caplog):
    """As in the checkpoints of MAE and DeiT."""
    args = argparse.Namespace(lr=0.1, output_dir=pathlib.Path('out'))
    torch.save({'model': {'w': torch.ones(1)}, 'args': args, 'list': [args, 1]}, path)
    found = read_torch_file(path)
    assert 'args' not in found and found['list'] == [None, 1] and found['model']['w'] == 1
    assert 'passed over what is not weights (argparse.Namespace, pathlib.' in caplog.text


@pytest.mark.parametrize(
    'make',
    [
        reduced,
        lambda marker: reduced(marker, _use_new_zipfile_serialization=False),
        through_getattr,
        lambda marker: pickle.dumps(Planted(marker), 2),
        lambda marker: pickle.dumps(Planted(marker), 0),
    ],
    ids=['reduced', 'older', 'getattr', 'pickle', 'pickle0'],
)
def test_code_is_not_run_and_named(path, tmp_path, make):
    path.write_bytes(make(tmp_path / 'marker'))
    with pytest.raises(
        InputError,
        match=r"file\.pth can't be read: it holds more than tensors and "
        r'plain values, namely .*(exec|_rebuild_from_type_v2).*nothing of',
    ) as told:
        read_torch_file(path)
    assert '\n' not in str(told.value) and not (tmp_path / 'marker').exists()


def test_names_that_other_packages_let_through_are_not_let_through_here(path, tmp_path):
    path.write_bytes(reduced(tmp_path / 'marker'))
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([exec]):
        with pytest.raises(InputError, match='exec'):
            read_torch_file(path)
        assert exec in torch.serialization.get_safe_globals()
    torch.save({'w': torch.ones(1)}, path)
    read_torch_file(path)
    assert set(torch.serialization.get_safe_globals()) == before


HISTORY = name('mmengine.logging.history_buffer', 'HistoryBuffer')
HOSTILE = {
    'function of a module': name('os', 'system') + text('true') + b'\x85R.',
    'getattr of a dict': (
        name('__builtin__', 'getattr')
        + name('collections', 'OrderedDict')
        + text('fromkeys')
        + b'\x86R'
        + text('a')
        + b'\x85R.'
    ),
    'history without numbers': HISTORY + b')\x81}b.',
    'history of a string': HISTORY + b')\x81' + text('x') + b'b.',
    'array of objects': (
        name('numpy._core.multiarray', '_reconstruct')
        + name('numpy', 'ndarray')
        + b'K\x00\x85'
        + text('b')
        + b'\x87R(K\x01K\x01\x85'
        + name('numpy', 'dtype')
        + text('O8')
        + b'\x89\x88\x87R\x89]Natb.'
    ),
    'array larger than its bytes': (
        name('numpy._core.multiarray', '_reconstruct')
        + name('numpy', 'ndarray')
        + b'K\x00\x85'
        + text('b')
        + b'\x87R(K\x01J\xff\xff\xff\x7f\x85'
        + name('numpy', 'dtype')
        + text('f8')
        + b'\x89\x88\x87R\x89'
        + text('12345678')
        + b'tb.'
    ),
    'bytes of a number': name('__builtin__', 'bytes') + b'J\xff\xff\xff\x7f\x85R.',
    'bytearray of a number': name('__builtin__', 'bytearray') + b'J\xff\xff\xff\x7f\x85R.',
    'deep key': b'}K\x01' + b'\x85' * 200_000 + b'K\x01s.',
    'deep list': b']' * 100_000 + b'a' * 99_999 + b'.',
    'cycle': b']q\x00h\x00a.',
    'no end': b'N' * 1000,
    'popped too often': b'0000.',
    'stack global': b'\x8c\x02os\x8c\x06system\x93.',
}


@pytest.mark.parametrize('case', HOSTILE)
def test_crafted_pickles_get_one_sentence(path, case):
    path.write_bytes(zipped(HOSTILE[case]))
    with pytest.raises(InputError, match=r"file\.pth can't be read: ") as told:
        read_torch_file(path)
    assert '\n' not in str(told.value) and len(str(told.value)) < 500
    assert 'weights_only' not in str(told.value)  # torch's advice is to run it


def test_a_doubling_structure_takes_no_time(path):
    path.write_bytes(
        zipped(b']q\x00' + b''.join(b'](h%ch%ceq%c' % (i, i, i + 1) for i in range(60)) + b'.')
    )
    read_torch_file(path)


def test_methods_cannot_be_hidden_by_attributes(path):
    path.write_bytes(
        zipped(name('collections', 'OrderedDict') + b')R}' + text('items') + b'K\x01sb.')
    )
    assert list(read_torch_file(path).items()) == []


def test_files_that_claim_more_than_they_have(path):
    torch.save({'w': torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(InputError, match='is larger than the file'):
        read_torch_file(path)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', b'\x80\x02}.')
        archive.writestr('archive/data/0', bytes(1 << 24))
    with pytest.raises(InputError, match='says it holds more bytes than it has'):
        read_torch_file(path)
    with open(path, 'wb') as file:  # endless as far as anybody would read it
        file.write(b'\x80\x02X\xff\xff\xff\xff')
        file.truncate(1 << 40)
    with pytest.raises(InputError, match='its pickle is longer than 512 MiB'):
        read_torch_file(path)


@pytest.mark.parametrize('older', [False, True])
def test_every_cut_is_told(path, older):
    torch.save(
        {'w': torch.arange(10.0), 'v': torch.ones(3)},
        path,
        _use_new_zipfile_serialization=not older,
    )
    whole = path.read_bytes()
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="can't be read: it is damaged or cut off"):
            read_torch_file(path)


def test_flipped_bytes_are_told_or_harmless(path, tmp_path):
    torch.save({'state_dict': {'w': torch.arange(10.0)}, 'meta': {'n': np.float64(1)}}, path)
    whole, generator, refused = path.read_bytes(), np.random.default_rng(0), 0
    for position in generator.integers(0, len(whole), 400):
        changed = bytearray(whole)
        changed[position] ^= 1 << generator.integers(8)
        path.write_bytes(changed)
        try:
            read_torch_file(path)
        except InputError:
            refused += 1
    assert 100 < refused < 400


def test_what_is_no_file_is_told(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'zero').symlink_to('/dev/zero')
    (tmp_path / 'circle').symlink_to(tmp_path / 'circle')
    (tmp_path / 'empty').write_bytes(b'')
    (tmp_path / 'text').write_text('weights')
    for path, message in [
        ('pipe', 'is a pipe or a device'),
        ('zero', 'is a pipe or a device'),
        ('.', 'is a folder'),
        ('circle', "can't be opened"),
        ('a\0b', 'opened'),
        ('empty', 'it is empty'),
        ('text', "can't be read"),
    ]:
        with pytest.raises(InputError, match=message):
            read_torch_file(tmp_path / path)
    with pytest.raises(MissingFileError, match='there is no checkpoint'):
        read_torch_file(tmp_path / 'none.pth')
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / 'script.pth')
    with pytest.raises(InputError, match='something else than weights'):
        read_torch_file(tmp_path / 'script.pth')
