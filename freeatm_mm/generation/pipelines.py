"""Loading a diffusion pipeline from a folder or from the Hugging Face hub."""
from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from freeatm_mm.store.layout import file_sha256

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ['DTYPES', 'LoadedPipeline', 'drawing_options', 'load_pipeline', 'scheduler_name']

#: Name of a number format -> torch's.
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}

# The files of a pipeline's folder that decide what it draws.
_WEIGHT_ENDINGS = ('.json', '.safetensors', '.bin', '.txt', '.model')


class LoadedPipeline(NamedTuple):
    """A pipeline and what to call it in the records of what it drew.

    Args:
        pipe: The pipeline.
        name: Name of its folder, or its id on the hub.
        revision: Commit on the hub, or for a folder ``sha256:`` and a hash of its files.
    """

    pipe: DiffusionPipeline
    name: str
    revision: str


def load_pipeline(source: str | Path, *, revision: str | None = None, scheduler: str | None = None,
                  dtype: str = 'float32', device: str | torch.device | None = None,
                  variant: str | None = None) -> LoadedPipeline:
    """Load any diffusers pipeline; no code that comes with the weights is run.

    Args:
        source: A pipeline's folder, or a hub id such as ``owner/name``.
        revision: Branch, tag or commit on the hub.
        scheduler: Name of a diffusers scheduler class to use in place of the pipeline's own, with
            the own one's settings (``'DDIMScheduler'``).
        dtype: ``'float32'``, ``'float16'`` or ``'bfloat16'``.
        device: Where to run; the default is the GPU if there is one.
        variant: Weights' variant, such as ``'fp16'``.

    Raises:
        FileNotFoundError: If the folder is missing or holds no pipeline.
        ValueError: If the pipeline's or scheduler's class is unknown, the dtype is, or the
            pipeline can't be loaded.
    """
    if dtype not in DTYPES:
        raise ValueError(f'unknown dtype {dtype!r}; use one of {", ".join(DTYPES)}')
    try:
        import diffusers
    except ImportError:
        raise ValueError('drawing images needs diffusers; install freeatm_mm[generation]') from None
    scheduler_class = _scheduler_class(diffusers, scheduler) if scheduler else None
    folder, name, revision = _locate(diffusers, source, revision, variant)
    _check_class(diffusers, folder)
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            folder, torch_dtype=DTYPES[dtype], variant=variant, local_files_only=True)
        if scheduler_class is not None:
            _set_scheduler(pipe, scheduler_class)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError,
            ImportError) as error:
        raise ValueError(f"the pipeline {source} can't be loaded: {_one_line(error)}") from error
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the pipeline {source} can't be moved to the device {device}: "
                         f'{_one_line(error)}') from error
    return LoadedPipeline(pipe, name, revision)


def drawing_options(pipe: DiffusionPipeline, *, steps: int, guidance: float,
                    height: int | None = None, width: int | None = None) -> dict[str, Any]:
    """How to draw, by the names that a pipeline's call has for it.

    Args:
        pipe: Any text-to-image pipeline.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale, or what the pipeline calls its guidance scale.
        height: Height of the images in pixels, with ``width``; ``None``: the pipeline's own.
        width: Width of the images in pixels.

    Returns:
        Arguments of the pipeline's call. Captions aren't cleaned as if from the web, and images
        are drawn at their size rather than at one like it and cut, which would shift the masks.

    Raises:
        ValueError: If the pipeline's call has no name for something asked.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    name = type(pipe).__name__
    options: dict[str, Any] = {}

    def add(value: Any, what: str, *names: str) -> None:
        known = [candidate for candidate in names if candidate in parameters]
        if not known:
            raise ValueError(f"{name} can't be told the {what}: its call has no argument "
                             f'{" or ".join(names)}')
        options[known[0]] = value

    add(steps, 'number of steps', 'num_inference_steps', 'decoder_num_inference_steps')
    # Qwen-Image takes a guidance_scale and does nothing with it.
    true = ('true_cfg_scale', ) if name.startswith('QwenImage') else ()
    add(guidance, 'guidance scale', *true, 'guidance_scale', 'decoder_guidance_scale')
    if height is not None or width is not None:
        add(height, 'height', 'height')
        add(width, 'width', 'width')
    for switch in ('clean_caption', 'use_resolution_binning'):
        if switch in parameters:
            options[switch] = False
    return options


def scheduler_name(pipe: DiffusionPipeline) -> str:
    """The attribute with the scheduler of the network that draws; UnCLIP has one for each of its
    networks."""
    return 'decoder_scheduler' if hasattr(pipe, 'decoder_scheduler') else 'scheduler'


def _set_scheduler(pipe: DiffusionPipeline, scheduler_class: type) -> None:
    """Give the network that draws another scheduler.

    Kandinsky 2.1 hands its own to an inner pipeline.
    """
    name = scheduler_name(pipe)
    own = getattr(pipe, name)
    if type(own) is scheduler_class:
        return
    setattr(pipe, name, scheduler_class.from_config(own.config))
    inner = getattr(pipe, 'decoder_pipe', None)
    if inner is not None and hasattr(inner, 'scheduler'):
        inner.scheduler = getattr(pipe, name)


def _scheduler_class(diffusers: Any, name: str) -> type:
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise ValueError(f'diffusers has no scheduler class {name!r}; DDIMScheduler, DDPMScheduler '
                         'and DPMSolverMultistepScheduler are some it has')
    return found


def _locate(diffusers: Any, source: str | Path, revision: str | None,
            variant: str | None) -> tuple[Path, str, str]:
    """Folder, name and revision of a pipeline, downloading it if it is a hub id."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / 'model_index.json').is_file():
            raise FileNotFoundError(f'the folder {folder} holds no pipeline: it has no '
                                    'model_index.json')
        return folder, folder.resolve().name, _folder_revision(folder)
    text = str(source)
    if text.count('/') != 1 or text.startswith(('.', '/', '~')) or text.endswith('/'):
        raise FileNotFoundError(f'there is no pipeline folder {source} (a hub id would have the '
                                'form owner/name)')
    try:
        folder = Path(diffusers.DiffusionPipeline.download(
            text, revision=revision, variant=variant))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{source} is no folder here and can't be had from the hub: "
                         f'{_one_line(error)}') from error
    return folder, text, folder.name  # the hub's cache names a snapshot's folder by its commit


def _check_class(diffusers: Any, folder: Path) -> None:
    """Refuse a pipeline whose class diffusers doesn't have, or that lacks a part, by name."""
    index = folder / 'model_index.json'
    try:
        content = json.loads(index.read_bytes())
        name = content['_class_name']
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{index} is corrupt: it names no pipeline class') from None
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ValueError(f'{index} names the pipeline class {name!r}, which diffusers '
                         f"{diffusers.__version__} doesn't have")
    # Parts are pairs of library and class; a part that the pipeline goes without is a pair of null.
    parts = {part: value[0] for part, value in content.items()
             if isinstance(value, list) and value[:1] not in ([None], [])}
    for part, library in parts.items():
        # diffusers would run such a file without asking.
        if (not isinstance(library, str) or (folder / part / f'{library}.py').exists()
                or library not in ('diffusers', 'transformers')
                and not hasattr(diffusers.pipelines, library)):
            raise ValueError(f'{index} takes its {part} from {library!r}, which is neither '
                             'diffusers nor transformers: code that comes with weights is not run')
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(f'the pipeline {folder} is not whole: it lacks the folder '
                                f'{", ".join(missing)}')


def _folder_revision(folder: Path) -> str:
    """A hash of names and contents of the files that decide what a pipeline draws."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob('*')):
        relative = file.relative_to(folder)
        hidden = any(part.startswith('.') for part in relative.parts)
        if file.suffix in _WEIGHT_ENDINGS and not hidden and file.is_file():
            digest.update(f'{relative.as_posix()} {file_sha256(file)}\n'.encode())
    return f'sha256:{digest.hexdigest()[:16]}'


def _one_line(error: BaseException) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
