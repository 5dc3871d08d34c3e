"""Workarounds for quirks of other packages: one function each, with its reason and its source.

Nothing heavy is imported at the top: `import freeatm_mm` must stay cheap and must work without
OpenMMLab.
"""
from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

_LOCATIONS = {
    'DATASETS': 'freeatm_mm.datasets',
    'DATA_SAMPLERS': 'freeatm_mm.datasets',
    'TRANSFORMS': 'freeatm_mm.datasets',
    'MODELS': 'freeatm_mm.models',
    'TASK_UTILS': 'freeatm_mm.models',
    'HOOKS': 'freeatm_mm.engine',
}


def call_after_import(name: str, function: Callable[[], None]) -> None:
    """Calls a function once a module is imported: now, or right after its first import."""
    if name in sys.modules:
        function()
    else:
        sys.meta_path.insert(0, _CallAfterImport(name, function))


class _CallAfterImport(importlib.abc.MetaPathFinder):
    """Calls a function once, right after a named module was imported for the first time.

    Args:
        name: The module to wait for.
        function: What to call then, without arguments.
    """

    def __init__(self, name: str, function: Callable[[], None]) -> None:
        self.name, self.function = name, function

    def find_spec(self, fullname, path=None, target=None):
        """Answers for the awaited module alone: its usual spec, with a loader that calls."""
        if fullname != self.name or self not in sys.meta_path:
            return None
        position = sys.meta_path.index(self)
        sys.meta_path.remove(self)  # ask the others
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            # Looking for a module (`find_spec`) isn't importing it: go on waiting.
            sys.meta_path.insert(position, self)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module):
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.function()

            spec.loader.exec_module = execute_and_call
        return spec


def register_with_mmpretrain() -> None:
    """Makes the project's components known to mmpretrain's registries as soon as these exist.

    Reason: configs look components up in mmpretrain's registries and say
    `custom_imports = dict(imports=['freeatm_mm'])`. Importing mmpretrain from there would cost
    seconds and would tie `freeatm_mm.attention` to OpenMMLab; importing it only when it happens to
    be loaded already would lose the components for whoever imports `freeatm_mm` first.

    Source: `mmengine.registry.Registry.import_from_location`: a registry imports its `locations`
    at the first look-up, so adding ours there costs nothing until then.
    """

    def register() -> None:
        if satisfies('transformers', minimum=5):
            skip_multimodal_models()
        registry_module = importlib.import_module('mmpretrain.registry')
        for name, location in _LOCATIONS.items():
            registry = getattr(registry_module, name)
            if registry._imported:
                importlib.import_module(location)
            elif location not in registry._locations:
                registry._locations.append(location)

    call_after_import('mmpretrain', register)


def read_checkpoints_safely() -> None:
    """Lets mmengine read checkpoints through `freeatm_mm.checkpoints`, in the whole process.

    Reason: mmengine reads with `weights_only=True`, lets `getattr` through there, by which a file
    reaches any function, and where that fails reads again with `weights_only=False`, which runs
    whatever the file says. Addresses are read so at once, and fetched without any limit. Resuming,
    `load_from`, `init_cfg` and `pretrained` of all frameworks come by here. And resuming runs the
    text that mmcv 1 kept under `meta['config']`, only to compare numbers of GPUs: it is left out.

    Source: `mmengine/runner/checkpoint.py`, `_safe_torch_load`, `load_from_local` and `load_url`,
    and `mmengine/runner/runner.py`, `Runner.resume`, of mmengine and of its maintained fork.
    """
    from mmengine.runner import checkpoint as module

    from freeatm_mm import checkpoints, torch_files

    def read(file, map_location=None, weights_only=None):
        if hasattr(file, 'read'):
            content = torch_files.read_torch_file(file, map_location)
        else:
            content = checkpoints.read_state(checkpoints.local_path(file), map_location)
        if isinstance(content, dict) and isinstance(content.get('meta'), dict):
            content['meta'].pop('config', None)
        return content

    def load_from_local(filename, map_location=None):
        return read(filename, map_location)

    def load_url(url, model_dir=None, map_location=None, progress=True, **_):
        return read(checkpoints.download(url, model_dir), map_location)

    module._safe_torch_load, module.load_url = read, load_url
    module.CheckpointLoader.register_scheme('', load_from_local, force=True)


def satisfies(package: str, minimum: int) -> bool:
    """Whether a distribution is installed with at least this major version."""
    try:
        return int(version(package).split('.')[0]) >= minimum
    except (PackageNotFoundError, ValueError):
        return False


def skip_multimodal_models() -> None:
    """Keeps mmpretrain from importing its multimodal models (BLIP, OFA, LLaVA ...).

    Reason: with pycocotools and transformers installed, `import mmpretrain.models` imports all of
    them: four seconds more with transformers 4, and an exception with transformers 5, where names
    that they need are gone (`PretrainedConfig`, `find_pruneable_heads_and_indices`).

    Source: `mmpretrain/utils/dependency.py`, `WITH_MULTIMODAL`. No effect once
    `mmpretrain.models` is imported.
    """
    importlib.import_module('mmpretrain.utils.dependency').WITH_MULTIMODAL = False


def accept_mmseg_fork() -> None:
    """Lets `_base_ = 'mmseg::...'` find the installed mmseg, whatever its distribution is called.

    Reason: mmengine maps `mmseg` to the distribution `mmsegmentation`; the maintained fork is
    called `onedl-mmsegmentation`, so that `Config.fromfile` says mmseg is not installed. Must be
    called before `Config.fromfile`.

    Source: `mmengine/config/utils.py`, `MODULE2PACKAGE`.
    """
    from mmengine.config.utils import MODULE2PACKAGE
    try:
        version('mmsegmentation')
    except PackageNotFoundError:
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def launch_on_cpus(cfg) -> None:
    """Lets mmengine train in several processes on a machine without a GPU; no effect with one.

    Reason: configs ask for the `nccl` backend; `mmengine.dist.init_dist` calls
    `torch.cuda.set_device` whatever the backend; and the runner hands GPU numbers to
    `DistributedDataParallel` whatever the model's device.

    Source: `mmengine/dist/utils.py`, `_init_dist_pytorch`; `mmengine/runner/runner.py`,
    `wrap_model`.

    Args:
        cfg: The config, changed in place.
    """
    import torch
    if torch.cuda.is_available():
        return
    torch.cuda.set_device = lambda device: None
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))


def require_cuda_ops(cfg) -> None:
    """Makes sure that a detector finds mmcv's ops where it will run.

    Reason: mmcv compiled for the CPU, as `./run` does, fails on a GPU at the first step, with a
    message about one op that names neither cause nor cure.

    Source: `mmcv/ops/info.py`.

    Args:
        cfg: The config; those of mmpretrain and mmseg need no ops.

    Raises:
        InputError: If there is a GPU and the ops are the CPU's.
    """
    if cfg.get('default_scope') != 'mmdet':
        return
    import torch
    if not torch.cuda.is_available():
        return
    from mmcv.ops import get_compiling_cuda_version

    from freeatm_mm.errors import InputError
    if get_compiling_cuda_version() == 'not available':
        raise InputError("mmcv's ops were compiled for the CPU, and this machine has a GPU: "
                         "compile CUDA's, as docs/downstream.md says, or hide the GPU by "
                         'CUDA_VISIBLE_DEVICES=""')


def require_lavis() -> None:
    """Makes sure that LAVIS can be imported.

    Reason: it is not on everybody's machine, and its own pins (transformers below 4.27, opencv of
    2021) make an ordinary `pip install` of it fail or spoil the environment.

    Raises:
        ImportError: If it isn't there, or something that it needs isn't.
    """
    try:
        importlib.import_module('lavis')
    except ImportError as error:
        missing = getattr(error, 'name', None) or str(error)
        raise ImportError(
            f'freeatm_mm.lavis_ext needs LAVIS, and {missing} is missing: run "./run setup lavis", '
            'or "pip install --no-deps -r requirements/lavis.txt" in an environment of your own'
        ) from error


def name_lavis_folder(name: str, path) -> None:
    """Tells LAVIS where a folder is (`output_dir`, `result_dir`), as often as needed.

    Reason: `registry.register_path` refuses a name that it knows, so that a process could make one
    runner only.

    Source: `lavis/common/registry.py`, `register_path`; `lavis/runners/runner_base.py`,
    `setup_output_dir`.
    """
    from lavis.common.registry import registry
    registry.mapping['paths'][name] = str(path)


def free_copied_checkpointing(module) -> None:
    """Lets a copied image encoder compute with its own weights; no effect without checkpointing.

    Reason: fairscale's `checkpoint_wrapper` (LAVIS's `vit_grad_ckpt`) puts a `forward` on the
    module itself that keeps a reference to it, and `deepcopy` copies that as it is: the momentum
    encoder's wrapped layers would compute with the online ones' weights. It takes no gradient and
    needs no checkpointing.

    Source: `fairscale/nn/checkpoint/checkpoint_activations.py`, `checkpoint_wrapper`;
    `lavis/models/blip_models/blip_pretrain.py` and `blip_retrieval.py`, `visual_encoder_m`.

    Args:
        module: The copy, changed in place.
    """
    for part in module.modules():
        vars(part).pop('forward', None)


def let_lavis_average_on_cpus() -> None:
    """Lets LAVIS's meters be averaged over processes that have no GPU; no effect with one.

    Reason: `SmoothedValue.synchronize_between_processes` makes its tensor on 'cuda', whatever the
    processes run on.

    Source: `lavis/common/logger.py`.
    """
    import torch
    import torch.distributed as dist
    if torch.cuda.is_available():
        return
    from lavis.common.logger import SmoothedValue

    def synchronize_between_processes(self) -> None:
        if dist.is_available() and dist.is_initialized():
            total = torch.tensor([self.count, self.total], dtype=torch.float64)
            dist.all_reduce(total)
            self.count, self.total = int(total[0]), float(total[1])

    SmoothedValue.synchronize_between_processes = synchronize_between_processes
