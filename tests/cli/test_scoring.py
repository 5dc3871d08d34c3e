"""What the tools that score masks share: options, the command as it is written down, the report."""

import argparse
import json

import pytest

from freeatm_mm.cli._scoring import add_scoring_options, portable_command, write_report


@pytest.mark.parametrize(
    'words, written',
    [(['--sources', 'a'], '--sources SOURCES'), (['--sources=a'], '--sources=SOURCES')],
    ids=['apart', 'joined'],
)
def test_where_the_sources_lie_is_not_written_down(words, written):
    parser = argparse.ArgumentParser()
    add_scoring_options(parser, 'name')
    argv = [*words, '--name', 'data']
    command = portable_command('tools/x.py', parser.parse_args(argv), argv)
    assert command == f'python tools/x.py {written} --name data'


def test_a_report_is_two_files_and_is_shown(tmp_path, capsys):
    write_report(tmp_path / 'new', 'masks', {'iou': 0.5}, '# Masks')
    assert json.loads((tmp_path / 'new/masks.json').read_text()) == {'iou': 0.5}
    assert (tmp_path / 'new/masks.md').read_text() == '# Masks'
    assert capsys.readouterr().out == '# Masks\n'
