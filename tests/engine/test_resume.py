"""A run that was stopped and resumed ends bit-equal to one that was not."""

import numpy as np
import pytest
import torch
from helpers.hostile_checkpoints import reduced, through_getattr
from helpers.tiny_runs import config, different, run, state, train
from helpers.tiny_stores import make_store
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader

from freeatm_mm.errors import InputError

load = CheckpointLoader.load_checkpoint
METHODS = ('mocov2', 'simclr', 'mae')

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.mark.parametrize(
    'method, workers, killed_at',
    [
        # Within an epoch, and right after one; loading in the process itself, or in another.
        ('mocov2', 0, 3),
        ('mocov2', 1, 4),
        ('simclr', 0, 3),
        ('simclr', 0, 4),
        ('mae', 0, 3),
        ('mae', 1, 4),
    ],
)
def test_stopped_and_resumed_equals_never_stopped(tmp_path, method, workers, killed_at):
    store = make_store(tmp_path / 'store', count=20)
    name = f'{method}_{workers}_{killed_at}'
    runner, watch = run(config(store, tmp_path / 'whole', method), f'{name}_whole')
    whole = state(runner)
    part = config(store, tmp_path / 'part', method, workers)
    train(part, f'{name}_part', killed_at)
    np.random.seed(99)  # a new process starts anywhere
    torch.manual_seed(99)
    part.resume = True
    resumed_runner, resumed_watch = run(part, f'{name}_resumed')
    assert not different(whole, state(resumed_runner))
    assert runner.iter == resumed_runner.iter == 6
    # Losses, beta and statistics are those of the run never stopped, too.
    assert resumed_watch.outputs == watch.outputs[-len(resumed_watch.outputs) :]
    if method == 'mocov2':
        assert int(whole['encoder_k.steps']) == 6 and len(set(whole['queue_nouns'].tolist())) > 2
    if method == 'mae':
        betas = [output['beta'] for output in watch.outputs]
        np.testing.assert_allclose(betas, 0.8 * np.arange(6) / 5, rtol=1e-6)


@pytest.mark.parametrize('workers, saved_at', [(1, 3), (0, 4)])
def test_resumed_within_an_epoch(tmp_path, workers, saved_at):
    """The epoch goes on with its next batch, also where the last one is smaller."""
    store = make_store(tmp_path / 'store', count=14)  # batches of 4, 4, 4, 2

    def small(name, workers=0):
        cfg = config(store, tmp_path / name, 'mae', workers)
        cfg.train_dataloader.update(batch_size=4, drop_last=False)
        cfg.train_cfg.max_epochs = 2
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=saved_at)
        cfg.custom_hooks.append(dict(type='CheckTrainingHook'))
        return cfg

    runner, watch = run(small('whole'), f'within_whole_{saved_at}')
    assert runner.iter == 8
    part = small('part', workers)
    train(part, f'within_part_{saved_at}', saved_at + 1)
    part.resume = True
    resumed, resumed_watch = run(part, f'within_resumed_{saved_at}')
    assert not different(state(runner), state(resumed))
    assert resumed.iter == 8 and len(resumed_watch.outputs) == 8 - saved_at
    assert resumed_watch.outputs == watch.outputs[saved_at:]


def test_other_samplers_are_warned_of_on_resuming(tmp_path, monkeypatch):
    cfg = config(make_store(tmp_path / 'store', count=20), tmp_path / 'run')
    cfg.train_dataloader.sampler.type = 'DefaultSampler'
    log = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *rest: log.append(text))
    train(cfg, 'unseeded', killed_at=3)
    assert not any('no seed' in text for text in log)
    cfg.resume = True
    train(cfg, 'unseeded_resumed')
    assert any('DefaultSampler gives draws no seed' in text for text in log)


def test_resume_of_a_run_without_given_seed(tmp_path):
    """The seed that the first run drew comes from its checkpoint."""
    store = make_store(tmp_path / 'store', count=20)
    cfg = config(store, tmp_path / 'run', randomness=dict(seed=None))
    train(cfg, 'drawn', killed_at=3)
    cfg.resume = True
    resumed = train(cfg, 'drawn_and_resumed')
    drawn = load(str(tmp_path / 'run' / 'epoch_1.pth'))['meta']['seed']
    whole = train(config(store, tmp_path / 'whole', randomness=dict(seed=drawn)), 'drawn_whole')
    assert not different(whole, resumed)


@pytest.mark.parametrize('method', METHODS)
def test_iteration_based_run_resumes(tmp_path, method):
    """As `docs/pretraining.md` says: loop, schedules, checkpoints and sampler by iterations."""
    store = make_store(tmp_path / 'store', count=20)

    def iterations(name):
        cfg = config(store, tmp_path / name, method)
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=5)
        cfg.param_scheduler = [dict(type='CosineAnnealingLR', T_max=5, by_epoch=False)]
        cfg.train_dataloader.sampler.type = 'SeededInfiniteSampler'
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
        return cfg

    whole = train(iterations('whole'), f'{method}_iterations_whole')
    cfg = iterations('part')
    train(cfg, f'{method}_iterations_part', killed_at=4)
    cfg.resume = True
    resumed = train(cfg, f'{method}_iterations_resumed')
    assert not different(whole, resumed)


def test_a_text_in_a_checkpoint_is_not_run_by_resuming(tmp_path):
    """mmengine runs what mmcv 1 kept under `config`, to compare numbers of GPUs."""
    cfg = config(make_store(tmp_path / 'store', count=20), tmp_path / 'run')
    train(cfg, 'with_config', killed_at=3)
    path, marker = tmp_path / 'run/epoch_1.pth', tmp_path / 'marker'
    content = load(str(path))
    content['meta']['config'] = f'__import__("pathlib").Path({str(marker)!r}).touch()'
    torch.save(content, path)
    cfg.resume = True
    train(cfg, 'with_config_resumed')
    assert not marker.exists()


@pytest.mark.parametrize('key', ['resume', 'load_from'])
@pytest.mark.parametrize('make', [reduced, through_getattr])
def test_code_in_a_checkpoint_is_not_run_by_going_on_from_it(tmp_path, key, make):
    cfg = config(make_store(tmp_path / 'store', count=20), tmp_path / 'run')
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(make(tmp_path / 'marker'))
    if key == 'resume':  # by the note in the work directory
        cfg.resume = True
        (tmp_path / 'run').mkdir()
        path = path.rename(tmp_path / 'run/epoch_1.pth')
        (tmp_path / 'run/last_checkpoint').write_text(str(path))
    else:
        cfg.load_from = str(path)
    with pytest.raises(InputError, match='it holds more than tensors'):
        train(cfg, f'hostile_{key}_{make.__name__}')
    assert not (tmp_path / 'marker').exists()
