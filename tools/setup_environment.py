#!/usr/bin/env python3
"""Set up ``.venv`` beside the checkout: what ``./run`` does before anything else.

Standard library only, since nothing is installed yet. The set-up is a list of stages (``STAGES``),
each with a list of exact pins in ``requirements/``. A finished stage leaves a stamp with the hash
of its list, written last, so that nothing is done twice and a killed set-up goes on where it was.
What can go wrong on a reader's machine (wrong Python, no compiler, no disk, no network) is said in
one sentence, with exit code 1.
"""
from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MMCV = 'onedl-mmcv'
GIGABYTE = 1000**3
# Kept free beyond what the stages take, so that a full disk is not found out half way.
SPARE_GIGABYTES = 0.5
# What compiling mmcv's ops leaves in the user's cache while it goes on.
BUILD_GIGABYTES = 0.5
# Needed by one compiler process of mmcv's ops at its worst (measured 0.8).
GIGABYTES_PER_COMPILER = 1.2
# What pip prints when it can't reach its index.
NETWORK_SIGNS = (
    'CERTIFICATE_VERIFY_FAILED', 'ConnectTimeoutError', 'Connection refused',
    'Connection reset by peer', 'Failed to establish a new connection', 'IncompleteRead',
    'Name or service not known', 'NameResolutionError', 'Network is unreachable',
    'NewConnectionError', 'ProxyError', 'Read timed out', 'SSLError',
    'Temporary failure in name resolution', 'connection broken by')
# What a compiler prints when it fails, and not only warns.
COMPILER_SIGNS = (' error: ', 'Killed signal', 'No space left on device')
# Top-level folders that wheels install by mistake (model-index: tests; salesforce-lavis: all four).
# They would hide folders of the same name beside a script or a test, so they are taken out.
STRAY_PACKAGES = ('app', 'docs', 'projects', 'tests')


class SetupError(Exception):
    """What stops the set-up, as one sentence for the reader."""


@dataclass(frozen=True)
class Stage:
    """One step of the set-up.

    Attributes:
        name: Name, and that of its list ``requirements/<name>.txt`` where it has one.
        what: What it brings, for the announcement.
        installed: Gigabytes (10^9 bytes) it takes in ``.venv``.
        downloaded: Gigabytes it fetches, which lie in pip's cache and, until installed, in
            ``.venv``.
        minutes: Time it took on two cores.
    """
    name: str
    what: str
    installed: float
    downloaded: float
    minutes: float


# Measured on two cores that had other work too; each a little above what was seen.
STAGES = (
    Stage('venv', 'an empty virtual environment', 0.1, 0.0, 0.2),
    Stage('base', 'PyTorch 2.12.1 with its CUDA libraries (works on the CPU)', 7.3, 4.1, 5),
    Stage('core', 'OpenMMLab for pretraining (mmengine, mmpretrain, mmcv without ops)',
          0.3, 0.1, 0.7),
    Stage('generation', 'diffusers, transformers, webdataset', 0.2, 0.1, 0.6),
    Stage('report', 'scikit-learn, scipy, pycocotools', 0.2, 0.1, 0.4),
    Stage('mmcv-ops', 'mmcv compiled with its C++ ops', 0.1, 0.0, 26),
    Stage('downstream', 'OpenMMLab for detection and segmentation (mmdet, mmseg)', 0.1, 0.1, 0.3),
    Stage('prompts', 'textblob, ijson and the openai client', 0.1, 0.1, 0.2),
    Stage('lavis', 'LAVIS', 0.5, 0.2, 0.6),
    Stage('store', 'pyarrow and Hugging Face datasets', 0.3, 0.1, 0.3),
    Stage('ray', 'Ray Data', 0.3, 0.1, 0.3),
    Stage('dev', 'pytest, hypothesis, ruff', 0.1, 0.1, 0.2),
    Stage('package', 'freeatm_mm itself, editable', 0.0, 0.0, 0.1),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)
PURPOSES = {
    'miniature': ('venv', 'base', 'core', 'generation', 'report', 'package'),
    'tests': STAGE_NAMES,
}
# A stage brings those it needs with it.
NEEDS = {
    'venv': (),
    'base': ('venv',),
    'core': ('venv', 'base'),
    'generation': ('venv', 'base', 'core'),
    'report': ('venv', 'base', 'core'),
    'mmcv-ops': ('venv', 'base', 'core'),
    'downstream': ('venv', 'base', 'core', 'generation', 'report', 'mmcv-ops'),
    'prompts': ('venv', 'base', 'core', 'generation', 'report'),
    'lavis': ('venv', 'base', 'core', 'generation', 'report', 'prompts'),
    'store': ('venv', 'base', 'core', 'generation', 'report', 'prompts', 'lavis'),
    'ray': ('venv', 'base', 'core', 'generation', 'report', 'prompts', 'lavis', 'store'),
    'dev': ('venv', 'base', 'core'),
    'package': ('venv', 'base'),
}


def say(text: str) -> None:
    """Print a line at once, so that it stands before the output of the processes it announces."""
    print(text, flush=True)


def with_needs(names: Sequence[str]) -> tuple[str, ...]:
    """Complete a choice of stages by what they need, in the order in which they are done."""
    chosen: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in chosen:
            chosen.add(name)
            pending.extend(NEEDS[name])
    return tuple(name for name in STAGE_NAMES if name in chosen)


def plain_name(name: str) -> str:
    """A package's name as all its spellings have in common."""
    return re.sub('[-_.]+', '-', name).lower()


def read_pins(path: Path) -> dict[str, str]:
    """Read a list of pins: ``{name: version}``, with plain names.

    Raises:
        SetupError: If a line is not ``name==version``.
    """
    pins = {}
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
        line = line.split('#', 1)[0].strip()
        if not line:
            continue
        name, separator, version = line.partition('==')
        if not separator or not name or not version:
            raise SetupError(f'{path} line {number}: {line!r} is no exact pin like name==1.2.3.')
        pins[plain_name(name.strip())] = version.strip()
    return pins


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that it is whole or not there, whenever the process is killed."""
    temporary = path.with_name(path.name + '.tmp')
    with temporary.open('w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def unpack_sdist(archive: Path, folder: Path) -> Path:
    """Unpack the regular files of a source archive and return its one top folder.

    Raises:
        SetupError: If a member would be written outside ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    top = set()
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isfile():
                continue
            target = (folder / member.name).resolve()
            if folder.resolve() not in target.parents:
                raise SetupError(f'{archive} has a member outside its folder: {member.name}.')
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(tar.extractfile(member).read())
            top.add(target.relative_to(folder.resolve()).parts[0])
    if len(top) != 1:
        raise SetupError(f'{archive} holds {len(top)} top folders where a source archive has one.')
    return folder / top.pop()


def check_platform() -> None:
    """Raise a ``SetupError`` where the pins can't be installed."""
    if sys.implementation.name != 'cpython' or sys.version_info[:2] != (3, 11):
        raise SetupError(f'freeatm_mm needs CPython 3.11, and {sys.executable} is '
                         f'{platform.python_implementation()} {platform.python_version()}: '
                         'install Python 3.11 or set FREEATM_PYTHON to its path.')
    if platform.system() != 'Linux' or platform.machine() != 'x86_64':
        raise SetupError(f'The pinned wheels are for Linux on x86_64, and this is '
                         f'{platform.system()} on {platform.machine()}: install the extras of '
                         'setup.cfg by hand.')


def check_compiler() -> None:
    """Raise a ``SetupError`` unless C++17 with Python's headers compiles here."""
    compiler = os.environ.get('CXX', 'c++')
    if shutil.which(compiler.split()[0]) is None:
        raise SetupError(f"mmcv's ops need a C++ compiler, and {compiler!r} is not found: install "
                         'one (on Debian and Ubuntu: apt-get install g++) or set CXX.')
    include = sysconfig.get_path('include')
    if not (Path(include) / 'Python.h').is_file():
        raise SetupError(f"mmcv's ops need Python's headers, and {include}/Python.h is not there:"
                         ' install them (on Debian and Ubuntu: apt-get install python3.11-dev).')
    result = subprocess.run(
        [*compiler.split(), '-std=c++17', '-fsyntax-only', f'-I{include}', '-x', 'c++', '-'],
        input='#include <vector>\n#include <Python.h>\nint main() { return 0; }\n',
        capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ['no reason given'])[0]
        raise SetupError(f"The C++ compiler {compiler!r} can't compile a small C++17 program "
                         f'({reason}): repair it or set CXX to another.')


def check_disk(needs: Sequence[tuple[Path, float]]) -> None:
    """Raise a ``SetupError`` unless every disk that is written to has the room.

    Args:
        needs: Folders and the gigabytes that will be written there; a folder that isn't there yet
            lies on the disk of the nearest one above it that is.
    """
    disks: dict[int, tuple[Path, float]] = {}
    for folder, gigabytes in needs:
        while not folder.exists():
            folder = folder.parent
        device = folder.stat().st_dev
        first, total = disks.get(device, (folder, SPARE_GIGABYTES))
        disks[device] = (first, total + gigabytes)
    for folder, gigabytes in disks.values():
        free = shutil.disk_usage(folder).free / GIGABYTE
        if free < gigabytes:
            raise SetupError(f'Too little disk: the set-up needs {gigabytes:.1f} GB, and the disk '
                             f'of {folder} has {free:.1f} GB free: make room and run the same '
                             'command again.')


class Environment:
    """The virtual environment of one checkout, set up stage by stage.

    Args:
        root: The checkout.
        folder: The virtual environment; ``root/.venv`` unless told otherwise.
        cache: Where compiled wheels are kept for all checkouts of this user.
    """

    def __init__(self, root: Path, folder: Path | None = None,
                 cache: Path | None = None) -> None:
        self.root = root
        self.folder = folder or root / '.venv'
        self.python = self.folder / 'bin' / 'python'
        self.stamps = self.folder / 'freeatm_stamps'
        self.temporary = self.folder / 'freeatm_tmp'
        caches = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
        self.cache = cache or caches / 'freeatm_mm'
        self.pip_cache = Path(os.environ.get('PIP_CACHE_DIR') or caches / 'pip')
        self.at_work = self.stamps / 'at_work'
        self._locks: list[int] = []
        self._network_seen = False

    # --- what has been done ---------------------------------------------------------------------

    def requirements(self, name: str) -> Path:
        """Path of a stage's list of pins."""
        return self.root / 'requirements' / f'{name}.txt'

    @property
    def site_packages(self) -> Path:
        """Where the environment keeps its packages."""
        return self.folder / 'lib' / 'python3.11' / 'site-packages'

    @property
    def wheel_key(self) -> str:
        """What a compiled mmcv depends on."""
        mmcv = read_pins(self.requirements('core'))[MMCV]
        torch = read_pins(self.requirements('base'))['torch']
        return f'mmcv{mmcv}-ops-torch{torch}-cp311-{platform.machine()}'

    def cached_wheel(self) -> Path | None:
        """The mmcv with ops that this user's cache holds, if any."""
        return next((self.cache / 'wheels' / self.wheel_key).glob('*.whl'), None)

    def key(self, name: str) -> str:
        """Hash of all that decides a stage's result; a stage with another hash is done again."""
        parts: list[str]
        if name == 'venv':
            # A virtual environment's scripts name its place: one that has moved is of no use.
            parts = [str(self.folder)]
        elif name == 'mmcv-ops':
            parts = [self.wheel_key]
        elif name == 'package':
            parts = [str(self.root)]
            parts += [(self.root / f).read_text(encoding='utf-8')
                      for f in ('setup.cfg', 'pyproject.toml')]
        else:
            parts = [f'{n}=={v}' for n, v in sorted(read_pins(self.requirements(name)).items())]
        return hashlib.sha256('\n'.join([name, *parts]).encode()).hexdigest()

    def is_done(self, name: str) -> bool:
        """Whether a stage's stamp is there and matches."""
        try:
            stamp = json.loads((self.stamps / f'{name}.json').read_text(encoding='utf-8'))
            return stamp['key'] == self.key(name)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def missing(self, names: Sequence[str]) -> list[Stage]:
        """The stages still to do, in order. Without the environment itself, all of them."""
        whole = self.is_done('venv') and self.python.exists()
        return [stage for stage in STAGES
                if stage.name in names and not (whole and self.is_done(stage.name))]

    # --- doing it -------------------------------------------------------------------------------

    def set_up(self, names: Sequence[str]) -> None:
        """Bring the stages ``names`` (and what they need) to be done, doing nothing twice.

        Raises:
            SetupError: What stopped it, in one sentence.
        """
        check_platform()
        names = with_needs(names)
        if not self.missing(names) and not self.at_work.exists():
            return
        with self.locked(self.root / '.cache' / 'setup.lock'):
            if self.at_work.exists():
                self.repair()
            todo = self.missing(names)
            if not todo:
                return
            started = time.monotonic()
            self.check(todo)
            self.announce(todo)
            for number, stage in enumerate(todo, start=1):
                say(f'[{number}/{len(todo)}] {stage.name}: {stage.what}')
                self.do(stage.name)
            say(f'Set-up finished in {duration(time.monotonic() - started)}.')

    @contextlib.contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """Hold a lock file, waiting for another set-up that holds it.

        The processes started meanwhile hold it too: where this one is killed and leaves a pip or a
        compiler at work, the next set-up waits for its end.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f'Waiting for another set-up that is at work ({path}).')
                fcntl.flock(file, fcntl.LOCK_EX)
            self._locks.append(file.fileno())
            try:
                yield
            finally:
                self._locks.pop()

    def repair(self) -> None:
        """Clear up after a set-up that was cut off in the middle of a stage.

        That stage may have been replacing a package which an earlier stage brought, so all stages
        lose their stamps and are gone through again; pip passes over what is whole, in seconds.
        pip writes ``INSTALLER`` after a package's files: a package without it is incomplete, though
        pip would take it for installed. Names with a tilde are what pip had set aside.
        """
        for stamp in self.stamps.glob('*.json'):
            if stamp.stem != 'venv':
                stamp.unlink()
        for info in self.site_packages.glob('*.dist-info'):
            if not (info / 'INSTALLER').exists():
                shutil.rmtree(info)
        for aside in self.site_packages.glob('~*'):
            if aside.is_dir():
                shutil.rmtree(aside)
            else:
                aside.unlink()
        self.at_work.unlink()

    def check(self, todo: Sequence[Stage]) -> None:
        """Find out beforehand what would stop the stages later."""
        names = [stage.name for stage in todo]
        if 'venv' in names:
            try:
                import ensurepip  # noqa: F401 - Debian takes it out of Python
                import venv  # noqa: F401
            except ImportError as error:
                raise SetupError(f'This Python lacks {error.name}, which makes virtual '
                                 'environments: install it (on Debian and Ubuntu: apt-get install '
                                 'python3.11-venv).') from None
        must_compile = 'mmcv-ops' in names and self.cached_wheel() is None
        if must_compile:
            check_compiler()
        costs = [self.cost(stage) for stage in todo]
        check_disk([
            (self.folder, sum(cost.installed for cost in costs) + meanwhile(costs)),
            (self.pip_cache, sum(cost.downloaded for cost in costs)),
            (self.cache, BUILD_GIGABYTES if must_compile else 0.0)])

    def cost(self, stage: Stage) -> Stage:
        """The stage with the disk and time that it takes here, where it may have been done before.

        After an interruption, stages that are whole are gone through again at no cost; an mmcv
        compiled for another checkout is taken from the user's cache.
        """
        if stage.name == 'mmcv-ops':
            return stage if self.cached_wheel() is None else replace(stage, minutes=0.1)
        path = self.requirements(stage.name)
        if path.exists() and read_pins(path).items() <= self.installed().items():
            return replace(stage, installed=0.0, downloaded=0.0, minutes=0.1)
        return stage

    def announce(self, todo: Sequence[Stage]) -> None:
        """Say what will be done and what it takes."""
        costs = [self.cost(stage) for stage in todo]
        say(f'Setting up {self.folder}: {len(costs)} steps, about '
            f'{max(1, round(sum(cost.minutes for cost in costs)))} minutes on two cores and '
            f'{sum(cost.installed for cost in costs):.1f} GB of disk. Downloads: '
            f'{sum(cost.downloaded for cost in costs):.1f} GB, which pip may keep in its cache; '
            f'{meanwhile(costs):.1f} GB more are needed meanwhile. Safe to interrupt.')
        for cost in costs:
            say(f'  {cost.name:<11}{cost.installed:>4.1f} GB {cost.minutes:>5.1f} min  {cost.what}')

    def do(self, name: str) -> None:
        """Do one stage and stamp it."""
        started = time.monotonic()
        if name == 'venv':
            self.make_venv()
        write_atomically(self.at_work, name)
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir()
        if name == 'core':
            self.install_pins(name, leave_out=(MMCV,))
            self.install_plain_mmcv()
        elif name == 'mmcv-ops':
            self.install_compiled_mmcv()
        elif name == 'package':
            self.pip('install', '--no-deps', '--no-build-isolation', '--quiet', '--editable',
                     str(self.root), quiet=True)
        elif name != 'venv':
            self.install_pins(name)
        for stray in STRAY_PACKAGES:
            shutil.rmtree(self.site_packages / stray, ignore_errors=True)
        shutil.rmtree(self.temporary, ignore_errors=True)
        seconds = time.monotonic() - started
        write_atomically(self.stamps / f'{name}.json',
                         json.dumps({'key': self.key(name), 'seconds': round(seconds, 1)}))
        self.at_work.unlink()
        say(f'    done in {duration(seconds)}')

    def make_venv(self) -> None:
        """Make the environment anew; one that was cut off or has moved is of no use."""
        result = subprocess.run([sys.executable, '-m', 'venv', '--clear', str(self.folder)],
                                env=self.process_environment(), stdin=subprocess.DEVNULL,
                                capture_output=True, text=True)
        if result.returncode != 0:
            reason = ' '.join((result.stderr or result.stdout).split())[-300:]
            raise SetupError(f'The virtual environment {self.folder} could not be made: {reason}')
        self.stamps.mkdir()

    def process_environment(self, **changes: str) -> dict[str, str]:
        """Environment variables for pip and the compiler, without what would lead them astray."""
        misleading = ('PYTHONPATH', 'PYTHONHOME', 'PIP_USER', 'PIP_TARGET', 'PIP_PREFIX',
                      'PIP_NO_BUILD_ISOLATION', 'PIP_REQUIREMENT', 'PIP_CONSTRAINT')
        environment = {k: v for k, v in os.environ.items() if k not in misleading}
        environment.update(PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1',
                           PYTHONNOUSERSITE='1',
                           PATH=f'{self.folder / "bin"}{os.pathsep}{os.environ.get("PATH", "")}')
        if self.temporary.exists():
            # pip unpacks gigabytes, and /tmp may be small or memory.
            environment['TMPDIR'] = str(self.temporary)
        environment.update(changes)
        return environment

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen:
        """Start a process that shares this one's locks and reads nothing."""
        options.setdefault('env', self.process_environment())
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=self._locks, **options)

    def pip(self, *arguments: str, quiet: bool = False) -> None:
        """Run pip with its progress visible.

        Args:
            arguments: pip's command line.
            quiet: Keep pip's complaints for the error.

        Raises:
            SetupError: Where it fails: that there is no network, or pip's own last words.
        """
        complaints = []
        with self.start([str(self.python), '-m', 'pip', *arguments], stderr=subprocess.PIPE,
                        text=True, errors='replace') as process:
            for line in process.stderr:
                complaints.append(line.strip())
                # pip says for every try that an address can't be reached; once, below, is enough.
                if not quiet and not any(sign in line for sign in NETWORK_SIGNS):
                    print('    ' + line, end='', file=sys.stderr, flush=True)
        if process.returncode == 0:
            return
        if any(sign in line for line in complaints for sign in NETWORK_SIGNS):
            raise SetupError("No network: pip can't reach its package index; check the connection "
                             "(and pip's settings: pip config list) and run the same command "
                             'again, it goes on where it was.')
        if any('No space left on device' in line for line in complaints):
            raise SetupError(f'Too little disk: it ran full while pip wrote to {self.folder} or '
                             'its cache; make room and run the same command again.')
        words = next((line for line in reversed(complaints) if line.startswith('ERROR')),
                     complaints[-1] if complaints else f'exit code {process.returncode}')
        raise SetupError(f'pip {arguments[0]} failed: {words}')

    def check_network(self, name: str) -> None:
        """Ask the index for the first pin of a stage's list: better now than after many retries.

        Raises:
            SetupError: If pip can't reach its index.
        """
        if not self._network_seen:
            package, version = next(iter(read_pins(self.requirements(name)).items()))
            self.pip('install', '--dry-run', '--quiet', '--ignore-installed', '--no-deps',
                     '--no-cache-dir', '--retries', '1', '--timeout', '20',
                     f'{package}=={version}', quiet=True)
            self._network_seen = True

    def install_pins(self, name: str, leave_out: Sequence[str] = ()) -> None:
        """Install a stage's list exactly as it is, without looking for dependencies."""
        self.check_network(name)
        path = self.requirements(name)
        if leave_out:
            pins = read_pins(path)
            path = self.temporary / f'{name}.txt'
            path.write_text(''.join(f'{n}=={v}\n' for n, v in pins.items() if n not in leave_out),
                            encoding='utf-8')
        # The few packages that come as source are built with the pinned setuptools of stage base.
        self.pip('install', '--no-deps', '--no-build-isolation', '--requirement', str(path))

    def installed(self) -> dict[str, str]:
        """Names and versions of all that is installed, as ``read_pins`` gives those of a list."""
        found = {}
        for info in self.site_packages.glob('*.dist-info'):
            name, _, version = info.name.removesuffix('.dist-info').partition('-')
            found[plain_name(name)] = version
        return found

    def install_plain_mmcv(self) -> None:
        """Install mmcv without its ops, which takes seconds and no compiler.

        Its ``setup.py`` compiles the ops wherever it can import torch; in pip's isolated build it
        can't. An mmcv of the right version stays, since it may be the one with ops.
        """
        version = read_pins(self.requirements('core'))[MMCV]
        if self.installed().get(MMCV) == version:
            return
        # No cache: pip's own doesn't tell a wheel with ops from one without.
        self.pip('install', '--no-deps', '--no-cache-dir', '--no-binary', MMCV,
                 '--build-constraint', str(self.requirements('base')), f'{MMCV}=={version}')

    def install_compiled_mmcv(self) -> None:
        """Put mmcv with its ops in the place of the one without, compiling it once for a user."""
        wheel = self.cached_wheel()
        if wheel is None:
            with self.locked(self.cache / 'build' / f'{self.wheel_key}.lock'):
                wheel = self.cached_wheel() or self.compile_mmcv()
        else:
            say(f'    compiled before: {wheel}')
        self.pip('install', '--no-deps', '--no-index', '--force-reinstall', str(wheel))
        result = subprocess.run([str(self.python), '-c', 'import mmcv.ops'],
                                env=self.process_environment(), stdin=subprocess.DEVNULL,
                                capture_output=True, text=True)
        if result.returncode != 0:
            wheel.unlink()
            reason = (result.stderr.strip().splitlines() or ['no reason given'])[-1]
            raise SetupError(f"The compiled {wheel.name} can't be imported ({reason}) and has "
                             'been thrown away: run the same command again to compile it anew.')

    def compile_mmcv(self) -> Path:
        """Compile mmcv's ops for the CPU and keep the wheel.

        The build folder lies in the cache until the wheel is there, and ninja passes over the files
        that it has compiled: an interrupted build goes on where it was.
        """
        version = read_pins(self.requirements('core'))[MMCV]
        build = self.cache / 'build' / self.wheel_key
        source = build / 'source'
        if not source.exists():
            shutil.rmtree(build, ignore_errors=True)
            download = build / 'download'
            self.check_network('base')
            # In pip's isolation, where no torch makes it think of compiling already.
            self.pip('download', '--quiet', '--no-deps', '--no-binary', MMCV, '--dest',
                     str(download), f'{MMCV}=={version}')
            unpacked = unpack_sdist(next(download.glob('*.tar.gz')), build / 'unpacking')
            os.replace(unpacked, source)
        total = sum(len(list((source / 'mmcv/ops/csrc/pytorch').glob(pattern)))
                    for pattern in ('*.cpp', 'cpu/*.cpp'))
        environment = self.process_environment(
            # For the CPU, whatever this machine has: CUDA's ops would ask for nvcc.
            CUDA_VISIBLE_DEVICES='', FORCE_CUDA='0', FORCE_MLU='0', FORCE_MPS='0', FORCE_NPU='0',
            FORCE_MUSA='0', MMCV_WITH_DIOPI='0', MMCV_WITH_OPS='1',
            MAX_JOBS=os.environ.get('MAX_JOBS', str(compile_jobs())))
        wheels = build / 'wheels'
        shutil.rmtree(wheels, ignore_errors=True)
        log = build / 'build.log'
        say(f'    compiling {total} files, {environment["MAX_JOBS"]} at a time; log: {log}')
        with log.open('w') as log_file:
            with self.start([str(self.python), '-m', 'pip', 'wheel', '--verbose', '--no-deps',
                             '--no-cache-dir', '--no-build-isolation', '--wheel-dir', str(wheels),
                             str(source)],
                            env=environment, stdout=log_file, stderr=subprocess.STDOUT) as process:
                with progress(source / 'build', total):
                    code = process.wait()
        wheel = next(wheels.glob('*.whl'), None)
        if code != 0 or wheel is None:
            errors = [line.strip() for line in log.read_text(errors='replace').splitlines()
                      if any(sign in line for sign in COMPILER_SIGNS)]
            reason = errors[0] if errors else f'exit code {code}'
            raise SetupError(f"mmcv's ops could not be compiled ({reason}); the whole log is "
                             f'{log}.')
        if not wheel.name.endswith('-linux_x86_64.whl'):
            raise SetupError(f"{wheel.name} holds no compiled ops; the build's log is {log}.")
        target = self.cache / 'wheels' / self.wheel_key / wheel.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with wheel.open('rb') as file:
            os.fsync(file.fileno())
        os.replace(wheel, target)
        shutil.rmtree(build)
        return target


def meanwhile(stages: Sequence[Stage]) -> float:
    """Gigabytes needed only for a time: what one stage fetched, until it is installed."""
    return max(stage.downloaded for stage in stages)


def compile_jobs(meminfo: Path = Path('/proc/meminfo')) -> int:
    """Compiler processes that this machine's cores and free memory bear."""
    cores = len(os.sched_getaffinity(0))
    available = re.search(r'^MemAvailable:\s+(\d+) kB', meminfo.read_text(), re.MULTILINE)
    if available is None:
        return cores
    return max(1, min(cores, int(int(available[1]) * 1024 / GIGABYTE / GIGABYTES_PER_COMPILER)))


@contextlib.contextmanager
def progress(folder: Path, total: int, every: float = 15) -> Iterator[None]:
    """Count object files under ``folder`` and print a line whenever there are more of them."""
    def count_objects() -> int:
        return sum(1 for _ in folder.rglob('*.o'))

    started = time.monotonic()
    first = count_objects()
    finished = threading.Event()

    def watch() -> None:
        last = first
        while not finished.wait(every):
            count = count_objects()
            if count > last:
                last = count
                spent = time.monotonic() - started
                left = spent / (count - first) * (total - count)
                say(f'    {count} of {total} files, {duration(spent)} spent, about '
                    f'{duration(max(0.0, left))} left')

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def duration(seconds: float) -> str:
    """Seconds as a reader says them: ``'42 s'``, ``'3 min 05 s'``."""
    seconds = round(seconds)
    return f'{seconds} s' if seconds < 60 else f'{seconds // 60} min {seconds % 60:02d} s'


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog='./run setup', description='Set up .venv beside the checkout.',
        epilog='Stages: ' + '; '.join(f'{stage.name}: {stage.what}' for stage in STAGES) + '.')
    parser.add_argument('stages', nargs='*', metavar='stage',
                        help='stages to set up, with what they need; all of them unless told')
    parser.add_argument('--for', dest='purpose', choices=sorted(PURPOSES),
                        help='set up what this command of ./run needs')
    options = parser.parse_args(arguments)
    unknown = [name for name in options.stages if name not in STAGE_NAMES]
    if unknown:
        parser.error(f'unknown stage {unknown[0]!r}; there are: {", ".join(STAGE_NAMES)}')
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0 when all is set up, 1 with one sentence when not."""
    options = parse_arguments(arguments)
    names = options.stages or PURPOSES[options.purpose or 'tests']
    try:
        Environment(ROOT).set_up(names)
    except SetupError as error:
        print(f'freeatm_mm set-up: {error}', file=sys.stderr)
        return 1
    except OSError as error:
        print(f'freeatm_mm set-up: {error.filename or "the system"}: {error.strerror or error}; '
              'put it right and run the same command again.', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nfreeatm_mm set-up: interrupted; the same command goes on where it was.',
              file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
