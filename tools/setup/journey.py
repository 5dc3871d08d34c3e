r"""Go the way of a new user from an empty folder, with the installed package: a line a step.

    python tools/setup/journey.py FOLDER                           with this Python's packages
    python tools/setup/journey.py FOLDER --python venv/bin/python  with another's

For a fresh environment that has everything (this Python needs moto alone):

    uv build --wheel -o dist . && uv venv --python 3.11 venv
    uv pip install --python venv/bin/python timm lightly 'datasets>=3,<5' \
        "$(echo dist/*.whl)[core,generation,prompts,pytorch,lavis,export,remote]"
    uv pip install --python venv/bin/python --no-deps salesforce-lavis==1.0.2

Records a tiny pipeline's masks, makes prompts, generates, verifies and views a store, pushes it to
an S3 on this machine (moto), pretrains two steps from there in mmpretrain, LAVIS, plain PyTorch,
lightly and transformers, streams a folder as the Hub has it with datasets, and pulls the store.
Steps whose package is not installed are left out, and named. Each line has the seconds that passed
and those of the processor, which say more where other work runs beside.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from freeatm_mm.errors import FOUND, InputError, tool  # noqa: E402

RECORD = """
from tiny_pipelines import tiny_stable_diffusion
from freeatm_mm.attention import AttentionRecorder

pipe = tiny_stable_diffusion()
recorded = AttentionRecorder(pipe).generate('a dog', nouns=['dog'], num_inference_steps=2)
assert recorded.masks[0].shape[0] == 1
pipe.save_pretrained('pipeline')
"""
WORDS = """
from pathlib import Path
from freeatm_mm.lavis_ext.tokenizer import make_vocabulary
from freeatm_mm.store import Store

captions = [sample.caption for sample in Store('store')]
words = make_vocabulary([*captions, 'the is in block has 0 1 2 3 4 5 6 7 8'])
Path('tokenizer').mkdir()
Path('tokenizer/vocab.txt').write_text('\\n'.join(words) + '\\n')
"""
STREAM = """
from datasets import load_dataset
from freeatm_mm.store import Store, masks_per_noun

images = load_dataset('hub', split='train', streaming=True).map(masks_per_noun)
assert [len(image['masks']) for image in images] == [len(s.nouns) for s in Store('store')]
"""

FREEATM = ('-m', 'freeatm_mm')
ADDRESS = 's3://bucket/stores/first'
EXAMPLE = ('--size', '64', '--batch-size', '4', '--epochs', '1', '--steps', '2', '--workers', '0')
LAVIS = (
    'model.tokenizer=tokenizer model.image_size=16 model.vit.embed_dim=8 model.vit.depth=1 '
    'model.vit.num_heads=2 model.bert.hidden_size=8 model.bert.num_hidden_layers=1 '
    'model.bert.num_attention_heads=2 model.bert.intermediate_size=16 model.embed_dim=6 '
    f'model.queue_size=24 datasets.freeatm_pretrain.build_info.store={ADDRESS} '
    'datasets.freeatm_pretrain.vis_processor.train.image_size=16 run.batch_size_train=4 '
    'run.num_workers=0 run.max_epoch=1 run.output_dir=lavis run.device=cpu'
).split()

#: What is done, the package that it needs beside ours, and the words behind `python`.
STEPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ('record masks in a pipeline', 'diffusers', ('-c', RECORD)),
    ('make prompts', '', (*FREEATM, *'prompts imagenet prompts.jsonl --count 8 --quiet'.split())),
    (
        'generate a store',
        'diffusers',
        (
            *FREEATM,
            *'generate pipeline prompts.jsonl store --steps 2 --device cpu --quiet'.split(),
            *'--image-format png --samples-per-shard 5'.split(),
        ),
    ),
    ('verify it', '', (*FREEATM, 'verify', 'store')),
    ('view it', '', (*FREEATM, *'view store --out page.html'.split())),
    ('push it to S3', 's3fs', (*FREEATM, 'push', 'store', ADDRESS)),
    ('verify it there', 's3fs', (*FREEATM, 'verify', ADDRESS)),
    (
        'two steps in mmpretrain',
        'mmpretrain',
        (
            *(*FREEATM, 'train', 'freeatm_mm::miniature/mocov2_freeatm.py', '--data-root', ADDRESS),
            *('--cfg-options', 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=4'),
            'train_dataloader.num_workers=0',
        ),
    ),
    ('a vocabulary for LAVIS', 'lavis', ('-c', WORDS)),
    (
        'two steps in LAVIS',
        'lavis',
        (
            *(*FREEATM, 'lavis-train', 'freeatm_mm::lavis/miniature/blip_pretrain_freeatm.yaml'),
            *('--options', *LAVIS),
        ),
    ),
    (
        'two steps in plain PyTorch',
        'timm',
        (f'{ROOT}/examples/simclr_timm.py', ADDRESS, '--backbone', 'resnet10t', *EXAMPLE),
    ),
    (
        'two steps in lightly',
        'lightly',
        (f'{ROOT}/examples/moco_lightly.py', ADDRESS, '--backbone', 'resnet18', *EXAMPLE),
    ),
    (
        'two steps in transformers',
        'transformers',
        (f'{ROOT}/examples/mae_transformers.py', ADDRESS, *EXAMPLE),
    ),
    (
        'a draft for the Hub',
        'huggingface_hub',
        (*FREEATM, *'push store hf://datasets/me/first --license mit --draft hub'.split()),
    ),
    ('stream it with datasets', 'datasets', ('-c', STREAM)),
    ('pull it from S3', 's3fs', (*FREEATM, 'pull', ADDRESS, 'copy')),
    ('verify the copy', '', (*FREEATM, 'verify', 'copy')),
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='an empty folder, made if missing')
    parser.add_argument(
        '--python', default=sys.executable, help='the Python that has the package (default: this)'
    )
    return parser.parse_args(argv)


def start_s3() -> dict[str, str]:
    """Run an S3 in this process; the variables by which it is found."""
    from moto.server import ThreadedMotoServer

    logging.getLogger('werkzeug').setLevel(logging.ERROR)  # no line for every request
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        'AWS_ENDPOINT_URL': f'http://{host}:{port}',
        'AWS_ACCESS_KEY_ID': 'test',
        'AWS_SECRET_ACCESS_KEY': 'test',
        'AWS_DEFAULT_REGION': 'us-east-1',
    }
    import boto3

    boto3.client(
        's3',
        endpoint_url=variables['AWS_ENDPOINT_URL'],
        region_name='us-east-1',
        aws_access_key_id='test',
        aws_secret_access_key='test',
    ).create_bucket(Bucket='bucket')
    return variables


def run(
    python: str, folder: Path, words: Sequence[str], variables: Mapping[str, str]
) -> subprocess.CompletedProcess:
    """Run a step in the folder, with the installed package and none beside it."""
    return subprocess.run(
        [python, '-W', 'ignore', *words],
        cwd=folder,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def processor_seconds() -> float:
    """What the programs that were started and have ended took of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Go it, and say how long each step took; 1 at the first that fails."""
    args = parse_args(argv)
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InputError(f'{folder} is not empty')
    shutil.copy(ROOT / 'tests/helpers/tiny_pipelines.py', folder)
    variables = {'HF_HUB_OFFLINE': '1', 'FREEATM_CACHE': str(folder / 'cache'), 'PYTHONPATH': ''}
    variables |= start_s3()
    find = 'import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)'
    began, count = time.monotonic(), 0
    for what, package, words in STEPS:
        if package and run(args.python, folder, ('-c', find, package), variables).returncode:
            print(f'   left out  {what}: {package} is not installed', flush=True)
            continue
        if what == 'stream it with datasets':
            for file in (folder / 'store').iterdir():
                shutil.copy(file, folder / 'hub')
        started, used = time.monotonic(), processor_seconds()
        done = run(args.python, folder, words, variables)
        passed, used = time.monotonic() - started, processor_seconds() - used
        print(f'{passed:9.1f} s {used:7.1f} s of the processor  {what}', flush=True)
        if done.returncode:
            print(f'{done.stdout[-2000:]}\n{done.stderr[-4000:]}', file=sys.stderr)
            return FOUND
        if not count:
            print(f'first mask after {(time.monotonic() - began) / 60:.1f} minutes', flush=True)
        count += 1
    print(f'{count} steps in {(time.monotonic() - began) / 60:.1f} minutes')
    return 0


if __name__ == '__main__':
    sys.exit(main())
