"""Negative prompts, LoRAs and a run in a file: generated as diffusers does, recorded, refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from helpers.original_checkpoints import save_original_checkpoint
from helpers.tiny_generators import tiny_flux
from helpers.tiny_pipelines import save_tiny_lora, tiny_stable_diffusion, tiny_stable_diffusion_xl
from helpers.tiny_variants import tiny_sana_sprint
from helpers.tools import exit_code, load_tool
from safetensors.torch import save_file

from freeatm_mm.errors import InputError
from freeatm_mm.generation import (
    GenerationJob,
    ShardSource,
    generate_store,
    load_pipeline,
    pipelines,
    sample_seed,
)
from freeatm_mm.generation.calls import sampling_defaults
from freeatm_mm.generation.loras import add_loras, parse_lora
from freeatm_mm.prompts import Noun, PromptRecord, write_prompts
from freeatm_mm.store import Store, StoreError, verify_store

PROMPTS = [
    PromptRecord(f'{number}', f'a photo of a {noun}', (Noun(noun, 13, 13 + len(noun), noun),))
    for number, noun in enumerate(['dog', 'cat'])
]
SETTINGS = dict(steps=2, image_format='png', batch_size=1)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('options')
    tiny_stable_diffusion().save_pretrained(folder / 'pipeline')
    write_prompts(folder / 'prompts.jsonl', PROMPTS)
    return folder


@pytest.fixture(scope='module')
def lora(folder):
    """A LoRA of the UNet's attention, whose second matrices aren't zero."""
    pytest.importorskip('peft')
    unet = load_pipeline(folder / 'pipeline', device='cpu').pipe.unet
    save_tiny_lora(unet, folder / 'style.safetensors')
    return folder / 'style.safetensors'


def first(source, out):
    generate_store(source, out, progress=False)
    return Store(out)


def test_a_negative_prompt_generates_what_diffusers_generates_with_it(folder, tmp_path):
    pipe = load_pipeline(folder / 'pipeline', device='cpu').pipe
    store = first(ShardSource(pipe, PROMPTS, negative_prompt='a tree', **SETTINGS), tmp_path / 'x')
    generator = torch.Generator().manual_seed(sample_seed(0, '0', 0, 1))
    expected = pipe(
        prompt=[PROMPTS[0].prompt],
        negative_prompt=['a tree'],
        num_inference_steps=2,
        guidance_scale=7.5,
        generator=[generator],
    ).images[0]
    assert np.array_equal(np.asarray(store[0].image), np.asarray(expected))
    assert store.config['negative_prompt'] == 'a tree'
    with pytest.raises(StoreError, match='negative_prompt'):
        generate_store(ShardSource(pipe, PROMPTS, **SETTINGS), tmp_path / 'x', progress=False)


@pytest.mark.parametrize(
    'options, said',
    [
        ({'guidance': 1.0}, 'needs guidance above 1'),
        ({'negative_prompt': 'x' * 20_000}, 'at most'),
    ],
)
def test_negative_prompts_without_effect_are_refused(folder, options, said):
    pipe = load_pipeline(folder / 'pipeline', device='cpu').pipe
    with pytest.raises(ValueError, match=said):
        ShardSource(pipe, PROMPTS, **{'negative_prompt': 'a tree', **SETTINGS, **options})


def test_a_negative_prompt_is_refused_where_guidance_is_in_the_network():
    with pytest.raises(ValueError, match='guidance is an input of its U-Net'):
        ShardSource(lcm(True), PROMPTS, negative_prompt='a tree')


def test_loras_are_in_the_weights_and_in_the_records(folder, lora, tmp_path):
    def weights(*loras):
        loaded = load_pipeline(folder / 'pipeline', device='cpu', loras=loras)
        name = 'down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight'
        unet = loaded.pipe.unet
        assert not any('lora' in key for key, _ in unet.named_parameters())
        return loaded, unet.state_dict()[name]

    plain, whole, half = weights()[1], weights(f'{lora}')[1], weights(f'{lora}:0.5')[1]
    twice = weights(f'{lora}:0.5', f'{lora}:0.5')[1]
    assert (whole - plain).abs().max() > 1e-2
    torch.testing.assert_close(half - plain, (whole - plain) / 2, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(twice, whole, atol=1e-5, rtol=1e-4)
    job = GenerationJob(
        str(folder / 'pipeline'),
        str(folder / 'prompts.jsonl'),
        device='cpu',
        loras=(f'{lora}:0.5',),
        options=SETTINGS,
    )
    store = first(job.source(), tmp_path / 'store')
    (record,) = store.config['loras']
    assert (record['name'], record['weight']) == ('style.safetensors', 0.5)
    paths = (tmp_path / 'store', str(folder / 'pipeline'), str(folder / 'prompts.jsonl'))
    with pytest.raises(StoreError, match='style.safetensors:0.5'):
        GenerationJob.of_store(*paths)
    again = GenerationJob.of_store(*paths, device='cpu', loras=(f'{lora}:0.5',)).source()
    assert again.config == store.config
    assert list(verify_store(tmp_path / 'store', source=again)) == []


@pytest.mark.parametrize('parts', [('transformer', 'text_encoder'), ('text_encoder',)])
def test_loras_are_in_all_networks_that_they_are_made_for(tmp_path, parts):
    """diffusers fuses that of Flux's text encoder only if it is told to."""
    peft = pytest.importorskip('peft')
    pipe = tiny_flux()
    pipe.save_pretrained(tmp_path / 'pipe')
    tensors = {}
    for part, layer in (('transformer', 'to_q'), ('text_encoder', 'q_proj')):
        network = getattr(pipe, part)
        network.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=[layer]))
        state = peft.get_peft_model_state_dict(network)
        if part in parts:
            tensors |= {f'{part}.{key}': torch.ones_like(value) for key, value in state.items()}
    save_file(tensors, tmp_path / 'style.safetensors')
    plain = load_pipeline(tmp_path / 'pipe', device='cpu').pipe
    styled = load_pipeline(
        tmp_path / 'pipe', device='cpu', loras=[f'{tmp_path}/style.safetensors:0.5']
    ).pipe
    for part in ('transformer', 'text_encoder'):
        before, after = (getattr(each, part).state_dict() for each in (plain, styled))
        changed = [key for key in before if not torch.equal(before[key], after[key])]
        assert bool(changed) == (part in parts)
        for key in changed:  # of two ones and two ones each
            torch.testing.assert_close(after[key], before[key] + 0.5 * 2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('left_out', [['text_encoder'], ['unet']])
def test_a_lora_that_is_not_fused_is_refused(folder, lora, monkeypatch, left_out):
    pipe = load_pipeline(folder / 'pipeline', device='cpu').pipe
    fuse = type(pipe).fuse_lora

    def fuse_some(self, components, **options):
        fuse(self, [part for part in components if part not in left_out], **options)

    monkeypatch.setattr(type(pipe), 'fuse_lora', fuse_some)
    if left_out == ['text_encoder']:  # of which the LoRA has nothing
        add_loras(pipe, [(lora, 1.0)])
        return
    with pytest.raises(ValueError, match='does not fuse LoRAs into the unet'):
        add_loras(pipe, [(lora, 1.0)])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache, without a net; call it to have files in a repository."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)

    def put(repo, path, name=None, commit='c' * 40):
        place = tmp_path / 'hub' / f'models--{repo.replace("/", "--")}'
        target = place / 'snapshots' / commit / (name or path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
        (place / 'refs').mkdir(exist_ok=True)
        (place / 'refs/main').write_text(commit)

    return put


def test_loras_of_the_hub_are_known_by_their_names(folder, lora, hub, tmp_path):
    hub('owner/style', lora, 'sub/style.safetensors')
    name = 'owner/style/sub/style.safetensors'
    job = GenerationJob(
        str(folder / 'pipeline'),
        str(folder / 'prompts.jsonl'),
        device='cpu',
        loras=(f'{name}:0.5',),
        options=SETTINGS,
    )
    store = first(job.source(), tmp_path / 'store')
    local = load_pipeline(folder / 'pipeline', device='cpu', loras=[f'{lora}:0.5'])
    (record,) = store.config['loras']
    assert record == {**local.loras[0], 'name': name}
    again = GenerationJob.of_store(
        tmp_path / 'store', str(folder / 'pipeline'), str(folder / 'prompts.jsonl'), device='cpu'
    )
    assert again.loras == (f'{name}:0.5',)
    assert list(verify_store(tmp_path / 'store', source=again.source())) == []
    with pytest.raises(ValueError, match="no file here and can't be had from the hub"):
        load_pipeline(folder / 'pipeline', device='cpu', loras=['owner/none/x.safetensors'])
    for text in ('owner/../x/y.safetensors', '/owner/style/x.safetensors', './a/b/c.safetensors'):
        with pytest.raises(FileNotFoundError, match='there is no LoRA'):
            load_pipeline(folder / 'pipeline', device='cpu', loras=[text])


def save_configs(folder, pipe):
    """A pipeline's configs and tokenizers, without its weights."""
    pipe.save_pretrained(folder)
    for weights in folder.rglob('*.safetensors'):
        weights.unlink()
    return folder


@pytest.fixture(scope='module')
def checkpoint(folder):
    """One file with all weights, and beside it the folder of the configs alone."""
    pipe = load_pipeline(folder / 'pipeline', device='cpu').pipe
    save_original_checkpoint(pipe, folder / 'model.safetensors')
    save_configs(folder / 'configs', pipe)
    return folder / 'model.safetensors'


def test_a_single_file_generates_as_its_folder_does(folder, checkpoint, hub, tmp_path):
    job = GenerationJob(
        str(checkpoint),
        str(folder / 'prompts.jsonl'),
        device='cpu',
        model_config=str(folder / 'configs'),
        options=SETTINGS,
    )
    store = first(job.source(), tmp_path / 'store')
    parts = GenerationJob(str(folder / 'pipeline'), str(folder / 'prompts.jsonl'), device='cpu')
    expected = first(replace(parts, options=SETTINGS).source(), tmp_path / 'expected')
    for one, other in zip(store, expected):  # weights at other addresses are summed in other orders
        difference = np.asarray(one.image, int) - np.asarray(other.image, int)
        assert np.abs(difference).max() <= 1
        np.testing.assert_allclose(one.masks, other.masks, rtol=1e-2, atol=1e-6)
    assert store.config['pipeline'] == 'model' and store.config['revision'].startswith('sha256:')
    # Found again in the hub's cache; another config is another revision.
    hub('owner/configs', folder / 'configs', '.')
    paths = (tmp_path / 'store', str(checkpoint), str(folder / 'prompts.jsonl'))
    again = GenerationJob.of_store(*paths, device='cpu', model_config='owner/configs').source()
    assert again.config == store.config
    assert list(verify_store(tmp_path / 'store', source=again)) == []


def test_a_single_file_with_two_text_encoders_holds_all_their_weights(tmp_path):
    pipe = tiny_stable_diffusion_xl(width_2=40)
    save_original_checkpoint(pipe, tmp_path / 'xl.safetensors')
    configs = save_configs(tmp_path / 'configs', pipe)
    loaded = load_pipeline(tmp_path / 'xl.safetensors', device='cpu', model_config=configs).pipe
    for part in ('unet', 'vae', 'text_encoder', 'text_encoder_2'):
        expected, found = (getattr(each, part).state_dict() for each in (pipe, loaded))
        assert expected.keys() == found.keys()
        for name, weight in expected.items():
            assert torch.equal(weight, found[name]), (part, name)


def test_single_files_that_cannot_be_loaded_are_refused(folder, checkpoint, hub, tmp_path):
    def load(file=checkpoint, **options):
        load_pipeline(file, device='cpu', **options)

    with pytest.raises(ValueError, match='give model_config'):
        load()  # nothing in the hub's cache
    pickle = tmp_path / 'model.ckpt'
    torch.save({}, pickle)
    with pytest.raises(ValueError, match='may be a pickle, which is not loaded'):
        load(pickle)
    with pytest.raises(ValueError, match='variant goes with a folder or hub id'):
        load(variant='fp16')
    with pytest.raises(ValueError, match='model_config goes with a single file'):
        load(folder / 'pipeline', model_config='owner/name')
    with pytest.raises(FileNotFoundError, match='holds no pipeline'):
        load(model_config=tmp_path)
    broken = tmp_path / 'broken.safetensors'
    broken.write_bytes(b'x' * 100)
    with pytest.raises(ValueError, match="can't be loaded"):
        load(broken, model_config=folder / 'configs')


@pytest.mark.parametrize('offload', ['model', 'sequential', 'group'])
def test_offload_is_refused_on_the_cpu(folder, offload):
    with pytest.raises(ValueError, match=f"'{offload}' keeps weights off a GPU .* leave it out"):
        load_pipeline(folder / 'pipeline', device='cpu', offload=offload)


def test_offload_is_diffusers_own(folder, monkeypatch):
    """What is called, as there is no GPU to see it work."""
    pipe, called = tiny_stable_diffusion(), []
    for name in ('model', 'sequential'):
        monkeypatch.setattr(
            type(pipe), f'enable_{name}_cpu_offload', lambda pipe, device: called.append(device)
        )
        pipelines._place(pipe, 'cuda:1', name)
    assert called == ['cuda:1'] * 2
    pipelines._place(pipe, 'cpu', 'group')  # its hooks run anywhere
    assert pipe('a dog', num_inference_steps=1, output_type='np').images.shape[0] == 1
    with pytest.raises(ValueError, match='unknown offload'):
        load_pipeline(folder / 'pipeline', offload='disk')


def test_a_lora_that_does_not_fit_is_refused(folder, lora, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(lora)
    other = {key.replace('attn2', 'attn9'): value for key, value in state.items()}
    save_file(other, tmp_path / 'other.safetensors')
    save_file({'x': torch.zeros(2)}, tmp_path / 'none.safetensors')
    for name in ('other', 'none'):
        with pytest.raises(ValueError, match=f'the LoRA .*{name}.safetensors'):
            load_pipeline(
                folder / 'pipeline', device='cpu', loras=[f'{tmp_path / name}.safetensors']
            )
    dora = {**state, 'lora_unet_x.dora_scale': torch.ones(2)}
    save_file(dora, tmp_path / 'dora.safetensors')
    nan = {key: value * float('nan') for key, value in state.items()}
    save_file(nan, tmp_path / 'nan.safetensors')
    for name, said in (('dora', 'dora_scale'), ('nan', 'NaN or infinite')):
        with pytest.raises(ValueError, match=said):
            load_pipeline(
                folder / 'pipeline', device='cpu', loras=[f'{tmp_path / name}.safetensors']
            )
    for text in ('style.bin', 'style.safetensors:much', 'style.safetensors:nan'):
        with pytest.raises(ValueError, match='is not FILE.safetensors'):
            parse_lora(text)
    with pytest.raises(FileNotFoundError, match='there is no LoRA'):
        parse_lora('none.safetensors')


# --- few-step models ------------------------------------------------------------------------------


def turbo(pipe, kind='EulerAncestralDiscreteScheduler', **config):
    config = dict(timestep_spacing='trailing', prediction_type='epsilon') | config
    pipe.scheduler = getattr(diffusers, kind)(**config)
    pipe.unet.register_to_config(sample_size=64)
    return pipe


def lcm(guided):
    pipe = tiny_stable_diffusion()
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    if guided:
        pipe.unet.register_to_config(time_cond_proj_dim=8)
    return pipe


def flux(dynamic, **config):
    pipe = tiny_flux()
    pipe.transformer.register_to_config(**config)
    pipe.scheduler.register_to_config(use_dynamic_shifting=dynamic)
    return pipe


@pytest.mark.parametrize(
    'make, expected, said',
    [
        (lambda: lcm(True), (4, 8.0), 'latent consistency'),
        (lambda: lcm(False), (4, 1.0), 'latent consistency'),
        (lambda: turbo(tiny_stable_diffusion_xl()), (4, 0.0), 'Turbo'),
        (lambda: turbo(tiny_stable_diffusion(), 'EulerDiscreteScheduler'), (4, 0.0), 'Turbo'),
        (lambda: flux(False, guidance_embeds=False), (4, 0.0), 'schnell'),
        (lambda: tiny_sana_sprint('SanaSprintPipeline'), (2, 4.5), 'Sprint'),
        (tiny_stable_diffusion, (50, 7.5), None),
        (lambda: turbo(tiny_stable_diffusion(), timestep_spacing='leading'), (50, 7.5), None),
        (lambda: turbo(tiny_stable_diffusion(), 'DDIMScheduler'), (50, 7.5), None),
        (
            lambda: turbo(tiny_stable_diffusion(), prediction_type='v_prediction'),
            (50, 7.5),
            None,
        ),
        (lambda: flux(True, guidance_embeds=True), (50, 7.5), None),
    ],
    ids=[
        'lcm-guided',
        'lcm-lora',
        'sdxl-turbo',
        'sd-turbo',
        'schnell',
        'sana-sprint',
        'sd',
        'euler-leading',
        'ddim-trailing',
        'v-prediction',
        'flux-dev',
    ],
)
def test_few_step_models_have_their_own_steps_and_guidance(make, expected, said):
    found = sampling_defaults(make())
    assert (found.steps, found.guidance) == expected
    assert said in found.reason if said else found.reason is None


def test_what_is_chosen_is_said_and_kept_and_what_is_given_wins(folder, tmp_path, capsys, caplog):
    lcm(False).save_pretrained(tmp_path / 'any-name')
    words = [tmp_path / 'any-name', folder / 'prompts.jsonl', tmp_path / 'store', '--quiet']
    words += ['--device', 'cpu']
    tool = load_tool('generate')
    for _ in range(2):  # the same command goes on
        assert exit_code(tool, words) == 0
        (line,) = [text for text in caplog.messages if 'consistency' in text]
        caplog.clear()
        assert 'steps 4, guidance 1 ' in line
    config = Store(tmp_path / 'store').config
    assert (config['steps'], config['guidance']) == (4, 1.0)
    assert exit_code(tool, [*words, '--steps', '3']) == 2
    assert 'steps is 4 there and 3 here' in capsys.readouterr().err
    source = ShardSource(lcm(False), PROMPTS, steps=3)
    assert (source.config['steps'], source.config['guidance']) == (3, 1.0)
    assert 'steps' not in source.chosen and 'guidance 1' in source.chosen
    source = ShardSource(lcm(False), PROMPTS, steps=3, guidance=2.0)
    assert (source.config['guidance'], source.chosen) == (2.0, None)


def with_settings(lora, path, **settings):
    """The LoRA with what PEFT says of its making, as diffusers writes it."""
    from safetensors.torch import load_file, save_file

    text = json.dumps({f'unet.{name}': value for name, value in settings.items()})
    save_file(load_file(lora), path, {'format': 'pt', 'lora_adapter_metadata': text})
    return str(path)


PEFT = dict(r=2, lora_alpha=2, target_modules=['to_q', 'to_v'])


def test_a_lora_has_the_strength_that_it_was_trained_at(folder, lora, tmp_path):
    from peft import LoraConfig

    def added(*loras):
        unet = load_pipeline(folder / 'pipeline', device='cpu', loras=loras).pipe.unet
        return unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_q.weight.detach()

    plain, whole = added(), added(str(lora))
    # All that PEFT would write, as diffusers' own scripts keep it.
    said = LoraConfig(**PEFT | {'lora_alpha': 6}, init_lora_weights='gaussian').to_dict()
    said = {name: list(value) if isinstance(value, set) else value for name, value in said.items()}
    strong = added(with_settings(lora, tmp_path / 'strong.safetensors', **said))
    torch.testing.assert_close(strong - plain, 3 * (whole - plain), atol=1e-5, rtol=1e-4)
    pattern = {'rank_pattern': {}, 'alpha_pattern': {'attn2.to_q': 4}}
    single = added(with_settings(lora, tmp_path / 'single.safetensors', **PEFT, **pattern))
    torch.testing.assert_close(single - plain, 2 * (whole - plain), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    'settings',
    [
        {'megatron_config': {'a': 1}, 'megatron_core': 'this'},  # a module that would be imported
        {'corda_config': {'cache_file': 'x.pt'}, 'init_lora_weights': 'corda'},  # and a pickle
        {'init_lora_weights': 'pissa'},
        {'rank_pattern': {'(a+)+$': 3}},
        {'r': 'two'},
        {'target_modules': '(a+)+$'},
    ],
)
def test_settings_in_a_lora_that_do_more_than_add_it_are_refused(folder, lora, tmp_path, settings):
    path = with_settings(lora, tmp_path / 'odd.safetensors', **PEFT | settings)
    with pytest.raises(ValueError, match='the settings in the LoRA .*odd'):
        load_pipeline(folder / 'pipeline', device='cpu', loras=[path])


def test_another_place_s_worker_finds_the_loras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loras = ('a.safetensors:0.5', 'b.safetensors', 'owner/name/c.safetensors:2')
    (tmp_path / 'm.safetensors').touch()
    job = GenerationJob('m.safetensors', 'p.jsonl', loras=loras, model_config='owner/name')
    assert job.absolute().loras == (
        f'{tmp_path}/a.safetensors:0.5',
        f'{tmp_path}/b.safetensors',
        'owner/name/c.safetensors:2',
    )
    assert job.absolute().pipeline == f'{tmp_path}/m.safetensors'
    assert job.absolute().model_config == 'owner/name'


# --- a run in a file ------------------------------------------------------------------------------


def parsed(tmp_path, text, *words):
    path = tmp_path / 'run.yaml'
    path.write_text(text, encoding='utf-8')
    return load_tool('generate').parse_args(['--config', str(path), *words])


def test_a_file_holds_a_run_and_the_command_line_goes_before_it(tmp_path):
    text = (
        'pipeline: owner/name\nprompts: p.jsonl\nout: store\nsteps: 30\nsize: 512x768\n'
        'negative-prompt: blurry\nlora: [a.safetensors, b.safetensors:0.5]\nquiet: true\n'
        'mask-resolutions: [16, 32]\nmask_steps: "0:25:3"\ndtype: float16\n'
    )
    args = parsed(tmp_path, text, '--steps', '4')
    assert (args.pipeline, args.prompts, args.out) == ('owner/name', 'p.jsonl', 'store')
    assert (args.steps, args.size, args.dtype, args.quiet) == (4, (512, 768), 'float16', True)
    assert args.lora == ['a.safetensors', 'b.safetensors:0.5'] and args.guidance is None
    assert (args.mask_resolutions, args.mask_steps) == ([16, 32], [0, 25, 3])
    args = parsed(tmp_path, text, 'other', 'q.jsonl', 'elsewhere')
    assert (args.pipeline, args.out) == ('other', 'elsewhere')


@pytest.mark.parametrize(
    'text, said',
    [
        ('step: 30', "no option 'step': did you mean steps?"),
        ('steps: many', 'steps'),
        ('steps: [1, 2]', 'steps'),
        ('steps: true', 'takes no True'),
        ('dtype: int8', 'dtype is one of float32'),
        ('quiet: 1', 'quiet is true or false'),
        ('negative_prompt: no', 'takes no False: put quotes around it if it is text'),
        ('steps: 30\nsteps: 40', 'steps is there twice'),
        ('mask-steps: 0:3\nmask_steps: 0:4', 'mask_steps is there twice'),
        ('<<: {steps: 3}', "no option '<<'"),
        ('lora: {a: 1}', 'takes no'),
        ('- steps', 'no names and values'),
        ('{', 'is no YAML'),
        ('x: !!python/object/apply:os.system [ls]', 'is no YAML'),
        ('steps: !!int many', 'is no YAML'),
        ('steps: !!timestamp 2024-99-99', 'is no YAML'),
        ('? [a]\n: 1', 'a name is text'),
        ('"": 1', 'a name is text'),
        (''.join(f'a{n}:\n' for n in range(20_000)), "no option 'a0'"),  # in seconds
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, text, said):
    with pytest.raises(InputError) as raised:
        parsed(tmp_path, text)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    'name, text, read',
    [
        ('revision', '0123456', '0123456'),
        ('revision', '1_000', '1_000'),
        ('variant', '1.50', '1.50'),
        ('negative_prompt', '2024-01-02', '2024-01-02'),
        ('negative_prompt', '"no"', 'no'),
        ('mask_steps', '25:50', [25, 50]),
        ('steps', '"30"', 30),
    ],
)
def test_values_are_read_as_if_they_had_been_typed(tmp_path, name, text, read):
    args = parsed(tmp_path, f'{name}: {text}', 'p', 'q', 'o')
    assert getattr(args, name) == read


def test_a_list_of_the_command_line_takes_the_place_of_the_file_s(tmp_path):
    text = 'lora: [a.safetensors, b.safetensors]\nstage: [two, three]\n'
    args = parsed(tmp_path, text, 'p', 'q', 'o', '--lora', 'c.safetensors')
    assert (args.lora, args.stage) == (['c.safetensors'], ['two', 'three'])


def test_a_few_lines_of_references_are_no_flood(tmp_path):
    lines = ['lora:', '- &a0 [x, x, x, x, x, x, x, x, x, x]']
    lines += [f'- &a{n + 1} [{", ".join([f"*a{n}"] * 10)}]' for n in range(12)]
    with pytest.raises(InputError, match='lora takes no') as raised:
        parsed(tmp_path, '\n'.join(lines))
    assert len(str(raised.value)) < 1000


def test_what_is_missing_is_told(tmp_path, capsys):
    (tmp_path / 'run.yaml').write_text('steps: 3')
    tool = load_tool('generate')
    assert exit_code(tool, ['--config', tmp_path / 'run.yaml']) == 2
    assert 'required: pipeline, prompts, out' in capsys.readouterr().err
    assert exit_code(tool, ['--config', tmp_path / 'none.yaml']) == 2
    assert 'none.yaml' in capsys.readouterr().err


def test_the_command_runs_a_file(folder, tmp_path):
    lines = {
        'pipeline': str(folder / 'pipeline'),
        'prompts': str(folder / 'prompts.jsonl'),
        'out': str(tmp_path / 'store'),
        'steps': 1,
        'device': 'cpu',
        'negative-prompt': 'a tree',
        'quiet': True,
    }
    (tmp_path / 'run.yaml').write_text(json.dumps(lines))
    assert exit_code(load_tool('generate'), ['--config', tmp_path / 'run.yaml']) == 0
    assert Store(tmp_path / 'store').config['negative_prompt'] == 'a tree'
