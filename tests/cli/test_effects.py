"""Options that have no effect beside others are refused, in every command that has such."""

from __future__ import annotations

import argparse
import importlib

import pytest
from helpers.tools import ROOT, exit_code, load_tool

from freeatm_mm import cli
from freeatm_mm.cli._effects import named_options
from freeatm_mm.errors import InputError

GENERATE = ['generate', 'PIPELINE', 'PROMPTS', 'OUT']
ADD_MASKS = ['add-masks', 'SOURCE', 'PIPELINE', 'OUT']
REWRITE = ['prompts', 'rewrite', 'PROMPTS', 'OUT']
REGIONS = ['edit', 'regions', 'STORE', 'OUT', '--masks-from']
RANDOM = ['downstream', 'random', '--suite', 'resnet']
EVALUATE = ['evaluate', '--world', 'W', '--seed', '0', '--out', 'O', 'CONFIG']
HERE = str(ROOT)  # a folder
CASES = [
    ([*GENERATE, '--image-format', 'png', '--quality', '90'], 'with --image-format png'),
    ([*GENERATE, '--plan', '--redo-failed'], 'with --plan'),
    ([*GENERATE, '--redo-failed', '--wait'], 'with --redo-failed'),
    ([*GENERATE, '--redo-failed', '--no-take-over'], 'with --redo-failed'),
    ([*GENERATE, '--redo-failed', '--max-failed', '3'], 'with --redo-failed'),
    ([*GENERATE, '--no-masks', '--lost-nouns', 'skip'], 'with --no-masks'),
    ([*GENERATE, '--workers', '2', '--rank', '0'], 'starts the workers itself'),
    (['generate', HERE, 'PROMPTS', 'OUT', '--revision', 'main'], 'on a folder'),
    ([*ADD_MASKS, '--image-format', 'png', '--quality', '95'], 'with --image-format png'),
    (['add-masks', 'SOURCE', HERE, 'OUT', '--revision', 'main'], 'on a folder'),
    ([*ADD_MASKS, '--redo-failed', '--max-failed', '3'], 'with --redo-failed'),
    ([*ADD_MASKS, '--redo-failed', '--plan'], 'with --plan'),
    (['import', 'labels', 'IMAGES', 'MASKS', 'OUT', '--noun', 'object'], 'with labels'),
    (['prompts', 'photo', 'OUT', '--seed', '1'], 'on photo'),
    ([*REWRITE, '--local', 'L', '--timeout', '9'], 'with --local'),
    ([*REWRITE, '--local', 'L', '--server', 'http://x'], 'with --local'),
    ([*REWRITE, '--local', 'L', '--temperature', '0', '--seed', '1'], 'at --temperature 0'),
    ([*REWRITE, '--model', 'M', '--device', 'cpu'], 'without --local'),
    ([*REWRITE, '--model', 'M', '--batch-size', '8'], 'without --local'),
    (['convert', 'IN', 'OUT', '--to', 'timm', '--heads', '2'], 'with --to timm'),
    (['diversity', 'STORE', '--device', 'cpu'], 'without --timm'),
    ([*REGIONS, 'felzenszwalb', '--seed', '0'], 'with --masks-from felzenszwalb'),
    ([*REGIONS, 'felzenszwalb', '--clusters', '5'], 'with --masks-from felzenszwalb'),
    ([*REGIONS, 'kmeans', '--device', 'cpu'], 'without --config'),
    (['export', 'folders', 'STORE', 'OUT', '--threshold', '0.5'], 'without --crop'),
    (['lavis-evaluate', 'CONFIG', '--what', 'zeroshot'], 'without --out'),
    (['lavis-evaluate', 'CONFIG', '--masks', 'true'], 'without --out'),
    (['lavis-point', 'CONFIG', 'STORE', '--seed', '1'], 'without --out'),
    (['lavis-point', 'CONFIG', 'STORE', '--what', 'pointing_coco'], 'without --out'),
    (['verify', 'STORE', '--device', 'cpu'], 'without --pipeline'),
    (['verify', 'STORE', '--lora', 'L'], 'without --pipeline'),
    (['push', 'STORE', 'hf://datasets/me/x', '--draft', 'D', '--private'], 'with --draft'),
    (['push', 'CHECKPOINT', 'hf://me/x', '--license', 'mit', '--jobs', '2'], 'on a checkpoint'),
    ([*RANDOM, '--slurm-options', 'mem=1G'], 'without --slurm'),
    ([*RANDOM, '--masks', 'true'], 'on random weights'),
    ([*RANDOM, '--cfg-options', 'mini-finetune:a.b=1'], 'on mini-finetune, which is not run'),
    ([*RANDOM, '--regime', 'mixed'], 'on random weights'),
    ([*RANDOM, '--generator', 'sd15'], 'on random weights'),
    ([*EVALUATE, '--random', '--masks', 'true'], 'with --random'),
    ([*EVALUATE, 'CHECKPOINT', '--on', 'garments', '--test-scenes', '9'], 'without --on scenes'),
]
TOOLS = [
    ('miniature/run', ['--pool', 'P', '--steps', '12'], 'with --pool'),
    ('miniature/run', ['--arms', 'other_masks', '--evaluate-every', '2'], 'without an arm'),
    ('miniature/run', ['--heads', '2'], 'no such head fits'),
    ('miniature/blip', ['--store', 'S', '--world', 'W', '--exact', 'E'], 'without the arms exact'),
    ('miniature/tables', ['--synthetic', 'S', '--guidance', '5'], 'with --synthetic'),
    ('miniature/train_generator', ['OUT', '--decoder-lr', '1'], 'without --decoder-samples'),
    ('benchmarks/store', ['--cases', 'masks', '--samples', '9'], 'without the case large'),
]


@pytest.mark.parametrize('words, why', CASES, ids=[' '.join(words)[:70] for words, _ in CASES])
def test_an_option_without_effect_is_refused(capsys, monkeypatch, words, why):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    module = importlib.import_module(f'freeatm_mm.cli.{cli.COMMANDS[words[0]].module}')
    with pytest.raises(InputError, match=rf'^--[a-z-]+ has no effect .*{why}.*: leave it out$'):
        module.parse_args(words[1:])


def test_it_is_one_sentence(capsys):
    assert exit_code(cli, [*GENERATE, '--image-format', 'png', '--quality', '90']) == 2
    said = capsys.readouterr().err.strip()
    assert said == (
        'freeatm generate: --quality has no effect with --image-format png: leave it out'
    )


def test_a_file_of_options_names_them_too(tmp_path, capsys):
    (tmp_path / 'run.yaml').write_text('image_format: png\nquality: 95\n')
    assert exit_code(cli, [*GENERATE, '--config', tmp_path / 'run.yaml']) == 2
    assert '--quality has no effect' in capsys.readouterr().err


@pytest.mark.parametrize(
    'tool, words, why', TOOLS, ids=[f'{tool} {words[0]}' for tool, words, _ in TOOLS]
)
def test_an_option_of_a_tool_without_effect_is_refused(tool, words, why):
    with pytest.raises(InputError, match=rf'^--[a-z-]+ has no effect .*{why}.*: leave it out$'):
        load_tool(tool).parse_args(words)


def test_what_is_named_is_told_from_what_is_the_default():
    parser = argparse.ArgumentParser()
    parser.add_argument('--size', type=int, default=3)
    parser.add_argument('--more', action='append', default=[])
    parser.add_argument('--quick', action='store_true')
    args = parser.parse_args(['--size', '3'])
    assert named_options(args, parser, ['--size', '3']) == {'size'}
