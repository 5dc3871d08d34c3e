"""Loading a diffusion pipeline from a folder, a single file or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from freeatm_mm.compat import (
    hub_or_cache,
    hub_out_of_reach,
    limit_chat_templates,
    no_code_from_data,
)
from freeatm_mm.errors import MissingFileError, is_distant, moving_to, one_sentence, pip_install
from freeatm_mm.generation.calls import scheduler_of
from freeatm_mm.generation.folders import INDEX, check_folder, files_of
from freeatm_mm.generation.loras import LoraError, add_loras, find_lora, parse_lora
from freeatm_mm.store.layout import file_sha256

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ['DTYPES', 'OFFLOADS', 'LoadedPipeline', 'load_pipeline']

#: Name of a number format -> torch's.
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}

#: Where weights wait while others compute: on the GPU too, or on the CPU, from where whole parts
#: (model), every layer (sequential), or groups of layers ahead of time (group) are fetched.
OFFLOADS = ('none', 'model', 'sequential', 'group')


# The files of a pipeline's folder that decide what it generates.
_WEIGHT_ENDINGS = ('.json', '.safetensors', '.bin', '.txt', '.model')


class LoadedPipeline(NamedTuple):
    """A pipeline and what to call it in the records of what it generated.

    Args:
        pipe: The pipeline.
        name: Name of its folder or file, or its id on the hub.
        revision: Commit on the hub, or for a folder or file ``sha256:`` and a hash of its files.
        loras: Of each LoRA in it ``name``, ``sha256`` of its file, and ``weight``.
    """

    pipe: DiffusionPipeline
    name: str
    revision: str
    loras: tuple[dict[str, Any], ...] = ()


def load_pipeline(
    source: str | Path,
    *,
    revision: str | None = None,
    scheduler: str | None = None,
    dtype: str = 'float32',
    device: str | torch.device | None = None,
    variant: str | None = None,
    without: Collection[str] = (),
    loras: Sequence[str] = (),
    model_config: str | Path | None = None,
    offload: str = 'none',
) -> LoadedPipeline:
    """Load any diffusers pipeline; no code that comes with the weights is run.

    Weights are read from safetensors files only, never from pickles, and nothing outside the
    folder is followed (see `freeatm_mm.generation.folders`).

    Args:
        source: A pipeline's folder, a hub id such as ``owner/name``, or a single file of a
            checkpoint (safetensors).
        revision: Branch, tag or commit on the hub.
        scheduler: Name of a diffusers scheduler class to use in place of the pipeline's own, with
            the own one's settings (``'DDIMScheduler'``).
        dtype: ``'float32'``, ``'float16'`` or ``'bfloat16'``.
        device: Where to run; the default is the GPU if there is one.
        variant: Weights' variant, such as ``'fp16'``.
        without: Parts to go without, such as ``'text_encoder'``; they need not be there.
        loras: safetensors files of LoRAs, here or on the hub (``owner/name/FILE.safetensors``, or
            ``owner/name@REVISION/FILE.safetensors``), each with ``:WEIGHT`` after it or 1 without.
            They are added to the weights, so that what generates and is recorded is a plain
            pipeline.
        model_config: Of a single file, the pipeline it is a checkpoint of, for the configs and
            tokenizers that are not in it: a folder or a hub id. By default the one that diffusers
            knows for such a checkpoint, on the hub or in its cache.
        offload: One of `OFFLOADS`; all but ``'none'`` need a GPU. It changes no image.

    Raises:
        FileNotFoundError: If the folder or file is missing or holds no pipeline.
        ValueError: If the pipeline's or scheduler's class is unknown, the dtype or offload is, the
            folder holds something that is not loaded, or the pipeline can't be loaded, or a LoRA
            doesn't fit it.
    """
    added = [parse_lora(text) for text in loras]
    if dtype not in DTYPES:
        raise ValueError(f'unknown dtype {dtype!r}; use one of {", ".join(DTYPES)}')
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    _check_offload(offload, device)
    single = _single_file(source, revision, variant, model_config)
    diffusers = _import_diffusers()
    scheduler_class = _scheduler_class(diffusers, scheduler) if scheduler else None
    limit_chat_templates()
    with no_code_from_data(), _quiet_off_terminals(diffusers):
        files = [(find_lora(name), weight) for name, weight in added]
        if single is None:
            folder, name, revision = _locate(diffusers, source, revision, variant, without)
        else:
            folder, name = _config_folder(single, model_config), single.stem
            revision = _file_revision(single, folder)
        check_folder(diffusers, folder, without)
        try:
            with hub_out_of_reach():
                left_out = dict.fromkeys([*without, *_saved_without(folder)])
                if single is None:
                    pipe = diffusers.DiffusionPipeline.from_pretrained(
                        folder,
                        torch_dtype=DTYPES[dtype],
                        variant=variant,
                        local_files_only=True,
                        use_safetensors=True,
                        **left_out,
                    )
                else:
                    pipe = _class_of(diffusers, folder).from_single_file(
                        str(single),
                        config=str(folder),
                        torch_dtype=DTYPES[dtype],
                        local_files_only=True,
                        **left_out,
                    )
            if scheduler_class is not None:
                scheduler_of(pipe, scheduler_class)
            add_loras(pipe, files)
        except LoraError:
            raise
        except Exception as error:  # whatever two libraries make of files that anybody wrote
            raise ValueError(
                f"the pipeline {source} can't be loaded: {one_sentence(error)}"
            ) from error
    with moving_to(device, f'the pipeline {source}'):
        _place(pipe, device, offload)
    records = tuple(
        {
            'name': name if path != Path(name) else path.name,
            'sha256': file_sha256(path),
            'weight': weight,
        }
        for (name, weight), (path, _) in zip(added, files)
    )
    return LoadedPipeline(pipe, name, revision, records)


def _check_offload(offload: str, device: str | torch.device) -> None:
    """Refuse an offload that is unknown, or has no GPU to keep free.

    Raises:
        ValueError: Saying what to do.
    """
    if offload not in OFFLOADS:
        raise ValueError(f'unknown offload {offload!r}; use one of {", ".join(OFFLOADS)}')
    if offload != 'none' and torch.device(device).type == 'cpu':
        raise ValueError(
            f'offload {offload!r} keeps weights off a GPU until they are needed, and this runs on '
            "the CPU, where they are anyway: leave it out ('none')"
        )


def _place(pipe: Any, device: str | torch.device, offload: str) -> None:
    """Put a pipeline where it runs."""
    if offload == 'none':
        pipe.to(device)
    elif offload == 'model':
        pipe.enable_model_cpu_offload(device=device)
    elif offload == 'sequential':
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        from diffusers.hooks import apply_group_offloading

        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                apply_group_offloading(
                    part,
                    onload_device=torch.device(device),
                    offload_device=torch.device('cpu'),
                    offload_type='leaf_level',
                    use_stream=torch.device(device).type == 'cuda',
                )


def _single_file(
    source: str | Path, revision: str | None, variant: str | None, model_config: Any
) -> Path | None:
    """The source, if it is a file.

    Raises:
        ValueError: If it is no safetensors file, or something is given that is not one of a file's.
    """
    file = Path(source)
    if not file.is_file():
        if model_config is not None:
            raise ValueError(
                f'model_config goes with a single file of a checkpoint, and {source} is none'
            )
        return None
    if file.suffix != '.safetensors':
        raise ValueError(
            f'{file} is no safetensors file: a checkpoint in another form may be a pickle, which '
            'is not loaded; if you trust it, convert it first'
        )
    for name, value in (('revision', revision), ('variant', variant)):
        if value is not None:
            raise ValueError(f'{name} goes with a folder or hub id, not with the file {file}')
    return file


def _config_folder(file: Path, model_config: str | Path | None) -> Path:
    """The folder with the configs and tokenizers of the pipeline that a file is a checkpoint of.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it can't be had.
    """
    if model_config is not None and Path(model_config).is_dir():
        folder = Path(model_config)
        if not (folder / INDEX).exists():
            raise FileNotFoundError(f'the folder {folder} holds no pipeline: it has no {INDEX}')
        return folder
    from huggingface_hub import snapshot_download

    try:
        if model_config is None:
            from diffusers.loaders.single_file_utils import fetch_diffusers_config
            from safetensors import safe_open

            with safe_open(file, 'pt') as content:  # shapes alone tell the kinds apart
                shapes = {name: content.get_slice(name).get_shape() for name in content.keys()}
            known = fetch_diffusers_config(
                {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}
            )
            model_config = known['pretrained_model_name_or_path']
        with hub_or_cache():
            return Path(
                snapshot_download(
                    str(model_config),
                    allow_patterns=['*.json', '*.txt', '*.model'],
                    ignore_patterns=['*.index.json'],
                )
            )
    except Exception as error:  # the hub's, the network's, and what is made of others' files
        raise ValueError(
            f'the configs that {file} needs beside its weights are not here: give model_config '
            f'(--model-config), a folder or hub id of the pipeline it is a checkpoint of '
            f'({model_config or "its kind is not known"}: {one_sentence(error)})'
        ) from error


def _class_of(diffusers: Any, folder: Path) -> Any:
    """The class that a checked folder names.

    Raises:
        ValueError: If it loads no single files.
    """
    name = json.loads((folder / INDEX).read_text(encoding='utf-8'))['_class_name']
    found = getattr(diffusers, name)
    if not hasattr(found, 'from_single_file'):
        raise ValueError(f'diffusers loads no single file as {name}')
    return found


def _file_revision(file: Path, folder: Path) -> str:
    """A hash of a checkpoint and of the configs and tokenizers that it is used with."""
    digest = hashlib.sha256(file_sha256(file).encode())
    for each in files_of(folder):
        if each.suffix in ('.json', '.txt', '.model') and not each.name.endswith('.index.json'):
            digest.update(f'{each.as_posix()} {file_sha256(folder / each)}\n'.encode())
    return f'sha256:{digest.hexdigest()[:16]}'


def _import_diffusers() -> Any:
    """The library; what is wrong with it, if it can't be imported, in its own words."""
    try:
        import diffusers
        import transformers

        # Both import their classes when first asked for.
        _ = diffusers.DiffusionPipeline, transformers.PreTrainedModel
    except ModuleNotFoundError as error:
        if error.name not in ('diffusers', 'transformers'):
            raise ValueError(
                f"diffusers is installed but can't be imported: it lacks {error.name}"
            ) from error
        raise ValueError(
            f'generating images needs {error.name}: {pip_install("generation")}'
        ) from None
    except (ImportError, RuntimeError) as error:  # RuntimeError: what their lazy imports make of it
        raise ValueError(
            f"diffusers is installed but can't be imported: {one_sentence(error)}"
        ) from error
    return diffusers


@contextmanager
def _quiet_off_terminals(diffusers: Any) -> Iterator[None]:
    """Leave bars out where nobody sees them move: in a log each of their steps is a line."""
    import transformers

    logs = [library.utils.logging for library in (diffusers, transformers)]
    shown = [log.is_progress_bar_enabled() for log in logs]
    if not sys.stderr.isatty():
        for log in logs:
            log.disable_progress_bar()
    try:
        yield
    finally:
        for log, show in zip(logs, shown):
            if show:
                log.enable_progress_bar()


def _scheduler_class(diffusers: Any, name: str) -> type:
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise ValueError(
            f'diffusers has no scheduler class {name!r}; DDIMScheduler, DDPMScheduler '
            'and DPMSolverMultistepScheduler are some it has'
        )
    return found


def _locate(
    diffusers: Any,
    source: str | Path,
    revision: str | None,
    variant: str | None,
    without: Collection[str],
) -> tuple[Path, str, str]:
    """Folder, name and revision of a pipeline, downloading it if it is a hub id."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / INDEX).exists():
            raise FileNotFoundError(f'the folder {folder} holds no pipeline: it has no {INDEX}')
        return folder, folder.resolve().name, _folder_revision(folder, without)
    text = str(source)
    if text.count('/') != 1 or text.startswith(('.', '/', '~')) or text.endswith('/'):
        if is_distant(text):
            raise MissingFileError.of('pipeline folder or file', source)
        raise FileNotFoundError(
            f'there is no pipeline folder or file {source} (a hub id would have the form '
            'owner/name)'
        )
    try:
        with hub_or_cache():
            folder = Path(
                diffusers.DiffusionPipeline.download(
                    text,
                    revision=revision,
                    variant=variant,
                    use_safetensors=True,
                    trust_remote_code=False,
                    **dict.fromkeys(without),
                )
            )
    except Exception as error:  # the hub's, the network's, and what files of others bring about
        raise ValueError(
            f"{source} is no folder here and can't be had from the hub: {one_sentence(error)}"
        ) from error
    return folder, text, folder.name  # the hub's cache names a snapshot's folder by its commit


def _saved_without(folder: Path) -> list[str]:
    """Parts that a pipeline was saved without, which diffusers wants said again for some.

    Stable Diffusion 3 without its third text encoder, for example.
    """
    index = json.loads((folder / INDEX).read_text(encoding='utf-8'))
    return [name for name, value in index.items() if value == [None, None]]


def _folder_revision(folder: Path, without: Collection[str]) -> str:
    """A hash of names and contents of the files that decide what a pipeline generates."""
    digest = hashlib.sha256()
    for file in files_of(folder):
        if file.suffix in _WEIGHT_ENDINGS and file.parts[0] not in without:
            digest.update(f'{file.as_posix()} {file_sha256(folder / file)}\n'.encode())
    return f'sha256:{digest.hexdigest()[:16]}'
