"""Every family is shown images that exist, or says why not.

What the network is given is compared with latents, noise and packing that are made here by each
family's own formulas, and with what the pipeline's own decoding makes of them.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from helpers import tiny_generators as tiny
from helpers import tiny_pipelines
from helpers import tiny_transformers as transformers
from helpers import tiny_variants as variants
from helpers.two_prompts import NOUNS, PROMPTS

from freeatm_mm.attention import AttentionRecorder
from freeatm_mm.attention.families import FAMILIES, call_names
from freeatm_mm.generation.calls import sampling_options
from freeatm_mm.generation.existing import _no_guidance
from freeatm_mm.generation.levels import NoiseLevels, ShownImages, _standing_in

LEVELS = (200, 450)
SAMPLE, TIME = ('sample', 'hidden_states', 'x'), ('timestep', 'timesteps', 't')


def patches(x, size=2):
    """(B, C, h, w) as (B, C, rows, p, columns, q)."""
    return x.unflatten(3, (-1, size)).unflatten(2, (-1, size))


def channels_first(x, size=2):
    """A token's channels, then its pixels."""
    return patches(x, size).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def channels_last(x):
    """A token's pixels, then its channels."""
    return patches(x).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def factor(z, vae):
    return z * vae.config.scaling_factor


def shift_and_factor(z, vae):
    return (z - vae.config.shift_factor) * vae.config.scaling_factor


def mean_and_deviation(z, vae):
    shape = (1, -1) + (1,) * (z.ndim - 2)
    mean, std = (
        torch.tensor(vae.config[f'latents_{name}']).view(shape) for name in ('mean', 'std')
    )
    return (z - mean) / std


def statistics(z, vae, epsilon=None, pack=lambda x: x):
    """Patches normalised by the batch norm of the VAE, with their channels in its order."""
    tokens = pack(z) if pack is channels_last else channels_first(z)
    epsilon = vae.config.batch_norm_eps if epsilon is None else epsilon
    tokens = (tokens - vae.bn.running_mean) / (vae.bn.running_var + epsilon).sqrt()
    if pack is channels_last:
        return tokens
    return tokens.transpose(1, 2).unflatten(2, (z.shape[2] // 2, z.shape[3] // 2))


def one_plane(x):
    return x[:, :, 0] if x.ndim == 5 else x


class Look(NamedTuple):
    """How a family is shown images.

    Attributes:
        make: Builds a tiny pipeline.
        scaled: Of the VAE's latents, before noise.
        packed: What the network is given.
        time: What the network is told of the level.
        options: Of the call.
        flow: Whether the noise is that of flow matching.
        size: As the images are shown.
        ratio: Width to height.
        noise: Deviation of the noise.
    """

    make: Callable[[], Any]
    scaled: Callable = factor
    packed: Callable = lambda x: x
    time: Callable = lambda level: level
    options: dict = {}
    flow: bool = False
    size: int | None = 64
    ratio: tuple = (3, 2)
    noise: float = 1.0


def thousandth(level):
    return level / 1000


def of_image(level):
    return 1 - level / 1000


def frame_last(x):
    return x.permute(0, 2, 3, 1)[:, None]


def listed(x):
    return list(x[:, :, None])


def listed_with_none(x):
    return [[image] for image in listed(x)]


def changed(make, **attributes):
    """A pipeline with some of its attributes as a tiny one needs them."""

    def changed():
        pipe = make()
        for name, value in attributes.items():
            setattr(pipe, name, value)
        return pipe

    return changed


def ideogram():
    pipe = transformers.tiny_ideogram4()
    inspect.getmodule(type(pipe)).QWEN3_VL_ACTIVATION_LAYERS = (0, 1)
    return pipe


flow = functools.partial(Look, flow=True)
packed_flow = functools.partial(
    flow, scaled=shift_and_factor, packed=channels_first, time=thousandth
)
qwen_flow = functools.partial(flow, scaled=mean_and_deviation, time=thousandth)
SHORT = dict(max_sequence_length=64)
LAYERS = dict(text_encoder_out_layers=(1, 2), max_sequence_length=128)

LOOKS = {
    'AuraFlow': flow(transformers.tiny_aura_flow, time=thousandth),
    'Bria 3.2': flow(transformers.tiny_bria, scaled=shift_and_factor, packed=channels_first),
    'Bria FIBO': flow(
        transformers.tiny_bria_fibo,
        mean_and_deviation,
        lambda x: x.flatten(2).transpose(1, 2),
        size=128,
    ),
    'Chroma': packed_flow(tiny.tiny_chroma, options=SHORT),
    'CogView 3 Plus': Look(transformers.tiny_cogview3),
    'CogView 4': flow(transformers.tiny_cogview4),
    'DeepFloyd IF': Look(tiny_pipelines.tiny_if, scaled=lambda z, vae: z, size=32),
    'ERNIE-Image': flow(transformers.tiny_ernie_image, functools.partial(statistics, epsilon=1e-5)),
    'Flux.1': packed_flow(tiny.tiny_flux, options=SHORT),
    'Flux.2': flow(
        tiny.tiny_flux2,
        statistics,
        lambda x: x.flatten(2).transpose(1, 2),
        thousandth,
        LAYERS | dict(max_sequence_length=192),
    ),
    'Flux.2 Klein': flow(
        tiny.tiny_flux2_klein,
        statistics,
        lambda x: x.flatten(2).transpose(1, 2),
        thousandth,
        LAYERS,
    ),
    'Wan with one frame': flow(
        transformers.tiny_wan, mean_and_deviation, lambda x: x, options=SHORT
    ),
    'HiDream-I1': flow(tiny.tiny_hidream, shift_and_factor, size=None),
    'HunyuanDiT': Look(tiny.tiny_hunyuan_dit, size=128),
    'HunyuanImage 2.1': flow(functools.partial(tiny.tiny_hunyuan_image, guidance=3.5)),
    'Ideogram 4': flow(
        ideogram,
        functools.partial(statistics, pack=channels_last),
        lambda x: torch.cat([x.new_zeros(len(x), 96, x.shape[2]), x], 1),
        of_image,
        dict(max_sequence_length=96),
    ),
    'Kandinsky 3': Look(tiny.tiny_kandinsky3, lambda z, vae: z, size=64),
    'Kandinsky 5': flow(transformers.tiny_kandinsky5, packed=frame_last, size=None),
    'Kolors': Look(tiny.tiny_kolors),
    'Krea 2': qwen_flow(transformers.tiny_krea2, packed=channels_first, options=SHORT),
    'LongCat-Image': packed_flow(changed(transformers.tiny_longcat_image, tokenizer_max_length=64)),
    'Lumina-Next': flow(tiny.tiny_lumina, time=of_image, size=128),
    'Lumina-Image 2': flow(tiny.tiny_lumina2, shift_and_factor, time=of_image, size=128),
    'NucleusMoE-Image': qwen_flow(tiny.tiny_nucleus, packed=channels_first),
    'Ovis-Image': packed_flow(
        changed(transformers.tiny_ovis_image, user_prompt_begin_id=8), options=SHORT
    ),
    'PixArt-alpha and PixArt-sigma': Look(tiny.tiny_pixart),
    'PRX': flow(tiny.tiny_prx, shift_and_factor, time=thousandth),
    'PRX in pixels': flow(
        tiny.tiny_prx_pixel, lambda z, vae: z, time=thousandth, size=32, noise=2.0
    ),
    'Qwen-Image': qwen_flow(tiny.tiny_qwen_image, packed=channels_first),
    'Qwen-Image 2.1': qwen_flow(
        tiny.tiny_qwen_image_21,
        packed=lambda x: x.flatten(2).transpose(1, 2),
        options=dict(use_kv_cache=False),
        size=128,
    ),
    'Sana': flow(tiny.tiny_sana, size=32, ratio=(1, 1)),
    'Stable Diffusion 1.x, 2.x and LCM': Look(tiny_pipelines.tiny_stable_diffusion),
    'Stable Diffusion XL': Look(tiny_pipelines.tiny_stable_diffusion_xl),
    'latent diffusion (LDM) with BERT': Look(tiny.tiny_latent_diffusion),
    'Stable Diffusion 3 and 3.5': flow(tiny.tiny_stable_diffusion_3, shift_and_factor),
    'Z-Image': flow(tiny.tiny_z_image, shift_and_factor, listed, of_image),
    'Z-Image-Omni': flow(tiny.tiny_z_image_omni, shift_and_factor, listed_with_none, of_image),
}


def built(name):
    """The tiny pipeline of a family, whose VAE has statistics that matter."""
    look = LOOKS[name]
    family = next(family for family in FAMILIES if family.name == name)
    if not any(hasattr(diffusers, pipeline) for pipeline in family.pipelines[:1]):
        pytest.skip(f'diffusers {diffusers.__version__} has no {family.pipelines[0]}')
    pipe = look.make()
    vae = getattr(pipe, family.latents.vae, None) if family.latents.vae else None
    if vae is not None:
        torch.manual_seed(7)
        if hasattr(vae, 'bn'):
            vae.bn.running_mean.normal_()
            vae.bn.running_var.uniform_(0.5, 2)
        if vae.config.get('latents_mean') is not None:
            count = len(vae.config.latents_mean)
            vae.register_to_config(
                latents_mean=torch.randn(count).tolist(),
                latents_std=(torch.rand(count) + 0.5).tolist(),
            )
        if vae.config.get('shift_factor') is not None:
            vae.register_to_config(shift_factor=0.15)
    return pipe, family, vae


def mixed(pipe, look, clean):
    """The clean latents with the noise of training, one after the other for each level."""
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    for level in LEVELS:
        noise = torch.stack([torch.randn(clean.shape[1:], generator=g) for g in generators])
        if look.flow:
            yield level, (1 - level / 1000) * clean + level / 1000 * look.noise * noise
        else:
            scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
            yield level, scheduler.add_noise(clean, noise, torch.full((2,), level))


def replaced(args, kwargs, position, names, value):
    """Arguments of a call with another one in the place of one of them."""
    args, kwargs = list(args), dict(kwargs)
    for name in names:
        if name in kwargs:
            kwargs[name] = value
            return args, kwargs
    args[position] = value
    return args, kwargs


@pytest.mark.parametrize('name', LOOKS)
@torch.no_grad()
def test_the_network_sees_the_noised_image(name, monkeypatch):
    pipe, family, vae = built(name)
    look, denoiser = LOOKS[name], getattr(pipe, family.denoiser)
    shown = ShownImages(pipe, LEVELS, look.size)
    height, width = shown.seen(*look.ratio)
    assert height < width or look.ratio == (1, 1)
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1
    options = sampling_options(pipe, steps=len(LEVELS), guidance=_no_guidance(pipe)) | look.options
    negative = call_names(pipe).negative_prompt
    said = {} if negative is None else {'negative_prompt': [negative] * 2}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    with AttentionRecorder(pipe, PROMPTS, NOUNS, call_options=options) as recorder:
        shown.show(images, PROMPTS, generators, options | said)
    assert recorder.num_steps == 2

    # An ordinary call tells what else the network is given.
    seen = []
    hook = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    size = dict(height=height, width=width, num_inference_steps=1)
    pipe(prompt=list(PROMPTS), **options | said | size, output_type='latent')
    hook.remove()
    assert len(seen) == 1
    encoded = images
    if vae is not None:
        given = images
        if family.latents.alpha:
            given = torch.cat([given, torch.ones_like(given[:, :1])], 1)
        found = vae.encode(given[:, :, None] if family.latents.frames else given)
        distribution = getattr(found, 'latent_dist', None)
        encoded = (
            distribution.mode()
            if distribution is not None
            else found.latent
            if hasattr(found, 'latent')
            else found.latents
        )
    clean = look.scaled(encoded, vae)
    with AttentionRecorder(
        pipe, PROMPTS, NOUNS, call_options=options, check_prompts=False
    ) as expected:
        for level, noised in mixed(pipe, look, clean):
            noised = noised if name.startswith('Wan') else one_plane(noised)
            call = replaced(*seen[0], 0, SAMPLE, look.packed(noised))
            time = torch.full((2,), float(look.time(level)))
            args, kwargs = replaced(*call, 1, TIME, time)
            denoiser(*args, **kwargs)
    for mask, other in zip(recorder.masks(), expected.masks()):
        torch.testing.assert_close(mask, other, rtol=0, atol=1e-6)
        assert other.std() > 1e-9

    if vae is None:
        return
    # The pipeline decodes them to what was encoded.
    decoded = []
    decode = vae.decode
    monkeypatch.setattr(
        vae, 'decode', lambda z, *args, **kwargs: (decoded.append(z), decode(z, *args, **kwargs))[1]
    )
    taken = family.latents
    packed = taken.packed(pipe, clean)
    given = packed if taken.given is None else taken.given(pipe, clean)
    with _standing_in(pipe, shown.levels.timesteps[:1], [packed]):
        pipe(prompt=list(PROMPTS), **options | said | size, latents=given)
    torch.testing.assert_close(
        one_plane(torch.cat(decoded)), one_plane(encoded), rtol=1e-4, atol=1e-5
    )


def test_each_family_is_tested_or_says_why_it_is_not_shown_images():
    refused = [family for family in FAMILIES if isinstance(family.latents, str)]
    assert {family.name for family in FAMILIES} - {row.name for row in refused} == set(LOOKS)
    for family in refused:
        for pipeline in family.pipelines:
            with pytest.raises(ValueError) as refusal:
                ShownImages(type(pipeline, (), {})(), LEVELS)
            assert str(refusal.value) == (
                f"{pipeline} can't look at images that exist: {family.latents}; use the "
                'text-to-image pipeline of another family'
            )


def test_the_docs_name_the_families_that_are_not_shown_images():
    doc = (Path(__file__).parents[2] / 'docs' / 'generators.md').read_text(encoding='utf-8')
    part = doc.split('## Which families look at images that exist\n')[1].split('\n## ')[0]
    rows = dict(re.findall(r'^\| (.+) \| (.+) \|$', part, re.MULTILINE))
    assert rows.pop('not shown images') == 'because' and rows.pop('---') == '---'
    assert rows == {
        family.name: family.latents for family in FAMILIES if isinstance(family.latents, str)
    }


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (
            tiny.tiny_controlnet,
            "can't look at .*: its pipelines generate from an image of .* .image.;",
        ),
        (lambda: variants.tiny_sana_sprint('SanaSprintPipeline'), 'noise .* is unknown'),
        (
            lambda: variants.tiny_stable_unclip('StableUnCLIPPipeline'),
            'its prior generates anew what',
        ),
        (
            tiny.tiny_vq_diffusion,
            'VQDiffusionPipeline gives no masks of nouns: it generates tokens',
        ),
    ],
    ids=['controlnet', 'sprint', 'unclip', 'vq'],
)
def test_pipelines_of_a_family_that_cannot_look_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        ShownImages(make(), LEVELS)


def test_sizes_that_a_pipeline_chooses_are_not_asked_for():
    with pytest.raises(ValueError, match='HiDreamImagePipeline generates at sizes of its own'):
        ShownImages(tiny.tiny_hidream(), LEVELS, 64)


@pytest.fixture(scope='module')
def pipe():
    return tiny_pipelines.tiny_stable_diffusion()


def test_noise_is_that_of_training_whatever_the_sampler(pipe):
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    clean, noise = torch.randn(2, 1, 4, 8, 8)
    config = pipe.scheduler.config
    sampler = EulerDiscreteScheduler.from_config(config)
    sampler.set_timesteps(3)  # what it last sampled with changes nothing
    ours = NoiseLevels(sampler, [300]).noised(clean, noise, 0)
    kept = pipe.scheduler.alphas_cumprod[300]
    torch.testing.assert_close(ours, kept.sqrt() * clean + (1 - kept).sqrt() * noise)
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = NoiseLevels(flow, [300]).noised(clean, noise, 0)
    torch.testing.assert_close(ours, 0.7 * clean + 0.3 * noise)


@pytest.mark.parametrize(
    ('levels', 'message'),
    [
        ([1000], 'noise level 1000 lies outside the schedule of .*: levels are whole .* 0 to 999'),
        ([-1], 'outside the schedule'),
        ([2.5], 'outside the schedule'),
        ([], 'at least one noise level'),
        ([5, 5], 'more than once'),
    ],
)
def test_levels_outside_the_schedule_are_refused(pipe, levels, message):
    with pytest.raises(ValueError, match=message):
        ShownImages(pipe, levels)


def test_sizes_below_one_cell_are_refused(pipe):
    with pytest.raises(ValueError, match='images of 2 pixels a side are too small'):
        ShownImages(pipe, [5], size=2)


def test_the_whole_image_is_seen_in_its_proportions(pipe):
    shown = ShownImages(pipe, [200], size=512)
    assert shown.seen(640, 640) == (512, 512)
    assert shown.seen(640, 480) == (448, 576)
    assert shown.seen(480, 640) == (576, 448)
    assert shown.seen(10_000, 100) == shown.seen(400, 100) == (256, 1024)
    for width, height in ((640, 427), (333, 500), (1920, 1080)):
        sides = shown.seen(width, height)
        assert abs(math.log(sides[1] / sides[0] / (width / height))) < 0.13
        assert 0.8 < sides[0] * sides[1] / 512**2 < 1.25
