"""The set-up behind ``./run``: its lists of pins, its one-sentence errors, and doing nothing twice.

Nothing here reaches a network: where pip has to install something, it is a wheel made on the spot.
"""
from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import socket
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
TOOL = ROOT / 'tools' / 'setup_environment.py'

spec = importlib.util.spec_from_file_location('setup_environment', TOOL)
setup_environment = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = setup_environment
spec.loader.exec_module(setup_environment)

Environment = setup_environment.Environment
SetupError = setup_environment.SetupError
LISTS = sorted((ROOT / 'requirements').glob('*.txt'))


# --- the lists of pins ----------------------------------------------------------------------------


def read_extras() -> dict[str, list[Requirement]]:
    """The requirements of setup.cfg: those of every part under ``''``, then those of each extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    extras = dict(config['options.extras_require'])
    extras[''] = config['options']['install_requires']
    return {name: [Requirement(line) for line in text.split('\n') if line.strip()]
            for name, text in extras.items()}


def all_pins() -> dict[str, str]:
    """Every pin of every list, by canonical name."""
    return {canonicalize_name(name): version
            for path in LISTS for name, version in setup_environment.read_pins(path).items()}


def test_a_list_for_each_stage_that_installs_pins():
    without_list = {'venv', 'mmcv-ops', 'package'}
    assert {path.stem for path in LISTS} == set(setup_environment.STAGE_NAMES) - without_list


@pytest.mark.parametrize('path', LISTS, ids=lambda path: path.stem)
def test_lists_hold_exact_pins_and_nothing_else(path):
    """No option, no address of an index: the reader's own pip settings decide where to fetch."""
    for name, version in setup_environment.read_pins(path).items():
        assert str(Requirement(f'{name}=={version}').specifier) == f'=={version}'
        assert '*' not in version
    assert '://' not in path.read_text(encoding='utf-8')


def test_no_package_is_pinned_twice_and_no_second_opencv():
    names = [canonicalize_name(name) for path in LISTS
             for name in setup_environment.read_pins(path)]
    assert len(names) == len(set(names))
    assert [name for name in names if name.startswith('opencv')] == ['opencv-python-headless']


@pytest.mark.parametrize('line', ['torch', 'torch>=2', 'torch==', '--index-url http://x'])
def test_a_line_that_is_no_pin_is_named(tmp_path, line):
    path = tmp_path / 'list.txt'
    path.write_text(f'# comment\nnumpy==2.2.6\n{line}\n', encoding='utf-8')
    with pytest.raises(SetupError, match='line 3'):
        setup_environment.read_pins(path)


@pytest.mark.parametrize('extra', sorted(set(read_extras()) - {'core-upstream',
                                                               'downstream-upstream'}))
def test_pins_satisfy_the_ranges_of_setup_cfg(extra):
    pins = all_pins()
    for requirement in read_extras()[extra]:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


# What a package names and the lists leave out or pin otherwise, on purpose.
PASSED_OVER = {
    ('datasets', 'fsspec'),  # the newest one does for files on a disk, all that is read here
    ('imaug', 'imagecorruptions-imaug'),  # imported only by the augmenters that corrupt images
    ('imaug', 'opencv-python'),  # opencv-python-headless is the same module without a window
    ('onedl-mmcv', 'opencv-python'),
    ('onedl-mmsegmentation', 'opencv-python'),
    *(('salesforce-lavis', name) for name in (
        # never imported by 'import lavis'
        'contexttimer', 'ipython', 'opendatasets', 'plotly', 'pre-commit', 'python-magic',
        'streamlit', 'scikit-image',
        # pinned to versions of 2022; the ones of these lists work
        'fairscale', 'opencv-python-headless', 'timm', 'transformers')),
}


@pytest.mark.skipif(not Path(sys.prefix, 'freeatm_stamps').is_dir(),
                    reason='looks at what ./run setup has installed, and this is another Python')
def test_the_lists_are_complete_and_agree():
    """``pip install --no-deps`` looks for no dependency, so the lists must hold them all."""
    pins = all_pins()
    stage_of = {canonicalize_name(name): path.stem for path in LISTS
                for name in setup_environment.read_pins(path)}
    problems = []
    for name, version in pins.items():
        distribution = importlib.metadata.distribution(name)
        if distribution.version != version:
            problems.append(f'{name} is {distribution.version} where {version} is pinned')
        for text in distribution.requires or ():
            requirement = Requirement(text)
            needed = canonicalize_name(requirement.name)
            if (name, needed) in PASSED_OVER:
                continue
            if requirement.marker and not requirement.marker.evaluate({'extra': ''}):
                continue
            if needed not in pins:
                problems.append(f'{name} needs {requirement}, which no list holds')
            elif not requirement.specifier.contains(pins[needed], prereleases=True):
                problems.append(f'{name} needs {requirement}, and {pins[needed]} is pinned')
            elif stage_of[needed] not in setup_environment.with_needs([stage_of[name]]):
                problems.append(f'{name} needs {needed} of a later stage, {stage_of[needed]}')
    assert problems == []


def test_the_package_itself_requires_no_openmmlab_so_that_forks_and_upstream_both_do():
    openmmlab = {'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmsegmentation'}
    assert openmmlab.isdisjoint(requirement.name for requirement in read_extras()[''])
    extras = read_extras()
    assert {r.name for r in extras['core-upstream'] + extras['downstream-upstream']} >= openmmlab


def test_every_folder_with_modules_is_a_package():
    """What has no ``__init__.py`` would be left out of the installed package."""
    for module in (ROOT / 'freeatm_mm').rglob('*.py'):
        assert (module.parent / '__init__.py').is_file(), module.parent


# --- which stages, in which order -----------------------------------------------------------------


@pytest.mark.parametrize('purpose', sorted(setup_environment.PURPOSES))
def test_a_purpose_names_all_the_stages_it_needs(purpose):
    names = setup_environment.PURPOSES[purpose]
    assert setup_environment.with_needs(names) == names


def test_the_main_job_does_not_wait_for_a_compiler():
    assert 'mmcv-ops' not in setup_environment.PURPOSES['miniature']


def test_needs_come_before_what_needs_them():
    order = setup_environment.STAGE_NAMES
    for name in order:
        assert all(order.index(need) < order.index(name) for need in setup_environment.NEEDS[name])
    assert setup_environment.with_needs(['report']) == ('venv', 'base', 'core', 'report')


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
    """Environment variables without this machine's pip settings."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith('PIP_') and name not in ('CXX', 'FREEATM_PYTHON')}
    return {**environment, 'PIP_CONFIG_FILE': os.devnull, **changes}


def make_checkout(root: Path) -> SimpleNamespace:
    """A checkout whose stage ``base`` is one small package, found without a network."""
    (root / 'tools').mkdir(parents=True)
    shutil.copy(TOOL, root / 'tools')
    shutil.copytree(ROOT / 'requirements', root / 'requirements')
    for name in ('setup.cfg', 'pyproject.toml', 'run'):
        shutil.copy(ROOT / name, root / name)
    (root / 'requirements' / 'base.txt').write_text('torch==2.9.1\n', encoding='utf-8')
    wheels = root / 'wheels'
    for version in ('2.9.1', '2.9.2'):
        # 'tests' is what some wheels bring by mistake.
        make_wheel(wheels, 'torch', version, {'torch.py': f'version = {version!r}\n',
                                              'tests/__init__.py': ''})
    environment = clean_environment(PIP_NO_INDEX='1', PIP_FIND_LINKS=str(wheels),
                                    XDG_CACHE_HOME=str(root / 'user_cache'))
    return SimpleNamespace(root=root, wheels=wheels, environment=environment,
                           site=root / '.venv' / 'lib' / 'python3.11' / 'site-packages',
                           stamps=root / '.venv' / 'freeatm_stamps',
                           pins=root / 'requirements' / 'base.txt')


def set_up(checkout: SimpleNamespace, *stages: str, **changes: str) -> subprocess.CompletedProcess:
    """Run the tool in a checkout as ``./run setup`` does."""
    return subprocess.run(
        [sys.executable, str(checkout.root / 'tools' / TOOL.name), *stages],
        env={**checkout.environment, **changes}, capture_output=True, text=True,
        stdin=subprocess.DEVNULL)


def assert_one_sentence(result: subprocess.CompletedProcess, *words: str) -> None:
    """The set-up stopped with exit code 1 and one line that holds ``words``."""
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert all(word in lines[0] for word in words), lines[0]


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> SimpleNamespace:
    """A checkout whose stages ``venv`` and ``base`` are done; tests leave it so."""
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
    return {path: path.stat().st_mtime_ns for path in (checkout.root / '.venv').rglob('*')
            if path.is_file() and path.suffix != '.pyc'}


def test_first_run_announces_and_installs(checkout):
    assert 'GB of disk' in checkout.first.stdout and 'minutes' in checkout.first.stdout
    assert '[1/2] venv' in checkout.first.stdout and '[2/2] base' in checkout.first.stdout
    assert (checkout.site / 'torch.py').is_file()
    assert json.loads((checkout.stamps / 'base.json').read_text())['seconds'] >= 0


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
        assert '[1/1] base' in result.stdout
        assert '2.9.2' in (checkout.site / 'torch.py').read_text()
    finally:
        checkout.pins.write_text('torch==2.9.1\n', encoding='utf-8')
        assert set_up(checkout, 'base').returncode == 0


def test_a_package_that_was_cut_off_is_installed_again(checkout):
    """pip killed while it wrote files: metadata that look whole, a module that is not there."""
    (checkout.site / 'torch.py').unlink()
    (checkout.site / 'torch-2.9.1.dist-info' / 'INSTALLER').unlink()
    (checkout.site / '~orch').mkdir()
    (checkout.stamps / 'at_work').write_text('base')
    result = set_up(checkout, 'base')
    assert result.returncode == 0, result.stderr
    assert (checkout.site / 'torch.py').is_file()
    assert not (checkout.site / '~orch').exists()
    assert not (checkout.stamps / 'at_work').exists()
    assert set_up(checkout, 'base').stdout == ''


def test_killed_while_pip_waits_then_goes_on(checkout):
    """``kill -9`` of the set-up; the pip that it leaves keeps the lock, so that no two collide."""
    (checkout.stamps / 'base.json').unlink()
    with socket.create_server(('127.0.0.1', 0)) as server:  # accepts, and never answers
        index = f'http://127.0.0.1:{server.getsockname()[1]}/simple'
        environment = {**checkout.environment, 'PIP_INDEX_URL': index, 'PIP_FIND_LINKS': '',
                       'PIP_NO_INDEX': '0'}
        process = subprocess.Popen(
            [sys.executable, str(checkout.root / 'tools' / TOOL.name), 'base'], env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        connection, _ = server.accept()
        process.send_signal(signal.SIGKILL)
        process.wait()
        second = subprocess.Popen(
            [sys.executable, str(checkout.root / 'tools' / TOOL.name), 'base'],
            env=checkout.environment, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        assert 'Waiting for another set-up' in second.stdout.readline()
        connection.close()
    # The server is gone: the left-over pip gives up, and the second set-up has its turn.
    output, _ = second.communicate()
    assert second.returncode == 0
    assert '[1/1] base' in output
    assert set_up(checkout, 'base').stdout == ''


def test_what_is_whole_costs_nothing_after_an_interruption(checkout):
    """Else a disk that was just large enough would be too small to go on."""
    environment = Environment(checkout.root)
    stages = {stage.name: stage for stage in setup_environment.STAGES}
    assert environment.cost(stages['base']).installed == 0
    assert environment.cost(stages['core']) == stages['core']
    checkout.pins.write_text('torch==2.9.2\n', encoding='utf-8')
    try:
        assert environment.cost(stages['base']) == stages['base']
    finally:
        checkout.pins.write_text('torch==2.9.1\n', encoding='utf-8')


def test_an_environment_that_was_moved_is_made_anew(empty_checkout):
    environment = Environment(empty_checkout.root)
    environment.stamps.mkdir(parents=True)
    environment.python.parent.mkdir()
    environment.python.symlink_to(sys.executable)
    stamp = environment.stamps / 'venv.json'
    stamp.write_text(json.dumps({'key': environment.key('venv')}))
    assert environment.is_done('venv')
    elsewhere = empty_checkout.root.with_name('elsewhere')
    empty_checkout.root.rename(elsewhere)
    missing = Environment(elsewhere).missing(['venv', 'base'])
    assert [stage.name for stage in missing] == ['venv', 'base']


@pytest.mark.parametrize('text', ['', '{', '[]', '{}', '{"key": 1}'])
def test_a_damaged_stamp_counts_as_none(empty_checkout, text):
    environment = Environment(empty_checkout.root)
    environment.stamps.mkdir(parents=True)
    (environment.stamps / 'base.json').write_text(text)
    assert not environment.is_done('base')


# --- one-sentence errors --------------------------------------------------------------------------


def run_with_pythons(checkout: SimpleNamespace, pythons: dict[str, str],
                     **changes: str) -> subprocess.CompletedProcess:
    """Run ``./run setup`` where PATH holds only these scripts and what the script itself uses."""
    binaries = checkout.root / 'bin'
    binaries.mkdir()
    for name in ('bash', 'dirname', 'head'):
        (binaries / name).symlink_to(shutil.which(name))
    for name, text in pythons.items():
        (binaries / name).write_text(f'#!/bin/sh\n{text}\n')
        (binaries / name).chmod(0o755)
    return subprocess.run([str(binaries / 'bash'), str(checkout.root / 'run'), 'setup', 'base'],
                          env={**checkout.environment, 'PATH': str(binaries), **changes},
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)


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


def test_wrong_python_for_the_tool_itself(empty_checkout, monkeypatch, capsys):
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
    monkeypatch.setattr(setup_environment.shutil, 'disk_usage',
                        lambda folder: SimpleNamespace(free=2 * 1000**3))
    assert setup_environment.main(['base']) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert 'Too little disk' in error and 'has 2.0 GB free' in error
    assert not (empty_checkout.root / '.venv').exists()


def test_folders_of_one_disk_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_environment.shutil, 'disk_usage',
                        lambda folder: SimpleNamespace(free=10 * 1000**3))
    spare = setup_environment.SPARE_GIGABYTES
    setup_environment.check_disk([(tmp_path / 'a' / 'b', 6.0), (tmp_path / 'c', 4.0 - spare)])
    with pytest.raises(SetupError, match=r'needs 10\.1 GB'):
        setup_environment.check_disk([(tmp_path / 'a' / 'b', 6.0), (tmp_path / 'c', 4.1 - spare)])


def test_no_network(checkout):
    (checkout.stamps / 'base.json').unlink()
    result = set_up(checkout, 'base', PIP_NO_INDEX='0', PIP_FIND_LINKS='',
                    PIP_INDEX_URL='http://127.0.0.1:9/simple')
    assert_one_sentence(result, 'No network', 'again')
    # The same command, with a network, goes on.
    assert set_up(checkout, 'base').returncode == 0


def test_a_pin_that_the_index_lacks_is_named(checkout):
    checkout.pins.write_text('torch==2.9.3\n', encoding='utf-8')
    try:
        assert_one_sentence(set_up(checkout, 'base'), 'torch==2.9.3')
    finally:
        checkout.pins.write_text('torch==2.9.1\n', encoding='utf-8')
        assert set_up(checkout, 'base').returncode == 0


def test_a_disk_that_fills_up_meanwhile(checkout):
    environment = Environment(checkout.root)
    script = checkout.root / 'full_disk_python'
    script.write_text('#!/bin/sh\necho "ERROR: [Errno 28] No space left on device" >&2\nexit 1\n')
    script.chmod(0o755)
    environment.python = script
    with pytest.raises(SetupError, match='Too little disk'):
        environment.pip('install', 'torch')


# --- mmcv's ops -----------------------------------------------------------------------------------


def stamp_as_done(environment: Environment, *names: str) -> None:
    """Let stages count as done."""
    for name in names:
        (environment.stamps / f'{name}.json').write_text(json.dumps({'key': environment.key(name)}))


def put_wheel_in_cache(environment: Environment, ops: str) -> Path:
    """Let the user's cache hold an mmcv whose ``mmcv.ops`` is ``ops``."""
    return make_wheel(environment.cache / 'wheels' / environment.wheel_key, 'onedl_mmcv', '2.3.6',
                      {'mmcv/__init__.py': '', 'mmcv/ops.py': ops})


def test_a_wheel_compiled_before_needs_no_compiler(checkout):
    environment = Environment(checkout.root, cache=checkout.root / 'user_cache' / 'freeatm_mm')
    stamp_as_done(environment, 'core')
    put_wheel_in_cache(environment, 'compiled = True\n')
    empty = checkout.root / 'no_compiler'
    empty.mkdir()
    result = set_up(checkout, 'mmcv-ops', PATH=str(empty))
    assert result.returncode == 0, result.stderr
    assert 'compiled before' in result.stdout
    assert (checkout.site / 'mmcv' / 'ops.py').is_file()
    assert set_up(checkout, 'mmcv-ops').stdout == ''


def test_a_compiled_wheel_that_does_not_load_is_thrown_away(checkout):
    environment = Environment(checkout.root, cache=checkout.root / 'user_cache' / 'freeatm_mm')
    stamp_as_done(environment, 'core')
    (environment.stamps / 'mmcv-ops.json').unlink(missing_ok=True)
    wheel = put_wheel_in_cache(environment, "raise ImportError('undefined symbol')\n")
    assert_one_sentence(set_up(checkout, 'mmcv-ops'), 'undefined symbol', 'thrown away')
    assert not wheel.exists()
    environment.at_work.unlink()


def test_the_cache_keeps_wheels_of_other_versions_apart(empty_checkout):
    environment = Environment(empty_checkout.root, cache=empty_checkout.root / 'cache')
    put_wheel_in_cache(environment, '')
    assert environment.cached_wheel() is not None
    empty_checkout.pins.write_text('torch==2.9.2\n')
    assert environment.cached_wheel() is None


def test_progress_counts_compiled_files(tmp_path, capsys):
    with setup_environment.progress(tmp_path, total=4, every=0.01):
        (tmp_path / 'first.o').touch()
        while '1 of 4 files' not in capsys.readouterr().out:
            time.sleep(0.01)


@pytest.mark.parametrize('member, fine', [('source/a.txt', True), ('../a.txt', False),
                                          ('/a.txt', False)])
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
        with pytest.raises(SetupError, match='outside its folder'):
            setup_environment.unpack_sdist(archive, tmp_path / 'out')


@pytest.mark.parametrize('text, jobs', [
    ('MemFree: 100 kB\nMemAvailable:    5000000 kB\n', 4), ('MemAvailable: 500000 kB\n', 1),
    ('MemAvailable: 500000000 kB\n', 8), ('MemFree: 100 kB\n', 8),
])
def test_compile_jobs_follow_cores_and_memory(tmp_path, monkeypatch, text, jobs):
    monkeypatch.setattr(setup_environment.os, 'sched_getaffinity', lambda pid: set(range(8)))
    (tmp_path / 'meminfo').write_text(text)
    assert setup_environment.compile_jobs(tmp_path / 'meminfo') == jobs


@pytest.mark.parametrize('seconds, text', [(0.4, '0 s'), (59.4, '59 s'), (59.6, '1 min 00 s'),
                                           (185, '3 min 05 s')])
def test_duration(seconds, text):
    assert setup_environment.duration(seconds) == text


# --- the scripts ----------------------------------------------------------------------------------


def make_stub_checkout(root: Path) -> Path:
    """The two scripts around a set-up and a Python that only print what they are called with."""
    for name in ('run', '.ci/run'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / 'tools').mkdir()
    (root / 'tools' / TOOL.name).write_text(
        'import sys\nprint("setup", *sys.argv[1:], flush=True)\n')
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
    return subprocess.run(['bash', str(root / script), *arguments], cwd='/', env=environment,
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_run_miniature_passes_arguments_and_exit_code(tmp_path):
    result = call(make_stub_checkout(tmp_path), 'run', 'miniature', '--seeds', '0 1')
    assert result.returncode == 7
    assert result.stdout.splitlines() == ['setup --for miniature',
                                          'python tools/miniature.py --seeds 0 1 threads=']


@pytest.mark.parametrize('script, arguments', [('run', ['tests']), ('.ci/run', [])])
def test_run_tests_and_ci_are_the_same(tmp_path, script, arguments):
    result = call(make_stub_checkout(tmp_path), script, *arguments)
    assert result.returncode == 7
    assert result.stdout.splitlines() == [
        'setup --for tests',
        'python -m pytest -n 2 --dist loadfile --max-worker-restart 0 threads=1']


def test_a_failed_set_up_ends_the_command(tmp_path):
    root = make_stub_checkout(tmp_path)
    (root / 'tools' / TOOL.name).write_text('import sys\nsys.exit(1)\n')
    result = call(root, 'run', 'tests')
    assert (result.returncode, result.stdout) == (1, '')


@pytest.mark.parametrize('arguments, code', [([], 2), (['nonsense'], 2), (['--help'], 0)])
def test_run_says_what_it_does(tmp_path, arguments, code):
    result = call(make_stub_checkout(tmp_path), 'run', *arguments)
    assert result.returncode == code
    assert './run miniature' in result.stdout + result.stderr


def test_unknown_stage_is_named(capsys):
    with pytest.raises(SystemExit) as raised:
        setup_environment.main(['nonsense'])
    assert raised.value.code == 2
    assert 'nonsense' in capsys.readouterr().err
