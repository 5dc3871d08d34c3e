"""Blocks and sentences; the geometry against pictures whose pixels tell where they come from."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip('lavis')

import torch  # noqa: E402
from helpers.examples import examples  # noqa: E402
from helpers.ops_reference import things  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from PIL import Image  # noqa: E402

from freeatm_mm.lavis_ext.processors import (  # noqa: E402
    FreeATMCaptionProcessor,
    FreeATMImageTrainProcessor,
)
from freeatm_mm.ops.position import (  # noqa: E402
    WHOLE_VIEW,
    PositionPrompts,
    box_in_view,
    object_from_box,
)

SIZE = (120, 80)  # width, height


def coded_image(size=SIZE):
    """A picture whose red and green channels say which column and row a pixel was in."""
    columns, rows = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([columns, rows, np.full_like(rows, 255)], 2).astype(np.uint8))


def decoded(view, processor):
    """Where each pixel of a view was in its image, (2, h, w) fractions, and which are picture."""
    std, mean = (
        torch.tensor(values)[:, None, None]
        for values in (processor.finish[-1].std, processor.finish[-1].mean)
    )
    pixels = (view * std + mean).numpy()
    return pixels[:2], pixels[2] > 0.99  # shears and turns bring in black


@examples(60)
@given(
    seed=st.integers(0, 10**6),
    x=st.floats(0, 0.85),
    y=st.floats(0, 0.85),
    width=st.floats(0.1, 1),
    height=st.floats(0.1, 1),
    hflip=st.booleans(),
)
def test_the_box_in_the_view_is_where_the_pixels_are(seed, x, y, width, height, hflip):
    """Crop and flip: the matrix against the pixels, an object cut away, and the block."""
    processor = FreeATMImageTrainProcessor(96, min_scale=0.1, hflip=hflip, augment=False)
    torch.manual_seed(seed)
    view, matrix = processor.with_view(coded_image())
    (columns, rows), _ = decoded(view, processor)
    box = np.array([x, y, min(x + width, 1), min(y + height, 1)])
    thing = object_from_box('dog', box * (*SIZE, *SIZE), SIZE)
    inside = (columns >= box[0]) & (columns <= box[2]) & (rows >= box[1]) & (rows <= box[3])
    found, share = box_in_view(thing.parts, matrix)
    ys, xs = np.nonzero(inside)
    if len(ys) < 2 or min(np.ptp(xs), np.ptp(ys)) < 4:  # a sliver at most
        assert found is None or min(found[2:] - found[:2]) < 0.12
        return
    seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 96
    np.testing.assert_allclose(found, seen, atol=0.035)  # three pixels: both codes are resampled
    visible = np.prod(
        np.minimum(box[2:], [columns.max(), rows.max()])
        - np.maximum(box[:2], [columns.min(), rows.min()])
    )
    assert share == pytest.approx(visible / np.prod(box[2:] - box[:2]), abs=0.08)
    centre = 3 * (seen[:2] + seen[2:]) / 2
    if np.abs(centre - np.round(centre)).min() > 0.12:  # not at the edge of a block
        assert PositionPrompts().block(found) == 3 * int(centre[1]) + int(centre[0])


@pytest.mark.parametrize('operation', ['ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate'])
def test_shears_shifts_and_turns_are_followed(operation, monkeypatch):
    processor = FreeATMImageTrainProcessor(96, min_scale=0.9)
    processor.augmentation.augs = [operation]
    box = np.array([0.3, 0.2, 0.6, 0.7])
    moved = 0
    for seed in range(12):
        torch.manual_seed(seed)
        np.random.seed(seed)
        view, matrix = processor.with_view(coded_image())
        (columns, rows), picture = decoded(view, processor)
        inside = (
            (columns >= box[0])
            & (columns <= box[2])
            & (rows >= box[1])
            & (rows <= box[3])
            & picture
        )
        ys, xs = np.nonzero(inside)
        found, _ = box_in_view(object_from_box('dog', box * (*SIZE, *SIZE), SIZE).parts, matrix)
        np.testing.assert_allclose(
            found, np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 96, atol=0.045
        )
        moved += not np.allclose(matrix[[0, 1], [1, 0]], 0) or not picture.all()
    assert moved > 3


def test_pixels_and_draws_are_those_of_lavis():
    from lavis.processors.blip_processors import BlipImageTrainProcessor

    ours, theirs = FreeATMImageTrainProcessor(64), BlipImageTrainProcessor(64)
    for number in range(25):
        views = []
        for processor in (ours, theirs):
            torch.manual_seed(number)
            np.random.seed(number)
            views += [processor(coded_image()), torch.get_rng_state(), np.random.rand()]
        assert torch.equal(views[0], views[3]) and torch.equal(views[1], views[4])
        assert views[2] == views[5]


def test_without_flips_draws_stay_the_same():
    flips, none = FreeATMImageTrainProcessor(32), FreeATMImageTrainProcessor(32, hflip=False)
    mirrored = 0
    for seed in range(8):
        matrices = []
        for processor in (flips, none):
            torch.manual_seed(seed)
            np.random.seed(seed)
            matrices.append((processor.with_view(coded_image())[1], torch.rand(1)))
        assert matrices[0][1] == matrices[1][1]
        assert matrices[1][0][0, 0] > 0
        mirrored += matrices[0][0][0, 0] < 0
    assert 0 < mirrored < 8


def test_the_two_presets():
    paper = FreeATMCaptionProcessor.from_config({'preset': 'freeatm'})
    assert paper('A dog.', things(), WHOLE_VIEW) == (
        'a dog the dog is in block 8 the red ball is in block 0 the tree is in block 4'
    )
    ptp = FreeATMCaptionProcessor.from_config({'preset': 'ptp'})
    random.seed(0)
    texts = [ptp('A dog', things(), WHOLE_VIEW) for _ in range(200)]
    counts = {text: texts.count(text) for text in texts}
    assert set(counts) == {
        'a dog the block 8 has a dog',
        'a dog the block 0 has a red ball',
        'a dog the block 4 has a tree',
    }
    # The dog is there twice, which the text says once: no more often than the others.
    assert 40 < counts['a dog the block 8 has a dog'] < 90


def test_options():
    def text(**options):
        return FreeATMCaptionProcessor.from_config({'name': 'freeatm_caption', **options})(
            'x', things(), WHOLE_VIEW
        )

    assert text(order='block') == (
        'x the red ball is in block 0 the tree is in block 4 the dog is in block 8'
    )
    assert text(grid=2, index_base=1, template='[O] at [P]') == 'x dog at 4 red ball at 1 tree at 4'
    orders = {text(order='random') for _ in range(60)}
    assert len(orders) > 2
    assert {len(text(max_objects=2).split(' the ')) for _ in range(60)} == {3}
    assert text(prompt='a picture of ', preset='none') == 'a picture of x'


@pytest.mark.parametrize('caption', ['A dog, a cat.', 'two  "dogs"\n(and) #1; x: y!', ''])
def test_without_prompts_the_text_is_that_of_lavis(caption):
    from lavis.processors.blip_processors import BlipCaptionProcessor

    assert FreeATMCaptionProcessor()(caption, things()) == BlipCaptionProcessor()(caption)
    # and nothing is cut by words: the model's limit, which is counted, is the only one
    assert len(FreeATMCaptionProcessor()('dog ' * 70).split()) == 70


@pytest.mark.parametrize(
    'options, message',
    [
        ({'preset': 'ours'}, "no preset 'ours'.*none, freeatm, ptp"),
        ({'prompt': 5}, 'freeatm_caption.prompt must be text, got 5'),
        ({'min_visible': '0.1'}, "freeatm_caption.min_visible must be a number, got '0.1'"),
        ({'grid': 'three'}, "freeatm_caption.grid must be an integer, got 'three'"),
        ({'track': 'no'}, 'freeatm_caption.track must be True or False'),
        ({'max_object': 1}, r'has no max_object; did you mean max_objects\?'),
        ({'max_words': 50}, 'freeatm_caption has no max_words'),
        ({'template': 'The [O].'}, r'must hold \[O\] for the object and \[P\]'),
        ({'grid': 0}, 'grid must be at least 1'),
        ({'max_objects': 0}, 'max_objects must be at least 1'),
        ({'order': 'size'}, "order must be one of given, random, block, got 'size'"),
        ({'min_visible': 1.0}, 'min_visible must be at least 0 and below 1'),
        ({'preset': 'none', 'grid': 2}, "'none' makes no position prompts, so that grid"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        FreeATMCaptionProcessor.from_config(options)
