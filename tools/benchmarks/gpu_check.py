"""Run on one GPU every path that differs there, and print one table: ok, failed or skipped.

    python tools/benchmarks/gpu_check.py                       # minutes, on one GPU
    python tools/benchmarks/gpu_check.py --device cpu --tiny   # the same rows, small, on a CPU

Random weights, no downloads. Each row runs in a process of its own, so that a failure, also one
that leaves the GPU unusable for its process, stops none of the others. The exit code is 1 if a row
failed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from freeatm_mm.errors import tool  # noqa: E402
from freeatm_mm.results import package_versions  # noqa: E402

if TYPE_CHECKING:
    import torch

SECONDS = 150
"""Limit of one row."""
METHODS = ('simclr', 'mocov2', 'mae')


class Place(NamedTuple):
    """Where and how large the rows run."""

    device: str
    tiny: bool
    folder: Path

    @property
    def dtype(self) -> torch.dtype:
        """Half precision where there is a GPU for it."""
        import torch

        return torch.float32 if self.device == 'cpu' else torch.float16


class Skipped(Exception):
    """A row that can't run here, with the reason."""


def _seconds(place: Place, function: Callable[[], Any]) -> tuple[float, Any]:
    import torch

    synchronize = torch.cuda.synchronize if place.device == 'cuda' else lambda: None
    synchronize()
    start = time.perf_counter()
    result = function()
    synchronize()
    return time.perf_counter() - start, result


def _record(place: Place, pipe: Any, **call: Any) -> str:
    """Generate with and without the recorder, after each was done once."""
    import recording_case as case
    import torch

    from freeatm_mm.attention import AttentionRecorder

    def generate() -> torch.Tensor:
        return pipe(
            case.PROMPT,
            num_inference_steps=2 if place.tiny else 10,
            output_type='latent',
            generator=torch.Generator().manual_seed(1),
            **call,
        ).images

    def record() -> torch.Tensor:
        with AttentionRecorder(pipe, case.PROMPT, list(case.WORDS)) as recorder:
            latents = generate()
        for masks in recorder.masks('minmax'):
            if not masks.isfinite().all() or recorder.flat:
                raise RuntimeError('masks are flat or not finite')
        return latents

    times, latents = [], []
    for function in (generate, record):
        function()
        seconds, result = _seconds(place, function)
        times.append(seconds)
        latents.append(result)
    same = torch.equal(*latents)
    if not same and not torch.allclose(*latents, rtol=1e-2, atol=1e-2):
        raise RuntimeError('latents with the recorder differ from those without')
    return f'{times[0]:.3g} s plain, {times[1] / times[0]:.3f} times that recorded; latents ' + (
        'the same bit for bit' if same else 'close'
    )


def recorder_sd15(place: Place) -> str:
    """The recorder at Stable Diffusion 1.5's shapes."""
    import recording_case

    pipe = recording_case.build_pipeline(quick=place.tiny).to(place.device, place.dtype)
    return _record(place, pipe, **({'height': 128, 'width': 128} if place.tiny else {}))


def recorder_compiled(place: Place) -> str:
    """The same with compiled blocks."""
    import recording_case

    pipe = recording_case.build_pipeline(quick=place.tiny).to(place.device, place.dtype)
    backend = {'backend': 'aot_eager'} if place.tiny else {}
    pipe.unet.compile_repeated_blocks(**backend)
    return _record(place, pipe, **({'height': 128, 'width': 128} if place.tiny else {}))


def recorder_sdxl(place: Place) -> str:
    """The recorder at Stable Diffusion XL's shapes."""
    import diffusers
    import recording_case
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    base = recording_case.build_pipeline(quick=True)

    def text_encoder(kind: type, width: int) -> torch.nn.Module:
        config = copy.deepcopy(base.text_encoder.config)
        config.hidden_size = config.projection_dim = width
        config.intermediate_size, config.num_attention_heads = 4 * width, width // 64
        return kind(config).eval()

    widths = (64, 64) if place.tiny else (768, 1280)
    shapes: dict[str, Any] = dict(
        block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10)
    )
    if place.tiny:
        shapes = dict(block_out_channels=(32, 32, 64), norm_num_groups=8, layers_per_block=1)
    with torch.device(place.device):
        unet = diffusers.UNet2DConditionModel(
            sample_size=16 if place.tiny else 128,
            down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
            up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
            attention_head_dim=8 if place.tiny else (5, 10, 20),
            use_linear_projection=True,
            addition_embed_type='text_time',
            addition_time_embed_dim=8 if place.tiny else 256,
            projection_class_embeddings_input_dim=6 * (8 if place.tiny else 256) + widths[1],
            cross_attention_dim=sum(widths),
            **shapes,
        )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=text_encoder(CLIPTextModel, widths[0]),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, widths[1]),
        tokenizer=base.tokenizer,
        tokenizer_2=base.tokenizer,
        unet=unet.eval(),
        scheduler=base.scheduler,
    ).to(place.device, place.dtype)
    pipe.set_progress_bar_config(disable=True)
    return _record(place, pipe)


def _training(place: Place, method: str) -> Any:
    import pretraining_cases as cases

    import freeatm_mm.openmmlab  # noqa: F401

    shapes = cases.Shapes()
    folder = ROOT / 'configs'
    if place.tiny:
        shapes, folder = cases.Shapes(batch=2, image=64, mask=16, loaded=2), folder / 'miniature'
    store = cases.make_benchmark_store(place.folder / f'store-{method}', shapes)
    return cases.Training(folder / f'{method}_freeatm.py', store, shapes, place.device)


def _steps(place: Place, training: Any) -> str:
    training.step(True)
    seconds, _ = _seconds(place, lambda: [training.step(True) for _ in range(3)])
    if not all(value.isfinite().all() for value in training.model.parameters()):
        raise RuntimeError('weights are not finite after four steps')
    return f'{1e3 * seconds / 3:.3g} ms a step, {type(training.optimizer).__name__}'


def step(place: Place, method: str) -> str:
    """Training steps as the config has them: mixed precision on a GPU."""
    return _steps(place, _training(place, method))


def synchronized_step(place: Place, method: str) -> str:
    """The same with batch statistics shared between processes, of which there is one."""
    import torch

    if place.device == 'cpu':
        raise Skipped('PyTorch shares batch statistics on accelerators only')
    with _one_process(place):
        training = _training(place, method)
        training.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(training.model)
        return _steps(place, training)


@contextmanager
def _one_process(place: Place) -> Iterator[str]:
    import torch

    backend = 'gloo' if place.device == 'cpu' else 'nccl'
    store = torch.distributed.FileStore(str(place.folder / 'rendezvous'), 1)
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield backend
    finally:
        torch.distributed.destroy_process_group()


def distributed(place: Place) -> str:
    """NCCL (gloo on a CPU) with one process."""
    import torch

    with _one_process(place) as backend:
        value = torch.arange(4.0, device=place.device)
        gathered = [torch.empty_like(value)]
        torch.distributed.all_gather(gathered, value)
        torch.distributed.all_reduce(gathered[0])
        torch.distributed.broadcast(gathered[0], 0)
        if not torch.equal(gathered[0], value):
            raise RuntimeError(f'{backend} changed what one process sent itself')
        return backend


def mmcv_operators(place: Place) -> str:
    """Operators of mmcv that detectors need, against those of the CPU."""
    import torch

    try:
        from mmcv.ops import nms, roi_align
    except ImportError as error:
        raise Skipped(f'mmcv has no operators here: {error}') from error
    torch.manual_seed(0)
    corners = torch.rand(50, 2) * 20
    boxes = torch.cat([corners, corners + 1 + torch.rand(50, 2) * 20], 1)
    scores, features = torch.rand(50), torch.rand(1, 4, 40, 40)
    regions = torch.cat([torch.zeros(50, 1), boxes], 1)
    found = []
    for device in ('cpu', place.device):
        kept = nms(boxes.to(device), scores.to(device), 0.5)[1]
        pooled = roi_align(features.to(device), regions.to(device), 7)
        found.append((kept.cpu(), pooled.cpu()))
    if not torch.equal(found[0][0], found[1][0]):
        raise RuntimeError('nms keeps other boxes than on the CPU')
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)
    return 'nms and roi_align as on the CPU'


def lavis_step(place: Place) -> str:
    """A training step of BLIP with position prompts."""
    import pretraining_cases as cases

    try:
        import blip_cases
    except ImportError as error:
        raise Skipped(f'LAVIS is not installed: {error}') from error
    store = cases.make_benchmark_store(
        place.folder / 'store', cases.Shapes(image=64, mask=16, loaded=8)
    )
    config = ROOT / 'configs/lavis/miniature/blip_pretrain_freeatm.yaml'
    options = [f'datasets.freeatm_pretrain.build_info.store={store}']
    row = next(blip_cases.benchmark_blip(config, options, 2 if place.tiny else 8, 1, place.device))
    return f'{1e3 * row["ours"]:.3g} ms, {row["ratio"]:.3f} times LAVIS'


ROWS: dict[str, Callable[[Place], str]] = {
    'recorder-sd15': recorder_sd15,
    'recorder-sdxl': recorder_sdxl,
    'recorder-compiled': recorder_compiled,
    **{f'step-{name}': lambda place, name=name: step(place, name) for name in METHODS},
    **{
        f'sync-batch-norm-{name}': lambda place, name=name: synchronized_step(place, name)
        for name in METHODS[:2]
    },
    'distributed': distributed,
    'mmcv-operators': mmcv_operators,
    'lavis-step': lavis_step,
}


def check_row(name: str, place: Place) -> dict[str, str]:
    """Run one row in this process.

    Returns:
        `row`, `state` (ok, failed or skipped) and `found`: its figures, or what was wrong.
    """
    try:
        return {'row': name, 'state': 'ok', 'found': ROWS[name](place)}
    except Skipped as reason:
        return {'row': name, 'state': 'skipped', 'found': str(reason)}
    except ModuleNotFoundError as error:
        return {'row': name, 'state': 'skipped', 'found': f'{error.name} is not installed'}
    except Exception as error:  # noqa: BLE001  a table of what fails is what this is for
        found = ' '.join(f'{type(error).__name__}: {error}'.split())
        return {'row': name, 'state': 'failed', 'found': found[:300]}


def check_apart(name: str, place: Place) -> dict[str, str]:
    """Run one row in a process of its own; returns as `check_row`."""
    command = [sys.executable, __file__, '--row', name, '--device', place.device]
    environment = dict(os.environ, HF_HUB_OFFLINE='1')
    try:
        done = subprocess.run(
            command + ['--tiny'] * place.tiny,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        return {'row': name, 'state': 'failed', 'found': f'not done after {SECONDS} s'}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = ' '.join(done.stderr.split())[-300:]
        return {'row': name, 'state': 'failed', 'found': f'exit code {done.returncode}: {last}'}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--device', choices=['cuda', 'cpu'], default='cuda', help='where the rows run (%(default)s)'
    )
    parser.add_argument('--tiny', action='store_true', help='small shapes')
    parser.add_argument(
        '--rows',
        nargs='+',
        choices=ROWS,
        default=list(ROWS),
        metavar='ROW',
        help=f'which to check: {", ".join(ROWS)} (all)',
    )
    parser.add_argument('--row', choices=ROWS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Check, and print the table."""
    args = parse_args(argv)
    import torch  # after the options, so that --help is quick

    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('PyTorch finds no GPU: give --device cpu to run the rows on the CPU')
    with tempfile.TemporaryDirectory() as folder:
        place = Place(args.device, args.tiny, Path(folder))
        if args.row:
            print(json.dumps(check_row(args.row, place)))
            return 0
        device = 'cpu' if args.device == 'cpu' else torch.cuda.get_device_name()
        known = ', '.join(f'{name} {number}' for name, number in package_versions().items())
        print(f'{device}; {known}\n\n| row | state | found |\n| --- | --- | --- |', flush=True)
        failed = 0
        for name in args.rows:
            found = check_apart(name, place)
            failed += found['state'] == 'failed'
            print(f'| {found["row"]} | {found["state"]} | {found["found"]} |', flush=True)
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
