"""What the runner of `freeatm train` and `freeatm test` shows on the console."""

from __future__ import annotations

import logging
from pathlib import Path

from mmengine.config import Config
from mmengine.model import BaseModel

from freeatm_mm.engine.runner import ShortConsoleRunner


class Model(BaseModel):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs


def test_long_reports_are_named_on_the_console_and_whole_in_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config(dict(work_dir='run', experiment_name='short', default_scope='mmengine'))
    runner = ShortConsoleRunner(Model(), 'run', cfg=cfg, experiment_name='short')
    runner.logger.info('a table:\n+---+\n| 1 |\n+---+')
    runner.logger.warning('Config:\nof a warning')
    console = capsys.readouterr().out
    log = next(Path('run').glob('*/*.log'))
    for report in ('System environment:', 'Config:', 'Hooks will be executed'):
        (line,) = [line for line in console.splitlines() if report in line and 'INFO' in line]
        assert line.endswith(f' lines, in {log}')
        assert report in log.read_text()
    assert 'sys.platform' in log.read_text() and 'sys.platform' not in console
    assert '| 1 |' in console and 'of a warning' in console
    assert len(console.splitlines()) < 15
    again = ShortConsoleRunner(Model(), 'run', cfg=cfg, experiment_name='short')
    shown = [handler for handler in again.logger.handlers if type(handler) is logging.StreamHandler]
    assert len(shown) == 1
