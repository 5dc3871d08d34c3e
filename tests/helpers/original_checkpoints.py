"""Weights of a pipeline in one file, named as the authors of Stable Diffusion 1 and XL name them.

What people call a checkpoint: the layout of CompVis' and Stability's own code, which diffusers
reads by `from_single_file`. Written from that layout, not from diffusers' own table of names.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

_UNET_ENDS = {
    'time_embedding.linear_1.': 'time_embed.0.',
    'time_embedding.linear_2.': 'time_embed.2.',
    'add_embedding.linear_1.': 'label_emb.0.0.',
    'add_embedding.linear_2.': 'label_emb.0.2.',
    'conv_in.': 'input_blocks.0.0.',
    'conv_norm_out.': 'out.0.',
    'conv_out.': 'out.2.',
}
_UNET_RESNET = {
    'norm1.': 'in_layers.0.',
    'conv1.': 'in_layers.2.',
    'time_emb_proj.': 'emb_layers.1.',
    'norm2.': 'out_layers.0.',
    'conv2.': 'out_layers.3.',
    'conv_shortcut.': 'skip_connection.',
}
_VAE_ATTENTION = {
    'group_norm.': 'norm.',
    'to_q.': 'q.',
    'to_k.': 'k.',
    'to_v.': 'v.',
    'to_out.0.': 'proj_out.',
}
_OPEN_CLIP_LAYER = {
    'layer_norm1.': 'ln_1.',
    'layer_norm2.': 'ln_2.',
    'mlp.fc1.': 'mlp.c_fc.',
    'mlp.fc2.': 'mlp.c_proj.',
    'self_attn.out_proj.': 'attn.out_proj.',
}


def _renamed(name: str, names: dict[str, str]) -> str:
    """The name with the beginning that stands in `names` replaced, if one does."""
    for start, other in names.items():
        if name.startswith(start):
            return other + name.removeprefix(start)
    return name


def _unet(unet) -> dict[str, torch.Tensor]:
    """A UNet: input blocks, a middle and output blocks, all counted through."""
    layers = unet.config.layers_per_block
    weights = {}
    for name, value in unet.state_dict().items():
        found = re.match(r'(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)', name)
        middle = re.match(r'mid_block\.(resnets|attentions)\.(\d+)\.(.*)', name)
        if found:
            side, block, kind, layer, rest = found.groups()
            place, within = int(block) * (layers + 1) + int(layer), 0
            if side == 'down':
                place += 1
            if kind == 'resnets':
                rest = _renamed(rest, _UNET_RESNET)
            elif kind == 'attentions':
                within = 1
            elif kind == 'downsamplers':
                place, rest = place + layers, rest.replace('conv.', 'op.')
            else:  # stands behind the block's last layer
                place += layers
                within = 1 + hasattr(unet.up_blocks[int(block)], 'attentions')
            name = f'{"input" if side == "down" else "output"}_blocks.{place}.{within}.{rest}'
        elif middle:
            kind, layer, rest = middle.groups()
            resnet = kind == 'resnets'
            rest = _renamed(rest, _UNET_RESNET) if resnet else rest
            name = f'middle_block.{2 * int(layer) + (not resnet)}.{rest}'
        else:
            name = _renamed(name, _UNET_ENDS)
        weights[name] = value
    return weights


def _vae(vae) -> dict[str, torch.Tensor]:
    """An autoencoder: its decoder's levels are counted from the finest, its attention convolves."""
    levels = len(vae.config.up_block_types)
    weights = {}
    for name, value in vae.state_dict().items():
        name = name.replace('conv_shortcut', 'nin_shortcut').replace('conv_norm_out', 'norm_out')
        found = re.match(r'(.*)\.(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)', name)
        middle = re.match(r'(.*)\.mid_block\.(resnets|attentions)\.(\d+)\.(.*)', name)
        if found:
            half, side, block, kind, layer, rest = found.groups()
            level = int(block) if side == 'down' else levels - 1 - int(block)
            part = f'block.{layer}' if kind == 'resnets' else f'{side}sample'
            name = f'{half}.{side}.{level}.{part}.{rest}'
        elif middle:
            half, kind, layer, rest = middle.groups()
            if kind == 'resnets':
                name = f'{half}.mid.block_{int(layer) + 1}.{rest}'
            else:
                name = f'{half}.mid.attn_1.{_renamed(rest, _VAE_ATTENTION)}'
                if value.dim() == 2:
                    value = value[:, :, None, None]
        weights[name] = value
    return weights


def _clip(encoder) -> dict[str, torch.Tensor]:
    """A CLIP as OpenAI's, whose prefix newer transformers leave out."""
    return {
        f'transformer.text_model.{name.removeprefix("text_model.")}': value
        for name, value in encoder.state_dict().items()
    }


def _open_clip(encoder) -> dict[str, torch.Tensor]:
    """A CLIP with a projection as OpenCLIP's, its queries, keys and values one matrix."""
    whole = encoder.state_dict()
    weights = {
        'model.positional_embedding': whole['text_model.embeddings.position_embedding.weight'],
        'model.token_embedding.weight': whole['text_model.embeddings.token_embedding.weight'],
        'model.ln_final.weight': whole['text_model.final_layer_norm.weight'],
        'model.ln_final.bias': whole['text_model.final_layer_norm.bias'],
        'model.text_projection': whole['text_projection.weight'].T,
    }
    for name in whole:
        found = re.match(r'text_model\.encoder\.layers\.(\d+)\.(.*)', name)
        if not found:
            continue
        layer, rest = found.groups()
        block = f'model.transformer.resblocks.{layer}'
        if rest.startswith('self_attn.q_proj.'):
            kind = rest.rpartition('.')[2]
            weights[f'{block}.attn.in_proj_{kind}'] = torch.cat(
                [whole[name.replace('q_proj', f'{part}_proj')] for part in 'qkv']
            )
        elif not rest.startswith(('self_attn.k_proj.', 'self_attn.v_proj.')):
            weights[f'{block}.{_renamed(rest, _OPEN_CLIP_LAYER)}'] = whole[name]
    return weights


def save_original_checkpoint(pipe, path: str | Path) -> None:
    """Write a pipeline's weights as one safetensors file in their original layout.

    Args:
        pipe: A `StableDiffusionPipeline` or `StableDiffusionXLPipeline`. The encoders of the latter
            must differ in width: by it diffusers tells them apart.
        path: The file to write.
    """
    from safetensors.torch import save_file

    parts = {'model.diffusion_model.': _unet(pipe.unet), 'first_stage_model.': _vae(pipe.vae)}
    if hasattr(pipe, 'text_encoder_2'):
        parts['conditioner.embedders.0.'] = _clip(pipe.text_encoder)
        parts['conditioner.embedders.1.'] = _open_clip(pipe.text_encoder_2)
    else:
        parts['cond_stage_model.'] = _clip(pipe.text_encoder)
    save_file(
        {
            prefix + name: value.contiguous()
            for prefix, weights in parts.items()
            for name, value in weights.items()
        },
        path,
    )
