"""The runner: exact resume, two processes, and what it says when something doesn't fit."""
from __future__ import annotations

import json
import logging
from functools import partial

import pytest
import torch

pytest.importorskip('lavis')

from tiny_blip import PRETRAIN, make_parts, pretrain_options, train_as_process  # noqa: E402
from two_processes import in_two_processes  # noqa: E402

from freeatm_mm.lavis_ext import launch  # noqa: E402
from freeatm_mm.lavis_ext.models import FreeATMBlipPretrain  # noqa: E402
from freeatm_mm.lavis_ext.runner import newest_checkpoint  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    """Store and tokenizer."""
    return make_parts(tmp_path_factory.mktemp('parts'))


def read(path):
    return torch.load(path, weights_only=True)


def log_lines(folder):
    """The epochs' lines of `log.txt`."""
    return [json.loads(line) for line in (folder / 'log.txt').read_text().splitlines()
            if line.startswith('{"')]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_ends_bit_equal(parts, tmp_path, workers):
    """Three epochs at once; and one, killed while its second was on, and gone on from."""
    def options(name, *more):
        return [*pretrain_options(*parts, tmp_path / name), f'run.num_workers={workers}',
                'run.max_epoch=3', 'datasets.freeatm_pretrain.text_processor.train.order=random',
                *more]

    launch.train(PRETRAIN, options('whole'))
    launch.train(PRETRAIN, options('stopped', 'run.max_epoch=1'))
    (tmp_path / 'stopped' / '.checkpoint_1.pth.abc.tmp').write_bytes(b'half a checkpoint')
    torch.rand(5)  # whatever else the process did
    launch.train(PRETRAIN, options('stopped'), resume=True)
    whole, resumed = (read(tmp_path / name / 'checkpoint_2.pth') for name in ('whole', 'stopped'))
    assert whole['epoch'] == resumed['epoch'] == 2
    for name, value in whole['model'].items():
        assert torch.equal(value, resumed['model'][name]), name
    for key, state in whole['optimizer']['state'].items():
        for name, value in state.items():
            assert torch.equal(value, resumed['optimizer']['state'][key][name])
    assert torch.equal(whole['random'][0]['torch'], resumed['random'][0]['torch'])
    assert log_lines(tmp_path / 'whole')[1:] == log_lines(tmp_path / 'stopped')[1:]
    assert whole['random'][0]['python'] == resumed['random'][0]['python']


def test_checkpoints_and_log(parts, tmp_path):
    launch.train(PRETRAIN, [*pretrain_options(*parts, tmp_path), 'run.keep_checkpoints=1',
                            'model.max_txt_len=14'])
    assert newest_checkpoint(tmp_path).name == 'checkpoint_1.pth'
    assert [path.name for path in tmp_path.glob('*.pth')] == ['checkpoint_1.pth']
    model = read(tmp_path / 'checkpoint_1.pth')['model']
    for part in ('visual_encoder', 'text_encoder', 'vision_proj', 'text_proj'):
        online = [name for name in model if name.startswith(f'{part}.')]
        assert online and all(name.replace(part, f'{part}_m', 1) in model for name in online)
        assert any(not torch.equal(model[name], model[name.replace(part, f'{part}_m', 1)])
                   for name in online)
    lines = log_lines(tmp_path)
    assert [line['train_epoch'] for line in lines] == [0, 1]
    for line in lines:
        assert line['train_loss'] == pytest.approx(
            line['train_loss_itc'] + line['train_loss_itm'] + line['train_loss_lm'], rel=1e-5)
        # of the 12 texts those with two or three objects have more than 14 tokens
        assert line['train_texts'] == 12 and line['train_truncated'] == 6
        assert line['train_lost_tokens'] > 12


def test_arms_see_the_same_views(parts, tmp_path):
    """The three arms differ in their texts (and PTP's in its flips), not in crops or order."""
    runs = {}
    for preset in ('none', 'freeatm', 'ptp'):
        cfg = launch.load_config(PRETRAIN, [
            *pretrain_options(*parts, tmp_path / preset),
            f'datasets.freeatm_pretrain.text_processor.train.preset={preset}'])
        runner = launch.build_runner(cfg)
        batches = []
        runner.model.register_forward_pre_hook(
            lambda module, inputs, batches=batches: batches.append(
                (inputs[0]['image'].clone(), list(inputs[0]['text_input']))))
        runner.train()
        runs[preset] = batches
    for plain, ours, ptp in zip(*runs.values()):
        assert torch.equal(plain[0], ours[0]) and torch.equal(plain[0], ptp[0])
        for texts in zip(plain[1], ours[1], ptp[1]):
            assert texts[1].startswith(texts[0]) and texts[2].startswith(texts[0])
    assert any(text.count('is in block') > 1 for _, texts in runs['freeatm'] for text in texts)
    assert all(text.count('the block') < 2 for _, texts in runs['ptp'] for text in texts)


def test_two_processes(parts, tmp_path):
    """Equal weights and queues; gradients are the mean of the two halves', computed by hand."""
    options = [*pretrain_options(*parts, tmp_path / 'run'), 'run.batch_size_train=2',
               'model.bert.hidden_dropout_prob=0', 'model.bert.attention_probs_dropout_prob=0']
    first, second = in_two_processes(partial(train_as_process, options), tmp_path)
    for moment in ('start', 'end'):
        for name, value in first[moment].items():
            assert torch.equal(value, second[moment][name]), name
    assert not torch.equal(first['batch']['image'], second['batch']['image'])
    halves, keys = [], []
    for run in (first, second):
        model = FreeATMBlipPretrain.from_config(launch.load_config(PRETRAIN, options).model_cfg)
        model.load_state_dict(first['start'])
        output = model.train()({**run['batch'], 'epoch': 0, 'iters': 0, 'num_iters_per_epoch': 3})
        output.loss.backward()
        halves.append({name: value.grad for name, value in model.named_parameters()})
        keys.append(model.image_queue[:, :2])
    for name, value in first['gradients'].items():
        assert torch.equal(value, second['gradients'][name])
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2,
                                   rtol=1e-4, atol=1e-7)
    # The first step's keys of both; 24 entries hold all six steps of four.
    torch.testing.assert_close(first['end']['image_queue'][:, :4], torch.cat(keys, 1))
    assert '"train_texts": 12' in first['log']


def test_another_number_of_processes_is_told(parts, tmp_path, caplog):
    options = pretrain_options(*parts, tmp_path)
    launch.train(PRETRAIN, [*options, 'run.max_epoch=1'])
    checkpoint = read(tmp_path / 'checkpoint_0.pth')
    checkpoint['random'] *= 2
    torch.save(checkpoint, tmp_path / 'checkpoint_0.pth')
    launch.train(PRETRAIN, options, resume=True)
    assert 'was written by 2 processes and is gone on from by 1' in caplog.text


def test_only_the_same_run_is_gone_on_from(parts, tmp_path, caplog):
    options = pretrain_options(*parts, tmp_path)
    launch.train(PRETRAIN, [*options, 'run.max_epoch=1'])
    first = (tmp_path / 'checkpoint_0.pth').read_bytes()
    with pytest.raises(ValueError, match='earlier run, checkpoint_0.pth for one: go on from it'):
        launch.train(PRETRAIN, options)
    with pytest.raises(ValueError, match=r'other settings \(.*run.init_lr 0.001 there, 0.01 here'):
        launch.train(PRETRAIN, [*options, 'run.init_lr=1e-2'], resume=True)
    assert [path.name for path in tmp_path.glob('*.pth')] == ['checkpoint_0.pth']
    assert (tmp_path / 'checkpoint_0.pth').read_bytes() == first
    # A longer run, and one whose checkpoint is named, go on and say what differs.
    launch.train(PRETRAIN, options, resume=True)
    assert 'was written with other settings: run.max_epoch 1 there, 2 here' in caplog.text
    launch.train(PRETRAIN, [*options, 'run.init_lr=1e-2', 'run.max_epoch=3',
                            f'run.resume_ckpt_path={tmp_path / "checkpoint_1.pth"}'])
    assert 'run.init_lr 0.001 there, 0.01 here' in caplog.text
    assert newest_checkpoint(tmp_path).name == 'checkpoint_2.pth'


@pytest.mark.parametrize('options, message', [
    (['run.batch_size_train=13'], 'a batch of 13 on each of 1 processes needs more than the 12'),
    (['run.batch_size_train=5'], 'queue_size 24 must be a multiple of the whole batch, 5 = 5 x 1'),
    (['run.lr_sched=step'], "LAVIS knows no schedule 'step'"),
    (['run.runner=mine'], "LAVIS knows no runner 'mine'"),
    (['model.arch=clop'], "LAVIS knows no model 'clop'"),
    (['datasets.flickr31k.build_info.images=x'], "LAVIS knows no dataset 'flickr31k'"),
    (['run.max_epoch'], "'run.max_epoch' must be KEY=VALUE"),
    (['run.resume_ckpt_path=no.pth'], 'there is no checkpoint no.pth to go on from'),
])
def test_wrong_settings_are_told(parts, tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch.train(PRETRAIN, [*pretrain_options(*parts, tmp_path), *options])


def test_a_warm_up_longer_than_the_first_epoch_is_told(parts, tmp_path, caplog):
    """LAVIS would cut it there and jump to the full rate."""
    def build(steps):
        caplog.clear()
        launch.build_runner(launch.load_config(PRETRAIN, [
            *pretrain_options(*parts, tmp_path), f'run.warmup_steps={steps}']))
        return caplog.text
    assert 'its 3 steps take the rate to 50 % of run.init_lr' in build(6)
    assert 'warms up' not in build(3)


def test_a_foreign_checkpoint_is_refused(parts, tmp_path):
    torch.save({'model': {}, 'optimizer': {}, 'epoch': 0}, tmp_path / 'lavis.pth')
    with pytest.raises(ValueError, match='was not written by freeatm_runner'):
        launch.train(PRETRAIN, [*pretrain_options(*parts, tmp_path / 'run'),
                                f'run.resume_ckpt_path={tmp_path / "lavis.pth"}'])


def test_nothing_to_resume_is_a_start(parts, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        launch.train(PRETRAIN, [*pretrain_options(*parts, tmp_path), 'run.max_epoch=1'],
                     resume=True)
    assert (tmp_path / 'checkpoint_0.pth').is_file()


def test_processes_that_cannot_meet_are_told(parts, tmp_path, monkeypatch):
    """srun alone exports no address; torch's own sentence names a variable and no way out."""
    monkeypatch.setenv('SLURM_NTASKS', '2')
    monkeypatch.setenv('SLURM_PROCID', '0')
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match='2 processes were started, .* export MASTER_ADDR='):
        launch.train(PRETRAIN, pretrain_options(*parts, tmp_path))


@pytest.mark.parametrize('device, chosen', [('cuda', []), ('cuda:1', [1]), ('cpu', [])])
def test_a_single_process_takes_the_gpu_that_is_named(parts, tmp_path, monkeypatch, device, chosen):
    """LAVIS sends batches to the current one; torch takes no device without a number."""
    monkeypatch.delenv('RANK', raising=False)
    taken = []
    number_of = torch.cuda._utils._get_device_index  # as `set_device` itself asks
    monkeypatch.setattr(torch.cuda, 'set_device', lambda given: taken.append(number_of(given)))
    options = [*pretrain_options(*parts, tmp_path), f'run.device={device}']
    cfg = launch.load_config(PRETRAIN, options)
    launch.start_processes(cfg)
    assert taken == chosen
