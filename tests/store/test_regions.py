"""Other masks on the same images: where they lie, what they are called, and that all else stays."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from helpers.store_samples import folder_bytes, varied_sample
from helpers.tools import run_tool
from PIL import Image

from freeatm_mm.errors import InputError
from freeatm_mm.ops import UNKNOWN_NOUN, noun_id
from freeatm_mm.store import Sample, Store, StoreError, verify_store, write_store
from freeatm_mm.store.regions import (
    colour_clusters,
    felzenszwalb_regions,
    make_regions,
)


def picture(number):
    """A red ground, a green right half and a blue square on the left: 1536, 2048 and 512 pixels."""
    rng = np.random.default_rng(number)
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0], image[:, 32:] = 200, (0, 200, 0)
    image[8:40, 8:24] = (0, 0, 200)
    return Image.fromarray(image + rng.integers(0, 12, image.shape, np.uint8))


@pytest.fixture
def path(tmp_path):
    write_store(
        tmp_path / 'store',
        (Sample.from_image(f'{n:03d}', picture(n), image_format='png') for n in range(5)),
        2,
    )
    return tmp_path / 'store'


@pytest.mark.parametrize(
    'segment', [felzenszwalb_regions(0.04), colour_clusters(3)], ids=['felzenszwalb', 'kmeans']
)
def test_regions_are_where_colours_are(path, tmp_path, segment):
    report = make_regions(path, tmp_path / 'out', segment, {'how': 'so'})
    assert (report.samples, report.regions, report.bare) == (5, 15, 0)
    for sample in Store(tmp_path / 'out'):
        assert [noun.text for noun in sample.nouns] == ['region 1', 'region 2', 'region 3']
        assert sample.caption == 'region 1, region 2, region 3'
        expected = np.zeros((3, 64, 64), bool)
        expected[0, :, 32:] = expected[1, :, :32] = True
        expected[2, 8:40, 8:24], expected[1, 8:40, 8:24] = True, False
        assert (np.abs(sample.masks / 255 - expected).mean((1, 2)) < 0.03).all()  # a blurred edge
        assert sample.scales.tolist() == [[0, 1]] * 3
    assert list(verify_store(tmp_path / 'out')) == []


def test_all_else_stays_and_a_stopped_copy_goes_on(tmp_path):
    write_store(tmp_path / 'store', map(varied_sample, range(7)), 3, {'steps': 5})
    segment, out = colour_clusters(2, seed=1), tmp_path / 'out'
    made = make_regions(tmp_path / 'store', out, segment, {'seed': 1}, min_area=0)
    for number, sample in enumerate(Store(out)):
        original = varied_sample(number)
        assert (sample.key, sample.image_bytes) == (original.key, original.image_bytes)
        assert sample.meta['seed'] == number and sample.meta['before']['caption'].startswith(
            f'{number}: bird' if original.nouns else f'{number}: '
        )
        assert [noun['text'] for noun in sample.meta['before']['nouns']] == [
            noun.text for noun in original.nouns
        ]
    whole = folder_bytes(out)
    (out / 'shard-000001.json').unlink()
    kept = (out / 'shard-000000.tar').stat().st_ino
    assert make_regions(tmp_path / 'store', out, segment, {'seed': 1}, min_area=0) == made
    assert folder_bytes(out) == whole
    assert (out / 'shard-000000.tar').stat().st_ino == kept
    with pytest.raises(StoreError, match='made otherwise'):
        make_regions(tmp_path / 'store', out, segment, {'seed': 2}, min_area=0)
    with pytest.raises(StoreError, match='in place'):
        make_regions(out, out, segment, {})
    # Regions of regions remember the first nouns; a choice of samples has the same regions.
    make_regions(out, tmp_path / 'twice', segment, {}, samples=[5, 0], min_area=0)
    for sample, number in zip(Store(tmp_path / 'twice'), (5, 0)):
        first = Store(out)[number]
        assert sample.meta == first.meta
        np.testing.assert_array_equal(sample.masks, first.masks)


def test_what_is_left_out_is_counted(path, tmp_path, capsys):
    assert run_tool('store/edit', 'regions', path, tmp_path / 'a', '--masks-from', 'kmeans',
                    '--clusters', 3, '--min-area', 0.2) == 0  # fmt: skip
    assert '5 samples with 10 regions\n5 regions left out: smaller' in capsys.readouterr().out
    assert run_tool('store/edit', 'regions', path, tmp_path / 'b', '--masks-from', 'felzenszwalb',
                    '--most', 1, '--mask-size', 8, '--min-area', 0.04) == 0  # fmt: skip
    assert '5 samples with 5 regions\n10 regions left out: the' in capsys.readouterr().out
    assert Store(tmp_path / 'b')[0].masks.shape == (1, 8, 8)
    nothing = make_regions(
        path, tmp_path / 'c', lambda images, keys: [np.indices((9, 9)).sum(0)] * len(images), {},
        min_area=0.5,
    )  # fmt: skip
    assert nothing.bare == 5 and Store(tmp_path / 'c')[0].nouns == ()


def test_a_plain_image_is_one_region(tmp_path):
    sample = Sample.from_image('plain', Image.new('RGB', (20, 30), 'red'), image_format='png')
    write_store(tmp_path / 'store', [sample])
    for number, segment in enumerate((felzenszwalb_regions(), colour_clusters(1))):
        make_regions(tmp_path / 'store', tmp_path / str(number), segment, {})
        (region,) = Store(tmp_path / str(number))[0].masks
        assert (region == 255).all()


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'most': 0}, 'at least 1'),
        ({'min_area': 1.0}, 'below 1'),
        ({'samples': [0, 5]}, 'has 5 samples, and number 5'),
        ({'samples': []}, 'no sample'),
        ({'samples': [3, 1, 0, 1]}, 'sample 1 is asked for 2 times'),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(path, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        make_regions(path, tmp_path / 'out', colour_clusters(), {}, **changes)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'options, said',
    [
        (['felzenszwalb', '--config', 'x'], '--config goes with'),
        (['kmeans', '--checkpoint', 'x'], '--checkpoint with --config'),
        (['kmeans', '--clusters', '1'], 'from 2 to'),
    ],
)
def test_options_that_do_not_go_together_are_refused(path, tmp_path, capsys, options, said):
    assert run_tool('store/edit', 'regions', path, tmp_path / 'x', '--masks-from', *options) == 2
    assert said in capsys.readouterr().err


def test_regions_are_pooled_and_are_the_same_noun_as_nothing(path, tmp_path):
    pytest.importorskip('mmpretrain')
    from freeatm_mm.datasets import FreeATMDataset

    make_regions(path, tmp_path / 'out', colour_clusters(3), {})
    data = FreeATMDataset(
        tmp_path / 'out',
        pipeline=[dict(type='LoadFromStore'), dict(type='PackFreeATMInputs', grid_size=4)],
    )
    sample = data[0]['data_samples']
    assert sample.noun_ids.tolist() == [UNKNOWN_NOUN] * 3
    assert sample.instance_masks.sum((0, 1)).allclose(sample.instance_masks.new_ones(4, 4))
    assert data.get_cat_ids(0) == []
    assert noun_id('region 12') == UNKNOWN_NOUN != noun_id('region')


def test_clusters_of_features(path, tmp_path, capsys):
    """Of a config's own network, random or a checkpoint; on the grid that its features have."""
    pytest.importorskip('mmpretrain')
    import torch

    from freeatm_mm.probing.features import load_model

    config = 'configs/miniature/mocov2_freeatm.py'
    model = load_model(config, seed=3)
    checkpoint = tmp_path / 'checkpoint.pth'
    weights = {f'backbone.{name}': value for name, value in model.backbone.state_dict().items()}
    torch.save({'state_dict': weights}, checkpoint)
    numbers = tmp_path / 'numbers.json'
    numbers.write_text(json.dumps([1, 3]))
    for out, more in (('random', ['--seed', 3]), ('loaded', ['--checkpoint', checkpoint])):
        assert run_tool('store/edit', 'regions', path, tmp_path / out, '--masks-from', 'kmeans',
                        '--config', config, '--samples', numbers, *more) == 0  # fmt: skip
    random, loaded = (Store(tmp_path / name) for name in ('random', 'loaded'))
    assert [sample.key for sample in loaded] == ['001', '003']
    assert loaded.config['regions']['checkpoint_sha256'] and len(loaded[0].nouns) >= 2
    # A cell of the network's map is 8 pixels wide: regions consist of whole ones.
    blocks = loaded[0].masks.reshape(-1, 8, 8, 8, 8)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    side = Image.open(io.BytesIO(loaded[0].image_bytes)).size
    assert loaded[0].masks.shape[1:] == side == (64, 64)
    assert random.config['regions']['checkpoint_sha256'] is None
