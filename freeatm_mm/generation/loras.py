"""LoRAs that are added to a pipeline's weights: found, checked and fused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from freeatm_mm.compat import hub_or_cache
from freeatm_mm.errors import InputError, listed, one_sentence
from freeatm_mm.files import check_json, parse_json

__all__ = ['LoraError', 'add_loras', 'find_lora', 'on_hub', 'parse_lora']

#: A file in a repository of the hub, as it is typed.
_HUB_FILE = re.compile(
    r'(?P<repo>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[^/@]+))?/(?P<file>[^@]+\.safetensors)'
)

# What a LoRA's file calls the two matrices of each layer, in the usual forms.
_LORA_ENDINGS = (
    'lora_A.weight',
    'lora_B.weight',
    'lora_down.weight',
    'lora_up.weight',
    'lora.down.weight',
    'lora.up.weight',
)

# What else there is to a layer that diffusers honours: its strength, the parts of DoRA, a bias.
_FURTHER_ENDINGS = (
    '.alpha',
    '.lora_magnitude_vector',
    '.lora_magnitude_vector.weight',
    '.lora_B.bias',
)

# What a LoRA's file may say of its making, by PEFT's names; what is said of anything else must be
# empty or a number: by some settings PEFT imports a module, or unpickles a file, that it names.
_LORA_SETTINGS: dict[str, Any] = {
    'r': int,
    'lora_alpha': float,
    'rank_pattern': dict,
    'alpha_pattern': dict,
    'target_modules': [str],
    'use_rslora': bool,
    'use_dora': bool,
    'lora_bias': bool,
    'init_lora_weights': (bool, str),
    'bias': str,
    'lora_dropout': float,
    'inference_mode': bool,
    'peft_type': (str, None),
    'task_type': (str, None),
    'base_model_name_or_path': (str, None),
    'megatron_core': (str, None),
    'peft_version': (str, None),
}

_LORA_STARTS = (True, False, 'gaussian')

_MOST_SETTINGS = 1 << 22


class LoraError(ValueError):
    """A LoRA can't be used; the message says which and why."""


def parse_lora(text: str) -> tuple[str, float]:
    """Read ``FILE.safetensors`` or ``FILE.safetensors:WEIGHT``; the file may be one of the hub.

    Returns:
        The file as it was named, and the weight.

    Raises:
        FileNotFoundError: If there is no such file, and it doesn't have the form of one of the hub.
        ValueError: If the weight is no number, or the file isn't called .safetensors.
    """
    name, _, weight = text.rpartition(':') if not text.endswith('.safetensors') else (text, '', '1')
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not name.endswith('.safetensors') or not math.isfinite(number):
        raise ValueError(f'{text!r} is not FILE.safetensors or FILE.safetensors:WEIGHT')
    if not Path(name).is_file() and not on_hub(name):
        raise FileNotFoundError(
            f'there is no LoRA {name} (one of the hub has the form owner/name/FILE.safetensors)'
        )
    return name, number


def on_hub(name: str) -> bool:
    """Tell whether a name has the form of a file on the hub: ``owner/name/FILE.safetensors``."""
    return bool(_HUB_FILE.fullmatch(name)) and '..' not in name.split('/')


def find_lora(name: str) -> Path:
    """Return where a LoRA lies here, fetching it if it is one of the hub.

    Args:
        name: As `parse_lora` returns it.

    Raises:
        ValueError: If it can't be had.
    """
    if Path(name).is_file():
        return Path(name)
    from huggingface_hub import hf_hub_download

    found = _HUB_FILE.fullmatch(name)
    assert found is not None  # by `parse_lora`
    try:
        with hub_or_cache():
            return Path(
                hf_hub_download(found['repo'], found['file'], revision=found['revision'] or None)
            )
    except Exception as error:  # the hub's and the network's
        raise LoraError(
            f"the LoRA {name} is no file here and can't be had from the hub: {one_sentence(error)}"
        ) from error


def add_loras(pipe: Any, loras: Sequence[tuple[Path, float]]) -> None:
    """Add LoRAs to a pipeline's weights.

    Raises:
        ValueError: If one doesn't fit: diffusers leaves out what it doesn't find, with a warning.
    """
    if not loras:
        return
    if not hasattr(pipe, 'load_lora_weights'):
        raise LoraError(f'diffusers has no LoRA for {type(pipe).__name__}')
    from safetensors.torch import load_file

    names = [f'lora_{number}' for number in range(len(loras))]
    for name, (path, _) in zip(names, loras):
        try:
            tensors = load_file(path)
            _check_lora(path, tensors)
            # By its file, beside whose tensors diffusers reads the strength they were trained at.
            pipe.load_lora_weights(
                str(path.parent),
                weight_name=path.name,
                adapter_name=name,
                local_files_only=True,
                use_safetensors=True,
            )
        except LoraError:
            raise
        except Exception as error:  # whatever two libraries make of files that anybody wrote
            raise LoraError(f"the LoRA {path} can't be loaded: {one_sentence(error)}") from error
        wanted = sum(key.endswith(_LORA_ENDINGS) for key in tensors)
        modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        found = sum(
            f'.lora_A.{name}.' in key or f'.lora_B.{name}.' in key
            for module in modules
            for key, _ in module.named_parameters()
        )
        if not wanted or found < wanted:
            raise LoraError(
                f'the LoRA {path} does not fit {type(pipe).__name__}: {found} of its {wanted} '
                'matrices have a place there'
            )
    pipe.set_adapters(names, [weight for _, weight in loras])
    # By default diffusers leaves out some that it has loaded, such as Flux's text encoder.
    parts = [part for part in pipe._lora_loadable_modules if getattr(pipe, part, None) is not None]
    pipe.fuse_lora(components=parts, adapter_names=names)
    _check_fused(pipe)
    pipe.unload_lora_weights()


def _check_fused(pipe: Any) -> None:
    """Refuse LoRAs of which a part would be let go of, not being in the weights.

    Raises:
        LoraError: Saying where.
    """
    from peft.tuners.lora import LoraLayer

    for part, component in pipe.components.items():
        for module in component.modules() if isinstance(component, torch.nn.Module) else ():
            if isinstance(module, LoraLayer) and set(module.r) - set(module.merged_adapters):
                raise LoraError(
                    f'diffusers does not fuse LoRAs into the {part} of {type(pipe).__name__}'
                )


def _check_lora(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse a LoRA with more in it than diffusers honours, or that isn't numbers and settings.

    Raises:
        LoraError: Saying what it holds.
    """
    from safetensors import safe_open

    further = [key for key in tensors if not key.endswith((*_LORA_ENDINGS, *_FURTHER_ENDINGS))]
    if further:
        raise LoraError(
            f'the LoRA {path} holds what diffusers would leave out, or what is no LoRA: '
            f'{listed(further)}'
        )
    broken = [key for key, value in tensors.items() if not value.float().isfinite().all()]
    if broken:
        raise LoraError(f'the LoRA {path} holds weights that are NaN or infinite: {listed(broken)}')
    with safe_open(path, 'pt') as file:
        text = (file.metadata() or {}).get('lora_adapter_metadata') or '{}'
    if len(text) > _MOST_SETTINGS:
        raise LoraError(f'the settings in the LoRA {path} have more than {_MOST_SETTINGS} bytes')
    try:
        settings = parse_json(text)
        check_json(settings, dict, 'lora_adapter_metadata')
        for key, value in settings.items():
            name = key.rpartition('.')[2]
            if name in _LORA_SETTINGS:
                check_json(value, _LORA_SETTINGS[name], key)
            elif value and type(value) not in (int, float):
                raise InputError(f'{key} is more than is read')
            if name == 'init_lora_weights' and value not in _LORA_STARTS:
                raise InputError(f'{key} {value!r} would change the weights that it is added to')
            if name in ('rank_pattern', 'alpha_pattern'):  # of regular expressions
                check_json(list(value.values()), [float], key)
                if not all(re.fullmatch(r'\^?[\w.]+', layer) for layer in value):
                    raise InputError(f'{key} names no layers')
    except InputError as error:
        raise LoraError(f"the settings in the LoRA {path} can't be used: {error}") from None
