"""What a checkpoint was pretrained on: read from its config, never from a flag's default."""

from __future__ import annotations

import pytest

pytest.importorskip('lavis')

import torch  # noqa: E402

from freeatm_mm.errors import InputError  # noqa: E402
from freeatm_mm.lavis_ext.launch import load_config  # noqa: E402
from freeatm_mm.origins import blip_origin, describe_blip, label_blip  # noqa: E402

DATA, TEXT = 'datasets.freeatm_pretrain', 'datasets.freeatm_pretrain.text_processor.train'
SD15 = {
    'pipeline': 'stable-diffusion-v1-5/stable-diffusion-v1-5',
    'pipeline_class': 'StableDiffusionPipeline',
}
IF = {'pipeline': '/models/IF-I-XL-v1.0', 'pipeline_class': 'IFPipeline'}
SD21 = {'pipeline': 'stabilityai/stable-diffusion-2-1', 'pipeline_class': 'StableDiffusionPipeline'}
SHARES = {'scenes': 5, 'seed': 1, 'mask_side': 8}


def describe(name, *options, stores=(), earlier=None):
    config = load_config(f'configs/lavis/{name}.yaml', options).to_dict()
    return describe_blip(config, stores, earlier)


@pytest.mark.parametrize(
    'name, options, masks',
    [
        ('blip_pretrain_freeatm', [], True),
        ('baselines/blip_pretrain', [], False),
        ('real/blip_pretrain', [], False),
        ('baselines/blip_pretrain_ptp', [], 'PTP'),
        ('baselines/blip_pretrain_ptp', [f'{DATA}.build_info.detections=null'], 'PTP, masks'),
        ('blip_pretrain_freeatm', [f'{DATA}.build_info.detections=x.json'], 'Free-ATM, boxes'),
        ('baselines/blip_pretrain_boxes', [], 'Free-ATM, boxes'),
        ('baselines/blip_pretrain_shuffled', [], 'Free-ATM, positions=others'),
        (
            'blip_pretrain_freeatm',
            [f'{DATA}.vis_processor.train.hflip=False'],
            'Free-ATM, hflip=False',
        ),
        (
            'baselines/blip_pretrain',
            [f'{DATA}.vis_processor.train.hflip=False'],
            'no prompts, hflip=False',
        ),
        (
            'baselines/blip_pretrain_ptp',
            [f'{DATA}.vis_processor.train.hflip=True'],
            'PTP, hflip=True',
        ),
        (
            'blip_pretrain_freeatm',
            [f'{TEXT}.grid=4', f'{TEXT}.order=block'],
            'Free-ATM, grid=4, order=block',
        ),
        ('blip_pretrain_freeatm', [f'{TEXT}.grid=3', f'{TEXT}.max_objects=null'], True),
    ],
)
def test_masks(name, options, masks):
    assert describe(name, *options)['masks'] == masks


@pytest.mark.parametrize(
    'stores, regime, generator',
    [
        ([SD15], 'synthetic', 'sd15'),
        ([IF], 'synthetic', 'deepif'),
        ([SD21], 'synthetic', 'stable-diffusion-2-1'),
        ([SD15, SD15], 'synthetic', 'sd15'),
        ([SD15, IF], 'synthetic', None),
        ([SHARES], None, None),
        ([SD15, SHARES], None, None),
        ([], None, None),
        ([{'pipeline': 'work_dirs/miniature/generator'}], 'synthetic', 'miniature'),
    ],
)
def test_images(stores, regime, generator):
    found = describe('blip_pretrain_freeatm', stores=stores)
    assert (found['regime'], found['generator']) == (regime, generator)


def test_stages_and_scales():
    real = describe('real/blip_pretrain', 'run.seed=7')
    assert (real['regime'], real['seed'], real['scale']) == ('real', 7, 'paper')
    assert describe('mixed/blip_pretrain_freeatm', stores=[SD15], earlier=real)['regime'] == 'mixed'
    assert describe('mixed/blip_pretrain_freeatm', stores=[SD15])['regime'] is None
    assert describe('miniature/blip_pretrain_freeatm')['scale'] == 'miniature'


KNOWN = {'regime': 'synthetic', 'masks': False, 'generator': 'miniature', 'seed': 0, 'epochs': 20.0}
NOTHING = dict.fromkeys(KNOWN)


def test_rows():
    assert label_blip(NOTHING, KNOWN, 'x.pth') == KNOWN
    assert label_blip({**NOTHING, 'generator': 'mine'}, KNOWN, 'x.pth')['generator'] == 'mine'
    boxes = {**KNOWN, 'masks': 'Free-ATM, boxes'}
    assert label_blip({**NOTHING, 'masks': 'boxes'}, boxes, 'x.pth')['masks'] == 'boxes'
    assert (
        label_blip({**NOTHING, 'regime': 'real'}, {**KNOWN, 'regime': 'real'}, 'x.pth')['generator']
        == ''
    )
    assert label_blip(KNOWN, None, 'x.pth') == KNOWN


@pytest.mark.parametrize(
    'given, known, message',
    [
        # A Free-ATM checkpoint of the miniature became "BLIP (synthetic, sd15)".
        ({'generator': 'sd15'}, {}, 'whose generator is miniature, and --generator says sd15'),
        (
            {'generator': 'mine'},
            {'generator': 'sd15'},
            'whose generator is sd15, and --generator says',
        ),
        ({'masks': True}, {}, 'whose masks is False, and --masks says True'),
        ({'masks': True}, {'masks': 'Free-ATM, boxes'}, 'whose masks is Free-ATM, boxes'),
        (
            {'masks': 'PTP'},
            {'masks': 'PTP, masks'},
            'whose masks is PTP, masks, and --masks says PTP',
        ),
        ({'regime': 'real'}, {}, 'whose regime is synthetic, and --regime says real'),
        ({}, {'regime': None}, 'x.pth does not say its regime: give --regime'),
    ],
)
def test_contradictions(given, known, message):
    with pytest.raises(InputError, match=message):
        label_blip({**NOTHING, **given}, {**KNOWN, **known}, 'x.pth')


def test_checkpoints(tmp_path):
    def saved(content):
        torch.save(content, tmp_path / 'x.pth')
        return blip_origin(tmp_path / 'x.pth')

    config = load_config('configs/lavis/miniature/blip_pretrain_freeatm.yaml').to_dict()
    assert saved({'model': {}}) is None
    assert saved({'model': {}, 'config': {'datasets': {'coco_caption': {}}}}) is None
    # An interim checkpoint of 20 epochs, from before checkpoints said more than their config.
    assert saved({'model': {}, 'config': config, 'epoch': 4}) == {
        'regime': None,
        'masks': True,
        'generator': None,
        'seed': 42,
        'epochs': 5.0,
        'scale': 'miniature',
    }
    assert saved({'pretraining': {**KNOWN, 'scale': 'paper'}})['epochs'] == 20
    with pytest.raises(InputError, match='x.pth: pretraining: seed must be'):
        saved({'pretraining': {**KNOWN, 'scale': 'paper', 'seed': 'x'}})
