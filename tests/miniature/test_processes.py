"""Commands in processes forked after the imports: their own in everything, and the same results."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.tiny_stores import make_store
from helpers.tools import run_tool

from freeatm_mm.errors import RunError
from freeatm_mm.miniature.job import Job
from freeatm_mm.miniature.processes import can_share_imports, run_with_imports

pytestmark = [
    pytest.mark.usefixtures('single_threaded_at_root'),
    pytest.mark.skipif(not can_share_imports(), reason='processes can be forked on Linux alone'),
]


def write(path, text):
    path.write_text(text)
    return str(path)


def test_the_imports_are_there_and_all_else_is_the_commands_own(tmp_path, capfd):
    tool = write(
        tmp_path / 'tool.py',
        'import atexit, os, sys\n'
        'atexit.register(print, "at its end")\n'
        'print("mmpretrain.models" in sys.modules, __name__, sys.argv[1:], os.getcwd())\n'
        'print("beside", file=sys.stderr)\n'
        'sys.path.clear(), os.chdir("/"), os.environ.clear()\n'
        'sys.exit(int(sys.argv[1]))\n',
    )
    for code in (0, 3):
        assert run_with_imports(tool, [str(code), 'a b'], 'label') == code
        said, beside, end = capfd.readouterr().out.splitlines()[-3:]
        assert said.startswith(f"[label] True __main__ ['{code}', 'a b'] /")
        assert (beside, end) == ('[label] beside', '[label] at its end')


def test_a_crash_is_one_commands_alone(tmp_path):
    crash = write(tmp_path / 'crash.py', 'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)')
    well = write(tmp_path / 'well.py', 'print("well")')
    job = Job(tmp_path, share_imports=True)
    with pytest.raises(RunError, match=r'"Crash" failed \(exit code -9\)'):
        job.run('Crash', crash, label='a')
    job = Job(tmp_path, share_imports=True)
    job.run('Go well', well, label='b')
    assert list(json.loads(job.path.read_text())) == ["python '{out}/well.py'"]


def test_a_pretraining_is_the_same_bit_for_bit(tmp_path):
    """Its counterpart runs in this process, which has imported other things before."""
    store = make_store(tmp_path / 'store', 12, size=(64, 64))

    def words(name):
        return [
            'configs/miniature/mocov2_freeatm.py',
            *('--work-dir', str(tmp_path / name), '--seed', '3', '--data-root', str(store)),
            '--cfg-options',
            *('train_cfg.max_epochs=3', 'train_dataloader.batch_size=4', 'model.queue_len=64'),
            'train_dataloader.num_workers=0',
        ]

    assert run_tool('train', *words('here')) == 0
    assert run_with_imports('tools/train.py', words('forked'), 'label') == 0
    here, forked = (
        torch.load(tmp_path / name / 'epoch_3.pth', weights_only=False)['state_dict']
        for name in ('here', 'forked')
    )
    assert here.keys() == forked.keys()
    assert all(torch.equal(here[key], forked[key]) for key in here)
