#!/usr/bin/env python3
"""Set up an environment beside the checkout: what `./run` does before anything else.

Needs the standard library alone, since nothing is installed yet. Everything to install stands in
`requirements/`, one list of exact pins a part, and `uv` installs it: what is there already costs
nothing, and a set-up that was killed goes on where it was. Our own work is what uv does not do:
saying beforehand what disk and time it takes, and mmcv, whose C++ ops are compiled once for a user
and kept.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UV = '0.13.9'
MMCV = 'onedl-mmcv'
GIGABYTE = 1000**3
# Kept free beyond what is installed, so that a full disk is not found out half way.
SPARE_GIGABYTES = 0.5
# Needed by one compiler process of mmcv's ops at its worst (measured 0.8).
GIGABYTES_PER_COMPILER = 1.2
# Top-level folders that wheels install by mistake (model-index: tests; salesforce-lavis: all four).
# They would hide folders of the same name beside a script or a test, so they are taken out.
STRAY_PACKAGES = ('app', 'docs', 'projects', 'tests')
# What pip's settings are called in uv: an index of one's own is used without being told again.
UV_SETTINGS = {
    'PIP_INDEX_URL': 'UV_DEFAULT_INDEX',
    'PIP_FIND_LINKS': 'UV_FIND_LINKS',
    'PIP_CERT': 'SSL_CERT_FILE',
}


class SetupError(Exception):
    """What stops the set-up, as one sentence for the reader."""


@dataclass(frozen=True)
class Part:
    """Something to set up.

    Attributes:
        what: What it brings, for the announcement.
        gigabytes: Gigabytes (10^9 bytes) of disk, measured.
        minutes: Time on two cores, measured, downloads at 50 MB/s.
        needs: The parts that it stands on.
    """

    what: str
    gigabytes: float
    minutes: float
    needs: tuple[str, ...] = ('base',)


# Each has its list `requirements/NAME.txt`; 'mmcv-ops' puts a compiled mmcv in place of core's.
PARTS = {
    'base': Part('PyTorch 2.12.1 with its CUDA libraries (works on the CPU)', 6.4, 2, ()),
    'core': Part('OpenMMLab for pretraining (mmengine, mmpretrain, mmcv without ops)', 0.3, 0.3),
    'generation': Part('diffusers, transformers, webdataset', 0.2, 0.1, ('core',)),
    'report': Part('scikit-learn, scipy, pycocotools', 0.2, 0.1, ('core',)),
    'mmcv-ops': Part('mmcv compiled with its C++ ops', 0.5, 26, ('core',)),
    'downstream': Part(
        'OpenMMLab for detection and segmentation (mmdet, mmseg)',
        0.1,
        0.1,
        ('generation', 'report', 'mmcv-ops'),
    ),
    'prompts': Part('textblob, ijson and the openai client', 0.1, 0.1, ('generation', 'report')),
    'lavis': Part('LAVIS', 0.5, 0.3, ('prompts',)),
    'store': Part('pyarrow, Hugging Face datasets, s3fs', 0.3, 0.1, ('lavis',)),
    'ray': Part('Ray Data', 0.3, 0.1, ('store',)),
    'integrations': Part('lightly, TensorBoard and a local S3, for tests', 0.2, 0.2, ('ray',)),
    'dev': Part('pytest, hypothesis, ruff, mypy', 0.1, 0.1, ('core',)),
    'newest-generation': Part('the newest diffusers and transformers', 0.4, 0.1),
    'newest-dev': Part('pytest for the newest generators', 0.1, 0.1, ('newest-generation',)),
    'oldest-generation': Part('the oldest diffusers and transformers that work', 0.2, 0.1),
    'oldest-dev': Part('pytest for the oldest generators', 0.1, 0.1, ('oldest-generation',)),
    'docs': Part('mkdocs-material, mkdocstrings', 0.1, 0.1, ()),
}
# What a command of ./run needs, and in which folder.
PURPOSES = {
    'miniature': ('.venv', ('core', 'generation', 'report')),
    'tests': (
        '.venv',
        tuple(name for name in PARTS if not name.startswith(('newest-', 'oldest-', 'docs'))),
    ),
    'newest-generators': ('.venv-newest', ('newest-generation', 'newest-dev')),
    'oldest-generators': ('.venv-oldest', ('oldest-generation', 'oldest-dev')),
    'docs': ('.venv-docs', ('docs',)),
}


def say(text: str) -> None:
    """Print a line at once, so that it stands before the output of the processes it announces."""
    print(text, flush=True)


def with_needs(names: Iterable[str]) -> tuple[str, ...]:
    """Complete a choice of parts by what they need, in the order in which they are set up."""
    chosen: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in chosen:
            chosen.add(name)
            pending.extend(PARTS[name].needs)
    return tuple(name for name in PARTS if name in chosen)


def plain_name(name: str) -> str:
    """A package's name as all its spellings have in common."""
    return re.sub('[-_.]+', '-', name).lower()


def read_pins(path: Path) -> dict[str, str]:
    """Read a list of pins: `{name: version}`, with plain names.

    Raises:
        SetupError: If a line is not `name==version`.
    """
    pins = {}
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
        line = line.split('#', 1)[0].strip()
        if not line:
            continue
        name, separator, version = line.partition('==')
        if not separator or not name or not version:
            raise SetupError(f'{path} line {number}: {line!r} is no exact pin like name==1.2.3')
        pins[plain_name(name.strip())] = version.strip()
    return pins


def unpack_sdist(archive: Path, folder: Path) -> Path:
    """Unpack a source archive, nothing of it outside `folder`, and return its one top folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter='data')
    (top,) = folder.iterdir()
    return top


def check_platform() -> None:
    """Raise a `SetupError` where the pins can't be installed."""
    if sys.implementation.name != 'cpython' or sys.version_info[:2] != (3, 11):
        raise SetupError(
            f'freeatm_mm needs CPython 3.11, and {sys.executable} is '
            f'{platform.python_implementation()} {platform.python_version()}: '
            'install Python 3.11 or set FREEATM_PYTHON to its path'
        )
    if platform.system() != 'Linux' or platform.machine() != 'x86_64':
        raise SetupError(
            f'the pinned wheels are for Linux on x86_64, and this is '
            f'{platform.system()} on {platform.machine()}: install the extras of '
            'setup.cfg by hand'
        )


def check_compiler() -> None:
    """Raise a `SetupError` unless C++17 with Python's headers compiles here."""
    compiler = os.environ.get('CXX', 'c++')
    if shutil.which(compiler.split()[0]) is None:
        raise SetupError(
            f"mmcv's ops need a C++ compiler, and {compiler!r} is not found: install "
            'one (on Debian and Ubuntu: apt-get install g++) or set CXX'
        )
    include = sysconfig.get_path('include')
    if not (Path(include) / 'Python.h').is_file():
        raise SetupError(
            f"mmcv's ops need Python's headers, and {include}/Python.h is not there:"
            ' install them (on Debian and Ubuntu: apt-get install python3.11-dev)'
        )
    result = subprocess.run(
        [*compiler.split(), '-std=c++17', '-fsyntax-only', f'-I{include}', '-x', 'c++', '-'],
        input='#include <vector>\n#include <Python.h>\nint main() { return 0; }\n',
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ['no reason given'])[0]
        raise SetupError(
            f"the C++ compiler {compiler!r} can't compile a small C++17 program "
            f'({reason}): repair it or set CXX to another'
        )


def check_disk(needs: Sequence[tuple[Path, float]]) -> None:
    """Raise a `SetupError` unless every disk that is written to has the room.

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
        # uv links files from its cache where that is on the same disk: they take room once.
        disks[device] = (first, max(total, SPARE_GIGABYTES + gigabytes))
    for folder, gigabytes in disks.values():
        free = shutil.disk_usage(folder).free / GIGABYTE
        if free < gigabytes:
            raise SetupError(
                f'too little disk: the set-up needs {gigabytes:.1f} GB, and the disk '
                f'of {folder} has {free:.1f} GB free: make room and run the same '
                'command again'
            )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for another set-up that holds it.

    The processes started meanwhile inherit it: where this one is killed and leaves a compiler at
    work, the next set-up waits for its end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f'Waiting for another set-up that is at work ({path}).')
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Environment:
    """A virtual environment beside a checkout.

    Args:
        root: The checkout.
        folder: The virtual environment.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.python = folder / 'bin' / 'python'
        self.site_packages = folder / 'lib' / 'python3.11' / 'site-packages'
        caches = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
        self.cache = caches / 'freeatm_mm'
        self.uv_cache = Path(os.environ.get('UV_CACHE_DIR') or caches / 'uv')

    # --- what is there --------------------------------------------------------------------------

    def pins(self, name: str) -> dict[str, str]:
        """A part's list of pins; 'mmcv-ops' has none of its own."""
        return {} if name == 'mmcv-ops' else read_pins(self.root / 'requirements' / f'{name}.txt')

    def installed(self) -> dict[str, str]:
        """Names and versions of all that is installed, as `pins` gives those of a list.

        A package is whole once its INSTALLER is there, which is written after its files.
        """
        found = {}
        for info in self.site_packages.glob('*.dist-info'):
            name, _, version = info.name.removesuffix('.dist-info').partition('-')
            if (info / 'INSTALLER').exists():
                found[plain_name(name)] = version
        return found

    def missing(self, names: Sequence[str]) -> list[str]:
        """The parts among `names` of which something is not installed."""
        installed = self.installed()
        lacking = [name for name in names if not self.pins(name).items() <= installed.items()]
        if 'mmcv-ops' in names and not list((self.site_packages / 'mmcv').glob('_ext*.so')):
            lacking.append('mmcv-ops')
        return [name for name in names if name in lacking]

    def holds_package(self) -> bool:
        """Whether this checkout itself is installed, as its setup.cfg now is."""
        infos = list(self.site_packages.glob('freeatm_mm-*.dist-info/direct_url.json'))
        setup = (self.root / 'setup.cfg').stat().st_mtime
        return any(
            f'"{self.root.as_uri()}"' in info.read_text(encoding='utf-8')
            and info.stat().st_mtime >= setup
            for info in infos
        )

    def has_moved(self) -> bool:
        """Whether the environment was made at another place, which its scripts name."""
        try:
            return f'{self.folder}' not in (self.folder / 'bin' / 'activate').read_text('utf-8')
        except OSError:
            return True

    # --- doing it -------------------------------------------------------------------------------

    def set_up(self, names: Iterable[str]) -> None:
        """Install parts, what they need and the package itself, doing nothing twice.

        Raises:
            SetupError: What stopped it, in one sentence.
        """
        check_platform()
        names = with_needs(names)
        if not self.has_moved() and not self.missing(names) and self.holds_package():
            return
        with locked(self.root / '.cache' / f'setup{self.folder.name}.lock'):
            started = time.monotonic()
            todo = list(names) if self.has_moved() else self.missing(names)
            self.announce(todo)
            if self.has_moved():
                self.make_venv()
            self.clear_up()
            # One call for all lists: what needs no compiler is there before the compiler starts.
            pins = {name: version for part in names for name, version in self.pins(part).items()}
            mmcv = pins.pop(MMCV, None)
            self.install(f'{name}=={version}' for name, version in pins.items())
            if mmcv and self.installed().get(MMCV) != mmcv:
                # No cache: it would not tell an mmcv without ops from one that has them. uv builds
                # apart from the environment, where mmcv finds no torch and so compiles nothing.
                self.install([f'{MMCV}=={mmcv}'], '--no-cache')
            if 'mmcv-ops' in todo:
                self.install_compiled_mmcv()
            self.uv('--no-deps', '--no-build-isolation', '--quiet', '--editable', str(self.root))
            for stray in STRAY_PACKAGES:
                shutil.rmtree(self.site_packages / stray, ignore_errors=True)
            say(f'Set-up finished in {duration(time.monotonic() - started)}.')

    def announce(self, todo: Sequence[str]) -> None:
        """Say what will be done and what it takes, and find out beforehand what would stop it."""
        parts = {name: PARTS[name] for name in todo}
        if 'mmcv-ops' in parts:
            if self.cached_wheel() is not None:
                parts['mmcv-ops'] = Part('mmcv with the C++ ops that were compiled before', 0.1, 0)
            else:
                check_compiler()
        size = sum(part.gigabytes for part in parts.values())
        check_disk([(self.folder, size), (self.uv_cache, size), (self.cache, 0.5)])
        minutes = sum(part.minutes for part in parts.values())
        say(
            f'Setting up {self.folder}: about {max(1, round(minutes))} minutes on two cores and '
            f'{size:.1f} GB of disk, which lie in the cache of uv too ({self.uv_cache}; counted '
            'once on one disk). Safe to interrupt.'
        )
        for name, part in parts.items():
            say(f'  {name:<17} {part.gigabytes:>4.1f} GB {part.minutes:>5.1f} min  {part.what}')

    def make_venv(self) -> None:
        """Make the environment anew; one that was cut off or has moved is of no use."""
        result = subprocess.run(
            [sys.executable, '-m', 'venv', '--clear', str(self.folder)],
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            reason = ' '.join((result.stderr or result.stdout).split())[-300:]
            raise SetupError(f'the virtual environment {self.folder} could not be made: {reason}')

    def clear_up(self) -> None:
        """Take away packages that were cut off, which uv would take for installed."""
        for info in self.site_packages.glob('*.dist-info'):
            if not (info / 'INSTALLER').exists():
                shutil.rmtree(info)

    def variables(self, **changes: str) -> dict[str, str]:
        """Environment variables for uv and the compiler, without what would lead them astray."""
        misleading = (
            'PYTHONPATH',
            'PYTHONHOME',
            'PIP_USER',
            'PIP_TARGET',
            'PIP_PREFIX',
            'PIP_REQUIREMENT',
            'PIP_CONSTRAINT',
            'UV_CONSTRAINT',
            'UV_OVERRIDE',
            'UV_SYSTEM_PYTHON',
            'VIRTUAL_ENV',
            'CONDA_PREFIX',
        )
        variables = {k: v for k, v in os.environ.items() if k not in misleading}
        for pip, uv in UV_SETTINGS.items():
            if pip in variables:
                variables.setdefault(uv, variables[pip])
        return {
            **variables,
            'PYTHONNOUSERSITE': '1',
            'PIP_DISABLE_PIP_VERSION_CHECK': '1',
            'PATH': f'{self.folder / "bin"}{os.pathsep}{variables.get("PATH", "")}',
            **changes,
        }

    def uv(self, *arguments: str) -> None:
        """Run `uv pip install` in the environment, its progress and its complaints visible."""
        variables = self.variables()
        uv = self.folder / 'bin' / 'uv'
        if not uv.exists():
            found = shutil.which('uv', path=variables['PATH'])
            if found and _version_of(found) >= _numbers(UV):
                uv = Path(found)
            else:
                self.run(
                    [str(self.python), '-m', 'pip', 'install', '--quiet', f'uv=={UV}'],
                    variables,
                    f'pip could not install uv=={UV}',
                )
        self.run(
            [
                str(uv),
                'pip',
                'install',
                '--python',
                str(self.python),
                '--build-constraint',
                str(self.root / 'requirements' / 'base.txt'),
                *arguments,
            ],
            variables,
            'uv could not install everything',
        )

    def install(self, requirements: Iterable[str], *options: str) -> None:
        """Install exact pins, without looking for dependencies: the lists hold them all."""
        path = self.folder / 'freeatm_requirements.txt'
        path.write_text('\n'.join(requirements) + '\n', encoding='utf-8')
        self.uv('--no-deps', *options, '--requirement', str(path))

    def run(self, command: Sequence[str], variables: dict[str, str], failure: str) -> None:
        """Run a process that reads nothing; where it fails, its own words stand above ours."""
        code = subprocess.run(
            command, env=variables, stdin=subprocess.DEVNULL, close_fds=False
        ).returncode
        if code != 0:
            raise SetupError(
                f'{failure} (its reason stands above): put that right and run the '
                'same command again, it goes on where it was'
            )

    # --- mmcv's ops -----------------------------------------------------------------------------

    @property
    def wheel_key(self) -> str:
        """What a compiled mmcv depends on."""
        return (
            f'mmcv{self.pins("core")[MMCV]}-ops-torch{self.pins("base")["torch"]}-cp311-'
            f'{platform.machine()}'
        )

    def cached_wheel(self) -> Path | None:
        """The mmcv with ops that this user's cache holds, if any."""
        return next((self.cache / 'wheels' / self.wheel_key).glob('*.whl'), None)

    def install_compiled_mmcv(self) -> None:
        """Put mmcv with its ops in the place of the one without, compiling it once for a user."""
        with locked(self.cache / 'build' / f'{self.wheel_key}.lock'):
            wheel = self.cached_wheel() or self.compile_mmcv()
        self.uv('--no-deps', '--no-cache', '--reinstall-package', MMCV, str(wheel))
        result = subprocess.run(
            [str(self.python), '-c', 'import mmcv.ops'],
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            wheel.unlink()
            reason = (result.stderr.strip().splitlines() or ['no reason given'])[-1]
            raise SetupError(
                f"the compiled {wheel.name} can't be imported ({reason}) and has been "
                'thrown away: run the same command again to compile it anew'
            )

    def compile_mmcv(self) -> Path:
        """Compile mmcv's ops for the CPU and keep the wheel.

        The build folder lies in the cache until the wheel is there, and ninja passes over the files
        that it has compiled: an interrupted build goes on where it was.
        """
        check_compiler()
        version = self.pins('core')[MMCV]
        build = self.cache / 'build' / self.wheel_key
        source, wheels, log = build / 'source', build / 'wheels', build / 'build.log'
        if not source.exists():
            shutil.rmtree(build, ignore_errors=True)
            # pip, as uv downloads nothing without installing it; isolated, where no torch makes
            # mmcv think of compiling already.
            self.run(
                [
                    str(self.python),
                    '-m',
                    'pip',
                    'download',
                    '--quiet',
                    '--no-deps',
                    '--no-binary',
                    MMCV,
                    '--dest',
                    str(build / 'download'),
                    f'{MMCV}=={version}',
                ],
                self.variables(),
                f'pip could not download {MMCV}=={version}',
            )
            unpacked = unpack_sdist(
                next((build / 'download').glob('*.tar.gz')), build / 'unpacking'
            )
            os.replace(unpacked, source)
        total = sum(
            len(list((source / 'mmcv/ops/csrc/pytorch').glob(pattern)))
            for pattern in ('*.cpp', 'cpu/*.cpp')
        )
        variables = self.variables(
            # For the CPU, whatever this machine has: CUDA's ops would ask for nvcc.
            CUDA_VISIBLE_DEVICES='',
            FORCE_CUDA='0',
            FORCE_MLU='0',
            FORCE_MPS='0',
            FORCE_NPU='0',
            FORCE_MUSA='0',
            MMCV_WITH_DIOPI='0',
            MAX_JOBS=os.environ.get('MAX_JOBS', str(compile_jobs())),
        )
        shutil.rmtree(wheels, ignore_errors=True)
        say(f"Compiling {total} files of mmcv's ops, {variables['MAX_JOBS']} at a time; log: {log}")
        with log.open('w') as log_file, progress(source / 'build', total):
            code = subprocess.run(
                [
                    str(self.python),
                    '-m',
                    'pip',
                    'wheel',
                    '--verbose',
                    '--no-deps',
                    '--no-cache-dir',
                    '--no-build-isolation',
                    '--wheel-dir',
                    str(wheels),
                    str(source),
                ],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                close_fds=False,
            ).returncode
        wheel = next(wheels.glob('*-linux_x86_64.whl'), None)
        if code != 0 or wheel is None:
            signs = (' error: ', 'Killed signal', 'No space left on device')
            errors = [
                line.strip()
                for line in log.read_text(errors='replace').splitlines()
                if any(sign in line for sign in signs)
            ]
            reason = errors[0] if errors else f'exit code {code}'
            raise SetupError(f"mmcv's ops could not be compiled ({reason}); the whole log is {log}")
        target = self.cache / 'wheels' / self.wheel_key / wheel.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(wheel, target)
        shutil.rmtree(build)
        return target


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r'\d+', version)[:3])


def _version_of(program: str) -> tuple[int, ...]:
    """The version that `PROGRAM --version` tells; (0,) where it tells none."""
    result = subprocess.run(
        [program, '--version'], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return _numbers(result.stdout) or (0,)


def compile_jobs(meminfo: Path = Path('/proc/meminfo')) -> int:
    """Compiler processes that this machine's cores and free memory bear."""
    cores = len(os.sched_getaffinity(0))
    available = re.search(r'^MemAvailable:\s+(\d+) kB', meminfo.read_text(), re.MULTILINE)
    if available is None:
        return cores
    return max(1, min(cores, int(int(available[1]) * 1024 / GIGABYTE / GIGABYTES_PER_COMPILER)))


@contextlib.contextmanager
def progress(folder: Path, total: int, every: float = 15) -> Iterator[None]:
    """Count object files under `folder` and print a line whenever there are more of them."""

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
                say(
                    f'    {count} of {total} files, {duration(spent)} spent, about '
                    f'{duration(max(0.0, left))} left'
                )

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def duration(seconds: float) -> str:
    """Seconds as a reader says them: '42 s', '3 min 05 s'."""
    seconds = round(seconds)
    return f'{seconds} s' if seconds < 60 else f'{seconds // 60} min {seconds % 60:02d} s'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog='./run setup',
        description='Set up .venv beside the checkout.',
        epilog='Parts: ' + '; '.join(f'{name}: {part.what}' for name, part in PARTS.items()) + '.',
    )
    parser.add_argument(
        'parts',
        nargs='*',
        metavar='part',
        help='parts to set up, with what they need; all of them unless told',
    )
    parser.add_argument(
        '--for',
        dest='purpose',
        choices=sorted(PURPOSES),
        help='set up what this command of ./run needs',
    )
    args = parser.parse_args(argv)
    usual = PURPOSES['tests'][1]
    unknown = [name for name in args.parts if name not in usual]
    if unknown:
        parser.error(f'unknown part {unknown[0]!r}; there are: {", ".join(usual)}')
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when all is set up, 1 with one sentence when not."""
    args = parse_args(argv)
    folder, parts = PURPOSES[args.purpose or 'tests']
    try:
        Environment(ROOT, ROOT / folder).set_up(args.parts or parts)
    except SetupError as error:
        print(f'freeatm_mm set-up: {error}', file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f'freeatm_mm set-up: {error.filename or "the system"}: {error.strerror or error}; '
            'put it right and run the same command again',
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(
            '\nfreeatm_mm set-up: interrupted; the same command goes on where it was',
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
