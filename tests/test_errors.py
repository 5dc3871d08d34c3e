"""Errors and the ending of tools: one sentence and one exit code, whatever the tool."""

import ast
import configparser
import errno
import os
import re
import signal
from pathlib import Path

import pytest
from helpers.tools import ROOT, command_behind

from freeatm_mm.configs import open_config
from freeatm_mm.errors import (
    InputError,
    MissingFileError,
    RunError,
    counted,
    keeping_tracebacks,
    listed,
    tool,
)
from freeatm_mm.files import read_json
from freeatm_mm.signals import Terminated
from freeatm_mm.torch_files import check_regular

#: Programs that a user starts, with what they are when another tool's modules are left out.
SCRIPTS = [
    path
    for path in sorted((ROOT / 'tools').rglob('*.py'))
    if "if __name__ == '__main__'" in path.read_text()
    and path.name not in ('recording_case.py', 'environment.py')
]
COMMANDS = [path for path in sorted((ROOT / 'freeatm_mm/cli').glob('[a-z]*.py'))]


def test_messages_say_how_to_install_what_the_package_has():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    sources = {
        path.relative_to(ROOT): path.read_text(encoding='utf-8')
        for path in (ROOT / 'freeatm_mm').rglob('*.py')
        if '.mim' not in path.parts
    }
    named = [
        (path, extra)
        for path, source in sources.items()
        for extras in re.findall(r'pip_install\(.([\w,-]+).\)', source)
        for extra in extras.split(',')
    ]
    assert len(named) > 15
    assert [one for one in named if one[1] not in config['options.extras_require']] == []
    # An installed package has no checkout beside it.
    assert [path for path, source in sources.items() if './run setup' in source] == []


@pytest.mark.parametrize('path', ['https://host/a.pth', Path('s3://host/a.pth')], ids=str)
@pytest.mark.parametrize('read', [open_config, check_regular, read_json])
def test_an_address_is_no_file_of_this_machine(path, read):
    with pytest.raises(MissingFileError, match='there is no .*: it is an address, .* copy it here'):
        read(path)


@pytest.mark.parametrize(
    'error, code, message',
    [
        (InputError('no such\n  folder'), 2, 'no such folder'),
        (RunError('the server is gone'), 2, 'the server is gone'),
        (ImportError('COCO needs pycocotools'), 2, 'COCO needs pycocotools'),
        (ValueError(), 2, 'ValueError'),
        (
            ValueError(
                'Caught ValueError in DataLoader worker\nOriginal Traceback ...\nValueError: a'
            ),
            2,
            'a',
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            2,
            'the disk is full: make room; the same command goes on where it was',
        ),
        (
            OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), 'a/b'),
            2,
            'the quota of the disk is used up: make room (a/b); the same command goes on where it '
            'was',
        ),
        (
            OSError(errno.EACCES, os.strerror(errno.EACCES), 'a/b'),
            2,
            'a/b: this user may not read it, or not write there',
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), 'a/b'),
            2,
            'a/b: nothing can be written there, as its disk is read-only',
        ),
        (OSError(errno.ENAMETOOLONG, 'x', 'a/b'), 2, 'a/b: its name is too long'),
        (
            OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
            2,
            'a file would be larger than is allowed here (`ulimit -f`, the file system); the same '
            'command goes on where it was',
        ),
        (KeyboardInterrupt(), 130, 'interrupted; the same command goes on where it was'),
        (Terminated(15), 143, 'ended by SIGTERM; the same command goes on where it was'),
        (Terminated(1), 129, 'ended by SIGHUP; the same command goes on where it was'),
    ],
)
def test_a_tool_ends_with_one_sentence(capsys, error, code, message):
    @tool(resumes=True)
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == code
    assert capsys.readouterr().err == f'test_errors.py: {message}\n'


def test_a_tool_that_does_not_resume_says_what_to_do_on_a_full_disk(capsys):
    @tool
    def main(argv=None):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SystemExit):
        main([])
    said = 'the disk is full: make room, and run the same command again'
    assert capsys.readouterr().err == f'test_errors.py: {said}\n'


def test_a_tool_that_is_told_to_end_clears_up(capsys):
    cleared = []

    @tool(resumes=True, told_to_end=True)
    def main(argv=None):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)
        finally:
            cleared.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 143 and cleared and signal.getsignal(signal.SIGTERM) is before
    assert 'ended by SIGTERM; the same command goes on' in capsys.readouterr().err


#: Those that see to it themselves, those of several processes, which their launcher ends, and those
#: with threads at work, which would be waited for: they die at once, and write whole files only.
ENDED_OTHERWISE = {
    *('add_masks.py', 'generate.py', 'lavis_train.py', 'train.py'),
    *('pull.py', 'push.py'),
}


@pytest.mark.parametrize('path', COMMANDS, ids=lambda path: path.name)
def test_commands_that_go_on_can_be_told_to_end(path):
    """A scheduler's SIGTERM leaves no half of a file, and nobody at work."""
    text = path.read_text()
    if '@tool(resumes=True' in text and path.name not in ENDED_OTHERWISE:
        assert '@tool(resumes=True, told_to_end=True)' in text


def test_mistakes_of_the_program_keep_their_traceback():
    @tool
    def main(argv=None):
        return {}['x']

    with pytest.raises(KeyError):
        main()


def test_errors_of_a_framework_keep_their_traceback_and_ours_do_not(capsys):
    @tool
    def main(argv=None):
        with keeping_tracebacks():
            raise argv[0]

    with pytest.raises(ValueError, match='a shape'):
        main([ValueError('a shape')])
    with pytest.raises(SystemExit):
        main([InputError('no such store')])
    assert 'no such store' in capsys.readouterr().err


def test_the_exit_code_is_what_main_returns():
    assert tool(lambda argv: None)() == 0 and tool(lambda argv: argv[0])([1]) == 1


def test_what_is_counted_is_inflected():
    assert [counted(n, 'image') for n in (0, 1, 2000)] == ['0 images', '1 image', '2,000 images']
    assert [counted(2, noun) for noun in ('batch', 'epoch', 'process', 'category', 'key')] == [
        '2 batches',
        '2 epochs',
        '2 processes',
        '2 categories',
        '2 keys',
    ]


def test_names_are_listed_up_to_a_limit():
    assert listed([]) == '' and listed('ab') == 'a, b' and listed('abc') == 'a, b, c'
    assert listed('abcde') == 'a, b, c and 2 more' and listed('ab', 1) == 'a and 1 more'
    assert listed(iter([1, 2]), 1) == '1 and 1 more'


@pytest.mark.parametrize(
    'path', [*SCRIPTS, *COMMANDS], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_tools_are_built_alike(path):
    """One wrapper, one signature, one way to start; all run from a bare checkout."""
    text = path.read_text()
    assert not text.startswith('#!')
    if path in SCRIPTS:
        assert 'sys.path.insert(0, ' in text and '    sys.exit(main())\n' in text
        if command_behind(path):
            assert len(text.splitlines()) < 12
            return
    functions = {
        node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)
    }
    main = functions['main']
    assert ast.unparse(main.args) == 'argv: Sequence[str] | None=None'
    assert ast.unparse(main.returns) == 'int'
    assert ast.unparse(main.decorator_list[0]).split('(')[0] == 'tool'
    assert ast.unparse(functions['parse_args'].args) == 'argv: Sequence[str] | None=None'
