"""The configs and tools that come with the package, named `freeatm_mm::NAME`.

They lie in `freeatm_mm/.mim`, where OpenMMLab's packages have theirs; in a checkout that is a link
to its configs/ and tools/.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from freeatm_mm.errors import MissingFileError

__all__ = ['PREFIX', 'config_names', 'find_config', 'own_or_packaged', 'packaged_folder']

#: What stands before the name of a config of this package.
PREFIX = 'freeatm_mm::'


def packaged_folder(name: str) -> Path:
    """Return where 'configs' or 'tools' are."""
    return (Path(__file__).parent / '.mim' / name).resolve()


def config_names() -> list[str]:
    """Name all configs that can be run, such as 'mocov2_freeatm.py', in order."""
    folder = packaged_folder('configs')
    names = [path.relative_to(folder) for path in folder.rglob('*')]
    return sorted(
        name.as_posix()
        for name in names
        if name.suffix in ('.py', '.yaml') and '_base_' not in name.parts
    )


def find_config(name: str | Path) -> Path:
    """Return the path of a config, which `freeatm_mm::NAME` may name.

    Args:
        name: A path, returned as it is, or `freeatm_mm::NAME` with a name of `config_names`; .py
            may be left out.

    Raises:
        MissingFileError: If the package has no such config.
    """
    if not str(name).startswith(PREFIX):
        return Path(name)
    rest = str(name).removeprefix(PREFIX)
    folder = packaged_folder('configs')
    for found in (folder / rest, folder / f'{rest}.py'):
        if found.is_file() and found.resolve().is_relative_to(folder):
            return found
    near = difflib.get_close_matches(rest, config_names(), 1)
    hint = f'did you mean {PREFIX}{near[0]}?' if near else "'freeatm configs' lists them"
    raise MissingFileError(f'freeatm_mm has no config {rest}: {hint}')


def own_or_packaged(name: str | Path) -> str | Path:
    """Return where a file or folder lies that a config names as a checkout has it, `configs/...`.

    Args:
        name: A path or another name. One below `configs/` that is not here is the package's own if
            it has that; all else is returned as it is.
    """
    path, folder = Path(name), packaged_folder('configs')
    if path.parts[:1] != ('configs',) or path.exists():
        return name
    own = folder.joinpath(*path.parts[1:])
    return own if own.exists() and own.resolve().is_relative_to(folder) else name
