"""Pipelines' folders made to run code, to read pickles or to lead elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import torch
from helpers import tiny_generators as tiny
from helpers.tiny_pipelines import tiny_stable_diffusion

from freeatm_mm.compat import no_code_from_data
from freeatm_mm.generation import load_pipeline
from freeatm_mm.generation.folders import MAX_DEPTH


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pipelines') / 'tiny-sd'
    tiny_stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture()
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / 'hostile')


@pytest.fixture()
def code(tmp_path):
    """Python that leaves a mark when it is run, and the mark; nothing may have left it."""
    marker = tmp_path / 'it-ran'
    yield (
        f'open({str(marker)!r}, "w").close()\n'
        'from diffusers import DDIMScheduler, StableDiffusionPipeline\n'
        'class Mine(StableDiffusionPipeline): pass\nclass Part(DDIMScheduler): pass\n'
    )
    assert not marker.exists()


def edit(folder, **changes):
    path = folder / 'model_index.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def nested(folder, name, depth, code):
    """A pipeline in the place of a part, and so on; the innermost has code."""
    for _ in range(depth):
        shutil.copytree(folder, folder / 'inner', ignore=shutil.ignore_patterns('inner', 'outer'))
        shutil.rmtree(folder / name)
        (folder / 'inner').rename(folder / name)
        edit(folder, **{name: ['diffusers', 'DiffusionPipeline']})
        folder = folder / name
    (folder / 'mine.py').write_text(code)
    edit(folder, _class_name=['mine', 'Mine'])


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def pickled(folder, code):
    class Bomb:
        def __reduce__(self):
            return exec, (code,)

    (folder / 'unet' / 'diffusion_pytorch_model.safetensors').unlink()
    torch.save({'weight': Bomb()}, folder / 'unet' / 'diffusion_pytorch_model.bin')


def weight_list(folder, name):
    (folder / 'unet' / 'diffusion_pytorch_model.safetensors.index.json').write_text(
        json.dumps({'metadata': {}, 'weight_map': {'conv_in.weight': name}})
    )


def config(folder, **changes):
    path = folder / 'text_encoder' / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


HOSTILE = {
    'class of a file': (
        lambda folder, code: (
            write(folder / 'mine.py', code),
            edit(folder, _class_name=['mine', 'Mine']),
        ),
        r"names the pipeline class \['mine', 'Mine'\]",
    ),
    'None.py': (lambda folder, code: write(folder / 'None.py', code), 'code that comes with'),
    'part of a file': (
        lambda folder, code: (
            write(folder / 'scheduler' / 'mine.py', code),
            edit(folder, scheduler=['mine', 'Part']),
        ),
        "takes its scheduler from 'mine'",
    ),
    'part of a file under a known name': (
        lambda folder, code: write(folder / 'scheduler' / 'diffusers.py', code),
        "takes its scheduler from 'diffusers'",
    ),
    'part of any module': (
        lambda folder, code: edit(folder, scheduler=['this', 'Part']),
        "takes its scheduler from 'this'",
    ),
    'part of a module with a path': (
        lambda folder, code: (
            write(folder / 'scheduler' / 'x' / 'y.py', code),
            edit(folder, scheduler=['x/y', 'Part']),
        ),
        "from 'x/y'",
    ),
    'part of a short module': (
        lambda folder, code: edit(folder, scheduler='ab'),
        "its entry 'scheduler' is not the pair",
    ),
    'pipeline in a part': (
        lambda folder, code: nested(folder, 'unet', 1, code),
        'pipelines within pipelines are not loaded',
    ),
    'pipeline in a pipeline in a part': (
        lambda folder, code: nested(folder, 'unet', 3, code),
        'pipelines within pipelines are not loaded',
    ),
    'named pipeline in a part': (
        lambda folder, code: edit(folder, unet=['stable_diffusion', 'StableDiffusionPipeline']),
        'pipelines within pipelines are not loaded',
    ),
    'part by AutoModel': (
        lambda folder, code: edit(folder, text_encoder=['transformers', 'AutoModel']),
        'the class AutoModel, which is no model',
    ),
    'part by a function': (
        lambda folder, code: edit(folder, scheduler=['transformers', 'pipeline']),
        "from the class 'pipeline'",
    ),
    'pickled weights': (pickled, r'unet has its weights as a pickle \(diffusion_pytorch_model.bin'),
    'list of pickles': (lambda folder, code: weight_list(folder, 'x.bin'), "names 'x.bin'"),
    'list of files elsewhere': (
        lambda folder, code: weight_list(folder, '../vae/diffusion_pytorch_model.safetensors'),
        'only safetensors files beside it',
    ),
    'adapter of another folder': (
        lambda folder, code: write(
            folder / 'text_encoder' / 'adapter_config.json',
            '{"base_model_name_or_path": "/elsewhere"}',
        ),
        'leads to the weights of another folder',
    ),
    'attention of the hub': (
        lambda folder, code: config(folder, attn_implementation='somebody/kernel:run'),
        'the attention kernel',
    ),
    'attention of the hub, inside': (
        lambda folder, code: config(folder, text_config={'_attn_implementation': 'a/b:c'}),
        'the attention kernel',
    ),
    'second pipeline of the README': (
        lambda folder, code: (
            edit(folder, _class_name='KandinskyV22CombinedPipeline'),
            write(folder / 'README.md', '---\nprior:\n- ./evil\n---\n'),
        ),
        'loads a second pipeline',
    ),
    'link to a file': (
        lambda folder, code: (folder / 'unet' / 'x.json').symlink_to('/etc/passwd'),
        'is a link out of the folder',
    ),
    'link to a folder': (
        lambda folder, code: (folder / 'extra').symlink_to('/etc'),
        'is a link out of the folder',
    ),
    'link to nothing': (
        lambda folder, code: (folder / 'extra').symlink_to('nowhere'),
        'is a link that leads nowhere',
    ),
    'pipe': (lambda folder, code: os.mkfifo(folder / 'unet' / 'extra.json'), 'plain file'),
    'pipe for an index': (
        lambda folder, code: (
            (folder / 'model_index.json').unlink(),
            os.mkfifo(folder / 'model_index.json'),
        ),
        'plain file',
    ),
    'depth': (
        lambda folder, code: (folder / 'a'.join('/' * (MAX_DEPTH + 2)).strip('/')).mkdir(
            parents=True
        ),
        'folders more than',
    ),
    'huge index': (
        lambda folder, code: write(folder / 'model_index.json', '[' + ' ' * 5_000_000),
        'model_index.json has more than',
    ),
    'nested for ever': (
        lambda folder, code: write(folder / 'model_index.json', '[' * 200_000),
        'nested too deeply',
    ),
    'a config nested for ever': (
        lambda folder, code: write(folder / 'unet' / 'config.json', '[' * 200_000),
        'nested too deeply',
    ),
    'no text': (
        lambda folder, code: (folder / 'model_index.json').write_bytes(b'\xff\xfe{'),
        'model_index.json is not JSON: it is UTF-16',
    ),
    'no object': (
        lambda folder, code: write(folder / 'model_index.json', '[]'),
        'names no pipeline class',
    ),
    'the class of all pipelines': (
        lambda folder, code: edit(folder, _class_name='DiffusionPipeline'),
        "names the pipeline class 'DiffusionPipeline'",
    ),
}


@pytest.mark.parametrize('case', HOSTILE)
def test_a_hostile_folder_is_refused_and_nothing_of_it_runs(folder, code, monkeypatch, case):
    monkeypatch.chdir(folder)  # a module of the folder could be imported from here
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr('builtins.input', lambda *_: pytest.fail('somebody was asked'))
    make, message = HOSTILE[case]
    make(folder, code)
    with pytest.raises(ValueError, match=message) as caught:
        load_pipeline(folder, device='cpu')
    assert '\n' not in str(caught.value)
    assert not {'mine', 'this'} & sys.modules.keys()


def test_code_that_nothing_names_is_no_matter(folder, code):
    for place in ('pipeline.py', 'unet/modeling.py', 'conversion/convert.py', '.git/hooks.py'):
        write(folder / place, code)
    tokenizer = folder / 'tokenizer' / 'tokenizer_config.json'
    tokenizer.write_text(
        json.dumps(
            json.loads(tokenizer.read_text()) | {'auto_map': {'AutoTokenizer': ['mine.Mine', None]}}
        )
    )
    write(folder / 'tokenizer' / 'mine.py', code)
    config(folder, auto_map={'AutoModel': 'mine.Mine', 'AutoConfig': 'mine.Mine'})
    write(folder / 'text_encoder' / 'mine.py', code)
    assert type(load_pipeline(folder, device='cpu').pipe).__name__ == 'StableDiffusionPipeline'


def test_links_inside_the_folder_are_followed(folder, saved):
    weights = folder / 'unet' / 'diffusion_pytorch_model.safetensors'
    weights.rename(folder / 'weights.safetensors')
    weights.symlink_to('../weights.safetensors')
    load_pipeline(folder, device='cpu')
    link = folder.parent / 'link'
    link.symlink_to(folder)  # the folder itself may be one
    assert load_pipeline(link, device='cpu').name == 'hostile'


@pytest.fixture()
def cache(folder, tmp_path, monkeypatch):
    """The hub's cache with one repository, as huggingface_hub lays it out."""
    root = tmp_path / 'hub' / 'models--owner--name'
    (root / 'refs').mkdir(parents=True)
    (root / 'blobs').mkdir()
    (root / 'refs' / 'main').write_text('0123abcd')
    snapshot = root / 'snapshots' / '0123abcd'
    shutil.copytree(folder, snapshot)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(
        'diffusers.utils.constants.HF_MODULES_CACHE', str(tmp_path / 'modules'), raising=False
    )
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    return snapshot


def snapshot_download(cache):
    return lambda *_, **__: str(cache)


def test_a_snapshot_of_the_hub_is_looked_at_likewise(cache, code, monkeypatch):
    monkeypatch.setattr(
        'diffusers.pipelines.pipeline_utils.snapshot_download', snapshot_download(cache)
    )
    blob = cache.parent.parent / 'blobs' / 'aa'
    weights = cache / 'unet' / 'diffusion_pytorch_model.safetensors'
    weights.rename(blob)
    weights.symlink_to(blob)
    loaded = load_pipeline('owner/name', device='cpu')
    assert (loaded.name, loaded.revision) == ('owner/name', '0123abcd')
    nested(cache, 'unet', 1, code)
    with pytest.raises(ValueError, match='pipelines within pipelines'):
        load_pipeline('owner/name', device='cpu')


def test_the_code_of_another_repository_is_not_fetched(cache, code, monkeypatch, tmp_path):
    """While downloading, diffusers would run the code of a repository that the index names."""
    from types import SimpleNamespace

    other = tmp_path / 'other'
    write(other / 'pipeline.py', code)
    edit(cache, _class_name=[str(other), 'Mine'])
    module = 'diffusers.pipelines.pipeline_utils'
    monkeypatch.setattr(
        f'{module}.model_info',
        lambda *_, **__: SimpleNamespace(
            siblings=[
                SimpleNamespace(rfilename=str(file.relative_to(cache))) for file in cache.rglob('*')
            ]
        ),
    )
    monkeypatch.setattr(
        f'{module}.hf_hub_download', lambda *_, **__: str(cache / 'model_index.json')
    )
    with pytest.raises(ValueError, match="can't be had from the hub: it wants to run Python code"):
        load_pipeline('owner/name', device='cpu')


def test_what_runs_code_is_itself_and_refused_for_a_while(folder, code, monkeypatch, tmp_path):
    """Whatever a later diffusers or transformers calls, these are its only ways to a module."""
    from diffusers.utils import dynamic_modules_utils
    from transformers import AutoTokenizer, dynamic_module_utils

    before = (
        dynamic_modules_utils.get_class_in_module,
        dynamic_module_utils.get_class_in_module,
        dynamic_module_utils.TIME_OUT_REMOTE_CODE,
    )
    write(tmp_path / 'part' / 'mine.py', code)
    write(
        tmp_path / 'part' / 'config.json',
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}',
    )
    write(
        tmp_path / 'part' / 'tokenizer_config.json',
        '{"auto_map": {"AutoTokenizer": ["mine.Mine", null]}}',
    )
    monkeypatch.setattr('builtins.input', lambda *_: pytest.fail('somebody was asked'))
    with no_code_from_data():
        with pytest.raises(ValueError, match='never done'):
            dynamic_modules_utils.get_class_from_dynamic_module(str(tmp_path / 'part'), 'mine.py')
        with pytest.raises(ValueError, match='never done'):
            AutoTokenizer.from_pretrained(tmp_path / 'part', trust_remote_code=True)
        with pytest.raises(ValueError):
            AutoTokenizer.from_pretrained(tmp_path / 'part')
    assert before == (
        dynamic_modules_utils.get_class_in_module,
        dynamic_module_utils.get_class_in_module,
        dynamic_module_utils.TIME_OUT_REMOTE_CODE,
    )


@pytest.mark.parametrize(
    'make',
    [
        pytest.param(tiny.tiny_unclip, marks=tiny.loads_unclip),
        tiny.tiny_stable_diffusion_3,
        tiny.tiny_pixart,
        tiny.tiny_if_super_resolution,
        tiny.tiny_upscaler,
        tiny.tiny_qwen_image,
    ],
)
def test_pipelines_of_other_families_are_loaded(make, tmp_path):
    make().save_pretrained(tmp_path / 'pipeline')
    assert type(load_pipeline(tmp_path / 'pipeline', device='cpu').pipe) is type(make())


def test_an_import_error_inside_diffusers_is_told_in_its_own_words(monkeypatch, folder):
    import diffusers

    class Broken:
        @property
        def DiffusionPipeline(self):
            raise RuntimeError("Failed to import diffusers.x: cannot import name 'y' from 'z'")

    monkeypatch.setitem(sys.modules, 'diffusers', Broken())
    with pytest.raises(ValueError, match="installed but can't be imported: .*name 'y' from 'z'"):
        load_pipeline(folder)
    monkeypatch.setitem(sys.modules, 'diffusers', None)
    with pytest.raises(ValueError, match='needs diffusers: in a clone of freeatm_mm, pip install'):
        load_pipeline(folder)
    monkeypatch.setitem(sys.modules, 'diffusers', diffusers)


def test_no_bars_go_to_a_log(folder, capfd):
    load_pipeline(folder, device='cpu')
    assert 'Loading pipeline' not in capfd.readouterr().err
