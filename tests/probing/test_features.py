"""Frozen-feature evaluation on a tiny world, and its parts against references."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.tools import load_tool
from sklearn.linear_model import LogisticRegression

pytest.importorskip('mmpretrain')

from freeatm_mm.errors import InputError  # noqa: E402
from freeatm_mm.probing import features  # noqa: E402
from freeatm_mm.probing.features import (  # noqa: E402
    SPLITS,
    FeatureModel,
    Features,
    Scenes,
    _segmentation_metrics,
    evaluate_features,
    evaluate_objects,
    extract_features,
    fit_linear,
    load_model,
    load_scenes,
    load_weights,
    standardise,
)
from freeatm_mm.results import read_results, unpack_outcomes, write_results  # noqa: E402

ROOT = Path(__file__).parents[2]

PREPROCESSOR = dict(
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
RESNET = dict(
    type='ResNet',
    depth=18,
    num_stages=2,
    base_channels=8,
    stem_channels=8,
    strides=(1, 1),
    dilations=(1, 1),
    out_indices=(1,),
    norm_cfg=dict(type='BN'),
)
VIT = dict(
    type='MAEViT',
    arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32),
    img_size=32,
    patch_size=8,
    mask_ratio=0.75,
)


def config_of(backbone, preprocessor=PREPROCESSOR):
    from mmengine.config import Config

    return Config(dict(model=dict(type='MoCo', data_preprocessor=preprocessor, backbone=backbone)))


@pytest.fixture(scope='module')
def resnet():
    return load_model(config_of(RESNET), seed=0)


# --- scenes


def test_scenes_are_read_exactly(tmp_path, make_split):
    exact = make_split(tmp_path / 'train', 6, seed=3)
    scenes = load_scenes(tmp_path / 'train')
    assert scenes.images.shape == (6, 32, 32, 3) and scenes.images.dtype == np.uint8
    visible = [mask for masks in exact for mask in masks if mask.any()]
    np.testing.assert_array_equal(scenes.object_masks, visible)
    assert scenes.skipped_objects == sum(len(masks) for masks in exact) - len(visible)
    for mask, box in zip(scenes.object_masks, scenes.object_boxes):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    # category ids 1, 4, 7, 10 become 0 to 3
    maps = scenes.label_maps
    for image, category, mask in zip(
        scenes.object_image, scenes.object_category, scenes.object_masks
    ):
        assert (maps[image][mask] == category + 1).all() and scenes.labels[image, category]
    assert ((maps > 0).sum((1, 2)) == [masks.any(0).sum() for masks in exact]).all()
    assert len(load_scenes(tmp_path / 'train', limit=2)) == 2


def test_images_of_one_name_in_two_folders_are_two(tmp_path, make_split):
    import json
    import shutil

    make_split(tmp_path / 'val', 3, seed=3)
    expected = load_scenes(tmp_path / 'val')
    images, path = tmp_path / 'val/images', tmp_path / 'val/coco.json'
    content = json.loads(path.read_text())
    for number, info in enumerate(content['images']):
        (images / f'{number}').mkdir()
        shutil.move(images / info['file_name'], images / f'{number}/x.png')
        info['file_name'] = f'{number}/x.png'
    for annotation in content['annotations']:
        del annotation['iscrowd']
    path.write_text(json.dumps(content))
    found = load_scenes(tmp_path / 'val')
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.object_masks, expected.object_masks)

    crowd = {**content['annotations'][0], 'iscrowd': 1, 'id': 10**6}
    path.write_text(json.dumps({**content, 'annotations': [*content['annotations'], crowd]}))
    assert len(load_scenes(tmp_path / 'val').object_masks) == len(expected.object_masks)
    content['annotations'][0]['category_id'] = 5
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='annotation 1 is of category 5, which the file'):
        load_scenes(tmp_path / 'val')
    content['images'][0]['file_name'] = '../../x.png'
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='leads out of'):
        load_scenes(tmp_path / 'val')


def test_missing_split_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='coco.json not found'):
        load_scenes(tmp_path / 'val')


def test_images_of_two_sizes_are_named(tmp_path, make_split):
    from PIL import Image

    make_split(tmp_path / 'val', 3, seed=3)
    Image.new('RGB', (30, 32)).save(tmp_path / 'val' / 'images' / '000002.png')
    with pytest.raises(ValueError, match=r'000002.png is \(30, 32\) pixels'):
        load_scenes(tmp_path / 'val')


# --- the model


@pytest.mark.parametrize('to_rgb', [True, False])
def test_images_reach_the_backbone_as_the_config_normalises_them(to_rgb):
    mean, std = [10.0, 20.0, 30.0], [2.0, 4.0, 8.0]
    model = load_model(config_of(RESNET, dict(PREPROCESSOR, mean=mean, std=std, to_rgb=to_rgb)))
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    model.feature_map(images)
    channels = images if to_rgb else images[..., ::-1]
    expected = ((channels - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(seen[0].numpy(), expected, rtol=1e-5)


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, same, other = (
        load_model(config_of(RESNET), seed=s).backbone.state_dict() for s in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first['conv1.weight'], other['conv1.weight'])


def test_checkpoint_of_a_whole_algorithm_loads_into_the_backbone(tmp_path, resnet):
    from mmengine.logging import HistoryBuffer

    state = {
        f'backbone.{name}': value + 1 if value.is_floating_point() else value
        for name, value in resnet.backbone.state_dict().items()
    }
    state['neck.weight'] = torch.zeros(3)
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(
        {
            'state_dict': state,
            'message_hub': {'log_scalars': {'loss': history}},
            'meta': {'epoch': 1},
        },
        tmp_path / 'epoch_1.pth',
    )
    model = load_model(config_of(RESNET), tmp_path / 'epoch_1.pth')
    assert model.matched == model.total == len(model.backbone.state_dict())
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[f'backbone.{name}'])
    assert not model.backbone.training
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())


def test_safetensors_and_bare_backbones_load(tmp_path, resnet):
    from safetensors.torch import save_file

    save_file(dict(resnet.backbone.state_dict()), tmp_path / 'bare.safetensors')
    model = load_model(config_of(RESNET), tmp_path / 'bare.safetensors', seed=5)
    assert model.matched == model.total
    assert torch.equal(model.backbone.conv1.weight, resnet.backbone.conv1.weight)


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path, resnet):
    state = {
        f'backbone.{name}': value
        for name, value in resnet.backbone.state_dict().items()
        if not name.startswith('layer2')
    }
    torch.save({'state_dict': state}, tmp_path / 'half.pth')
    with pytest.raises(ValueError, match=r'not in the checkpoint: layer2\.0\.conv1\.weight.*95 %'):
        load_model(config_of(RESNET), tmp_path / 'half.pth')
    # All but one of ResNet-18's tensors, then all of them and as many more.
    state = {f'backbone.{name}': each for name, each in resnet.backbone.state_dict().items()}
    first = state.pop('backbone.conv1.weight')
    torch.save({'state_dict': state}, tmp_path / 'no-stem.pth')
    with pytest.raises(ValueError, match=r'not in the checkpoint: conv1\.weight'):
        load_model(config_of(RESNET), tmp_path / 'no-stem.pth')
    state['backbone.conv1.weight'] = first
    state |= {f'backbone.layer3.7.{name}': each for name, each in state.items()}
    torch.save({'state_dict': state}, tmp_path / 'deeper.pth')
    with pytest.raises(ValueError, match=r"the checkpoint's, unused: layer3\.7"):
        load_model(config_of(RESNET), tmp_path / 'deeper.pth')
    with pytest.raises(FileNotFoundError, match='none.pth'):
        load_model(config_of(RESNET), tmp_path / 'none.pth')
    with pytest.raises(FileNotFoundError, match='nowhere.py'):
        load_model(tmp_path / 'nowhere.py')


def test_position_embeddings_of_another_grid_are_resized(tmp_path):
    small = load_model(config_of(VIT))
    torch.save(small.backbone.state_dict(), tmp_path / 'vit.pth')
    size = {'model.backbone.img_size': 2 * VIT['img_size']}
    large = load_model(config_of(VIT), tmp_path / 'vit.pth', cfg_options=size)
    untrained = load_model(config_of(VIT), cfg_options=size)
    assert large.backbone.pos_embed.shape[1] > small.backbone.pos_embed.shape[1]
    assert not torch.equal(large.backbone.pos_embed, untrained.backbone.pos_embed)
    wanted = torch.nn.functional.interpolate(
        small.backbone.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2),
        scale_factor=2,
        mode='bicubic',
    )
    torch.testing.assert_close(
        large.backbone.pos_embed[:, 1:], wanted.flatten(2).transpose(1, 2), atol=1e-6, rtol=0
    )


def test_a_classifiers_config_has_its_own_preprocessor():
    from mmengine.config import Config

    model = dict(type='ImageClassifier', backbone=RESNET)
    untyped = dict(PREPROCESSOR, num_classes=10)
    untyped.pop('type', None)
    loaded = load_model(Config(dict(model=model, data_preprocessor=untyped)))
    assert type(loaded.preprocessor).__name__ == 'ClsDataPreprocessor'
    assert loaded.feature_map(np.zeros((2, 32, 32, 3), np.uint8)).shape[:2] == (2, 16)
    other = dict(type='DetDataPreprocessor')
    with pytest.raises(ValueError, match='not all of DetDataPreprocessor and ResNet: name the'):
        load_model(Config(dict(model=dict(model, data_preprocessor=other))))


def test_overrides_that_nothing_reads_are_refused():
    config = config_of(RESNET)
    depth = {'model.backbone.depth': 34, 'model.data_preprocessor.to_rgb': False}
    assert len(load_model(config, cfg_options=depth).backbone.layer1) == 3
    assert config.model.backbone.depth == 18  # which was handed over
    for key in ('modle.backbone.depth', 'model.head.temperature', 'data_preprocessor.to_rgb'):
        with pytest.raises(InputError, match=f'cfg_options {key}: nothing here reads it'):
            load_model(config, cfg_options={key: 34})


class Planted:
    """Would run code when unpickled."""

    def __reduce__(self):
        return exec, ('raise SystemExit("code ran")',)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({'state_dict': {'w': torch.zeros(1)}, 'meta': Planted()}, tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match="bad.pth can't be read: it holds more than tensors"):
        load_weights(tmp_path / 'bad.pth')


def test_masked_autoencoders_show_every_patch(world):
    model = load_model(config_of(VIT))
    scenes = load_scenes(world / 'val', limit=4)
    features = model.feature_map(scenes.images)
    assert features.shape == (4, 16, 4, 4)
    assert torch.equal(features, model.feature_map(scenes.images))  # nothing masked at random


# --- features


class Passthrough:
    """A model whose feature map is the image itself, averaged over 4x4 pixels."""

    matched = total = 0

    def feature_map(self, images):
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float()
        return torch.nn.functional.avg_pool2d(pixels, 4)

    def pad(self, maps):
        return maps


def test_pooling_under_masks_and_crops_against_loops(world):
    scenes = load_scenes(world / 'val', limit=7)
    features = extract_features(Passthrough(), scenes, batch_size=3, maps=4)
    np.testing.assert_allclose(features.scenes, scenes.images.mean((1, 2)), rtol=1e-4)
    assert features.maps.shape == (4, 3, 8, 8) and features.cells.shape == (4, 8, 8, 5)
    for number, (image, mask) in enumerate(zip(scenes.object_image, scenes.object_masks)):
        total, weights = np.zeros(3), 0.0
        for y in range(8):
            for x in range(8):
                window = slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4)
                total += mask[window].mean() * scenes.images[image][window].mean((0, 1))
                weights += mask[window].mean()
        np.testing.assert_allclose(features.objects[number], total / weights, rtol=1e-4)
    maps = scenes.label_maps
    for category in range(5):
        share = (maps[:4] == category).reshape(4, 8, 4, 8, 4).mean((2, 4))
        np.testing.assert_allclose(features.cells[..., category], share, atol=1e-6)


def test_features_that_are_nan_are_judged_by_nobody():
    backbone = torch.nn.Conv2d(3, 2, 1)
    backbone.bias.data.fill_(np.nan)

    class AsItIs(torch.nn.Module):
        def forward(self, data, training):
            return {'inputs': data['inputs'].float()}

    model = FeatureModel(backbone, AsItIs(), 0, 2)
    with pytest.raises(ValueError, match='Conv2d gave features that are NaN'):
        model.feature_map(np.zeros((1, 4, 4, 3), np.uint8))


def test_cells_of_a_padded_picture_lie_where_its_patches_do():
    """Patches of 6 don't divide 32 pixels: the sixth reaches 4 pixels over the edge."""
    model = load_model(config_of(VIT | dict(patch_size=6)))

    class Seen(Passthrough):
        """What each patch of the backbone sees: the mean colour of its own pixels."""

        def feature_map(self, images):
            pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float()
            embedding = model.backbone.patch_embed
            weight = torch.eye(3)[:, :, None, None].expand(3, 3, 6, 6) / 36
            return torch.nn.functional.conv2d(embedding.adaptive_padding(pixels), weight, stride=6)

        pad = staticmethod(model.pad)

    images = np.zeros((1, 32, 32, 3), np.uint8)
    masks = np.zeros((2, 32, 32), bool)
    masks[0, 24:30, 6:12] = True  # just one patch
    masks[1, 30:, 30:] = True  # what the last patch has of the picture
    images[0][masks[0]], images[0][masks[1]] = (90, 0, 0), (0, 180, 0)
    scenes = Scenes(
        images,
        ('bag', 'cup'),
        np.array([0, 0]),
        np.array([0, 1]),
        masks,
        np.array([[6, 24, 12, 30], [30, 30, 32, 32]]),
    )
    assert model.feature_map(images).shape[2:] == (6, 6)
    features = extract_features(Seen(), scenes)
    np.testing.assert_allclose(features.objects, [[90, 0, 0], [0, 180 * 4 / 36, 0]], rtol=1e-5)
    cells = np.zeros((1, 6, 6, 3))
    cells[..., 0] = 1
    cells[0, 4, 1], cells[0, 5, 5] = (0, 1, 0), (0, 0, 1)
    np.testing.assert_allclose(features.cells, cells, atol=1e-6)
    assert features.picture.shape == (36, 36)
    assert features.picture[:32, :32].all() and features.picture.sum() == 32 * 32


def test_segmentation_is_judged_on_the_picture_without_its_padding():
    """Cells whose features name their class exactly are right wherever no cell is mixed."""
    maps = np.zeros((4, 6, 6), np.int64)
    maps[:, :, 3:] = 1
    cells = np.eye(2, dtype=np.float32)[maps]
    picture = np.zeros((36, 36), bool)
    picture[:32, :32] = True
    labels = maps.repeat(6, 1).repeat(6, 2)[:, :32, :32].astype(np.uint8)
    one = Features(*[np.zeros((0, 2))] * 3, cells.transpose(0, 3, 1, 2), cells, picture)
    metrics, _ = _segmentation_metrics(
        dict.fromkeys(SPLITS, one), dict.fromkeys(SPLITS, labels), (1e-4,)
    )
    assert metrics['segmentation_miou'] == 1.0


def test_a_crop_shows_its_object_alone():
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[0, 4:12, 8:20] = (200, 100, 50)
    mask = np.zeros((1, 32, 32), bool)
    mask[0, 4:12, 8:20] = True
    scenes = Scenes(
        images, ('bag',), np.array([0]), np.array([0]), mask, np.array([[8, 4, 20, 12]])
    )
    features = extract_features(Passthrough(), scenes, crop_margin=0.0)
    np.testing.assert_allclose(features.crops, [[200, 100, 50]], rtol=0.05)
    wide = extract_features(Passthrough(), scenes, crop_margin=0.5)
    np.testing.assert_allclose(wide.crops, [[50, 25, 12.5]], rtol=0.1)


# --- classifiers


def test_standardise_uses_the_train_rows_and_survives_constants():
    rng = np.random.default_rng(0)
    train, test = rng.normal(3, 2, (50, 3)), rng.normal(3, 2, (9, 3))
    train[:, 1], test[:, 1] = 7.0, 9.0
    first, second = standardise(train, test)
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(first.std(0), [1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(
        second[:, 0], (test[:, 0] - train[:, 0].mean()) / train[:, 0].std(), rtol=1e-5
    )
    assert (second[:, 1] == 0).all()


@pytest.mark.parametrize('l2', [1e-1, 1e-3])
def test_linear_classifiers_are_scikit_learns(l2):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 6)).astype(np.float32)
    y = (x[:, :3] + rng.normal(size=(200, 3))).argmax(1)
    reference = LogisticRegression(C=1 / (l2 * 200), tol=1e-10, max_iter=5000).fit(x, y)
    weight, bias = fit_linear(x, np.eye(3)[y], l2, multi_label=False)
    logits = x @ weight.numpy().T + bias.numpy()
    expected = reference.decision_function(x)
    np.testing.assert_allclose(
        logits - logits.mean(1, keepdims=True),
        expected - expected.mean(1, keepdims=True),
        atol=2e-2,
    )

    labels = np.stack([y == 0, y != 2], 1)
    weight, bias = fit_linear(x, labels, l2, multi_label=True)
    for c in range(2):
        reference.fit(x, labels[:, c])
        np.testing.assert_allclose(weight[c].numpy(), reference.coef_[0], atol=1e-2)
        assert bias[c].item() == pytest.approx(reference.intercept_[0], abs=1e-2)


def test_soft_targets_give_their_shares():
    x = np.zeros((10, 2), np.float32)
    weight, bias = fit_linear(x, np.tile([0.7, 0.2, 0.1], (10, 1)), 1e-3, multi_label=False)
    np.testing.assert_allclose(bias.softmax(0).numpy(), [0.7, 0.2, 0.1], atol=1e-4)


# --- all together


def test_evaluation_end_to_end(world, resnet):
    metrics, details = evaluate_features(resnet, world)
    again, _ = evaluate_features(resnet, world)
    assert metrics == again
    assert list(metrics) == [
        'linear',
        'knn',
        'linear_object',
        'knn_object',
        'linear_crop',
        'knn_crop',
        'segmentation_miou',
    ]
    assert all(0 <= value <= 1 for value in metrics.values())
    # the nouns are told apart by colour, so even random features are far above chance (1 in 4)
    assert metrics['linear'] > 0.7 and metrics['linear_object'] > 0.7
    assert metrics['linear_crop'] > 0.6 and metrics['segmentation_miou'] > 0.3
    assert set(details['average_precision']) == {'dress', 'leaf', 'bag', 'lemon'}
    assert details['scenes'] == {'train': 160, 'val': 60, 'test': 80}
    json.dumps(details, allow_nan=False)


def test_meaningless_features_score_like_chance(world):
    class Blank(Passthrough):
        def feature_map(self, images):
            return torch.zeros(len(images), 3, 8, 8)

    metrics, _ = evaluate_features(Blank(), world)
    share = load_scenes(world / 'test').labels.mean()
    assert metrics['linear'] == pytest.approx(share, abs=0.02)
    assert metrics['segmentation_miou'] < 0.25


def test_splits_with_other_categories_are_refused(world, tmp_path, resnet, make_split):
    for split in ('train', 'val'):
        shutil.copytree(world / split, tmp_path / split)
    make_split(tmp_path / 'test', 4, seed=9, nouns=('dress', 'leaf', 'bag', 'pear'))
    with pytest.raises(ValueError, match='categories of test differ'):
        evaluate_features(resnet, tmp_path)


def test_a_device_that_is_not_there_is_one_sentence():
    with pytest.raises(InputError, match="the ResNet can't be moved to the device cuda:99: ."):
        load_model(config_of(RESNET), device='cuda:99')


def test_evaluate_tool_gathers_runs_in_one_file(world, tmp_path, monkeypatch, capsys):
    config = tmp_path / 'tiny.py'
    config.write_text(
        f'model = dict(type="MoCo", backbone={RESNET!r}, data_preprocessor={PREPROCESSOR!r})\n'
    )
    out = tmp_path / 'trial.json'

    main = load_tool('evaluate').main

    def tool(*arguments):
        main([str(config), *arguments, '--world', str(world), '--out', str(out)])

    tool('--random', '--seed', '0')
    assert 'Scenes, linear (mAP)' in capsys.readouterr().out
    checkpoint = tmp_path / 'x.pth'
    torch.save(
        {
            'state_dict': {
                f'backbone.{name}': value
                for name, value in load_model(config_of(RESNET), seed=1)
                .backbone.state_dict()
                .items()
            }
        },
        checkpoint,
    )
    named = ['--method', 'mocov2', '--regime', 'synthetic', '--masks', 'true']
    tool(str(checkpoint), '--seed', '0', *named, '--epochs', '4')
    rows = read_results(out)['rows']
    assert [(row['method'], row['masks'], row['epochs']) for row in rows] == [
        ('random', False, 0),
        ('mocov2', True, 4),
    ]
    assert rows[0]['metrics'].keys() == rows[1]['metrics'].keys()
    assert rows[0]['metrics'] != rows[1]['metrics']
    with pytest.raises(SystemExit):
        tool(str(tmp_path / 'none.pth'), '--seed', '0', '--method', 'mocov2')
    assert re.search('there is no checkpoint .*none.pth', capsys.readouterr().err)
    with pytest.raises(SystemExit):
        tool(str(checkpoint), '--seed', '0')
    assert re.search('does not say its method and regime and masks', capsys.readouterr().err)
    torch.save({**torch.load(checkpoint), 'meta': {'iter': 0}}, checkpoint)
    with pytest.raises(SystemExit):
        tool(str(checkpoint), '--seed', '0', *named)
    assert re.search('without a single step', capsys.readouterr().err)
    assert len(read_results(out)['rows']) == 2


def test_rows_that_others_add_meanwhile_stay(tmp_path, monkeypatch):
    (tmp_path / 'tiny.py').write_text('')
    main, out, measured = load_tool('evaluate').main, tmp_path / 'x.json', []

    def tool(seed):
        arguments = ['--random', '--seed', seed, '--world', 'W', '--out', str(out)]
        main([str(tmp_path / 'tiny.py'), *arguments])

    def measure(*_):
        measured.append(None)
        if len(measured) == 1:  # another one begins later and ends sooner
            tool('1')
        return {'linear': 0.5}, {'seconds': {'linear': 1.0}}

    model = SimpleNamespace(weights_sha256=lambda: 'a')
    monkeypatch.setattr(features, 'load_model', lambda *_, **__: model)
    monkeypatch.setattr(features, 'evaluate_features', measure)
    tool('0')
    assert [row['seed'] for row in read_results(out)['rows']] == [1, 0]


def test_what_is_not_measured_again_stays_in_the_row(tmp_path, monkeypatch, capsys):
    """Figures of the scenes beside those of the garments, as long as both are of one network."""
    (tmp_path / 'tiny.py').write_text('')
    out, weights = tmp_path / 'x.json', ['a']
    figures = {'linear': 0.5, 'linear_garment': 0.25}

    def tool(*on):
        arguments = ['--random', '--seed', '0', '--world', 'W', '--out', str(out), '--on', *on]
        load_tool('evaluate').main([str(tmp_path / 'tiny.py'), *arguments])
        (row,) = read_results(out)['rows']
        return row['metrics'], row['details']

    def measure(name):
        return lambda *_: ({name: figures[name]}, {'of': name, name: 1, 'seconds': {name: 1.0}})

    model = SimpleNamespace(weights_sha256=lambda: weights[0])
    monkeypatch.setattr(features, 'load_model', lambda *_, **__: model)
    monkeypatch.setattr(features, 'evaluate_features', measure('linear'))
    monkeypatch.setattr(features, 'evaluate_objects', measure('linear_garment'))
    monkeypatch.setattr('freeatm_mm.miniature.garments.load_garments', lambda _: {})
    tool('scenes')
    metrics, details = tool('garments')
    assert metrics == figures and details['linear'] == details['linear_garment'] == 1
    assert details['seconds'].keys() == figures.keys() and details['weights_sha256'] == 'a'
    figures['linear'] = 0.75
    assert tool('scenes')[0] == figures
    assert 'left out' not in capsys.readouterr().out
    weights[0] = 'b'
    metrics, details = tool('garments')
    assert metrics == {'linear_garment': 0.25} and 'linear' not in details['seconds']
    assert 'on other weights: the earlier figures linear\n' in capsys.readouterr().out
    # Figures of fewer scenes say so, and no others.
    tool('scenes', '--test-scenes', '9')
    tool('garments')
    assert read_results(out)['rows'][0]['options'] == {'linear': ['--test-scenes=9']}
    tool('scenes')
    assert 'options' not in read_results(out)['rows'][0]
    # Rows of earlier versions don't say which weights they are of.
    results = read_results(out)
    del results['rows'][0]['details']
    write_results(out, results)
    metrics, details = tool('scenes')
    assert metrics == figures and 'weights_sha256' not in details


def test_weights_have_a_digest():
    digests = [load_model(config_of(RESNET), seed=seed).weights_sha256() for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_single_objects_under_their_masks_and_in_whole_images():
    """Outcomes are those of the accuracies; colour under the mask tells, in the picture less so."""
    rng = np.random.default_rng(0)
    scenes = {}
    for split, count in (('train', 200), ('val', 60), ('test', 90)):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        category = np.arange(count) % 3
        masks = np.zeros((count, 32, 32), bool)
        masks[:, 8:16, 16:24] = True
        for image, mask, kind in zip(images, masks, category):
            image[mask] = 120
            image[mask, kind] = 135
        boxes = np.tile([16, 8, 24, 16], (count, 1))
        scenes[split] = Scenes(images, ('a', 'b', 'c'), np.arange(count), category, masks, boxes)
    metrics, details = evaluate_objects(Passthrough(), scenes, 'thing')
    assert metrics['linear_thing'] == metrics['knn_thing'] == 1
    assert metrics['knn_thing_whole'] < 1
    assert details['things'] == 90
    for name, value in metrics.items():
        assert unpack_outcomes(details['outcomes'][name], 90).mean() == pytest.approx(value)
    two = replace(scenes['val'], object_image=np.zeros(60, int))
    with pytest.raises(ValueError, match='one object in each scene of val'):
        evaluate_objects(Passthrough(), {**scenes, 'val': two}, 'thing')
