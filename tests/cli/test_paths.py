"""An address in the place of a path is told apart from a file that isn't there."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.servers import serve_files

from freeatm_mm.cli import diversity, import_masks, make_prompts, view
from freeatm_mm.cli._paths import path_here, path_option


def test_a_path_is_taken_as_it_is():
    assert path_here('folder/file') == Path('folder/file')


@pytest.mark.parametrize(
    'path', ['a/b.json', '../x', 'my runs/blip #2', '2024', '~', 'a, b', '[1]', "it's ${x}: \\n"]
)
def test_a_path_of_an_option_is_read_back_as_it_is(path):
    omegaconf = pytest.importorskip('omegaconf')
    option = path_option('run.output_dir', Path(path))
    assert omegaconf.OmegaConf.from_dotlist([option]).run.output_dir == path
    assert path_option('run.output_dir', 'a/b.json') == 'run.output_dir=a/b.json'


def test_a_file_to_read_may_be_at_an_address(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'captions.txt').write_text('a dog\n')
    with serve_files(tmp_path) as server:
        args = make_prompts.parse_args(['coco', f'{server.address}/captions.txt', 'out.jsonl'])
        assert args.file.name == 'captions.txt' and args.file.read_text() == 'a dog\n'
        with pytest.raises(SystemExit):
            make_prompts.parse_args(['coco', f'{server.address}/none.txt', 'out.jsonl'])
    assert f'{server.address}/none.txt is not there' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('tool', 'arguments'),
    [
        (import_masks, ['masks', 's3://bucket/images', 'masks', 'out']),
        (import_masks, ['coco', 'images', 's3://bucket/all.json', 'out']),
        (import_masks, ['masks', 'images', 'masks', 's3://bucket/out']),
        (make_prompts, ['coco', 'a.txt', 's3://bucket/out.jsonl']),
        (diversity, ['store', '--out', 's3://bucket/figures.json']),
        (view, ['store', '--out', 's3://bucket/page.html']),
    ],
)
def test_an_address_is_refused(tool, arguments, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(arguments)
    assert 's3://bucket/' in (told := capsys.readouterr().err) and 'copy it here first' in told
