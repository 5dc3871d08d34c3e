#!/usr/bin/env python3
"""Set up ``.venv-newest``: the newest diffusers and transformers over everything in ``.venv``.

``./run newest-generators`` calls this with the Python of ``.venv``, which must be set up. The
second environment holds only what differs (``requirements/newest/generation.txt``) and finds the
rest, PyTorch and its CUDA libraries above all, in the first. Done again only when that list, or the
place of the checkout, changes.
"""
from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / 'requirements' / 'newest' / 'generation.txt'


def set_up(folder: Path, pins: Path = LIST) -> bool:
    """Make the environment in ``folder``, if it isn't there as it should be.

    Args:
        folder: Where; what stands there is replaced.
        pins: The list of exact pins to install.

    Returns:
        Whether there was something to do.

    Raises:
        subprocess.CalledProcessError: If pip fails; it has said why.
    """
    key = hashlib.sha256(f'{folder}\n{sys.prefix}\n{pins.read_text("utf-8")}'.encode()).hexdigest()
    stamp = folder / 'freeatm_stamp'
    if stamp.is_file() and stamp.read_text('utf-8') == key:
        return False
    if folder.exists():
        shutil.rmtree(folder)
    venv.create(folder, with_pip=False, symlinks=True)
    version = f'python{sys.version_info.major}.{sys.version_info.minor}'
    packages = Path('lib', version, 'site-packages')
    # Packages of the first environment come after the second's own, so that those win.
    (folder / packages / 'base.pth').write_text(
        f'import site; site.addsitedir({str(Path(sys.prefix) / packages)!r})\n', encoding='utf-8')
    python = folder / 'bin' / 'python'
    subprocess.run([str(python), '-m', 'pip', 'install', '--no-deps', '--ignore-installed',
                    '--requirement', str(pins)], check=True)
    stamp.write_text(key, encoding='utf-8')
    return True


def main() -> int:
    """Set the environment up beside the checkout."""
    if sys.prefix == sys.base_prefix:
        print('Call this through ./run newest-generators: it needs the Python of .venv.',
              file=sys.stderr)
        return 1
    try:
        set_up(ROOT / '.venv-newest')
    except subprocess.CalledProcessError as error:
        print(f'The newest generators could not be installed: pip ended with exit code '
              f'{error.returncode}.', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
