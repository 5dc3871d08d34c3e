"""Runs that train nothing, get NaN, or are resumed otherwise: stopped in one sentence."""

import copy
from unittest import mock

import pytest
import torch
from helpers.tiny_models import BACKBONE
from helpers.tiny_runs import MODELS, config, run, train
from helpers.tiny_stores import make_store
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader
from PIL import Image

from freeatm_mm.configs import check_honoured, check_precision, scale_rate
from freeatm_mm.engine.check_training import describe_schedule
from freeatm_mm.errors import InputError

METHODS = ('mocov2', 'simclr', 'mae')

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / 'store', count=20)


def checked(store, work_dir, method='mocov2', **changes):
    """A tiny training with the hook, that keeps one checkpoint."""
    cfg = config(store, work_dir, method)
    cfg.custom_hooks.append(dict(type='CheckTrainingHook'))
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    cfg.merge_from_dict(copy.deepcopy(changes))  # it would take out `_delete_`
    return cfg


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
    'number, changes',
    [
        (0, {'train_dataloader.batch_size': 25}),  # a store smaller than a batch
        (1, {'train_dataloader.dataset.share': 0.4}),
        (2, {'train_dataloader.dataset.indices': 9}),
        (
            3,
            {
                'train_dataloader.sampler.type': 'SeededInfiniteSampler',
                'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=4),
                'train_dataloader.batch_size': 25,
            },
        ),
        (
            4,
            {
                'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=4),
                'train_dataloader.batch_size': 25,
            },
        ),
        (5, {'train_cfg.max_epochs': 0, 'param_scheduler': None}),
        (6, {'optim_wrapper.accumulative_counts': 7}),
    ],
)
def test_nothing_would_be_trained(tmp_path, store, method, number, changes):
    cfg = checked(store, tmp_path / 'run', method, **changes)
    with pytest.raises(InputError, match='nothing would be trained|no step would be made'):
        run(cfg, f'nothing_{method}_{number}')
    assert not list((tmp_path / 'run').glob('*.pth'))


@pytest.mark.parametrize('iterations', [4, 30])
def test_a_loss_of_nothing_trains_nothing(tmp_path, store, iterations):
    """Of one image a batch there is no other to tell it from."""
    changes = {
        'train_dataloader.batch_size': 1,
        'train_dataloader.dataset.masks': False,
        'train_dataloader.sampler.type': 'SeededInfiniteSampler',
        'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=iterations),
        'param_scheduler': None,
    }
    cfg = checked(store, tmp_path / 'run', 'simclr', **changes)
    with pytest.raises(InputError, match=f'exactly 0 in {min(iterations, 20)} iterations'):
        run(cfg, f'idle_{iterations}')
    assert not list((tmp_path / 'run').glob('*.pth'))


@pytest.fixture
def folder(tmp_path):
    """Plain images."""
    (tmp_path / 'real').mkdir()
    for number in range(20):
        Image.new('RGB', (32, 24), (number, 0, 0)).save(tmp_path / 'real' / f'{number}.png')
    return tmp_path / 'real'


NO_MASKS = {'train_dataloader.dataset.masks': False}


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize(
    'number, method, option, changes',
    [
        (0, 'mocov2', {'model.positives': 'same_noun'}, NO_MASKS),
        (1, 'simclr', {'model.negatives': 'other_nouns'}, NO_MASKS),
        (2, 'simclr', {'model.positives': 'same_noun'}, {'folder': True}),
        (
            3,
            'mocov2',
            {'model.negatives': 'other_nouns'},
            {'train_dataloader.dataset.pipeline.2.with_masks': False},
        ),
        (4, 'mocov2', {'model.positives': 'same_noun'}, {'nouns': 0}),
    ],
)
def test_nouns_that_nobody_gives_are_told(
    tmp_path, store, folder, number, method, option, changes, wrapped
):
    """The baseline would be trained, and called a variant."""
    changes = dict(changes)
    if changes.pop('folder', False):
        store = folder
    if changes.pop('nouns', None) == 0:
        store = make_store(tmp_path / 'nounless', count=20, nouns=(0,))
    cfg = checked(store, tmp_path / 'run', method, **option, **changes)
    if wrapped:
        ours = cfg.train_dataloader.dataset
        cfg.train_dataloader.dataset = dict(
            type='ConcatDataset', datasets=[ours, dict(type='RepeatDataset', times=1, dataset=ours)]
        )
    [(key, value)] = option.items()
    with pytest.raises(InputError, match=f'^{key}={value} goes by the nouns of masks, and no data'):
        run(cfg, f'nouns_{number}_{wrapped}')
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_nouns_that_a_part_of_the_data_gives_are_enough(tmp_path, store, folder):
    ours = checked(store, tmp_path / 'run', **{'model.positives': 'same_noun'})
    part = copy.deepcopy(ours.train_dataloader.dataset)
    part.update(data_root=str(folder), masks=False)
    ours.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[part, ours.train_dataloader.dataset]
    )
    ours.train_cfg.max_epochs = 1
    runner, _ = run(ours, 'nouns_of_a_part')
    assert runner.iter == 4


MLP = dict(in_channels=8, hid_channels=8, out_channels=6, num_layers=2, norm_cfg=dict(type='BN1d'))
PREDICTOR = dict(MLP, type='NonLinearNeck', in_channels=6, with_avg_pool=False)
LATENT = dict(type='LatentPredictHead', loss=dict(type='CosineSimilarityLoss'), predictor=PREDICTOR)
CORRELATION = dict(
    type='LatentCrossCorrelationHead', in_channels=6, loss=dict(type='CrossCorrelationLoss')
)


HEADS = {'FreeATMSimCLR': MODELS['simclr']['head'], 'FreeATMBarlowTwins': CORRELATION}


def of_one(store, work_dir, name, batch=19, **changes):
    """A training on 20 images whose batches, the last one or all, may be of one."""
    cfg = checked(store, work_dir, 'simclr')
    neck = 'FreeATMNonLinearNeck' if name.startswith('FreeATM') else 'NonLinearNeck'
    cfg.model = dict(
        type=name,
        backbone=BACKBONE,
        neck=dict(MLP, type=neck),
        head=HEADS.get(name, LATENT),
        data_preprocessor=cfg.model.data_preprocessor,
    )
    cfg.train_dataloader.update(batch_size=batch, drop_last=False)
    cfg.train_cfg.max_epochs = 1
    cfg.merge_from_dict(copy.deepcopy(changes))
    return cfg


@pytest.mark.parametrize('batch', [19, 1])
@pytest.mark.parametrize('name', ['FreeATMSimSiam', 'FreeATMBYOL', 'FreeATMBarlowTwins', 'SimSiam'])
def test_a_batch_of_one_image_is_told_before_the_first(tmp_path, store, name, batch):
    told = (
        'the last batch of an epoch of 20 samples has one: set train_dataloader.drop_last=True, or'
        if batch > 1
        else 'each batch has one: set a larger one$'
    )
    cfg = of_one(store, tmp_path / 'run', name, batch)
    with mock.patch('mmengine.model.BaseModel.train_step', side_effect=AssertionError):
        with pytest.raises(InputError, match=f'^{name} .* two images .*batch_size={batch} {told}'):
            run(cfg, f'one_{name}_{batch}')


BY_ITERATIONS = {
    'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=1),
    'param_scheduler': None,
}


@pytest.mark.parametrize(
    'number, name, changes',
    [
        (0, 'FreeATMSimSiam', {'train_dataloader.drop_last': True}),
        (1, 'FreeATMSimSiam', {'train_dataloader.batch_size': 18}),
        (2, 'FreeATMSimCLR', {}),  # its views are normalised together
        (3, 'FreeATMSimSiam', BY_ITERATIONS),  # it ends before that batch
        (
            4,
            'FreeATMSimSiam',
            {
                **BY_ITERATIONS,
                'train_cfg.max_iters': 3,
                'train_dataloader.sampler.type': 'SeededInfiniteSampler',
            },
        ),
        (
            5,
            'FreeATMSimSiam',
            {
                f'model.{part}.norm_cfg': dict(_delete_=True, type='GN', num_groups=2)
                for part in ('neck', 'head.predictor')
            },
        ),
    ],
)
def test_where_no_batch_of_one_image_does_harm_it_trains(tmp_path, store, number, name, changes):
    changes = {**changes, 'train_dataloader.dataset.masks': False}
    runner, watch = run(of_one(store, tmp_path / 'run', name, **changes), f'safe_{number}')
    assert runner.iter == len(watch.outputs) == runner.max_iters


def test_several_processes_count_together(tmp_path, store, monkeypatch):
    from freeatm_mm.engine import check_training

    monkeypatch.setattr(check_training, 'get_world_size', lambda: 3)
    cfg = checked(
        store,
        tmp_path / 'run',
        **{
            'train_dataloader.sampler.type': 'SeededInfiniteSampler',
            'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=4),
        },
    )
    with pytest.raises(InputError, match='20 samples, and a batch is 10 on each of 3 processes'):
        run(cfg, 'processes')


class Spoil(Hook):
    """Makes one weight no number before an iteration, or right after it."""

    priority = 'HIGHEST'

    def __init__(self, at, after):
        self.at, self.after = at, after

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at and not self.after:
            self._spoil(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.at and self.after:
            self._spoil(runner)

    @staticmethod
    def _spoil(runner):
        weights = next(runner.model.parameters()).data
        weights[(0,) * weights.dim()] = float('nan')


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('after, by_epoch', [(False, True), (True, True), (True, False)])
def test_nan_stops_the_run_and_the_good_checkpoint_stays(tmp_path, store, method, after, by_epoch):
    from mmengine.registry import HOOKS

    HOOKS.register_module(module=Spoil, force=True)
    # Two iterations an epoch: a checkpoint after the second; the fourth is spoiled.
    cfg = checked(store, tmp_path / 'run', method)
    cfg.default_hooks.checkpoint.update(by_epoch=by_epoch, interval=1 if by_epoch else 2)
    name = 'epoch_1.pth' if by_epoch else 'iter_2.pth'
    cfg.custom_hooks.append(dict(type='Spoil', at=3, after=after))
    what = 'these weights are not' if after else r'loss = nan'
    with pytest.raises(InputError, match=rf'^iteration 4 \(epoch 2\): .*{what}.*learning rate'):
        run(cfg, f'nan_{method}_{after}_{by_epoch}')
    left = sorted(path.name for path in (tmp_path / 'run').glob('*.pth'))
    assert left == [name]
    state = torch.load(tmp_path / 'run' / name, weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in state.values())


def test_steps_left_out_by_loss_scaling_are_none_of_it():
    """A scaler leaves out steps whose numbers overflowed; only a long row of them is a fault."""
    from types import SimpleNamespace

    from freeatm_mm.engine import CheckTrainingHook

    runner = SimpleNamespace(
        iter=0,
        epoch=0,
        hooks=[],
        optim_wrapper=SimpleNamespace(loss_scaler=SimpleNamespace(is_enabled=lambda: True)),
    )
    hook = CheckTrainingHook()
    bad, good = dict(loss=torch.tensor(float('inf'))), dict(loss=torch.tensor(1.0))
    for outputs in [bad] * 19 + [good] + [bad] * 19:
        hook.after_train_iter(runner, 0, None, outputs)
    with pytest.raises(InputError, match='20th time in a row'):
        hook.after_train_iter(runner, 0, None, bad)


@pytest.mark.parametrize(
    'number, changes, message',
    [
        (
            0,
            {'optim_wrapper.optimizer.lr': 0.01},
            r'optim_wrapper.optimizer.lr \(was 0.05, is 0.01\)',
        ),
        (1, {'optim_wrapper.optimizer.momentum': 0.5}, 'optimizer.momentum'),
        (
            2,
            {'param_scheduler': [dict(type='CosineAnnealingLR', T_max=9, by_epoch=True)]},
            r'T_max \(was 3, is 9\)',
        ),
        (3, {'train_cfg.max_epochs': 9}, r'end \(was 3, is 9\)'),
        (4, {'auto_scale_lr': dict(enable=True, base_batch_size=5)}, 'auto_scale_lr.enable'),
    ],
)
def test_resuming_otherwise_is_refused(tmp_path, store, number, changes, message):
    cfg = checked(store, tmp_path / 'run')
    train(cfg, f'otherwise_{number}', killed_at=3)
    cfg.resume = True
    again = cfg.copy()
    again.merge_from_dict(changes)
    with pytest.raises(InputError, match=f'trains otherwise: .*{message}.*without --resume'):
        run(again, f'otherwise_{number}_again')
    runner, _ = run(cfg, f'otherwise_{number}_same')
    assert runner.iter == 6


@pytest.mark.parametrize('first', ['epochs', 'iterations'])
def test_resuming_a_run_that_counts_otherwise_is_refused(tmp_path, store, first):
    by_iterations = {
        'train_dataloader.sampler.type': 'SeededInfiniteSampler',
        'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=6),
        'param_scheduler': None,
        'default_hooks.checkpoint': dict(by_epoch=False, interval=2),
    }
    runs = {
        'epochs': checked(store, tmp_path / 'run', param_scheduler=None),
        'iterations': checked(store, tmp_path / 'run', **by_iterations),
    }
    train(runs.pop(first), f'counts_{first}', killed_at=4)
    ((other, cfg),) = runs.items()
    cfg.resume = True
    with pytest.raises(InputError, match=f'a run that counts {first}, and this one counts {other}'):
        run(cfg, f'counts_{other}')


@pytest.mark.parametrize(
    'number, method, names, trained',
    [
        (0, 'mocov2', ['backbone'], False),
        (1, 'mocov2', 'backbone.conv1', False),
        (2, 'mocov2', ['backbone.layer2'], True),
        (3, 'mae', ['backbone'], False),
        (4, 'mae', ['backbone.layers.1'], True),
    ],
)
def test_what_is_computed_again_is_trained(tmp_path, store, number, method, names, trained):
    """mmengine gives no gradients to checkpointed modules whose inputs have none."""
    cfg = checked(store, tmp_path / 'run', method, activation_checkpointing=names)
    if trained:
        runner, watch = run(cfg, f'again_{number}')
        assert len(watch.outputs) == runner.iter
        return
    name = names if isinstance(names, str) else names[0]
    with pytest.raises(InputError, match=f'activation_checkpointing: {name} would not be trained'):
        run(cfg, f'again_{number}')
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_resuming_with_other_iterations_is_refused(tmp_path, store, monkeypatch):
    """Whatever the number of processes, an iteration must have as many images as before."""
    from freeatm_mm.engine import check_training

    cfg = checked(store, tmp_path / 'run')
    train(cfg, 'iterations', killed_at=3)
    cfg.resume = True
    half = copy.deepcopy(cfg)
    half.train_dataloader.batch_size = 5
    with pytest.raises(
        InputError, match=r'10 images an iteration .processes: 1., and this one has'
    ):
        run(half, 'iterations_half')
    monkeypatch.setattr(check_training, 'get_world_size', lambda: 2)
    with pytest.raises(InputError, match=r'has 20 .processes: 2.*whose product is 10'):
        run(cfg, 'iterations_two')
    path = tmp_path / 'run/epoch_1.pth'
    content = CheckpointLoader.load_checkpoint(str(path))
    content['meta']['processes'] = 2  # of 5 images each
    torch.save(content, path)
    monkeypatch.undo()
    log = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *rest: log.append(text))
    assert run(cfg, 'iterations_one')[0].iter == 6
    assert any('written by 2 processes, and is resumed by 1: as many' in text for text in log)


def test_a_loader_that_stacks_no_images_is_told(tmp_path, store):
    cfg = checked(store, tmp_path / 'run', 'mae')
    del cfg.train_dataloader.collate_fn
    with pytest.raises(InputError, match="pseudo_collate, .*dict.type='default_collate'"):
        run(cfg, 'pseudo')


def test_resuming_with_other_samples_is_told(tmp_path, store, monkeypatch):
    """Epochs of other lengths would shift the rates; another order is no bit-equal run."""
    cfg = checked(store, tmp_path / 'run')
    train(cfg, 'samples', killed_at=3)
    cfg.resume = True
    fewer = copy.deepcopy(cfg)
    fewer.train_dataloader.dataset.indices = 15
    with pytest.raises(InputError, match='with 2 batches an epoch, and this one has 1: with ano'):
        run(fewer, 'samples_fewer')
    log = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *rest: log.append(text))
    more = copy.deepcopy(cfg)
    more.train_dataloader.dataset.data_root = [
        str(store),
        str(make_store(tmp_path / 'more', count=3)),
    ]
    assert run(more, 'samples_more')[0].iter == 6
    assert any('a run on 20 samples, and this one has 23' in text for text in log)
    train(checked(store, tmp_path / 'old'), 'samples_old', killed_at=3)
    path = tmp_path / 'old/epoch_1.pth'
    content = CheckpointLoader.load_checkpoint(str(path))
    del content['meta']['data']  # older checkpoints
    torch.save(content, path)
    more.work_dir = str(tmp_path / 'old')
    more.train_dataloader.dataset.data_root.append(str(make_store(tmp_path / 'most', count=20)))
    with pytest.raises(InputError, match='after 2 iterations in epoch 2, and .* 4 batches now'):
        run(more, 'samples_most')


def test_weights_of_another_model_are_told(tmp_path, store, monkeypatch):
    cfg = checked(store, tmp_path / 'run')
    train(cfg, 'weights', killed_at=3)
    path = tmp_path / 'run/epoch_1.pth'
    other = checked(store, tmp_path / 'run', 'simclr')
    other.resume = True
    with pytest.raises(InputError, match='epoch_1.pth is not of this config: it lacks.* neck'):
        run(other, 'weights_resumed')
    log = []
    monkeypatch.setattr(MMLogger, 'info', lambda self, text, *rest: log.append(text))
    other = checked(store, tmp_path / 'other', 'simclr', load_from=str(path))
    train(other, 'weights_loaded', killed_at=0)
    assert any('tensors found their weights; not in the checkpoint: neck' in text for text in log)
    bare = CheckpointLoader.load_checkpoint(str(path))['state_dict']
    bare = {name[9:]: value for name, value in bare.items() if name.startswith('backbone.')}
    torch.save(bare, tmp_path / 'bare.pth')
    other.load_from = str(tmp_path / 'bare.pth')
    with pytest.raises(InputError, match='bare.pth holds nothing of this model, .* 0 of the'):
        train(other, 'weights_bare', killed_at=0)


def test_resuming_with_other_settings_is_told(tmp_path, store, monkeypatch):
    cfg = checked(store, tmp_path / 'run')
    train(cfg, 'settings', killed_at=3)
    cfg.resume = True
    cfg.model.negatives = 'other_nouns'
    cfg.train_dataloader.dataset.pipeline[-1].min_visible = 0.2
    cfg.train_dataloader.dataset.data_root = str(store.rename(tmp_path / 'moved'))
    log = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *rest: log.append(text))
    train(cfg, 'settings_resumed', killed_at=2)
    [told] = [text for text in log if 'other settings' in text]
    assert 'model.negatives (was None, is other_nouns); dataset.pipeline' in told
    assert 'min_visible (was None, is 0.2)' in told and 'moved' not in told


def test_resuming_within_an_epoch_without_seeded_draws_is_refused(tmp_path, store):
    cfg = checked(store, tmp_path / 'run')
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
    cfg.train_dataloader.sampler.type = 'DefaultSampler'
    train(cfg, 'within_epoch', killed_at=4)
    cfg.resume = True
    with pytest.raises(InputError, match='within an epoch, after 1 of its 2 batches'):
        run(cfg, 'within_epoch_again')


def test_what_a_resumed_run_may_change():
    """Precision and clipping are its own, and so is a length that the schedule doesn't follow."""
    one = dict(
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(lr=1)),
        param_scheduler=dict(type='StepLR', step_size=2, end=4),
        train_cfg=dict(max_epochs=4),
    )
    other = dict(
        one,
        train_cfg=dict(max_epochs=6),
        optim_wrapper=dict(
            type='AmpOptimWrapper', optimizer=dict(lr=1), clip_grad=dict(max_norm=1)
        ),
    )
    assert describe_schedule(one) == describe_schedule(other)


def test_resuming_within_a_step_is_refused(tmp_path, store):
    """Gradients that had been accumulated are not in a checkpoint."""
    cfg = checked(store, tmp_path / 'run', **{'optim_wrapper.accumulative_counts': 4})
    train(cfg, 'within', killed_at=3)
    cfg.resume = True
    with pytest.raises(InputError, match='saved within a step: .*multiple of 4'):
        run(cfg, 'within_again')


@pytest.mark.parametrize('method', METHODS)
def test_resuming_between_accumulated_steps_is_exact(tmp_path, store, method):
    from helpers.tiny_runs import different

    whole = train(
        checked(store, tmp_path / 'whole', method, **{'optim_wrapper.accumulative_counts': 2}),
        f'between_{method}_whole',
    )
    cfg = checked(store, tmp_path / 'part', method, **{'optim_wrapper.accumulative_counts': 2})
    train(cfg, f'between_{method}', killed_at=3)
    cfg.resume = True
    assert not different(whole, train(cfg, f'between_{method}_again'))


@pytest.mark.parametrize(
    'entry',
    [
        dict(strategy=dict(type='FSDPStrategy')),
        dict(strategy=dict(type='DeepSpeedStrategy')),
        dict(runner_type='FlexibleRunner'),
    ],
)
def test_other_runners_are_refused(tmp_path, store, entry):
    cfg = config(store, tmp_path)
    cfg.merge_from_dict(entry)
    with pytest.raises(InputError, match=f'{next(iter(entry))} is not supported'):
        check_honoured(cfg)


@pytest.mark.parametrize('option, value', [('max_epochs', 0), ('max_iters', -1)])
def test_no_length_is_refused(tmp_path, store, option, value):
    cfg = config(store, tmp_path)
    cfg.train_cfg[option] = value
    with pytest.raises(InputError, match=f'nothing would be trained: train_cfg.{option}={value}'):
        check_honoured(cfg)


@pytest.mark.parametrize(
    'option',
    [
        'max_epochs',
        'epochs',
        'optimizer.lr',
        'lr_config.policy',
        'batch_size',
        'fp16.loss_scale',
        'data.samples_per_gpu',
    ],
)
def test_options_that_nothing_reads_are_refused(tmp_path, store, option):
    with pytest.raises(InputError, match=f'--cfg-options {option}: nothing reads'):
        check_honoured(config(store, tmp_path), {option: 1})
    check_honoured(config(store, tmp_path), {'train_cfg.max_epochs': 1})


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_mixed_precision_without_a_gpu_is_refused(tmp_path, store):
    cfg = config(store, tmp_path)
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    with pytest.raises(InputError, match='AmpOptimWrapper.* is for GPUs.*--bf16'):
        check_precision(cfg)


def test_the_scaled_rate_counts_accumulated_batches(tmp_path, store):
    cfg = config(
        store, tmp_path / 'run', **{'optim_wrapper.accumulative_counts': 3, 'param_scheduler': None}
    )
    cfg.auto_scale_lr = dict(base_batch_size=60)
    scale_rate(cfg, True)
    runner, _ = run(cfg, 'scaled')
    assert runner.optim_wrapper.get_lr()['lr'] == [pytest.approx(0.05 * 10 * 3 / 60)]
