"""Diversity of a store: figures that are known beforehand, and a tool that prints them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from helpers.tools import run_tool
from PIL import Image

from freeatm_mm.cli.diversity import timm_features
from freeatm_mm.errors import InputError
from freeatm_mm.prompts import Noun
from freeatm_mm.store import Sample, Store, write_store
from freeatm_mm.store.diversity import (
    difference_hash,
    effective_number,
    near_duplicates,
    noun_coverage,
    store_diversity,
)
from freeatm_mm.store.errors import UnreachableStoreError
from freeatm_mm.store.export import store_categories


def picture(seed, size=(64, 64)):
    """Smooth random colours, as pictures have them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def store_of(path, pictures):
    def sample(number, image):
        word = ('dog', 'cat')[number % 2]
        return Sample.from_image(
            f's{number}',
            image,
            image_format='png',
            caption=f'a {word}',
            nouns=(Noun(word, 2, 5, word),),
            masks=np.zeros((1, 4, 4), np.uint8),
            scales=np.zeros((1, 2), np.float32),
        )

    write_store(path, [sample(number, image) for number, image in enumerate(pictures)], 10)
    return Store(path)


def test_effective_numbers_are_those_of_equal_shares():
    assert effective_number(np.ones(7)) == pytest.approx(7)
    assert effective_number(np.array([5.0, 0.0])) == pytest.approx(1)
    assert effective_number(np.zeros(0)) == 0
    assert 1 < effective_number(np.array([0.9, 0.1])) < 2


def test_nouns_are_counted_by_category_whatever_their_case():
    dog, dogs, cat = Noun('Dog', 0, 3, None), Noun('dogs', 0, 4, 'dog'), Noun('cat', 0, 3, 'cat')
    found = noun_coverage([('Dog', [dog]), ('dogs', [dogs]), ('cat', [cat]), ('cat', [cat])])
    assert (found.texts, found.distinct_texts, found.nouns, found.distinct_nouns) == (4, 3, 4, 2)
    assert found.effective_nouns == pytest.approx(2)
    assert found.most_frequent == (('dog', 0.5), ('cat', 0.5))


def test_a_picture_scaled_and_encoded_anew_is_a_near_duplicate():
    buffer = io.BytesIO()
    picture(0).save(buffer, 'JPEG', quality=60)
    copies = [picture(0), picture(0, (200, 200)), Image.open(buffer)]
    hashes = [difference_hash(image) for image in [*copies, *map(picture, range(1, 40))]]
    assert near_duplicates(hashes).tolist() == [True] * 3 + [False] * 39


def test_near_duplicates_are_all_that_comparing_each_pair_finds():
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 1 << 63, 300)]
    for number in range(0, 300, 3):  # some bits of the next one
        bits = rng.choice(64, int(rng.integers(0, 9)), replace=False)
        hashes[number] = hashes[number + 1] ^ sum(1 << int(bit) for bit in bits)
    for near in (0, 4, 7):
        expected = [
            any((a ^ b).bit_count() <= near for k, b in enumerate(hashes) if k != n)
            for n, a in enumerate(hashes)
        ]
        assert 0 < sum(expected) < 300
        assert near_duplicates(hashes, near).tolist() == expected


def test_a_store_of_copies_is_less_varied_than_one_of_different_images(tmp_path):
    varied = store_diversity(store_of(tmp_path / 'varied', map(picture, range(24))))
    copies = store_diversity(store_of(tmp_path / 'copies', [picture(n % 3) for n in range(24)]))
    assert varied.near_duplicates == 0 and copies.near_duplicates == 24
    assert varied.effective_images > 10 > 3 >= copies.effective_images
    assert varied.nouns.effective_nouns == pytest.approx(2)
    same = store_diversity(store_of(tmp_path / 'same', [picture(0)] * 5))
    assert same.effective_images == pytest.approx(1)


def test_nouns_are_counted_without_reading_images(tmp_path, monkeypatch):
    store = store_of(tmp_path / 'store', map(picture, range(24)))
    read, real = [], Store._read
    monkeypatch.setattr(Store, 'read', lambda own, number: read.append(number) or real(own, number))
    looked_at, get = [], Store.__getitem__
    monkeypatch.setattr(
        Store, '__getitem__', lambda own, number: looked_at.append(number) or get(own, number)
    )
    found = store_diversity(store, limit=4)
    assert (found.nouns.nouns, found.nouns.distinct_nouns, found.images) == (24, 2, 4)
    assert len(looked_at) == 4 and not read
    assert store_categories(store) == ['cat', 'dog'] and not read


def test_images_of_a_server_that_is_away_are_not_counted_as_unreadable(tmp_path, monkeypatch):
    store = store_of(tmp_path / 'store', [picture(seed) for seed in range(3)])

    def away(own, number):
        if number == 1:
            raise UnreachableStoreError('its server answers 503')
        return real(own, number)

    real = Store.__getitem__
    monkeypatch.setattr(Store, '__getitem__', away)
    with pytest.raises(UnreachableStoreError, match='answers 503'):
        store_diversity(store)


def test_the_tool_prints_and_writes_the_figures(tmp_path, capsys):
    store_of(tmp_path / 'a', map(picture, range(12)))
    out = tmp_path / 'figures.json'
    assert run_tool('store/diversity', tmp_path / 'a', '--limit', 6, '--out', out) == 0
    text = capsys.readouterr().out
    assert '12 nouns, 2 different, as varied as 2.0' in text
    assert 'images: 6 of 12, evenly spread' in text
    (figures,) = json.loads(out.read_text()).values()
    assert figures['images'] == 6 and figures['nouns']['distinct_nouns'] == 2
    assert run_tool('store/diversity', tmp_path / 'none') == 2
    assert run_tool('store/diversity', tmp_path / 'a', '--weights', 'x') == 2


def test_weights_of_another_model_are_refused_and_their_code_is_not_run(tmp_path):
    timm = pytest.importorskip('timm')
    from helpers.hostile_checkpoints import reduced

    net = timm.create_model('resnet10t', num_classes=0)
    torch.save({'model': net.state_dict()}, tmp_path / 'own.pth')
    features = timm_features('resnet10t', str(tmp_path / 'own.pth'), 'cpu')
    assert features([picture(0)]).shape == (1, net.num_features)
    torch.save({'layers.0.weight': torch.zeros(2)}, tmp_path / 'other.pth')
    (tmp_path / 'code.pth').write_bytes(reduced(tmp_path / 'marker'))
    for name, said in (('other', 'other.pth is not of it'), ('code', 'holds more than tensors')):
        with pytest.raises(InputError, match=said):
            timm_features('resnet10t', str(tmp_path / f'{name}.pth'), 'cpu')
    assert not (tmp_path / 'marker').exists()
