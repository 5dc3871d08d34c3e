"""The tutorials' code runs as it stands, in order, on tiny stand-ins for what takes hours.

Blocks of `python` and `sh` are run, and those whose first line names a file are written; blocks of
`bash` are not: they install, need several machines or GPUs, or take minutes.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.tiny_pipelines import tiny_stable_diffusion
from helpers.tiny_stores import make_store
from helpers.tools import ROOT
from PIL import Image

from freeatm_mm.cli import main

PAGES = {path.stem: path for path in (ROOT / 'docs/tutorials').glob('*.md')}
PAGES['howto'] = ROOT / 'docs/howto.md'
SD = 'stable-diffusion-v1-5/stable-diffusion-v1-5'
STEPS = 'num_inference_steps=3'
RESNET_18 = 'model.backbone.depth=18 model.neck.in_channels=[64,128,256,512]'
ONE_PROCESS = 'train_dataloader.num_workers=0 train_dataloader.persistent_workers=False'

pytestmark = [
    pytest.mark.filterwarnings('ignore'),
    pytest.mark.usefixtures('single_threaded_at_root'),
]


def pipeline():
    tiny_stable_diffusion().save_pretrained('pipeline')


def photos():
    random = np.random.default_rng(0)
    for number in range(8):
        folder = Path('masks', f'{number}')
        folder.mkdir(parents=True)
        Path('photos').mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f'photos/{number}.png')
        mask = np.zeros((64, 64), np.uint8)
        mask[8:56, 8:56] = 255
        Image.fromarray(mask).save(folder / 'dog.png')


def detector():
    pytest.importorskip('mmdet')
    store()


def blip():
    pytest.importorskip('lavis')
    from helpers.tiny_blip import make_tokenizer

    make_tokenizer(Path('BERT'))
    make_store(Path('data/synthetic'), size=(20, 20))


def blip_options():
    from helpers.tiny_blip import pretrain_options

    options = pretrain_options('data/synthetic', Path('BERT'), 'work/blip')
    return ' '.join(
        ['run.max_epoch=1', *(part for part in options if 'max_epoch' not in part)][:-2]
    )


def store():
    make_store(Path('data/synthetic'), count=8, size=(64, 64), mask_size=(16, 16))


def texts():
    pytest.importorskip('textblob')
    store()
    Path('captions.txt').write_text('A dog sits on a chair.\nA red ball lies on the grass.\n')


#: For each page what it needs, and what stands in for what: each must be on the page.
STAND_INS = {
    'record': (
        pipeline,
        {
            f"'{SD}').to('cuda')": "'pipeline')",
            'num_inference_steps=50': 'num_inference_steps=2',
            'steps=50, guidance=7.5': 'steps=2, guidance=7.5',
            'resolutions=[16]': 'resolutions=[8]',
        },
    ),
    'own-data': (
        photos,
        {
            'batch_size=64': 'batch_size=4',
            'T_max=100': 'T_max=1',
            'end=100': 'end=1',
            'max_epochs=100': 'max_epochs=1',
            'epoch_100.pth': 'epoch_1.pth',
            'default_hooks.views.type=LogViewsHook': 'default_hooks.views.type=LogViewsHook '
            f'{ONE_PROCESS} model.queue_len=64 train_dataloader.dataset.pipeline.2.grid_size=2 '
            'train_dataloader.dataset.pipeline.1.transforms.0.0.scale=64',
        },
    ),
    'detection': (
        detector,
        {
            '--layouts coco': '--layouts coco --images 4 --side 64',
            'parts/train=0.9 parts/val=0.1': 'parts/train=0.5 parts/val=0.5',
            '--cfg-options init=random': f'--cfg-options init=random {RESNET_18} '
            'train_dataloader.dataset.pipeline.2.scales=[(80,64)]',
            '--smoke --out metrics.json': '--smoke --out metrics.json --cfg-options init=random '
            f'{RESNET_18} test_dataloader.dataset.pipeline.1.scale=(80,64) '
            'model.test_cfg.rpn.max_per_img=10',
        },
    ),
    'lavis': (
        blip,
        {
            'freeatm_mm::lavis/blip_pretrain_freeatm.yaml': str(
                ROOT / 'configs/lavis/miniature/blip_pretrain_freeatm.yaml'
            ),
            'model.tokenizer=BERT model.text_weights=BERT': blip_options,
            'model.image_weights=deit_base_patch16_224-b5f2ef4d.pth': '',
        },
    ),
    'cluster': (
        pipeline,
        {
            '1200000': '6',
            f'generate {SD}': 'generate pipeline',
            f'pipeline: {SD}': 'pipeline: pipeline',
            '--steps 50 --batch-size 16 --dtype float16 --plan --workers 64': '--steps 2 '
            '--batch-size 2 --plan',
            'steps: 50': 'steps: 2',
            'batch-size: 16': 'batch-size: 2',
            'dtype: float16': 'dtype: float32',
            'samples-per-shard: 5000': 'samples-per-shard: 3',
        },
    ),
    'lightly': (
        store,
        {'Crop(224': 'Crop(64', 'grid=7': 'grid=2', 'batch_size=64': 'batch_size=4'},
    ),
    'howto': (texts, {}),
}


def blocks(text):
    """Language and content of a page's blocks."""
    return re.findall(r'^```(\w+)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def test_every_page_is_run():
    assert set(STAND_INS) == set(PAGES)
    for path in PAGES.values():
        found = {language for language, _ in blocks(path.read_text())}
        assert found & {'python', 'sh'} and found <= {'python', 'sh', 'bash', 'yaml'}


@pytest.mark.parametrize('name', sorted(PAGES))
def test_it_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prepare, stand_ins = STAND_INS[name]
    prepare()
    text = PAGES[name].read_text()
    for old, new in stand_ins.items():
        assert old in text, f'{old!r} is not on the page any more'
        text = text.replace(old, new() if callable(new) else new)
    names: dict = {}
    for language, content in blocks(text):
        if named := re.match(r'# file: (\S+)\n', content):
            Path(named[1]).write_text(content)
            if named[1].endswith('.py'):
                check_config(named[1])
        elif language == 'python':
            exec(compile(content, PAGES[name].name, 'exec'), names)
        elif language == 'sh':
            for line in content.replace('\\\n', ' ').splitlines():
                words = shlex.split(line)
                assert words[0] == 'freeatm'
                assert not main(words[1:]), f'{line}\n{capsys.readouterr()}'
    if name == 'detection':
        assert Path('work/smoke/epoch_1.pth').is_file()
        assert Path('metrics.json').is_file()
    if name == 'own-data':
        assert 'All keys matched' in capsys.readouterr().out
        assert list(Path('work/mocov2').rglob('views_*.png'))


#: Of other pages the Python alone runs, with what it takes for granted.
PYTHON = {
    'README.md': {
        "'weights/miniature-generator'": repr(str(ROOT / 'weights/miniature-generator')),
        'num_inference_steps=12': STEPS,
    },
    'docs/masks.md': {
        'num_inference_steps=50': STEPS,
        'steps=[25]': 'steps=[2]',
        'range(5, 30, 3)': 'range(1, 3)',
        'self_attention=32': 'self_attention=8',
        'weights={16: 0.7, 32: 0.3}': 'weights={8: 0.7, 4: 0.3}',
        'resolutions=[16]': 'resolutions=[8]',
    },
    'docs/prompts.md': {},
}


@pytest.mark.parametrize('page', PYTHON)
def test_python_of_other_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page == 'docs/prompts.md':
        pytest.importorskip('textblob')
    pipeline()
    store()
    names = {
        'pipe': tiny_stable_diffusion(),
        'image_uint8': np.zeros((64, 64, 3), np.uint8),
        'sample': SimpleNamespace(meta={'mask_trust': [{'peakedness': 0.4, 'area': 0.1}]}),
    }
    text = (ROOT / page).read_text()
    for old, new in PYTHON[page].items():
        assert old in text, f'{old!r} is not on the page any more'
        text = text.replace(old, new)
    python = [content for language, content in blocks(text) if language == 'python']
    assert python
    for content in python:
        exec(compile(content, page, 'exec'), names)
    if page == 'docs/masks.md':
        assert names['keep'] == [True]
        assert names['masks'][1].shape[0] == 2


def check_config(path):
    """A config that a page shows is one: its bases are found."""
    from mmengine.config import Config

    import freeatm_mm.openmmlab  # noqa: F401 - which finds `freeatm_mm::` names

    assert 'model' in Config.fromfile(path)
