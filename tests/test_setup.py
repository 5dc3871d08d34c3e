"""The set-up behind ``./run``: its lists of pins, its one-sentence errors, and doing nothing twice.

Nothing here reaches a network, where uv has to install something, it is a wheel made on the spot;
but for the tests that let uv resolve extras and lists, which are skipped where no index answers.
"""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / 'tools' / 'setup' / 'environment.py'

spec = importlib.util.spec_from_file_location('setup_environment', TOOL)
setup_environment = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = setup_environment
spec.loader.exec_module(setup_environment)

Environment = setup_environment.Environment
SetupError = setup_environment.SetupError
PURPOSES = setup_environment.PURPOSES
LISTS = sorted((ROOT / 'requirements').glob('*.txt'))


# --- the lists of pins ----------------------------------------------------------------------------


def read_extras() -> dict[str, list[Requirement]]:
    """The requirements of setup.cfg: those of every part under ``''``, then those of each extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    extras = dict(config['options.extras_require'])
    extras[''] = config['options']['install_requires']
    return {
        name: [Requirement(line) for line in text.split('\n') if line.strip()]
        for name, text in extras.items()
    }


def pins_of(purpose: str) -> dict[str, str]:
    """Every pin that a command of ./run installs, by canonical name."""
    _, parts = PURPOSES[purpose]
    return {
        canonicalize_name(name): version
        for part in setup_environment.with_needs(parts)
        if part != 'mmcv-ops'
        for name, version in setup_environment.read_pins(
            ROOT / 'requirements' / f'{part}.txt'
        ).items()
    }


def test_a_list_for_each_part_that_installs_pins():
    assert {path.stem for path in LISTS} == set(setup_environment.PARTS) - {'mmcv-ops'}


@pytest.mark.parametrize('path', LISTS, ids=lambda path: path.stem)
def test_lists_hold_exact_pins_and_nothing_else(path):
    """No option, no address of an index: the reader's own pip settings decide where to fetch."""
    for name, version in setup_environment.read_pins(path).items():
        assert str(Requirement(f'{name}=={version}').specifier) == f'=={version}'
        assert '*' not in version
    assert '://' not in path.read_text(encoding='utf-8')


def test_no_package_is_pinned_twice_and_no_second_opencv():
    names = [
        canonicalize_name(name)
        for path in LISTS
        if not path.stem.startswith(('newest-', 'oldest-', 'docs'))
        for name in setup_environment.read_pins(path)
    ]
    assert len(names) == len(set(names))
    assert [name for name in names if name.startswith('opencv')] == ['opencv-python-headless']


@pytest.mark.parametrize('line', ['torch', 'torch>=2', 'torch==', '--index-url http://x'])
def test_a_line_that_is_no_pin_is_named(tmp_path, line):
    path = tmp_path / 'list.txt'
    path.write_text(f'# comment\nnumpy==2.2.6\n{line}\n', encoding='utf-8')
    with pytest.raises(SetupError, match='line 3'):
        setup_environment.read_pins(path)


@pytest.mark.parametrize(
    'extra', sorted(set(read_extras()) - {'core-upstream', 'downstream-upstream'})
)
def test_pins_satisfy_the_ranges_of_setup_cfg(extra):
    pins = pins_of('tests')
    for requirement in read_extras()[extra]:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


# What a package names and the lists leave out or pin otherwise, on purpose: uv's overrides.
LEFT_OUT = """
# the newest one does for files on a disk, all that datasets reads here
fsspec==2026.9.0
# imported only by the augmenters of imaug that corrupt images
imagecorruptions-imaug; python_version < '3'
# opencv-python-headless is the same module without a window
opencv-python; python_version < '3'
opencv-python-headless==4.12.0.88
# never imported by 'import lavis'
contexttimer; python_version < '3'
ipython; python_version < '3'
opendatasets; python_version < '3'
plotly; python_version < '3'
pre-commit; python_version < '3'
python-magic; python_version < '3'
streamlit; python_version < '3'
# LAVIS pins them to versions of 2022; the ones of these lists work
fairscale==0.4.13
timm==1.0.31
transformers==4.53.3
"""


def resolve(tmp_path: Path, *arguments: str) -> dict[str, str]:
    """Let uv resolve something for CPython 3.11 on Linux, as the index stands today.

    Returns:
        Canonical name -> version of all that would be installed.
    """
    uv = Path(sys.executable).with_name('uv')
    if not uv.is_file():
        pytest.skip('uv is not installed beside this Python')
    result = subprocess.run(
        [
            str(uv),
            'pip',
            'compile',
            '--quiet',
            '--no-header',
            '--no-annotate',
            '--python-version',
            '3.11',
            '--python-platform',
            'x86_64-manylinux_2_28',
            *arguments,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    unreachable = ('error sending request', 'dns error', 'Failed to fetch', 'Could not connect')
    if result.returncode and any(words in result.stderr for words in unreachable):
        pytest.skip('no package index can be reached')
    assert result.returncode == 0, result.stderr
    return {
        canonicalize_name(name): version
        for name, version in (
            line.split(' ')[0].split('==') for line in result.stdout.splitlines() if line
        )
    }


@pytest.mark.parametrize('extra', sorted(read_extras()))
def test_each_extra_can_be_installed(tmp_path, extra):
    """From setup.cfg as it stands, by a resolver that knows no list of ours."""
    (tmp_path / 'freeatm_mm').mkdir()
    for name in ('setup.cfg', 'README.md', 'freeatm_mm/__init__.py'):  # what its metadata name
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / 'setup.py').write_text('from setuptools import setup\nsetup()\n')
    found = resolve(tmp_path, 'setup.cfg', *(['--extra', extra] if extra else []))
    for requirement in read_extras()[extra]:
        assert requirement.specifier.contains(
            found[canonicalize_name(requirement.name)], prereleases=True
        )


@pytest.mark.parametrize('purpose', sorted(PURPOSES))
def test_the_lists_of_a_command_are_complete_and_agree(tmp_path, purpose):
    """They are installed without looking for dependencies, so they must hold them all."""
    pins = pins_of(purpose)
    (tmp_path / 'pins.txt').write_text(''.join(f'{n}=={v}\n' for n, v in pins.items()))
    left_out = [
        line
        for line in LEFT_OUT.splitlines()
        if '==' not in line or canonicalize_name(line.split('==')[0]) in pins
    ]
    if purpose.endswith('-generators'):
        left_out = []
    (tmp_path / 'left_out.txt').write_text('\n'.join(left_out))
    found = resolve(
        tmp_path,
        'pins.txt',
        '--override',
        'left_out.txt',
        '--build-constraint',
        str(ROOT / 'requirements' / 'base.txt'),
    )
    assert found == pins


#: What the generators' tests do without in environments of their own, and skip what needs it.
NOT_BESIDE_GENERATORS = {
    *('bitsandbytes', 'gguf', 'torchao'),  # companions, each tested where it is installed
    *('datasets', 'ijson', 'openai', 'pyarrow', 'ray', 'spacy'),  # other sources of data
    *('pycocotools', 'skimage'),  # export, other masks for a store
}


@pytest.mark.parametrize('purpose', ['newest-generators', 'oldest-generators'])
def test_lists_hold_what_the_generators_tests_import(purpose):
    """Also what the package imports only when it is called, such as a tagger of nouns."""
    imported = set()
    for folder in ('freeatm_mm/attention', 'freeatm_mm/generation', 'freeatm_mm/prompts'):
        imported |= third_party(ROOT / folder)
    for folder in ('freeatm_mm/store', 'tests/attention', 'tests/generation'):
        imported |= third_party(ROOT / folder)
    pins = {name.replace('-', '_') for name in pins_of(purpose)} | {'PIL'}
    assert imported - pins - NOT_BESIDE_GENERATORS == set()


def third_party(folder: Path) -> set[str]:
    """What the modules of a folder import, or ask pytest for, that is no part of this project."""
    found = set()
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split('.')[0])
            elif isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'importorskip':
                found.add(node.args[0].value.split('.')[0])
    own = {'freeatm_mm', 'helpers', *(path.stem for path in (ROOT / 'tools').rglob('*.py'))}
    return found - own - sys.stdlib_module_names


def test_the_package_itself_requires_no_openmmlab_so_that_forks_and_upstream_both_do():
    openmmlab = {'mmengine', 'mmcv-lite', 'mmpretrain', 'mmdet', 'mmsegmentation'}
    assert openmmlab.isdisjoint(requirement.name for requirement in read_extras()[''])
    extras = read_extras()
    assert {r.name for r in extras['core-upstream'] + extras['downstream-upstream']} >= openmmlab


def test_every_folder_with_modules_is_a_package():
    """What has no ``__init__.py`` would be left out of the installed package."""
    for module in (ROOT / 'freeatm_mm').rglob('*.py'):
        assert (module.parent / '__init__.py').is_file(), module.parent


# --- which parts, in which order ------------------------------------------------------------------


def test_the_main_job_does_not_wait_for_a_compiler():
    assert 'mmcv-ops' not in setup_environment.with_needs(PURPOSES['miniature'][1])


def test_needs_come_before_what_needs_them():
    order = list(setup_environment.PARTS)
    for name, part in setup_environment.PARTS.items():
        assert all(order.index(need) < order.index(name) for need in part.needs)
    assert setup_environment.with_needs(['report']) == ('base', 'core', 'report')


# --- a small checkout of its own ------------------------------------------------------------------


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """Write a wheel by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f'{name}-{version}.dist-info'
    members = {
        **files,
        f'{info}/METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n',
        f'{info}/WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n'
        'Tag: py3-none-any\n',
    }
    members[f'{info}/RECORD'] = ''.join(f'{member},,\n' for member in [*members, f'{info}/RECORD'])
    path = folder / f'{name}-{version}-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        for member, text in members.items():
            archive.writestr(member, text)
    return path


def clean_environment(**changes: str) -> dict[str, str]:
    """Environment variables without this machine's settings of pip and uv."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(('PIP_', 'UV_')) and name not in ('CXX', 'FREEATM_PYTHON')
    }
    return {**environment, 'PIP_CONFIG_FILE': os.devnull, 'UV_NO_CONFIG': '1', **changes}


def make_checkout(root: Path) -> SimpleNamespace:
    """A checkout whose part ``base`` is one small package, found without a network."""
    (root / 'tools' / 'setup').mkdir(parents=True)
    shutil.copy(TOOL, root / 'tools' / 'setup')
    shutil.copytree(ROOT / 'requirements', root / 'requirements')
    for name in ('setup.cfg', 'run'):
        shutil.copy(ROOT / name, root / name)
    # Built by copying a wheel: setuptools would have to be installed first.
    wheels = root / 'wheels'
    package = make_wheel(root / 'package', 'freeatm_mm', '0.1.0', {'freeatm_mm.pth': f'{root}\n'})
    (root / 'pyproject.toml').write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (root / 'backend.py').write_text(
        'import shutil\n'
        'def build_editable(folder, *options):\n'
        f'    return shutil.copy({str(package)!r}, folder).rsplit("/", 1)[1]\n'
    )
    for version in ('2.9.1', '2.9.2'):
        # 'tests' is what some wheels bring by mistake.
        make_wheel(
            wheels,
            'torch',
            version,
            {'torch.py': f'version = {version!r}\n', 'tests/__init__.py': ''},
        )
    pins = root / 'requirements' / 'base.txt'
    pins.write_text('torch==2.9.1\n', encoding='utf-8')
    uv = Path(sys.executable).parent  # so that none has to be downloaded
    environment = clean_environment(
        UV_OFFLINE='1',
        UV_FIND_LINKS=str(wheels),
        XDG_CACHE_HOME=str(root / 'user_cache'),
        PATH=f'{uv}{os.pathsep}{os.environ["PATH"]}',
    )
    return SimpleNamespace(
        root=root,
        wheels=wheels,
        environment=environment,
        pins=pins,
        site=root / '.venv' / 'lib' / 'python3.11' / 'site-packages',
    )


def set_up(checkout: SimpleNamespace, *parts: str, **changes: str) -> subprocess.CompletedProcess:
    """Run the tool in a checkout as ``./run setup`` does."""
    return subprocess.run(
        [sys.executable, str(checkout.root / 'tools' / 'setup' / TOOL.name), *parts],
        env={**checkout.environment, **changes},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def assert_one_sentence(result: subprocess.CompletedProcess, *words: str) -> None:
    """The set-up stopped with exit code 1 and one line of its own, the last, with ``words``."""
    assert result.returncode == 1, result.stdout + result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert 'Traceback' not in result.stderr
    assert all(word in last for word in words), result.stderr


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> SimpleNamespace:
    """A checkout whose part ``base`` is done; tests leave it so."""
    if not Path(sys.executable).with_name('uv').is_file():
        pytest.skip('uv is not installed beside this Python')
    checkout = make_checkout(tmp_path_factory.mktemp('setup') / 'checkout')
    checkout.first = set_up(checkout, 'base')
    assert checkout.first.returncode == 0, checkout.first.stdout + checkout.first.stderr
    return checkout


@pytest.fixture
def empty_checkout(tmp_path) -> SimpleNamespace:
    """A checkout where nothing has been set up."""
    return make_checkout(tmp_path / 'checkout')


# --- doing nothing twice, and going on after an interruption --------------------------------------


def snapshot(checkout: SimpleNamespace) -> dict[Path, int]:
    """Time of change of every file of the environment."""
    return {
        path: path.stat().st_mtime_ns
        for path in (checkout.root / '.venv').rglob('*')
        if path.is_file() and path.suffix != '.pyc'
    }


def test_first_run_announces_and_installs(checkout):
    assert 'GB of disk' in checkout.first.stdout and 'minutes' in checkout.first.stdout
    assert (checkout.site / 'torch.py').is_file()


def test_stray_top_level_packages_are_taken_out(checkout):
    assert not (checkout.site / 'tests').exists()


def test_second_run_does_nothing(checkout):
    before = snapshot(checkout)
    result = set_up(checkout, 'base')
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
    assert snapshot(checkout) == before


def test_a_comment_changes_nothing_but_a_new_pin_is_installed(checkout):
    checkout.pins.write_text('# a comment\ntorch==2.9.1\n', encoding='utf-8')
    assert set_up(checkout, 'base').stdout == ''
    checkout.pins.write_text('torch==2.9.2\n', encoding='utf-8')
    try:
        result = set_up(checkout, 'base')
        assert result.returncode == 0, result.stderr
        assert '2.9.2' in (checkout.site / 'torch.py').read_text()
    finally:
        checkout.pins.write_text('torch==2.9.1\n', encoding='utf-8')
        assert set_up(checkout, 'base').returncode == 0


def test_a_package_that_was_cut_off_is_installed_again(checkout):
    """Killed while files were written: metadata that look whole, a module that is not there."""
    (checkout.site / 'torch.py').unlink()
    (checkout.site / 'torch-2.9.1.dist-info' / 'INSTALLER').unlink()
    result = set_up(checkout, 'base')
    assert result.returncode == 0, result.stderr
    assert (checkout.site / 'torch.py').is_file()
    assert set_up(checkout, 'base').stdout == ''


def test_a_second_set_up_waits_for_the_first(checkout):
    checkout.pins.write_text('torch==2.9.2\n', encoding='utf-8')
    try:
        with setup_environment.locked(checkout.root / '.cache' / 'setup.venv.lock'):
            second = subprocess.Popen(
                [sys.executable, str(checkout.root / 'tools' / 'setup' / TOOL.name), 'base'],
                env=checkout.environment,
                stdout=subprocess.PIPE,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            assert 'Waiting for another set-up' in second.stdout.readline()
            assert '2.9.1' in (checkout.site / 'torch.py').read_text()
        second.communicate()
        assert second.returncode == 0
        assert '2.9.2' in (checkout.site / 'torch.py').read_text()
    finally:
        checkout.pins.write_text('torch==2.9.1\n', encoding='utf-8')
        assert set_up(checkout, 'base').returncode == 0


def test_killed_then_goes_on(checkout):
    shutil.rmtree(checkout.site / 'torch-2.9.1.dist-info')
    process = subprocess.Popen(
        [sys.executable, str(checkout.root / 'tools' / 'setup' / TOOL.name), 'base'],
        env=checkout.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert 'Setting up' in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert set_up(checkout, 'base').returncode == 0
    assert (checkout.site / 'torch-2.9.1.dist-info' / 'INSTALLER').is_file()


def test_an_environment_that_was_moved_is_made_anew(checkout, tmp_path):
    assert not Environment(checkout.root, checkout.root / '.venv').has_moved()
    elsewhere = tmp_path / '.venv'
    (elsewhere / 'bin').mkdir(parents=True)
    shutil.copy(checkout.root / '.venv' / 'bin' / 'activate', elsewhere / 'bin')
    assert Environment(tmp_path, elsewhere).has_moved()


def test_settings_of_pip_are_taken_over(empty_checkout, monkeypatch):
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1/simple')
    monkeypatch.delenv('UV_DEFAULT_INDEX', raising=False)
    monkeypatch.setenv('PYTHONPATH', '/elsewhere')
    variables = Environment(empty_checkout.root, empty_checkout.root / '.venv').variables()
    assert variables['UV_DEFAULT_INDEX'] == 'http://127.0.0.1/simple'
    assert 'PYTHONPATH' not in variables


# --- one-sentence errors --------------------------------------------------------------------------


def run_with_pythons(
    checkout: SimpleNamespace, pythons: dict[str, str], **changes: str
) -> subprocess.CompletedProcess:
    """Run ``./run setup`` where PATH holds only these scripts and what the script itself uses."""
    binaries = checkout.root / 'bin'
    binaries.mkdir()
    for name in ('bash', 'dirname', 'head'):
        (binaries / name).symlink_to(shutil.which(name))
    for name, text in pythons.items():
        (binaries / name).write_text(f'#!/bin/sh\n{text}\n')
        (binaries / name).chmod(0o755)
    return subprocess.run(
        [str(binaries / 'bash'), str(checkout.root / 'run'), 'setup', 'base'],
        env={**checkout.environment, 'PATH': str(binaries), **changes},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_wrong_python(empty_checkout):
    fake = 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi'
    result = run_with_pythons(empty_checkout, {'python3': fake})
    assert_one_sentence(result, 'CPython 3.11', 'Python 3.9.2', 'FREEATM_PYTHON')
    assert not (empty_checkout.root / '.venv').exists()


def test_no_python(empty_checkout):
    assert_one_sentence(run_with_pythons(empty_checkout, {}), 'CPython 3.11', 'install')


def test_the_python_that_the_reader_names_is_wrong(empty_checkout):
    good = f'exec {sys.executable} "$@"'
    result = run_with_pythons(empty_checkout, {'python3': good}, FREEATM_PYTHON='/nowhere/python')
    assert_one_sentence(result, 'FREEATM_PYTHON=/nowhere/python')


def test_wrong_python_for_the_tool_itself(monkeypatch, capsys):
    monkeypatch.setattr(setup_environment.sys, 'version_info', (3, 12, 1))
    monkeypatch.setattr(setup_environment.platform, 'python_version', lambda: '3.12.1')
    assert setup_environment.main(['base']) == 1
    assert 'CPython 3.11' in capsys.readouterr().err


def test_missing_compiler_is_found_out_before_anything_is_done(empty_checkout):
    empty = empty_checkout.root / 'empty'
    empty.mkdir()
    result = set_up(empty_checkout, 'mmcv-ops', PATH=str(empty))
    assert_one_sentence(result, 'C++ compiler', "'c++'", 'g++')
    assert not (empty_checkout.root / '.venv').exists()


def test_broken_compiler(empty_checkout):
    compiler = empty_checkout.root / 'broken'
    compiler.write_text('#!/bin/sh\necho no standard library >&2\nexit 1\n')
    compiler.chmod(0o755)
    result = set_up(empty_checkout, 'mmcv-ops', CXX=str(compiler))
    assert_one_sentence(result, str(compiler), 'no standard library', 'CXX')


def test_missing_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_environment.shutil, 'which', lambda name: '/usr/bin/c++')
    monkeypatch.setattr(setup_environment.sysconfig, 'get_path', lambda name: str(tmp_path))
    with pytest.raises(SetupError, match='headers'):
        setup_environment.check_compiler()


def test_too_little_disk(empty_checkout, monkeypatch, capsys):
    monkeypatch.setattr(setup_environment, 'ROOT', empty_checkout.root)
    monkeypatch.setattr(
        setup_environment.shutil, 'disk_usage', lambda folder: SimpleNamespace(free=2 * 1000**3)
    )
    assert setup_environment.main(['base']) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert 'too little disk' in error and 'has 2.0 GB free' in error
    assert not (empty_checkout.root / '.venv').exists()


def test_folders_of_one_disk_share_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(
        setup_environment.shutil, 'disk_usage', lambda folder: SimpleNamespace(free=10 * 1000**3)
    )
    spare = setup_environment.SPARE_GIGABYTES
    setup_environment.check_disk([(tmp_path / 'a' / 'b', 10.0 - spare), (tmp_path / 'c', 9.0)])
    with pytest.raises(SetupError, match=r'needs 10\.1 GB'):
        setup_environment.check_disk([(tmp_path / 'a', 1.0), (tmp_path / 'c', 10.1 - spare)])


@pytest.mark.parametrize(
    'changes',
    [
        pytest.param(
            dict(
                UV_OFFLINE='0',
                UV_FIND_LINKS='',
                UV_HTTP_RETRIES='0',
                UV_DEFAULT_INDEX='http://127.0.0.1:9/simple',
            ),
            id='no-network',
        ),
        pytest.param({}, id='a-pin-that-the-index-lacks'),
    ],
)
def test_what_cannot_be_installed_goes_on_once_it_can(checkout, changes):
    checkout.pins.write_text('torch==2.9.2\n' if changes else 'torch==2.9.3\n', encoding='utf-8')
    try:
        result = set_up(checkout, 'base', **changes)
        assert_one_sentence(result, 'uv could not install', 'again')
        assert 'torch' in result.stderr
    finally:
        checkout.pins.write_text('torch==2.9.1\n', encoding='utf-8')
    assert set_up(checkout, 'base').returncode == 0


# --- mmcv's ops -----------------------------------------------------------------------------------


def put_wheel_in_cache(environment: Environment, ops: str) -> Path:
    """Let the user's cache hold an mmcv whose ``mmcv.ops`` is ``ops``."""
    return make_wheel(
        environment.cache / 'wheels' / environment.wheel_key,
        'onedl_mmcv',
        '2.3.6',
        {'mmcv/__init__.py': '', 'mmcv/_ext.so': '', 'mmcv/ops.py': ops},
    )


@pytest.fixture
def with_mmcv(checkout, monkeypatch) -> Environment:
    """A checkout whose part ``core`` is mmcv alone."""
    monkeypatch.setenv('XDG_CACHE_HOME', checkout.environment['XDG_CACHE_HOME'])
    core = checkout.root / 'requirements' / 'core.txt'
    before = core.read_text(encoding='utf-8')
    core.write_text('onedl-mmcv==2.3.6\n', encoding='utf-8')
    make_wheel(checkout.wheels, 'onedl_mmcv', '2.3.6', {'mmcv/__init__.py': ''})
    yield Environment(checkout.root, checkout.root / '.venv')
    core.write_text(before, encoding='utf-8')
    shutil.rmtree(checkout.site / 'mmcv', ignore_errors=True)
    shutil.rmtree(checkout.site / 'onedl_mmcv-2.3.6.dist-info', ignore_errors=True)


def test_a_wheel_compiled_before_needs_no_compiler(checkout, with_mmcv):
    put_wheel_in_cache(with_mmcv, 'compiled = True\n')
    result = set_up(checkout, 'mmcv-ops', CXX='no-compiler')
    assert result.returncode == 0, result.stderr
    assert 'compiled before' in result.stdout
    assert (checkout.site / 'mmcv' / 'ops.py').is_file()
    assert set_up(checkout, 'mmcv-ops').stdout == ''


def test_a_compiled_wheel_that_does_not_load_is_thrown_away(checkout, with_mmcv):
    wheel = put_wheel_in_cache(with_mmcv, "raise ImportError('undefined symbol')\n")
    assert_one_sentence(set_up(checkout, 'mmcv-ops'), 'undefined symbol', 'thrown away')
    assert not wheel.exists()


def test_the_cache_keeps_wheels_of_other_versions_apart(empty_checkout, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', empty_checkout.environment['XDG_CACHE_HOME'])
    environment = Environment(empty_checkout.root, empty_checkout.root / '.venv')
    put_wheel_in_cache(environment, '')
    assert environment.cached_wheel() is not None
    empty_checkout.pins.write_text('torch==2.9.2\n')
    assert environment.cached_wheel() is None


def test_progress_counts_compiled_files(tmp_path, capsys):
    with setup_environment.progress(tmp_path, total=4, every=0.01):
        (tmp_path / 'first.o').touch()
        while '1 of 4 files' not in capsys.readouterr().out:
            time.sleep(0.01)


@pytest.mark.parametrize(
    'member, fine', [('source/a.txt', True), ('../a.txt', False), ('source/../../a.txt', False)]
)
def test_a_source_archive_stays_in_its_folder(tmp_path, member, fine):
    archive = tmp_path / 'archive.tar.gz'
    (tmp_path / 'file').write_text('text')
    with tarfile.open(archive, 'w:gz') as tar:
        info = tarfile.TarInfo(member)
        info.size = 4
        with (tmp_path / 'file').open('rb') as file:
            tar.addfile(info, file)
    if fine:
        folder = setup_environment.unpack_sdist(archive, tmp_path / 'out')
        assert (folder / 'a.txt').read_text() == 'text'
    else:
        with pytest.raises(tarfile.OutsideDestinationError):
            setup_environment.unpack_sdist(archive, tmp_path / 'out')


@pytest.mark.parametrize(
    'text, jobs',
    [
        ('MemFree: 100 kB\nMemAvailable:    5000000 kB\n', 4),
        ('MemAvailable: 500000 kB\n', 1),
        ('MemAvailable: 500000000 kB\n', 8),
        ('MemFree: 100 kB\n', 8),
    ],
)
def test_compile_jobs_follow_cores_and_memory(tmp_path, monkeypatch, text, jobs):
    monkeypatch.setattr(setup_environment.os, 'sched_getaffinity', lambda pid: set(range(8)))
    (tmp_path / 'meminfo').write_text(text)
    assert setup_environment.compile_jobs(tmp_path / 'meminfo') == jobs


@pytest.mark.parametrize(
    'seconds, text', [(0.4, '0 s'), (59.4, '59 s'), (59.6, '1 min 00 s'), (185, '3 min 05 s')]
)
def test_duration(seconds, text):
    assert setup_environment.duration(seconds) == text


# --- the scripts ----------------------------------------------------------------------------------


def make_stub_checkout(root: Path) -> Path:
    """The two scripts around a set-up and a Python that only print what they are called with."""
    for name in ('run', '.ci/run'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / 'tools' / 'setup').mkdir(parents=True)
    (root / 'tools' / 'miniature').mkdir()
    (root / 'tools' / 'miniature' / 'run.py').write_text(
        'import sys\nprint("miniature", *sys.argv[1:])\n'
    )
    (root / 'tools' / 'setup' / TOOL.name).write_text(
        'import sys\nprint("setup", *sys.argv[1:], flush=True)\n'
    )
    python = root / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho python "$@" threads=$OMP_NUM_THREADS\nexit 7\n')
    python.chmod(0o755)
    return root


def call(root: Path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run one of the scripts from another folder."""
    environment = clean_environment(FREEATM_PYTHON=sys.executable)
    environment.pop('OMP_NUM_THREADS', None)
    environment.pop('FREEATM_TEST_WORKERS', None)
    return subprocess.run(
        ['bash', str(root / script), *arguments],
        cwd='/',
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_run_miniature_passes_arguments_and_exit_code(tmp_path):
    result = call(make_stub_checkout(tmp_path), 'run', 'miniature', '--seeds', '0 1')
    assert result.returncode == 7
    assert result.stdout.splitlines() == [
        'setup --for miniature',
        'python tools/miniature/run.py --seeds 0 1 threads=',
    ]


@pytest.mark.parametrize('script, arguments', [('run', ['tests']), ('.ci/run', [])])
def test_run_tests_and_ci_are_the_same(tmp_path, script, arguments):
    result = call(make_stub_checkout(tmp_path), script, *arguments)
    assert result.returncode == 7
    assert result.stdout.splitlines() == [
        'setup --for tests',
        'python -m pytest -n 2 --dist loadfile --max-worker-restart 0 threads=1',
    ]


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['miniature', '--help'], 'miniature --help'),
        (['miniature', '--seeds', '2', '--dry-run'], 'miniature --seeds 2 --dry-run'),
        (['tests', '-h'], 'Usage: ./run tests'),
        (['newest-generators', '--help'], 'Usage: ./run new'),
        (['oldest-generators', '--help'], 'Usage: ./run old'),
        (['docs', '--help'], 'Usage: ./run docs'),
    ],
)
def test_who_only_looks_waits_for_no_set_up(tmp_path, arguments, words):
    result = call(make_stub_checkout(tmp_path), 'run', *arguments)
    assert result.returncode == 0
    assert result.stdout.startswith(words)


@pytest.mark.parametrize('option', ['--help', '--dry-run'])
def test_what_only_looks_needs_nothing_but_the_standard_library(tmp_path, option):
    tool = ROOT / 'tools/miniature/run.py'
    result = subprocess.run(
        [sys.executable, '-I', '-S', str(tool), option, '--out', str(tmp_path / 'out')],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (result.returncode, result.stderr) == (0, '')
    assert 'mocov2' in result.stdout


def test_a_failed_set_up_ends_the_command(tmp_path):
    root = make_stub_checkout(tmp_path)
    (root / 'tools' / 'setup' / TOOL.name).write_text('import sys\nsys.exit(1)\n')
    result = call(root, 'run', 'tests')
    assert (result.returncode, result.stdout) == (1, '')


@pytest.mark.parametrize('arguments, code', [([], 2), (['nonsense'], 2), (['--help'], 0)])
def test_run_says_what_it_does(tmp_path, arguments, code):
    result = call(make_stub_checkout(tmp_path), 'run', *arguments)
    assert result.returncode == code
    assert './run miniature' in result.stdout + result.stderr


def test_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit) as raised:
        setup_environment.main(['nonsense'])
    assert raised.value.code == 2
    assert 'nonsense' in capsys.readouterr().err
