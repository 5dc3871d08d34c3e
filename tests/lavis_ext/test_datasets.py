"""The datasets: pairs from stores and caption files, detections, and what is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip('lavis')

from helpers.servers import serve_files  # noqa: E402
from helpers.tiny_stores import make_store, make_store_of_spellings  # noqa: E402
from lavis.datasets.datasets.base_dataset import ConcatDataset  # noqa: E402
from lavis.datasets.datasets.retrieval_datasets import (  # noqa: E402
    RetrievalDataset,
    RetrievalEvalDataset,
)
from omegaconf import OmegaConf  # noqa: E402
from PIL import Image  # noqa: E402

from freeatm_mm.errors import InputError  # noqa: E402
from freeatm_mm.lavis_ext import annotations  # noqa: E402
from freeatm_mm.lavis_ext.builders import (  # noqa: E402
    FreeATMPretrainBuilder,
    FreeATMRetrievalBuilder,
)
from freeatm_mm.lavis_ext.runner import FreeATMRunner  # noqa: E402
from freeatm_mm.store import Store, StoreError  # noqa: E402

DELETE = 'DELETE'
NO_AUGMENT = {
    'name': 'freeatm_image_train',
    'image_size': 16,
    'min_scale': 1.0,
    'hflip': False,
    'augment': False,
}


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp('store') / 'store', count=12, size=(30, 30))


@pytest.fixture(scope='module')
def captions(tmp_path_factory):
    """LAVIS's caption JSON: three pictures, two with objects."""
    folder = tmp_path_factory.mktemp('captions')
    rows = []
    for number in range(3):
        Image.new('RGB', (30, 60), (number, 0, 0)).save(folder / f'{number}.png')
        rows.append({'image': f'{number}.png', 'caption': f'Picture {number}.'})
    rows[1]['objects'] = [
        {'name': 'dog', 'box': [0, 40, 9, 60]},
        {'name': 'cat', 'box': [21, 0, 30, 20]},
    ]
    rows[2]['objects'] = []
    (folder / 'captions.json').write_text(json.dumps(rows))
    return folder


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def build(text=None, vis=NO_AUGMENT, **info):
    return FreeATMPretrainBuilder(
        OmegaConf.create(
            {
                'data_type': 'images',
                'vis_processor': {'train': vis},
                'text_processor': {'train': {'name': 'freeatm_caption', **(text or {})}},
                'build_info': info,
            }
        )
    ).build_datasets()['train']


def test_pairs_of_a_store(store):
    dataset, samples = build(store=str(store)), Store(store)
    assert len(dataset) == 12
    for number, sample in enumerate(samples):
        item = dataset[number]
        assert item['image'].shape == (3, 16, 16)
        text = item['text_input']
        assert text.startswith(sample.caption)
        for noun, mask in zip(sample.nouns, sample.masks):
            ys, xs = np.nonzero(
                mask.astype(float) - mask.min() >= 0.45 * (float(mask.max()) - mask.min())
            )
            block = int(3 * (ys.min() + ys.max() + 1) / 2 / 8) * 3 + int(
                3 * (xs.min() + xs.max() + 1) / 2 / 8
            )
            assert f'the {noun.text} is in block {block}' in text
        assert text.count('is in block') == len(sample.nouns)
    assert build({'preset': 'none'}, store=str(store))[3]['text_input'] == samples[3].caption


def test_spellings_of_one_noun_are_named_alike(tmp_path):
    path, names = make_store_of_spellings(tmp_path / 'store')
    text = build(store=str(path))[0]['text_input']
    assert [text.count(f'the {name} is in block 1') for name in sorted(set(names))] == [1, 1]
    assert text.count('is in block') == 2


def test_pairs_of_a_caption_file(captions):
    dataset = build(annotations=str(captions / 'captions.json'), images=str(captions))
    assert [dataset[number]['text_input'] for number in range(3)] == [
        'picture 0',
        'picture 1 the dog is in block 6 the cat is in block 2',
        'picture 2',
    ]


def test_prompts_without_any_object_are_refused(captions, tmp_path):
    """They would be the plain baseline, called Free-ATM."""
    rows = json.loads((captions / 'captions.json').read_text())
    bare = make_store(tmp_path / 'bare', count=2, nouns=(0,))
    nothing = {row['image']: [] for row in rows}
    files = {
        'rows': write(tmp_path / 'rows.json', [rows[0], rows[2]]),
        'empty': write(tmp_path / 'empty.json', {'images': nothing}),
        'of the store': write(tmp_path / 'store.json', {'images': {'000000': [], '000001': []}}),
        'one': write(
            tmp_path / 'one.json',
            {'images': {'000000': [], '000001': [{'name': 'dog', 'box': [0, 0, 9, 9]}]}},
        ),
    }
    images = str(captions)
    for info in (
        dict(annotations=files['rows'], images=images),
        dict(annotations=str(captions / 'captions.json'), images=images, detections=files['empty']),
        dict(store=str(bare)),
        dict(store=str(bare), detections=files['of the store']),
        dict(store=str(bare), annotations=files['rows'], images=images),
    ):
        with pytest.raises(InputError, match='^position prompts are of objects, and no pair has'):
            build(**info)
        with pytest.raises(InputError, match='^position prompts and masks .mask_grid. are of obj'):
            build(**info, mask_grid=2)
        item = build({'preset': 'none'}, **info)[0]
        assert 'prompted' not in item
    both = build(store=str(bare), annotations=str(captions / 'captions.json'), images=str(captions))
    assert [both[number]['prompted'] for number in range(5)] == [0, 0, 0, 1, 0]
    assert build(store=str(bare), detections=files['one'])[1]['prompted'] == 1


def test_a_batch_from_an_address_is_few_requests(store, captions, tmp_path, monkeypatch):
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))
    files = dict(annotations=str(captions / 'captions.json'), images=str(captions))
    with serve_files(store.parent) as server:
        there = build(store=f'{server.address}/{store.name}', **files)
        here = build(store=str(store), **files)
        whole = ConcatDataset([build(**files), there])
        runner = SimpleNamespace(use_distributed=False, cuda_enabled=False, seed=0)
        (loader,) = FreeATMRunner.create_loaders(runner, [whole], 0, [18], [True], [list])
        ((*items,),) = loader
        asked = [place for _, place, _ in server.asked if place.endswith('.tar')]
        assert len(asked) == 3  # one a shard
        assert there[11]['text_input'] == here[11]['text_input']  # alone
    expected = [here[number]['text_input'] for number in (*range(15), 12, 13, 14)]
    assert sorted(item['text_input'] for item in items) == sorted(expected)


def test_sources_are_joined_and_shared(store, captions):
    sources = dict(
        store=[str(store), str(store)],
        annotations=str(captions / 'captions.json'),
        images=str(captions),
    )
    dataset = build(**sources)
    assert len(dataset) == 27
    assert dataset[13]['text_input'] == dataset[1]['text_input']
    assert dataset[26]['text_input'] == 'picture 2'
    half = build(**sources, share=0.5)
    assert len(half) == 14
    assert list(half.chosen) == list(build(**sources, share=0.5).chosen) != list(range(14))


def test_positions_of_others_keep_the_length_of_the_text(store):
    """The control: the same objects in as many sentences; blocks of other images; same views."""
    own, control = build(store=str(store)), build({'positions': 'others'}, store=str(store))
    random.seed(0)
    told, differing, total = Counter(), 0, 0
    for _ in range(20):
        for number in range(12):
            first, second = own[number], control[number]
            assert torch.equal(first['image'], second['image'])
            words, others = first['text_input'].split(), second['text_input'].split()
            assert len(words) == len(others)
            changed = [(word, other) for word, other in zip(words, others) if word != other]
            assert all(word.isdigit() and other.isdigit() for word, other in changed)
            differing += len(changed)
            total += first['text_input'].count('is in block')
            told.update(other for other in others if other.isdigit())
    assert differing > total / 2
    # What is told comes from the images' own blocks, in their frequencies.
    blocks = Counter(
        word for number in range(12) for word in own[number]['text_input'].split() if word.isdigit()
    )
    assert set(told) <= set(blocks)


def test_detections_take_the_place_of_masks(store, tmp_path):
    images = {f'{number:06d}': [] for number in range(12)}
    images['000002'] = [{'name': 'Cow', 'box': [-1, 0, 6, 31], 'score': 0.9}]
    (tmp_path / 'found.json').write_text(json.dumps({'images': images}))
    dataset = build({'preset': 'ptp'}, store=str(store), detections=str(tmp_path / 'found.json'))
    caption = Store(store)[2].caption
    assert dataset[2]['text_input'] == f'{caption} the block 3 has a cow'
    assert dataset[1]['text_input'] == Store(store)[1].caption
    del images['000005'], images['000007']
    (tmp_path / 'found.json').write_text(json.dumps({'images': images}))
    with pytest.raises(InputError, match="found.json has no entry for sample '000005' and 1 more"):
        build({'preset': 'ptp'}, store=str(store), detections=str(tmp_path / 'found.json'))


def test_an_object_outside_its_image_is_told(captions, tmp_path):
    rows = json.loads((captions / 'captions.json').read_text())
    rows[0]['objects'] = [{'name': 'dog', 'box': [31, 0, 40, 9]}]
    (tmp_path / 'bad.json').write_text(json.dumps(rows))
    dataset = build(annotations=str(tmp_path / 'bad.json'), images=str(captions))
    with pytest.raises(ValueError, match="bad.json, '0.png': the box .* of 'dog' .* 30x60 pixels"):
        dataset[0]


# --- annotation files, entry by entry ---------------------------------------------------------

BOX = {'name': 'dog', 'box': [0, 0, 5, 5]}


@pytest.mark.parametrize(
    'change, message',
    [
        ({'caption': ['a dog']}, r"captions.json\[1\]: caption must be text, got \['a dog'\]"),
        ({'caption': None}, r'captions.json\[1\]: caption must be text, got None'),
        ({'caption': ' '}, r'captions.json\[1\]: caption is empty'),
        ({'caption': DELETE}, r"captions.json\[1\]: the field 'caption' is missing"),
        ({'image': 7}, r'captions.json\[1\]: image must be text, got 7'),
        ({'image': ''}, r'captions.json\[1\]: image must be the path of a picture'),
        ({'image': '.'}, r"captions.json\[1\]: there is no picture '.'"),
        ({'image': 'lost.png'}, r"captions.json\[1\]: there is no picture 'lost.png' in "),
        ({'image': '../1.png'}, r"captions.json\[1\]: the image '../1.png' leads out of"),
        ({'image': '/etc/hostname'}, r"captions.json\[1\]: the image '/etc/hostname' lies outside"),
        ({'image': 'x\0.png'}, r'captions.json\[1\]: image must be the path of a picture'),
        ({'objects': None}, r'captions.json\[1\]: objects must be a list of objects, got None'),
        ({'objects': ['dog']}, r'\[1\]: objects\[0\]: an object needs "name" and "box"'),
        ({'objects': [BOX, {'name': 'dog'}]}, r'objects\[1\]: an object needs "name" and "box"'),
        ({'objects': [{**BOX, 'name': 3}]}, r'objects\[0\]: name must be text, got 3'),
        ({'objects': [{**BOX, 'box': [0, 0, 5]}]}, "the box of 'dog' must be four numbers"),
        ({'objects': [{**BOX, 'box': [0, 0, '5', 5]}]}, "the box of 'dog' must be four numbers"),
        ({'objects': [{**BOX, 'box': [0, 0, True, 5]}]}, "the box of 'dog' must be four numbers"),
        (
            {'objects': [{**BOX, 'box': [5, 0, 5, 5]}]},
            "of 'dog' is empty or lies outside its image",
        ),
        (
            {'objects': [{**BOX, 'box': [-9, 0, 0, 5]}]},
            "of 'dog' is empty or lies outside its image",
        ),
    ],
)
def test_a_caption_file_is_checked_when_it_is_opened(captions, tmp_path, change, message):
    rows = json.loads((captions / 'captions.json').read_text())
    rows[1] = {key: value for key, value in {**rows[1], **change}.items() if value != DELETE}
    (tmp_path / 'captions.json').write_text(json.dumps(rows))
    with pytest.raises(InputError, match=message):
        build(annotations=str(tmp_path / 'captions.json'), images=str(captions))


@pytest.mark.parametrize(
    'found, message',
    [
        ([], 'must be an object'),
        ({'image': {}}, 'must hold an object "images"'),
        ({'images': []}, 'must hold an object "images"'),
        ({'images': {'0.png': 'none'}}, r"images\['0.png'\] must be a list of objects, got 'none'"),
        (
            {'images': {'0.png': [{'name': 'dog', 'bbox': [0, 0, 5, 5]}]}},
            r"images\['0.png'\]\[0\]: an object needs",
        ),
        ({'images': {'0.png': []}}, "has no entry for image '1.png' and 1 more of "),
    ],
)
def test_detections_are_checked_when_they_are_opened(captions, tmp_path, found, message):
    (tmp_path / 'found.json').write_text(json.dumps(found))
    with pytest.raises(InputError, match=message):
        build(
            annotations=str(captions / 'captions.json'),
            images=str(captions),
            detections=str(tmp_path / 'found.json'),
        )


FILES = {
    'a pipe': lambda path: os.mkfifo(path),
    'a folder': lambda path: path.mkdir(),
    'empty': lambda path: path.touch(),
    'is not JSON': lambda path: path.write_text('{"images": '),
    'save it as UTF-8': lambda path: path.write_bytes(b'["caf\xe9"]'),
    'nested too deeply': lambda path: path.write_text('[' * 100_000),
    'has more than the': lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    'must be': lambda path: path.write_text('3'),
    'is there twice': lambda path: path.write_text('{"images": {"a": [], "a": []}}'),
}


@pytest.mark.parametrize('message', FILES)
@pytest.mark.parametrize('kind', ['captions', 'detections', 'train', 'test'])
def test_a_file_that_is_none_is_one_sentence(captions, tmp_path, kind, message):
    path = tmp_path / 'odd.json'
    FILES[message](path)
    with pytest.raises(InputError, match=f'odd.json.*{message}') as raised:
        if kind == 'captions':
            build(annotations=str(path), images=str(captions))
        elif kind == 'detections':
            build(
                annotations=str(captions / 'captions.json'),
                images=str(captions),
                detections=str(path),
            )
        else:
            retrieval(captions, **{kind: str(path)})
    assert '\n' not in str(raised.value)


def retrieval(images, skip_unreadable=False, **files):
    return FreeATMRetrievalBuilder(
        OmegaConf.create(
            {
                'build_info': {
                    'annotations': files,
                    'images': str(images),
                    'skip_unreadable': skip_unreadable,
                }
            }
        )
    ).build_datasets()


def retrieval_rows(split):
    caption = 'a dog' if split == 'train' else ['a dog', 'the dog']
    return [
        {'image': f'{number}.png', 'image_id': number, 'caption': caption} for number in range(3)
    ]


@pytest.mark.parametrize(
    'split, change, message',
    [
        # A caption given as text was scored letter by letter.
        (
            'test',
            {'caption': 'a dog'},
            r"x.json\[1\]: caption must be a list of texts, .*got 'a dog'",
        ),
        ('val', {'caption': []}, r'x.json\[1\]: caption is an empty list'),
        ('test', {'caption': ['a dog', 3]}, r'x.json\[1\]: caption\[1\] must be text, got 3'),
        ('test', {'caption': ['']}, r'x.json\[1\]: caption\[0\] is empty'),
        ('test', {'image': '0.png'}, r"\[1\]: the image '0.png' is that of entry 0, too"),
        ('test', {'image': './/0.png'}, r"\[1\]: the image '0.png' is that of entry 0, too"),
        ('val', {'image': 'lost.png'}, r"x.json\[1\]: there is no picture 'lost.png'"),
        ('test', {'image': 'captions.json'}, r"x.json\[1\]: the image '.*json' can't be read"),
        (
            'test',
            {'mirrored': 0},
            r'x.json\[0\]: .* one caption and a "mirrored" in every annotation',
        ),
        ('train', {'caption': ['a dog']}, r'\[1\]: caption must be text, got .* an entry for each'),
        ('train', {'image_id': DELETE}, r"x.json\[1\]: the field 'image_id' is missing"),
        ('train', {'image_id': 1.5}, r'x.json\[1\]: image_id must be a number or text, got 1.5'),
        ('train', {'image_id': [1]}, r'x.json\[1\]: image_id must be a number or text'),
        ('train', {'image_id': 0}, r'x.json\[1\]: image_id 0 is that of two images'),
        ('train', {'image': '0.png'}, r"x.json\[1\]: the image '0.png' has two ids, 0 and 1"),
        ('train', {'image': 'lost.png'}, r"x.json\[1\]: there is no picture 'lost.png'"),
    ],
)
def test_a_retrieval_file_is_checked_when_it_is_opened(captions, tmp_path, split, change, message):
    rows = retrieval_rows(split)
    assert len(retrieval(captions, **{split: write(tmp_path / 'ok.json', rows)})[split]) == 3
    rows[1] = {key: value for key, value in {**rows[1], **change}.items() if value != DELETE}
    with pytest.raises(InputError, match=message):
        retrieval(captions, **{split: write(tmp_path / 'x.json', rows)})


def test_mirrored_pairs_must_lead_back(captions, tmp_path):
    for numbers in ((1, 0, 0), (1, 0, 5), (1, 0, True)):
        rows = [
            {**row, 'caption': ['a dog'], 'mirrored': number}
            for row, number in zip(retrieval_rows('test'), numbers)
        ]
        with pytest.raises(InputError, match='mirrored'):
            retrieval(captions, test=write(tmp_path / 'x.json', rows))


def test_many_missing_pictures_are_counted(captions, tmp_path, monkeypatch):
    """Looked for one by one, and by listing their folder."""
    rows = [{'image': f'{number}.png', 'caption': 'a dog'} for number in range(6)]
    path = write(tmp_path / 'x.json', rows)
    for few in (1000, 2):
        monkeypatch.setattr(annotations, '_FEW', few)
        with pytest.raises(
            InputError,
            match=r"x.json\[3\]: there is no picture '3.png' in .* "
            r'\(3 of 6 entries lack theirs\)',
        ):
            build(annotations=path, images=str(captions))


@pytest.fixture
def damaged(tmp_path, captions):
    """Pictures of which the second is cut off and the fourth is missing, with both files."""
    for number in range(3):
        shutil.copy(captions / f'{number}.png', tmp_path)
    data = (captions / '1.png').read_bytes()
    (tmp_path / '1.png').write_bytes(data[: len(data) // 2])
    rows = [
        {'image': f'{number}.png', 'caption': f'picture {number}', 'image_id': number}
        for number in range(4)
    ]
    write(tmp_path / 'x.json', rows[:3])
    write(tmp_path / 'y.json', rows)
    return tmp_path


def test_an_unreadable_picture_is_one_sentence(damaged):
    for dataset in (
        build({'preset': 'none'}, annotations=str(damaged / 'x.json'), images=str(damaged)),
        retrieval(damaged, train=str(damaged / 'x.json'))['train'],
    ):
        assert 'unreadable' not in dataset[0]
        message = r"x.json: the image '.*1.png' can't be read \("
        with pytest.raises(InputError, match=message) as told:
            dataset[1]
        assert '\n' not in str(told.value)


def test_unreadable_pictures_are_passed_over_if_asked(damaged, caplog):
    for dataset in (
        build(
            {'preset': 'none'},
            annotations=str(damaged / 'y.json'),
            images=str(damaged),
            skip_unreadable=True,
        ),
        retrieval(damaged, True, train=str(damaged / 'y.json'))['train'],
    ):
        assert [dataset[number]['text_input'] for number in range(3)] == [
            'picture 0',
            'picture 2',
            'picture 2',
        ]
        assert [dataset[number]['unreadable'] for number in range(3)] == [0, 1, 0]
    assert caplog.text.count('y.json: 1 entries are left out') == 2
    (damaged / '0.png').write_bytes(b'')
    (damaged / '2.png').write_bytes(b'')
    with pytest.raises(InputError, match="3 pictures one after the other can't be read"):
        dataset[1]
    # Of the sets that figures are made of, every picture counts.
    rows = [
        {**row, 'caption': [row['caption']]} for row in json.loads((damaged / 'x.json').read_text())
    ]
    with pytest.raises(InputError, match=r"x.json\[0\]: the image '.*0.png' can't be read"):
        retrieval(damaged, True, test=write(damaged / 'x.json', rows))


@pytest.mark.parametrize('what', ['sample', 'masks', 'shard'])
def test_damaged_samples_of_a_store_are_passed_over_if_asked(what, tmp_path, monkeypatch):
    path = make_store(tmp_path / 'store', count=12, nouns=(1, 2))
    captions, read = [sample.caption for sample in Store(path)], Store.read
    shard, lost = sorted(path.glob('*.tar'))[0], [2]
    if what == 'sample':
        data = shard.read_bytes()
        at = data.find(b'000002.png') + 600  # within the picture
        shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        message = "'000002'.*(CRC|checksum)"
    elif what == 'masks':

        def spoilt(self, number):
            raw = read(self, number)
            return raw._replace(masks_bytes=b'none') if number == 2 else raw

        monkeypatch.setattr(Store, 'read', spoilt)
        message = "store: sample '000002': the picture"
    else:
        shard.write_bytes(shard.read_bytes()[:100])
        lost, message = [0, 1, 2, 3, 4], shard.name
    dataset = build(store=str(path))
    assert dataset[5]['text_input'].startswith(captions[5].lower())
    with pytest.raises(InputError, match=message):
        dataset[2]
    dataset = build(store=str(path), skip_unreadable=True)
    for number in range(12):
        item, expected = dataset[number], number
        while expected in lost:
            expected += 1
        assert item['text_input'].startswith(captions[expected].lower())
        assert item['unreadable'] == expected - number


def test_a_server_that_cannot_be_reached_is_no_damaged_sample(store, tmp_path, monkeypatch):
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('freeatm_mm.addresses.DELAYS', (0.0,))
    with serve_files(store.parent) as server:
        dataset = build(store=f'{server.address}/{store.name}', skip_unreadable=True)
        assert dataset[3]['unreadable'] == 0
        server.mode, before = 503, len(server.asked)
        with pytest.raises(StoreError, match=r'its server answers 503 \(2 tries\)'):
            dataset[2]
        assert len(server.asked) - before == 2


def test_retrieval_items_are_those_of_lavis(captions, tmp_path):
    for split, lavis in (('train', RetrievalDataset), ('test', RetrievalEvalDataset)):
        path = write(tmp_path / 'x.json', retrieval_rows(split))
        ours = retrieval(captions, **{split: path})[split]
        theirs = lavis(ours.vis_processor, ours.text_processor, str(captions), [path])
        for number in range(3):
            pair = []
            for dataset in (ours, theirs):
                torch.manual_seed(0)
                np.random.seed(0)
                pair.append(dataset[number])
            assert pair[0].keys() == pair[1].keys()
            assert torch.equal(pair[0].pop('image'), pair[1].pop('image'))
            assert pair[0] == pair[1]
        if split == 'test':
            assert ours.text == theirs.text and ours.img2txt == theirs.img2txt


def test_an_undecodable_picture_of_a_store_is_told(store, monkeypatch):
    dataset, read = build(store=str(store)), Store.read
    monkeypatch.setattr(
        Store, 'read', lambda self, number: read(self, number)._replace(image_bytes=b'no picture')
    )
    with pytest.raises(InputError, match="store: sample '000002': the image can't be read"):
        dataset[2]


@pytest.mark.parametrize(
    'info, message',
    [
        (dict(), 'names no pairs; set store or annotations'),
        (dict(store='no/such'), 'no store at no/such'),
        (dict(store='S', share=0), 'share must be a number above 0 and at most 1, got 0'),
        (dict(store='S', share='half'), "share must be a number .*, got 'half'"),
        (dict(store=3), 'store must be a path, or a list of paths, got 3'),
        (dict(store='S', threshold=[0.4]), 'threshold must be a number'),
        (dict(store='S', skip_unreadable='no'), 'skip_unreadable must be True or False'),
        (dict(store='S', shards=3), r'build_info has no shards; did you mean share\? \(known are'),
        (dict(store='S', detections='no.json'), 'no file of detections no.json: make it with'),
        (dict(store='S', detections=['a', 'b']), 'take as many files of detections in all, got 2'),
        (dict(annotations='no.json', images='.'), 'no caption file no.json'),
        (
            dict(annotations='no.json'),
            '1 file of annotations and 0 folders of images: give as many',
        ),
        (dict(annotations='C', images='no/images'), 'no image folder no/images'),
    ],
)
def test_wrong_paths_and_options_are_told(store, captions, info, message):
    names = {'S': str(store), 'C': str(captions / 'captions.json')}
    info = {
        key: names.get(value, value) if isinstance(value, str) else value
        for key, value in info.items()
    }
    with pytest.raises((ValueError, FileNotFoundError, StoreError), match=message):
        build(**info)


def test_prompts_need_a_processor_that_knows_its_view(store):
    lavis = {'name': 'blip_image_train', 'image_size': 16}
    with pytest.raises(ValueError, match='need the image processor freeatm_image_train; Blip'):
        build(vis=lavis, store=str(store))
    assert 'block' in build({'track': False}, lavis, store=str(store))[3]['text_input']
    assert 'block' not in build({'preset': 'none'}, lavis, store=str(store))[3]['text_input']


@pytest.mark.parametrize(
    'info, message',
    [
        (dict(annotations={}, images='.'), 'must name files for train, val or test, got none'),
        (dict(annotations={'dev': 'x'}, images='.'), 'annotations has no dev'),
        (dict(annotations={'test': 3}, images='.'), 'annotations.test must be text, got 3'),
        (dict(annotations='x', images='.'), "must be a file for each split, .* got 'x'"),
        (
            dict(annotation={'test': 'x'}, images='.'),
            r'has no annotation; did you mean annotations\?',
        ),
        (dict(annotations={'test': 'no.json'}, images='.'), 'no annotation file no.json'),
        (dict(annotations={'test': 'x'}), 'set build_info.images'),
    ],
)
def test_retrieval_paths_are_checked(info, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        FreeATMRetrievalBuilder(
            OmegaConf.create({'data_type': 'images', 'build_info': info})
        ).build_datasets()


def test_regions_without_a_noun_are_no_objects_to_speak_of(store, tmp_path):
    from freeatm_mm.lavis_ext.datasets import StorePairs
    from freeatm_mm.store.regions import make_regions

    make_regions(store, tmp_path / 'out', lambda images, keys: [np.eye(30)] * len(images), {})
    pairs = StorePairs(tmp_path / 'out', None, 0.45)
    assert pairs.load(0, with_objects=False)[2] == []
    with pytest.raises(InputError, match="without a noun \\('region 1'\\), and position prompts"):
        pairs.load(0, with_objects=True)
