"""Workarounds for quirks of other packages: one function each, with its reason and its source.

Nothing heavy is imported at the top: every part of the package may import this one, with or without
OpenMMLab and LAVIS.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple


def read_checkpoints_safely() -> None:
    """Let mmengine read checkpoints through `freeatm_mm.checkpoints`, in the whole process.

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


def skip_multimodal_models() -> None:
    """Keep mmpretrain from importing its multimodal models (BLIP, OFA, LLaVA ...).

    Reason: with pycocotools and transformers installed, `import mmpretrain.models` imports all of
    them: four seconds more where that works, and an exception where it doesn't, as names that they
    need are gone (upstream's mmpretrain with transformers 4.50 and newer, the fork with
    transformers 5). Pretraining needs none of them.

    Source: `mmpretrain/utils/dependency.py`, `WITH_MULTIMODAL`. No effect once
    `mmpretrain.models` is imported.
    """
    module: Any = importlib.import_module('mmpretrain.utils.dependency')
    module.WITH_MULTIMODAL = False


def leave_out_notices() -> None:
    """Leave out notices of OpenMMLab that say nothing to its users, in the whole process.

    Reason: the fork's debugging note that OneDL is not installed is printed, as `print_log` without
    a logger looks at no level; mmengine's own hooks call `FileClient`, which then warns of its own
    name and of a backend's; and mmcv warns in each loading process that colours were changed by
    Pillow, which is what the configs ask for.

    Source: `mmpretrain/datasets/__init__.py`, `mmengine/logging/logger.py`,
    `mmengine/fileio/file_client.py` and `mmcv/image/photometric.py` of the maintained forks.
    """
    import logging
    import warnings

    from mmengine.fileio import file_client

    module: Any = importlib.import_module('mmengine.logging')
    warnings.filterwarnings('ignore', "Only use 'alpha' for pillow backend", UserWarning)
    names: Any = file_client  # which uses `print_log` for these alone
    names.print_log = lambda *_, **__: None
    print_log = module.print_log
    if print_log.__module__ == __name__:
        return

    def print_at_its_level(msg: Any, logger: Any = None, level: int = logging.INFO) -> None:
        if logger is not None or level >= logging.INFO:
            print_log(msg, logger, level)

    module.print_log = print_at_its_level


def accept_mmseg_fork() -> None:
    """Let `_base_ = 'mmseg::...'` find the installed mmseg, whatever its distribution is called.

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


def find_packaged_configs() -> None:
    """Let mmengine read `freeatm_mm::NAME`, in `_base_` and as the name of a config itself.

    Reason: mmengine takes such names in `_base_` alone, of a fixed list of OpenMMLab's packages,
    and only of configs in a folder.

    Source: `mmengine/config/config.py`, `Config.fromfile` and `_get_cfg_path`;
    `mmengine/config/utils.py`, `_get_package_and_cfg_path`.
    """
    from mmengine.config import Config

    from freeatm_mm.packaged import PREFIX, find_config

    if hasattr(Config.fromfile, 'finds_packaged'):
        return
    read, find_base = Config.fromfile, Config._get_cfg_path

    def fromfile(filename, *args, **kwargs):
        packaged = str(filename).startswith(PREFIX)
        return read(str(find_config(filename)) if packaged else filename, *args, **kwargs)

    def get_cfg_path(cfg_path, filename):
        if cfg_path.startswith(PREFIX):
            return str(find_config(cfg_path)), None
        return find_base(cfg_path, filename)

    marked: Any = fromfile
    marked.finds_packaged = True
    setattr(Config, 'fromfile', staticmethod(fromfile))  # noqa: B010 - mypy knows it otherwise
    setattr(Config, '_get_cfg_path', staticmethod(get_cfg_path))  # noqa: B010


def format_configs_once() -> None:
    """Let a config that hasn't changed be laid out once, not again for each checkpoint.

    Reason: its text goes into every checkpoint, and yapf takes 60 ms of a core to lay it out, as
    much as a fifth of a small network's training step.

    Source: `mmengine/runner/runner.py`, `save_checkpoint`; `mmengine/config/config.py`,
    `Config.pretty_text`.
    """
    from mmengine.config import Config

    lay_out = Config.pretty_text.fget
    if lay_out is None or hasattr(lay_out, 'is_kept'):
        return
    known: dict[str, str] = {}

    def pretty_text(self: Any) -> str:
        key = repr((self.to_dict(), getattr(self, '_format_python_code', True)))
        if key not in known:
            known.clear()  # one training has one config
            known[key] = lay_out(self)
        return known[key]

    marked: Any = pretty_text
    marked.is_kept = True
    setattr(Config, 'pretty_text', property(marked))  # noqa: B010 - mypy knows it otherwise


def keep_digits_of_ap() -> None:
    """Let mmdet's metrics give AP as it is computed.

    Reason: they round it to a tenth of a point, as much as seeds often differ by, and paired
    differences then come in steps.

    Source: `mmdet/evaluation/metrics/coco_metric.py` and `voc_metric.py`, which call `round`.
    """
    from mmdet.evaluation.metrics import coco_metric, voc_metric

    for module in (coco_metric, voc_metric):
        module.round = lambda value, digits=None: float(value)


@contextmanager
def densecl_without_shuffling() -> Iterator[None]:
    """Let mmpretrain's DenseCL take its second views in the order of the first ones.

    Reason: it shuffles the images, on one process too, and brings back what its neck gave of each,
    so that instances would be pooled by another image's masks. On one process shuffling is without
    effect, as batch normalisation sees the same images.

    Source: `mmpretrain/models/selfsup/densecl.py`, `DenseCL.loss`.
    """
    from mmpretrain.models.selfsup import densecl

    module: Any = densecl
    before = module.batch_shuffle_ddp, module.batch_unshuffle_ddp
    module.batch_shuffle_ddp = lambda images: (images, None)
    module.batch_unshuffle_ddp = lambda rows, places: rows
    try:
        yield
    finally:
        module.batch_shuffle_ddp, module.batch_unshuffle_ddp = before


def launch_on_cpus(cfg) -> None:
    """Let mmengine train in several processes on a machine without a GPU; no effect with one.

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
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )


def avoid_strided_pointwise_fault(model) -> None:
    """Let a channels-last model train on a CPU in spite of a fault of oneDNN's.

    Reason: for the weights' gradient of a 1x1 convolution with a stride, oneDNN copies the input to
    a buffer of its own, and where it lies in channels-last order writes past that buffer's end if
    there are fewer channels than a vector has floats: 8 with AVX2, 16 with AVX-512 (on maps from
    about 50 pixels on). The process dies in `free`, hangs, or goes on with wrong gradients. One
    channels-last tensor among input and weights is enough; with both in torch's usual order,
    another way is taken. Only such layers are kept in that order; they have few channels, so that
    the copies cost little.

    Source: https://github.com/uxlfoundation/oneDNN/issues/6035, open as of oneDNN 3.11
    (torch 2.12). Seen with float32 alone, without groups, at every stride.

    Args:
        model: The model, in channels-last order; changed in place.
    """
    import torch

    for module in model.modules():
        if (
            isinstance(module, torch.nn.Conv2d)
            and module.kernel_size == (1, 1)
            and module.stride != (1, 1)
            and module.groups == 1
            and module.in_channels < 16
        ):
            module.weight.data = _in_usual_order(module.weight.data)
            if _order_inputs not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_order_inputs, with_kwargs=True)


def _in_usual_order(tensor):
    import torch

    if tensor.device.type != 'cpu':
        return tensor
    # Not `contiguous()`: with one channel, or one pixel, it leaves channels-last strides alone.
    return tensor.clone(memory_format=torch.contiguous_format)


def _order_inputs(module, inputs, named):
    return (
        tuple(map(_in_usual_order, inputs)),
        {name: _in_usual_order(value) for name, value in named.items()},
    )


def has_bfloat16() -> bool:
    """Whether this CPU computes bfloat16 itself; True where PyTorch (before 2.11) can't tell."""
    import torch

    known: dict[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()
    found = [known[name] for name in known if 'bf16' in name]
    return not found or any(found)


def keep_muon_fast() -> None:
    """Have PyTorch's Muon compute in float32 on a CPU without instructions for bfloat16.

    Reason: it orthogonalises every matrix in bfloat16, which such a CPU emulates: three quarters of
    a training step of the miniature generator. The same iteration in float32 is more exact.

    Source: `torch.optim._muon._zeropower_via_newtonschulz` (torch 2.12).
    """
    from torch.optim import _muon

    if not has_bfloat16():
        vars(_muon)['_zeropower_via_newtonschulz'] = _orthogonalised


def _orthogonalised(grad, ns_coefficients, ns_steps, eps):
    """A matrix with its singular values brought near 1, by Newton and Schulz's iteration."""
    first, second, third = ns_coefficients
    tall = grad.shape[0] > grad.shape[1]
    wide = grad.T if tall else grad
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = wide @ wide.T
        wide = first * wide + (second * gram + third * gram @ gram) @ wide
    return wide.T if tall else wide


def require_cuda_ops(cfg) -> None:
    """Make sure that a detector finds mmcv's ops where it will run.

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
        raise InputError(
            "mmcv's ops were compiled for the CPU, and this machine has a GPU: "
            "compile CUDA's, as docs/downstream.md says, or hide the GPU by "
            'CUDA_VISIBLE_DEVICES=""'
        )


def require_lavis() -> None:
    """Make sure that LAVIS can be imported.

    Reason: it is not on everybody's machine, and its own pins (transformers below 4.27, opencv of
    2021) make an ordinary `pip install` of it fail or spoil the environment. As it is of 2023, it
    imports timm by its old names, of which timm warns users who can't change them.

    Raises:
        ImportError: If it isn't there, or something that it needs isn't.
    """
    import warnings

    from freeatm_mm.errors import pip_install

    warnings.filterwarnings('ignore', r'Importing from timm\.', FutureWarning)
    try:
        importlib.import_module('lavis')
    except ImportError as error:
        missing = getattr(error, 'name', None) or str(error)
        raise ImportError(
            f'freeatm_mm.lavis_ext needs LAVIS, and {missing} is missing: {pip_install("lavis")}, '
            'and then pip install --no-deps salesforce-lavis==1.0.2'
        ) from error


def name_lavis_folder(name: str, path) -> None:
    """Tell LAVIS where a folder is (`output_dir`, `result_dir`), as often as needed.

    Reason: `registry.register_path` refuses a name that it knows, so that a process could make one
    runner only.

    Source: `lavis/common/registry.py`, `register_path`; `lavis/runners/runner_base.py`,
    `setup_output_dir`.
    """
    from lavis.common.registry import registry

    registry.mapping['paths'][name] = str(path)


def free_copied_checkpointing(module) -> None:
    """Let a copied image encoder compute with its own weights; no effect without checkpointing.

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


def tie_bert_bias(decoder) -> None:
    """Let the two names of the language head's bias be one tensor again, once weights are loaded.

    Reason: files of BERT hold it as `cls.predictions.bias` alone, as transformers leaves the second
    name out. LAVIS's class says that a missing `decoder.bias` is to be ignored, and not that it is
    the other one: since transformers 4.50 it then stays on the meta device, without any data.

    Source: `lavis/models/med.py`, `BertLMPredictionHead` and `_keys_to_ignore_on_load_missing`;
    `transformers/modeling_utils.py`, `_move_missing_keys_from_meta_to_cpu`.

    Args:
        decoder: LAVIS's `XBertLMHeadDecoder`, changed in place.
    """
    head = decoder.cls.predictions
    head.decoder.bias = head.bias


def let_lavis_average_on_cpus() -> None:
    """Let LAVIS's meters be averaged over processes that have no GPU; no effect with one.

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


@contextmanager
def refuse_truncated_images():
    """While it lasts, Pillow raises for a picture that is cut off.

    Reason: importing LAVIS's datasets tells Pillow, for the whole process, to fill up what is
    missing of a picture with grey, so that half a download is trained on without a word.

    Source: `lavis/datasets/datasets/coco_caption_datasets.py`, `LOAD_TRUNCATED_IMAGES`.
    """
    from PIL import ImageFile

    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


@contextmanager
def no_code_from_data() -> Iterator[None]:
    """Keep diffusers and transformers from importing Python that comes with weights.

    Reason: diffusers runs a folder's Python without asking (a `_class_name` that is a pair, a file
    `None.py`, `PART/LIBRARY.py`; `download` also that of *another* repository, whatever
    `trust_remote_code` says), and `from_pretrained` of a pipeline hands no `trust_remote_code` to
    its parts, for which transformers then asks on the terminal. While this lasts, every way to a
    module that came with weights raises ValueError, and nobody is asked.

    Source: `diffusers/utils/dynamic_modules_utils.py`, `transformers/dynamic_module_utils.py`:
    `get_cached_module_file` fetches, `get_class_in_module` runs.
    """

    def refuse(*_, **__):
        raise ValueError(
            'it wants to run Python code that comes with the weights, which is never done'
        )

    before = []
    for name in ('diffusers.utils.dynamic_modules_utils', 'transformers.dynamic_module_utils'):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for field, value in (
            ('get_cached_module_file', refuse),
            ('get_class_in_module', refuse),
            ('TIME_OUT_REMOTE_CODE', 0),
        ):
            if hasattr(module, field):
                before.append((module, field, getattr(module, field)))
                setattr(module, field, value)
    try:
        yield
    finally:
        for module, field, value in before:
            setattr(module, field, value)


def check_kernels(file: Any, config: Any) -> None:
    """Make sure that no config, or one inside it, has attention computed by code of the hub.

    Reason: a name with a slash as its `attn_implementation` is a repository whose compiled code
    transformers fetches and runs, where the package `kernels` is installed; it asks nobody.

    Source: `transformers/modeling_utils.py`, `_check_and_adjust_attn_implementation`;
    `transformers/integrations/hub_kernels.py`.

    Args:
        file: Where the config stands, for the message.
        config: Its content.

    Raises:
        ValueError: If it names one.
    """
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            for name, item in value.items():
                if 'attn_implementation' in name and '/' in str(item):
                    raise ValueError(
                        f'{file} wants the attention kernel {item!r} of the hub: code '
                        'that comes with weights is not run'
                    )
            pending += value.values()
        elif isinstance(value, list):
            pending += value


@contextmanager
def hub_out_of_reach() -> Iterator[None]:
    """Keep huggingface_hub from fetching anything.

    Reason: `local_files_only` of a pipeline's `from_pretrained` isn't handed to its parts; a part's
    config may name another repository (a backbone, an adapter's base) and have it fetched.

    Source: `huggingface_hub/constants.py`, `HF_HUB_OFFLINE`, which is read at each request.
    """
    from huggingface_hub import constants, utils

    reset = getattr(utils, 'reset_sessions', None) or (lambda: None)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    reset()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        reset()


#: Seconds in which the Hub must have answered once.
HUB_PATIENCE = 10.0
_answered: set[str] = set()  # Hubs that did


def hub_answers() -> bool:
    """Tell within ten seconds whether the Hub answers; asked once in a process if it does.

    Reason: huggingface_hub asks what is in a repository without any time limit. Where packets are
    dropped, behind many firewalls, each such request fails when Linux gives up to connect, after
    two minutes; and a file is asked for six times.

    Source: `huggingface_hub/hf_api.py`, `timeout=None` of `model_info` and others;
    `huggingface_hub/utils/_http.py`, `http_backoff`.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE or constants.ENDPOINT in _answered:
        return True
    due = time.monotonic() + HUB_PATIENCE
    while (left := due - time.monotonic()) > 0:
        try:
            get_session().head(constants.ENDPOINT, timeout=left)
        except Exception:  # of requests, or of httpx: whatever a network brings about
            time.sleep(min(1.0, left))
        else:
            _answered.add(constants.ENDPOINT)  # whatever it answered
            return True
    return False


def hub_silence() -> str:
    """Say that `hub_answers` is false, and what to do."""
    from huggingface_hub import constants

    return (
        f'{constants.ENDPOINT} gave no answer within {HUB_PATIENCE:g} s: check the '
        'network, and HTTPS_PROXY or HF_ENDPOINT if it is reached by one'
    )


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Let huggingface_hub fetch, or where the Hub doesn't answer only look into its cache.

    Raises:
        ConnectionError: If the Hub doesn't answer and something is not in the cache.
    """
    if hub_answers():
        yield
        return
    try:
        with hub_out_of_reach():
            yield
    except Exception as error:
        raise ConnectionError(f'it is not in the cache, and {hub_silence()}') from error


#: What rendering a chat template may take: seconds of the processor, bytes of memory besides, and
#: characters of text.
_MOST_SECONDS, _MOST_MEMORY, _MOST_TEXT = 5.0, 1 << 30, 1 << 22
_MOST_BITS = 1 << 12
_RENDERING = threading.RLock()  # the memory's limit is the process's


def limit_chat_templates() -> None:
    """Let transformers stop a chat template that runs on and on or fills the memory.

    Reason: a template is a program that comes with a tokenizer. jinja's sandbox keeps it from
    Python, but not from loops inside loops, calls that call themselves twice, texts that double or
    powers of powers; what it does may depend on the message. From then on, in the whole process, a
    template that takes too much raises jinja2's TemplateError, and so does any other error in it.

    Source: `transformers/utils/chat_template_utils.py`, `_compile_jinja_template`.
    """
    try:
        from jinja2 import Template, TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from transformers.utils import chat_template_utils
    except ImportError:
        return  # nothing renders any
    if hasattr(chat_template_utils.ImmutableSandboxedEnvironment, 'limited'):
        return

    @contextmanager
    def limits() -> Iterator[None]:
        try:
            with _RENDERING, _limited_memory(), _limited_seconds():
                yield
        except TemplateError:
            raise
        except Exception as error:
            said = str(error) or type(error).__name__
            raise TemplateError(f'the chat template fails: {said}') from error

    class LimitedTemplate(Template):
        def render(self, *args: Any, **kwargs: Any) -> str:
            with limits():
                text = super().render(*args, **kwargs)
            if len(text) > _MOST_TEXT:
                raise TemplateError(f'the chat template makes {len(text):,} characters')
            return text

    class LimitedEnvironment(ImmutableSandboxedEnvironment):
        limited = True
        template_class = LimitedTemplate
        intercepted_binops = frozenset({'*', '**'})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if isinstance(left, int) and isinstance(right, int):
                bits, more = left.bit_length(), right.bit_length()
                if (bits * max(right, 0) if operator == '**' else bits + more) > _MOST_BITS:
                    raise TemplateError('the chat template makes a number of too many digits')
            return super().call_binop(context, operator, left, right)

        def from_string(self, *args: Any, **kwargs: Any) -> Template:
            with limits():  # constants are computed now
                return super().from_string(*args, **kwargs)

    rendering: Any = chat_template_utils
    rendering.ImmutableSandboxedEnvironment = LimitedEnvironment
    cached = getattr(rendering._compile_jinja_template, 'cache_clear', None)
    if cached is not None:
        cached()


@contextmanager
def _limited_seconds() -> Iterator[None]:
    """Stop Python code at the next line once it has taken too long; TimeoutError."""
    end = time.thread_time() + _MOST_SECONDS

    def trace(frame: Any, event: str, value: Any) -> Any:
        if time.thread_time() > end:
            raise TimeoutError(f'it takes more than {_MOST_SECONDS:g} seconds')
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Let the process take a limited amount of memory besides what it has, where Linux counts."""
    try:
        import resource

        with open('/proc/self/statm', encoding='ascii') as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = [
        taken + _MOST_MEMORY,
        *(each for each in (soft, hard) if each != resource.RLIM_INFINITY),
    ]
    resource.setrlimit(resource.RLIMIT_AS, (min(most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class CompileSettings(NamedTuple):
    """How a function was compiled.

    Args:
        function: As it was before.
        backend: What compiles its graphs.
        fullgraph: As `torch.compile` has it.
        dynamic: As `torch.compile` has it.
    """

    function: Callable
    backend: Any
    fullgraph: bool
    dynamic: bool | None


def compile_settings(compiled: Callable) -> CompileSettings:
    """Find how a function was compiled by `torch.compile`.

    Reason: a compiled function can't be asked, and to watch what it computes it must be compiled
    once more, with the same settings.

    Source: `torch/_dynamo/eval_frame.py`, `_TorchDynamoContext.__call__`: the context is `self` in
    the closure of what it returns; `innermost_backend`. Read in PyTorch 2.12.

    Raises:
        ValueError: If that isn't there.
    """
    from torch._dynamo import eval_frame

    contexts = [
        cell.cell_contents
        for cell in getattr(compiled, '__closure__', None) or ()
        if isinstance(cell.cell_contents, eval_frame.OptimizeContext)
        and callable(cell.cell_contents.callback)
    ]
    function = getattr(compiled, '_torchdynamo_orig_callable', None)
    if not contexts or function is None:
        raise ValueError(
            'the denoiser is compiled in a way that shows no attention: record with the network as '
            'it was before torch.compile'
        )
    (context,) = contexts
    callback: Any = context.callback
    return CompileSettings(
        function,
        eval_frame.innermost_backend(callback),
        bool(getattr(context, 'fullgraph', False)),
        getattr(context, '_dynamic', None),
    )


def recompile(settings: CompileSettings, backend: Any) -> Callable:
    """Compile a function again, with another backend and otherwise as it was.

    Reason: PyTorch counts the graphs of both together, and runs a function uncompiled where they
    are more than `torch._dynamo.config.recompile_limit`: the second must not use up the first's.

    Source: `torch/_dynamo/cache_size.py`, `compute_cache_size`. `torch.compile` takes a limit of
    its own since PyTorch 2.12.
    """
    import torch

    options: dict[str, Any] = {}
    if 'recompile_limit' in inspect.signature(torch.compile).parameters:
        options['recompile_limit'] = 2 * torch._dynamo.config.recompile_limit
    return torch.compile(
        settings.function,
        backend=backend,
        fullgraph=settings.fullgraph,
        dynamic=settings.dynamic,
        **options,
    )


def keep_operator(operator: Any) -> None:
    """Keep a `torch.library.custom_op` without results in compiled graphs, and in its place.

    Reason: one that says of itself neither that it returns something nor that it changes an
    argument is dropped as useless.

    Source: `torch/_library/custom_ops.py`, `CustomOpDef.register_effect` (PyTorch 2.12), before
    that `torch/_higher_order_ops/effects.py`, `_register_effectful_op`.
    """
    from torch._higher_order_ops import effects

    if hasattr(operator, 'register_effect'):
        operator.register_effect(effects._EffectType.ORDERED)
    else:
        effects._register_effectful_op(operator._opoverload, effects._EffectType.ORDERED)


def show_attention_backends(show: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    """Show a function the arguments of diffusers' attention backends, after each call of one.

    Reason: FlashAttention, SageAttention, FlexAttention, xFormers and others are called past
    `scaled_dot_product_attention`. All of them get queries and keys of shape (batch, tokens, heads,
    channels), after norms and rotary embeddings.

    Source: `diffusers/models/attention_dispatch.py`, `dispatch_attention_fn` and
    `_AttentionBackendRegistry._backends`, since diffusers 0.35.

    Returns:
        What ends it.
    """
    try:
        from diffusers.models import attention_dispatch
    except ImportError:
        return lambda: None
    backends = getattr(attention_dispatch._AttentionBackendRegistry, '_backends', {})
    before = dict(backends)

    def shown(backend: Callable) -> Callable:
        @functools.wraps(backend)
        def call(*args: Any, **kwargs: Any) -> Any:
            output = backend(*args, **kwargs)
            show(kwargs)
            return output

        return call

    backends.update({name: shown(backend) for name, backend in before.items()})

    def end() -> None:
        for name, backend in before.items():
            backends[name] = backend

    return end
