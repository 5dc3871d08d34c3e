"""What a downstream run starts from: everything that fits is loaded, counted, and named if not."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmpretrain.models import ResNet, VisionTransformer, ViTSAM
from mmpretrain.models.selfsup import MAEViT
from mmpretrain.models.utils import resize_pos_embed
from torch import nn

from freeatm_mm.checkpoints import check_complete, find_backbone, resize_positions
from freeatm_mm.configs import check_init
from freeatm_mm.engine import BackboneLayerDecayConstructor, InitialWeightsHook
from freeatm_mm.engine.initial_weights import load_backbone

ARCH = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)
SMALL = dict(depth=18, stem_channels=8, base_channels=8)


class Detector(nn.Module):
    """Has a backbone, and maybe the parts of one elsewhere."""

    def __init__(self, backbone, shared_head=None):
        super().__init__()
        self.backbone = backbone
        if shared_head is not None:
            self.roi_head = nn.Module()
            self.roi_head.shared_head = shared_head


def save(path, model, prefix='backbone.', **extra):
    torch.manual_seed(5)
    state = {
        f'{prefix}{name}': torch.rand_like(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    torch.save({'state_dict': {**state, **extra}}, path)
    return {name[len(prefix) :]: value for name, value in state.items()}


def start(model, init, **options):
    """Runs the hook as a run's start would; what it said."""
    said = []
    runner = SimpleNamespace(
        iter=0,
        model=model,
        cfg=Config(dict(init=init)),
        message_hub=mock.Mock(),
        logger=SimpleNamespace(info=said.append),
    )
    InitialWeightsHook(**options).before_train(runner)
    return said[0]


@pytest.mark.parametrize('prefix', ['backbone.', ''])
def test_resnet_from_mocos_query_encoder_or_bare(prefix, tmp_path):
    state = save(
        tmp_path / 'moco.pth',
        ResNet(**SMALL),
        prefix,
        **{
            'encoder_k.module.0.conv1.weight': torch.zeros(8, 3, 7, 7),
            'fc.weight': torch.zeros(2, 2),
            'queue': torch.zeros(3),
        }
        if prefix
        else {'fc.weight': torch.zeros(2, 2)},
    )
    model = Detector(ResNet(**SMALL))
    said = start(model, str(tmp_path / 'moco.pth'))
    assert '100 of the 100 tensors' in said and 'unused' not in said
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[name])


def test_c4s_shared_head_gets_the_last_stage(tmp_path):
    pytest.importorskip('mmcv.ops')
    import mmdet.models
    from mmpretrain.models.utils.res_layer_extra_norm import ResLayerExtraNorm

    state = save(tmp_path / 'moco.pth', ResNet(depth=50))
    norm = dict(type='BN')
    model = Detector(
        mmdet.models.ResNet(
            50, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)
        ),
        ResLayerExtraNorm(depth=50, norm_cfg=norm, norm_eval=False),
    )
    both = ['backbone', 'roi_head.shared_head']
    said = start(model, str(tmp_path / 'moco.pth'), modules=both, new=[r'^norm\.'])
    assert '265 of the 265 tensors' in said and 'unused' not in said
    assert torch.equal(
        model.roi_head.shared_head.layer4[2].conv3.weight, state['layer4.2.conv3.weight']
    )
    with pytest.raises(ValueError, match=r"checkpoint's, unused: layer4\.0\.conv1\.weight"):
        start(model, str(tmp_path / 'moco.pth'))  # the head forgotten


def test_a_deep_stem_is_refused(tmp_path):
    pytest.importorskip('mmcv.ops')
    import mmseg.models

    save(tmp_path / 'moco.pth', ResNet(depth=50))
    with pytest.raises(ValueError, match=r'260 of the 275 .*stem\.0\.weight.*unused: conv1'):
        start(Detector(mmseg.models.ResNetV1c(depth=50)), str(tmp_path / 'moco.pth'))


def test_mmsegs_vit_takes_names_with_a_prefix_and_resized_positions(tmp_path):
    """Its own loading would take nothing from these, without a word."""
    pytest.importorskip('mmcv.ops')
    import mmseg.models

    state = save(
        tmp_path / 'mae.pth',
        MAEViT(arch=ARCH, img_size=32, patch_size=8),
        mask_token=torch.zeros(1),
    )
    theirs = mmseg.models.MAE(
        img_size=(64, 64),
        patch_size=8,
        embed_dims=16,
        num_layers=3,
        num_heads=2,
        mlp_ratio=2,
        out_indices=[2],
    )
    said = start(Detector(theirs), str(tmp_path / 'mae.pth'), new=['gamma_', 'relative_position'])
    assert '40 of the 40 tensors' in said and 'unused' not in said
    assert torch.equal(theirs.layers[2].attn.qkv.weight, state['layers.2.attn.qkv.weight'])
    expected = resize_pos_embed(state['pos_embed'], (4, 4), (8, 8))
    torch.testing.assert_close(theirs.pos_embed.data, expected)
    with pytest.raises(ValueError, match='relative_position'):  # not declared as new
        start(Detector(theirs), str(tmp_path / 'mae.pth'))


@pytest.mark.parametrize('kind', ['plain', 'windowed'])
def test_mmpretrains_vits_of_another_size(kind, tmp_path):
    state = save(tmp_path / 'mae.pth', MAEViT(arch=ARCH, img_size=32, patch_size=8))
    if kind == 'plain':
        model = VisionTransformer(arch=ARCH, img_size=48, patch_size=8, out_type='featmap')
    else:
        model = ViTSAM(
            arch=dict(ARCH, global_attn_indexes=[2]),
            img_size=48,
            patch_size=8,
            out_channels=0,
            window_size=3,
        )
    said = start(Detector(model), str(tmp_path / 'mae.pth'), new=['rel_pos_'])
    assert f'{42 if kind == "plain" else 39} of the' in said
    grid = resize_pos_embed(state['pos_embed'], (4, 4), (6, 6))
    expected = grid if kind == 'plain' else grid[:, 1:].reshape(1, 6, 6, 16)
    torch.testing.assert_close(model.pos_embed.data, expected)
    assert torch.equal(model.layers[1].ffn.layers[1].weight, state['layers.1.ffn.layers.1.weight'])


def test_positions_keep_their_place():
    """A ramp over the columns stays one; the class token stays out of it."""
    ramp = torch.arange(8.0).expand(8, 8).reshape(1, 64, 1)
    positions = torch.cat([torch.full((1, 1, 1), 99.0), ramp], 1)
    wider = resize_positions(positions, (4, 4), True)
    assert wider.shape == (1, 17, 1) and wider[0, 0] == 99
    grid = wider[0, 1:, 0].reshape(4, 4)
    assert (grid.diff(dim=1) > 1).all() and grid.diff(dim=0).abs().max() < 1e-4
    assert resize_positions(positions, (8, 8), False).shape == (1, 64, 1)
    assert torch.equal(resize_positions(ramp, (8, 8), False), ramp)
    with pytest.raises(ValueError, match='no class token'):
        resize_positions(ramp, (8, 8), True)
    with pytest.raises(ValueError, match='not of a square grid'):
        resize_positions(torch.zeros(1, 31, 1), (8, 8), True)


def test_what_does_not_fit_is_named(tmp_path):
    path = str(tmp_path / 'x.pth')
    save(path, ResNet(depth=50))
    with pytest.raises(
        ValueError,
        match=r'x\.pth does not fit backbone .*not in the checkpoint: '
        r'backbone\.cls_token.*is it the checkpoint of the same architecture',
    ):
        start(Detector(VisionTransformer(arch=ARCH, img_size=32, patch_size=8)), path)
    with pytest.raises(
        ValueError,
        match=r'another shape: backbone\.conv1\.weight '
        r'\(64, 3, 7, 7\) for \(8, 3, 7, 7\)',
    ):
        start(Detector(ResNet(**SMALL)), path)
    # Half of it: a checkpoint that ends after the second stage.
    half = {
        name: value
        for name, value in torch.load(path)['state_dict'].items()
        if 'layer3' not in name and 'layer4' not in name
    }
    torch.save({'state_dict': half}, path)
    with pytest.raises(ValueError, match=r'of the 265 .*backbone\.layer3\.0\.conv1\.weight.* more'):
        start(Detector(ResNet(depth=50)), path)
    torch.save({'state_dict': {'head.fc.weight': torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match=r'holds no backbone.*head\.fc\.weight'):
        start(Detector(ResNet(**SMALL)), path)


def test_one_wrong_tensor_is_enough_where_images_enter(tmp_path):
    """One of 39 or 100 is below five per cent, and all that follows would see noise."""
    path = str(tmp_path / 'x.pth')
    vit = dict(arch=ARCH, img_size=32)
    save(path, VisionTransformer(patch_size=16, **vit))
    with pytest.raises(ValueError, match=r'another shape: backbone\.patch_embed\.projection\.w'):
        start(Detector(VisionTransformer(patch_size=8, **vit)), path)
    state = save(path, ResNet(**SMALL))
    del state['conv1.weight']
    torch.save({'state_dict': {f'backbone.{name}': value for name, value in state.items()}}, path)
    with pytest.raises(ValueError, match=r'99 of the 100 .*not in the checkpoint: backbone\.conv1'):
        start(Detector(ResNet(**SMALL)), path)
    mmseg = pytest.importorskip('mmseg.models')
    deep = dict(depth=101, base_channels=4)
    save(path, ResNet(depth=101, base_channels=4, stem_channels=4))
    with pytest.raises(ValueError, match=r'515 of the 530 .*backbone\.stem\.0\.weight'):
        start(Detector(mmseg.ResNetV1c(stem_channels=4, **deep)), path)


def test_a_few_missing_are_let_through_and_named(tmp_path):
    state = save(tmp_path / 'x.pth', ResNet(**SMALL))
    del state['bn1.weight']
    torch.save(
        {'state_dict': {f'backbone.{name}': value for name, value in state.items()}},
        tmp_path / 'x.pth',
    )
    said = start(Detector(ResNet(**SMALL)), str(tmp_path / 'x.pth'))
    assert '99 of the 100 tensors' in said and 'not in the checkpoint: backbone.bn1.weight' in said


def test_random_supervised_and_nothing(tmp_path):
    model = Detector(ResNet(**SMALL))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert 'random' in start(model, 'random')
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    save(tmp_path / 'supervised.pth', ResNet(**SMALL), prefix='')
    assert '100 of the 100' in start(
        model, 'supervised', supervised=str(tmp_path / 'supervised.pth')
    )
    with pytest.raises(ValueError, match='has no supervised checkpoint'):
        start(model, 'supervised')
    with pytest.raises(ValueError, match='does not say what to start from: set init=random'):
        start(model, None)
    with pytest.raises(FileNotFoundError, match='there is no checkpoint nowhere.pth'):
        check_init({'init': 'nowhere.pth'})
    check_init({}), check_init({'init': 'torchvision://resnet50'})


def test_a_resumed_run_is_left_alone():
    runner = SimpleNamespace(iter=7)  # nothing else is looked at
    InitialWeightsHook().before_train(runner)


def test_addresses_are_loaded_by_mmengine():
    state = {
        'conv1.weight': torch.zeros(1),
        'layer1.0.conv1.weight': torch.ones(1),
        'fc.weight': torch.ones(1),
    }
    with mock.patch('mmengine.runner.CheckpointLoader.load_checkpoint', return_value=state) as load:
        assert set(find_backbone('torchvision://resnet50')) == {
            'conv1.weight',
            'layer1.0.conv1.weight',
        }
    assert load.call_args.args == ('torchvision://resnet50',)


def test_rates_fall_layer_by_layer():
    """0.5 a layer: the patches' projection lowest, the pyramid and heads at the full rate."""
    model = Detector(VisionTransformer(arch=ARCH, img_size=32, patch_size=8, out_type='featmap'))
    model.neck = nn.Conv2d(16, 4, 1)
    build = BackboneLayerDecayConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1)),
        dict(layer_decay_rate=0.5, norm_decay_mult=0.0),
    )
    groups = {group['param_name']: group for group in build(model).optimizer.param_groups}
    assert groups['neck.weight']['lr'] == 1
    assert groups['backbone.layers.2.attn.qkv.weight']['lr'] == 0.5
    assert groups['backbone.layers.0.attn.qkv.weight']['lr'] == 0.125
    assert groups['backbone.patch_embed.projection.weight']['lr'] == 0.0625
    assert groups['backbone.layers.0.ln1.weight']['weight_decay'] == 0
    assert set(groups) == {name for name, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(TypeError, match='get_layer_depth.*not Conv2d'):
        build(Detector(nn.Conv2d(3, 8, 1)))


def test_a_checkpoint_to_evaluate_must_fill_the_model(tmp_path):
    """mmengine warns and goes on: heads without weights would give figures all the same."""
    whole = Detector(ResNet(**SMALL))
    whole.head = nn.Linear(4, 3)
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': whole.state_dict()}, path)
    check_complete(whole, path)
    whole.head = nn.Linear(4, 5)
    with pytest.raises(ValueError, match=r'another shape, head\.weight, head\.bias$'):
        check_complete(whole, path)
    save(path, ResNet(**SMALL))
    with pytest.raises(ValueError, match=r'x\.pth is not of this config: it lacks.*head\.weight'):
        check_complete(whole, path)


def test_loading_counts_every_tensor_once(tmp_path):
    save(tmp_path / 'x.pth', ResNet(**SMALL), **{'backbone.spare': torch.zeros(1)})
    match = load_backbone(Detector(ResNet(**SMALL)), tmp_path / 'x.pth')
    assert match.matched == match.total == 100 and match.unused == ('spare',)
    assert match.filled == 1 and match.used == 100 / 101
