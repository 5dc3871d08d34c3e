"""What importing the package does and doesn't do, each in a process of its own."""

import subprocess
import sys

import pytest


def run(code):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_neither_side():
    run(
        'import sys, freeatm_mm\n'
        'assert not {"torch", "mmengine", "mmpretrain", "diffusers"} & set(sys.modules)'
    )


def test_components_are_found_whatever_is_imported_first():
    pytest.importorskip('mmpretrain')
    look = (
        'from mmpretrain.registry import DATASETS, HOOKS, MODELS, TRANSFORMS\n'
        'assert MODELS.get("FreeATMMoCo") and DATASETS.get("FreeATMDataset")\n'
        'assert TRANSFORMS.get("FreeATMMultiView") and HOOKS.get("SeedEachIterationHook")\n'
        'import sys; assert "diffusers" not in sys.modules\n'
    )
    skip = 'from freeatm_mm.compat import skip_multimodal_models as skip; skip()\n'
    # Asking where mmpretrain is must not be taken for importing it.
    run('import freeatm_mm, importlib.util; importlib.util.find_spec("mmpretrain")\n' + skip + look)
    run(
        'import mmpretrain\nimport mmpretrain.utils.dependency as d; d.WITH_MULTIMODAL = False\n'
        'from mmpretrain.registry import MODELS; MODELS.get("ResNet")\n'
        'import freeatm_mm\n' + look
    )


def test_multimodal_models_that_do_not_import_are_left_out():
    """As upstream's don't beside today's transformers: mmpretrain's own tools must still start."""
    run(
        'import sys, types\n'
        'import freeatm_mm, mmpretrain\n'
        'sys.modules["mmpretrain.models.multimodal.blip"] = None  # no import\n'
        'from mmpretrain.utils import register_all_modules; register_all_modules()\n'
        'from mmpretrain.registry import MODELS\n'
        'assert MODELS.get("FreeATMMoCo") and MODELS.get("MoCo")'
    )


def test_mmseg_configs_are_found():
    pytest.importorskip('mmseg')
    run(
        'from freeatm_mm.compat import accept_mmseg_fork; accept_mmseg_fork()\n'
        'from mmengine.config import Config\n'
        'import tempfile, pathlib\n'
        'path = pathlib.Path(tempfile.mkdtemp()) / "config.py"\n'
        'path.write_text("_base_ = \'mmseg::fcn/fcn_r50b-d8_4xb2-80k_cityscapes-512x1024.py\'")\n'
        'assert Config.fromfile(path).model.backbone.type == "ResNet"'
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
    'first, second', [('mmengine.runner', 'freeatm_mm'), ('freeatm_mm', 'mmengine.runner')]
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
        'except ValueError as error:\n    print(error)\n'
    )
    assert 'it holds more than tensors' in told and not marker.exists()
