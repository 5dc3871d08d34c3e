"""A long job: each command once, a failure stops it, a second start goes on."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from functools import partial

import pytest
from helpers.tiny_stores import make_store

from freeatm_mm.errors import InputError, RunError
from freeatm_mm.miniature.job import (
    DryJob,
    Job,
    check_same_pictures,
    choose_samples,
    chosen_ids,
    pretrain,
)
from freeatm_mm.prompts import PromptRecord, write_prompts
from freeatm_mm.store import Store, write_store


@pytest.fixture
def tool(tmp_path):
    """A tool that notes its arguments in a file and ends with the code it is given."""
    path = tmp_path / 'tool.py'
    path.write_text(
        'import sys\n'
        f'open({str(tmp_path / "calls")!r}, "a").write(" ".join(sys.argv[1:]) + ";")\n'
        'sys.exit(int(sys.argv[1]))\n'
    )
    return path


def test_a_command_runs_once(tool, tmp_path):
    for _ in range(2):
        job = Job(tmp_path)
        job.run('Do it', tool, 0, 'a b')
        job.run('Do another', tool, 0, 'c')
        assert [step.what for step in job.steps] == ['Do it', 'Do another']
        assert job.steps[0].command == f"python {tool} 0 'a b'" and job.steps[0].seconds > 0
    assert (tmp_path / 'calls').read_text() == '0 a b;0 c;'


def test_a_folder_that_was_moved_or_copied_is_still_done(tool, tmp_path):
    """Also one that notes whole paths, as older ones do, where it lies."""
    here, there, calls = tmp_path / 'a b', tmp_path / 'c', tmp_path / 'calls'

    def run(out):
        job = Job(out)
        for number, argument in enumerate(
            [out, f'{out}/x', f'--store={out}/x', f'p=[{out},{out}/y]', f'{out}x', f'/y{out}']
        ):
            job.run('Do it', tool, 0, number, argument)
        assert job.steps[1].command == shlex.join(['python', str(tool), '0', '1', f'{out}/x'])

    here.mkdir()
    run(here)
    run(here)
    assert calls.read_text().count(';') == 6
    calls.write_text('')
    here.rename(there)
    run(there)
    assert calls.read_text() == f'0 4 {there}x;0 5 /y{there};'
    whole = shlex.join(['python', str(tool), '0', f'{there}/old'])
    (there / 'steps.json').write_text(json.dumps({whole: 3.5}))
    job = Job(there)
    job.run('Do it', tool, 0, f'{there}/old')
    assert job.steps[0].seconds == 3.5 and calls.read_text().count(';') == 2


def test_a_failure_stops_and_is_tried_again(tool, tmp_path):
    job = Job(tmp_path)
    job.run('Do it', tool, 0)
    for _ in range(2):
        with pytest.raises(RunError, match=r'"Fail" failed \(exit code 3\).*goes on from here'):
            Job(tmp_path).run('Fail', tool, 3)
    assert (tmp_path / 'calls').read_text() == '0;3;3;'
    assert len(json.loads((tmp_path / 'steps.json').read_text())) == 1


def test_the_python_that_runs_it_runs_the_tools(tmp_path):
    path = tmp_path / 'tool.py'
    path.write_text(f'import sys\nassert sys.executable == {sys.executable!r}\n')
    Job(tmp_path).run('Look', path)


def test_side_by_side_each_line_says_whose_it_is(tmp_path, capfd):
    path = tmp_path / 'tool.py'
    path.write_text('import sys\nprint("out", sys.argv[1])\nprint("err", file=sys.stderr)\n')
    job = Job(tmp_path)
    job.run_side_by_side([partial(job.run, 'Do', path, name, label=name) for name in 'abc'], 2)
    lines = capfd.readouterr().out.splitlines()
    for name in 'abc':
        assert f'[{name}] out {name}' in lines and f'[{name}] err' in lines
    assert sorted(step.command[-1] for step in job.steps) == list('abc')


def test_a_failed_line_begins_no_other(tool, tmp_path):
    job = Job(tmp_path)
    with pytest.raises(RunError, match='"Fail" failed'):
        job.run_side_by_side(
            [
                partial(job.run, 'Fail', tool, 3, label='x'),
                *(partial(job.run, 'Do', tool, 0, name) for name in 'abcdefgh'),
            ],
            1,
        )
    assert (tmp_path / 'calls').read_text() == '3;'


def test_a_failure_ends_the_lines_beside_it(tool, tmp_path):
    """What already runs ends; the next command of its line isn't begun."""
    job, failed = Job(tmp_path), threading.Event()

    def fails():
        try:
            job.run('Fail', tool, 3)
        finally:
            failed.set()

    def goes_on():
        job.run('Do', tool, 0, 'a')
        assert failed.wait(60)
        job.run('Do', tool, 0, 'b')

    with pytest.raises(RunError, match='"Fail" failed'):
        job.run_side_by_side([goes_on, fails], 2)
    assert set((tmp_path / 'calls').read_text().split(';')) == {'3', '0 a', ''}


def test_a_dry_job_only_counts(tool, tmp_path, capsys):
    job = DryJob()
    job.run_side_by_side([partial(job.run, 'Do it', tool, 0, name) for name in 'ab'], 2)
    assert job.count == 2 and not (tmp_path / 'calls').exists()
    assert capsys.readouterr().out.splitlines()[1] == f'Do it: python {tool} 0 b'


def test_a_folder_keeps_the_length_of_its_pretraining(tmp_path):
    """Resumed with another, schedules would come from the checkpoint, at the rate of its end."""
    folder = tmp_path / 'synthetic-mocov2-freeatm-0'
    folder.mkdir()
    (folder / 'mocov2_freeatm.py').write_text('train_cfg = dict(max_epochs=24)\n')
    assert pretrain(DryJob(), folder, 'mocov2', 'store', 24, 0, True) == folder / 'epoch_24.pth'
    with pytest.raises(InputError, match='holds a pretraining of 24 epochs, not of 48'):
        pretrain(DryJob(), folder, 'mocov2', 'store', 48, 0, True)


def test_seeds_have_samples_of_their_own(tmp_path):
    pool = make_store(tmp_path / 'pool', count=20)

    def chosen(seed, images=6):
        path = tmp_path / f'{images}-{seed}.json'
        return choose_samples(pool, images, seed, path), json.loads(path.read_text())

    lists = [chosen(seed)[1] for seed in range(3)]
    assert [len(samples) for samples in lists] == [6, 6, 6]
    assert len(set().union(*lists)) == 18 and all(sorted(part) == part for part in lists)
    noted, samples = chosen(1)  # the same again
    assert samples == lists[1] and noted['disjoint'] and noted['store'] == 'pool'
    noted, samples = chosen(3)  # two are left: a draw of its own
    assert not noted['disjoint'] and len(set(samples)) == 6
    with pytest.raises(InputError, match='has 20 samples, too few for 21'):
        chosen(0, 21)
    with pytest.raises(InputError, match='lists the samples of another store'):
        choose_samples(make_store(tmp_path / 'other', count=30), 6, 0, tmp_path / '6-0.json')


def test_samples_of_the_same_ids(tmp_path):
    """A store that holds only what seeds take of the pool, in another order, gives each its own."""
    pool = make_store(tmp_path / 'pool', count=20)
    ids = chosen_ids(pool, 6, 2)
    assert len(ids) == 12
    few = tmp_path / 'few'
    write_store(few, [sample for sample in list(Store(pool))[::-1] if sample.key in ids])
    for seed in range(2):
        lists = tmp_path / f'{seed}.json', tmp_path / f'few-{seed}.json'
        noted = [
            choose_samples(pool, 6, seed, lists[0]),
            choose_samples(few, 6, seed, lists[1], ids_of=pool),
        ]
        keys = [
            {Store(store)[place].key for place in json.loads(path.read_text())}
            for store, path in zip((pool, few), lists)
        ]
        assert keys[0] == keys[1]
        assert noted[1]['ids_of'] == 'pool' and noted[1]['store'] == 'few'
        assert noted[1]['disjoint'] and 'ids_of' not in noted[0]
    with pytest.raises(InputError, match=r'few lacks \d of the 6 ids that seed 2 takes of .*pool'):
        choose_samples(few, 6, 2, tmp_path / '2.json', ids_of=pool)
    check_same_pictures(pool, few, same_ids=True)
    with pytest.raises(InputError, match='must hold the same pictures'):
        check_same_pictures(pool, make_store(tmp_path / 'other', 20, seed=1), same_ids=True)


def test_prompts_stand_for_the_pool_that_they_would_become(tmp_path):
    """A seed takes the same samples of a part as of the whole pool, which need not exist."""
    pool = make_store(tmp_path / 'pool', count=20)
    prompts = tmp_path / 'prompts.jsonl'
    write_prompts(prompts, (PromptRecord(key, 'a dog') for key in Store(pool).sample_keys()))
    ids = chosen_ids(prompts, 6, 2)
    assert ids == chosen_ids(pool, 6, 2)
    few = tmp_path / 'few'
    write_store(few, [sample for sample in Store(pool) if sample.key in set(ids)])
    for seed in range(2):
        lists = tmp_path / f'{seed}.json', tmp_path / f'few-{seed}.json'
        whole = choose_samples(pool, 6, seed, lists[0])
        part = choose_samples(few, 6, seed, lists[1], ids_of=prompts)
        taken = [
            [Store(store)[place].key for place in json.loads(path.read_text())]
            for store, path in zip((pool, few), lists)
        ]
        assert taken[0] == taken[1]
        assert part['disjoint'] == whole['disjoint'] and part['ids_of'] == 'prompts.jsonl'
    with pytest.raises(InputError, match=r'few lacks \d of the 6 ids that seed 2 takes of'):
        choose_samples(few, 6, 2, tmp_path / '2.json', ids_of=prompts)
    with pytest.raises(InputError, match='prompts.jsonl has 20 samples, too few for 21'):
        chosen_ids(prompts, 21, 1)
