"""Masks of a store against a segmenter's: which samples, which figures, and SAM itself, tiny."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.tools import exit_code, load_tool
from PIL import Image

from freeatm_mm.errors import InputError
from freeatm_mm.probing.reference import (
    Sam,
    choose_nouns,
    compare_with_reference,
    judged_samples,
)
from freeatm_mm.prompts import Noun
from freeatm_mm.store import Sample, write_store

SIDE = 48


def square_sample(number, nouns=1, flat=False):
    """A bright square on a dark ground, and its mask on a quarter of the resolution."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 40, (SIDE, SIDE, 3), dtype=np.uint8)
    masks = np.zeros((nouns, SIDE // 4, SIDE // 4), np.uint8)
    for mask in masks:
        y, x = random.integers(0, SIDE // 4 - 4, 2)
        pixels[4 * y : 4 * y + 16, 4 * x : 4 * x + 16] = 220
        mask[y : y + 4, x : x + 4] = 0 if flat else 255
    caption = 'a dog' if nouns == 1 else 'a dog and a cup'
    spans = [Noun('dog', 2, 5, 'golden retriever'), Noun('cup', 12, 15, 'cup')][:nouns]
    return Sample.from_image(
        f'{number:03d}',
        Image.fromarray(pixels),
        image_format='png',
        caption=caption,
        nouns=tuple(spans),
        masks=masks,
        scales=np.tile(np.array([[0, 1]], np.float32), (nouns, 1)),
    )


class Bright:
    """A reference that marks what is bright where it is asked; nothing in the dark."""

    def masks(self, image, points):
        bright = np.asarray(image.convert('L')) > 128
        return np.stack([bright & bright[y, x] for x, y in points])


def test_masks_are_ahead_of_the_controls_where_they_lie_on_objects():
    samples = [square_sample(number) for number in range(12)]
    chosen = list(judged_samples(samples, choose_nouns(None), True))
    found = compare_with_reference(chosen, Bright(), crf_size=24, repeats=200)
    assert (found['images'], found['nouns'], found['unmarked']) == (12, 12, 0)
    iou = found['iou']
    assert iou['plain']['mean'] > 0.7 and iou['refined']['mean'] > 0.6
    assert iou['plain']['low'] <= iou['plain']['mean'] <= iou['plain']['high']
    assert all(found['differences'][name]['low'] > 0.1 for name in ('other_image', 'centred_box'))
    # Masks of another image on every picture: no longer ahead.
    wrong = [(sample, chosen[place - 5][1]) for place, (sample, _) in enumerate(chosen)]
    at_centre = [np.array(Bright().masks(s.image, [(0, 0)])) for s, _ in wrong]
    assert not any(mask.any() for mask in at_centre)

    class Everything(Bright):
        def masks(self, image, points):
            return np.repeat(np.asarray(image.convert('L'))[None] > 128, len(points), 0)

    other = compare_with_reference(wrong, Everything(), crf_size=24, repeats=200)
    assert other['differences']['other_image']['low'] < 0.1


def test_the_interval_is_that_of_images():
    chosen = list(judged_samples(map(square_sample, range(8)), choose_nouns(None), False))
    one, two = (compare_with_reference(chosen, Bright(), 24, repeats=n) for n in (50, 50))
    assert one == two  # the draws are the same


def test_which_samples_and_nouns():
    samples = [square_sample(0), square_sample(1, 2), square_sample(2, flat=True)]

    def keys(one_instance, *wanted):
        chosen = judged_samples(samples, choose_nouns(*wanted), one_instance)
        return [(sample.key, len(soft)) for sample, soft in chosen]

    assert keys(False, None) == [('000', 1), ('001', 2)]
    assert keys(True, None) == [('000', 1)]
    assert keys(False, 'dog') == keys(False, 'animal') == [('000', 1), ('001', 1)]
    assert keys(False, None, ['cup']) == [('001', 1)]
    assert keys(True, 'vehicle') == []
    with pytest.raises(ValueError, match='no class of ImageNet stands under'):
        choose_nouns('no such level')


def test_too_few_images_are_told():
    chosen = list(judged_samples([square_sample(0)], choose_nouns(None), False))
    for some in ([], chosen):
        with pytest.raises(InputError, match='two or more are needed'):
            compare_with_reference(some, Bright(), 24)


@pytest.fixture(scope='module')
def tiny_sam(tmp_path_factory):
    """Random weights of SAM's architecture, at 64 pixels."""
    transformers = pytest.importorskip('transformers')
    torch = pytest.importorskip('torch')
    folder = tmp_path_factory.mktemp('sam')
    torch.manual_seed(0)
    config = transformers.SamConfig(
        vision_config=dict(
            hidden_size=16,
            output_channels=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=64,
            patch_size=16,
            window_size=2,
            mlp_dim=16,
            global_attn_indexes=[0],
            num_pos_feats=4,
        ),
        prompt_encoder_config=dict(
            hidden_size=8, image_size=64, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=dict(
            hidden_size=8,
            mlp_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            iou_head_hidden_dim=8,
        ),
    )
    transformers.SamModel(config).save_pretrained(folder)
    transformers.SamImageProcessor(
        size={'longest_edge': 64},
        pad_size={'height': 64, 'width': 64},
        mask_size={'longest_edge': 16},
        mask_pad_size={'height': 16, 'width': 16},
    ).save_pretrained(folder)
    return str(folder)


def test_sam_marks_each_point_at_the_images_size(tiny_sam):
    sam = Sam(tiny_sam)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    masks = sam.masks(image, np.array([[5, 5], [30, 20], [39, 29]]))
    assert masks.shape == (3, 30, 40) and masks.dtype == bool
    assert np.array_equal(masks[:1], sam.masks(image, np.array([[5, 5]])))


@pytest.mark.parametrize(
    'name, content, said',
    [
        ('config.json', {'_attn_implementation': 'owner/kernel'}, 'attention kernel'),
        ('adapter_config.json', {'base_model_name_or_path': 'owner/name'}, 'merge the adapter'),
        ('model.safetensors.index.json', {'weight_map': {'a': '../x.safetensors'}}, 'outside of'),
    ],
)
def test_a_folder_of_sam_leads_to_no_code_and_no_other_weights(tmp_path, name, content, said):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        Sam(str(tmp_path))


def test_the_tool_compares_a_store_with_sam(tiny_sam, tmp_path, capsys):
    store = tmp_path / 'store'
    write_store(store, map(square_sample, range(4)))
    out, judge = tmp_path / 'figures.json', load_tool('store/judge')
    words = [store, '--sam', tiny_sam, '--one-instance', '--under', 'animal', '--crf-size', 16]
    assert exit_code(judge, [*words, '--out', out]) == 0
    assert 'centred box' in capsys.readouterr().out
    kept = json.loads(out.read_text())
    assert kept['reference'] == tiny_sam and kept['nouns'] + kept['unmarked'] == 4
    assert exit_code(judge, [store, '--sam', tmp_path / 'nowhere']) == 2
    assert "can't be had" in capsys.readouterr().err
    assert exit_code(judge, [*words[:5], 'vehicle']) == 2
    assert '0 images with nouns' in capsys.readouterr().err
