"""What long jobs have to know of a pretraining's config, read from the config itself.

Only values that are written out are read, and nothing is run, so that a job can be planned before
mmengine is installed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freeatm_mm.errors import InputError
from freeatm_mm.methods import METHODS

__all__ = ['CONFIGS', 'Layout', 'config_of', 'miniature_methods', 'read_layout', 'read_settings']

CONFIGS = Path('configs/miniature')
"""Where the miniature's configs lie, from the project's folder."""
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Layout:
    """Where a config has what a job changes.

    Attributes:
        views: Of each sample; methods that see one view train for twice the epochs.
        cosine: Place of the cosine among the schedule's parts.
        begin: Epoch that the cosine begins at.
        loading: Place of the transform that loads samples in the pipeline.
        packing: Place of the transform that packs masks in the pipeline.
        viewing: Place of the transform that makes several views; None of methods that see one.
        settings: All that the config says, and the project's configs that it extends.
    """

    views: int
    cosine: int
    begin: int
    loading: int
    packing: int
    viewing: int | None
    settings: Mapping[str, Any]

    def epochs(self, epochs: int) -> int:
        """Epochs of this method that show as many views as so many epochs of two views."""
        return epochs * 2 // self.views

    def says(self, key: str) -> bool:
        """Whether the config has an entry of this name, such as ``model.negatives``."""
        value: Any = self.settings
        for part in key.split('.'):
            if not isinstance(value, Mapping) or part not in value:
                return False
            value = value[part]
        return True


def config_of(method: str) -> Path:
    """The miniature's config of a method, from the project's folder."""
    return CONFIGS / f'{method}_freeatm.py'


def miniature_methods() -> tuple[str, ...]:
    """The methods that have a config in the miniature."""
    return tuple(name for name in METHODS if (_ROOT / config_of(name)).is_file())


def read_layout(method: str) -> Layout:
    """Read what a job has to know of a method.

    Raises:
        InputError: If the config has no cosine, or no pipeline of a store, that can be read so.
    """
    path = _ROOT / config_of(method)
    settings = read_settings(path)
    pipeline = _dicts(settings, 'train_dataloader', 'dataset', 'pipeline')
    schedule = _dicts(settings, 'param_scheduler')
    cosine = _place(schedule, 'CosineAnnealingLR', path)
    views = next((part for part in pipeline if 'num_views' in part), {'num_views': 1})
    try:
        return Layout(
            sum(_whole(number) for number in _list(views['num_views'])),
            cosine,
            _whole(schedule[cosine].get('begin', 0)),
            _place(pipeline, 'LoadFromStore', path),
            _place(pipeline, 'PackFreeATMInputs', path),
            next((place for place, part in enumerate(pipeline) if 'num_views' in part), None),
            settings,
        )
    except TypeError:
        raise InputError(
            f'{path}: num_views, and begin of CosineAnnealingLR, must be written out as numbers'
        ) from None


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read what a config says, with the project's own configs that it extends.

    What is computed is None, and so is what another project's config says and this one takes over.
    What one of this project's says and this one names by `_base_` is read as it stands there.

    Raises:
        InputError: If there is no such config, or it is no Python.
    """
    path = Path(path)
    try:
        body = ast.parse(path.read_text(encoding='utf-8')).body
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f'{path} cannot be read as a config: {error}') from None
    assigned = [
        (target.id, node.value)
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    bases: Any = next((_value(value, {}) for name, value in assigned if name == '_base_'), [])
    settings: dict[str, Any] = {}
    for base in _list(bases):
        if isinstance(base, str) and '::' not in base:
            settings = _merged(settings, read_settings(path.parent / base))
    own: dict[str, Any] = {}
    for name, value in assigned:
        if name != '_base_':
            own[name] = _value(value, own, settings)
    return _merged(settings, own)


def _value(node: ast.expr, known: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Any:
    """A value that is written out, with the names that were given one before, here or in a base."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return (base or {}).get(node.attr) if node.value.id == '_base_' else None
    if isinstance(node, (ast.List, ast.Tuple)):
        if any(isinstance(part, ast.Starred) for part in node.elts):
            return None
        return [_value(part, known, base) for part in node.elts]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {word.arg: _value(word.value, known, base) for word in node.keywords if word.arg}
    return None


def _merged(old: Any, new: Any) -> Any:
    """A value over an inherited one, as mmengine merges them."""
    if isinstance(old, Mapping) and isinstance(new, Mapping) and not new.get('_delete_'):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return new


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(value)
    return value


def _dicts(settings: Any, *keys: str) -> list[Mapping[str, Any]]:
    for key in keys:
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return [part if isinstance(part, Mapping) else {} for part in _list(settings)]


def _place(parts: list[Mapping[str, Any]], kind: str, path: Path) -> int:
    """Where the part of a type stands."""
    for place, part in enumerate(parts):
        if part.get('type') == kind:
            return place
    raise InputError(
        f'{path} has no {kind} that can be found without running it: write param_scheduler and '
        'train_pipeline out in it, or in a config of this project that it extends'
    )
