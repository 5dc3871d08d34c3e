"""One sample: what it refuses, and what its members look like to others."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
import pytest
from helpers.examples import examples
from helpers.store_samples import assert_same, make_sample
from helpers.tiny_stores import make_store_of_spellings
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from freeatm_mm.prompts import Noun
from freeatm_mm.store import (
    RawSample,
    Sample,
    Store,
    StoreError,
    decode_masks,
    decode_sample,
    encode_image,
    encode_masks,
    encode_sample,
)
from freeatm_mm.store import sample as sample_module
from freeatm_mm.store.export import store_categories


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9)))
@examples(50)
def test_masks_come_back_exactly(masks):
    np.testing.assert_array_equal(decode_masks(encode_masks(masks), *masks.shape), masks)


def test_masks_are_a_grey_picture_with_the_nouns_below_each_other():
    masks = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    picture = Image.open(io.BytesIO(encode_masks(masks)))
    assert (picture.format, picture.mode, picture.size) == ('PNG', 'L', (4, 6))
    assert picture.getpixel((1, 3)) == masks[1, 0, 1]


def test_smooth_masks_stay_small():
    """Three nouns at 64x64 fit in 8 kB (blobs with 5 % noise at four resolutions)."""
    rng = np.random.default_rng(0)
    total = np.zeros((3, 64, 64))
    for side in (8, 16, 32, 64):
        grid = (np.arange(side) + 0.5) / side
        blob = np.exp(-((grid[:, None] - 0.4) ** 2 + (grid - 0.6) ** 2) / 0.04)
        noisy = blob * (1 + 0.05 * rng.standard_normal((3, side, side)))
        for mask, part in zip(total, noisy.astype(np.float32)):
            mask += np.asarray(Image.fromarray(part).resize((64, 64), Image.Resampling.BILINEAR))
    low, high = total.min((1, 2), keepdims=True), total.max((1, 2), keepdims=True)
    masks = np.rint((total - low) / (high - low) * 255).astype(np.uint8)
    assert len(encode_masks(masks)) <= 8192


@pytest.mark.parametrize('nouns', [0, 1, 3])
@pytest.mark.parametrize('image_format', ['png', 'jpg'])
def test_a_sample_comes_back_from_what_is_stored(nouns, image_format):
    sample = make_sample(7, nouns, image_format)
    assert_same(decode_sample(encode_sample(sample)), sample)


@given(
    st.lists(
        st.tuples(
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
        ),
        min_size=1,
        max_size=3,
    )
)
@examples(50)
def test_scales_come_back_exactly(pairs):
    nouns = tuple(Noun('a', 0, 1) for _ in pairs)
    sample = dataclasses.replace(
        make_sample(0, 0),
        caption='a',
        nouns=nouns,
        scales=np.array(pairs, np.float32),
        masks=np.zeros((len(pairs), 2, 2), np.uint8),
    )
    np.testing.assert_array_equal(decode_sample(encode_sample(sample)).scales, sample.scales)


def test_the_image_is_the_encoded_one_and_png_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    sample = Sample.from_image('a', Image.fromarray(pixels), image_format='png')
    np.testing.assert_array_equal(np.asarray(sample.image), pixels)


@pytest.mark.parametrize('key', ['', '../x', 'a/b', '/etc', 'a.b', 'ä', 'x' * 81, 'a\n'])
def test_a_key_that_is_no_safe_file_name_is_refused(key):
    with pytest.raises(StoreError, match='file name'):
        dataclasses.replace(make_sample(0), key=key)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'masks': np.zeros((3, 8, 6), np.uint8)}, '2 nouns and masks: these need the shape'),
        ({'masks': np.zeros((2, 8), np.uint8)}, '2 nouns and masks: these need the shape'),
        ({'masks': np.zeros((2, 8, 6), np.float32)}, 'uint8'),
        ({'masks': np.zeros((2, 0, 6), np.uint8)}, 'empty'),
        ({'scales': np.zeros((1, 2), np.float32)}, r'shape \(2, 2\)'),
        ({'scales': np.full((2, 2), np.nan, np.float32)}, 'finite'),
        ({'nouns': (Noun('bird', 0, 4), Noun('x', 90, 91))}, 'span'),
        ({'image_format': 'gif'}, 'unknown image format'),
    ],
)
def test_fields_that_do_not_fit_are_refused(change, message):
    with pytest.raises(StoreError, match=message):
        dataclasses.replace(make_sample(0), **change)


def test_an_image_that_is_none_is_refused_when_written_and_when_looked_at():
    sample = dataclasses.replace(make_sample(3), image_bytes=b'nothing')
    with pytest.raises(StoreError, match="'000003'.*no readable png"):
        encode_sample(sample)
    with pytest.raises(StoreError, match="'000003'.*no readable png"):
        _ = sample.image


def encoded(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize('image_format', ['jpg', 'png'])
@pytest.mark.parametrize('orientation, fits', [(0, True), (1, True), (3, False), (6, False)])
def test_a_picture_that_some_readers_turn_is_refused(image_format, orientation, fits):
    """Masks would lie beside the objects: browsers, OpenCV and `datasets` turn it, Pillow not."""
    exif = Image.Exif()
    exif[sample_module.ORIENTATION] = orientation
    data = encoded(
        Image.new('RGB', (6, 4)), sample_module.IMAGE_FORMATS[image_format], exif=exif.tobytes()
    )
    sample = dataclasses.replace(make_sample(3), image_bytes=data, image_format=image_format)
    if fits:
        assert encode_sample(sample).info['image'] == {'width': 6, 'height': 4}
        return
    with pytest.raises(
        StoreError, match="'000003'.* is to be turned, as its EXIF says, and one to"
    ):
        encode_sample(sample)


@pytest.mark.parametrize('mode', ['CMYK', 'I;16', 'LA', 'RGBA', 'P', '1'])
def test_a_picture_that_readers_convert_each_in_their_way_is_refused(mode):
    """Of 16 bits Pillow makes white, and of what is transparent whatever is below."""
    image_format = 'jpg' if mode == 'CMYK' else 'png'
    data = encoded(Image.new(mode, (6, 4)), sample_module.IMAGE_FORMATS[image_format])
    sample = dataclasses.replace(make_sample(3), image_bytes=data, image_format=image_format)
    with pytest.raises(StoreError, match=f"'000003'.* is of mode {mode}, and one to store must be"):
        encode_sample(sample)


def test_a_jpeg_under_the_name_of_a_png_is_refused():
    sample = dataclasses.replace(make_sample(3, image_format='jpg'), image_format='png')
    with pytest.raises(StoreError, match='no readable png'):
        encode_sample(sample)


def test_a_picture_that_is_too_large_is_refused_before_it_is_decompressed(monkeypatch):
    monkeypatch.setattr(sample_module, 'MAX_PIXELS', 100)
    with pytest.raises(StoreError, match='more than 100 pixels'):
        _ = make_sample(1).image
    with pytest.raises(StoreError, match='more than 100 pixels'):
        encode_sample(make_sample(1))


def test_masks_of_another_size_than_the_json_says_are_refused():
    raw = encode_sample(make_sample(5))
    raw.info['masks']['height'] = 9
    with pytest.raises(StoreError, match="'000005'.*has size"):
        decode_sample(raw)


def test_json_without_a_field_is_refused():
    raw = encode_sample(make_sample(5))
    del raw.info['caption']
    with pytest.raises(StoreError, match="'000005'.*caption"):
        decode_sample(raw)


def test_an_image_with_transparency_is_refused():
    with pytest.raises(StoreError, match='RGBA'):
        encode_image(Image.new('RGBA', (2, 2)))


def test_a_raw_sample_says_its_nouns_names_masks_and_scales(tmp_path):
    path, names = make_store_of_spellings(tmp_path / 'store')
    raw, sample = Store(path).read(0), Store(path)[0]
    assert raw.names() == [noun.name for noun in sample.nouns] == names
    assert store_categories(Store(path)) == sorted(set(names))
    np.testing.assert_array_equal(raw.masks(), sample.masks)
    np.testing.assert_array_equal(raw.scales(), sample.scales)
    assert raw.scales().dtype == np.float32
    none = encode_sample(make_sample(0, nouns=0))
    assert none.names() == [] and none.masks().shape[0] == 0 and none.scales().shape == (0, 2)


@pytest.mark.parametrize('method', ['names', 'masks', 'scales'])
@pytest.mark.parametrize('info', [{}, {'nouns': [3]}, {'nouns': None}, {'nouns': [{'text': 1}]}])
def test_a_raw_sample_without_a_samples_json_is_told(method, info):
    with pytest.raises(StoreError, match="sample 'key': its JSON is not a sample"):
        getattr(RawSample('key', b'', 'png', info, b''), method)()


def test_a_raw_sample_names_itself_where_its_masks_are_broken():
    raw = encode_sample(make_sample(0))
    with pytest.raises(StoreError, match="sample '000000': the picture is no readable png"):
        raw._replace(masks_bytes=b'x').masks()
    raw.info['nouns'][0]['lo'] = float('nan')
    with pytest.raises(StoreError, match="sample '000000': its JSON .*no finite number"):
        raw.scales()


def test_a_notebook_shows_a_sample_small_and_escaped():
    words = [f'<b{number}>' for number in range(10)]
    caption = ' '.join(words)
    nouns = tuple(Noun(word, caption.index(word), caption.index(word) + 4) for word in words)
    sample = Sample.from_image(
        'a',
        Image.new('RGB', (800, 400)),
        caption=caption,
        nouns=nouns,
        masks=np.full((10, 8, 8), 255, np.uint8),
        scales=np.ones((10, 2), np.float32),
    )
    text = sample._repr_html_()
    assert '<b0>' not in text and '&lt;b0&gt;' in text
    assert text.count('<img') == 1 + 8 and 'and 2 more nouns' in text and len(text) < 50_000
    first, second = (
        Image.open(io.BytesIO(base64.b64decode(part.split('"')[0])))
        for part in text.split('base64,')[1:3]
    )
    assert first.size == (192, 96) and first.getpixel((9, 9)) == (0, 0, 0)
    assert second.getpixel((9, 9))[0] > 120 > second.getpixel((9, 9))[2]
    broken = Sample('a', b'<x>', 'png')
    assert '<img' not in broken._repr_html_() and 'the image' in broken._repr_html_()


def test_masks_that_could_not_be_read_again_are_not_written():
    """A picture of masks has limits of pixels and sides, as any that is read."""
    noun = Noun('a', 0, 1)
    for shape in ((1, 70_000, 2), (1, 8193, 8193)):
        masks = np.broadcast_to(np.zeros(1, np.uint8), shape)
        with pytest.raises(StoreError, match='too large to be read again'):
            Sample('k', b'', 'png', 'a', (noun,), masks, np.zeros((1, 2), np.float32))
