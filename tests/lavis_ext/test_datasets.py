"""The datasets: pairs from stores and caption files, detections, and what is refused."""
from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip('lavis')

from omegaconf import OmegaConf  # noqa: E402
from PIL import Image  # noqa: E402
from tiny_stores import make_store  # noqa: E402

from freeatm_mm.lavis_ext.builders import (  # noqa: E402
    FreeATMPretrainBuilder,
    FreeATMRetrievalBuilder,
)
from freeatm_mm.store import Store, StoreError  # noqa: E402

NO_AUGMENT = {'name': 'freeatm_image_train', 'image_size': 16, 'min_scale': 1.0, 'hflip': False,
              'augment': False}


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
    rows[1]['objects'] = [{'name': 'dog', 'box': [0, 40, 9, 60]},
                          {'name': 'cat', 'box': [21, 0, 30, 20]}]
    rows[2]['objects'] = []
    (folder / 'captions.json').write_text(json.dumps(rows))
    return folder


def build(text=None, vis=NO_AUGMENT, **info):
    return FreeATMPretrainBuilder(OmegaConf.create({
        'data_type': 'images', 'vis_processor': {'train': vis},
        'text_processor': {'train': {'name': 'freeatm_caption', **(text or {})}},
        'build_info': info})).build_datasets()['train']


def test_pairs_of_a_store(store):
    dataset, samples = build(store=str(store)), Store(store)
    assert len(dataset) == 12
    for number, sample in enumerate(samples):
        item = dataset[number]
        assert item['image'].shape == (3, 16, 16)
        text = item['text_input']
        assert text.startswith(sample.caption)
        for noun, mask in zip(sample.nouns, sample.masks):
            ys, xs = np.nonzero(mask.astype(float) - mask.min()
                                >= 0.45 * (float(mask.max()) - mask.min()))
            block = (int(3 * (ys.min() + ys.max() + 1) / 2 / 8) * 3
                     + int(3 * (xs.min() + xs.max() + 1) / 2 / 8))
            assert f'the {noun.text} is in block {block}' in text
        assert text.count('is in block') == len(sample.nouns)
    assert build({'preset': 'none'}, store=str(store))[3]['text_input'] == samples[3].caption


def test_pairs_of_a_caption_file(captions):
    dataset = build(annotations=str(captions / 'captions.json'), images=str(captions))
    assert [dataset[number]['text_input'] for number in range(3)] == [
        'picture 0', 'picture 1 the dog is in block 6 the cat is in block 2', 'picture 2']


def test_sources_are_joined_and_shared(store, captions):
    sources = dict(store=[str(store), str(store)], annotations=str(captions / 'captions.json'),
                   images=str(captions))
    dataset = build(**sources)
    assert len(dataset) == 27
    assert dataset[13]['text_input'] == dataset[1]['text_input']
    assert dataset[26]['text_input'] == 'picture 2'
    half = build(**sources, share=0.5)
    assert len(half) == 14
    assert list(half.chosen) == list(build(**sources, share=0.5).chosen) != list(range(14))


def test_detections_take_the_place_of_masks(store, tmp_path):
    images = {f'{number:06d}': [] for number in range(12)}
    images['000002'] = [{'name': 'Cow', 'box': [-1, 0, 6, 31], 'score': 0.9}]
    (tmp_path / 'found.json').write_text(json.dumps({'images': images}))
    dataset = build({'preset': 'ptp'}, store=str(store), detections=str(tmp_path / 'found.json'))
    caption = Store(store)[2].caption
    assert dataset[2]['text_input'] == f'{caption} the block 3 has a cow'
    assert dataset[1]['text_input'] == Store(store)[1].caption
    del images['000005']
    (tmp_path / 'found.json').write_text(json.dumps({'images': images}))
    dataset = build({'preset': 'ptp'}, store=str(store), detections=str(tmp_path / 'found.json'))
    with pytest.raises(ValueError, match="found.json has no entry for sample '000005'"):
        dataset[5]


def test_an_object_outside_its_image_is_told(captions, tmp_path):
    rows = json.loads((captions / 'captions.json').read_text())
    rows[0]['objects'] = [{'name': 'dog', 'box': [31, 0, 40, 9]}]
    rows[1]['objects'] = [{'name': 'dog'}]
    (tmp_path / 'bad.json').write_text(json.dumps(rows))
    dataset = build(annotations=str(tmp_path / 'bad.json'), images=str(captions))
    with pytest.raises(ValueError, match="bad.json, '0.png': the box .* of 'dog' .* 30x60 pixels"):
        dataset[0]
    with pytest.raises(ValueError, match='\'1.png\': an object needs "name" and "box"'):
        dataset[1]


def test_an_image_that_is_none_is_told(captions, tmp_path):
    rows = json.loads((captions / 'captions.json').read_text())
    (tmp_path / 'captions.json').write_text(json.dumps(rows))
    (tmp_path / rows[0]['image']).write_bytes(b'no picture')
    dataset = build(annotations=str(tmp_path / 'captions.json'), images=str(tmp_path))
    for number in (0, 1):  # one that can't be decoded, one that isn't there
        with pytest.raises(ValueError, match=f"the image '{number}.png' can't be read in"):
            dataset[number]


@pytest.mark.parametrize('info, message', [
    (dict(), 'names no pairs; set store or annotations'),
    (dict(store='no/such'), 'no store at no/such'),
    (dict(store='S', share=0), 'share must be above 0'),
    (dict(store='S', shards=3), 'build_info has no shards; known are store'),
    (dict(store='S', detections='no.json'), 'no file of detections no.json: make it with'),
    (dict(store='S', detections=['a', 'b']), 'need as many files of detections in all, got 2'),
    (dict(annotations='no.json', images='.'), 'no caption file no.json'),
    (dict(annotations='no.json'), '1 files of annotations need as many folders'),
    (dict(annotations='C', images='no/images'), 'no image folder no/images'),
])
def test_wrong_paths_and_options_are_told(store, captions, info, message):
    names = {'S': str(store), 'C': str(captions / 'captions.json')}
    info = {key: names.get(value, value) if isinstance(value, str) else value
            for key, value in info.items()}
    with pytest.raises((ValueError, FileNotFoundError, StoreError), match=message):
        build(**info)


def test_prompts_need_a_processor_that_knows_its_view(store):
    lavis = {'name': 'blip_image_train', 'image_size': 16}
    with pytest.raises(ValueError, match='need the image processor freeatm_image_train; Blip'):
        build(vis=lavis, store=str(store))
    assert 'block' in build({'track': False}, lavis, store=str(store))[3]['text_input']
    assert 'block' not in build({'preset': 'none'}, lavis, store=str(store))[3]['text_input']


@pytest.mark.parametrize('info, message', [
    (dict(annotations={}, images='.'), 'must name files for train, val or test, got none'),
    (dict(annotations={'dev': 'x'}, images='.'), 'train, val or test, got dev'),
    (dict(annotations={'test': 'no.json'}, images='.'), 'no annotation file no.json'),
    (dict(annotations={'test': 'x'}), 'set build_info.images'),
])
def test_retrieval_paths_are_checked(info, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        FreeATMRetrievalBuilder(OmegaConf.create(
            {'data_type': 'images', 'build_info': info})).build_datasets()
