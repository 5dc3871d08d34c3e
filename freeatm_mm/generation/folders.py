"""What a pipeline's folder may hold: data of known classes, and nothing that runs or leads away.

diffusers and transformers take a folder at its word. These are the ways by which one could run
code, or read what lies elsewhere, and each is refused in one sentence before anything is loaded:

- an index (`model_index.json`) whose class, or whose part's library, is a Python file of the folder
  or another module; a part that is itself a pipeline, with an index of its own; `None.py`, which
  diffusers takes for the pipeline's code;
- a part of a class that loads other classes by what its files say (`AutoModel` and its like);
- weights that are pickles, and lists of weights that name a file elsewhere or a pickle;
- an attention kernel of the hub (`attn_implementation`), an adapter that leads to another folder;
- a combined pipeline whose README names a second one;
- links out of the folder, pipes, devices; more files, depth or bytes than a pipeline has.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from freeatm_mm.compat import check_kernels
from freeatm_mm.files import read_json

__all__ = ['INDEX', 'check_folder', 'files_of']

INDEX = 'model_index.json'

#: Most files and deepest folder of a pipeline.
MAX_FILES, MAX_DEPTH = 10_000, 8
#: Bytes of the largest configuration that is read.
MAX_CONFIG = 1 << 22
#: Bytes of the largest JSON file: vocabularies of language models take 30 MB.
MAX_JSON = 1 << 27
_PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')


def check_folder(diffusers: Any, folder: Path, without: Collection[str] = ()) -> None:
    """Refuse a pipeline's folder that is not whole, or not data alone (see the module's head).

    Args:
        diffusers: The library.
        folder: A folder with a `model_index.json`.
        without: Parts that aren't loaded.

    Raises:
        FileNotFoundError: If a part is missing.
        ValueError: If it holds something that is not loaded; says what.
    """
    files = files_of(folder)
    index = folder / INDEX
    content = read_json(index, MAX_CONFIG)
    name = content.get('_class_name') if isinstance(content, dict) else None
    if not name:
        raise ValueError(f'{index} is corrupt: it names no pipeline class')
    pipeline: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    known = (
        isinstance(pipeline, type)
        and issubclass(pipeline, diffusers.DiffusionPipeline)
        and pipeline is not diffusers.DiffusionPipeline
    )
    if not known:
        raise ValueError(
            f'{index} names the pipeline class {name!r}, which diffusers '
            f"{diffusers.__version__} doesn't have"
        )
    if (folder / 'None.py').exists():
        raise ValueError(
            f"{folder / 'None.py'} is what diffusers would take for the pipeline's "
            'code: code that comes with weights is not run; remove the file'
        )
    if pipeline._load_connected_pipes and (folder / 'README.md').exists():
        raise ValueError(
            f'{name} loads a second pipeline that {folder / "README.md"} names: '
            'remove that file, and have all parts in the folder'
        )
    parts = {
        part: value
        for part, value in _parts(diffusers, pipeline, index, content).items()
        if part not in without
    }
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f'the pipeline {folder} is not whole: it lacks the folder {", ".join(missing)}'
        )
    for part, (library, class_name) in parts.items():
        is_model = _check_part(diffusers, folder, part, library, class_name, index)
        _check_files(folder, part, [file for file in files if file.parts[0] == part], is_model)


def files_of(folder: Path) -> list[Path]:
    """The files of a pipeline's folder, relative to it, in order; hidden ones are left out.

    Raises:
        ValueError: If there are too many or too deep, one is no plain file, or a link leads out.
    """
    root = folder.resolve()
    # The hub's cache keeps files in one folder, and links to them in another.
    roots = [root, root.parent.parent / 'blobs'] if root.parent.name == 'snapshots' else [root]
    found: list[Path] = []

    def walk(place: Path, depth: int) -> Iterator[Path]:
        if depth > MAX_DEPTH:
            raise ValueError(f'{folder} has folders more than {MAX_DEPTH} deep: no pipeline has')
        for entry in os.scandir(place):
            if entry.name.startswith('.'):
                continue
            if entry.is_symlink():
                try:
                    target = Path(entry.path).resolve(strict=True)
                except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
                    raise ValueError(f'{entry.path} is a link that leads nowhere') from None
                if not any(target.is_relative_to(allowed) for allowed in roots):
                    raise ValueError(
                        f'{entry.path} is a link out of the folder, which is not '
                        'followed: put a copy in its place'
                    )
            if entry.is_dir():
                if not entry.is_symlink():
                    yield from walk(Path(entry.path), depth + 1)
            elif entry.is_file():
                yield Path(entry.path)
            else:
                raise ValueError(f'{entry.path} is not a plain file')

    for file in walk(folder, 1):
        if file.suffix == '.json' and file.stat().st_size > MAX_JSON:
            raise ValueError(f'{file} has more than {MAX_JSON:,} bytes: no JSON of a pipeline has')
        found.append(file.relative_to(folder))
        if len(found) > MAX_FILES:
            raise ValueError(f'{folder} has more than {MAX_FILES:,} files: no pipeline has')
    return sorted(found)


def _parts(
    diffusers: Any, pipeline: type[Any], index: Path, content: dict[str, Any]
) -> dict[str, tuple[str, str]]:
    """The parts that an index lists: name -> library and class."""
    due, settings = diffusers.DiffusionPipeline._get_signature_keys(pipeline)
    settings = set(settings) - set(pipeline._optional_components)
    parts = {}
    for part, value in content.items():
        if part.startswith('_') or part in settings and not _is_pair(value):
            continue
        if isinstance(value, list) and value[:1] in ([None], []):
            continue  # a part that the pipeline goes without
        if part not in due and not isinstance(value, list):
            continue
        if not _is_pair(value) or not part.isidentifier():
            raise ValueError(
                f'{index} is corrupt: its entry {part!r} is not the pair of library '
                'and class that a part has'
            )
        parts[part] = (value[0], value[1])
    return parts


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)
    )


def _check_part(
    diffusers: Any, folder: Path, part: str, library: str, class_name: str, index: Path
) -> bool:
    """Refuse a part whose class isn't one of those that load data alone; whether it has weights."""
    import transformers

    own = getattr(diffusers.pipelines, library, None) if library.isidentifier() else None
    # diffusers would run such a file without asking.
    if (
        (folder / part / f'{library}.py').exists()
        or library not in ('diffusers', 'transformers')
        and not inspect.ismodule(own)
    ):
        raise ValueError(
            f'{index} takes its {part} from {library!r}, which is neither diffusers nor '
            f'transformers nor one of the pipelines that diffusers {diffusers.__version__} has: '
            'code that comes with weights is not run'
        )
    home = (
        own
        if inspect.ismodule(own)
        else {'diffusers': diffusers, 'transformers': transformers}[library]
    )
    class_name = class_name.removeprefix('Flax')
    found = getattr(home, class_name, None)
    if not isinstance(found, type):
        raise ValueError(
            f'{index} takes its {part} from the class {class_name!r}, which {library} '
            f"(diffusers {diffusers.__version__}, transformers {transformers.__version__}) doesn't "
            'have'
        )
    if issubclass(found, diffusers.DiffusionPipeline):
        raise ValueError(
            f'{index} has a whole pipeline ({class_name}) as its {part}: pipelines '
            'within pipelines are not loaded'
        )
    models = (diffusers.ModelMixin, transformers.PreTrainedModel)
    others = (
        diffusers.SchedulerMixin,
        transformers.PreTrainedTokenizerBase,
        transformers.FeatureExtractionMixin,
        transformers.ProcessorMixin,
        transformers.ImageProcessingMixin,
    )
    if not issubclass(found, models + others):
        raise ValueError(
            f'{index} takes its {part} from the class {class_name}, which is no '
            'model, scheduler, tokenizer or image processor'
        )
    return issubclass(found, models)


def _check_files(folder: Path, part: str, files: list[Path], is_model: bool) -> None:
    """Refuse a part whose files are pickles or lead elsewhere."""
    weights = {file.as_posix() for file in files if file.suffix == '.safetensors'}
    for file in files:
        if file.name == 'adapter_config.json':
            raise ValueError(
                f'{folder / file} leads to the weights of another folder, which are '
                'not loaded: merge the adapter into the weights'
            )
        if file.name.endswith('.safetensors.index.json'):
            _check_weight_list(folder, file, weights)
        elif file.name == 'config.json':
            # Settings may be infinite, and diffusers writes them so.
            config = read_json(folder / file, MAX_CONFIG, finite=False)
            check_kernels(folder / file, config)
    pickles = [file.name for file in files if file.suffix in _PICKLES]
    if is_model and not weights and pickles:
        raise ValueError(
            f'{folder / part} has its weights as a pickle ({pickles[0]}), which is '
            'not loaded: if you trust it, load it in diffusers and save_pretrained '
            'it, which writes safetensors'
        )


def _check_weight_list(folder: Path, file: Path, weights: set[str]) -> None:
    content = read_json(folder / file, MAX_JSON)
    places = content.get('weight_map') if isinstance(content, dict) else None
    if not isinstance(places, dict):
        raise ValueError(f'{folder / file} is corrupt: it has no weight_map')
    for name in places.values():
        if not isinstance(name, str) or (file.parent / name).as_posix() not in weights:
            raise ValueError(
                f'{folder / file} names {name!r} as a file of weights; only '
                'safetensors files beside it are loaded'
            )
