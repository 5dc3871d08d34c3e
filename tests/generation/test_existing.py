"""Masks for images that exist: what is recorded, what is kept, and that it is always the same."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import tarfile
import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from helpers.servers import serve_files
from helpers.store_samples import folder_bytes
from helpers.tiny_pipelines import save_tiny_lora, tiny_stable_diffusion
from helpers.tiny_stores import make_store
from helpers.tools import run_tool
from PIL import Image

from freeatm_mm import addresses
from freeatm_mm.errors import InputError
from freeatm_mm.generation import GenerationError, run_workers
from freeatm_mm.generation.existing import MaskJob, add_masks, job_of_store, read_picture
from freeatm_mm.generation.images import ImageReader, find_images
from freeatm_mm.generation.listing import ImageFile, list_images, list_path
from freeatm_mm.generation.outcomes import SourceError
from freeatm_mm.store import Sample, Store, StoreError, verify_store, write_store
from freeatm_mm.store.transfer import push_store

PROMPTS = ['a dog and a ball', 'a cat']
NOUNS = [['dog', 'ball'], ['cat']]
LEVELS = (200, 450)


def encoded(size=(64, 48), mode='RGB', image_format='PNG', seed=0, **options):
    """The bytes of a picture of noise; `size` is (width, height)."""
    channels = {'RGB': 3, 'RGBA': 4, 'L': 1, 'CMYK': 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], channels), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope='module')
def pipe():
    return tiny_stable_diffusion()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Nine images with a text beside each, a tenth that is none, and one without text."""
    folder = tmp_path_factory.mktemp('images')
    (folder / 'sub').mkdir()
    captions = ['A dog and a ball.', 'a cat near a dress', 'blue and very']
    nouns = [['dog', 'ball'], ['cat', 'dress'], []]

    def say(image, caption, nouns):
        text = json.dumps({'caption': caption, 'nouns': nouns})
        image.with_suffix('.json').write_text(text)

    for number in range(9):
        name = f'sub/{number}.png' if number % 2 else f'{number}.jpg'
        data = encoded(
            (64, 48 + 8 * (number % 3)), image_format='PNG' if number % 2 else 'JPEG', seed=number
        )
        (folder / name).write_bytes(data)
        say(folder / name, captions[number % 3], nouns[number % 3])
    (folder / 'broken.jpg').write_bytes(b'no picture')
    say(folder / 'broken.jpg', 'a dog', ['dog'])
    (folder / 'silent.png').write_bytes(encoded())
    return folder


def listed(source, tmp_path, **options):
    """The images of a source, and what reads them."""
    images = list_images(source, tmp_path / 'out', **options)
    reader = ImageReader(source)
    return images, ImageFile(images.path), reader


# What is stored


def test_images_keep_their_bytes_and_masks_lie_in_their_frame(folder, pipe, tmp_path):
    images, records, reader = listed(folder, tmp_path)
    summary = add_masks(pipe, records, reader, tmp_path / 'out', levels=LEVELS, progress=False)
    store = Store(tmp_path / 'out')
    assert len(store) == 9 and list(verify_store(tmp_path / 'out')) == []
    for sample in store:
        assert str(tmp_path) not in json.dumps(sample.meta)
        assert sample.image_bytes == (folder / sample.meta['image']).read_bytes()
    first = store[0]
    assert first.caption == 'A dog and a ball.' and first.image.size == (64, 48)
    assert [noun.text for noun in first.nouns] == ['dog', 'ball']
    assert first.masks.shape[2] / first.masks.shape[1] == pytest.approx(64 / 48, rel=0.05)
    assert first.meta['levels'] == list(LEVELS)
    # Nothing is lost without a word.
    assert summary.left_out[0]['reason'] == (
        "its image can't be read: no picture of a format that is known"
    )
    assert images.counts == {
        'images have no caption and are left out': 1,
        'captions have no noun; their images get no masks': 3,
    }
    assert [len(sample.nouns) for sample in store].count(0) == 3


def test_bytes_are_the_same_however_the_work_is_split_or_interrupted(folder, pipe, tmp_path):
    torch.set_num_threads(1)
    pipe.save_pretrained(tmp_path / 'tiny-sd')
    images, _, _ = listed(folder, tmp_path)
    job = MaskJob(
        str(tmp_path / 'tiny-sd'),
        str(images.path),
        device='cpu',
        images=str(folder),
        options=dict(levels=list(LEVELS), batch_size=2, samples_per_shard=3),
    )
    source = job.source()
    options = dict(levels=LEVELS, batch_size=2, samples_per_shard=3)
    options |= {'name': 'tiny-sd', 'revision': source.config['revision'], 'progress': False}
    reader = ImageReader(folder)
    add_masks(source.pipeline, ImageFile(images.path), reader, tmp_path / 'one', **options)
    whole = folder_bytes(tmp_path / 'one')
    run_workers(job, tmp_path / 'two', 2, progress=False)
    assert folder_bytes(tmp_path / 'two') == whole

    class Stopped(Exception):
        pass

    class Failing(ImageReader):
        left = 4

        def read(self, place):
            self.left -= 1
            if self.left < 0:
                raise Stopped
            return super().read(place)

    # A batch that fails is tried image by image, so this one raises again.
    with pytest.raises((Stopped, GenerationError)):
        add_masks(
            source.pipeline,
            ImageFile(images.path),
            Failing(folder),
            tmp_path / 'three',
            max_failed=0,
            **options,
        )
    assert 0 < len(list((tmp_path / 'three').glob('shard-*.tar'))) < 4
    add_masks(source.pipeline, ImageFile(images.path), reader, tmp_path / 'three', **options)
    assert folder_bytes(tmp_path / 'three') == whole


def test_steps_of_masks_are_levels_whatever_the_sampler(folder, tmp_path):
    """PNDM would call the network three times in two steps."""
    _, records, reader = listed(folder, tmp_path)
    masks = []
    for scheduler in (diffusers.DDIMScheduler, diffusers.PNDMScheduler):
        pipe = tiny_stable_diffusion()
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        out = tmp_path / scheduler.__name__
        options = dict(levels=[50, 600], masks={'steps': [1, 2]}, progress=False)
        add_masks(pipe, records, reader, out, **options)
        masks.append([sample.masks for sample in Store(out)])
    for one, two in zip(*masks, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_store_of_other_levels_is_not_gone_on_with(folder, pipe, tmp_path):
    _, records, reader = listed(folder, tmp_path)
    add_masks(pipe, records, reader, tmp_path / 'out', levels=[200], progress=False)
    with pytest.raises(ValueError, match='levels is .*200.* there and .*300.* here'):
        add_masks(pipe, records, reader, tmp_path / 'out', levels=[300], progress=False)


@pytest.mark.parametrize(
    ('data', 'kept'),
    [
        (encoded(), True),
        (encoded(image_format='JPEG'), True),
        (encoded(mode='L', image_format='JPEG'), True),
        (encoded(mode='RGBA'), False),
        (encoded(mode='CMYK', image_format='JPEG'), False),
        (encoded(image_format='WEBP'), False),
        (encoded(image_format='TIFF'), False),
    ],
    ids=['png', 'jpeg', 'grey', 'rgba', 'cmyk', 'webp', 'tiff'],
)
def test_bytes_that_a_store_holds_are_kept(data, kept):
    picture = read_picture(data)
    assert (picture.data == data) is kept
    assert ('encoded_anew' not in picture.meta) is kept
    assert picture.image.size == (64, 48) and picture.image.mode in ('RGB', 'L')


def test_an_image_that_lies_on_its_side_is_seen_and_stored_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    picture = read_picture(encoded((64, 48), image_format='JPEG', exif=exif))
    assert picture.image.size == (48, 64)
    assert picture.data is None and picture.meta['encoded_anew'] == 'turned upright'


@pytest.mark.filterwarnings('error')
def test_a_pixel_bomb_is_refused_before_it_is_decompressed():
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        Image.new('1', (20_000, 5_000)).save(buffer, 'PNG')
    with pytest.raises(InputError, match='20000x5000 pixels, more than 67,108,864'):
        read_picture(buffer.getvalue())


# Where images come from


def tar_of(path, members):
    with tarfile.open(path, 'w') as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def dotted_webdataset(tmp_path, data):
    members = {}
    for name in ('a', 'photo.1', 'photo.2', 'b', 'b.2', 'c'):
        members |= {f'{name}.jpg': data, f'{name}.txt': b'a dog'}
    tar_of(tmp_path / '00000.tar', members | {'c.mask.png': data})
    return tmp_path, {}


def folder_with_metadata(tmp_path, data):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'a.png').write_bytes(data)
    rows = [
        {'file_name': 'train/a.png', 'text': 'a dog and a dog', 'nouns': ['dog', 'ball']},
        {'file_name': 'train/gone.png', 'text': 'a dog'},
        {'file_name': '../b.png', 'text': 'a dog'},
    ]
    (tmp_path / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return tmp_path, {}


def webdataset(tmp_path, data):
    tar_of(
        tmp_path / '00000.tar',
        {
            '0001.jpg': data,
            '0001.txt': b'a dog',
            '0001.json': b'{"caption": "other"}',
            '0002.json': b'{"caption": "alone"}',
        },
    )
    return tmp_path, {}


def huggingface(tmp_path, data):
    pytest.importorskip('pyarrow')
    import datasets

    features = datasets.Features({'image': datasets.Image(), 'text': datasets.Value('string')})
    rows = {'image': [{'bytes': data, 'path': None}] * 3, 'text': ['a dog', 'a cat', 'two birds']}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path))
    return tmp_path, {}


def parquet(tmp_path, data):
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')

    table = pyarrow.table(
        {'image': [{'bytes': data, 'path': 'x.png'}] * 5, 'caption': ['a dog'] * 5}
    )
    parquet.write_table(table, tmp_path / 'train-0.parquet', row_group_size=2)
    return tmp_path, {}


def parquet_in_capitals(tmp_path, data):
    parquet(tmp_path, data)
    (tmp_path / 'train-0.parquet').rename(tmp_path / 'TRAIN-0.PARQUET')
    return tmp_path, {}


def folder_with_parquet_metadata(tmp_path, data):
    pyarrow = pytest.importorskip('pyarrow')
    (tmp_path / 'a.png').write_bytes(data)
    table = pyarrow.table(
        {
            'image': [data, data],  # no name, and not loaded
            'pixels': [[[1, 2]], [[3, 4]]],
            'file_name': ['a.png', 'gone.png'],
            'text': ['a dog and a ball', 'a cat'],
            'nouns': [['ball'], None],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / 'metadata.parquet')
    return tmp_path, {}


def captions_in_parquet(tmp_path, data):
    pyarrow = pytest.importorskip('pyarrow')
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'a.png').write_bytes(data)
    columns = {'FilePath': ['a.png'], 'sentences': [[{'raw': 'a dog'}, {'raw': 'a cat'}]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / 'captions.parquet')
    return tmp_path / 'images', {'captions': tmp_path / 'captions.parquet'}


def karpathy(tmp_path, data):
    pytest.importorskip('ijson')
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'a.png').write_bytes(data)
    sentences = [{'raw': 'a dog', 'sentid': 7}, {'raw': 'a cat', 'sentid': 9}]
    image = {'filename': 'a.png', 'filepath': 'val2014', 'sentences': sentences}
    (tmp_path / 'dataset.json').write_text(json.dumps({'images': [image], 'dataset': 'coco'}))
    return tmp_path / 'images', {'captions': tmp_path / 'dataset.json'}


def karpathy_in_folders(tmp_path, data):
    images, options = karpathy(tmp_path, data)
    (images / 'val2014').mkdir()
    (images / 'a.png').rename(images / 'val2014/a.png')
    return images, options


def img2dataset_files(tmp_path, data):
    """As its output format `files`, the default, writes two shards."""
    pyarrow = pytest.importorskip('pyarrow')
    for shard in ('00000', '00001'):
        (tmp_path / shard).mkdir()
        stem = tmp_path / shard / f'{shard}0000'
        row = {'caption': 'a dog', 'url': 'http://x/a.jpg', 'key': stem.name, 'status': 'success'}
        stem.with_suffix('.jpg').write_bytes(data)
        stem.with_suffix('.txt').write_text(row['caption'])
        stem.with_suffix('.json').write_text(json.dumps({**row, 'width': 64, 'exif': '{}'}))
        columns = {key: [value, value] for key, value in row.items()}
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f'{shard}.parquet')
        (tmp_path / f'{shard}_stats.json').write_text('{"count": 2, "successes": 1}')
    (tmp_path / '00002.parquet').write_bytes(b'PAR1 and no more')  # of a run that was killed
    return tmp_path, {}


def coco(tmp_path, data):
    pytest.importorskip('ijson')
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / '000000000009.jpg').write_bytes(data)
    (tmp_path / 'captions.json').write_text(
        json.dumps(
            {
                'images': [{'id': 9, 'file_name': '000000000009.jpg'}],
                'annotations': [
                    {'id': 1, 'image_id': 9, 'caption': 'a dog'},
                    {'id': 2, 'image_id': 9, 'caption': 'a cat'},
                ],
            }
        )
    )
    return tmp_path / 'images', {'captions': tmp_path / 'captions.json'}


@pytest.mark.parametrize(
    ('make', 'captions', 'problems'),
    [
        (folder_with_metadata, [('a dog and a dog',)], 2),
        (webdataset, [('a dog',)], 0),
        (dotted_webdataset, [('a dog',)] * 3, 3),
        (huggingface, [('a dog',), ('a cat',), ('two birds',)], 0),
        (parquet, [('a dog',)] * 5, 0),
        (parquet_in_capitals, [('a dog',)] * 5, 0),
        (folder_with_parquet_metadata, [('a dog and a ball',)], 1),
        (captions_in_parquet, [('a dog', 'a cat')], 0),
        (karpathy, [('a dog', 'a cat')], 0),
        (karpathy_in_folders, [('a dog', 'a cat')], 0),
        (img2dataset_files, [('a dog',), ('a dog',)], 0),
        (coco, [('a dog', 'a cat')], 0),
    ],
)
def test_images_are_found_with_their_captions_and_read(make, captions, problems, tmp_path):
    data = encoded()
    source, options = make(tmp_path, data)
    found = list(find_images(source, **options))
    good = [image for image in found if not image.problem]
    assert [image.captions for image in good] == captions
    assert len(found) - len(good) == problems
    reader = ImageReader(source)
    # What a worker gets has been through the list, as JSON; any image may come first.
    for image in reversed(good):
        assert reader.read(json.loads(json.dumps(image.place))) == data


def test_captions_of_a_table_are_not_all_kept_in_memory(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    texts = [os.urandom(1000).hex() for _ in range(8000)]
    table = pyarrow.table({'image': [b'x'] * 8000, 'caption': texts})
    options = {'row_group_size': 500, 'use_dictionary': False, 'compression': None}
    parquet.write_table(table, tmp_path / 'a.parquet', **options)
    del table
    before = pyarrow.total_allocated_bytes()
    most = 0
    for image, text in zip(find_images(tmp_path), texts, strict=True):
        assert image.captions == (text,)
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert most < 8 << 20  # of 16 MB


def test_of_all_tables_together_one_group_of_rows_is_kept(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    images = [os.urandom(1 << 20) for _ in range(4)]
    for number in range(6):
        table = pyarrow.table({'image': images, 'caption': ['a dog'] * 4})
        parquet.write_table(table, tmp_path / f'{number}.parquet', compression=None)
    del table
    reader = ImageReader(tmp_path)
    before = pyarrow.total_allocated_bytes()
    for number in range(6):
        place = {'file': f'{number}.parquet', 'column': 'image'}
        assert [reader.read({**place, 'row': row}) for row in range(4)] == images
    assert pyarrow.total_allocated_bytes() - before < 16 << 20  # of 24 MB
    for row in (4, -1):
        with pytest.raises(InputError, match="its row can't be read: the file has 4 rows"):
            reader.read({**place, 'row': row})
    reader.close()
    assert pyarrow.total_allocated_bytes() - before < 1 << 20


def odd_rows(tmp_path):
    rows = [
        {'file_name': 'a.png', 'text': 'a dog'},
        {'image_id': [1], 'text': 'a list for a number'},
        {'file_name': 'b\0.png', 'text': 'a name that no file has'},
        {'file_name': 'a.png', 'nouns': "['dog']"},
        {'file_name': 'gone.png', 'sentences': []},
    ]
    (tmp_path / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return [
        "doesn't name its image",
        'are no JSON list: write',
        "can't be the name of a file",
        'there is no such file',
    ]


def odd_texts(tmp_path):
    (tmp_path / 'secret').write_text('a secret')
    (tmp_path / 'a.txt').write_text('a dog')
    for name in 'bc':
        (tmp_path / f'{name}.png').write_bytes(encoded())
    (tmp_path / 'b.txt').write_bytes('ein Bär'.encode('latin1'))
    (tmp_path / 'c.txt').symlink_to(tmp_path / 'secret')
    return ['its .txt is not UTF-8 text', 'c.txt is a link']


def linked_folder(tmp_path):
    (tmp_path / 'a.txt').write_text('a dog')
    (tmp_path / 'part1').symlink_to(tmp_path)
    return ['a link to a folder, which is not followed']


@pytest.mark.parametrize('make', [odd_rows, odd_texts, linked_folder])
def test_what_cannot_be_used_is_its_image_s_own_problem(make, tmp_path):
    (tmp_path / 'a.png').write_bytes(encoded())
    expected = make(tmp_path)
    found = list(find_images(tmp_path))
    assert [image.captions for image in found if not image.problem] == [('a dog',)]
    problems = [image.problem for image in found if image.problem]
    assert len(problems) == len(expected)
    assert all(said in problem for said, problem in zip(expected, problems))


def test_folders_that_are_not_gone_into_are_told(tmp_path, monkeypatch):
    (tmp_path / 'images' / 'shut').mkdir(parents=True)
    (tmp_path / 'images' / 'part1').symlink_to(tmp_path)
    folder = tmp_path / 'images'
    with pytest.raises(InputError, match='holds no images.*; part1: it is a link to a folder'):
        find_images(folder)
    parquet(folder, encoded())
    (folder / 'a.png').write_bytes(encoded())
    (folder / 'a.txt').write_text('a dog')
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == 'shut':
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    expected = {
        'part1': 'it is a link to a folder, which is not followed',
        'shut': "it is a folder that can't be listed (Permission denied)",
    }
    for count in (1, 5):  # images beside texts, then a table's
        found = list(find_images(folder))
        assert {image.name: image.problem for image in found if image.problem} == expected
        assert len(found) - len(expected) == count
        for file in folder.glob('a.*'):
            file.unlink()
    assert count == 5


def test_tables_without_images_alone_are_no_source(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    pyarrow.parquet.write_table(pyarrow.table({'caption': ['a dog']}), tmp_path / '0.parquet')
    with pytest.raises(InputError, match=r'0\.parquet has no column of images'):
        list(find_images(tmp_path))


def test_a_pipe_is_not_waited_for(tmp_path):
    pytest.importorskip('pyarrow')
    os.mkfifo(tmp_path / 'train.parquet')
    with pytest.raises(InputError, match='a pipe'):
        list(find_images(tmp_path))


def test_a_doubled_id_of_an_image_is_refused(tmp_path):
    source, options = coco(tmp_path, encoded())
    content = json.loads(options['captions'].read_text())
    content['images'].append({'id': 9, 'file_name': 'other.jpg'})
    options['captions'].write_text(json.dumps(content))
    with pytest.raises(InputError, match='two of the images have the id 9'):
        list(find_images(source, **options))


def test_captions_that_are_too_long_are_cut_and_counted(tmp_path):
    (tmp_path / 'a.png').write_bytes(encoded())
    row = {'file_name': 'a.png', 'text': 'a dog ' * 10_000, 'nouns': ['dog']}
    (tmp_path / 'metadata.jsonl').write_text(json.dumps(row))
    counts = list_images(tmp_path, tmp_path / 'out').counts
    assert counts['captions are too long, and cut'] == 1


def test_given_nouns_are_taken_at_all_their_places_and_lost_ones_counted(tmp_path):
    source, _ = folder_with_metadata(tmp_path, encoded())
    told = []
    images = list_images(source, tmp_path / 'out', warn=told.append)
    (record,) = ImageFile(images.path)
    assert [(noun.start, noun.end) for noun in record.nouns] == [(2, 5), (12, 15)]
    assert images.counts['nouns that were given are not in their captions'] == 1
    assert images.counts["places where an image should be can't be used"] == 2
    assert told == [
        'train/gone.png: there is no such file; passed over',
        '../b.png: it lies outside the folder; passed over',
    ]


CELLS = [
    ('', ['dog', 'ball', 'mat']),  # none are named: they are found in the caption
    ('  ', ['dog', 'ball', 'mat']),
    ('red ball', ['red ball']),
    ('dog, red ball', ['dog', 'red ball']),
    (' dog;mat; ', ['dog', 'mat']),
    ('["dog", "red ball"]', ['dog', 'red ball']),
    ('[{"text": "mat", "start": 24, "end": 27}]', ['mat']),
    ('[]', []),
]
SAID = 'A dog, a red ball and a mat.'


@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'parquet', 'beside'])
@pytest.mark.parametrize(('cell', 'nouns'), CELLS)
def test_nouns_in_a_text_are_a_list(tmp_path, ending, cell, nouns):
    pytest.importorskip('textblob')
    folder = tmp_path / 'images'
    folder.mkdir()
    (folder / 'a.png').write_bytes(encoded())
    row = {'file_name': 'a.png', 'text': SAID, 'nouns': cell}
    if ending == 'csv':
        with open(folder / 'metadata.csv', 'w', newline='') as file:
            csv.writer(file).writerows([row, row.values()])
    elif ending == 'parquet':
        pyarrow = pytest.importorskip('pyarrow')
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / 'metadata.parquet')
    else:
        name = 'metadata.jsonl' if ending == 'jsonl' else 'a.json'
        (folder / name).write_text(json.dumps(row))
    images = list_images(folder, tmp_path / 'out')
    (record,) = ImageFile(images.path)
    assert [noun.text for noun in record.nouns] == nouns
    assert images.counts == (
        {} if nouns else {'captions have no noun; their images get no masks': 1}
    )


@pytest.mark.parametrize('name', ['metadata.jsonl', 'a.json'])
def test_nouns_that_begin_as_a_list_and_are_none_are_told(tmp_path, name):
    (tmp_path / 'a.png').write_bytes(encoded())
    row = {'file_name': 'a.png', 'text': SAID, 'nouns': "['dog', 'ball']"}
    (tmp_path / name).write_text(json.dumps(row))
    (found,) = find_images(tmp_path)
    assert 'are no JSON list: write ["dog", "ball"] or dog; ball' in found.problem


def test_rows_of_one_image_have_nouns_of_their_own(tmp_path):
    pytest.importorskip('textblob')
    (tmp_path / 'a.png').write_bytes(encoded())
    rows = 'file_name,text,nouns\na.png,a dog,dog\na.png,a cat,\na.png,a hat and a mat,mat\n'
    (tmp_path / 'metadata.csv').write_text(rows)
    images = list_images(tmp_path, tmp_path / 'out', every_caption=True)
    found = [[noun.text for noun in record.nouns] for record in ImageFile(images.path)]
    assert (found, images.counts) == ([['dog'], ['cat'], ['mat']], {})


def test_nouns_are_found_in_captions_where_none_are_given(tmp_path):
    pytest.importorskip('textblob')
    (tmp_path / 'images').mkdir()
    for name, caption in (('a', 'A dog with a ball.'), ('b', 'very blue'), ('c', 'ein Hund')):
        (tmp_path / f'images/{name}.png').write_bytes(encoded())
        (tmp_path / f'images/{name}.txt').write_text(caption)
    images = list_images(tmp_path / 'images', tmp_path / 'out')
    found = {record.id: [noun.text for noun in record.nouns] for record in ImageFile(images.path)}
    assert found['a'] == ['dog', 'ball'] and found['b'] == []
    skipped = list_images(tmp_path / 'images', tmp_path / 'other', without_nouns='skip')
    assert [record.id for record in ImageFile(skipped.path)][0] == 'a'
    assert skipped.counts['captions have no noun; their images are left out'] >= 1


def test_every_caption_makes_a_sample_if_asked(tmp_path):
    pytest.importorskip('textblob')
    source, options = coco(tmp_path, encoded())
    first = list_images(source, tmp_path / 'first', **options)
    assert first.counts == {'further captions of the same images are left out': 1}
    every = list_images(source, tmp_path / 'every', every_caption=True, **options)
    records = list(ImageFile(every.path))
    assert [record.prompt for record in records] == ['a dog', 'a cat']
    assert len({record.id for record in records}) == 2


def test_a_store_without_masks_gets_them(pipe, tmp_path):
    pytest.importorskip('textblob')
    samples = [Sample(f's{n}', encoded(seed=n), 'png', 'a dog and a ball') for n in range(3)]
    write_store(tmp_path / 'plain', samples, 2)
    _, records, reader = listed(tmp_path / 'plain', tmp_path)
    add_masks(pipe, records, reader, tmp_path / 'out', levels=[200], progress=False)
    store = Store(tmp_path / 'out')
    assert [sample.key for sample in store] == ['s0', 's1', 's2']
    assert all(sample.image_bytes == samples[n].image_bytes for n, sample in enumerate(store))
    assert [[noun.text for noun in sample.nouns] for sample in store] == [['dog', 'ball']] * 3


def test_a_store_at_an_address_is_read_as_it_is_here(tmp_path, monkeypatch):
    pytest.importorskip('textblob')
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))
    samples = [Sample(f's{n}', encoded(seed=n), 'png', 'a dog and a ball') for n in range(3)]
    write_store(tmp_path / 'made', samples, 2)
    address = f'memory://{tmp_path.name}/made'
    push_store(tmp_path / 'made', address)
    places = [(found.name, found.place) for found in find_images(address)]
    assert places == [(found.name, found.place) for found in find_images(tmp_path / 'made')] != []
    here, there = ImageReader(tmp_path / 'made'), ImageReader(address)
    for _, place in places:
        assert there.read(place) == here.read(place)
    listed_there = list_images(address, tmp_path / 'there', concrete=False)
    assert (
        listed_there.sha256
        == list_images(tmp_path / 'made', tmp_path / 'here', concrete=False).sha256
    )
    with pytest.raises(InputError, match='no sample of a store'):
        there.read({'file': 'a.jpg', 'bytes': 3})
    assert MaskJob('pipe', 'list', images=address).absolute().images == address
    with pytest.raises(InputError, match='only stores are read: copy tars'):
        find_images(f'memory://{tmp_path.name}/tars')
    with pytest.raises(InputError, match='no folder of images, to go with the captions a.json'):
        find_images(address, 'a.json')


def test_a_server_that_is_gone_ends_the_run_and_leaves_no_image_out(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(addresses, 'DELAYS', (0.0,))
    make_store(tmp_path / 'made', 3, nouns=(1,))
    with serve_files(tmp_path) as server:
        address = f'{server.address}/made'
        list_images(address, tmp_path / 'out', concrete=False)
        images, reader = ImageFile(list_path(tmp_path / 'out')), ImageReader(address)
        options = dict(levels=[50], size=16, samples_per_shard=1, progress=False)
        first = reader.read(images[0].place)
        assert first == Store(tmp_path / 'made').read(0).image_bytes
        server.mode = 503
        with pytest.raises(SourceError, match='answers 503 .2 tries.; finished shards are kept'):
            add_masks(pipe, images, ImageReader(address), tmp_path / 'out', **options)
        server.mode = 'sound'
        summary = add_masks(pipe, images, ImageReader(address), tmp_path / 'out', **options)
    assert (summary.samples, summary.left_out) == (3, [])


def test_one_list_is_made_and_another_choice_is_refused(folder, tmp_path):
    first = list_images(folder, tmp_path / 'out')
    assert list_images(folder, tmp_path / 'out') == first
    with pytest.raises(ValueError, match='limit is None there and 3 here'):
        list_images(folder, tmp_path / 'out', limit=3)
    with first.path.open('a') as file:
        file.write('\n')
    with pytest.raises(ValueError, match='remove both to list anew'):
        list_images(folder, tmp_path / 'out')


# The tool


def test_the_tool_adds_masks_and_reports(folder, pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / 'tiny-sd')
    words = [folder, tmp_path / 'tiny-sd', tmp_path / 'out', '--levels', '200,450', '--quiet']
    assert run_tool('add_masks', *words, '--plan') == 0
    assert 'hours on one device' in capsys.readouterr().out and not (tmp_path / 'out').exists()
    assert run_tool('add_masks', *words) == 0
    text = capsys.readouterr().out
    assert '10 images listed' in text and '9 images given masks' in text
    assert 'their images get no masks: 3' in text and '1 sample could not be given masks' in text
    assert run_tool('add_masks', *words) == 0
    assert '9 there already' in capsys.readouterr().out


def test_what_failed_is_looked_at_again_once_it_can_be_read(folder, pipe, tmp_path, capsys):
    images, out = tmp_path / 'images', tmp_path / 'out'
    shutil.copytree(folder, images)
    whole = encoded(mode='RGBA')
    (images / 'broken.jpg').write_bytes(bytes(len(whole)))
    pipe.save_pretrained(tmp_path / 'tiny-sd')
    (tmp_path / 'run.yaml').write_text(
        f'source: {images}\npipeline: {tmp_path / "tiny-sd"}\nout: {out}\n'
        'levels: [200, 450]\nquiet: true\n'
    )
    words = ['--config', tmp_path / 'run.yaml']
    assert run_tool('add_masks', *words) == 0
    assert 'the same command with --redo-failed' in capsys.readouterr().out
    before = {sample.key: sample.image_bytes for sample in Store(out)}
    assert run_tool('add_masks', *words, '--redo-failed', '--workers', '2') == 2
    assert '--redo-failed runs in one process' in capsys.readouterr().err
    assert run_tool('add_masks', *words, '--redo-failed') == 0
    said = capsys.readouterr()
    assert '0 images given masks' in said.out and 'shard' not in said.err
    (images / 'broken.jpg').write_bytes(whole)
    assert run_tool('add_masks', *words, '--redo-failed') == 0
    text = capsys.readouterr().out
    assert '1 image given masks' in text and '9 there already' in text
    assert '1 image encoded anew' in text and 'could not be' not in text
    store = Store(out)
    (found,) = (sample for sample in store if sample.key not in before)
    assert (found.meta['image'], found.meta['levels']) == ('broken.jpg', [200, 450])
    assert len(found.masks) == 1 and list(verify_store(out)) == []
    kept = {sample.key: sample.image_bytes for sample in store if sample.key in before}
    assert kept == before


def test_a_store_with_a_lora_is_mended_from_its_images(folder, pipe, tmp_path, capsys):
    pytest.importorskip('peft')
    pipe.save_pretrained(tmp_path / 'tiny-sd')
    save_tiny_lora(tiny_stable_diffusion().unet, tmp_path / 'style.safetensors')
    given = ['--lora', f'{tmp_path / "style.safetensors"}:0.5']
    words = ['--levels', '200', '--samples-per-shard', '4', '--batch-size', '2', '--quiet']
    words = [folder, tmp_path / 'tiny-sd', tmp_path / 'out', *words, '--device', 'cpu']
    assert run_tool('add_masks', *words, *given) == 0
    assert run_tool('add_masks', *words) == 2  # not gone on with without it
    store = Store(tmp_path / 'out')
    (record,) = store.config['loras']
    assert (record['name'], record['weight']) == ('style.safetensors', 0.5)
    whole = folder_bytes(tmp_path / 'out')
    images, records, reader = listed(folder, tmp_path)
    add_masks(pipe, records, reader, tmp_path / 'plain', levels=[200], progress=False)
    assert not np.array_equal(store[0].masks, Store(tmp_path / 'plain')[0].masks)

    shard = tmp_path / 'out' / 'shard-000001.tar'
    shard.write_bytes(shard.read_bytes()[:-4000])
    repair = [tmp_path / 'out', '--repair', '--pipeline', tmp_path / 'tiny-sd', '--device', 'cpu']
    capsys.readouterr()
    for missing, message in (
        (given, 'give the source of these images .--images.'),
        (['--images', folder], r'was made with LoRAs: give them .style.safetensors:0.5.'),
    ):
        assert run_tool('store/verify', *repair, *missing) == 2
        assert re.search(message, capsys.readouterr().err)
    assert run_tool('store/verify', *repair, '--images', folder, *given) == 0
    assert folder_bytes(tmp_path / 'out') == whole


def test_an_image_that_is_gone_is_listed_and_the_rest_is_repaired(folder, pipe, tmp_path, capsys):
    images, out = tmp_path / 'images', tmp_path / 'out'
    shutil.copytree(folder, images)
    pipe.save_pretrained(tmp_path / 'tiny-sd')
    words = ['--levels', '200', '--samples-per-shard', '4', '--quiet', '--device', 'cpu']
    assert run_tool('add_masks', images, tmp_path / 'tiny-sd', out, *words) == 0
    whole = folder_bytes(out)
    first = Store(out)[0]
    (images / first.meta['image']).unlink()
    for number in (0, 1):
        shard = out / f'shard-{number:06d}.tar'
        place = np.load(shard.with_suffix('.index.npy'))['json_offset'][0]
        shard.write_bytes(whole[shard.name][:place] + b'x' + whole[shard.name][place + 1 :])
    broken = (out / 'shard-000000.tar').read_bytes()
    capsys.readouterr()
    repair = ['--repair', '--pipeline', tmp_path / 'tiny-sd', '--device', 'cpu']
    assert run_tool('store/verify', out, *repair, '--images', images) == 1
    said = capsys.readouterr().out
    assert 'restored byte for byte: shard-000001' in said
    assert f"NOT repaired: shard-000000: sample '{first.key}' was made before and can't be" in said
    assert folder_bytes(out) == whole | {'shard-000000.tar': broken}


def test_images_are_asked_for_only_where_masks_were_added(tmp_path):
    write_store(tmp_path, [Sample('a', encoded(), 'png', 'a dog')], 1, {'steps': 3})
    with pytest.raises(StoreError, match='were generated: give prompts, and no images'):
        job_of_store(tmp_path, 'pipeline', images='folder')
    with pytest.raises(StoreError, match='were generated: give the prompts'):
        job_of_store(tmp_path, 'pipeline')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (['--levels', '1000'], 'the noise level 1000 lies outside the schedule'),
        (['--size', '2'], 'must be a whole number from 8'),
        (['--captions', 'nowhere.json'], 'there is no file|nowhere.json'),
        (['--mask-steps', '7:8'], 'masks of the steps'),
    ],
)
def test_bad_input_is_one_sentence(folder, pipe, tmp_path, capsys, change, message):
    pipe.save_pretrained(tmp_path / 'tiny-sd')
    assert run_tool('add_masks', folder, tmp_path / 'tiny-sd', tmp_path / 'out', *change) == 2
    error = capsys.readouterr().err.strip()
    assert len([line for line in error.splitlines() if 'error' in line or 'add_masks' in line]) == 1
    assert re.search(message, error)


@pytest.mark.parametrize('number', [[], {}, None], ids=['list', 'object', 'null'])
def test_a_row_with_a_number_that_is_none_names_no_image(tmp_path, number):
    pytest.importorskip('ijson')
    content = {'images': [{'id': 9, 'file_name': 'a.png'}]}
    rows = [{'id': 1, 'image_id': number, 'caption': 'a dog'}]
    (tmp_path / 'captions.json').write_text(json.dumps({**content, 'annotations': rows}))
    (found,) = find_images(tmp_path, tmp_path / 'captions.json')
    assert found.problem == "the row doesn't name its image"


def test_a_name_that_is_not_utf_8_is_that_image_s_problem(tmp_path):
    folder = tmp_path / 'images\udcff'
    folder.mkdir()
    for name in ('a\udcff', 'b ü\n'):
        (folder / f'{name}.png').write_bytes(encoded())
        (folder / f'{name}.json').write_text('{"caption": "a dog", "nouns": ["dog"]}')
    told: list[str] = []
    found = list_images(folder, tmp_path / 'out', warn=told.append)
    assert (found.images, len(told)) == (1, 1) and 'its name is not UTF-8: rename' in told[0]
    assert list(found.counts.values()) == [1]
    (record,) = ImageFile(found.path)
    assert (record.source, record.name) == ('images\\udcff', 'b ü\n.png')
    assert ImageReader(folder).read(record.place) == encoded()
    assert list_images(folder, tmp_path / 'out') == found


def test_the_list_of_the_folder_that_the_process_is_in_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / 'images').mkdir()
    monkeypatch.chdir(tmp_path / 'images')
    assert list_path(Path('.')) == list_path(tmp_path / 'images')
    assert list_path(Path('..')) == list_path(tmp_path)


def test_what_is_neither_file_nor_folder_is_told(tmp_path):
    os.mkfifo(tmp_path / 'images.tar')
    with pytest.raises(InputError, match='neither a file nor a folder'):
        list(find_images(tmp_path / 'images.tar'))


def test_a_name_that_no_file_has_is_that_image_s_problem(tmp_path):
    rows = [{'file_name': name, 'text': 'a dog'} for name in ('a\0.png', 'b.png')]
    (tmp_path / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    first, second = find_images(tmp_path)
    assert "can't be the name of a file" in first.problem
    assert second.problem == 'there is no such file'
