"""A pretrained backbone in the layouts of other libraries: names, shapes, files.

Pretraining checkpoints hold mmpretrain's names behind `backbone.`. mmdet and mmseg want them
without (mmseg's ViT takes no prefix and loads nothing from names that have one), torchvision, timm
and Hugging Face have names of their own. Weights are only renamed, or, for Hugging Face, split;
forward passes come out equal, which the tests check with each library's own model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freeatm_mm.errors import InputError, counted
from freeatm_mm.files import atomic_write
from freeatm_mm.origins import plain_settings

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    'LAYOUTS',
    'check_heads',
    'convert_backbone',
    'convert_checkpoint',
    'resnet_settings',
    'resnet_shape',
    'vit_shape',
]

LAYOUTS = ('mmdet', 'mmseg', 'torchvision', 'timm', 'huggingface')

#: Attention heads of mmpretrain's ViTs that have a name.
_HEADS = {
    **dict.fromkeys(('s', 'small'), 8),
    **dict.fromkeys(('b', 'base', 'deit-b', 'deit-base', 'mocov3-s', 'mocov3-small'), 12),
    **dict.fromkeys(('l', 'large', 'h', 'huge', 'eva-g', 'eva-giant'), 16),
    **dict.fromkeys(('deit-t', 'deit-tiny'), 3),
    **dict.fromkeys(('deit-s', 'deit-small', 'dinov2-s', 'dinov2-small'), 6),
    **dict.fromkeys(('dinov2-g', 'dinov2-giant'), 24),
}
#: Parts of a plain ResNet, and of the variants that mmdet's and mmseg's also have.
_RESNET_PARTS = r'(conv1|bn1|layer\d+\.\d+\.(conv\d|bn\d|downsample\.[01]))\.\w+'
_MM_RESNET_PARTS = r'(conv1|[bg]n1|layer\d+\.\d+\.(conv\d|[bg]n\d|downsample\.\d))\.\w+'
_VIT_PARTS = (
    r'(cls_token|pos_embed|(patch_embed\.projection|ln1|'
    r'layers\.\d+\.(ln[12]|attn\.(qkv|proj)|ffn\.layers\.(0\.0|1)))\.\w+)'
)
#: What no tensor tells of a ResNet, as torchvision, timm and Hugging Face have it.
_RESNET_SETTINGS = {
    'style': 'pytorch',
    'strides': [1, 2, 2, 2],
    'dilations': [1, 1, 1, 1],
    'conv_cfg': None,
}
#: The same of a ViT, by Hugging Face's names.
_VIT_OPTIONS = {'layer_norm_eps': 1e-6, 'hidden_act': 'gelu'}
_VIT_NAMES = {
    'timm': [
        (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
        (r'^ln1\.', 'norm.'),
        (r'^layers\.(\d+)\.ln([12])\.', r'blocks.\1.norm\2.'),
        (r'^layers\.(\d+)\.ffn\.layers\.0\.0\.', r'blocks.\1.mlp.fc1.'),
        (r'^layers\.(\d+)\.ffn\.layers\.1\.', r'blocks.\1.mlp.fc2.'),
        (r'^layers\.(\d+)\.attn\.', r'blocks.\1.attn.'),
    ],
    'torchvision': [
        (r'^cls_token$', 'class_token'),
        (r'^pos_embed$', 'encoder.pos_embedding'),
        (r'^patch_embed\.projection\.', 'conv_proj.'),
        (r'^ln1\.', 'encoder.ln.'),
        (r'^layers\.(\d+)\.ln([12])\.', r'encoder.layers.encoder_layer_\1.ln_\2.'),
        (r'^layers\.(\d+)\.ffn\.layers\.0\.0\.', r'encoder.layers.encoder_layer_\1.mlp.0.'),
        (r'^layers\.(\d+)\.ffn\.layers\.1\.', r'encoder.layers.encoder_layer_\1.mlp.3.'),
        (
            r'^layers\.(\d+)\.attn\.qkv\.',
            r'encoder.layers.encoder_layer_\1.self_attention.in_proj_',
        ),
        (
            r'^layers\.(\d+)\.attn\.proj\.',
            r'encoder.layers.encoder_layer_\1.self_attention.out_proj.',
        ),
    ],
    'huggingface': [
        (r'^cls_token$', 'embeddings.cls_token'),
        (r'^pos_embed$', 'embeddings.position_embeddings'),
        (r'^patch_embed\.', 'embeddings.patch_embeddings.'),
        (r'^ln1\.', 'layernorm.'),
        (r'^layers\.(\d+)\.ln1\.', r'encoder.layer.\1.layernorm_before.'),
        (r'^layers\.(\d+)\.ln2\.', r'encoder.layer.\1.layernorm_after.'),
        (r'^layers\.(\d+)\.ffn\.layers\.0\.0\.', r'encoder.layer.\1.intermediate.dense.'),
        (r'^layers\.(\d+)\.ffn\.layers\.1\.', r'encoder.layer.\1.output.dense.'),
        (r'^layers\.(\d+)\.attn\.proj\.', r'encoder.layer.\1.attention.output.dense.'),
        (r'^layers\.(\d+)\.attn\.qkv\.', r'encoder.layer.\1.attention.attention.qkv.'),
    ],
}


def convert_backbone(
    backbone: Mapping[str, Tensor], layout: str, settings: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Rename a backbone's tensors.

    Args:
        backbone: By mmpretrain's names, without a prefix: a ResNet's or a ViT's.
        layout: One of `LAYOUTS`.
        settings: What its config says of it, by `plain_settings`: tensors don't tell all (`style`).

    Raises:
        ValueError: If the layout is unknown, the backbone is neither, or the other library has no
            such network (a ResNet of another number of stages, say).
    """
    if layout not in LAYOUTS:
        raise ValueError(f'layout {layout!r} is unknown: use one of {", ".join(LAYOUTS)}')
    if 'patch_embed.projection.weight' in backbone:
        vit_shape(backbone)
        return _convert_vit(backbone, layout, settings or {})
    if 'conv1.weight' in backbone and 'layer1.0.conv1.weight' in backbone:
        return _convert_resnet(backbone, layout, settings or {})
    raise ValueError(
        'the backbone is neither a plain ResNet nor a ViT of mmpretrain; its first '
        f'tensors are {", ".join(list(backbone)[:3])}'
    )


def _refuse_others(backbone: Mapping[str, Tensor], parts: str, layout: str, kind: str) -> None:
    """Refuse a backbone with other tensors than a library's network of this kind has."""
    other = [name for name in backbone if not re.fullmatch(parts, name)]
    if other:
        raise ValueError(
            f'{layout} has no {kind} with {counted(len(other), "tensor")} such as {other[0]}: only '
            f'a plain {kind} can be converted'
        )


def _convert_vit(
    backbone: Mapping[str, Tensor], layout: str, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    if layout == 'mmdet':
        return dict(backbone)
    if layout == 'mmseg':  # its backbones have no norm at the end
        return {name: value for name, value in backbone.items() if not name.startswith('ln1.')}
    _refuse_others(backbone, _VIT_PARTS, layout, 'ViT')
    if 'ln1.weight' not in backbone:
        raise ValueError(f'{layout} has no ViT without a norm at its end (final_norm=False)')
    if layout == 'torchvision' and 'layers.0.attn.qkv.bias' not in backbone:
        raise ValueError('torchvision has no ViT whose queries, keys and values have no bias')
    options = _vit_options(settings, layout)
    if layout != 'huggingface' and options != _VIT_OPTIONS:
        raise ValueError(
            f"{layout} has no ViT with {_said(options, _VIT_OPTIONS)}, as the checkpoint's config "
            f'says: only one with {_said(_VIT_OPTIONS, options)} can be converted'
        )
    state = {}
    for name, value in backbone.items():
        for pattern, wanted in _VIT_NAMES[layout]:
            name = re.sub(pattern, wanted, name)
        if '.attention.qkv.' in name:
            for part, piece in zip(('query', 'key', 'value'), value.chunk(3)):
                state[name.replace('.qkv.', f'.{part}.')] = piece.clone()
        else:
            state[name] = value
    return state


def _said(some: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    return ' and '.join(f'{key}={some[key]!r}' for key in some if some[key] != others[key])


def _vit_options(settings: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """What no tensor tells of a ViT, by Hugging Face's names of it.

    Raises:
        ValueError: If its layers differ in that, or have what no other library has.
    """
    layers = settings.get('layer_cfgs') or [{}]
    layers = [layers] if isinstance(layers, Mapping) else layers
    norm = settings.get('norm_cfg', {'type': 'LN', 'eps': 1e-6})
    norms = [norm, *(each.get('norm_cfg', norm) for each in layers)]
    acts = [each.get('act_cfg', {'type': 'GELU'}) for each in layers]
    found = {
        'layer_norm_eps': {each.get('eps', 1e-5) for each in norms},  # torch's, if none is said
        'hidden_act': {str(each.get('type')).lower() for each in acts},
    }
    if (
        any(len(values) > 1 for values in found.values())
        or any(each.get('type') != 'LN' for each in norms)
        or not found['hidden_act'] <= {'gelu', 'relu', 'silu'}
    ):
        raise ValueError(
            f"{layout} has no ViT with these norms or activations, as the checkpoint's config "
            f'says: norm_cfg={norm!r}, layer_cfgs={settings.get("layer_cfgs")!r}'
        )
    return {name: values.pop() for name, values in found.items()}


def _convert_resnet(
    backbone: Mapping[str, Tensor], layout: str, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    of_mm = layout in ('mmdet', 'mmseg')
    _refuse_others(backbone, _MM_RESNET_PARTS if of_mm else _RESNET_PARTS, layout, 'ResNet')
    if of_mm:
        return dict(backbone)
    shape = resnet_shape(backbone)
    if len(shape['depths']) != 4 or shape['embedding_size'] != 64:
        raise ValueError(
            f'{layout} has no ResNet with {len(shape["depths"])} stages and a stem of '
            f'{shape["embedding_size"]} channels: only four stages after 64 channels '
            'can be converted'
        )
    if backbone['conv1.weight'].shape[2:] != (7, 7):
        side = backbone['conv1.weight'].shape[-1]
        raise ValueError(
            f'{layout} has no ResNet that begins with a {side}x{side} convolution: only one of 7x7 '
            'can be converted'
        )
    for name, wanted in _RESNET_SETTINGS.items():
        said = settings.get(name, wanted)
        if said != wanted and (name != 'style' or shape['layer_type'] == 'bottleneck'):
            raise ValueError(
                f"{layout} has no ResNet with {name}={said!r}, as the checkpoint's config says: "
                f'only {name}={wanted!r} can be converted'
            )
    if layout != 'huggingface':
        usual = 256 if shape['layer_type'] == 'bottleneck' else 64
        if shape['hidden_sizes'][0] != usual:
            raise ValueError(
                f'{layout} has no ResNet whose first stage gives {shape["hidden_sizes"][0]} '
                f'channels: only one of {usual} can be converted'
            )
        return dict(backbone)  # the same names, a ResNeXt's too
    for number, width in enumerate(shape['hidden_sizes'], 1):
        inner, taken = backbone[f'layer{number}.0.conv2.weight'].shape[:2]
        if inner != taken or shape['layer_type'] == 'bottleneck' and inner * 4 != width:
            raise ValueError(
                'huggingface has no ResNet with grouped or wider convolutions, as a ResNeXt has '
                f'(layer{number}.0.conv2): convert it to torchvision or timm'
            )
    state = {}
    for name, value in backbone.items():
        name = re.sub(r'^conv1\.', 'embedder.embedder.convolution.', name)
        name = re.sub(r'^bn1\.', 'embedder.embedder.normalization.', name)
        match = re.match(r'layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.*)', name)
        if match:
            stage, block, kind, index, rest = match.groups()
            part = {'conv': 'convolution', 'bn': 'normalization'}.get(kind) or (
                'convolution' if index == '0' else 'normalization'
            )
            where = 'shortcut' if kind == 'downsample.' else f'layer.{int(index) - 1}'
            name = f'encoder.stages.{int(stage) - 1}.layers.{block}.{where}.{part}.{rest}'
        state[name] = value
    return state


def resnet_shape(backbone: Mapping[str, Tensor]) -> dict[str, Any]:
    """What Hugging Face's `ResNetConfig` wants to know, read from the tensors."""
    bottleneck = 'layer1.0.conv3.weight' in backbone
    stages = sorted({int(name[5]) for name in backbone if name.startswith('layer')})
    last = 'conv3' if bottleneck else 'conv2'
    return {
        'embedding_size': backbone['conv1.weight'].shape[0],
        'depths': [
            len({name.split('.')[1] for name in backbone if name.startswith(f'layer{stage}.')})
            for stage in stages
        ],
        'hidden_sizes': [backbone[f'layer{stage}.0.{last}.weight'].shape[0] for stage in stages],
        'layer_type': 'bottleneck' if bottleneck else 'basic',
    }


def resnet_settings(backbone: Mapping[str, Tensor], content: Any) -> str:
    """What a backbone of OpenMMLab must be given beside its depth for a ResNet's weights.

    Args:
        backbone: By mmpretrain's names.
        content: What the checkpoint holds, whose config says what no tensor tells.

    Returns:
        Such as ``style='caffe', base_channels=128``; empty where defaults will do, and of a ViT.
    """
    if 'layer1.0.conv2.weight' not in backbone:
        return ''
    shape, settings = resnet_shape(backbone), _settings(content)
    bottleneck, width = shape['layer_type'] == 'bottleneck', shape['hidden_sizes'][0]
    inner, taken = backbone['layer1.0.conv2.weight'].shape[:2]
    grouped = inner != taken
    usual = {
        **_RESNET_SETTINGS,
        'stem_channels': 64,
        'base_channels': 64,
        'expansion': 4,
        'num_stages': 4,
        'groups': 1,
    }
    found = {
        **{name: settings.get(name, usual[name]) for name in _RESNET_SETTINGS},
        'stem_channels': shape['embedding_size'],
        'base_channels': width // 4 if grouped else inner,
        'expansion': width // inner if bottleneck and not grouped else 4,
        'num_stages': len(shape['depths']),
        'groups': inner // taken,
    }
    if not bottleneck:
        found['style'] = usual['style']  # has no effect there
    if grouped:
        found['type'] = 'ResNeXt'
    return ', '.join(
        f'{name}={value!r}' for name, value in found.items() if value != usual.get(name)
    )


def vit_shape(backbone: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """What Hugging Face's `ViTConfig` wants to know, read from the tensors.

    Args:
        backbone: By mmpretrain's names.
        heads: Attention heads, which no tensor tells; by default one for each 64 channels.

    Raises:
        ValueError: If a part is missing, or the heads don't divide the channels.
    """
    needed = (
        'cls_token',
        'pos_embed',
        'layers.0.attn.qkv.weight',
        'layers.0.ffn.layers.0.0.weight',
    )
    missing = [name for name in needed if name not in backbone]
    if missing:
        raise ValueError(f'the ViT lacks {", ".join(missing)}')
    width, _, patch, _ = backbone['patch_embed.projection.weight'].shape
    heads = heads or max(width // 64, 1)
    if width % heads:
        raise ValueError(f'{heads} heads do not divide {width} channels')
    side = round((backbone['pos_embed'].shape[1] - 1) ** 0.5) * patch
    return {
        'hidden_size': width,
        'num_hidden_layers': len(
            {name.split('.')[1] for name in backbone if name.startswith('layers.')}
        ),
        'num_attention_heads': heads,
        'intermediate_size': backbone['layers.0.ffn.layers.0.0.weight'].shape[0],
        'image_size': side,
        'patch_size': patch,
        'qkv_bias': 'layers.0.attn.qkv.bias' in backbone,
        **_VIT_OPTIONS,
    }


def _settings(content: Any) -> Mapping[str, Any]:
    """What a checkpoint's own config says of its backbone; nothing of its text is run."""
    settings: Any = content
    for key in ('meta', 'cfg'):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    settings = plain_settings(settings)
    for key in ('model', 'backbone'):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings if isinstance(settings, Mapping) else {}


def check_heads(content: Any, heads: int | None, source: str | Path) -> int | None:
    """How many attention heads a ViT has by its checkpoint's own config, or by the user.

    Args:
        content: From `freeatm_mm.checkpoints.read_state`; nothing of its text is run.
        heads: What the user says, if anything.
        source: The checkpoint, for messages.

    Returns:
        The heads; None if neither says it.

    Raises:
        InputError: If the two contradict each other.
    """
    settings = _settings(content)
    # mmpretrain's have an `arch`, 'base' by default; mmseg's say the heads themselves.
    usual = 'base' if str(settings.get('type')).endswith(('ViT', 'VisionTransformer')) else None
    arch = settings.get('arch', usual)
    said = arch.get('num_heads') if isinstance(arch, Mapping) else _HEADS.get(str(arch))
    said = settings.get('num_heads', said)
    if type(said) is not int or said < 1:
        return heads
    if heads not in (None, said):
        raise InputError(
            f'{source} is of a ViT with {said} attention heads, as its config says, not {heads}: '
            'leave --heads out'
        )
    return said


def convert_checkpoint(
    checkpoint: str | Path, out: str | Path, layout: str, heads: int | None = None
) -> int:
    """Convert a pretraining's checkpoint to a file, or for Hugging Face to a folder.

    Args:
        checkpoint: See `find_backbone`.
        out: A ``.safetensors`` file, or one for `torch.load` of any other name. For Hugging Face a
            folder, which gets ``config.json`` and ``model.safetensors``.
        layout: One of `LAYOUTS`.
        heads: Attention heads of a ViT, which Hugging Face's config alone says; by default what the
            checkpoint's own config says, and else one for each 64 channels, which is printed.

    Returns:
        The number of tensors written.

    Raises:
        FileNotFoundError: If the checkpoint isn't there.
        ValueError: If heads are given of a network that has none or says another number; see
            `find_backbone` and `convert_backbone`.
    """
    import torch

    from freeatm_mm.checkpoints import backbone_of, read_anywhere

    content, out = read_anywhere(str(checkpoint)), Path(out)
    backbone = backbone_of(content, checkpoint)
    if heads is not None and 'cls_token' not in backbone:
        raise ValueError(f'{checkpoint} is of a network without attention: leave heads out')
    settings = _settings(content)
    converted = convert_backbone(backbone, layout, settings)
    state = {name: value.contiguous() for name, value in converted.items()}
    if layout in ('mmdet', 'mmseg') and (unusual := resnet_settings(backbone, content)):
        print(f"{checkpoint} is of a ResNet with {unusual}: set this of {layout}'s backbone too")
    if layout == 'mmseg' and 'cls_token' in backbone:
        print(
            f"{out} is for mmseg's backbone MAE (or BEiT): its VisionTransformer has other names, "
            'and would start from random weights'
        )
    if layout == 'huggingface':
        if out.suffix in ('.pth', '.safetensors'):
            raise ValueError(f'{out}: Hugging Face keeps a model in a folder: name one')
        if 'cls_token' in backbone:
            known = check_heads(content, heads, checkpoint)
            shape = vit_shape(backbone, known)
            if known is None:
                print(
                    f'{checkpoint} does not say how many attention heads it has: '
                    f'{shape["num_attention_heads"]} assumed, one for each 64 channels; give '
                    '--heads if it has others'
                )
            config = {'architectures': ['ViTModel'], 'model_type': 'vit', **shape}
            config |= _vit_options(settings, layout)
        else:
            config = {
                'architectures': ['ResNetModel'],
                'model_type': 'resnet',
                **resnet_shape(backbone),
            }
        with atomic_write(out / 'config.json') as file:
            file.write(json.dumps(config, indent=1).encode())
        out = out / 'model.safetensors'
    with atomic_write(out) as file:
        if out.suffix == '.safetensors':
            from safetensors.torch import save

            file.write(save(state, {'format': 'pt'}))
        else:
            torch.save({'state_dict': state} if layout in ('mmdet', 'mmseg') else state, file)
    return len(state)
