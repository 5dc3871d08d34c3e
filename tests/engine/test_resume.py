"""A run that was stopped and resumed ends bit-equal to one that was not."""
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import CheckpointLoader, Runner

from tiny_models import BACKBONE, GRID
from tiny_stores import make_store


def config(store, work_dir, workers=0, **changes):
    """A tiny MoCo on 10 images a batch, 2 batches an epoch, through all the real parts."""
    view = [
        dict(type='FreeATMRandomResizedCrop', scale=32, crop_ratio_range=(0.3, 1.0)),
        dict(type='RandomApply', prob=0.8, transforms=[dict(type='ColorJitter', brightness=0.4)]),
        dict(type='FreeATMRandomFlip', prob=0.5)]
    cfg = Config(dict(
        default_scope='mmpretrain', work_dir=str(work_dir), randomness=dict(seed=3),
        model=dict(
            type='FreeATMMoCo', backbone=BACKBONE, queue_len=25, feat_dim=6, momentum=0.1,
            neck=dict(type='InstancePoolNeck', neck='MoCoV2Neck', in_channels=8, hid_channels=8,
                      out_channels=6),
            head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2),
            data_preprocessor=dict(type='SelfSupDataPreprocessor', mean=[128.] * 3,
                                   std=[64.] * 3)),
        train_dataloader=dict(
            batch_size=10, num_workers=workers, persistent_workers=workers > 0, drop_last=True,
            sampler=dict(type='SeededSampler'), collate_fn=dict(type='default_collate'),
            dataset=dict(type='FreeATMDataset', store=str(store), pipeline=[
                dict(type='LoadFromStore'),
                dict(type='FreeATMMultiView', num_views=2, transforms=[view]),
                dict(type='PackFreeATMInputs', grid_size=GRID)])),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=3, by_epoch=True)],
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3),
        custom_hooks=[dict(type='SeedEachIterationHook'), dict(type='ChannelsLastHook')],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1),
                           logger=dict(type='LoggerHook', interval=1)),
        log_level='WARNING'))
    cfg.merge_from_dict(changes)
    return cfg


load = CheckpointLoader.load_checkpoint


class Killed(Exception):
    """Stands for a process that ends without warning."""


def train(cfg, name, killed_at=None):
    """Trains to the end, or until it is killed before this iteration; the model's state."""
    cfg = Config(cfg.to_dict())
    # mmengine keeps loggers and message hubs by name in one process: a new name is a new start.
    cfg.experiment_name = name
    runner = Runner.from_cfg(cfg)
    runner.register_hook(KillHook(killed_at), priority='VERY_HIGH')
    if killed_at is None:
        runner.train()
    else:
        with pytest.raises(Killed):
            runner.train()
    return {key: value.clone() for key, value in runner.model.state_dict().items()}


class KillHook(Hook):
    """Ends the run before an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise Killed


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('workers', [0, 1])
def test_stopped_and_resumed_equals_never_stopped(tmp_path, workers):
    store = make_store(tmp_path / 'store', count=20)
    whole = train(config(store, tmp_path / 'whole'), f'whole_{workers}')
    train(config(store, tmp_path / 'part', workers), f'part_{workers}', killed_at=3)
    np.random.seed(99)  # a new process starts anywhere
    torch.manual_seed(99)
    resumed = train(config(store, tmp_path / 'part', workers, resume=True), f'resumed_{workers}')
    assert whole.keys() == resumed.keys() and {'queue', 'queue_nouns', 'encoder_k.steps'} <= \
        whole.keys()
    different = [key for key in whole if not torch.equal(whole[key], resumed[key])]
    assert not different
    assert int(whole['encoder_k.steps']) == 6 and len(set(whole['queue_nouns'].tolist())) > 2


@pytest.mark.filterwarnings('ignore')
def test_resume_of_a_run_without_given_seed(tmp_path):
    """The seed that the first run drew comes from its checkpoint."""
    store = make_store(tmp_path / 'store', count=20)
    cfg = config(store, tmp_path / 'run', randomness=dict(seed=None))
    train(cfg, 'drawn', killed_at=3)
    cfg.resume = True
    resumed = train(cfg, 'drawn_and_resumed')
    drawn = load(str(tmp_path / 'run' / 'epoch_1.pth'))['meta']['seed']
    whole = train(config(store, tmp_path / 'whole', randomness=dict(seed=drawn)), 'drawn_whole')
    assert not [key for key in whole if not torch.equal(whole[key], resumed[key])]


@pytest.mark.filterwarnings('ignore')
def test_iteration_based_run_resumes(tmp_path):
    store = make_store(tmp_path / 'store', count=20)

    def iterations(name):
        cfg = config(store, tmp_path / name)
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=5)
        cfg.param_scheduler = [dict(type='CosineAnnealingLR', T_max=5, by_epoch=False)]
        cfg.train_dataloader.sampler.type = 'SeededInfiniteSampler'
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
        return cfg

    whole = train(iterations('whole'), 'iterations_whole')
    cfg = iterations('part')
    train(cfg, 'iterations_part', killed_at=4)
    cfg.resume = True
    resumed = train(cfg, 'iterations_resumed')
    assert not [key for key in whole if not torch.equal(whole[key], resumed[key])]
