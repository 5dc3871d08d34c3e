"""Views and the masks in them: against exact integration, through any transform, in batches."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torchvision
from helpers.servers import serve_files
from helpers.tiny_stores import NOUNS, make_store
from PIL import Image
from torch.utils.data import DataLoader

from freeatm_mm.errors import InputError
from freeatm_mm.ops import UNKNOWN_NOUN, WHOLE, crop_window, flip_window, masks_on_views, noun_id
from freeatm_mm.pytorch import (
    InstanceInfoNCE,
    InstanceNTXent,
    StoreDataset,
    ViewBatch,
    ViewItem,
    collate_views,
    masks_in_view,
    track_view,
)
from freeatm_mm.store import Store

v2 = pytest.importorskip('torchvision.transforms.v2')

Image_, Mask = torchvision.tv_tensors.Image, torchvision.tv_tensors.Mask
AS_TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]


def smooth_masks(count=3, side=32, seed=0):
    """Blobs that touch the border here and there, as uint8."""
    random, axis = np.random.default_rng(seed), (np.arange(side) + 0.5) / side
    centres = random.uniform(0.1, 0.9, (count, 2, 1))
    rows, columns = np.exp(-((axis - centres) ** 2) / 0.03).transpose(1, 0, 2)
    return np.rint(255 * rows[:, :, None] * columns[:, None]).astype(np.uint8)


@pytest.mark.parametrize('values', ['attention', 'normalized', 'binary'])
def test_masks_follow_crops_and_flips_as_exact_integration_has_them(values):
    masks, image = smooth_masks(), Image.new('RGB', (200, 160))
    scales = np.array([[0.001, 0.02], [0.0, 0.01], [0.002, 0.003]], np.float32)
    box = (20, 40, 90, 120)  # top, left, height, width
    window = flip_window(crop_window(WHOLE, box, (160, 200)), 'horizontal')
    transform = v2.Compose(
        [
            v2.Lambda(lambda part: v2.functional.crop(part, *box)),
            v2.Resize((112, 112), antialias=True),
            v2.RandomHorizontalFlip(p=1),
            *AS_TENSOR,
        ]
    )
    view, positions = track_view(transform, image)
    assert view.shape == (3, 112, 112) and type(view) is torch.Tensor
    found, visible = masks_in_view(
        masks, positions, (160, 200), (7, 7), scales=scales, values=values
    )
    exact = masks_on_views(masks, [window], (7, 7), scales=scales, values=values, min_visible=1e-9)
    assert exact.kept.tolist() == [0, 1, 2]
    largest = exact.values.max((0, 2, 3))[:, None, None]
    np.testing.assert_allclose(found / largest, exact.values[0] / largest, atol=0.08)
    assert np.abs(found / largest - exact.values[0] / largest).mean() < 0.01
    np.testing.assert_allclose(visible, exact.visible[0], atol=0.03)
    assert visible.min() < 0.9  # something was cut away


def rows_and_columns(height, width):
    """(2, height, width) float32 pictures: the numbers of the rows, and of the columns."""
    return np.mgrid[1 : height + 1, 1 : width + 1].astype(np.float32)


SMOOTH = dict(interpolation=v2.InterpolationMode.BILINEAR)
BOX = v2.Lambda(lambda part: v2.functional.crop(part, 20, 31, 150, 133))
FLIPS = [v2.RandomHorizontalFlip(p=1), v2.RandomVerticalFlip(p=1)]


@pytest.mark.parametrize('first', [True, False])
@pytest.mark.parametrize(
    'steps, most',
    [
        ([], 0.03),
        ([v2.Resize((32, 32))], 0.03),
        ([v2.Resize((100, 60)), *FLIPS], 0.03),
        ([*FLIPS, v2.Resize((100, 60))], 0.03),
        ([v2.Resize((500, 400))], 0.03),
        ([BOX, v2.Resize((64, 64)), *FLIPS], 0.03),
        ([v2.Resize((160, 150)), FLIPS[0], v2.Resize((56, 56))], 0.03),
        ([v2.RandomResizedCrop(64, scale=(0.3, 0.6))], 0.03),
        ([v2.Pad([31, 10, 3, 7]), v2.Resize((96, 96))], 0.03),
        ([v2.Resize((80, 80)), v2.RandomRotation((90, 90))], 0.03),
        # From here on each pixel is given the position of the nearest, half a pixel off at most.
        ([v2.RandomRotation((17, 17), **SMOOTH)], 0.71),
        ([v2.RandomRotation((17, 17), **SMOOTH), v2.Resize((96, 96))], 0.71),
        ([v2.Resize((96, 96)), v2.RandomRotation((17, 17), **SMOOTH)], 0.71),
        ([v2.RandomAffine((20, 20), scale=(1.3, 1.3), shear=(10, 10), **SMOOTH)], 0.71),
        ([v2.RandomPerspective(0.3, p=1, **SMOOTH)], 0.71),
    ],
)
def test_positions_are_those_that_the_image_shows(steps, most, first):
    """In pixels of the view, away from what is filled in and what a filter mixes at the border.

    A filter of whole pixels shows what lies up to a few hundredths of one beside its centre.
    """
    transform = v2.Compose([*steps, *AS_TENSOR] if first else [*AS_TENSOR, *steps])
    for axis, picture in enumerate(rows_and_columns(200, 240)):
        torch.manual_seed(0)
        view, positions = track_view(transform, Image.fromarray(picture))
        height, width = view.shape[1:]
        inner = slice(height // 4, -height // 4), slice(width // 4, -width // 4)
        off = positions[axis][inner] - view[0].numpy()[inner]
        pixel = np.hypot(*np.gradient(view[0].numpy()[inner])).mean()
        assert np.abs(off).max() < most * pixel + 0.001
        assert np.abs(off.mean()) < 0.015 * pixel


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('box', [(0, 0, 256, 256), (16, 32, 192, 128)])
@pytest.mark.parametrize('side, cells', [(32, 8), (64, 8), (224, 7), (224, 14), (512, 8), (96, 6)])
@pytest.mark.parametrize('stored', [256, 64])
def test_masks_lie_where_exact_integration_has_them(stored, side, cells, box, flip):
    """Of masks that rise with the row and with the column, a shift shows in the mean."""
    masks = np.rint((rows_and_columns(stored, stored) - 0.5) / stored * 255).astype(np.uint8)
    steps = [v2.Lambda(lambda part: v2.functional.crop(part, *box)), v2.Resize((side, side))]
    _, positions = track_view(
        v2.Compose([*steps, *FLIPS[: 2 * flip], *AS_TENSOR]), Image.new('L', (256, 256))
    )
    window = crop_window(WHOLE, box, (256, 256))
    for direction in ('horizontal', 'vertical')[: 2 * flip]:
        window = flip_window(window, direction)
    found, _ = masks_in_view(masks, positions, (256, 256), (cells, cells))
    exact = masks_on_views(masks, [window], (cells, cells), min_visible=1e-9).values[0]
    cell = np.array(box[2:])[:, None, None] / 256 / cells
    off = (found - exact) / cell
    assert np.abs(off.mean((1, 2))).max() < 0.001
    assert np.abs(off).max() < 0.02 if stored == 64 else np.abs(off).max() < 0.005


def test_other_pictures_are_resized_as_they_were():
    """Positions alone are resized otherwise, while a transform runs."""

    def resize(image, mask):
        noise = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
        resized = torch.nn.functional.interpolate(noise, (7, 7))
        seen.append(resized)
        return v2.Compose([v2.Resize((7, 7)), *AS_TENSOR])(image, mask)

    seen = []
    track_view(resize, Image.new('RGB', (30, 20)))
    resize(Image.new('RGB', (30, 20)), Mask(torch.zeros(3, 20, 30)))
    assert torch.equal(*seen)
    nearest = v2.functional.resize(Mask(torch.arange(36.0).reshape(1, 6, 6)), [3, 3])
    assert nearest.flatten().tolist() == [0, 2, 4, 12, 14, 16, 24, 26, 28]


def test_what_lies_outside_has_no_mask_and_turns_are_followed():
    masks = np.zeros((1, 16, 16), np.uint8)
    masks[0, :8, :8] = 255  # upper left
    padded = v2.Compose([v2.Pad([100, 0, 0, 0]), v2.Resize((64, 64)), *AS_TENSOR])
    _, positions = track_view(padded, Image.new('RGB', (100, 100)))
    found, visible = masks_in_view(masks, positions, (100, 100), (4, 4))
    assert found[0, :, :2].max() == 0 and found[0, :2, 2].min() == 1 and found[0, 2:].max() == 0
    assert visible[0] == pytest.approx(1, abs=0.03)
    turned = v2.Compose([v2.RandomRotation((90, 90)), *AS_TENSOR])  # counter-clockwise
    _, positions = track_view(turned, Image.new('RGB', (100, 100)))
    found, visible = masks_in_view(masks, positions, (100, 100), (4, 4))
    assert found[0, 2:, :2].min() > 0.9 and found[0, :2].max() < 0.1
    assert visible[0] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize('fill', [0, 1, 128, 255, (124, 116, 104)])
@pytest.mark.parametrize('first', [True, False])
def test_what_a_transform_fills_in_is_no_part_of_the_image(fill, first):
    """A grey rim, say: every value from 1 on could be the number of a row."""
    turn = v2.RandomRotation((45, 45), fill=fill)
    transform = v2.Compose([turn, *AS_TENSOR] if first else [*AS_TENSOR, turn])
    masks = np.full((1, 8, 8), 255, np.uint8)
    _, positions = track_view(transform, Image.new('RGB', (100, 100)))
    found, visible = masks_in_view(masks, positions, (100, 100), (10, 10))
    assert found[0, 4:6, 4:6].min() == 1 and found[0, [0, 0, -1, -1], [0, -1, 0, -1]].max() == 0
    assert (positions[0] > 0).mean() == pytest.approx(2 * 2**0.5 - 2, abs=0.01)  # an octagon
    assert visible[0] == pytest.approx(2 * 2**0.5 - 2, abs=0.02)


def test_a_transform_may_write_into_the_mask():
    def spoil(image, mask):
        view, kept = v2.Compose(AS_TENSOR)(image), mask.clone()
        mask.zero_()
        return view, kept

    for _ in range(2):
        _, positions = track_view(spoil, Image.new('RGB', (5, 4)))
        assert positions[:, -1, -1].tolist() == [4, 5]


@pytest.mark.parametrize('size', [(1, 1), (400, 1), (1, 400)])
def test_images_one_pixel_wide_keep_their_nouns(size):
    masks = np.zeros((1, 8, 8), np.uint8)
    masks[0, 2:6, 2:6] = 255
    transform = v2.Compose([v2.Resize((32, 32)), *AS_TENSOR])
    _, positions = track_view(transform, Image.new('RGB', size))
    _, visible = masks_in_view(masks, positions, size[::-1], (4, 4))
    assert visible[0] == 1
    if max(size) > 1:
        half = v2.Compose([v2.CenterCrop((size[1] // 2 or 1, size[0] // 2 or 1)), transform])
        _, positions = track_view(half, Image.new('RGB', size))
        masks[:] = 255
        _, visible = masks_in_view(masks, positions, size[::-1], (4, 4))
        assert visible[0] == pytest.approx(0.5, abs=0.05)


def transform(size=24):
    return v2.Compose([v2.RandomResizedCrop(size, scale=(0.3, 1)), *AS_TENSOR])


def test_batches_hold_images_with_any_number_of_nouns(tmp_path):
    dataset = StoreDataset(make_store(tmp_path / 'store', count=8), transform(), grid=(3, 3))
    torch.manual_seed(0)
    items = [dataset[number] for number in range(8)]
    assert [len(item.nouns) for item in items][0] == 0 and max(len(i.nouns) for i in items) > 1
    batch = collate_views(items)
    counts = [max(len(item.nouns), 1) for item in items]
    assert [view.shape for view in batch.views] == [(8, 3, 24, 24)] * 2
    assert [mask.shape for mask in batch.masks] == [(8, max(counts), 3, 3)] * 2
    assert len(batch.places) == len(batch.nouns) == sum(counts)
    assert batch.nouns[0] == UNKNOWN_NOUN and batch.masks[0][0, 0].eq(1).all()
    assert set(batch.nouns.tolist()) <= {UNKNOWN_NOUN, *map(noun_id, NOUNS)}
    for image, item in enumerate(items):
        for view in (0, 1):
            for number, mask in enumerate(item.masks[view]):
                assert torch.equal(batch.masks[view][image, number], mask)
    moved = batch.to('meta')
    assert moved.views[0].device.type == moved.places.device.type == 'meta'


def test_a_loader_with_workers_pins_and_the_baseline_has_no_masks(tmp_path):
    path = make_store(tmp_path / 'store', count=6)
    dataset = pickle.loads(pickle.dumps(StoreDataset(path, transform(), masks=False)))
    (batch,) = DataLoader(dataset, batch_size=6, collate_fn=collate_views, num_workers=1)
    assert batch.nouns is None and batch.masks[0].shape == (6, 1, 7, 7)
    assert batch.masks[1].eq(1).all() and batch.to('cpu').nouns is None
    mixed = [dataset[1], StoreDataset(path, transform())[1]]
    nouns = collate_views(mixed).nouns
    assert nouns[0] == UNKNOWN_NOUN and len(nouns) == 1 + len(mixed[1].nouns)


def test_what_goes_by_nouns_is_refused_without_them(tmp_path):
    path = make_store(tmp_path / 'store', count=2)
    features = torch.randn(2, 6)
    baseline = StoreDataset(path, transform(), masks=False)
    nameless = Store(path)
    nameless.manifest['nouns'] = 0
    for dataset in (baseline, StoreDataset(nameless, transform())):
        batch = collate_views([dataset[0], dataset[0]])  # its first image has no noun
        assert InstanceNTXent()(features, features, batch.nouns).isfinite()
        for loss in (InstanceNTXent, InstanceInfoNCE):
            for name in ('negatives', 'positives'):
                value = 'other_nouns' if name == 'negatives' else 'same_noun'
                part = loss(**{name: value}, **({} if loss is InstanceNTXent else {'dim': 6}))
                with pytest.raises(InputError, match=f"'{value}' needs the nouns: .* masks=True"):
                    part(features, features, batch.nouns)


def test_views_of_different_sizes_and_grids(tmp_path):
    dataset = StoreDataset(
        make_store(tmp_path / 'store', count=4), [transform(32), transform(16)], grid=[4, (2, 2)]
    )
    batch = collate_views([dataset[number] for number in range(4)])
    assert [tuple(view.shape[2:]) for view in batch.views] == [(32, 32), (16, 16)]
    assert [tuple(mask.shape[2:]) for mask in batch.masks] == [(4, 4), (2, 2)]


@pytest.mark.parametrize(
    'make, said',
    [
        (lambda: v2.ToImage(), 'end it with v2.ToImage'),
        (lambda: lambda image, mask: image, 'return both'),
        (
            lambda: torchvision.transforms.Compose([]),
            r'not those of torchvision.transforms, .*: .*3 ',
        ),
        (
            lambda: lambda image, mask: (torch.zeros(3, 8, 8), mask),
            r'moved the image \(\(8, 8\)\) and its mask \(\(24, 32\)\) differently',
        ),
        (lambda: lambda image, mask: (torch.zeros(3, 8, 8), image), 'both tensors, got'),
        (lambda: lambda image, mask: (torch.zeros(8, 8), mask[:, :8, :8]), r'a view \(C, H, W\)'),
        (lambda: lambda image, mask: (torch.zeros(3, 0, 8), mask[:, :0, :8]), r'a view \(C, H, W'),
        (
            lambda: v2.Compose(
                [v2.ToImage(), v2.ToDtype({Image_: torch.float32, Mask: torch.uint8}, scale=True)]
            ),
            'made the mask torch.uint8, in which the positions of pixels are lost',
        ),
        (lambda: v2.Compose([v2.RandAugment(), *AS_TENSOR]), 'not AutoAugment, RandAugment'),
        (
            lambda: v2.Compose([v2.Pad(4, fill=(1, 2, 3)), *AS_TENSOR]),
            'one fill for all channels, or fill=',
        ),
    ],
)
def test_transforms_that_give_no_view_are_told(tmp_path, make, said):
    dataset = StoreDataset(make_store(tmp_path / 'store', count=2), make())
    with pytest.raises(InputError, match=said):
        dataset[0]


@pytest.mark.parametrize(
    'change',
    [
        lambda part: part * 2 - 1,
        lambda part: part / 255,
        lambda part: part / 2**20,  # to what might be filled in
        lambda part: (part - 0.45) / 0.22,
        lambda part: part.clamp(0, 1),
        lambda part: 1 - part,
        lambda part: part + 5 * torch.randn_like(part),
        lambda part: part * (1 + 0.1 * torch.randn_like(part)),
        lambda part: torch.full_like(part, torch.nan) if isinstance(part, Mask) else part,
    ],
)
def test_a_transform_that_changes_the_values_of_masks_is_told(tmp_path, change):
    """As `v2.Lambda` does with all that it is given: every noun would be cut away."""
    store = make_store(tmp_path / 'store', count=2, nouns=(1,))
    crop, after = v2.RandomResizedCrop(24, scale=(0.9, 1)), v2.Lambda(change)
    with pytest.raises(InputError, match="changed the mask's values.*tv_tensors.Image"):
        StoreDataset(store, v2.Compose([crop, *AS_TENSOR, after]))[0]
    alone = v2.Compose([crop, *AS_TENSOR, v2.Lambda(change, Image_)])
    assert len(StoreDataset(store, alone)[0].nouns) == 1


@pytest.mark.parametrize('fill', [0, 1, 128, 255, (124, 116, 104)])
@pytest.mark.parametrize('first', [True, False])
def test_a_view_that_shows_nothing_of_the_image_is_one(fill, first):
    away = v2.Lambda(lambda part: v2.functional.affine(part, 0, [200, 0], 1, [0.0, 0.0], fill=fill))
    steps = [away, *AS_TENSOR] if first else [*AS_TENSOR, away]
    normalize = v2.Normalize(mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    _, positions = track_view(v2.Compose([*steps, normalize]), image)
    assert not positions.any()
    if not fill:  # of which no noise can be told from changed values
        noise = v2.Lambda(lambda part: part + torch.randn_like(part), Image_)
        _, positions = track_view(v2.Compose([*steps, noise]), image)
        assert not positions.any()


def test_a_mask_that_was_interpolated_is_not_taken_for_changed():
    """Bicubic weights overshoot along the border of what is filled in."""

    def turn(image, mask):
        view = v2.Compose(AS_TENSOR)(image)
        grid = torch.nn.functional.affine_grid(
            torch.tensor([[[1.2, -0.9, 0.0], [0.9, 1.2, 0.0]]]), (1, 3, *view.shape[1:]), False
        )
        return tuple(
            torch.nn.functional.grid_sample(
                part.as_subclass(torch.Tensor).float()[None], grid, 'bicubic', align_corners=False
            )[0]
            for part in (view, mask)
        )

    _, positions = track_view(turn, Image.new('RGB', (64, 64), (9, 8, 7)))
    assert 0.2 < (positions[0] > 0).mean() < 0.6


@pytest.mark.parametrize(
    'options, said',
    [
        ({'mask_values': 'soft'}, 'none of attention'),
        ({'min_visible': 0}, 'above 0'),
        ({'views': 0}, 'at least one view'),
        ({'grid': [7]}, '1 grid for 2 views'),
        *(
            ({'grid': grid}, 'grid must be a side')
            for grid in (0, -1, 7.5, (7,), (7, 0), 'a', None, True, 10**6)
        ),
        ({'grid': 1}, 'a grid of 1x1 leaves nothing of a mask'),
        ({'grid': [7, (1, 1)]}, 'a grid of 1x1 leaves nothing of a mask'),
        ({'views': 1.5}, 'views must be a whole number'),
        ({'transform': None}, 'transform must be callable'),
    ],
)
def test_settings_out_of_range(tmp_path, options, said):
    path = make_store(tmp_path / 'store', count=2)
    with pytest.raises(InputError, match=said):
        StoreDataset(path, **{'transform': transform(), **options})


def test_whole_images_may_have_a_map_of_one_cell(tmp_path):
    path = make_store(tmp_path / 'store', count=2)
    assert StoreDataset(path, transform(), grid=1, masks=False)[0].masks[0].shape == (0, 1, 1)


def test_a_batch_of_nothing_is_told():
    with pytest.raises(InputError, match='no images'):
        collate_views([])


def test_views_of_other_sizes_do_not_stack(tmp_path):
    dataset = StoreDataset(make_store(tmp_path / 'store', count=2), transform(16), views=1)
    other = StoreDataset(dataset.store, transform(24), views=1)
    with pytest.raises(InputError, match='different sizes'):
        collate_views([dataset[0], other[1]])


def test_images_of_other_views_or_grids_do_not_join(tmp_path):
    """`zip` would leave the third view out."""
    store = make_store(tmp_path / 'store', count=3)
    items = [
        StoreDataset(store, transform(16), **options)[0]
        for options in ({'views': 2}, {'views': 3}, {'views': 2, 'grid': 5})
    ]
    with pytest.raises(InputError, match=r'different numbers of views \[2, 3\]'):
        collate_views(items[:2])
    with pytest.raises(InputError, match=r'different grids \[\(5, 5\), \(7, 7\)\]'):
        collate_views(items[::2])


def test_masks_that_are_not_those_of_the_nouns_are_told():
    def item(counts, nouns):
        views = [torch.zeros(3, 8, 8)] * len(counts)
        return ViewItem(views, [torch.rand(count, 4, 4) for count in counts], torch.arange(nouns))

    for counts, nouns in (([2, 1], 2), ([2, 2], 3)):
        with pytest.raises(InputError, match='image 1 of a batch has 2 views and . nouns, and mas'):
            collate_views([item([1, 1], 1), item(counts, nouns)])
    spoilt = item([2, 2], 2)
    spoilt.masks[1][0, 0, 0] = torch.nan
    with pytest.raises(InputError, match='masks are NaN or infinite'):
        collate_views([spoilt])


def test_a_loader_needs_no_collation_to_be_named(tmp_path):
    store = make_store(tmp_path / 'store', count=4)
    transform = v2.Compose([v2.Resize((16, 16)), *AS_TENSOR])
    asked, unasked = (
        next(iter(DataLoader(StoreDataset(store, transform), 4, **options)))
        for options in ({'collate_fn': collate_views}, {})
    )
    assert isinstance(unasked, ViewBatch) and torch.equal(asked.nouns, unasked.nouns)
    assert all(map(torch.equal, asked.views + asked.masks, unasked.views + unasked.masks))


def test_a_store_at_an_address_gives_the_same_batches(tmp_path, monkeypatch):
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))
    path = make_store(tmp_path / 'served' / 'store')
    transform = v2.Compose([v2.Resize((16, 16)), *AS_TENSOR])
    with serve_files(path.parent) as server:
        there, here = (
            list(DataLoader(StoreDataset(place, transform), 5, collate_fn=collate_views))
            for place in (f'{server.address}/store', path)
        )
    assert len(there) == len(here) == 3
    for first, second in zip(there, here):
        assert torch.equal(first.nouns, second.nouns)
        assert all(map(torch.equal, first.views + first.masks, second.views + second.masks))
