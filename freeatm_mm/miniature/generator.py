"""Training the miniature generator: a genuine, small diffusers pipeline.

Three stages, each resumable: scenes of the training split are composed, an ``AutoencoderKL`` is
trained on them, and a denoiser learns to denoise its latents, together with the CLIP text models
that read the captions. The denoiser is the ``UNet2DConditionModel`` of a
``StableDiffusionPipeline``, or the ``SD3Transformer2DModel`` of a ``StableDiffusion3Pipeline``.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from freeatm_mm import compat
from freeatm_mm.errors import InputError, moving_to
from freeatm_mm.files import atomic_write
from freeatm_mm.generation.pipelines import load_pipeline
from freeatm_mm.miniature.compose import compose_scenes
from freeatm_mm.miniature.plan import GeneratorPlan
from freeatm_mm.miniature.scenes import SIDE
from freeatm_mm.miniature.sources import BACKGROUNDS, COLOURS, NOUNS
from freeatm_mm.miniature.tensors import images_to_tensor
from freeatm_mm.progress import progress_bar
from freeatm_mm.torch_files import read_torch_file

__all__ = ['train_generator']

TOKENS = 20  # length of a tokenized caption; the longest has 18 tokens with its two ends
_START, _END = '<|startoftext|>', '<|endoftext|>'
_CROP = 32  # pixels; side of the crops that the autoencoder is trained on
LOG_STEPS = 100  # between two points of the loss curve, and looks at the clock
_EMPTY_CAPTION_SHARE = 0.1  # captions dropped in training, for classifier-free guidance


def train_generator(
    sources: str | Path,
    work: str | Path,
    out: str | Path,
    plan: GeneratorPlan | None = None,
    device: str = 'cpu',
    workers: int | None = None,
    minutes: float | None = None,
    compile: bool = False,
    keep: Sequence[float] = (),
) -> bool:
    """Train the miniature generator and save it as a diffusers folder.

    Started again after an interruption, it goes on from the last checkpoint.

    Args:
        sources: What `freeatm_mm.miniature.sources.fetch_sources` returned.
        work: Folder for composed scenes, checkpoints and loss curves.
        out: Folder for the finished pipeline.
        plan: How long and on how much to train; by default that of the shipped generator.
        device: ``'cpu'`` or ``'cuda'``.
        workers: Processes that compose scenes; one per core by default.
        minutes: Stop at a checkpoint after this long, to be resumed later.
        compile: Whether to use ``torch.compile``; pays on a GPU.
        keep: Shares of the denoiser's latents, between 0 and 1, after each of which the pipeline
            is saved as it is then, with averaged weights, in ``<work>/at-<share>``. The training
            goes on as it would without.

    Returns:
        Whether training is finished; ``out`` is written only then.

    Raises:
        ValueError: If ``work`` belongs to a run with another plan, or a share is out of range.
        InputError: If the training is past a share that was not kept.
    """
    work, plan = Path(work), plan or GeneratorPlan()
    if not all(0 < share < 1 for share in keep):
        raise ValueError(f'keep must be shares between 0 and 1, got {[*keep]}')
    if keep and not plan.unet_samples:
        raise ValueError('keep needs unet_samples above 0: no denoiser is trained')
    deadline = time.monotonic() + 60 * minutes if minutes is not None else float('inf')
    _check_plan(work / 'plan.json', plan)
    images, captions = _composed(sources, work, plan, workers)
    torch.manual_seed(plan.seed)
    tokenizer = make_tokenizer(work / 'tokenizer')
    tokens = tokenizer(
        captions, padding='max_length', truncation=False, max_length=TOKENS, return_tensors='pt'
    ).input_ids
    if tokens.shape[1] > TOKENS:
        raise ValueError(f'a caption has {tokens.shape[1]} tokens, more than {TOKENS}')
    torch.backends.cudnn.benchmark = True
    if plan.start_from:
        start = load_pipeline(plan.start_from, device='cpu').pipe
        if start.tokenizer.get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"{plan.start_from} was trained on other words than this world's")
        vae, networks = make_vae(), _make_networks(plan, tokenizer)
        vae.load_state_dict(start.vae.state_dict())
        _copy_networks(networks, start)
        vae.eval()
        vae.register_to_config(scaling_factor=start.vae.config.scaling_factor)
        with moving_to(device, 'the autoencoder'):
            vae.to(device)
        latents = _encoded(vae, images, work / 'latents.npy', device)
        if not _train_decoder(vae, images, latents, work, plan, device, deadline):
            return False
    else:
        vae = make_vae()
        if not _train_vae(vae, images, work, plan, device, deadline):
            return False
        latents = _encoded(vae, images, work / 'latents.npy', device)
        vae.register_to_config(scaling_factor=round(float(1 / latents.float().std()), 5))
        torch.manual_seed(plan.seed)  # the same weights whether or not the run was stopped before
        networks = _make_networks(plan, tokenizer)
    latents = latents * vae.config.scaling_factor
    if compile:
        networks[_DENOISER[plan.architecture]].compile()
    empty = tokenizer('', padding='max_length', max_length=TOKENS, return_tensors='pt').input_ids

    def save(folder: Path) -> None:
        _save_pipeline(copy.deepcopy(vae), tokenizer, copy.deepcopy(networks), folder)

    if plan.unet_samples and not _train_denoiser(
        networks, latents, tokens, empty, work, plan, device, deadline, keep, save
    ):
        return False
    _save_pipeline(vae, tokenizer, networks, Path(out))
    return True


def _save_pipeline(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, networks: dict[str, Any], out: Path
) -> None:
    pipeline = make_pipeline(vae, tokenizer, networks)
    pipeline.to(dtype=torch.float16)  # half the bytes
    pipeline.save_pretrained(out, safe_serialization=True)
    # Where no dtype is asked for, transformers 5 loads what the config says, and diffusers float32.
    for config in out.glob('text_encoder*/config.json'):
        said = json.loads(config.read_text(encoding='utf-8'))
        said['torch_dtype'] = 'float32'
        config.write_text(json.dumps(said, indent=2, sort_keys=True) + '\n', encoding='utf-8')


_DENOISER = {'unet': 'unet', 'mmdit': 'transformer'}


def _make_networks(plan: GeneratorPlan, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """What is trained on latents, by the names that a pipeline has for them."""
    if plan.architecture == 'unet':
        return {'unet': make_unet(), 'text_encoder': make_text_encoder(tokenizer)}
    return {
        'transformer': make_transformer(),
        'text_encoder': make_text_encoder(tokenizer, 128, CLIPTextModelWithProjection),
        'text_encoder_2': make_text_encoder(tokenizer, 64, CLIPTextModelWithProjection),
    }


def _copy_networks(networks: dict[str, Any], start: Any) -> None:
    """Copy a generator's networks; from one with another denoiser the text model alone."""
    same = all(getattr(start, name, None) is not None for name in networks)
    for name, part in networks.items():
        if same:
            part.load_state_dict(getattr(start, name).state_dict())
        elif name == 'text_encoder':
            part.text_model.load_state_dict(start.text_encoder.text_model.state_dict())


def make_pipeline(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, networks: dict[str, Any]
) -> StableDiffusionPipeline | StableDiffusion3Pipeline:
    """Put a pipeline together from its trained parts, on the CPU."""
    networks = {name: part.cpu() for name, part in networks.items()}
    if 'unet' in networks:
        return StableDiffusionPipeline(
            vae=vae.cpu(),
            tokenizer=tokenizer,
            scheduler=DPMSolverMultistepScheduler.from_config(_noise_schedule().config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **networks,
        )
    vae.register_to_config(shift_factor=0.0)
    return StableDiffusion3Pipeline(
        vae=vae.cpu(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
        text_encoder_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **networks,
    )


def _noise_schedule() -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule='scaled_linear',
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type='v_prediction',
        clip_sample=False,
        steps_offset=1,
    )


def make_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """Make a CLIP tokenizer in whose byte-pair vocabulary each word of the world is one token.

    The merges are found here, and not by the ``tokenizers`` library's trainer, because that one
    numbers its tokens differently in every process.
    """
    alphabet = sorted(bytes_to_unicode().values())
    merges: list[tuple[str, str]] = []
    for word in sorted(
        {
            *NOUNS,
            *COLOURS,
            *' '.join(BACKGROUNDS.values()).split(),
            'a',
            'an',
            'and',
            'are',
            'is',
            'with',
        }
    ):
        pieces = _merged([*word[:-1], word[-1] + '</w>'], merges)
        while len(pieces) > 1:  # earlier words keep their merges, whose rank is lower
            merges.append((pieces[0], pieces[1]))
            pieces = _merged(pieces, merges)
    vocabulary = [
        *alphabet,
        *(letter + '</w>' for letter in alphabet),
        *map(''.join, merges),
        _START,
        _END,
    ]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'vocab.json').write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *map(' '.join, merges)]) + '\n')
    return CLIPTokenizer(
        str(folder / 'vocab.json'),
        str(folder / 'merges.txt'),
        unk_token=_END,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        model_max_length=TOKENS,
    )


def _merged(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Apply byte-pair merges to a word, those of lowest rank first."""
    for left, right in merges:
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == (left, right):
                pieces[i : i + 2] = [left + right]
            i += 1
    return pieces


def make_vae() -> AutoencoderKL:
    """Make the autoencoder: (3, 64, 64) images to (4, 16, 16) latents.

    No attention in the middle, so that it can be trained on crops, at a quarter of the cost.
    """
    return AutoencoderKL(
        down_block_types=('DownEncoderBlock2D',) * 3,
        up_block_types=('UpDecoderBlock2D',) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def make_unet() -> UNet2DConditionModel:
    """Make the UNet: (4, 16, 16) latents, cross-attention at 8x8 and 4x4.

    Few channels and no attention where maps are large, so that a step is cheap. Diffusers'
    ``attention_head_dim`` is the number of heads here.
    """
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_transformer() -> SD3Transformer2DModel:
    """Make the transformer: (4, 16, 16) latents in patches of 2x2, so 8x8 image tokens.

    Like Stable Diffusion 3's, its modulation begins at zero, so that each block begins as no
    change.
    """
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=192,
        caption_projection_dim=128,
        pooled_projection_dim=192,
        pos_embed_max_size=SIDE // 8,
        qk_norm='rms_norm',
    )
    ends = [transformer.proj_out, transformer.norm_out.linear]
    for block in transformer.transformer_blocks:
        ends += [block.norm1.linear, block.norm1_context.linear]
    for linear in ends:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


def make_text_encoder(
    tokenizer: CLIPTokenizer, width: int = 128, model: Any = CLIPTextModel
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Make the CLIP text model. Two layers: deeper ones spread a noun over later tokens."""
    return model(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _check_plan(path: Path, plan: GeneratorPlan) -> None:
    if path.exists():
        old = json.loads(path.read_text())
        changed = [
            key
            for key, value in asdict(plan).items()
            if old.get(key, getattr(GeneratorPlan, key)) != value
        ]
        if changed:
            raise ValueError(
                f'{path.parent} holds a run with another plan ({", ".join(changed)} '
                'differ): choose another work folder, or delete this one'
            )
    else:
        with atomic_write(path) as file:
            file.write(json.dumps(asdict(plan), indent=1).encode())


def _composed(
    sources: str | Path, work: Path, plan: GeneratorPlan, workers: int | None
) -> tuple[np.ndarray, list[str]]:
    """Compose the training scenes once; the file of captions is written last."""
    captions_path, images_path = work / 'captions.json', work / 'images.npy'
    if not captions_path.exists():
        images = np.lib.format.open_memmap(
            images_path, 'w+', np.uint8, (plan.scenes, SIDE, SIDE, 3)
        )
        captions = []
        for index, scene in enumerate(
            compose_scenes(sources, 'train', plan.scenes, plan.seed, workers)
        ):
            images[index] = scene.image
            captions.append(scene.record.prompt)
        images.flush()
        with atomic_write(captions_path) as file:
            file.write(json.dumps(captions).encode())
    return np.load(images_path, mmap_mode='r'), json.loads(captions_path.read_text())


class _Training:
    """The loop that both stages share: schedule, checkpoints, resume, loss curve, deadline."""

    def __init__(
        self,
        name: str,
        parts: dict[str, nn.Module],
        samples: int,
        batch_size: int,
        lr: float,
        work: Path,
        device: str,
        seed: int,
        decay: float = 0.0,
        muon: bool = False,
    ) -> None:
        self.name, self.parts, self.device, self.seed = name, parts, device, seed
        self.steps = max(1, samples // batch_size)
        self.batch_size = batch_size
        self.path = work / f'{name}.pt'
        self.curve_path = work / f'{name}_loss.json'
        with moving_to(device, f'the {name}'):
            named = [item for part in parts.values() for item in part.to(device).named_parameters()]
        parameters = [p for _, p in named]
        # Muon is for the matrices between a network's ends, and takes nothing else: a kernel is
        # one of them, seen flat, in the same memory.
        ends = ('embed', 'conv_in', 'conv_out')
        inner = [
            muon
            and p.ndim > 1
            and not any(end in name for end in ends)
            and not name.startswith('proj_out')
            for name, p in named
        ]
        self.matrices = [p for p, is_inner in zip(parameters, inner) if is_inner]
        self.flat = [nn.Parameter(p.detach().flatten(1)) for p in self.matrices]
        rest = [p for p, is_inner in zip(parameters, inner) if not is_inner]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr, weight_decay=decay)
        ]
        if muon:
            if device == 'cpu':
                compat.keep_muon_fast()
            self.optimizers.append(
                torch.optim.Muon(self.flat, lr, weight_decay=decay, adjust_lr_fn='match_rms_adamw')
            )
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(
                optimizer,
                lambda step: (
                    min(1.0, (step + 1) / max(1, 0.02 * self.steps))
                    * 0.5
                    * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
                ),
            )
            for optimizer in self.optimizers
        ]
        self.ema = EMAModel(parameters, decay=0.999, use_ema_warmup=True, power=0.75)
        self.parameters = parameters
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        if self.path.exists():
            self._load()

    def run(
        self,
        loss_of: Callable[[int], Tensor],
        deadline: float,
        keep: Mapping[Path, int] = MappingProxyType({}),
        save: Callable[[Path], None] | None = None,
    ) -> bool:
        """Train to the end or the deadline; return whether the end was reached.

        At the step of each folder of `keep`, `save` writes it with the averaged weights in place.
        """
        bar = progress_bar(
            total=self.steps * self.batch_size,
            initial=self.step * self.batch_size,
            desc=f'training {self.name}',
            unit='sample',
            unit_scale=True,
            mininterval=2.0,
        )
        saved, losses = time.monotonic(), []
        while self.step < self.steps:
            # The random stream depends on the step alone, so that a resumed run repeats nothing.
            torch.manual_seed((self.seed << 32) + self.step + 1)
            loss = loss_of(self.step)
            for parameter in self.parameters:
                parameter.grad = None
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            for flat, matrix in zip(self.flat, self.matrices):
                assert matrix.grad is not None
                flat.grad = matrix.grad.flatten(1)
            for optimizer, schedule in zip(self.optimizers, self.schedules):
                optimizer.step()
                schedule.step()
            self.ema.step(self.parameters)
            self.step += 1
            for folder, step in keep.items():
                if step == self.step and save:
                    self._keep(folder, save)
            losses.append(loss.detach())
            if len(losses) == LOG_STEPS or self.step == self.steps:
                self.curve.append((self.step * self.batch_size, float(torch.stack(losses).mean())))
                bar.set_postfix(loss=f'{self.curve[-1][1]:.4f}', refresh=False)
                losses = []
                if time.monotonic() - saved > 120 or time.monotonic() > deadline:
                    self._save()
                    saved = time.monotonic()
                    if time.monotonic() > deadline:
                        break
            bar.update(self.batch_size)
        bar.close()
        self._save()
        if self.step == self.steps:
            self.ema.copy_to(self.parameters)
            for part in self.parts.values():
                part.eval()
        return self.step == self.steps

    def _keep(self, folder: Path, save: Callable[[Path], None]) -> None:
        unfinished = folder.with_name(f'{folder.name}.unfinished')
        shutil.rmtree(unfinished, ignore_errors=True)
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        save(unfinished)
        self.ema.restore(self.parameters)
        unfinished.rename(folder)

    def _save(self) -> None:
        if not all(bool(part.isfinite().all()) for part in self.parameters):
            raise InputError(
                f'step {self.step} of {self.name}: its weights are NaN or infinite; {self.path} is '
                'left as it was: choose a lower rate'
            )
        state = {
            'step': self.step,
            'curve': self.curve,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'ema': [p.cpu() for p in self.ema.shadow_params],
            'ema_step': self.ema.optimization_step,
            'parts': {name: part.state_dict() for name, part in self.parts.items()},
        }
        with atomic_write(self.path) as file:
            torch.save(state, file)
        with atomic_write(self.curve_path) as file:
            file.write(json.dumps(self.curve).encode())

    def _load(self) -> None:
        state: Any = read_torch_file(self.path)
        self.step, self.curve = state['step'], [tuple(point) for point in state['curve']]
        for optimizer, old in zip(self.optimizers, state['optimizers']):
            optimizer.load_state_dict(old)
        self.ema.shadow_params = [p.to(self.device) for p in state['ema']]
        self.ema.optimization_step = state['ema_step']
        for name, part in self.parts.items():
            part.load_state_dict(state['parts'][name])
        for schedule in self.schedules:
            schedule.last_epoch = self.step  # the rate itself came back with the optimizer


def _train_vae(
    vae: AutoencoderKL,
    images: np.ndarray,
    work: Path,
    plan: GeneratorPlan,
    device: str,
    deadline: float,
) -> bool:
    """Absolute error, and a KL term just strong enough to keep the latents bounded."""
    training = _Training(
        'vae',
        {'vae': vae},
        plan.vae_samples,
        plan.vae_batch_size,
        plan.vae_lr,
        work,
        device,
        plan.seed,
    )

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([plan.seed, step])
        picked = np.sort(rng.integers(len(images), size=plan.vae_batch_size))
        top, left = rng.integers(SIDE - _CROP + 1, size=2)
        crops = images[picked, top : top + _CROP, left : left + _CROP]
        target = images_to_tensor(crops).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
            posterior = vae.encode(target).latent_dist
            output = vae.decode(posterior.sample()).sample
        return F.l1_loss(output.float(), target) + 1e-6 * posterior.kl().float().mean()

    return training.run(loss_of, deadline)


def _train_decoder(
    vae: AutoencoderKL,
    images: np.ndarray,
    latents: Tensor,
    work: Path,
    plan: GeneratorPlan,
    device: str,
    deadline: float,
) -> bool:
    """Absolute error of pixels and of their differences to the next, which blur would lose."""
    if not plan.decoder_samples:
        return True
    parts = {'decoder': vae.decoder, 'post_quant_conv': vae.post_quant_conv}
    training = _Training(
        'decoder',
        parts,
        plan.decoder_samples,
        plan.vae_batch_size,
        plan.decoder_lr,
        work,
        device,
        plan.seed,
        muon=True,
    )
    scale = SIDE // latents.shape[-1]
    cells = _CROP // scale

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([plan.seed, step])
        picked = np.sort(rng.integers(len(images), size=plan.vae_batch_size))
        top, left = rng.integers(latents.shape[-1] - cells + 1, size=2)
        crops = images[
            picked, scale * top : scale * top + _CROP, scale * left : scale * left + _CROP
        ]
        target = images_to_tensor(crops).to(device)
        crop = latents[picked, :, top : top + cells, left : left + cells].float().to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
            output = vae.decode(crop).sample.float()
        return F.l1_loss(output, target) + sum(
            F.l1_loss(output.diff(dim=side), target.diff(dim=side)) for side in (2, 3)
        )

    return training.run(loss_of, deadline)


@torch.no_grad()
def _encoded(vae: AutoencoderKL, images: np.ndarray, path: Path, device: str) -> Tensor:
    """Return float16 (N, 4, 16, 16) latent means on the CPU, computed once and kept in ``path``."""
    if not path.exists():
        means = []
        for i in progress_bar(range(0, len(images), 256), 'encoding', mininterval=2.0):
            batch = images_to_tensor(images[i : i + 256]).to(device)
            means.append(vae.encode(batch).latent_dist.mean.half().cpu().numpy())
        with atomic_write(path) as file:
            np.save(file, np.concatenate(means))
    return torch.from_numpy(np.load(path))


def _train_denoiser(
    networks: dict[str, Any],
    latents: Tensor,
    tokens: Tensor,
    empty: Tensor,
    work: Path,
    plan: GeneratorPlan,
    device: str,
    deadline: float,
    keep: Sequence[float],
    save: Callable[[Path], None],
) -> bool:
    """Denoise latents (v-prediction or flow matching), captions dropped at times for guidance."""
    training = _Training(
        _DENOISER[plan.architecture],
        networks,
        plan.unet_samples,
        plan.unet_batch_size,
        plan.unet_lr,
        work,
        device,
        plan.seed,
        decay=0.01,
        muon=True,
    )
    folders = {}
    for share in keep:
        folder, step = work / f'at-{share:g}', max(1, round(share * training.steps))
        if folder.exists():
            continue
        if step <= training.step:
            raise InputError(
                f'{folder} cannot be kept: the training in {work} is past step {step} of '
                f'{training.steps}; choose another work folder'
            )
        folders[folder] = step
    latents, tokens, empty = latents.to(device), tokens.to(device), empty.to(device)
    size = plan.unet_batch_size
    loss = _v_prediction_loss if plan.architecture == 'unet' else _flow_loss

    def loss_of(step: int) -> Tensor:
        picked = torch.randint(len(latents), (size,), device=device)
        clean = latents[picked].float()
        dropped = torch.rand(size, 1, device=device) < _EMPTY_CAPTION_SHARE
        caption = torch.where(dropped, empty, tokens[picked])
        noise = torch.randn_like(clean)
        # Logit-normal, so that most steps are where shapes are decided, and evenly spread over the
        # batch, so that the loss is less noisy (Esser et al. 2024, section 3.1).
        spread = (torch.arange(size, device=device) + torch.rand(size, device=device)) / size
        t = torch.special.ndtri(spread.clamp(1e-4, 1 - 1e-4)).sigmoid()
        return loss(networks, clean, noise, caption, t, device)

    return training.run(loss_of, deadline, folders, save)


def _v_prediction_loss(
    networks: dict[str, Any], clean: Tensor, noise: Tensor, caption: Tensor, t: Tensor, device: str
) -> Tensor:
    scheduler = _noise_schedule()
    t = (t * scheduler.config.num_train_timesteps).long()
    with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
        text = networks['text_encoder'](caption).last_hidden_state
        output = networks['unet'](scheduler.add_noise(clean, noise, t), t, text).sample
    return F.mse_loss(output.float(), scheduler.get_velocity(clean, noise, t))


def _flow_loss(
    networks: dict[str, Any], clean: Tensor, noise: Tensor, caption: Tensor, t: Tensor, device: str
) -> Tensor:
    share = t[:, None, None, None]
    with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
        read = [
            networks[name](caption, output_hidden_states=True)
            for name in ('text_encoder', 'text_encoder_2')
        ]
        text = torch.cat([each.hidden_states[-2] for each in read], -1)
        # As the pipeline fills in for the third text encoder, which is not there.
        text = torch.cat([text, torch.zeros_like(text)], 1)
        pooled = torch.cat([each.text_embeds for each in read], -1)
        output = networks['transformer'](
            hidden_states=(1 - share) * clean + share * noise,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=1000 * t,
        ).sample
    return F.mse_loss(output.float(), noise - clean)
