"""tools/generate.py: what it generates, what it says about bad input, and being killed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.store_samples import folder_bytes
from helpers.tiny_pipelines import tiny_stable_diffusion
from helpers.tools import exit_code, load_tool

from freeatm_mm.generation import load_pipeline
from freeatm_mm.prompts import Noun, PromptRecord, write_prompts
from freeatm_mm.store import Store, verify_store

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'generate.py'


@pytest.fixture(scope='module')
def tool():
    return load_tool('generate')


@pytest.fixture(scope='module')
def pipeline_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pipelines') / 'tiny-sd'
    tiny_stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def prompt_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('prompts') / 'prompts.jsonl'
    write_prompts(
        path,
        (
            PromptRecord(
                f'{number:03d}',
                f'a photo of a {noun} {number}',
                (Noun(noun, 13, 13 + len(noun), noun),),
            )
            for number, noun in enumerate(['dog', 'cat', 'bird', 'dress'] * 12)
        ),
    )
    return path


def arguments(pipeline_folder, prompt_file, out, *more):
    return [
        str(pipeline_folder),
        str(prompt_file),
        str(out),
        '--steps',
        '2',
        '--batch-size',
        '2',
        '--samples-per-shard',
        '4',
        '--image-format',
        'png',
        '--device',
        'cpu',
        *more,
    ]


def test_the_tool_generates_a_store_and_reports(
    tool, pipeline_folder, prompt_file, tmp_path, capsys
):
    out = tmp_path / 'out'
    assert (
        tool.main(
            arguments(
                pipeline_folder,
                prompt_file,
                out,
                '--limit',
                '3',
                '--size',
                '32x64',
                '--scheduler',
                'DDPMScheduler',
                '--guidance',
                '1',
            )
        )
        == 0
    )
    captured = capsys.readouterr()
    assert '3 images generated' in captured.out and '3 masks' in captured.out
    assert 'img/s' in captured.err or 's/img' in captured.err
    store = Store(out)
    assert len(store) == 3 and list(verify_store(out)) == []
    sample = store[2]
    assert (sample.key, sample.image.size, sample.masks.shape) == ('002', (64, 32), (1, 8, 16))
    assert sample.meta['pipeline'] == 'tiny-sd'
    assert sample.meta['revision'].startswith('sha256:')
    assert sample.meta['scheduler'] == 'DDPMScheduler'
    assert str(pipeline_folder.parent) not in json.dumps(sample.meta)


def test_the_plan_is_printed_and_nothing_is_written(
    tool, pipeline_folder, prompt_file, tmp_path, capsys
):
    assert (
        tool.main(
            arguments(
                pipeline_folder,
                prompt_file,
                tmp_path / 'out',
                '--plan',
                '--world',
                '4',
                '--rank',
                '0',
            )
        )
        == 0
    )
    out = capsys.readouterr().out
    assert '48 samples in 12 shards of 4' in out and 'hours' in out and 'on 4' in out
    assert not (tmp_path / 'out').exists()


def test_lost_samples_are_generated_again_by_the_store_s_tool(
    tool, pipeline_folder, prompt_file, tmp_path, capsys
):
    verify = load_tool('store/verify')
    out = tmp_path / 'out'
    assert (
        tool.main(
            arguments(
                pipeline_folder,
                prompt_file,
                out,
                '--limit',
                '6',
                '--quiet',
                '--mask-resolutions',
                '8,16',
                '--mask-crf',
                '24',
            )
        )
        == 0
    )
    assert Store(out)[0].masks.shape == (1, 24, 24)
    whole = folder_bytes(out)
    (out / 'shard-000001.tar').unlink()
    words = [str(out), '--prompts', str(prompt_file)]
    assert verify.main(words) == 1
    assert "with its 2 samples '004' to '005'" in capsys.readouterr().out
    words += ['--repair', '--pipeline', str(pipeline_folder), '--device', 'cpu']
    assert verify.main(words) == 0
    printed = capsys.readouterr().out
    assert 'restored byte for byte: shard-000001' in printed and printed.endswith('sound\n')
    assert folder_bytes(out) == whole
    other = tmp_path / 'other.jsonl'
    other.write_text(prompt_file.read_text().replace('photo', 'print'))
    assert exit_code(verify, [out, '--prompts', other]) == 2
    assert 'are not those that' in capsys.readouterr().err


def test_the_revision_follows_the_weights_and_not_the_place(pipeline_folder, tmp_path):
    copy = tmp_path / 'elsewhere'
    shutil.copytree(pipeline_folder, copy)
    first = load_pipeline(pipeline_folder, device='cpu')
    assert load_pipeline(copy, device='cpu').revision == first.revision
    (copy / 'README.md').write_text('notes')
    assert load_pipeline(copy, device='cpu').revision == first.revision
    weights = copy / 'unet' / 'diffusion_pytorch_model.safetensors'
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert load_pipeline(copy, device='cpu').revision != first.revision


@pytest.mark.parametrize(
    'change, message',
    [
        ({'pipeline': 'nowhere'}, 'there is no pipeline folder or file nowhere'),
        ({'pipeline': 'empty'}, 'holds no pipeline: it has no model_index.json'),
        ({'pipeline': 'unknown'}, "names the pipeline class 'FooPipeline'"),
        ({'pipeline': 'parts'}, 'parts is not whole: it lacks the folder scheduler, text_encoder'),
        ({'pipeline': 'broken'}, "the pipeline .*broken can't be loaded"),
        ({'pipeline': 'corrupt'}, 'model_index.json is not JSON'),
        ({'prompts': 'nowhere.jsonl'}, 'there is no prompt file .*nowhere.jsonl'),
        ({'prompts': 'bad.jsonl'}, 'bad.jsonl, line 1: .*outside the prompt'),
        ({'out': 'bad.jsonl'}, "can't be a store"),
        ({'more': ['--scheduler', 'FooScheduler']}, "no scheduler class 'FooScheduler'"),
        ({'more': ['--scheduler', 'UNet2DModel']}, "no scheduler class 'UNet2DModel'"),
        ({'more': ['--device', 'cuda:9']}, "can't be moved to the device cuda:9"),
        ({'more': ['--rank', '3', '--world', '2']}, 'rank must be from 0 to 1'),
        ({'more': ['--limit', '0']}, 'limit must be at least 1'),
        ({'more': ['--engine', 'process', '--workers', '2']}, '--workers needs --engine'),
        ({'more': ['--workers', '2', '--world', '2', '--rank', '0']}, 'starts its own workers'),
        ({'more': ['--ray-address', 'auto']}, '--ray-address needs --engine ray'),
        ({'more': ['--workers', '2', '--no-wait']}, '--wait is for workers that start by'),
        ({'more': ['--engine', 'ray', '--no-take-over']}, '--no-take-over is for workers'),
        ({'more': ['--workers', '0']}, 'workers must be at least 1'),
        (
            {'more': ['--no-masks', '--mask-crf', '64']},
            '--no-masks and --mask-crf exclude each other',
        ),
        ({'more': ['--mask-blocks', 'up,left']}, 'blocks must be of .*left'),
        (
            {'more': ['--mask-resolutions', '12']},
            'generating from the prompts .* nothing was recorded',
        ),
        ({'pipeline': 'code'}, "takes its scheduler from 'mine', .* is not run"),
        ({'pipeline': 'hidden'}, "takes its scheduler from 'diffusers', .* is not run"),
    ],
)
def test_bad_input_is_one_sentence(
    tool, pipeline_folder, prompt_file, tmp_path, capsys, change, message, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ('unknown', '{"_class_name": "FooPipeline"}'),
        ('corrupt', '{'),
        ('parts', (pipeline_folder / 'model_index.json').read_text()),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'model_index.json').write_text(content)
    shutil.copytree(pipeline_folder, tmp_path / 'broken')
    (tmp_path / 'broken' / 'unet' / 'diffusion_pytorch_model.safetensors').write_bytes(b'nothing')
    # Code that diffusers would run without asking: of another library, and under its own name.
    for name, library in (('code', 'mine'), ('hidden', 'diffusers')):
        shutil.copytree(pipeline_folder, tmp_path / name)
        (tmp_path / name / 'scheduler' / f'{library}.py').write_text('raise SystemExit("it ran")')
        index = json.loads((tmp_path / name / 'model_index.json').read_text())
        index['scheduler'][0] = library
        (tmp_path / name / 'model_index.json').write_text(json.dumps(index))
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'bad.jsonl').write_text(
        json.dumps({'id': 'a', 'prompt': 'x', 'nouns': [{'text': 'dog', 'start': 4, 'end': 7}]})
    )
    words = arguments(
        change.get('pipeline', pipeline_folder),
        change.get('prompts', prompt_file),
        change.get('out', 'out'),
        '--quiet',
        *change.get('more', []),
    )
    assert exit_code(tool, words) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith('generate.py: ')]
    assert len(lines) == 1 and 'Traceback' not in captured.err
    assert re.search(message, lines[0])
    assert not list(tmp_path.glob('out/shard-*'))
    if (tmp_path / 'out').is_dir():  # settings that generated nothing bind nobody
        assert tool.main(arguments(pipeline_folder, prompt_file, 'out', '--quiet')) == 0


def test_masks_are_read_from_the_arguments(tool):
    def read(*more):
        return tool.masks_of(tool.parse_args(['p', 'p', 'o', *more]))

    assert read() is True and read('--no-masks') is False
    assert read(
        '--mask-blocks',
        'up,mid',
        '--mask-resolutions',
        '8,16',
        '--mask-steps',
        '0:9:3',
        '--mask-probability',
        'text',
        '--mask-merge',
        'last',
        '--mask-maps',
        'attention',
        '--mask-head-weights',
        'contribution',
        '--mask-rescale',
        'words',
        '--mask-propagate',
        '2',
    ) == {
        'blocks': ['up', 'mid'],
        'resolutions': [8, 16],
        'steps': [0, 9, 3],
        'probability': 'text',
        'merge': 'last',
        'maps': 'attention',
        'head_weights': 'contribution',
        'rescale': 'words',
        'propagate': 2,
    }
    with pytest.raises(SystemExit):
        read('--mask-steps', '1-5')


def test_sizes_are_read_and_nonsense_is_refused(tool):
    assert tool.parse_size('512x768') == (512, 768)
    assert tool.parse_size('64') == (64, 64)
    for text in ('', 'x', '1x2x3', '0x5', '-1x5', '5.0x5', 'ax5'):
        with pytest.raises(Exception, match='HEIGHTxWIDTH'):
            tool.parse_size(text)


@pytest.mark.parametrize(
    'environment, expected',
    [
        ({}, (0, 1)),
        ({'RANK': '3', 'WORLD_SIZE': '8'}, (3, 8)),
        ({'RANK': '3'}, (0, 1)),
        (
            {
                'SLURM_ARRAY_TASK_ID': '5',
                'SLURM_ARRAY_TASK_COUNT': '4',
                'SLURM_ARRAY_TASK_MIN': '2',
            },
            (3, 4),
        ),
        (
            {
                'SLURM_ARRAY_TASK_ID': '6',
                'SLURM_ARRAY_TASK_COUNT': '3',
                'SLURM_ARRAY_TASK_MIN': '2',
                'SLURM_ARRAY_TASK_STEP': '2',
            },
            (2, 3),
        ),
    ],
)
def test_the_worker_is_read_from_the_environment(tool, environment, expected):
    assert tool.worker_of(environment) == expected
    with pytest.raises(ValueError, match="RANK is 'x'"):
        tool.worker_of({'RANK': 'x', 'WORLD_SIZE': '1'})
    with pytest.raises(ValueError, match='not evenly spaced.*--rank and --world'):
        tool.worker_of(
            {
                'SLURM_ARRAY_TASK_ID': '9',
                'SLURM_ARRAY_TASK_COUNT': '2',
                'SLURM_ARRAY_TASK_MIN': '1',
                'SLURM_ARRAY_TASK_STEP': '1',
            }
        )


def test_a_worker_named_by_hand_needs_no_environment(
    tool, pipeline_folder, prompt_file, tmp_path, monkeypatch, capsys
):
    for name, value in (('ID', '9'), ('COUNT', '2'), ('MIN', '1')):
        monkeypatch.setenv(f'SLURM_ARRAY_TASK_{name}', value)
    words = arguments(pipeline_folder, prompt_file, tmp_path / 'out', '--limit', '2', '--quiet')
    assert exit_code(tool, words) == 2 and 'not evenly spaced' in capsys.readouterr().err
    assert tool.main([*words, '--rank', '0', '--world', '1']) == 0


def test_out_of_memory_and_interruption_are_said_plainly(
    tool, pipeline_folder, prompt_file, tmp_path, capsys, monkeypatch
):
    from freeatm_mm import generation

    for error, code, message in (
        (RuntimeError('CUDA out of memory'), 2, 'smaller --batch-size'),
        (KeyboardInterrupt(), 130, 'goes on where it was'),
    ):

        def fail(*rest, error=error, **options):
            raise error

        monkeypatch.setattr(generation, 'generate_store', fail)
        assert exit_code(tool, arguments(pipeline_folder, prompt_file, tmp_path / 'out')) == code
        assert message in capsys.readouterr().err


def test_killed_at_any_moment_and_started_again_gives_the_same_bytes(
    tool, pipeline_folder, prompt_file, tmp_path, capsys
):
    environment = os.environ | {
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
        'OMP_NUM_THREADS': '1',
    }

    def start(out):
        command = [
            sys.executable,
            str(TOOL),
            *arguments(pipeline_folder, prompt_file, out, '--quiet'),
        ]
        return subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, stdout=subprocess.PIPE
        )

    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert tool.main(arguments(pipeline_folder, prompt_file, whole, '--quiet')) == 0
    capsys.readouterr()
    dice = random.Random()
    while True:
        process = start(killed)
        finished, delay = dice.randrange(1, 5), dice.uniform(0, 0.1)
        while process.poll() is None and len(list(killed.glob('shard-*.json'))) < finished:
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode == -signal.SIGKILL:
            break
        assert process.returncode == 0, errors
        shutil.rmtree(killed)  # on a busy machine it was done before it could be killed
    before = folder_bytes(killed)
    assert tool.main(arguments(pipeline_folder, prompt_file, killed, '--quiet')) == 0
    report = capsys.readouterr().out
    moment = f'killed {delay:.3f} s after shard {finished}'
    assert folder_bytes(killed) == folder_bytes(whole), moment
    kept = [name for name in before if name.endswith('.json') and name.startswith('shard')]
    assert len(kept) >= finished and f'{4 * len(kept)} there already' in report, moment


def children_of(pid):
    """The processes that a process started, but for Python's own, which ends when all are gone."""
    return [
        child
        for task in Path(f'/proc/{pid}/task').glob('*/children')
        for child in map(int, task.read_text().split())
        if b'resource_tracker' not in Path(f'/proc/{child}/cmdline').read_bytes()
    ]


@pytest.mark.parametrize(
    ('number', 'more', 'code'),
    [
        (signal.SIGHUP, [], 129),
        (signal.SIGTERM, ['--workers', '2'], 143),
    ],
)
def test_told_to_end_it_ends_cleanly_and_goes_on_later(
    tool, pipeline_folder, prompt_file, tmp_path, number, more, code
):
    environment = os.environ | {
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
        'OMP_NUM_THREADS': '1',
    }
    out = tmp_path / 'out'
    words = arguments(pipeline_folder, prompt_file, out, '--quiet')
    process = subprocess.Popen(
        [sys.executable, str(TOOL), *words, *more],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(out.glob('shard-*.json')):
        time.sleep(0.002)
    started = children_of(process.pid)
    assert len(started) >= (2 if more else 0)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert (
        errors.strip()
        == f'generate.py: ended by {number.name}; the same command goes on where it was'
    )
    assert not [pid for pid in started if Path(f'/proc/{pid}').exists()]
    kept = len(list(out.glob('shard-*.json')))
    assert 0 < kept < 12 and not json.loads((out / 'store.json').read_text())['complete']
    assert tool.main(words) == 0
    assert list(verify_store(out)) == []


def test_a_signal_that_is_ignored_stays_so():
    from freeatm_mm.signals import Terminated, end_on_signals

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with end_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Terminated, match='SIGTERM'):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_a_finalizer_is_not_lost():
    from freeatm_mm.signals import Terminated, end_on_signals

    class Dying:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(1000))  # the handler runs here, where an exception would be passed over

    with pytest.raises(Terminated), end_on_signals():
        dying = Dying()
        del dying
        while True:
            time.sleep(0.01)


def test_an_import_that_fails_is_told_in_its_own_words(tool, monkeypatch, capsys):
    """What is missing may be a part of a package that is installed."""
    import freeatm_mm

    monkeypatch.delattr(freeatm_mm, 'generation', raising=False)
    monkeypatch.setitem(sys.modules, 'freeatm_mm.generation', None)
    with pytest.raises(SystemExit) as ended:
        tool.main(['pipeline', 'prompts.jsonl', 'out'])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and 'not installed' not in err and err.count('\n') == 1
    assert 'import of freeatm_mm.generation halted' in err
    assert "pip install '.[generation]' brings what generating needs)" in err
