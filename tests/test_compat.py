"""What importing the package does and doesn't do, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.servers import serve_files
from helpers.warm import run_warm

import freeatm_mm
from freeatm_mm import compat
from freeatm_mm.addresses import RemoteFolder
from freeatm_mm.errors import InputError

SMALL = str(Path(__file__).parents[1] / 'weights/miniature-generator')


def run(code, warm=False):
    if warm:  # libraries are imported, this package is not
        done = run_warm('-c', code)
    else:
        command = [sys.executable, '-W', 'ignore', '-c', code]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_neither_side():
    run(
        'import sys, freeatm_mm\n'
        'assert not {"torch", "mmengine", "mmpretrain", "diffusers"} & set(sys.modules)'
    )


@pytest.mark.parametrize(
    'first', ['', 'import mmpretrain; from mmpretrain.registry import MODELS\n']
)
def test_one_module_registers_everything(first):
    pytest.importorskip('mmpretrain')
    shown = run(
        f'{first}import freeatm_mm.openmmlab, sys\n'
        'from mmpretrain.registry import DATASETS, HOOKS, MODELS, TASK_UTILS, TRANSFORMS\n'
        'assert MODELS.get("FreeATMMoCo") and DATASETS.get("FreeATMDataset")\n'
        'assert TRANSFORMS.get("FreeATMMultiView") and HOOKS.get("SeedEachIterationHook")\n'
        'assert TASK_UTILS.get("AttentionGuidedMaskGenerator") and MODELS.get("MoCo")\n'
        'from mmengine.registry import HOOKS, MODELS\n'
        'assert HOOKS.get("InitialWeightsHook") and MODELS.get("ViTPyramid")\n'
        'assert "diffusers" not in sys.modules\n'
        # Notices that say nothing are left out: of OneDL, of mmengine's old names, of Pillow.
        'import logging, warnings, mmpretrain.datasets\n'
        'from mmengine.fileio import FileClient\n'
        'from mmengine.logging import MMLogger, print_log\n'
        'told, handler = [], logging.Handler()\n'
        'handler.emit = told.append\n'
        'MMLogger.get_instance("a").addHandler(handler)\n'
        'FileClient.infer_client(uri="a")\n'
        'assert not told\n'
        'assert any("alpha" in str(each[1]) for each in warnings.filters)\n'
        'print_log("this stays")'
    )
    assert shown.strip() == 'this stays'


def test_importing_the_package_changes_nothing():
    run('import sys; a = sys.meta_path[:]; import freeatm_mm; assert sys.meta_path == a')


def test_the_version_is_written_once():
    text = (Path(__file__).parents[1] / 'setup.cfg').read_text(encoding='utf-8')
    assert '\nversion = attr: freeatm_mm.__version__\n' in text and freeatm_mm.__version__


def test_multimodal_models_that_do_not_import_are_left_out():
    """As upstream's don't beside today's transformers: mmpretrain's own tools must still start."""
    run(
        'import sys, types\n'
        'import mmpretrain\n'
        'sys.modules["mmpretrain.models.multimodal.blip"] = None  # no import\n'
        'import freeatm_mm.openmmlab\n'
        'from mmpretrain.utils import register_all_modules; register_all_modules()\n'
        'from mmpretrain.registry import MODELS\n'
        'assert MODELS.get("FreeATMMoCo") and MODELS.get("MoCo")',
        warm=True,
    )


def test_mmseg_configs_are_found():
    pytest.importorskip('mmseg')
    run(
        'from freeatm_mm.compat import accept_mmseg_fork; accept_mmseg_fork()\n'
        'from mmengine.config import Config\n'
        'import tempfile, pathlib\n'
        'path = pathlib.Path(tempfile.mkdtemp()) / "config.py"\n'
        'path.write_text("_base_ = \'mmseg::fcn/fcn_r50b-d8_4xb2-80k_cityscapes-512x1024.py\'")\n'
        'assert Config.fromfile(path).model.backbone.type == "ResNet"',
        warm=True,
    )


def test_ops_for_the_cpu_are_told_before_a_gpu_misses_them(monkeypatch):
    pytest.importorskip('mmcv.ops')
    import torch

    from freeatm_mm.compat import require_cuda_ops

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: 'not available')
    require_cuda_ops({'default_scope': 'mmpretrain'})
    with pytest.raises(ValueError, match='were compiled for the CPU, and this machine has a GPU'):
        require_cuda_ops({'default_scope': 'mmdet'})
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: '12.8')
    require_cuda_ops({'default_scope': 'mmdet'})


@pytest.mark.parametrize(
    'first, second',
    [
        ('mmengine.runner', 'freeatm_mm.openmmlab'),
        ('freeatm_mm.openmmlab', 'mmengine.runner'),
        ('mmengine.runner', 'freeatm_mm.engine'),
    ],
)
def test_mmengine_reads_safely_whatever_is_imported_first(tmp_path, first, second):
    """As in the frameworks' own tools, where the config's `custom_imports` come late."""
    pytest.importorskip('mmengine')
    from helpers.hostile_checkpoints import through_getattr

    path, marker = tmp_path / 'x.pth', tmp_path / 'marker'
    path.write_bytes(through_getattr(marker))
    told = run(
        f'import {first}, {second}\n'
        'from mmengine.runner import CheckpointLoader\n'
        f'try:\n    CheckpointLoader.load_checkpoint({str(path)!r}, "cpu")\n'
        'except ValueError as error:\n    print(error)\n',
        warm=first == 'mmengine.runner',
    )
    assert 'it holds more than tensors' in told and not marker.exists()


#: Each begins to read a checkpoint, with a config that imports nothing of this package.
READERS = {
    'train': 'load_tool("train").main([config])',
    'test': 'load_tool("test").main([config, honest])',
    'features': 'from freeatm_mm.probing.features import load_model; load_model(config)',
    'detections': (
        'import mmdet.apis; mmdet.apis.init_detector = read\n'
        'from freeatm_mm.datasets.detections import Detector; Detector(config, honest)'
    ),
}


@pytest.mark.parametrize('reader', READERS)
def test_every_way_to_a_checkpoint_reads_safely(tmp_path, reader):
    pytest.importorskip('mmdet' if reader == 'detections' else 'mmpretrain')
    import torch
    from helpers.hostile_checkpoints import through_getattr

    path, marker, honest = tmp_path / 'x.pth', tmp_path / 'marker', tmp_path / 'honest.pth'
    path.write_bytes(through_getattr(marker))
    torch.save({'state_dict': {'w': torch.ones(1)}}, honest)
    init = f"init_cfg=dict(type='Pretrained', checkpoint={str(path)!r})"
    (tmp_path / 'config.py').write_text(
        "default_scope = 'mmpretrain'\n"
        f"model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18, {init}))\n"
        f'work_dir = {str(tmp_path / "run")!r}'
    )
    told = run(
        f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n'
        'sys.stderr = sys.stdout  # where tools end with their sentence\n'
        'from helpers.tools import load_tool\n'
        'import mmengine.runner\n'
        'def read(*_, **__):\n'
        f'    mmengine.runner.CheckpointLoader.load_checkpoint({str(path)!r}, "cpu")\n'
        'mmengine.runner.Runner.from_cfg = read\n'
        f'config, honest = {str(tmp_path / "config.py")!r}, {str(honest)!r}\n'
        'try:\n'
        + ''.join(f'    {line}\n' for line in READERS[reader].splitlines())
        + 'except (ValueError, SystemExit) as error:\n    print(error)\n',
        warm=True,
    )
    assert 'it holds more than tensors' in told and not marker.exists()


@pytest.fixture
def silent_hub(tmp_path, monkeypatch):
    """A Hub that takes connections and never answers, and an empty cache."""
    constants = pytest.importorskip('huggingface_hub.constants')
    from huggingface_hub.utils import reset_sessions

    monkeypatch.setattr(compat, 'HUB_PATIENCE', 0.3)
    with serve_files(tmp_path) as server:
        server.mode = 'slow'
        for name, value in dict(
            ENDPOINT=server.address, HF_HUB_OFFLINE=False, HF_HUB_CACHE=str(tmp_path / 'cache')
        ).items():
            monkeypatch.setattr(constants, name, value)
        reset_sessions()
        yield server
    reset_sessions()


def test_a_hub_that_does_not_answer_is_told_at_once(silent_hub, monkeypatch):
    pytest.importorskip('diffusers')
    from freeatm_mm.generation import load_pipeline

    silent = f'{silent_hub.address} gave no answer within 0.3 s: check the network'
    with pytest.raises(InputError, match=f"^hf:// can't be reached: {silent}"):
        RemoteFolder('hf://datasets/me/dogs').state('store.json')
    for name, options in {'me/dogs': {}, SMALL: dict(loras=['me/dogs/style.safetensors'])}.items():
        with pytest.raises(ValueError, match=f'it is not in the cache, and {silent}'):
            load_pipeline(name, device='cpu', **options)
    # Nothing else was asked, each of which would have had to wait for minutes.
    assert {(method, path) for method, path, _ in silent_hub.asked} == {('HEAD', '/')}
    silent_hub.mode = 404
    monkeypatch.setattr(compat, 'HUB_PATIENCE', 60.0)
    assert compat.hub_answers() and compat.hub_answers()
    assert len([method for method, *_ in silent_hub.asked]) == 4  # asked no more


def test_what_is_in_the_cache_needs_no_hub(silent_hub, tmp_path):
    from huggingface_hub import hf_hub_download

    snapshot = tmp_path / 'cache/models--me--dogs/snapshots/0123'
    snapshot.mkdir(parents=True)
    (snapshot / 'x.json').write_text('{}')
    (snapshot.parents[1] / 'refs').mkdir()
    (snapshot.parents[1] / 'refs/main').write_text('0123')
    with compat.hub_or_cache():
        assert hf_hub_download('me/dogs', 'x.json') == str(snapshot / 'x.json')
    with pytest.raises(ConnectionError, match='it is not in the cache'), compat.hub_or_cache():
        hf_hub_download('me/dogs', 'y.json')


@pytest.fixture
def render(monkeypatch):
    """What transformers make of a chat template, under limits that no honest one comes near."""
    from freeatm_mm import compat

    templates = pytest.importorskip('transformers.utils.chat_template_utils')
    before = templates.ImmutableSandboxedEnvironment
    monkeypatch.setattr(templates, 'ImmutableSandboxedEnvironment', before)
    compat.limit_chat_templates()
    monkeypatch.setattr(compat, '_MOST_SECONDS', 0.1)
    monkeypatch.setattr(compat, '_MOST_MEMORY', 1 << 28)

    def rendered(template):
        messages = [{'role': 'user', 'content': 'a dog'}]
        return templates.render_jinja_template([messages], chat_template=template)[0][0]

    return rendered


def test_an_honest_chat_template_is_rendered(render):
    template = (
        '{% for m in messages %}<{{ m.role }}>{{ m.content * 2 }}{{ 2 ** 3 }}{% endfor %}'
        '{% if not messages %}{{ raise_exception("none") }}{% endif %}'
    )
    assert render(template) == '<user>a doga dog8'


LOOP = '{% for _ in range(99999) %}'
FILL = '{% set n = namespace(x="a") %}' + LOOP + '{% set n.x = n.x ~ n.x %}{% endfor %}'


@pytest.mark.parametrize(
    'template, said',
    [
        (LOOP * 3 + '{% endfor %}' * 3, 'more than 0.1 seconds'),
        ('{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}', 'fails'),
        ('{% for x in []|slice(10**10) %}{% endfor %}', 'more than 0.1 seconds'),
        (LOOP + "{% set x = 'a'.zfill(50000000) %}{% endfor %}", 'more than 0.1 seconds'),
        (FILL, 'fails'),
        ("{{ 'a' * 10**11 }}", 'fails'),
        ("{{ 'a'|center(10**11) }}", 'fails'),
        ('{{ (10 ** 1000) ** 1000 }}', 'too many digits'),
        ("{{ 'a' * 5000000 }}", 'makes 5,000,000 characters'),
        ('{{ 1/0 }}', 'fails: division by zero'),
        ('{' + '{(' * 2000, ''),
    ],
    ids=['loops', 'calls', 'filter', 'work', 'doubling', 'text', 'width', 'power', 'long', 'error']
    + ['depth'],
)
def test_a_hostile_chat_template_ends_in_an_error_of_its_own(render, template, said):
    import resource
    import sys

    from jinja2 import TemplateError

    before = resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()
    with pytest.raises(TemplateError, match=said):
        render(template)
    assert (resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()) == before


@pytest.mark.parametrize('shape', [(12, 40), (40, 12), (16, 16)])
def test_muon_in_float32_is_the_same_iteration(shape):
    """As PyTorch's in bfloat16, up to its rounding; and as one in float64 of singular values."""
    torch = pytest.importorskip('torch')
    muon = pytest.importorskip('torch.optim._muon')
    coefficients = (muon.DEFAULT_A, muon.DEFAULT_B, muon.DEFAULT_C)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours = compat._orthogonalised(grad, coefficients, 5, 1e-7)
    theirs = muon._zeropower_via_newtonschulz(grad.clone(), coefficients, 5, 1e-7)
    assert (ours - theirs).norm() < 0.03 * theirs.float().norm()
    left, values, right = torch.linalg.svd(grad.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        a, b, c = coefficients
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(ours.double(), left * values @ right, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('native', [False, True])
def test_muon_is_replaced_where_bfloat16_is_slow(monkeypatch, native):
    muon = pytest.importorskip('torch.optim._muon')
    own = muon._zeropower_via_newtonschulz
    monkeypatch.setattr(muon, '_zeropower_via_newtonschulz', own)  # restored at the end
    monkeypatch.setattr(compat, 'has_bfloat16', lambda: native)
    compat.keep_muon_fast()
    expected = own if native else compat._orthogonalised
    assert muon._zeropower_via_newtonschulz is expected
