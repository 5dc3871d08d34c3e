"""What a checkpoint was pretrained on: read from its config, never from a flag's default."""

from __future__ import annotations

import pytest

pytest.importorskip('lavis')

import torch  # noqa: E402

from freeatm_mm.errors import InputError  # noqa: E402
from freeatm_mm.lavis_ext.launch import load_config  # noqa: E402
from freeatm_mm.origins import Origin, blip_origin, describe_blip, origin_of, settle_label  # noqa: E402

DATA, TEXT = 'datasets.freeatm_pretrain', 'datasets.freeatm_pretrain.text_processor.train'
SD15 = {
    'pipeline': 'stable-diffusion-v1-5/stable-diffusion-v1-5',
    'pipeline_class': 'StableDiffusionPipeline',
}
IF = {'pipeline': '/models/IF-I-XL-v1.0', 'pipeline_class': 'IFPipeline'}
SD21 = {'pipeline': 'stabilityai/stable-diffusion-2-1', 'pipeline_class': 'StableDiffusionPipeline'}
SHARES = {'scenes': 5, 'seed': 1, 'mask_side': 8}


INFO = f'{DATA}.build_info'
FILES = [f'{INFO}.annotations=a.json', f'{INFO}.images=i']
NO_STORE = [f'{INFO}.store=null', *FILES]


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
        # A caption file's objects are boxes.
        ('blip_pretrain_freeatm', NO_STORE, 'Free-ATM, boxes'),
        ('blip_pretrain_freeatm', FILES, 'Free-ATM, masks, boxes'),
        ('blip_pretrain_freeatm', [*FILES, f'{INFO}.detections=[x,y]'], 'Free-ATM, boxes'),
        ('baselines/blip_pretrain_ptp', [f'{INFO}.detections=null', *NO_STORE], 'PTP'),
        ('baselines/blip_pretrain_ptp', [f'{INFO}.detections=null', *FILES], 'PTP, masks, boxes'),
        (
            'baselines/blip_pretrain',
            [*NO_STORE, 'model.mask_loss=1'],
            'no prompts, boxes, mask_loss=1',
        ),
        ('baselines/blip_pretrain', NO_STORE, False),
        # What of a mask is foreground, where masks are read.
        ('blip_pretrain_freeatm', [f'{INFO}.threshold=0.45'], True),
        ('blip_pretrain_freeatm', [f'{INFO}.threshold=0.9'], 'Free-ATM, threshold=0.9'),
        ('baselines/blip_pretrain', [f'{INFO}.threshold=0.9'], False),
        (
            'baselines/blip_pretrain',
            [f'{INFO}.threshold=0.9', 'model.mask_loss=1'],
            'no prompts, mask_loss=1, threshold=0.9',
        ),
        ('baselines/blip_pretrain_boxes', [f'{INFO}.threshold=0.9'], 'Free-ATM, boxes'),
    ],
)
def test_masks(name, options, masks):
    assert describe(name, *options)['masks'] == masks


@pytest.mark.parametrize(
    'name, options, masks',
    [
        ('blip_pretrain_freeatm', [], 'Free-ATM, {}'),
        ('baselines/blip_pretrain_shuffled', [], 'Free-ATM, {}, positions=others'),
        (
            'blip_pretrain_freeatm',
            ['model.mask_loss=1', 'model.mask_layer=3'],
            'Free-ATM, {}, mask_loss=1, mask_layer=3',
        ),
        ('baselines/blip_pretrain', ['model.mask_loss=1'], 'no prompts, {}, mask_loss=1'),
        ('baselines/blip_pretrain', [], False),  # reads no masks, whatever they are
        ('baselines/blip_pretrain_ptp', [], 'PTP'),
        (
            'baselines/blip_pretrain',
            ['model.mask_loss=1', f'{DATA}.build_info.detections=x.json'],
            'no prompts, boxes, mask_loss=1',
        ),
    ],
)
@pytest.mark.parametrize(
    'store, told', [(SHARES, 'exact masks'), ({'imported': {}}, 'imported')], ids=['exact', 'other']
)
def test_other_masks_are_told_of_every_variant_that_reads_them(name, options, masks, store, told):
    masks = masks and masks.format(told)
    assert describe(name, *options, stores=[store])['masks'] == masks


@pytest.mark.parametrize(
    'stores, regime, generator',
    [
        ([SD15], 'synthetic', 'sd15'),
        ([IF], 'synthetic', 'deepif'),
        ([SD21], 'synthetic', 'stable-diffusion-2-1'),
        ([SD15, SD15], 'synthetic', 'sd15'),
        ([SD15, IF], 'synthetic', 'deepif and sd15'),
        ([SHARES], 'real', ''),  # composed scenes stand for real images
        ([SD15, SHARES], 'mixed', 'sd15'),
        ([SD15, None], None, None),
        ([{}], None, None),
        ([], None, None),
        ([{'pipeline': 'work_dirs/miniature/generator'}], 'synthetic', 'miniature'),
    ],
)
def test_images(stores, regime, generator):
    found = describe('blip_pretrain_freeatm', stores=stores)
    assert (found['regime'], found['generator']) == (regime, generator)


def test_other_data_sets_are_of_any_images():
    joined = 'datasets.coco_caption.build_info.images.storage=x'
    found = describe('blip_pretrain_freeatm', joined, stores=[SD15])
    assert (found['regime'], found['generator'], found['masks']) == (None, None, True)
    real = describe('real/blip_pretrain', joined)
    assert (real['regime'], real['generator']) == (None, None)


def test_stages_and_scales():
    real = describe('real/blip_pretrain', 'run.seed=7')
    assert (real['regime'], real['seed'], real['scale']) == ('real', 7, 'paper')
    assert describe('mixed/blip_pretrain_freeatm', stores=[SD15], earlier=real)['regime'] == 'mixed'
    assert describe('mixed/blip_pretrain_freeatm', stores=[SD15])['regime'] is None
    assert describe('miniature/blip_pretrain_freeatm')['scale'] == 'miniature'


KNOWN = {'regime': 'synthetic', 'masks': False, 'generator': 'miniature', 'seed': 0, 'epochs': 20.0}
NOTHING = dict.fromkeys(KNOWN)


def label(given, known):
    said = {**NOTHING, **given}
    found = settle_label(Origin('blip', **(known or {})), said, 'x.pth', list(NOTHING))
    assert found.pop('method') == 'blip'
    return found


def test_rows():
    assert label({}, KNOWN) == KNOWN
    assert label({'generator': 'mine'}, KNOWN)['generator'] == 'mine'
    boxes = {**KNOWN, 'masks': 'Free-ATM, boxes'}
    assert label({'masks': 'boxes'}, boxes)['masks'] == 'boxes'
    assert label({'regime': 'real'}, {**KNOWN, 'regime': 'real'})['generator'] == ''
    assert label(KNOWN, None) == KNOWN


@pytest.mark.parametrize(
    'given, known, message',
    [
        ({'generator': 'sd15'}, {}, "its generator is 'miniature', not 'sd15'"),
        ({'generator': 'mine'}, {'generator': 'sd15'}, "its generator is 'sd15', not 'mine'"),
        ({'generator': 'miniature'}, {'generator': 'x'}, "its generator is 'x', not 'miniature'"),
        ({'masks': True}, {}, 'its masks is False, not True'),
        ({'masks': True}, {'masks': 'Free-ATM, boxes'}, "its masks is 'Free-ATM, boxes', not True"),
        ({'masks': 'PTP'}, {'masks': 'PTP, masks'}, "its masks is 'PTP, masks', not 'PTP'"),
        ({'masks': 'boxes'}, {'masks': True}, "its masks is True, not 'boxes'"),
        ({'regime': 'real'}, {}, "its regime is 'synthetic', not 'real'"),
        ({}, {'regime': None}, 'x.pth does not say its regime: say --regime'),
        ({}, {'seed': None, 'epochs': None}, 'its seed and epochs: say --seed --epochs'),
    ],
)
def test_contradictions(given, known, message):
    with pytest.raises(InputError, match=message):
        label(given, {**KNOWN, **known})


def test_checkpoints(tmp_path, monkeypatch):
    def saved(content):
        torch.save(content, tmp_path / 'x.pth')
        return blip_origin(tmp_path / 'x.pth')

    config = load_config('configs/lavis/miniature/blip_pretrain_freeatm.yaml').to_dict()
    monkeypatch.chdir(tmp_path)  # where its store isn't
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


def test_one_checkpoint_says_the_same_to_all_who_ask(tmp_path):
    config = load_config('configs/lavis/baselines/blip_pretrain_ptp.yaml').to_dict()
    facts = {**KNOWN, 'masks': 'PTP', 'scale': 'paper'}
    for content in (
        {'config': config, 'epoch': 4},
        {'config': config, 'epoch': 4, 'pretraining': facts},
    ):
        torch.save(content, tmp_path / 'x.pth')
        known = blip_origin(tmp_path / 'x.pth')
        assert known['masks'] == 'PTP'
        assert origin_of(content) == Origin('blip', **known)
