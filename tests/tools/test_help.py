"""What every tool says of itself: quickly, readably, with words for each of its options."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from helpers.tools import ROOT

#: What has a parser: commands, and tools that can be started themselves.
TOOLS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ('tools', 'freeatm_mm/cli')
    for path in (ROOT / folder).rglob('*.py')
    if 'ArgumentParser(' in path.read_text(encoding='utf-8')
    and not path.stem.endswith('_case')  # started by other tools, in environments of their own
)
#: Slow to import, and needed by no parser.
HEAVY = ('torch', 'mmengine', 'mmcv', 'diffusers', 'transformers', 'lavis', 'matplotlib')

ASK = """
import argparse, contextlib, importlib.util, io, json, sys
from pathlib import Path

def actions(parser):
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions(inner)

def print_help(parser, file=None):
    print(parser.format_help())
    told.update(
        description=parser.description,
        options=[
            (action.option_strings[:1] or [action.dest], action.help, action.dest)
            for action in actions(parser)
        ],
        defaults=[str(action.default) for action in actions(parser)],
        unlimited=[
            action.dest
            for action in actions(parser)
            if action.type in (int, float) and not action.choices
        ],
    )

argparse.ArgumentParser.print_help = print_help
heavy, found = json.loads(sys.argv[1]), {}
for path in json.loads(sys.argv[2]):
    told = {}
    sys.path.insert(0, str(Path(path).parent))
    spec = importlib.util.spec_from_file_location('asked_' + path.replace('/', '_'), path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            spec.loader.exec_module(module)
            sys.argv = [path, '--help']
            module.main()
        except SystemExit as end:
            told['code'] = end.code
    sys.path.pop(0)
    found[path] = {**told, 'text': text.getvalue(), 'heavy': [m for m in heavy if m in sys.modules]}
print(json.dumps(found))
"""


@pytest.fixture(scope='module')
def helps():
    """Per tool its help, options and the heavy packages that are imported by then; one process."""
    done = subprocess.run(
        [sys.executable, '-c', ASK, json.dumps(HEAVY), json.dumps(TOOLS)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_imports_nothing_slow(helps):
    """Each of these packages takes seconds; --help and a wrong option are answered without."""
    loaded = set()
    for name in TOOLS:
        new = set(helps[name]['heavy']) - loaded
        assert not new, f'{name} --help imports {", ".join(sorted(new))}'
        loaded |= new


@pytest.mark.parametrize('name', TOOLS)
def test_every_option_is_explained(helps, name):
    assert helps[name]['code'] == 0
    options = helps[name]['options']
    assert len(options) > 1
    for (option,), text, _ in options:
        said = re.sub(r'\((default: )?[^()]*\)$|==SUPPRESS==', '', text or '')
        assert said.strip() or '==SUPPRESS==' in (text or ''), f'{name} says nothing of {option}'


#: Numbers that generation looks at itself, before anything is loaded, for callers in Python as well
#: (tests/generation/test_limits.py); a launcher of processes sets the last.
LIMITED_LATER = {
    *('batch_size', 'guidance', 'images_per_prompt', 'limit', 'mask_crf', 'mask_propagate'),
    *('mask_stage', 'max_failed', 'quality', 'rank', 'samples_per_shard', 'seed', 'steps'),
    *('workers', 'world'),
}


@pytest.mark.parametrize('name', TOOLS)
def test_every_number_has_limits(helps, name):
    """Nobody's typing error, such as 1e9 or a port of 99999, gets as far as the work."""
    later = {'local_rank'}
    if name.endswith(('cli/generate.py', 'cli/add_masks.py')):
        later |= LIMITED_LATER
    assert set(helps[name]['unlimited']) <= later


@pytest.mark.parametrize('name', TOOLS)
def test_committed_results_are_written_over_only_where_they_are_named(helps, name):
    """What a tool measures goes to work_dirs; docs/results is filled on purpose."""
    assert not [value for value in helps[name]['defaults'] if value.startswith('docs/results')]


@pytest.mark.parametrize('name', TOOLS)
def test_examples_stand_apart_from_sentences(helps, name):
    """Commands are indented, and long ones continued as a shell reads them."""
    lines = helps[name]['text'].split('\n\npositional arguments:')[0].split('\n\noptions:')[0]
    for line in lines.split('\n\n', 1)[1].splitlines():
        assert not re.match(r'(freeatm|python|torchrun|sbatch|\./run) ', line), line
        assert not re.search(r'(python|freeatm) .* {8,}--', line), line


@pytest.mark.parametrize('name', TOOLS)
def test_tools_read_no_option_that_they_do_not_have(helps, name):
    """`args.x` of an option that was renamed would be seen only once the work has begun."""
    text = (ROOT / name).read_text(encoding='utf-8')
    known = {dest for _, _, dest in helps[name]['options']}
    known |= set(re.findall(r'\bargs\.(\w+)(?: = |, args)', text))
    known |= set(re.findall(r'set_defaults\((\w+)=', text))
    assert set(re.findall(r'\bargs\.(\w+)', text)) <= known | {'__dict__'}
