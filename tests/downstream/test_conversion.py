"""Converted backbones give what mmpretrain's gives, in each library's own model."""

from __future__ import annotations

import pytest
import torch
from helpers.tools import load_tool

pytest.importorskip('mmpretrain')

from freeatm_mm import compat  # noqa: E402

compat.skip_multimodal_models()

from mmpretrain.models import (  # noqa: E402
    ResNet,
    ResNet_CIFAR,
    ResNeXt,
    SEResNet,
    VisionTransformer,
)

from freeatm_mm.checkpoints import load_weights  # noqa: E402
from freeatm_mm.downstream.conversion import _HEADS, LAYOUTS, check_heads, convert_checkpoint  # noqa: E402
from freeatm_mm.hub import Terms, draft_checkpoint  # noqa: E402

VIT = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)


def randomise(model):
    """Weights and statistics that tell every tensor from every other."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(
                torch.rand_like(value) + 0.5 if 'var' in name else torch.randn_like(value) * 0.1
            )
    model.eval()  # mmpretrain's returns nothing
    return model


@pytest.fixture(scope='module')
def resnet(tmp_path_factory):
    path = tmp_path_factory.mktemp('resnet') / 'epoch_1.pth'
    model = randomise(ResNet(depth=50))
    torch.save(
        {
            'state_dict': {f'backbone.{k}': v for k, v in model.state_dict().items()}
            | {'queue': torch.zeros(2)}
        },
        path,
    )
    return model, path


@pytest.fixture(scope='module')
def vit(tmp_path_factory):
    path = tmp_path_factory.mktemp('vit') / 'epoch_1.pth'
    model = randomise(VisionTransformer(arch=VIT, img_size=32, patch_size=8, out_type='raw'))
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in model.state_dict().items()}}, path)
    return model, path


def forward(model, side):
    torch.manual_seed(1)
    with torch.no_grad():
        images = torch.randn(1, 3, side, side)
        return images, model(images)[-1]


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize('layout', ['torchvision', 'timm', 'mmdet', 'mmseg', 'huggingface'])
def test_resnet(resnet, layout, suffix, tmp_path):
    ours, checkpoint = resnet
    out = tmp_path / ('folder' if layout == 'huggingface' else f'weights.{suffix}')
    convert_checkpoint(checkpoint, out, layout)
    images, expected = forward(ours, 64)
    if layout == 'huggingface':
        from transformers import ResNetModel

        theirs, info = ResNetModel.from_pretrained(out, output_loading_info=True)
        assert not info['missing_keys'] and not info['unexpected_keys']
        found = theirs.eval()(images).last_hidden_state
    else:
        if layout == 'torchvision':
            from torchvision.models import resnet50

            theirs = resnet50()
        elif layout == 'timm':
            timm = pytest.importorskip('timm')
            theirs = timm.create_model('resnet50')
        elif layout == 'mmdet':
            theirs = pytest.importorskip('mmdet.models').ResNet(50)
        else:
            theirs = pytest.importorskip('mmseg.models').ResNet(50)
        missing, unexpected = theirs.load_state_dict(load_weights(out), strict=False)
        assert not unexpected and set(missing) <= {'fc.weight', 'fc.bias'}
        theirs.eval()
        if layout.startswith('mm'):
            found = theirs(images)[-1]
        elif layout == 'timm':
            found = theirs.forward_features(images)
        else:
            for part in (
                theirs.conv1,
                theirs.bn1,
                theirs.relu,
                theirs.maxpool,
                theirs.layer1,
                theirs.layer2,
                theirs.layer3,
                theirs.layer4,
            ):
                images = part(images)
            found = images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def saved(model, path, **backbone):
    """A checkpoint whose config says this of its backbone."""
    cfg = f'model = dict(backbone=dict({", ".join(f"{k}={v!r}" for k, v in backbone.items())}))'
    state = {f'backbone.{name}': value for name, value in model.state_dict().items()}
    torch.save({'meta': {'cfg': cfg}, 'state_dict': state}, path)
    return path


ALL_BUT_MM = ['torchvision', 'timm', 'huggingface']


@pytest.mark.parametrize(
    'build, said, layouts, message',
    [
        (lambda: SEResNet(50), {}, LAYOUTS, 'with 64 tensors such as layer1.0.se_layer.conv1'),
        (lambda: ResNeXt(50), {}, ['huggingface'], 'grouped or wider convolutions, as a ResNeXt'),
        (
            lambda: ResNet(18, norm_cfg=dict(type='GN', num_groups=2)),
            {},
            ALL_BUT_MM,
            'such as gn1.weight',
        ),
        (lambda: ResNet(18, avg_down=True), {}, ALL_BUT_MM, 'such as layer2.0.downsample.2.weight'),
        (lambda: ResNet(50), {'style': 'caffe'}, ALL_BUT_MM, "style='caffe', as the checkpoint's"),
        (lambda: ResNet(18), {'strides': (1, 2, 2, 1)}, ALL_BUT_MM, r'strides=\[1, 2, 2, 1\]'),
        (lambda: ResNet(18), {'dilations': (1, 1, 1, 2)}, ALL_BUT_MM, r'dilations=\[1, 1, 1, 2\]'),
        (lambda: ResNet(18), {'conv_cfg': {'type': 'ConvWS'}}, ALL_BUT_MM, 'conv_cfg='),
        (lambda: ResNet_CIFAR(18), {}, ALL_BUT_MM, 'begins with a 3x3 convolution'),
        (
            lambda: ResNet(50, base_channels=128),
            {},
            ['torchvision', 'timm'],
            'whose first stage gives 512 channels',
        ),
    ],
    ids=[
        *('se', 'resnext', 'gn', 'avg_down', 'caffe', 'strides', 'dilations', 'conv_ws', 'cifar'),
        'wide',
    ],
)
def test_a_resnet_that_the_other_library_lacks_is_refused(
    build, said, layouts, message, tmp_path, capsys
):
    checkpoint = saved(build(), tmp_path / 'epoch_1.pth', **said)
    for layout in {*layouts, 'mmdet'}:
        out = tmp_path / layout
        if layout in layouts:
            with pytest.raises(ValueError, match=f'{layout} has no ResNet .*{message}'):
                convert_checkpoint(checkpoint, out, layout)
        else:
            convert_checkpoint(checkpoint, out, layout)
        assert out.exists() is (layout not in layouts)
    told = capsys.readouterr().out
    for name, value in said.items():
        value = list(value) if isinstance(value, tuple) else value
        assert f"of a ResNet with {name}={value!r}: set this of mmdet's backbone" in told
    if not said and 'wide' not in message:
        assert ("base_channels=128: set this of mmdet's" in told) is ('512' in message)


def test_a_vit_that_the_other_library_lacks_is_refused(tmp_path):
    ours = VisionTransformer(arch=VIT, img_size=32, patch_size=8, layer_scale_init_value=0.1)
    checkpoint = saved(ours, tmp_path / 'epoch_1.pth')
    for layout in ALL_BUT_MM:
        with pytest.raises(
            ValueError, match=f'{layout} has no ViT with 4 tensors such as layers.0'
        ):
            convert_checkpoint(checkpoint, tmp_path / layout, layout, heads=4)


@pytest.mark.parametrize(
    'said, layouts, message',
    [
        ({'final_norm': False}, ALL_BUT_MM, 'without a norm at its end'),
        ({'norm_cfg': dict(type='LN', eps=0.1)}, ALL_BUT_MM[:2], 'with layer_norm_eps=0.1, as'),
        ({'norm_cfg': dict(type='LN')}, ALL_BUT_MM[:2], 'with layer_norm_eps=1e-05, as'),
        (
            {'layer_cfgs': dict(act_cfg=dict(type='ReLU'))},
            ALL_BUT_MM[:2],
            "with hidden_act='relu', as .*: only one with hidden_act='gelu'",
        ),
        ({'layer_cfgs': dict(act_cfg=dict(type='Tanh'))}, ALL_BUT_MM, 'these norms or activations'),
        (
            {'layer_cfgs': [dict(norm_cfg=dict(type='LN', eps=0.1)), {}]},
            ALL_BUT_MM,
            'these norms or activations',
        ),
        ({'qkv_bias': False}, ['torchvision'], 'have no bias'),
    ],
    ids=['no norm', 'eps', 'eps of torch', 'relu', 'tanh', 'layers differ', 'no bias'],
)
def test_a_vits_settings_are_converted_or_refused(tmp_path, said, layouts, message):
    from transformers import ViTModel

    shape = dict(arch=VIT, img_size=32, patch_size=8)
    ours = randomise(VisionTransformer(**shape, **said, out_type='cls_token'))
    checkpoint = saved(ours, tmp_path / 'epoch_1.pth', **said)
    for layout in ALL_BUT_MM:
        if layout in layouts:
            with pytest.raises(ValueError, match=f'{layout} has no ViT .*{message}'):
                convert_checkpoint(checkpoint, tmp_path / layout, layout, heads=4)
        else:
            convert_checkpoint(checkpoint, tmp_path / layout, layout, heads=4)
    if 'huggingface' not in layouts:
        theirs, told = ViTModel.from_pretrained(
            tmp_path / 'huggingface', add_pooling_layer=False, output_loading_info=True
        )
        assert not any(told[each] for each in ('missing_keys', 'unexpected_keys'))
        images, expected = forward(ours, 32)
        torch.testing.assert_close(theirs.eval()(images)[0][:, 0], expected, rtol=1e-4, atol=1e-4)


def test_mmsegs_vision_transformer_is_told_apart_from_its_mae(vit, tmp_path, capsys):
    convert_checkpoint(vit[1], tmp_path / 'out.pth', 'mmseg')
    assert "for mmseg's backbone MAE (or BEiT): its VisionTransformer" in capsys.readouterr().out


@pytest.mark.parametrize(
    'build, said, settings',
    [
        (lambda: ResNet(50), {}, ''),
        (lambda: ResNet(50), {'style': 'caffe'}, "style='caffe'"),
        (lambda: ResNet(18, base_channels=32), {}, 'base_channels=32'),
        (lambda: ResNet(50, base_channels=128), {}, 'base_channels=128'),
        (
            lambda: ResNet(50, base_channels=128, expansion=2),
            {},
            'base_channels=128, expansion=2',
        ),
        (lambda: ResNet(18, stem_channels=32), {}, 'stem_channels=32'),
        (
            lambda: ResNet(18, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)),
            {'strides': (1,), 'dilations': (1,)},
            'strides=[1], dilations=[1], num_stages=1',
        ),
        (lambda: ResNeXt(50), {}, "groups=32, type='ResNeXt'"),
    ],
)
def test_a_card_says_what_the_backbone_must_be_given(build, said, settings, tmp_path):
    checkpoint = saved(build(), tmp_path / 'epoch_1.pth', **said)
    card = draft_checkpoint(checkpoint, 'hf://me/x', tmp_path / 'card', Terms('mit'))[-1]
    line = ', for a backbone with ' + settings if settings else ''
    assert f'# in a config of mmpretrain, mmdet or mmseg{line}:\n' in card.read_text()


def test_a_style_that_has_no_effect_is_no_matter(tmp_path):
    """Blocks of two convolutions have their stride in the first whatever the style."""
    checkpoint = saved(ResNet(18), tmp_path / 'epoch_1.pth', style='caffe')
    assert convert_checkpoint(checkpoint, tmp_path / 'out', 'timm') == 120


def test_a_resnext_goes_by_the_same_names(tmp_path):
    from torchvision.models import resnext50_32x4d

    ours = randomise(ResNeXt(50))
    convert_checkpoint(saved(ours, tmp_path / 'epoch_1.pth'), tmp_path / 'out.pth', 'torchvision')
    theirs = resnext50_32x4d().eval()
    missing, unexpected = theirs.load_state_dict(load_weights(tmp_path / 'out.pth'), strict=False)
    assert not unexpected and set(missing) == {'fc.weight', 'fc.bias'}
    images, expected = forward(ours, 64)
    names = ['conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4']
    found = torch.nn.Sequential(*(getattr(theirs, name) for name in names))(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    card = draft_checkpoint(tmp_path / 'epoch_1.pth', 'hf://me/x', tmp_path / 'card', Terms('mit'))
    assert 'ResNeXt-50' in card[-1].read_text()


@pytest.mark.parametrize('layout', ['torchvision', 'timm', 'mmdet', 'mmseg', 'huggingface'])
def test_vit(vit, layout, tmp_path):
    ours, checkpoint = vit
    out = tmp_path / ('folder' if layout == 'huggingface' else 'weights.pth')
    convert_checkpoint(checkpoint, out, layout, heads=4)
    images, expected = forward(ours, 32)
    if layout == 'huggingface':
        from transformers import ViTModel

        theirs, info = ViTModel.from_pretrained(
            out, add_pooling_layer=False, output_loading_info=True
        )
        assert not info['missing_keys'] and not info['unexpected_keys']
        found = theirs.eval()(images).last_hidden_state
    elif layout == 'mmseg':  # maps without a norm at the end; with a bias and scales of its own
        theirs = pytest.importorskip('mmseg.models').MAE(
            img_size=32,
            patch_size=8,
            embed_dims=32,
            num_layers=2,
            num_heads=4,
            mlp_ratio=2,
            out_indices=[1],
            init_values=1.0,
            norm_cfg=dict(type='LN', eps=1e-6),
        )
        missing, unexpected = theirs.load_state_dict(load_weights(out), strict=False)
        assert not unexpected
        assert all('relative_position' in name or 'gamma' in name for name in missing)
        for layer in theirs.layers:
            layer.attn.relative_position_bias_table.data.zero_()
        theirs.eval()
        found = theirs(images)[-1]
        plain = VisionTransformer(
            arch=VIT, img_size=32, patch_size=8, out_type='featmap', final_norm=False
        )
        plain.load_state_dict(ours.state_dict(), strict=False)
        plain.eval()
        _, expected = forward(plain, 32)
    else:
        if layout == 'timm':
            timm = pytest.importorskip('timm')
            theirs = timm.models.VisionTransformer(
                img_size=32,
                patch_size=8,
                embed_dim=32,
                depth=2,
                num_heads=4,
                mlp_ratio=2,
                num_classes=0,
            )
        elif layout == 'torchvision':
            from torchvision.models import VisionTransformer as Theirs

            theirs = Theirs(
                image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64
            )
        else:
            theirs = VisionTransformer(arch=VIT, img_size=32, patch_size=8, out_type='raw')
        missing, unexpected = theirs.load_state_dict(load_weights(out), strict=False)
        assert not unexpected and all(name.startswith('heads.') for name in missing)
        theirs.eval()
        if layout == 'timm':
            found = theirs.forward_features(images)
        elif layout == 'torchvision':
            tokens = torch.cat([theirs.class_token, theirs._process_input(images)], 1)
            found = theirs.encoder(tokens)
        else:
            found = theirs(images)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


#: The miniature's, whose heads are not of 64 channels, and one that mmpretrain has a name for.
SHAPES = [
    (dict(embed_dims=128, num_layers=1, num_heads=4, feedforward_channels=256), 4),
    ('deit-tiny', 3),
]


@pytest.mark.parametrize('arch, heads', SHAPES)
def test_heads_are_those_of_the_checkpoints_config(tmp_path, capsys, arch, heads):
    from transformers import ViTModel

    ours = randomise(VisionTransformer(arch=arch, img_size=32, patch_size=8, out_type='raw'))
    path = tmp_path / 'epoch_1.pth'
    state = {f'backbone.{name}': value for name, value in ours.state_dict().items()}
    cfg = f"model = dict(type='FreeATMMAE', backbone=dict(type='MAEViT', arch={arch!r}))"
    torch.save({'meta': {'cfg': cfg}, 'state_dict': state}, path)
    tool = load_tool('convert/checkpoint')
    words = [str(path), str(tmp_path / 'out'), '--to', 'huggingface']
    with pytest.raises(SystemExit):
        tool.main([*words, '--heads', '2'])
    told = capsys.readouterr()
    assert f'ViT with {heads} attention heads, as its config says, not 2' in told.err
    assert not (tmp_path / 'out').exists()
    with pytest.raises(ValueError, match='leave --heads out'):  # not one library fewer
        draft_checkpoint(path, 'hf://me/x', tmp_path / 'card', Terms('mit'), heads=2)
    tool.main(words)
    assert 'assumed' not in capsys.readouterr().out
    theirs = ViTModel.from_pretrained(tmp_path / 'out', add_pooling_layer=False).eval()
    images, expected = forward(ours, 32)
    torch.testing.assert_close(theirs(images).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


def test_heads_that_nothing_says_are_assumed_aloud(vit, tmp_path, capsys):
    convert_checkpoint(vit[1], tmp_path / 'out', 'huggingface')
    assert 'does not say how many attention heads it has: 1 assumed' in capsys.readouterr().out


@pytest.mark.parametrize(
    'backbone, heads',
    [
        ("dict(type='mmpretrain.MAEViT')", 12),
        ("dict(type='MAE', num_heads=4)", 4),
        ("dict(type='MAE')", None),
        ("dict(type='MAEViT', arch='of mine')", None),
        ("dict(type='MAEViT', arch=dict(num_heads='4'))", None),
        ("open('x')", None),
        ("dict(type='MAEViT'", None),
    ],
)
def test_what_a_config_says_of_heads(backbone, heads):
    content = {'meta': {'cfg': f'model = dict(backbone={backbone})'}}
    assert check_heads(content, None, 'x.pth') == heads
    assert check_heads({}, 3, 'x.pth') == 3


def test_heads_of_names_are_mmpretrains():
    from mmpretrain.models import MoCoV3ViT

    zoo = {**VisionTransformer.arch_zoo}
    MoCoV3ViT(arch='mocov3-small', patch_size=16, img_size=32)  # adds its own
    zoo |= MoCoV3ViT.arch_zoo
    assert {name: each['num_heads'] for name, each in zoo.items()} == _HEADS


def test_bad_input_is_told_in_one_sentence(vit, tmp_path, capsys):
    tool = load_tool('convert/checkpoint')

    def complaint(state, layout='timm', out='x.pth'):
        path = tmp_path / 'in.pth'
        torch.save(state, path)
        with pytest.raises(SystemExit) as done:
            tool.main([str(path), str(tmp_path / out), '--to', layout])
        assert done.value.code == 2 and not (tmp_path / out).exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert 'holds no backbone' in complaint({'head.fc.weight': torch.zeros(2)})
    assert 'holds no weights' in complaint({'epoch': 3})
    small = ResNet(
        depth=18,
        num_stages=3,
        strides=(1, 2, 1),
        dilations=(1, 1, 1),
        out_indices=(2,),
        stem_channels=16,
        base_channels=16,
    )
    assert 'timm has no ResNet with 3 stages' in complaint(small.state_dict())
    assert 'name one' in complaint(vit[0].state_dict(), 'huggingface')
    assert 'neither' in complaint({'patch_embed.proj.weight': torch.zeros(2)})
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / 'none.pth'), 'x', '--to', 'timm'])
    assert 'there is no checkpoint' in capsys.readouterr().err
    assert LAYOUTS == ('mmdet', 'mmseg', 'torchvision', 'timm', 'huggingface')
