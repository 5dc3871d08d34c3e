"""The runner: exact resume, two processes, and what it says when something doesn't fit."""

from __future__ import annotations

import json
import logging
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

pytest.importorskip('lavis')

from helpers.tiny_blip import PRETRAIN, make_parts, pretrain_options, train_as_process  # noqa: E402
from helpers.two_processes import in_two_processes  # noqa: E402
from lavis.common.registry import registry  # noqa: E402
from lavis.tasks.base_task import BaseTask  # noqa: E402
from lavis.tasks.image_text_pretrain import ImageTextPretrainTask  # noqa: E402
from lavis.tasks.retrieval import RetrievalTask  # noqa: E402

from freeatm_mm.errors import (
    InputError,  # noqa: E402
    worker_message,  # noqa: E402
)
from freeatm_mm.lavis_ext import launch  # noqa: E402
from freeatm_mm.lavis_ext.checks import check_items  # noqa: E402
from freeatm_mm.lavis_ext.models import FreeATMBlipPretrain  # noqa: E402
from freeatm_mm.lavis_ext.processors import FreeATMCaptionProcessor  # noqa: E402
from freeatm_mm.lavis_ext.resuming import newest_checkpoint  # noqa: E402
from freeatm_mm.lavis_ext.runner import FreeATMRunner  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    """Store and tokenizer."""
    return make_parts(tmp_path_factory.mktemp('parts'))


def read(path):
    return torch.load(path, weights_only=True)


def log_lines(folder):
    """The epochs' lines of `log.txt`."""
    return [
        json.loads(line)
        for line in (folder / 'log.txt').read_text().splitlines()
        if line.startswith('{"')
    ]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_ends_bit_equal(parts, tmp_path, workers):
    """Three epochs at once; and one, killed while its second was on, and gone on from."""

    def options(name, *more):
        return [
            *pretrain_options(*parts, tmp_path / name),
            f'run.num_workers={workers}',
            'run.max_epoch=3',
            'datasets.freeatm_pretrain.text_processor.train.order=random',
            *more,
        ]

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
    launch.train(
        PRETRAIN,
        [*pretrain_options(*parts, tmp_path), 'run.keep_checkpoints=1', 'model.max_txt_len=14'],
    )
    assert newest_checkpoint(tmp_path).name == 'checkpoint_1.pth'
    assert [path.name for path in tmp_path.glob('*.pth')] == ['checkpoint_1.pth']
    model = read(tmp_path / 'checkpoint_1.pth')['model']
    for part in ('visual_encoder', 'text_encoder', 'vision_proj', 'text_proj'):
        online = [name for name in model if name.startswith(f'{part}.')]
        assert online and all(name.replace(part, f'{part}_m', 1) in model for name in online)
        assert any(
            not torch.equal(model[name], model[name.replace(part, f'{part}_m', 1)])
            for name in online
        )
    lines = log_lines(tmp_path)
    assert [line['train_epoch'] for line in lines] == [0, 1]
    for line in lines:
        assert line['train_loss'] == pytest.approx(
            line['train_loss_itc'] + line['train_loss_itm'] + line['train_loss_lm'], rel=1e-5
        )
        # of the 12 texts those with two or three objects have more than 14 tokens
        assert line['train_texts'] == 12 and line['train_truncated'] == 6
        assert line['train_prompted'] == 9  # a quarter of the images has no noun
        assert line['train_lost_tokens'] > 12


def test_arms_see_the_same_views(parts, tmp_path):
    """The three arms differ in their texts (and PTP's in its flips), not in crops or order."""
    runs = {}
    for preset in ('none', 'freeatm', 'ptp'):
        cfg = launch.load_config(
            PRETRAIN,
            [
                *pretrain_options(*parts, tmp_path / preset),
                f'datasets.freeatm_pretrain.text_processor.train.preset={preset}',
            ],
        )
        runner = launch.build_runner(cfg)
        batches = []
        runner.model.register_forward_pre_hook(
            lambda module, inputs, batches=batches: batches.append(
                (inputs[0]['image'].clone(), list(inputs[0]['text_input']))
            )
        )
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
    options = [
        *pretrain_options(*parts, tmp_path / 'run'),
        'run.batch_size_train=2',
        'model.bert.hidden_dropout_prob=0',
        'model.bert.attention_probs_dropout_prob=0',
    ]
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
        torch.testing.assert_close(
            value, (halves[0][name] + halves[1][name]) / 2, rtol=1e-4, atol=1e-7
        )
    # The first step's keys of both; 24 entries hold all six steps of four.
    torch.testing.assert_close(first['end']['image_queue'][:, :4], torch.cat(keys, 1))
    assert '"train_texts": 12' in first['log']


def test_another_number_of_processes_is_told(parts, tmp_path, caplog):
    options = pretrain_options(*parts, tmp_path)
    launch.train(PRETRAIN, [*options, 'run.max_epoch=1'])
    checkpoint = read(tmp_path / 'checkpoint_0.pth')
    checkpoint['random'] *= 2
    torch.save(checkpoint, tmp_path / 'checkpoint_0.pth')
    batch = checkpoint['config']['run']['batch_size_train']
    with pytest.raises(ValueError, match=f'2 processes with {2 * batch} images a step, and this'):
        launch.train(PRETRAIN, options, resume=True)
    launch.train(PRETRAIN, [*options, f'run.batch_size_train={2 * batch}'], resume=True)
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
    launch.train(
        PRETRAIN,
        [
            *options,
            'run.init_lr=1e-2',
            'run.max_epoch=3',
            f'run.resume_ckpt_path={tmp_path / "checkpoint_1.pth"}',
        ],
    )
    assert 'run.init_lr 0.001 there, 0.01 here' in caplog.text
    assert newest_checkpoint(tmp_path).name == 'checkpoint_2.pth'


def test_another_runs_checkpoint_leaves_a_folders_own_alone(parts, tmp_path, caplog):
    def options(name, *more):
        return [*pretrain_options(*parts, tmp_path / name), 'run.max_epoch=1', *more]

    launch.train(PRETRAIN, options('a'))
    launch.train(PRETRAIN, options('b', 'run.seed=2'))
    first = (tmp_path / 'a/checkpoint_0.pth').read_bytes()
    named = f'run.resume_ckpt_path={tmp_path / "b/checkpoint_0.pth"}'
    with pytest.raises(InputError, match='a holds the checkpoints of an earlier run, checkpoint_0'):
        launch.train(PRETRAIN, options('a', named, 'run.max_epoch=2'))
    assert [path.name for path in (tmp_path / 'a').glob('*.pth')] == ['checkpoint_0.pth']
    assert (tmp_path / 'a/checkpoint_0.pth').read_bytes() == first
    # To a new folder it goes on, with another batch too: the queue was left where none fits.
    caplog.clear()
    launch.train(
        PRETRAIN, options('c', named, 'run.max_epoch=2', 'run.seed=2', 'run.batch_size_train=8')
    )
    assert "left the model's queue at place 12, which is no multiple of the whole batch of 8" in (
        caplog.text
    )
    assert int(read(tmp_path / 'c/checkpoint_1.pth')['model']['queue_ptr']) == 8
    caplog.clear()
    launch.train(PRETRAIN, options('d', named, 'run.max_epoch=2', 'run.seed=2'))
    assert "left the model's queue" not in caplog.text


def test_a_run_from_before_an_option_is_gone_on_from(parts, tmp_path):
    """What its config lacks has its default; anything else differs."""
    options = pretrain_options(*parts, tmp_path)
    launch.train(PRETRAIN, [*options, 'run.max_epoch=1'])
    path = tmp_path / 'checkpoint_0.pth'
    content = read(path)
    for name in ('mask_loss', 'mask_layer'):
        del content['config']['model'][name]
    torch.save(content, path)
    held = ['model.mask_loss=1', f'{DATA}.build_info.mask_grid=2']
    with pytest.raises(ValueError, match='model.mask_loss 0 there, 1 here'):
        launch.train(PRETRAIN, [*options, *held], resume=True)
    launch.train(PRETRAIN, options, resume=True)
    assert newest_checkpoint(tmp_path).name == 'checkpoint_1.pth'


def test_other_data_and_workers_are_told(parts, tmp_path, caplog):
    options = pretrain_options(*parts, tmp_path)
    launch.train(PRETRAIN, [*options, 'run.max_epoch=1'])
    checkpoint = read(tmp_path / 'checkpoint_0.pth')
    checkpoint['samples'] -= 1
    torch.save(checkpoint, tmp_path / 'checkpoint_0.pth')
    with pytest.raises(ValueError, match=r'other settings \(.*samples 11 there, 12 here'):
        launch.train(PRETRAIN, options, resume=True)
    del checkpoint['samples']  # older checkpoints
    checkpoint['config']['run']['num_workers'] = 2
    torch.save(checkpoint, tmp_path / 'checkpoint_0.pth')
    launch.train(PRETRAIN, options, resume=True)
    assert 'with run.num_workers=2 and is gone on from with 0' in caplog.text


DATA = 'datasets.freeatm_pretrain'


@pytest.mark.parametrize(
    'options, message',
    [
        (
            ['run.batch_size_train=13'],
            'a batch of 13 on each of 1 process needs 13 samples at least, .* holds 12',
        ),
        (
            ['run.batch_size_train=5'],
            'queue_size 24 must be a multiple of the whole batch, 5 = 5 x 1',
        ),
        (['run.batch_size_train=1'], 'batch_size_train must be at least 2: the matching loss'),
        (['run.lr_sched=step'], "LAVIS knows no schedule 'step'"),
        (['run.runner=mine'], "LAVIS knows no runner 'mine': leave .* one of .*freeatm_runner"),
        (['run.runner=runner_base'], "runner_base, LAVIS's own, .* leave run.runner out"),
        (['run.runner=runner_iter', 'run.max_iters=9'], "run.runner is runner_iter, LAVIS's own"),
        (['run.task=vqa'], 'vqa does not fit the model freeatm_blip_pretrain: set run.task to'),
        (['model.arch=clop'], "LAVIS knows no model 'clop'"),
        (['datasets.flickr31k.build_info.images=x'], "LAVIS knows no dataset 'flickr31k'"),
        (['run.max_epoch'], "'run.max_epoch' must be KEY=VALUE"),
        (['run.resume_ckpt_path=no.pth'], 'there is no checkpoint no.pth to go on from'),
        # Unknown names: the nearest known one is named.
        (['run.max_epochs=1'], r'run has no max_epochs; did you mean max_epoch\?'),
        (['run.acum_grad_iters=2'], r'run has no acum_grad_iters; did you mean accum_grad_iters\?'),
        (['runn.max_epoch=1'], r'has no runn; did you mean run\?'),
        (['max_epoch=1'], r'blip_pretrain_freeatm.yaml has no max_epoch \(known are'),
        (
            [f'{DATA}.build_inf.share=1'],
            r'freeatm_pretrain has no build_inf; did you mean build_info',
        ),
        ([f'{DATA}.vis_processor.trian.hflip=False'], r'has no trian; did you mean train\?'),
        (
            [f'{DATA}.vis_processor.train.flip=False'],
            r'train \(freeatm_image_train\) has no flip; did',
        ),
        ([f'{DATA}.text_processor.train.templat=x'], r'has no templat; did you mean template\?'),
        ([f'{DATA}.text_processor.train.name=freeatm_captoin'], r'did you mean freeatm_caption\?'),
        ([f'{DATA}.text_processor.train.name=blip_caption'], r'\(blip_caption\) has no preset'),
        ([f'{DATA}.vis_processor.train=3'], 'vis_processor.train must name a processor'),
        ([f'{DATA}.type=big'], "freeatm_pretrain.type is one of default, got 'big'"),
        # Names of LAVIS's that have no place here.
        (['run.iters_per_inner_epoch=5'], 'has no iters_per_inner_epoch: .* trains whole epochs'),
        (['run.max_iters=5'], 'run has no max_iters: freeatm_runner trains whole epochs'),
        (['run.train_dataset_ratios=[1]'], 'run has no train_dataset_ratios: name several sources'),
        (['run.num_beams=3'], 'run has no num_beams'),
        # Values.
        (['run.max_epoch=0'], 'run.max_epoch must be an integer of at least 1, got 0'),
        (['run.max_epoch=1.5'], 'run.max_epoch must be an integer of at least 1, got 1.5'),
        (['run.max_epoch=null'], 'run lacks max_epoch'),
        (['run.init_lr=nan'], 'run.init_lr must be a number above 0, got .?nan'),
        (["run.warmup_lr='1e-6'"], "run.warmup_lr must be a number, got '1e-6'"),
        (
            [f"{DATA}.vis_processor.train.min_scale='0.2'"],
            "freeatm_image_train.min_scale must be a number .*, got '0.2'",
        ),
        (['run.init_lr=high'], "run.init_lr must be a number above 0, got 'high'"),
        (['run.batch_size_train=true'], 'run.batch_size_train must be an integer of at least 1'),
        (['run.accum_grad_iters=0'], 'run.accum_grad_iters must be an integer of at least 1'),
        (['run.num_workers=-1'], 'run.num_workers must be an integer of at least 0'),
        (['run.amp=yes please'], 'run.amp must be True or False'),
        (['run.amp=True'], 'run.amp computes with half precision on GPUs only'),
        (['run.device=tpu'], 'run.device must be auto, cpu, cuda or cuda:NUMBER'),
        (['run.task=image_text_pretrian'], r'no task .*; did you mean image_text_pretrain\?'),
        (['run.lr_decay_rate=0.9'], 'run.lr_decay_rate has no effect with linear_warmup_cosine_lr'),
        (['run.lr_sched=linear_warmup_step_lr'], 'run lacks lr_decay_rate'),
        # Splits that LAVIS would ask for after the first epoch.
        (['run.train_splits=[training]'], r'run.train_splits must be \[train\]'),
        (['run.valid_splits=[val]'], 'nothing can evaluate the split val: the task is image_'),
        (['run.test_splits=test'], r'run.test_splits must be a list of names'),
        (['run.evaluate=True'], 'run.evaluate is of run.test_splits, which names none'),
        (
            ['run.evaluate=True', 'run.test_splits=[test]', 'run.resume_ckpt_path=x.pth'],
            'leave one of them out',
        ),
        (['run.init_lr=1e9', 'run.min_lr=1e9'], 'features of a batch are no numbers at step . of '),
        (['model.bert.hidden_act=gulu'], "bert.hidden_act must be one of .*gelu.*, got 'gulu'"),
        (['model.bert.layer_norm_eps=x'], 'model.bert.layer_norm_eps must be a number above 0'),
        ([f'{DATA}.vis_processor.train.min_scale=2'], 'min_scale must be a number above 0 and at'),
        ([f'{DATA}.vis_processor.train.max_scale=0.4'], 'min_scale 0.5 must not be more than max'),
        ([f'{DATA}.vis_processor.train.image_size=24'], 'makes views of 24 x 24 pixels, and model'),
    ],
)
def test_wrong_settings_are_told(parts, tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as told:
        launch.train(PRETRAIN, [*pretrain_options(*parts, tmp_path), *options])
    assert '\n' not in str(told.value)
    assert not list(tmp_path.glob('*.pth'))


def test_models_and_runners_of_others_are_theirs(parts, tmp_path, monkeypatch):
    """Theirs are not ours to judge; what a task of LAVIS's lacks in `run` is one sentence."""
    runners, models = (
        registry.mapping['runner_name_mapping'],
        registry.mapping['model_name_mapping'],
    )

    class Mine(FreeATMRunner):
        pass

    monkeypatch.setitem(runners, 'mine', Mine)
    options = [*pretrain_options(*parts, tmp_path), 'run.runner=mine']
    assert type(launch.build_runner(launch.load_config(PRETRAIN, options))) is Mine
    foreign = type('Foreign', (FreeATMBlipPretrain,), {'__module__': 'lavis.models'})
    monkeypatch.setitem(models, 'freeatm_blip_pretrain', foreign)
    cfg = launch.load_config(PRETRAIN, [*options, 'run.task=captioning'])
    with pytest.raises(InputError, match='captioning needs .* num_beams.* own train.py$'):
        launch.build_runner(cfg)


def test_a_task_of_ones_own_evaluates_on_a_cpu(parts, tmp_path, monkeypatch, caplog):
    """LAVIS would send its samples to a GPU; and one that makes no figures of them is told."""
    seen = []

    class Mine(BaseTask):
        def valid_step(self, model, samples):
            assert not model.training
            seen.append(len(samples['image']))
            return [0]

    monkeypatch.setitem(registry.mapping['task_name_mapping'], 'mine', Mine)
    options = ['run.task=mine', 'run.valid_splits=[train]', 'run.batch_size_eval=4']
    launch.train(PRETRAIN, [*pretrain_options(*parts, tmp_path), *options])
    assert seen == [4] * 6 and newest_checkpoint(tmp_path).name == 'checkpoint_1.pth'
    assert 'the task mine gives no figures of the split train' in caplog.text


def rates(parts, out, *options):
    """The rate of each step, as the optimiser has it."""
    runner = launch.build_runner(
        launch.load_config(PRETRAIN, [*pretrain_options(*parts, out), 'run.max_epoch=3', *options])
    )
    found = []
    runner.optimizer.register_step_pre_hook(
        lambda optimizer, *_: found.append(optimizer.param_groups[0]['lr'])
    )
    runner.train()
    return found


def test_a_warm_up_goes_on_beyond_the_first_epoch(parts, tmp_path):
    """LAVIS would cut it there and jump to the full rate; a shorter one is LAVIS's own."""
    options = (
        'run.lr_sched=linear_warmup_step_lr',
        'run.lr_decay_rate=0.5',
        'run.init_lr=1e-3',
        'run.warmup_lr=1e-4',
        'run.min_lr=0',
    )
    assert rates(parts, tmp_path / 'long', 'run.warmup_steps=6', *options) == pytest.approx(
        [1e-4 + 9e-4 * step / 6 for step in range(6)] + [0.25e-3] * 3
    )
    assert rates(parts, tmp_path / 'short', 'run.warmup_steps=2', *options) == pytest.approx(
        [1e-4, 5.5e-4, 1e-3, *[0.5e-3] * 3, *[0.25e-3] * 3]
    )


def gradients(parts, out, *options):
    """The gradients of each step of one epoch that changes no weight."""
    runner = launch.build_runner(
        launch.load_config(
            PRETRAIN,
            [
                *pretrain_options(*parts, out),
                'run.max_epoch=1',
                'run.init_lr=1e-30',
                'run.min_lr=0',
                'run.warmup_lr=null',
                'run.weight_decay=0',
                'model.bert.hidden_dropout_prob=0',
                'model.bert.attention_probs_dropout_prob=0',
                *options,
            ],
        )
    )
    found = []
    runner.optimizer.register_step_pre_hook(
        lambda optimizer, *_: found.append(
            torch.cat(
                [
                    value.grad.flatten().clone()
                    for group in optimizer.param_groups
                    for value in group['params']
                    if value.grad is not None
                ]
            )
        )
    )
    runner.train()
    return found


def test_accumulated_gradients_are_means_and_none_is_left_over(parts, tmp_path):
    single = gradients(parts, tmp_path / 'single')
    assert len(single) == 3
    for batches, expected in (
        (2, [(single[0] + single[1]) / 2, single[2]]),
        (3, [sum(single) / 3]),
        (7, [sum(single) / 3]),
    ):
        found = gradients(parts, tmp_path / str(batches), f'run.accum_grad_iters={batches}')
        assert len(found) == len(expected)
        for ours, wanted in zip(found, expected):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_that_accumulates_ends_bit_equal(parts, tmp_path):
    def options(name):
        return [*pretrain_options(*parts, tmp_path / name), 'run.accum_grad_iters=2']

    launch.train(PRETRAIN, options('whole'))
    launch.train(PRETRAIN, [*options('stopped'), 'run.max_epoch=1'])
    launch.train(PRETRAIN, options('stopped'), resume=True)
    whole, resumed = (read(tmp_path / name / 'checkpoint_1.pth') for name in ('whole', 'stopped'))
    assert all(torch.equal(value, resumed['model'][name]) for name, value in whole['model'].items())


def test_a_loss_that_is_no_number_stops_and_spoils_nothing(parts, tmp_path, monkeypatch):
    forward, calls = FreeATMBlipPretrain.forward, []

    def fails_in_the_second_epoch(self, samples):
        output = forward(self, samples)
        calls.append(1)
        if len(calls) == 5:
            output.loss = output.loss * float('nan')
        return output

    monkeypatch.setattr(FreeATMBlipPretrain, 'forward', fails_in_the_second_epoch)
    with pytest.raises(
        InputError,
        match='the loss is nan at step 1 of epoch 1: training stops, .*'
        'checkpoint_0.pth is the last good one',
    ) as told:
        launch.train(PRETRAIN, [*pretrain_options(*parts, tmp_path), 'run.keep_checkpoints=1'])
    assert '\n' not in str(told.value) and len(calls) == 5
    assert [path.name for path in tmp_path.glob('*.pth')] == ['checkpoint_0.pth']
    # It is gone on from as if nothing had been.
    launch.train(
        PRETRAIN, [*pretrain_options(*parts, tmp_path), 'run.keep_checkpoints=1'], resume=True
    )
    assert newest_checkpoint(tmp_path).name == 'checkpoint_1.pth'


@pytest.mark.parametrize('patience', [20, 3])
def test_a_loss_of_nothing_trains_nothing(parts, tmp_path, monkeypatch, patience):
    """A run of four steps is over before twenty."""
    forward, calls = FreeATMBlipPretrain.forward, []

    def finds_nothing(self, samples):
        output = forward(self, samples)
        calls.append(1)
        output.loss = output.loss * 0
        return output

    monkeypatch.setattr(FreeATMBlipPretrain, 'forward', finds_nothing)
    monkeypatch.setattr('freeatm_mm.lavis_ext.runner._PATIENCE', patience)
    steps = min(patience, 6)
    with pytest.raises(InputError, match=f'the loss was exactly 0 in {steps} steps in a row'):
        launch.train(PRETRAIN, pretrain_options(*parts, tmp_path))
    assert len(calls) == steps


def test_weights_that_are_no_numbers_take_no_good_checkpoints_place(parts, tmp_path, monkeypatch):
    def spoil(self):
        with torch.no_grad():
            self._model.vision_proj.weight[0, 0] = float('inf')

    monkeypatch.setattr(FreeATMRunner, '_finish_accumulation', spoil)
    with pytest.raises(InputError, match='vision_proj.weight holds values that are no numbers aft'):
        launch.train(PRETRAIN, pretrain_options(*parts, tmp_path))
    assert not list(tmp_path.glob('*.pth'))


def test_texts_that_cleaning_empties_are_told(parts, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(FreeATMCaptionProcessor, 'pre_caption', lambda self, caption: '')
    launch.train(PRETRAIN, [*pretrain_options(*parts, tmp_path), 'run.max_epoch=1'])
    assert '12 of 12 texts were empty once cleaned' in caplog.text
    assert log_lines(tmp_path)[-1]['train_empty'] == 12


def test_unreadable_pictures_are_counted_in_the_log(parts, tmp_path, caplog):
    rows = []
    for number in range(8):
        Image.new('RGB', (20, 20), (20 * number, 0, 0)).save(tmp_path / f'{number}.png')
        rows.append({'image': f'{number}.png', 'caption': 'a photo of a dog'})
    (tmp_path / '3.png').write_bytes(b'no picture')
    (tmp_path / 'captions.json').write_text(json.dumps(rows))
    options = [
        *pretrain_options('null', parts[1], tmp_path / 'run'),
        'run.num_workers=1',
        f'{DATA}.text_processor.train.preset=none',
        f'{DATA}.build_info.annotations={tmp_path}/captions.json',
        f'{DATA}.build_info.images={tmp_path}',
    ]
    with pytest.raises(InputError) as told:
        launch.train(PRETRAIN, options)
    assert re.fullmatch(
        "(?s).*captions.json: the image '.*3.png' can't be read .*", worker_message(told.value)
    )
    assert '\n' not in worker_message(told.value)
    launch.train(PRETRAIN, [*options, f'{DATA}.build_info.skip_unreadable=True'])
    assert [line['train_unreadable'] for line in log_lines(tmp_path / 'run')] == [1, 1]
    assert '1 pictures could not be read' in caplog.text


def test_joined_data_sets_count_what_one_passes_over_and_all_have_masks_or_none(parts, tmp_path):
    """A batch of LAVIS's `ConcatDataset` keeps what all its items have."""
    rows = []
    for number in range(8):
        Image.new('RGB', (20, 20)).save(tmp_path / f'{number}.png')
        rows.append({'image': f'{number}.png', 'caption': 'a dog', 'image_id': number})
    (tmp_path / '3.png').write_bytes(b'no picture')
    rows[0]['objects'] = [{'name': 'dog', 'box': [0, 0, 20, 20]}]
    for name, chosen in (('captions', rows), ('train', rows[4:])):
        (tmp_path / f'{name}.json').write_text(json.dumps(chosen))
    retrieval = 'datasets.freeatm_retrieval'
    options = [
        *pretrain_options('null', parts[1], tmp_path / 'run'),
        'run.max_epoch=1',
        f'{DATA}.build_info.annotations={tmp_path}/captions.json',
        f'{DATA}.build_info.images={tmp_path}',
        f'{DATA}.build_info.skip_unreadable=True',
        f'{retrieval}.build_info.annotations.train={tmp_path}/train.json',
        f'{retrieval}.build_info.images={tmp_path}',
        f'{retrieval}.vis_processor.train.image_size=16',
    ]
    with pytest.raises(InputError, match='the data set FreeATMRetrievalDataset gives none'):
        launch.train(PRETRAIN, [*options, 'model.mask_loss=1', f'{DATA}.build_info.mask_grid=2'])
    with pytest.raises(InputError, match='views of 32 x 32 pixels'):  # of the second one
        launch.train(PRETRAIN, [*options, f'{retrieval}.vis_processor.train.image_size=32'])
    runner = launch.build_runner(launch.load_config(PRETRAIN, options))
    batches = list(runner.train_loader)
    assert sum(int(batch['unreadable'].sum()) for batch in batches) == 1
    runner.train()
    assert log_lines(tmp_path / 'run')[0]['train_unreadable'] == 1
    assert log_lines(tmp_path / 'run')[0]['train_prompted'] == 1
    # The other one's images may be any.
    assert read(tmp_path / 'run/checkpoint_0.pth')['pretraining']['regime'] is None
    runner._model = torch.nn.Linear(1, 1)  # any that knows no masks
    with pytest.raises(InputError, match='mask_grid has no effect with the model Linear'):
        check_items(runner._model, [runner.datasets['train']], [{'noun_masks': None}])


@pytest.mark.parametrize('task, regime', [(ImageTextPretrainTask, None), (RetrievalTask, 'real')])
def test_a_pretraining_that_goes_on_with_other_data_has_no_known_regime(tmp_path, task, regime):
    """A fine-tuning has that of the pretraining."""
    earlier = dict(regime='real', masks=True, generator='', seed=0, epochs=2.0, scale='paper')
    torch.save({'pretraining': earlier}, tmp_path / 'x.pth')
    config = {'model': {'pretrained': str(tmp_path / 'x.pth')}, 'datasets': {'coco_caption': {}}}
    runner = SimpleNamespace(
        config=SimpleNamespace(to_dict=lambda: config), task=object.__new__(task)
    )
    found = FreeATMRunner._find_origin(runner)
    assert found['regime'] == regime and found['masks'] is True


def test_a_foreign_checkpoint_is_refused(parts, tmp_path):
    torch.save({'model': {}, 'optimizer': {}, 'epoch': 0}, tmp_path / 'lavis.pth')
    with pytest.raises(ValueError, match='was not written by freeatm_runner'):
        launch.train(
            PRETRAIN,
            [
                *pretrain_options(*parts, tmp_path / 'run'),
                f'run.resume_ckpt_path={tmp_path / "lavis.pth"}',
            ],
        )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'epoch': 'x'}, 'was not written by freeatm_runner .*epoch must be'),
        ({'best': {}}, "was not written by freeatm_runner .*the field 'epoch' is missing"),
        ({'optimizer': {}}, 'is damaged: its optimizer or random state cannot be used .KeyError'),
        ({'random': [{}]}, 'is damaged: its optimizer or random state cannot be used .KeyError'),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(parts, tmp_path, change, message):
    options = pretrain_options(*parts, tmp_path / 'run')
    runner = launch.build_runner(launch.load_config(PRETRAIN, options))
    runner._save_checkpoint(0)
    path = newest_checkpoint(tmp_path / 'run')
    torch.save({**read(path), **change}, path)
    with pytest.raises(InputError, match=message):
        launch.train(PRETRAIN, options, resume=True)


def test_nothing_to_resume_is_a_start(parts, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        launch.train(
            PRETRAIN, [*pretrain_options(*parts, tmp_path), 'run.max_epoch=1'], resume=True
        )
    assert (tmp_path / 'checkpoint_0.pth').is_file()


def test_processes_that_cannot_meet_are_told(parts, tmp_path, monkeypatch):
    """srun alone exports no address; torch's own sentence names a variable and no way out."""
    monkeypatch.setenv('SLURM_NTASKS', '2')
    monkeypatch.setenv('SLURM_PROCID', '0')
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match='2 processes were started, .* export MASTER_ADDR='):
        launch.train(PRETRAIN, pretrain_options(*parts, tmp_path))


@pytest.mark.parametrize('launcher', [('RANK', 'WORLD_SIZE'), ('SLURM_PROCID', 'SLURM_NTASKS')])
def test_the_first_process_alone_tells_what_it_does(launcher, monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'SLURM_NTASKS'):
        monkeypatch.delenv(name, raising=False)
    levels = []
    monkeypatch.setattr(logging, 'basicConfig', lambda level, **_: levels.append(level))
    launch.setup_logging()
    for rank in ('0', '3'):
        monkeypatch.setenv(launcher[0], rank)
        monkeypatch.setenv(launcher[1], '4')
        launch.setup_logging()
    assert levels == [logging.INFO, logging.INFO, logging.WARNING]


@pytest.mark.parametrize('folder', ['runs/blip #2', '2024', '~', 'on', 'a: b', '[1]', "it's${x}"])
def test_a_folder_of_ones_own_is_no_yaml(folder, monkeypatch):
    from freeatm_mm.cli import lavis_train

    given = []

    def train(path, options, resume, output_dir=None):
        given.append(launch.load_config(path, options, output_dir).run_cfg.output_dir)

    monkeypatch.setattr(launch, 'train', train)
    lavis_train.main([str(PRETRAIN), '--work-dir', folder, '--options', 'run.max_epoch=1'])
    assert given == [folder]


@pytest.mark.parametrize(
    ('device', 'gpus', 'message'),
    [
        ('cuda', 0, 'run.device is cuda, and this machine shows no GPU: set run.device=cpu'),
        ('cuda:1', 1, 'run.device is cuda:1, and this machine shows 1 GPU'),
    ],
)
def test_a_gpu_that_is_not_there_is_told(parts, tmp_path, monkeypatch, device, gpus, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    with pytest.raises(InputError, match=message):
        launch.load_config(PRETRAIN, [f'run.device={device}'])


@pytest.mark.parametrize('device, chosen', [('cuda', []), ('cuda:1', [1]), ('cpu', [])])
def test_a_single_process_takes_the_gpu_that_is_named(parts, tmp_path, monkeypatch, device, chosen):
    """LAVIS sends batches to the current one; torch takes no device without a number."""
    monkeypatch.delenv('RANK', raising=False)
    taken = []
    number_of = torch.cuda._utils._get_device_index  # as `set_device` itself asks
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda given: taken.append(number_of(given)))
    options = [*pretrain_options(*parts, tmp_path), f'run.device={device}']
    cfg = launch.load_config(PRETRAIN, options)
    launch.start_processes(cfg)
    assert taken == chosen
