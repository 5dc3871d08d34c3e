"""Every way by which a checkpoint comes in: nothing of it is run, and what is wrong is told."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from helpers.hostile_checkpoints import reduced, through_getattr
from torch import nn

from freeatm_mm import checkpoints
from freeatm_mm.checkpoints import (
    check_complete,
    check_finite,
    check_trained,
    download,
    find_backbone,
    fit,
    last_checkpoint,
    load_weights,
    read_state,
)
from freeatm_mm.errors import InputError, MissingFileError


class Server:
    """Serves the files that a test gives it, and answers that never end."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                data = server.files.get(self.path.split('?')[0])
                if data is None and 'endless' not in self.path:
                    return self.send_error(404)
                self.send_response(200)
                if data is not None:
                    self.send_header('Content-Length', str(len(data) + ('cut' in self.path)))
                self.end_headers()
                try:
                    self.wfile.write(data or b'')
                    while data is None:
                        self.wfile.write(bytes(1 << 16))
                except OSError:
                    pass

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.address = f'http://127.0.0.1:{self.server.server_port}'


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'mmengine'))
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def load_by(way, path, server, monkeypatch):
    """Let mmengine, or a model of its, load a file that lies at a path and at an address."""
    from mmengine.model import BaseModule
    from mmengine.runner import CheckpointLoader, checkpoint, load_checkpoint

    from freeatm_mm.compat import read_checkpoints_safely

    read_checkpoints_safely()

    url = f'{server.address}/{path.name}'
    server.files[f'/{path.name}'] = path.read_bytes()
    for lists in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(checkpoint, lists, lambda: {'thing': url})
    address = {
        'http': url,
        'file': path.as_uri(),
        'torchvision': 'torchvision://thing',
        'open-mmlab': 'open-mmlab://thing',
        'openmmlab': 'openmmlab://thing',
        'mmcls': 'mmcls://thing',
        'modelzoo': 'modelzoo://thing',
    }.get(way, str(path))
    if way == 'init_cfg':
        model = BaseModule(dict(type='Pretrained', checkpoint=address))
        model.add_module('backbone', nn.Conv2d(1, 1, 1))
        return model.init_weights()
    if way == 'init_cfg with prefix':
        model = BaseModule(dict(type='Pretrained', checkpoint=address, prefix='backbone'))
        return model.init_weights()
    if way == 'load_checkpoint':
        return load_checkpoint(nn.Sequential(), address)
    if way == 'find_backbone':
        return find_backbone(url)
    return CheckpointLoader.load_checkpoint(address, 'cpu')


WAYS = (
    'path',
    'http',
    'file',
    'torchvision',
    'modelzoo',
    'open-mmlab',
    'openmmlab',
    'mmcls',
    'init_cfg',
    'init_cfg with prefix',
    'load_checkpoint',
    'find_backbone',
)


@pytest.mark.parametrize('way', WAYS)
def test_mmengine_runs_no_code_of_a_file(tmp_path, server, monkeypatch, way):
    pytest.importorskip('mmengine')
    for number, make in enumerate((reduced, through_getattr)):
        path = tmp_path / f'hostile_{number}.pth'
        path.write_bytes(make(tmp_path / 'marker'))
        with pytest.raises(InputError, match=r'hostile_\d.*\.pth can\'t be read: it holds'):
            load_by(way, path, server, monkeypatch)
        assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('way', WAYS)
def test_mmengine_reads_honest_files_by_every_way(tmp_path, server, monkeypatch, way):
    pytest.importorskip('mmengine')
    path = tmp_path / 'honest.pth'
    torch.save({'state_dict': {'backbone.conv1.weight': torch.ones(2)}}, path)
    load_by(way, path, server, monkeypatch)
    assert server.asked.count('/honest.pth') == (
        way not in ('path', 'file', 'init_cfg', 'init_cfg with prefix', 'load_checkpoint')
    )


def test_safetensors_are_told_by_their_bytes(tmp_path):
    from safetensors.torch import save_file

    for name in ('plain.safetensors', 'plain.pth'):
        save_file({'conv1.weight': torch.ones(2)}, tmp_path / name)
        assert load_weights(tmp_path / name)['conv1.weight'].sum() == 2
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-3])
        with pytest.raises(InputError, match=f"{name} can't be read: it is damaged or cut off"):
            load_weights(tmp_path / name)
    torch.save({'w': torch.ones(2)}, tmp_path / 'torch.safetensors')
    assert load_weights(tmp_path / 'torch.safetensors')['w'].sum() == 2


@pytest.mark.parametrize(
    'content, names',
    [
        (
            {'model': {'cls_token': 1, 'patch_embed.proj.weight': 1}, 'epoch': 3},
            {'cls_token', 'patch_embed.proj.weight'},
        ),  # MAE, DeiT
        (
            {
                'state_dict': {
                    'module.encoder_q.conv1.weight': 1,
                    'module.encoder_q.fc.0.weight': 1,
                    'module.encoder_k.conv1.weight': 1,
                    'module.queue': 1,
                },
                'arch': 'resnet50',
            },
            {'conv1.weight'},
        ),  # MoCo
        ({'module.conv1.weight': 1, 'module.fc.weight': 1}, {'conv1.weight'}),  # in DataParallel
        ({'conv1.weight': 1, 'fc.bias': 1}, {'conv1.weight'}),  # torchvision
        (
            {
                'state_dict': {'backbone.conv1.weight': 1, 'neck.w': 1},
                'optimizer': {'state': {}},
                'meta': {'iter': 7},
            },
            {'conv1.weight'},
        ),
    ],
)
def test_backbones_of_other_projects_checkpoints_are_found(tmp_path, content, names):
    def fill(value):
        return (
            {key: fill(part) for key, part in value.items()}
            if isinstance(value, dict)
            else torch.ones(1)
            if value == 1
            else value
        )

    torch.save(fill(content), tmp_path / 'theirs.pth')
    assert set(find_backbone(tmp_path / 'theirs.pth')) == names


@pytest.mark.parametrize(
    'content',
    [
        None,
        [],
        {},
        {'state_dict': {}},
        {'state_dict': [1]},
        {'model': 'x'},
        {1: torch.ones(1)},
        {'state_dict': {3: torch.ones(1)}},
        torch.ones(3),
    ],
)
def test_contents_without_weights_are_told(tmp_path, content):
    torch.save(content, tmp_path / 'odd.pth')
    with pytest.raises(InputError, match='odd.pth holds no weights'):
        load_weights(tmp_path / 'odd.pth')


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
)
def test_weights_that_are_not_finite_are_refused(tmp_path, dtype):
    broken = torch.ones(4).to(dtype)
    broken[1] = float('nan')
    weights = {
        'backbone.conv1.weight': torch.ones(2),
        'backbone.w': broken,
        'backbone.steps': torch.ones(1, dtype=torch.long),
        'backbone.n': broken,
    }
    with pytest.raises(
        InputError,
        match='x.pth holds weights that are NaN or infinite, in '
        'backbone.w, backbone.n: its training diverged',
    ):
        check_finite(weights, 'x.pth')
    torch.save({'state_dict': weights}, tmp_path / 'x.pth')
    with pytest.raises(InputError, match='NaN or infinite, in w, n'):
        find_backbone(tmp_path / 'x.pth')
    model = nn.Module()
    with pytest.raises(InputError, match='NaN or infinite'):
        check_complete(model, tmp_path / 'x.pth')


def test_a_whole_model_takes_nothing_of_a_larger_one(tmp_path):
    model, larger = nn.Module(), nn.Module()
    model.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    larger.backbone = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    torch.save(larger.state_dict(), tmp_path / 'larger.pth')
    with pytest.raises(InputError, match=r'larger model: .* nothing takes backbone\.2\.weight'):
        check_complete(model, tmp_path / 'larger.pth')
    torch.save({**model.state_dict(), 'aux.weight': torch.ones(1)}, tmp_path / 'more.pth')
    check_complete(model, tmp_path / 'more.pth')  # a part that it lacks, as an auxiliary head


def test_position_embeddings_pass_where_they_are_resized(tmp_path):
    model, resized = nn.Module(), []
    model.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))
    torch.save({'pos_embed': torch.ones(1, 9, 2)}, tmp_path / 'x.pth')
    with pytest.raises(InputError, match='in another shape, pos_embed'):
        check_complete(model, tmp_path / 'x.pth')
    model._register_load_state_dict_pre_hook(lambda *given: resized.append(given))
    check_complete(model, tmp_path / 'x.pth')


def test_what_fits_is_told_and_loaded_by_name_and_shape():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    weights = {
        '0.weight': torch.full((3, 2), 7.0),
        '0.bias': torch.ones(4),
        '1.weight': torch.full((3,), 5.0),
        '1.num_batches_tracked': torch.tensor(9),
        'extra': torch.ones(1),
        'old.num_batches_tracked': torch.tensor(9),
    }
    match = fit(module, weights, skip=[r'^2\.'])
    assert set(match.fitting) == {'0.weight', '1.weight', '1.num_batches_tracked'}
    assert match.missing == ('1.bias', '1.running_mean', '1.running_var')
    assert match.misshapen == {'0.bias': '(4,) for (3,)'} and match.unused == ('extra',)
    assert (match.matched, match.total, match.filled, match.used) == (2, 6, 2 / 6, 2 / 3)
    assert match.describe() == (
        '2 of the 6 tensors found their weights; not in the checkpoint: 1.bias, 1.running_mean, '
        "1.running_var; of another shape: 0.bias (4,) for (3,); the checkpoint's, unused: extra"
    )
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())
    match.load(module)
    for name, value in module.state_dict().items():
        assert value.equal(weights[name] if name in match.fitting else before[name])

    part = fit(module, {'weight': torch.ones(2, 3)}, ['2'], resize=lambda *_: torch.ones(1, 3))
    assert set(part.fitting) == {'2.weight'} and part.missing == ('2.bias',)
    assert fit(nn.Module(), {}).filled == 0


def test_infinite_weights_are_refused():
    with pytest.raises(InputError, match='infinite, in w'):
        check_finite({'w': torch.tensor([1.0, float('-inf')])}, 'x.pth')


def test_a_training_without_a_step_is_refused(tmp_path):
    content = {
        'state_dict': {'backbone.conv1.weight': torch.ones(1)},
        'meta': {'epoch': 40, 'iter': 0},
    }
    torch.save(content, tmp_path / 'untrained.pth')
    with pytest.raises(InputError, match='a training without a single step: its weights'):
        find_backbone(tmp_path / 'untrained.pth')
    for content in (None, {}, {'meta': None}, {'meta': {'iter': 1}}, {'meta': {'iter': 'x'}}):
        check_trained(content, 'x.pth')


def test_downloads_have_limits(tmp_path, server, monkeypatch):
    server.files |= {'/a/good-0676ba61.pth': b'1234', '/cut.pth': b'1234'}
    path = download(f'{server.address}/a/good-0676ba61.pth?x=1', tmp_path / 'cache')
    assert path == tmp_path / 'cache/good-0676ba61.pth' and path.read_bytes() == b'1234'
    assert download(f'{server.address}/other/good-0676ba61.pth', tmp_path / 'cache') == path
    assert len(server.asked) == 1
    monkeypatch.setattr(checkpoints, '_MOST_BYTES', 1 << 20)
    server.files['/large.pth'] = bytes((1 << 20) + 1)
    for name, message in [
        (
            'none.pth',
            "can't be fetched .*404.*: fetch .* put it at .*none-[0-9a-f]{8}.pth",
        ),
        ('endless.pth', 'is larger than'),
        ('large.pth', 'is larger than'),
        ('cut.pth', 'ended after 4 of 5 bytes'),
        ('', 'is the address of no file'),
    ]:
        with pytest.raises(InputError, match=message):
            download(f'{server.address}/{name}', tmp_path / 'cache')
    assert [file.name for file in (tmp_path / 'cache').iterdir()] == ['good-0676ba61.pth']
    monkeypatch.setattr(checkpoints, '_MOST_BYTES', 1 << 50)
    monkeypatch.setattr(checkpoints, '_PATIENCE', 0.2)
    monkeypatch.setattr(checkpoints, '_SLOWEST', 1 << 60)
    with pytest.raises(InputError, match='comes slower than'):
        download(f'{server.address}/endless.pth', tmp_path / 'cache')


def test_files_of_one_name_at_two_addresses_are_two(tmp_path, server):
    server.files |= {'/a/backbone.pth': b'1', '/b/backbone.pth': b'2', '/a/weights': b'3'}
    for _ in range(2):
        for name in ('a/backbone.pth', 'b/backbone.pth', 'a/weights'):
            path = download(f'{server.address}/{name}', tmp_path)
            assert path.read_bytes() == server.files[f'/{name}']
    assert len(server.asked) == len([*tmp_path.iterdir()]) == 3


def test_without_a_network_an_address_gets_one_sentence(server, monkeypatch):
    pytest.importorskip('mmengine')
    from mmengine.runner import checkpoint

    address = server.address
    server.server.shutdown()
    server.server.server_close()
    monkeypatch.setattr(checkpoint, 'get_torchvision_models', lambda: {'thing': f'{address}/r.pth'})
    with pytest.raises(InputError, match="r.pth can't be fetched .*fetch it elsewhere"):
        find_backbone('torchvision://thing')
    with pytest.raises(InputError, match='no checkpoint torchvision://other: mmengine knows no'):
        find_backbone('torchvision://other')


@pytest.mark.parametrize('note', ['', ' \n', '\0', '/', 'x' * 9999])
def test_a_note_of_the_last_checkpoint_that_names_none(tmp_path, note):
    (tmp_path / 'last_checkpoint').write_text(note)
    with pytest.raises(MissingFileError, match='delete that note to start anew'):
        last_checkpoint(tmp_path)


def test_a_name_is_no_way_out_of_the_folder(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'x.pth').write_bytes(b'1')
    (tmp_path / 'run/last_checkpoint').write_text('../x.pth')
    with pytest.raises(MissingFileError):
        last_checkpoint(tmp_path / 'run')
    (tmp_path / 'run/last_checkpoint').write_text('..')
    with pytest.raises(MissingFileError):
        last_checkpoint(tmp_path / 'run')


def test_an_unknown_scheme_is_told():
    pytest.importorskip('mmengine')
    with pytest.raises(InputError):
        find_backbone('ftp://nowhere/x.pth')


def test_reading_moves_to_where_it_is_told(tmp_path):
    torch.save({'w': torch.ones(1)}, tmp_path / 'x.pth')
    assert read_state(tmp_path / 'x.pth', 'meta')['w'].device.type == 'meta'
