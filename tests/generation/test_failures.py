"""Samples that can't be generated, or were blacked out: theirs alone, named, and left out."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from helpers.store_samples import folder_bytes
from helpers.tiny_pipelines import tiny_stable_diffusion
from kill_and_resume import kill_and_resume

from freeatm_mm.attention import AttentionRecorder
from freeatm_mm.generation import (
    GenerationError,
    ShardSource,
    TooManyFailed,
    estimate_run,
    generate_store,
    redo_failed,
)
from freeatm_mm.generation.generate import ShardWorker
from freeatm_mm.prompts import Noun, PromptRecord
from freeatm_mm.store import Store, StoreError, repair_store, verify_store

WORDS = ['dog', 'cat', 'bird', 'dress', 'shirt']
PROMPTS = [
    PromptRecord(f'{number:03d}', f'a photo of a {word}', (Noun(word, 13, 13 + len(word), word),))
    for number, word in enumerate(WORDS)
]
SETTINGS = dict(steps=2, batch_size=2, samples_per_shard=4, image_format='png')


@pytest.fixture()
def pipe():
    return tiny_stable_diffusion()


def source_of(pipe, prompts=PROMPTS, **changes):
    return ShardSource(pipe, prompts, name='tiny', revision='r1', **SETTINGS | changes)


def fail(pipe, *words, error=None, batches=None):
    """Have images of these words come out as NaN, or raise; note the size of each batch."""
    real = pipe.encode_prompt
    state = {}

    def encode_prompt(prompt, *rest, **options):
        state['bad'] = [any(word in text for word in words) for text in prompt]
        if batches is not None:
            batches.append(len(prompt))
        if error is not None and any(state['bad']):
            raise error
        return real(prompt, *rest, **options)

    def decode(module, args, output):
        bad = torch.tensor(state['bad'])[:, None, None, None]
        return torch.where(bad, torch.nan, output)

    pipe.encode_prompt = encode_prompt
    if error is None:
        pipe.vae.decoder.register_forward_hook(decode)
    return pipe


def test_an_image_that_is_not_a_number_is_left_out_and_named(pipe, tmp_path):
    batches = []
    summary = generate_store(
        source_of(fail(pipe, 'cat', batches=batches)), tmp_path, progress=False
    )
    store = Store(tmp_path)
    assert [sample.key for sample in store] == ['000', '002', '003', '004']
    assert (summary.samples, summary.failed, summary.split_batches) == (4, 1, 1)
    text = str(summary)
    assert '1 sample could not be generated' in text and '--redo-failed --dtype float32' in text
    assert '001 (prompt 001, image 0): its image is not a number' in text
    (item,) = json.loads((tmp_path / 'shard-000000.json').read_text())['notes']['left_out']
    assert (item['key'], item['kind']) == ('001', 'failed')
    assert batches == [2, 1, 1, 2, 1]  # the pair that failed one by one, the others as ever
    assert list(verify_store(tmp_path, source=source_of(pipe))) == []


def test_the_next_start_knows_of_it_and_generates_nothing(pipe, tmp_path):
    generate_store(source_of(fail(pipe, 'cat')), tmp_path, progress=False)
    before = folder_bytes(tmp_path)
    batches = []
    summary = generate_store(
        source_of(fail(pipe, 'cat', batches=batches)), tmp_path, progress=False
    )
    assert (batches, summary.samples, summary.skipped, summary.failed) == ([], 0, 4, 1)
    assert '001 (prompt 001, image 0)' in str(summary)
    assert folder_bytes(tmp_path) == before


def test_good_samples_of_a_batch_that_failed_are_as_if_generated_alone(pipe, tmp_path):
    generate_store(source_of(pipe, batch_size=1), tmp_path / 'b', progress=False)
    generate_store(source_of(fail(pipe, 'cat')), tmp_path / 'a', progress=False)
    assert Store(tmp_path / 'a')[0].image_bytes == Store(tmp_path / 'b')[0].image_bytes


@pytest.mark.parametrize(
    'error',
    [
        ValueError('the prompt is too long'),
        IndexError('out of range'),
        RuntimeError('shape mismatch at 0x7f00aa'),
        KeyError('bird'),
    ],
)
def test_an_exception_for_one_prompt_is_that_prompt_s_alone(pipe, tmp_path, error):
    summary = generate_store(source_of(fail(pipe, 'bird', error=error)), tmp_path, progress=False)
    assert [item['key'] for item in summary.left_out] == ['002'] and summary.samples == 4
    assert '0x7f' not in str(summary)


def test_masks_that_are_not_numbers_leave_out_their_sample(pipe, tmp_path, monkeypatch):
    real = AttentionRecorder.masks

    def masks(self, **options):
        return [
            maps * np.nan if 'dress' in prompt else maps
            for maps, prompt in zip(real(self, **options), self.prompts)
        ]

    init = AttentionRecorder.__init__

    def remember(self, pipeline, prompts, *rest, **options):
        self.prompts = prompts
        init(self, pipeline, prompts, *rest, **options)

    monkeypatch.setattr(AttentionRecorder, '__init__', remember)
    monkeypatch.setattr(AttentionRecorder, 'masks', masks)
    summary = generate_store(source_of(pipe), tmp_path, progress=False)
    assert [(item['key'], item['reason']) for item in summary.left_out] == [
        ('003', 'its masks are not numbers')
    ]
    assert summary.split_batches == 0 and len(Store(tmp_path)) == 4


def test_a_shard_of_which_nothing_can_be_generated_stands_empty(pipe, tmp_path):
    summary = generate_store(
        source_of(fail(pipe, 'shirt')), tmp_path, progress=False
    )  # alone in it
    assert (summary.samples, summary.failed, summary.missing_shards) == (4, 1, 0)
    store = Store(tmp_path)
    assert len(store) == 4 and store[-1].key == '003'
    assert [shard['samples'] for shard in store.manifest['shards']] == [4, 0]
    assert list(verify_store(tmp_path, source=source_of(pipe))) == []
    (tmp_path / 'shard-000001.tar').unlink()
    assert 'shard-000001' in str(next(verify_store(tmp_path)))
    repair_store(tmp_path, source_of(pipe))
    assert list(verify_store(tmp_path)) == []


def test_settings_that_generate_nothing_stop_at_once(pipe, tmp_path):
    with pytest.raises(GenerationError, match='prompts 000, 001 failed: broken'):
        generate_store(
            source_of(fail(pipe, 'a photo', error=RuntimeError('broken'))), tmp_path, progress=False
        )
    assert not list(tmp_path.glob('shard-*'))


def test_more_than_may_fail_stop_the_run_and_another_limit_lets_it_go_on(pipe, tmp_path):
    fail(pipe, 'cat', 'dress')
    for limit in (1, 0.2):
        with pytest.raises(TooManyFailed, match='2 samples could not .* 1 may .*001: its'):
            generate_store(source_of(pipe, max_failed=limit), tmp_path, progress=False)
    assert generate_store(source_of(pipe, max_failed=2), tmp_path, progress=False).failed == 2
    for limit in (-1, float('nan'), float('inf'), True):
        with pytest.raises(ValueError, match='max_failed must be'):
            source_of(pipe, max_failed=limit)


def test_what_failed_in_finished_shards_counts(pipe, tmp_path):
    source = source_of(fail(pipe, 'cat', 'shirt'), max_failed=1)
    for _ in range(2):  # also after a new start
        with pytest.raises(TooManyFailed):
            generate_store(source, tmp_path, progress=False)
    assert len(list(tmp_path.glob('shard-*.json'))) == 1


def test_what_failed_for_other_workers_counts(pipe, tmp_path, monkeypatch):
    fail(pipe, 'cat', 'dress')
    several = dict(samples_per_shard=2, max_failed=1)  # a failure in each of the first two shards
    sources = [source_of(pipe, **several) for _ in range(3)]
    workers = [ShardWorker(source, tmp_path) for source in sources]
    read, module = [], sys.modules['freeatm_mm.generation.generate']
    entry_of = module.shard_entry
    monkeypatch.setattr(
        module, 'shard_entry', lambda *place: read.append(place[1]) or entry_of(*place)
    )
    assert workers[0].run(0) and not workers[0].run(0)
    with pytest.raises(TooManyFailed, match='2 samples could not .* 1 may .* last: 003: its'):
        workers[1].run(1)
    assert workers[1].run(2)  # one failed, as many as may
    assert read == [0]
    with pytest.raises(TooManyFailed, match='the last: 003'):
        generate_store(source_of(pipe, **several), tmp_path, rank=1, world=2, progress=False)
    assert not (tmp_path / 'shard-000001.json').exists()
    # Where others had more fail already, no shard is begun.
    sources[2].max_failed = 0
    with pytest.raises(TooManyFailed, match='1 sample could not .* notes .left_out. say which'):
        workers[2].run(1)


def test_out_of_memory_in_a_batch_generates_one_by_one_and_alone_stops(pipe, tmp_path):
    real = pipe.unet.forward
    most = [2]

    def forward(sample, *rest, **options):
        if len(sample) > most[0]:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate')
        return real(sample, *rest, **options)

    pipe.unet.forward = forward
    summary = generate_store(source_of(pipe), tmp_path / 'a', progress=False)
    assert (summary.samples, summary.failed, summary.split_batches) == (5, 0, 2)
    assert '2 batches generated again one by one' in str(summary)
    most[0] = 0
    with pytest.raises(GenerationError, match='prompts 000 failed.*out of memory'):
        generate_store(source_of(pipe), tmp_path / 'b', progress=False)


def test_a_lost_noun_still_stops_if_asked(pipe, tmp_path):
    long = PromptRecord('x', 'a dog ' + 'on the sand ' * 30 + 'bird', (Noun('bird', 366, 370),))
    with pytest.raises(ValueError, match='prompts x failed'):
        generate_store(source_of(pipe, [long], lost_nouns='raise'), tmp_path, progress=False)


def test_the_same_bytes_whatever_the_kills(pipe, tmp_path):
    torch.set_num_threads(1)
    source = source_of(fail(pipe, 'cat', 'shirt'), samples_per_shard=2)
    report = kill_and_resume(source, tmp_path, 4, workers=2, seed=1)
    assert report.kills == 4 and report.problems == []


def test_damaged_shards_are_repaired_around_what_is_left_out(pipe, tmp_path):
    source = source_of(fail(pipe, 'dog'))
    generate_store(source, tmp_path, progress=False)
    whole = folder_bytes(tmp_path)
    content = bytearray(whole['shard-000000.tar'])
    content[int(Store(tmp_path)._shard(0).row(1)[5]) + 50] ^= 1
    (tmp_path / 'shard-000000.tar').write_bytes(content)
    report = repair_store(tmp_path, source)
    assert (report.restored, report.generated) == (['shard-000000'], 1)
    assert folder_bytes(tmp_path) == whole
    (tmp_path / 'store.json').unlink()
    repair_store(tmp_path, source)
    assert folder_bytes(tmp_path) == whole


def test_what_failed_is_generated_again_in_another_number_format(pipe, tmp_path, capsys):
    generate_store(source_of(fail(pipe, 'cat', 'shirt')), tmp_path, progress=False)
    before = {sample.key: sample.image_bytes for sample in Store(tmp_path)}
    wide = tiny_stable_diffusion().to(torch.bfloat16)
    with pytest.raises(StoreError, match='steps is 2 there and 3 here'):
        redo_failed(source_of(wide, steps=3), tmp_path)
    with pytest.raises(StoreError, match='there is no store'):
        redo_failed(source_of(wide), tmp_path / 'nothing')
    summary = redo_failed(source_of(wide), tmp_path)
    assert (summary.samples, summary.skipped, summary.left_out) == (2, 3, [])
    assert 'shard' in capsys.readouterr().err  # how far it is
    store = Store(tmp_path)
    assert [sample.key for sample in store] == [record.id for record in PROMPTS]
    assert [sample.meta['dtype'] for sample in store] == [
        'float32',
        'bfloat16',
        'float32',
        'float32',
        'bfloat16',
    ]
    assert {
        key: image
        for key, image in ((sample.key, sample.image_bytes) for sample in store)
        if key in before
    } == before
    assert list(verify_store(tmp_path, source=source_of(pipe))) == []
    assert generate_store(source_of(pipe), tmp_path, progress=False).samples == 0


def damage(path, shard, row):
    """Change a bit of a sample's image."""
    file = path / f'shard-{shard:06d}.tar'
    content = bytearray(file.read_bytes())
    place = np.load(file.with_suffix('.index.npy'))['image_offset'][row]
    content[int(place) + 50] ^= 1
    file.write_bytes(content)


def test_a_lost_sample_of_another_number_format_is_listed_and_the_rest_repaired(pipe, tmp_path):
    source, wide = source_of(fail(pipe, 'cat', 'shirt')), tiny_stable_diffusion().to(torch.bfloat16)
    generate_store(source, tmp_path, progress=False)
    redo_failed(source_of(wide), tmp_path, progress=False)
    whole = folder_bytes(tmp_path)
    damage(tmp_path, 0, 0)
    damage(tmp_path, 1, 0)  # the shirt
    report = repair_store(tmp_path, source)
    assert (report.restored, report.generated) == (['shard-000000'], 1)
    (left,) = report.left
    assert left.startswith("shard-000001: sample '004' was made before and can't be now: its image")
    assert 'generated again as bfloat16, and this pipeline is float32: remove the shard' in left
    assert '--redo-failed --dtype bfloat16' in left
    # The tool's source can load the pipeline in another format.
    again = source_of(fail(tiny_stable_diffusion(), 'cat', 'shirt'))
    opened = []
    again.in_format = lambda dtype: opened.append(dtype) or source_of(wide)
    damage(tmp_path, 0, 0)
    damage(tmp_path, 0, 1)  # the cat: both formats in one shard
    report = repair_store(tmp_path, again)
    assert report.left == [] and report.generated == 3 and opened == ['bfloat16']
    assert folder_bytes(tmp_path) == whole
    # What the message says to do.
    for file in tmp_path.glob('shard-000001.*'):
        file.unlink()
    generate_store(source, tmp_path, progress=False)
    redo_failed(source_of(wide), tmp_path, progress=False)
    assert folder_bytes(tmp_path) == whole


def test_what_was_generated_again_alone_is_repaired_so(pipe, tmp_path):
    batches = []
    generate_store(source_of(fail(pipe, 'cat')), tmp_path, progress=False)
    whole_pipe = tiny_stable_diffusion()
    redo_failed(source_of(fail(whole_pipe, batches=batches)), tmp_path, progress=False)
    whole, batches[:] = folder_bytes(tmp_path), []
    damage(tmp_path, 0, 1)
    report = repair_store(tmp_path, source_of(whole_pipe))
    assert (report.restored, batches) == (['shard-000000'], [1])
    assert folder_bytes(tmp_path) == whole


def test_settings_that_generate_nothing_end_a_repair(pipe, tmp_path):
    generate_store(source_of(pipe), tmp_path, progress=False)
    damage(tmp_path, 0, 0)
    damaged = folder_bytes(tmp_path)
    for error in (RuntimeError('broken'), ValueError('broken')):
        broken = source_of(fail(tiny_stable_diffusion(), 'a photo', error=error))
        with pytest.raises((GenerationError, ValueError), match='failed: broken') as caught:
            repair_store(tmp_path, broken)
        assert not isinstance(caught.value, StoreError)
        assert folder_bytes(tmp_path) == damaged


def test_what_another_process_generates_again_meanwhile_is_kept(pipe, tmp_path, monkeypatch):
    generate_store(source_of(fail(pipe, 'cat', 'shirt')), tmp_path, progress=False)
    wide = source_of(tiny_stable_diffusion().to(torch.bfloat16))
    alone = wide.generate_alone

    def then_another(shard, keys):
        found = alone(shard, keys)
        monkeypatch.undo()
        assert redo_failed(wide, tmp_path, progress=False).samples == 2
        return found

    monkeypatch.setattr(wide, 'generate_alone', then_another)
    with pytest.raises(StoreError, match='was changed by another process in the meantime'):
        redo_failed(wide, tmp_path, progress=False)
    assert len(Store(tmp_path)) == len(PROMPTS)
    assert list(verify_store(tmp_path, source=source_of(pipe))) == []


def test_what_fails_again_stays_left_out(pipe, tmp_path):
    source = source_of(fail(pipe, 'cat'))
    generate_store(source, tmp_path, progress=False)
    whole = folder_bytes(tmp_path)
    assert redo_failed(source, tmp_path).failed == 1
    assert folder_bytes(tmp_path) == whole


def test_an_estimate_passes_over_what_fails(pipe):
    assert estimate_run(source_of(fail(pipe, 'cat'))).timed == 3


# Black images ----------------------------------------------------------------------------------


def blacken(pipe, word):
    """A safety checker that finds a word's images unsafe."""
    state, encode = {}, pipe.encode_prompt

    def encode_prompt(prompt, *rest, **options):
        state['unsafe'] = [word in text for text in prompt]
        return encode(prompt, *rest, **options)

    def run_safety_checker(image, *rest):
        image = torch.where(torch.tensor(state['unsafe'])[:, None, None, None], -1.0, image)
        return image, state['unsafe']

    pipe.encode_prompt, pipe.run_safety_checker = encode_prompt, run_safety_checker
    return pipe


def test_blacked_out_images_are_left_out_counted_and_told(pipe, tmp_path):
    summary = generate_store(source_of(blacken(pipe, 'cat')), tmp_path, progress=False)
    assert (summary.samples, summary.hidden_images, summary.failed) == (4, 1, 0)
    assert [(item['key'], item['kind']) for item in summary.left_out] == [('001', 'hidden')]
    assert '1 image of these left out of the store (--keep-hidden keeps such images)' in str(
        summary
    )
    store = Store(tmp_path)
    assert [sample.meta['hidden_by_safety_checker'] for sample in store] == [False] * 4
    assert redo_failed(source_of(tiny_stable_diffusion()), tmp_path).samples == 0


def test_blacked_out_images_are_kept_if_asked_and_marked(pipe, tmp_path):
    summary = generate_store(
        source_of(blacken(pipe, 'cat'), keep_hidden=True), tmp_path, progress=False
    )
    assert (summary.samples, summary.hidden_images, summary.left_out) == (5, 1, [])
    marks = [sample.meta['hidden_by_safety_checker'] for sample in Store(tmp_path)]
    assert marks == [False, True, False, False, False]
    with pytest.raises(StoreError, match='keep_hidden is True there and None here'):
        generate_store(source_of(pipe), tmp_path, progress=False)


def test_without_a_word_from_the_checker_a_black_image_tells(pipe, tmp_path):
    from types import SimpleNamespace

    from PIL import Image

    from freeatm_mm.generation.calls import hidden_images

    black, dark = Image.new('RGB', (8, 8)), Image.new('RGB', (8, 8), (0, 0, 1))
    dark.putpixel((3, 3), (9, 9, 9))
    output = SimpleNamespace(images=[black, dark])
    assert hidden_images(SimpleNamespace(safety_checker=object()), output) == [True, False]
    assert hidden_images(SimpleNamespace(safety_checker=None), output) == [False, False]
    output.nsfw_content_detected = [False, True]
    assert hidden_images(SimpleNamespace(safety_checker=object()), output) == [False, True]
