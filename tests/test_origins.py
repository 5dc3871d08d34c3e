"""What checkpoints say of their pretraining: noted by real runs, read as data, against flags."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from freeatm_mm.errors import InputError
from freeatm_mm.origins import Origin, origin_of, settle_label

PAPER = "model = dict(type='{}', backbone=dict(type='ResNet', depth=50))\n"


def content(cfg='', epoch=3, note=None):
    return {
        'meta': {'cfg': cfg, 'epoch': epoch, 'iter': 9},
        'message_hub': {'runtime_info': {'pretraining': note} if note else {}},
    }


@pytest.mark.parametrize(
    'kind, method',
    [
        ('FreeATMMoCo', 'mocov2'),
        ('mmpretrain.SimCLR', 'simclr'),
        ('FreeATMMAE', 'mae'),
        ('FreeATMSimSiam', 'simsiam'),
        ('ImageClassifier', 'supervised'),
        ('BYOL', None),
    ],
)
def test_methods_are_told_by_their_models(kind, method):
    assert origin_of(content(PAPER.format(kind))).method == method


def test_a_benchmarks_model_is_no_pretraining():
    assert origin_of(content(PAPER.format('ImageClassifier') + "init = 'x.pth'\n")).method is None


@pytest.mark.parametrize(
    'backbone, scale',
    [
        ("type='ResNet', depth=50", 'paper'),
        ("type='ResNet', depth=18", 'miniature'),
        ("type='ResNet', depth=50, base_channels=24", 'miniature'),
        ("type='FreeATMMAEViT'", 'paper'),
        ("type='FreeATMMAEViT', arch='b', img_size=224", 'paper'),
        ("type='FreeATMMAEViT', img_size=64, arch=dict(embed_dims=96)", 'miniature'),
    ],
)
def test_scales_are_told_by_networks(backbone, scale):
    text = f"model = dict(type='MoCo', backbone=dict({backbone}))"
    assert origin_of(content(text)).scale == scale


def test_settings_are_read_and_not_run(tmp_path):
    marker = tmp_path / 'marker'
    text = (
        f"__import__('pathlib').Path({str(marker)!r}).touch()\n"
        f"x = open({str(marker)!r}, 'w')\n"
        + PAPER.format('FreeATMMoCo')
        + 'train_cfg = dict(max_epochs=40)\n'
    )
    found = origin_of(content(text))
    assert (found.method, found.epochs) == ('mocov2', 3) and not marker.exists()


@pytest.mark.parametrize(
    'odd',
    [
        None,
        [],
        {},
        {'meta': 3},
        {'meta': {'cfg': 7}},
        {'meta': {'cfg': 'model = ('}},
        {'config': {}},
        {'meta': {'cfg': '(' * 10000}},
        {'meta': {'cfg': 'x = ' + '-' * 100000 + '1'}},
        {'meta': {'cfg': 'a\0b'}},
        {'config': {'datasets': {'a': 3}, 'run': []}},
        {
            'config': {
                'run': {'task': 'image_text_pretrain'},
                'datasets': {'x': {'build_info': 'y'}},
            }
        },
        {
            'meta': {'cfg': 'model = 3\ntrain_dataloader = []'},
            'message_hub': {
                'runtime_info': {'pretraining': {'method': 3, 'masks': 'x', 'regime': None}}
            },
        },
    ],
)
def test_odd_contents_say_nothing(odd):
    found = origin_of(odd)
    assert found.regime is None and found.masks is None and found.epochs is None


def test_lavis_checkpoints():
    config = {
        'run': {'task': 'image_text_pretrain'},
        'model': {'arch': 'freeatm_blip_pretrain'},
        'datasets': {
            'freeatm_pretrain': {
                'build_info': {'annotations': 'a.json', 'images': 'i'},
                'text_processor': {'train': {'preset': 'none'}},
            }
        },
    }
    assert origin_of({'config': config, 'epoch': 19, 'model': {}}) == Origin(
        'blip', 'real', False, 20, '', 'paper', seed=0
    )
    config['model']['vit'] = {'depth': 3}
    config['datasets']['freeatm_pretrain']['text_processor']['train']['preset'] = 'freeatm'
    found = origin_of({'config': config, 'epoch': 19, 'model': {}})
    assert found.scale == 'miniature' and found.masks == 'Free-ATM, boxes'


def test_labels_are_completed_and_contradictions_refused():
    known = Origin('mocov2', 'synthetic', True, 200, 'sd15', 'paper')
    nothing = dict.fromkeys(('method', 'regime', 'masks', 'generator', 'epochs'))
    assert settle_label(known, nothing, 'x.pth') == {
        'method': 'mocov2',
        'regime': 'synthetic',
        'masks': True,
        'epochs': 200,
        'generator': 'sd15',
        'scale': 'paper',
    }
    assert settle_label(known, {**nothing, 'masks': 'boxes'}, 'x.pth')['masks'] == 'boxes'
    for key, value in [
        ('method', 'simclr'),
        ('regime', 'mixed'),
        ('masks', False),
        ('epochs', 1),
        ('generator', 'deepif'),
    ]:
        with pytest.raises(InputError, match=f'x.pth says of itself that its {key} is .* --{key}'):
            settle_label(known, {**nothing, key: value}, 'x.pth')
    with pytest.raises(InputError, match='does not say its method and regime and masks'):
        settle_label(Origin(), nothing, 'x.pth')
    with pytest.raises(InputError, match="masks is False, not 'exact'"):
        settle_label(Origin('mae', 'real', False), {**nothing, 'masks': 'exact'}, 'x.pth')
    said = {**nothing, 'method': 'mae', 'regime': 'mixed', 'masks': False}
    assert settle_label(Origin(), said, 'x.pth') == {
        'method': 'mae',
        'regime': 'mixed',
        'masks': False,
        'epochs': 0,
        'generator': 'unknown',
    }
    # A generator that no table knows may be called otherwise; the paper's may not.
    other = Origin('mae', 'synthetic', True, 1, 'my-model')
    assert settle_label(other, {**nothing, 'generator': 'ours'}, 'x.pth')['generator'] == 'ours'
    with pytest.raises(InputError, match='generator'):
        settle_label(other, {**nothing, 'generator': 'sd15'}, 'x.pth')


OURS = "dict(type='FreeATMDataset', data_root='{}'{})"


@pytest.mark.parametrize(
    'dataset, masks',
    [
        (OURS.format('s', ''), True),
        (OURS.format('s', ', masks=False'), False),
        (f"dict(type='RepeatDataset', times=2, dataset={OURS.format('s', '')})", True),
        (f"dict(type='ClassBalancedDataset', dataset={OURS.format('s', ', masks=False')})", False),
        (f"dict(type='ConcatDataset', datasets=[dict(type='X'), {OURS.format('s', '')}])", True),
        ("dict(type='RepeatDataset', dataset=dict(type='ImageNet'))", False),
        (OURS.format('s', ", mask_source='other'"), 'other_masks'),
        (
            OURS.format('s', ", pipeline=[dict(type='LoadFromStore', centred_box='own')]"),
            'box',
        ),
        ('[]', None),
    ],
)
def test_masks_are_told_through_wrappers_and_controls_by_their_names(dataset, masks):
    text = PAPER.format('FreeATMMoCo') + f'train_dataloader = dict(dataset={dataset})\n'
    found = origin_of(content(text))
    assert found.masks == masks
    assert origin_of(content(text, note={'masks': masks})).masks == masks
    said = {'method': 'mocov2', 'regime': 'real', 'masks': True, 'generator': None, 'epochs': None}
    if masks in (False, 'other_masks', 'box'):
        with pytest.raises(InputError, match='its masks is'):
            settle_label(found, said, 'x.pth')
        said['masks'] = masks
    assert settle_label(found, said, 'x.pth')['masks'] == said['masks']


PIPELINE = (
    "pipeline=[dict(type='LoadFromStore'{}), dict(type='FreeATMMultiView'{}), "
    "dict(type='PackFreeATMInputs'{})]"
)


@pytest.mark.parametrize(
    'model, transforms, masks',
    [
        ('', ('', '', ''), True),
        (
            ", negatives='all', positives='own'",
            (', trust=False', '', ", mask_values='attention', min_visible=0.05"),
            True,
        ),
        ('', (', trust=True', '', ''), 'trust'),
        ('', ('', ', object_crops=1.0', ''), 'object_crops'),
        ('', ('', '', ", mask_values='binary'"), 'binary'),
        ('', ('', '', ', min_visible=0.2'), 'min_visible=0.2'),
        (
            ", positives='same_noun'",
            (', centred_box=1.0', '', ', one_noun=True'),
            'box, one_noun, same_noun',
        ),
        (", negatives='other_nouns'", ('', '', ''), 'other_nouns'),
        (", positives='same_noun'", (', trust=True', '', ''), 'same_noun, trust'),
        (", loss='equation3'", ('', '', ''), 'equation3'),
        (", combine='max', mask_generator=dict(ceiling=1.0)", ('',) * 3, 'ceiling_1, combine=max'),
        (', mask_generator=dict(ceiling=0.4)', ('', '', ''), 'ceiling_0.4'),
        (", guide=dict(type='NounGuide'), mask_generator=dict(ceiling=0.8)", ('',) * 3, True),
        (", guide=dict(type='LossGuide'), mask_generator=dict(ceiling=0.5)", ('',) * 3, 'hpm'),
        (", mask_generator=dict(noise='green', ceiling=0.0)", ('', '', ''), 'green_noise'),
    ],
)
def test_a_variant_is_never_called_free_atm(model, transforms, masks):
    dataset = OURS.format('s', ', ' + PIPELINE.format(*transforms))
    text = (
        f"model = dict(type='FreeATMMAE'{model}, backbone=dict(type='ResNet', depth=50))\n"
        f'train_dataloader = dict(dataset={dataset})\n'
    )
    found = origin_of(content(text))
    assert found.masks == masks
    assert origin_of(content(text, note={'masks': masks})).masks == masks
    # What was noted before variants had names of their own.
    assert origin_of(content(text, note={'masks': True})).masks == masks
    said = {'method': 'mae', 'regime': 'synthetic', 'masks': None, 'generator': None}
    assert settle_label(found, said, 'x.pth')['masks'] == masks
    if masks is not True:
        with pytest.raises(InputError, match=f'its masks is {masks!r}, not True'):
            settle_label(found, {**said, 'masks': True}, 'x.pth')
        assert settle_label(found, {**said, 'masks': 'mine'}, 'x.pth')['masks'] == 'mine'


@pytest.mark.parametrize(
    'before, masks, expected',
    [
        ("negatives='all'", '', True),
        ("positives='same_noun'", '', 'same_noun'),
        ("positives='same_noun'", ", mask_source='other'", 'other_masks, same_noun'),
        ("positives='same_noun'", ', masks=False', 'same_noun'),
    ],
)
def test_a_run_that_starts_from_a_variant_is_one(tmp_path, before, masks, expected):
    ConfigDict = pytest.importorskip('mmengine.config').ConfigDict
    from helpers.tiny_stores import make_store

    from freeatm_mm.origins import note_pretraining
    from freeatm_mm.store import Store

    earlier = tmp_path / 'earlier.pth'
    text = (
        f"model = dict(type='FreeATMMoCo', {before}, backbone=dict(type='ResNet', depth=50))\n"
        f'train_dataloader = dict(dataset={OURS.format("s", "")})\n'
    )
    torch.save({**content(text), 'state_dict': {}}, earlier)
    dataset = eval(OURS.format('s', masks))  # noqa: S307 - of this file
    noted = {}
    runner = SimpleNamespace(
        train_dataloader=SimpleNamespace(
            dataset=SimpleNamespace(sources=[Store(make_store(tmp_path / 'store', count=2))])
        ),
        cfg=ConfigDict(
            model=dict(type='FreeATMMoCo', pretrained=str(earlier), backbone=dict(type='ResNet')),
            train_dataloader=dict(dataset=dataset),
        ),
        message_hub=SimpleNamespace(update_info=lambda name, value: noted.update(value)),
    )
    note_pretraining(runner)
    assert noted['masks'] == expected


def test_what_takes_no_masks_but_guides_is_no_baseline():
    dataset = OURS.format('s', ', masks=False')
    text = (
        "model = dict(type='FreeATMMAE', guide=dict(type='OwnAttentionGuide'))\n"
        f'train_dataloader = dict(dataset={dataset})\n'
    )
    assert origin_of(content(text)).masks == 'own_attention'


def test_a_store_that_cannot_be_reached_is_no_unknown_one(monkeypatch):
    import freeatm_mm.store
    from freeatm_mm.store.errors import UnreachableStoreError

    def away(path):
        raise UnreachableStoreError(f'{path}: its server answers 503')

    text = PAPER.format('FreeATMMoCo')
    text += f'train_dataloader = dict(dataset={OURS.format("s3://bucket/store", "")})'
    monkeypatch.setattr(freeatm_mm.store, 'Store', away)
    with pytest.raises(InputError, match='s3://bucket/store: its server answers 503'):
        origin_of(content(text))


def test_equation_3_without_masks_is_no_baseline_and_has_no_stores_masks(tmp_path):
    from helpers.tiny_stores import make_store

    store = make_store(tmp_path / 'store', count=2, config={'scenes': 5})
    for said, masks in (('', False), (", loss='equation3'", 'equation3_whole')):
        text = (
            f"model = dict(type='FreeATMSimCLR'{said}, backbone=dict(type='ResNet', depth=50))\n"
            f'train_dataloader = dict(dataset={OURS.format(store, ", masks=False")})\n'
        )
        assert origin_of(content(text)).masks == masks
        assert origin_of(content(text, note={'masks': masks})).masks == masks


@pytest.mark.parametrize(
    'config, masks',
    [
        ({'regions': {'masks_from': 'kmeans'}, 'source': {}}, 'kmeans'),
        ({'imported': 'sam'}, 'imported'),
        ({'scenes': 5}, 'exact'),
        ({'pipeline': 'a/b', 'masks': {'crf': 64}}, 'mask_crf'),
        ({'pipeline': 'a/b'}, True),
        ({'sources': [{'config': {'pipeline': 'a/b'}}], 'filtered_by': []}, True),
    ],
)
def test_masks_that_are_no_generators_plain_ones_have_their_stores_name(tmp_path, config, masks):
    from helpers.tiny_stores import make_store

    store = make_store(tmp_path / 'store', count=2, config=config)
    text = (
        PAPER.format('FreeATMMoCo') + f'train_dataloader = dict(dataset={OURS.format(store, "")})'
    )
    assert origin_of(content(text)).masks == masks
    blip = {'freeatm_pretrain': {'build_info': {'store': str(store)}}}
    named = 'Free-ATM, exact masks' if masks == 'exact' else f'Free-ATM, {masks}'
    found = origin_of({'config': {'datasets': blip}, 'epoch': 1})
    assert found.masks == (True if masks is True else named)


@pytest.mark.filterwarnings('ignore')
def test_the_configs_are_called_what_they_are():
    pytest.importorskip('mmpretrain')
    from helpers.tools import ROOT
    from mmengine.config import Config

    from freeatm_mm import compat

    compat.skip_multimodal_models()
    plus = 'normalized, object_crops, same_noun, trust'
    inside = 'ceiling_1, combine=max, normalized, share_of=foreground'
    for name, masks in {
        'mocov2_freeatm': True,
        'simclr_freeatm': True,
        'mae_freeatm': True,
        'miniature/mocov2_freeatm': True,
        'miniature/dino_freeatm': True,
        'miniature/mae_freeatm': True,
        'miniature/baselines/mae': False,
        'miniature/mocov2_freeatm_plus': plus,
        'simclr_freeatm_plus': plus,
        'miniature/mae_freeatm_plus': inside,
        'miniature/peers/mae_hpm': 'hpm',
        'peers/mae_own_attention': 'own_attention',
        'miniature/peers/mae_green_noise': 'green_noise',
    }.items():
        cfg = Config.fromfile(ROOT / f'configs/{name}.py')
        assert origin_of(content(cfg.pretty_text)).masks == masks, name


@pytest.mark.parametrize(
    'model, neck, masks',
    [
        ('MoCo', 'MoCoV2Neck', False),
        ('mmpretrain.SimCLR', 'NonLinearNeck', False),
        ('ImageClassifier', 'GlobalAveragePooling', False),
        ('MyMoCo', 'FreeATMMoCoV2Neck', True),
        ('FreeATMMAE', '', True),
        ('MyMAE', 'MAEPretrainDecoder', None),
    ],
)
def test_masks_that_the_model_passes_over_are_none(model, neck, masks):
    text = (
        f"model = dict(type='{model}', neck=dict(type='{neck}'))\n"
        f'train_dataloader = dict(dataset={OURS.format("s", "")})\n'
    )
    assert origin_of(content(text)).masks is masks


GENERATED = {'pipeline': 'owner/stable-diffusion-v1-5'}


@pytest.mark.parametrize(
    'config, regime, generator',
    [
        (GENERATED, 'synthetic', 'sd15'),
        ({'sources': [{'config': GENERATED}], 'filtered_by': []}, 'synthetic', 'sd15'),
        ({'sources': [{'config': GENERATED}, {'config': {'scenes': 1}}]}, 'mixed', 'sd15'),
        # Masks were added to images: the pipeline looked at them, and didn't make them.
        ({**GENERATED, 'levels': [50, 100]}, None, None),
        ({'sources': [{'config': {**GENERATED, 'levels': [50]}}]}, None, None),
        ({'imported': 'coco'}, None, None),
        ({}, None, None),
        ({'sources': [{'config': {}}]}, None, None),
        ({'sources': 3}, None, None),
    ],
)
@pytest.mark.parametrize('wrapper', ['{}', "dict(type='RepeatDataset', times=2, dataset={})"])
def test_images_are_what_their_store_says_and_else_unknown(
    tmp_path, config, regime, generator, wrapper
):
    from helpers.tiny_stores import make_store

    store = make_store(tmp_path / 'store', count=2, config=config)
    text = PAPER.format('FreeATMMoCo')
    dataset = wrapper.format(OURS.format(store, ''))
    found = origin_of(content(f'{text}train_dataloader = dict(dataset={dataset})\n'))
    assert (found.regime, found.generator) == (regime, generator)
    blip = {'freeatm_pretrain': {'build_info': {'store': str(store)}}}
    found = origin_of({'config': {'datasets': blip}, 'epoch': 1})
    assert (found.regime, found.generator) == (regime, generator)


@pytest.mark.filterwarnings('ignore')
def test_real_runs_note_what_they_train_on(tmp_path):
    pytest.importorskip('mmpretrain')
    from freeatm_mm import compat

    compat.skip_multimodal_models()
    from helpers.tiny_runs import config, train
    from helpers.tiny_stores import make_store
    from PIL import Image

    from freeatm_mm.checkpoints import read_state
    from freeatm_mm.store.layout import config_digest, dump_manifest

    store = make_store(tmp_path / 'store', count=20)
    manifest = json.loads((store / 'store.json').read_text())
    manifest['config']['pipeline'] = 'runwayml/stable-diffusion-v1-5'
    manifest['config_sha256'] = config_digest(manifest['config'])
    (store / 'store.json').write_bytes(dump_manifest(manifest))
    folder = tmp_path / 'folder'
    folder.mkdir()
    for number in range(20):
        Image.new('RGB', (32, 32), (number, 0, 0)).save(folder / f'{number}.png')

    def origin(name, stores, **changes):
        cfg = config(stores, tmp_path / name, **changes)
        cfg.train_cfg.max_epochs = 1
        train(cfg, f'origin_{name}')
        return origin_of(read_state(tmp_path / name / 'epoch_1.pth'))

    assert origin('synthetic', store) == Origin('mocov2', 'synthetic', True, 1, 'sd15', 'miniature')
    assert origin('both', [store, folder]).regime == 'mixed'
    real = origin('real', folder, **{'train_dataloader.dataset.masks': False})
    assert (real.regime, real.masks, real.generator) == ('real', False, '')
    second = origin('second', store, **{'model.pretrained': str(tmp_path / 'real/epoch_1.pth')})
    assert (second.regime, second.generator) == ('mixed', 'sd15')
    torch.save({'state_dict': {'backbone.conv1.weight': torch.ones(1)}}, tmp_path / 'theirs.pth')
    unknown = origin('unknown', store, **{'model.pretrained': str(tmp_path / 'theirs.pth')})
    assert unknown.regime is None and unknown.masks is True

    silent = make_store(tmp_path / 'silent', count=20)
    cfg = config(silent, tmp_path / 'wrapped')
    cfg.train_cfg.max_epochs = 1
    dataset = cfg.train_dataloader.pop('dataset')
    dataset['mask_source'] = 'other'
    cfg.train_dataloader['dataset'] = dict(type='RepeatDataset', times=1, dataset=dataset)
    train(cfg, 'origin_wrapped')
    found = read_state(tmp_path / 'wrapped' / 'epoch_1.pth')
    assert found['message_hub']['runtime_info']['pretraining']['masks'] == 'other_masks'
    assert origin_of(found).regime is None


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('method', ['mocov2', 'mae'])
def test_every_arm_with_options_has_a_name_of_its_own(method):
    """A new option of a pretraining belongs into the tables of `origins`."""
    pytest.importorskip('mmpretrain')
    from helpers.tools import ROOT
    from mmengine.config import Config, DictAction

    from freeatm_mm import compat
    from freeatm_mm.miniature.arms import ARMS
    from freeatm_mm.miniature.layout import config_of, read_layout

    compat.skip_multimodal_models()
    cfg, layout = Config.fromfile(ROOT / config_of(method)), read_layout(method)
    for name, arm in ARMS.items():
        if not arm.suits(layout):
            continue
        changed = cfg.copy()
        for option in arm.changes(layout, 3):
            key, value = option.split('=')
            changed.merge_from_dict({key: DictAction._parse_int_float_bool(value)})
        text = ''.join(f'{key} = {changed[key]!r}\n' for key in ('model', 'train_dataloader'))
        masks = origin_of(content(text)).masks
        assert isinstance(masks, str) if arm.options else masks is True, f'{name}: {masks}'
