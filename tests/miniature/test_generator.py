"""The generator: genuine diffusers parts, trained in stages that resume exactly."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.hostile_checkpoints import reduced
from safetensors.torch import load_file

from freeatm_mm.attention import AttentionRecorder
from freeatm_mm.errors import InputError
from freeatm_mm.generation import generate, load_pipeline
from freeatm_mm.miniature import generator
from freeatm_mm.miniature.compose import compose_scenes
from freeatm_mm.miniature.evaluation import record_noised_scenes
from freeatm_mm.miniature.generator import _Training, make_tokenizer, train_generator
from freeatm_mm.miniature.plan import GeneratorPlan
from freeatm_mm.miniature.scenes import sample_prompt
from freeatm_mm.miniature.sources import BACKGROUNDS, COLOURS, NOUNS
from freeatm_mm.store import Store

SHIPPED = Path(__file__).parents[2] / 'weights' / 'miniature-generator'
PLAN = GeneratorPlan(scenes=8, vae_samples=12, unet_samples=12, vae_batch_size=4, unet_batch_size=4)
WEIGHTS = ('vae/diffusion_pytorch_model', 'unet/diffusion_pytorch_model', 'text_encoder/model')


def test_every_word_of_the_world_is_one_token(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    words = {*NOUNS, *COLOURS, *' '.join(BACKGROUNDS.values()).split(), 'with', 'and', 'is', 'are'}
    for word in words:
        assert tokenizer.tokenize(word) == [word + '</w>']
    prompt = 'a red dress, a bird and a fish are on the grass'
    ids = tokenizer(prompt, padding='max_length').input_ids
    assert len(ids) == generator.TOKENS and ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompt.replace(',', ' ,')
    longest = max(
        len(tokenizer(sample_prompt(str(number), 1).prompt).input_ids) for number in range(500)
    )
    assert longest <= generator.TOKENS


@pytest.fixture(scope='module')
def trained(source_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp('generator')
    work, out = folder / 'work', folder / 'out'
    assert train_generator(source_folder, work, out, PLAN, workers=1, keep=(0.4, 0.6))
    return folder


def test_it_loads_like_any_other_pipeline(trained):
    pipe = DiffusionPipeline.from_pretrained(trained / 'out', torch_dtype=torch.float32)
    assert type(pipe).__name__ == 'StableDiffusionPipeline'
    image = pipe('a red dress', num_inference_steps=2, output_type='np').images
    assert image.shape == (1, 64, 64, 3)
    assert len(json.loads((trained / 'work' / 'unet_loss.json').read_text())) == 1


@pytest.mark.parametrize('folder', ['shipped', 'trained'])
def test_it_loads_in_one_precision_without_being_told(folder, trained):
    """transformers 5 takes the text encoder's from its config, diffusers float32 for the rest."""
    folder = SHIPPED if folder == 'shipped' else trained / 'out'
    assert (
        json.loads((folder / 'text_encoder' / 'config.json').read_text())['torch_dtype']
        == 'float32'
    )
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert {pipe.text_encoder.dtype, pipe.unet.dtype, pipe.vae.dtype} == {torch.float32}
    pipe('a red dress', num_inference_steps=1, output_type='np')


def test_a_stopped_training_ends_with_the_same_weights(
    source_folder, trained, tmp_path, monkeypatch
):
    # A clock that goes on a minute whenever it is looked at, which every step does now.
    minutes = itertools.count()
    monkeypatch.setattr(generator, 'time', SimpleNamespace(monotonic=lambda: 60.0 * next(minutes)))
    monkeypatch.setattr(generator, 'LOG_STEPS', 1)
    stops = 0
    while not train_generator(
        source_folder,
        tmp_path / 'work',
        tmp_path / 'out',
        PLAN,
        workers=1,
        minutes=4,
        keep=(0.6,),
    ):
        assert not (tmp_path / 'out').exists()
        stops += 1
    assert stops >= 2  # in the middle of both stages
    for folder in ('out', 'work/at-0.6'):
        for name in WEIGHTS:
            once = load_file(trained / folder / f'{name}.safetensors')
            again = load_file(tmp_path / folder / f'{name}.safetensors')
            assert once.keys() == again.keys()
            assert all(torch.equal(once[key], again[key]) for key in once)


def test_generators_are_kept_on_the_way(source_folder, trained, tmp_path):
    """Of one autoencoder, each with its own denoiser; a share that is past is told."""
    folders = [trained / 'work/at-0.4', trained / 'work/at-0.6', trained / 'out']
    vae, unet = (
        [load_file(folder / f'{name}.safetensors') for folder in folders] for name in WEIGHTS[:2]
    )
    for one, two in itertools.pairwise(vae):
        assert all(torch.equal(one[key], two[key]) for key in one)
    for one, two in itertools.combinations(unet, 2):
        assert not torch.equal(one['conv_in.weight'], two['conv_in.weight'])
    pipe = DiffusionPipeline.from_pretrained(folders[0])
    assert (
        pipe('a red dress', num_inference_steps=1, output_type='np').images.shape[1:3] == (64,) * 2
    )
    assert not [*(trained / 'work').glob('*.unfinished')]
    with pytest.raises(InputError, match='is past step 1 of 3'):
        train_generator(source_folder, trained / 'work', tmp_path, PLAN, workers=1, keep=(0.3,))
    with pytest.raises(ValueError, match='between 0 and 1'):
        train_generator(source_folder, tmp_path / 'new', tmp_path, PLAN, keep=(1.0,))


def test_it_goes_on_from_a_finished_generator(source_folder, trained, tmp_path):
    plan = GeneratorPlan(**{**PLAN.__dict__, 'start_from': str(trained / 'out')})
    assert train_generator(source_folder, tmp_path / 'work', tmp_path / 'out', plan, workers=1)
    for name, kept in zip(WEIGHTS, (True, False, False)):
        before = load_file(trained / 'out' / f'{name}.safetensors')
        after = load_file(tmp_path / 'out' / f'{name}.safetensors')
        assert all(torch.equal(before[key], after[key]) for key in before) == kept
    configs = [
        json.loads((folder / 'out/vae/config.json').read_text())['scaling_factor']
        for folder in (trained, tmp_path)
    ]
    assert configs[0] == configs[1]


def test_a_decoder_alone_leaves_latents_and_unet_as_they_are(source_folder, trained, tmp_path):
    plan = GeneratorPlan(
        **{
            **PLAN.__dict__,
            'start_from': str(trained / 'out'),
            'unet_samples': 0,
            'decoder_samples': 16,
        }
    )
    assert train_generator(source_folder, tmp_path / 'work', tmp_path / 'out', plan, workers=1)
    for name in WEIGHTS:
        before = load_file(trained / 'out' / f'{name}.safetensors')
        after = load_file(tmp_path / 'out' / f'{name}.safetensors')
        changed = {key.split('.')[0] for key in before if not torch.equal(before[key], after[key])}
        assert changed == ({'decoder', 'post_quant_conv'} if 'vae' in name else set())


@pytest.fixture(scope='module')
def mmdit(source_folder, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp('mmdit')
    plan = GeneratorPlan(
        **{**PLAN.__dict__, 'start_from': str(trained / 'out'), 'architecture': 'mmdit'}
    )
    assert train_generator(source_folder, folder / 'work', folder / 'out', plan, workers=1)
    return folder, plan


def test_a_small_stable_diffusion_3_is_trained_too(mmdit, trained):
    folder, _ = mmdit
    pipe = load_pipeline(folder / 'out').pipe
    assert type(pipe).__name__ == 'StableDiffusion3Pipeline'
    assert {pipe.text_encoder.dtype, pipe.transformer.dtype, pipe.vae.dtype} == {torch.float32}
    with AttentionRecorder(pipe, 'a red dress', ['dress']) as recorder:
        image = pipe(
            'a red dress',
            num_inference_steps=2,
            height=64,
            width=64,
            max_sequence_length=generator.TOKENS,
            output_type='np',
        ).images
    assert image.shape == (1, 64, 64, 3) and recorder.masks()[0].shape == (1, 8, 8)
    before = load_file(trained / 'out' / 'vae' / 'diffusion_pytorch_model.safetensors')
    after = load_file(folder / 'out' / 'vae' / 'diffusion_pytorch_model.safetensors')
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert len(json.loads((folder / 'work' / 'transformer_loss.json').read_text())) == 1


def test_training_gives_the_transformer_what_its_pipeline_does(mmdit):
    pipe = load_pipeline(mmdit[0] / 'out').pipe
    networks = {
        name: getattr(pipe, name) for name in ('transformer', 'text_encoder', 'text_encoder_2')
    }
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    pipe(
        'a red dress',
        num_inference_steps=1,
        guidance_scale=1,
        height=64,
        width=64,
        max_sequence_length=generator.TOKENS,
        output_type='latent',
    )
    caption = pipe.tokenizer('a red dress', padding='max_length', return_tensors='pt').input_ids
    noise = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        generator._flow_loss(networks, 0 * noise, noise, caption, torch.ones(1), 'cpu')
    drawn, trained_on = seen
    torch.testing.assert_close(trained_on['timestep'], drawn['timestep'])
    for name in ('encoder_hidden_states', 'pooled_projections'):
        torch.testing.assert_close(trained_on[name], drawn[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('options', [{}, {'head_weights': 'contribution'}, {'maps': 'output'}])
def test_the_transformer_looks_at_noised_scenes(mmdit, source_folder, options):
    pipe = load_pipeline(mmdit[0] / 'out').pipe
    scenes = list(compose_scenes(source_folder, 'val', 2, workers=1))
    ((recorder, batch),) = record_noised_scenes(pipe, scenes, (100, 900), **options)
    assert recorder.num_steps == 2
    for masks, scene in zip(recorder.masks(), batch, strict=True):
        assert masks.shape == (len(scene.record.nouns), 8, 8) and masks.isfinite().all()


def test_a_stopped_training_of_the_transformer_ends_with_the_same_weights(
    source_folder, mmdit, tmp_path, monkeypatch
):
    folder, plan = mmdit
    minutes = itertools.count()
    monkeypatch.setattr(generator, 'time', SimpleNamespace(monotonic=lambda: 60.0 * next(minutes)))
    monkeypatch.setattr(generator, 'LOG_STEPS', 1)
    stops = 0
    while not train_generator(
        source_folder, tmp_path / 'work', tmp_path / 'out', plan, workers=1, minutes=4
    ):
        stops += 1
    assert stops
    for name in (
        'transformer/diffusion_pytorch_model',
        'text_encoder/model',
        'text_encoder_2/model',
    ):
        once = load_file(folder / 'out' / f'{name}.safetensors')
        again = load_file(tmp_path / 'out' / f'{name}.safetensors')
        assert all(torch.equal(once[key], again[key]) for key in once)


def test_a_training_that_diverges_stops_and_keeps_what_it_saved(tmp_path):
    net = torch.nn.Linear(2, 1)
    training = _Training('unet', {'net': net}, 8, 2, 1.0, tmp_path, 'cpu', 0)
    training._save()
    before = training.path.read_bytes()
    with pytest.raises(InputError, match='weights are NaN or infinite'):
        training.run(lambda step: net(torch.full((1, 2), math.nan)).sum(), math.inf)
    assert training.path.read_bytes() == before


def test_no_code_of_a_saved_training_is_run(tmp_path):
    (tmp_path / 'unet.pt').write_bytes(reduced(tmp_path / 'marker'))
    with pytest.raises(InputError, match='it holds more than tensors'):
        _Training('unet', {'net': torch.nn.Linear(2, 1)}, 8, 2, 1.0, tmp_path, 'cpu', 0)
    assert not (tmp_path / 'marker').exists()


def test_a_device_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="the unet can't be moved to the device cuda:99: ."):
        _Training('unet', {'net': torch.nn.Linear(2, 1)}, 8, 2, 1.0, tmp_path, 'cuda:99', 0)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="architecture must be one of .*got 'vit'"):
        GeneratorPlan(architecture='vit')


def test_another_plan_is_refused(source_folder, trained):
    with pytest.raises(ValueError, match=r'another plan \(unet_samples, seed differ\)'):
        train_generator(
            source_folder,
            trained / 'work',
            trained / 'out',
            GeneratorPlan(**{**PLAN.__dict__, 'unet_samples': 99, 'seed': 4}),
        )


def test_the_shipped_generator_generates_with_masks(tmp_path):
    files = [path for path in SHIPPED.rglob('*') if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6
    assert not [path for path in files if path.suffix in ('.bin', '.pt', '.pth', '.ckpt', '.pkl')]
    loaded = load_pipeline(SHIPPED)
    prompts = [sample_prompt(str(number), 3) for number in range(4)]
    generate(loaded.pipe, prompts, tmp_path, steps=4, guidance=3.0, batch_size=4, progress=False)
    for sample, record in zip(Store(tmp_path), prompts):
        assert sample.caption == record.prompt and sample.nouns == record.nouns
        assert sample.masks.shape == (len(record.nouns), 8, 8)
        assert (sample.masks.max((1, 2)) == 255).all() and sample.image.size == (64, 64)
