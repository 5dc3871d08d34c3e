"""Memory layout: channels-last trainings on every kind of processor."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

pytestmark = pytest.mark.filterwarnings('ignore')
ROOT = Path(__file__).resolve().parents[2]
LEVELS = {
    'avx2': dict(ONEDNN_MAX_CPU_ISA='AVX2', ATEN_CPU_CAPABILITY='avx2'),
    'sse41': dict(ONEDNN_MAX_CPU_ISA='SSE41', ATEN_CPU_CAPABILITY='default'),
    'this': {},
}


class Layers(BaseModel):
    """Strided 1x1 convolutions of few channels beside others; the loss is their outputs'."""

    def __init__(self, channels):
        super().__init__()
        self.strided = nn.ModuleList(nn.Conv2d(channels, 8, 1, stride) for stride in (2, (1, 2), 4))
        self.others = nn.ModuleList(
            [
                nn.Conv2d(channels, 8, 1),
                nn.Conv2d(channels, 8, 3, 2, 1),
                nn.Conv2d(channels, channels, 1, 2, groups=channels),
            ]
        )

    def forward(self, inputs, mode='loss'):
        images = inputs.contiguous(memory_format=torch.channels_last)
        return dict(
            loss=sum(layer(images).square().sum() for layer in (*self.strided, *self.others))
        )


def train_layers():
    """For few and many channels and two sizes: gradients as without oneDNN, in channels-last."""
    from types import SimpleNamespace

    from freeatm_mm.engine import ChannelsLastHook

    torch.manual_seed(0)
    for channels in (1, 4, 7, 15, 16):
        for size in (8, 64):
            model = Layers(channels)
            images = torch.randn(4, channels, size, size)
            with torch.backends.mkldnn.flags(enabled=False):
                model(images)['loss'].backward()
            wanted = [parameter.grad for parameter in model.parameters()]
            for _ in range(2):  # once more changes nothing
                ChannelsLastHook().before_train(SimpleNamespace(model=model))
            for _ in range(4):
                model.zero_grad()
                model(images)['loss'].backward()
                for parameter, gradient in zip(model.parameters(), wanted):
                    torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-2)


def in_a_process(command, level):
    """A command with another processor's instructions, as far as this processor has them."""
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={
            **os.environ,
            **LEVELS[level],
            'OMP_NUM_THREADS': '1',
            'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests' / 'engine')]),
        },
    )
    assert ended.returncode == 0, f'{ended.returncode}: {ended.stdout[-3000:]}{ended.stderr}'


@pytest.mark.parametrize('level', ['sse41', 'this'])
def test_strided_pointwise_convolutions_of_few_channels(level):
    """oneDNN's fault: the process dies, hangs or gets wrong gradients without the workaround."""
    if LEVELS[level]:
        in_a_process(['-c', 'import test_hooks; test_hooks.train_layers()'], level)
    else:
        train_layers()


def test_trainings_with_the_instructions_of_older_processors():
    in_a_process(
        [
            '-m',
            'pytest',
            '-q',
            '-p',
            'no:cacheprovider',
            '-p',
            'no:xdist',
            'tests/engine/test_regimes.py',
            'tests/engine/test_hooks.py::test_strided_pointwise_convolutions_of_few_channels[this]',
        ],
        'avx2',
    )


def test_only_the_layers_concerned_keep_the_usual_order():
    """So that the rest stays fast; and one channel has strides of both orders at once."""
    from types import SimpleNamespace

    from freeatm_mm.engine import ChannelsLastHook

    model = Layers(4)
    ChannelsLastHook().before_train(SimpleNamespace(model=model))
    assert all(len(layer._forward_pre_hooks) == 1 for layer in model.strided)
    assert not any(layer._forward_pre_hooks for layer in model.others)
    wide = nn.Conv2d(16, 8, 1, 2)
    ChannelsLastHook().before_train(SimpleNamespace(model=wide))
    assert not wide._forward_pre_hooks

    seen = []
    layer = Layers(1)
    ChannelsLastHook().before_train(SimpleNamespace(model=layer))
    layer.strided[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    layer(torch.zeros(2, 1, 8, 8))
    assert seen[0].stride() == (64, 64, 8, 1)
    assert layer.strided[0].weight.stride() == (1, 1, 1, 1)


@pytest.mark.parametrize('method', ['mocov2', 'mae'])
def test_views_and_losses_are_logged_to_tensorboard(tmp_path, method):
    """mmengine's backend: curves of all that is logged, and pictures of the views when asked to."""
    from helpers.tiny_runs import config, different, run, state
    from helpers.tiny_stores import make_store
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store = make_store(tmp_path / 'store', count=20)
    backends = [dict(type='TensorboardVisBackend')]

    def train(name, **changes):
        cfg = config(store, tmp_path / name, method, **changes)
        cfg.visualizer = dict(type='UniversalVisualizer', vis_backends=backends)
        return run(cfg, f'logged_{method}_{name}')

    runner, watch = train('plain')
    hook = {'default_hooks.views.type': 'LogViewsHook', 'default_hooks.views.interval': 4}
    shown, _ = train('shown', **hook)
    assert not different(state(runner), state(shown))
    (file,) = (tmp_path / 'shown').rglob('events.*')
    events = EventAccumulator(str(file), size_guidance=dict(images=0)).Reload()
    losses = [event.value for event in events.Scalars('loss')]
    expected = np.cumsum([output['loss'] for output in watch.outputs]) / np.arange(1, 7)
    assert losses == pytest.approx(expected, rel=1e-5)  # means of up to ten
    assert [event.step for event in events.Images('views')] == [1, 4]
    (file,) = (tmp_path / 'plain').rglob('events.*')
    assert EventAccumulator(str(file)).Reload().Tags()['images'] == []


def test_views_and_losses_are_logged_to_wandb(tmp_path, monkeypatch):
    """The real wandb, without a network: what `wandb sync` would upload lies in the folder."""
    wandb = pytest.importorskip('wandb')
    from helpers.tiny_runs import config, run
    from helpers.tiny_stores import make_store

    for name, value in dict(MODE='offline', SILENT='true', DISABLE_GIT='true').items():
        monkeypatch.setenv(f'WANDB_{name}', value)
    monkeypatch.chdir(tmp_path)  # mmengine hands over the programs below it
    hook = {'default_hooks.views.type': 'LogViewsHook', 'default_hooks.views.interval': 4}
    cfg = config(make_store(tmp_path / 'store', count=20), tmp_path / 'run', **hook)
    backend = dict(
        type='WandbVisBackend',
        init_kwargs=dict(project='freeatm'),
        define_metric_cfg=[dict(name='*', step_metric='iter')],
    )
    cfg.visualizer = dict(type='UniversalVisualizer', vis_backends=[backend])
    try:
        _, watch = run(cfg, 'logged_to_wandb')
    finally:
        wandb.finish()
    (file,) = (tmp_path / 'run').rglob('offline-run-*/*.wandb')
    rows = wandb_history(file)
    losses = [row['loss'] for row in rows if 'loss' in row]
    expected = np.cumsum([output['loss'] for output in watch.outputs]) / np.arange(1, 7)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert [row['iter'] for row in rows if 'loss' in row] == [1, 2, 3, 4, 5, 6]
    pictures = [file.parent / 'files' / row['views.path'] for row in rows if 'views.path' in row]
    assert len(pictures) == 2 and all(picture.is_file() for picture in pictures)


def wandb_history(path):
    """The rows that a run's file holds: records in blocks, as LevelDB writes its log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole, rows = path.read_bytes(), 7, b'', []
    while place + 7 <= len(data):
        place += (left := 32768 - place % 32768) * (left < 7)  # no header fits in
        length, kind = struct.unpack_from('<HB', data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            items = Record.FromString(whole).history.item
            rows += [
                {i.key or '.'.join(i.nested_key): json.loads(i.value_json) for i in items}
            ] * bool(items)
            whole = b''
    return rows


def test_a_picture_of_views_shows_their_masks(tmp_path):
    """The mask's colour where it is high, the view in its own colours, image by image."""
    from types import SimpleNamespace

    from helpers.tiny_models import samples

    from freeatm_mm.engine import LogViewsHook

    pictures = []
    model = SimpleNamespace(data_preprocessor=SimpleNamespace(_channel_conversion=True))
    runner = SimpleNamespace(
        iter=0,
        model=model,
        visualizer=SimpleNamespace(
            add_image=lambda name, picture, step: pictures.append((name, picture, step))
        ),
    )
    views = [torch.zeros(3, 3, 32, 32, dtype=torch.uint8) for _ in range(2)]
    views[0][:, 0] = 200  # blue, as OpenCV has it
    data = samples([1, 2, None], number=2)
    data[0].instance_masks = torch.zeros(2, 1, 4, 4)
    data[0].instance_masks[0, 0, :2, :2] = 0.01  # however low, it is shown by its highest value
    hook = LogViewsHook(interval=3, images=2, size=64)
    hook.before_train_iter(runner, 0, dict(inputs=views, data_samples=data))
    ((name, picture, step),) = pictures
    assert (name, step) == ('views', 1)
    blue = (picture[..., 2].astype(int) - picture[..., 0] > 150).sum()
    orange = (picture[..., 0].astype(int) - picture[..., 2] > 60).sum()
    assert 2 * 60 * 60 < blue < 2 * 66 * 66 and orange > 500
    for runner.iter in (1, 2, 3):
        hook.before_train_iter(runner, 1, dict(inputs=views, data_samples=data))
    assert [step for *_, step in pictures] == [1, 3]
    with pytest.raises(ValueError, match='LogViewsHook: interval must be above 0, got 0'):
        LogViewsHook(interval=0)
