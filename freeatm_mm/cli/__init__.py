"""The command `freeatm`: one module a subcommand, imported only when it is called.

`freeatm COMMAND ...`, `python -m freeatm_mm COMMAND ...` and the scripts in tools/ run the same
code.
"""

from __future__ import annotations

import difflib
import importlib
import shlex
import sys
from collections.abc import Sequence
from typing import NamedTuple

from freeatm_mm import __version__
from freeatm_mm.errors import InputError, install_hint, pip_install, tool

__all__ = ['COMMANDS', 'Command', 'command_line', 'main']


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        group: The heading under which `freeatm --help` lists it.
        module: Of this folder, with a `main(argv)`.
        extra: The extra of the package that brings what it imports; '' for none.
        about: What it does, in a line.
    """

    group: str
    module: str
    extra: str
    about: str


#: Name -> what it is, in the order in which they are listed.
COMMANDS: dict[str, Command] = {
    'prompts': Command('Data', 'make_prompts', 'prompts', 'make a file of prompts and their nouns'),
    'generate': Command('Data', 'generate', 'generation', 'generate images and masks into a store'),
    'add-masks': Command(
        'Data', 'add_masks', 'generation', 'add masks to images that exist already'
    ),
    'import': Command('Data', 'import_masks', '', 'make a store of your own images and masks'),
    'verify': Command('Data', 'verify', '', 'check a store, and repair it'),
    'diversity': Command('Data', 'diversity', '', 'say how different the samples of a store are'),
    'view': Command('Data', 'view', '', 'look at a store: search, masks over images, numbers'),
    'edit': Command('Data', 'edit', '', 'merge, split or filter stores, or change masks'),
    'export': Command('Data', 'export', 'export', 'write a store as COCO, mmseg, folders, Parquet'),
    'push': Command(
        'Data', 'push', 'remote', 'copy a store to S3, Google Cloud Storage or the Hub; checkpoints'
    ),
    'pull': Command('Data', 'pull', 'remote', 'copy a store from an address'),
    'configs': Command('Training', 'configs', '', 'list the configs that come with the package'),
    'train': Command('Training', 'train', 'core', 'train a config of mmpretrain, mmdet or mmseg'),
    'test': Command('Training', 'test', 'core', 'evaluate a checkpoint of such a config'),
    'lavis-train': Command('Training', 'lavis_train', 'lavis', 'train a yaml of LAVIS'),
    'lavis-evaluate': Command('Training', 'lavis_evaluate', 'lavis', 'evaluate by retrieval'),
    'lavis-point': Command(
        'Training', 'lavis_point', 'lavis', "pointing accuracy of BLIP's cross-attention"
    ),
    'convert': Command(
        'Training', 'checkpoint', '', 'convert a checkpoint to timm, torchvision, mmdet ...'
    ),
    'downstream': Command(
        'Evaluation', 'downstream', 'downstream', 'one checkpoint through a set of benchmarks'
    ),
    'evaluate': Command(
        'Evaluation', 'evaluate', 'core', 'a frozen backbone on scenes of the miniature world'
    ),
    'judge': Command('Evaluation', 'judge', 'generation', "a store's masks against those of SAM"),
    'detect-objects': Command(
        'Evaluation', 'detect_objects', 'downstream', "a detector's boxes of a store's images"
    ),
    'tiny-datasets': Command(
        'Evaluation', 'tiny_datasets', 'downstream', 'tiny data sets, to try the benchmarks'
    ),
    'tables': Command('Evaluation', 'tables', '', "the paper's tables from rows of results"),
    'report': Command('Evaluation', 'report', 'report', 'a table and plots of a result file'),
}


def command_line() -> str:
    """The command that runs, as it can be given to a shell again."""
    program, *words = sys.argv
    start = [program]
    if program.startswith('freeatm '):
        start = program.split(' ', 1)
    elif program.endswith('.py'):
        start = ['python', program]
    return shlex.join([*start, *words])


def help_text() -> str:
    """What `freeatm --help` prints."""
    width = max(map(len, COMMANDS))
    lines = ['usage: freeatm COMMAND ...', '', 'Free attention masks of diffusion models.']
    group = None
    for name, command in COMMANDS.items():
        if command.group != group:
            group = command.group
            lines += ['', f'{group}:']
        lines.append(f'  {name:{width}}  {command.about}')
    lines += [
        '',
        'freeatm COMMAND --help explains a command; freeatm --version prints the version.',
    ]
    return '\n'.join(lines)


@tool(name='freeatm')
def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Raises:
        InputError: If there is none of that name, or something that it needs isn't installed.
    """
    name, *words = sys.argv[1:] if argv is None else list(argv) or ['--help']
    if name in ('-h', '--help', 'help'):
        print(help_text())
        return 0
    if name == '--version':
        print(__version__)
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f': did you mean {near[0]}?' if near else ''
        raise InputError(f'there is no command {name!r}{hint} (freeatm --help lists them)')
    command = COMMANDS[name]
    brings = f' ({pip_install(command.extra)} brings what {name} needs)'
    token = install_hint.set(brings if command.extra else '')
    before, sys.argv = sys.argv, [f'freeatm {name}', *words]  # what argparse and results name
    try:
        try:
            module = importlib.import_module(f'freeatm_mm.cli.{command.module}')
        except ImportError as error:
            raise InputError(f'{error}{install_hint.get()}') from None
        return module.main(words)
    finally:
        install_hint.reset(token)
        sys.argv = before
