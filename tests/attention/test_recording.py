"""The recorder calls the pipeline itself, and what it gives back can be looked at and saved."""

from __future__ import annotations

import io
import json

import diffusers
import numpy as np
import pytest
import torch
from helpers.tiny_generators import rebuilt, tiny_pixart, tiny_qwen_image
from helpers.tiny_pipelines import tiny_if, tiny_stable_diffusion
from helpers.two_prompts import NOUNS, PROMPTS, hook_count
from PIL import Image

from freeatm_mm.attention import AttentionRecorder, NounTruncatedError, Recording
from freeatm_mm.attention.recording import RECORD

WORDS = [['dog', 'sand'], ['cat', 'bird', 'tree']]


@pytest.fixture(scope='module')
def sd():
    return tiny_stable_diffusion()


def options(seed=1, **more):
    return dict(
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(seed),
        output_type='pt',
        **more,
    )


@pytest.mark.parametrize('images', [1, 2])
def test_generate_is_the_call_with_a_recorder_round_it(sd, images):
    more = {'num_images_per_prompt': images}
    plain = sd(PROMPTS, **options(**more)).images
    with AttentionRecorder(sd, PROMPTS, NOUNS, **more) as by_hand:
        sd(PROMPTS, **options(**more))
    recorder = AttentionRecorder(sd)
    result = recorder.generate(PROMPTS, WORDS, **options(**more))
    assert torch.equal(result.images, plain)
    for got, expected in zip(result.masks, by_hand.masks('minmax'), strict=True):
        assert torch.equal(got, expected) and got.dtype == torch.float32
    assert all(map(torch.equal, recorder.masks(blocks='down'), by_hand.masks(blocks='down')))
    assert result.prompts == [prompt for prompt in PROMPTS for _ in range(images)]
    assert result.names == [row for row in WORDS for _ in range(images)]
    assert result.spans == [row for row in NOUNS for _ in range(images)]
    assert len(result) == len(result.masks) == 2 * images
    assert hook_count(sd) == 0


def test_generate_of_one_prompt(sd):
    pytest.importorskip('textblob')
    # A negative prompt must be of the same type as the prompt.
    result = AttentionRecorder(sd).generate(PROMPTS[0], ['dog', (17, 21)], negative_prompt='sand')
    assert isinstance(result.images[0], Image.Image)
    assert result.masks[0].shape[0] == 2 and result.names == [['dog', 'sand']]
    again = AttentionRecorder(sd).generate(PROMPTS[0], return_dict=False, num_inference_steps=1)
    assert again.names == [['dog', 'sand']]  # found


def test_a_recorder_generates_again_and_again(sd):
    recorder = AttentionRecorder(sd, steps=range(1))
    first = recorder.generate(PROMPTS[0], ['dog'], **options())
    other = recorder.generate(PROMPTS, WORDS, **options())
    assert recorder.num_steps == 1
    assert [len(mask) for mask in first.masks + other.masks] == [1, 2, 3]


def test_an_interrupted_call_says_how_many_steps_it_took(sd):
    def interrupt(pipe, step, timestep, values):
        pipe._interrupt = step == 1
        return values

    def call(steps=None, **more):
        more = {**options(), 'num_inference_steps': 4, **more}
        return AttentionRecorder(sd, steps=steps).generate(PROMPTS, WORDS, **more)

    result, of_two = call(callback_on_step_end=interrupt), call(steps=range(2))
    assert result.num_steps == of_two.num_steps == 2
    assert all(map(torch.equal, result.masks, of_two.masks))
    assert call().num_steps == 4


def test_the_call_decides_what_is_cleaned():
    pipe = tiny_pixart()
    result = AttentionRecorder(pipe).generate(
        'a red <b>dog</b> on the sand',
        ['sand'],
        clean_caption=False,
        num_inference_steps=1,
        height=64,
        width=64,
        use_resolution_binning=False,
    )
    assert result.masks[0].shape == (1, 8, 8)


def test_other_families():
    for pipe, more in (
        (tiny_if(), {}),
        (tiny_qwen_image(), dict(true_cfg_scale=2.0, negative_prompt=' ', height=64, width=64)),
    ):
        result = AttentionRecorder(pipe).generate(
            PROMPTS[0], ['dog'], num_inference_steps=2, **more
        )
        assert result.masks[0].shape[0] == 1 and result.masks[0].max() == 1


def test_words_for_the_context_manager(sd):
    with AttentionRecorder(sd, PROMPTS[0], nouns=['dog', 'sand']) as recorder:
        sd(PROMPTS[0], **options())
    with AttentionRecorder(sd, PROMPTS[:1], NOUNS[:1]) as by_span:
        sd(PROMPTS[0], **options())
    assert recorder.names == [['dog', 'sand']]
    assert torch.equal(recorder.masks()[0], by_span.masks()[0])


def test_prompts_may_be_called_as_the_pipeline_calls_them(sd):
    recorder = AttentionRecorder(sd)
    named = recorder.generate(prompt=PROMPTS[0], nouns=['dog'], **options())
    first = recorder.generate(PROMPTS[0], ['dog'], **options())
    assert named.prompts == first.prompts
    assert torch.equal(named.masks[0], first.masks[0])


def test_generate_refuses(sd):
    recorder = AttentionRecorder(sd)
    for match, arguments, more in (
        ('occurs 2 times', ('a dog and a dog', ['dog']), {}),
        ("without an argument 'stepz'", (PROMPTS[0], ['dog']), dict(stepz=3)),
        ('takes the prompts once', (PROMPTS[0], ['dog']), dict(prompt='a cat')),
        ('takes the prompts once', (), dict(nouns=['dog'])),
        ('call has prompt_embeds', (PROMPTS[0], ['dog']), dict(prompt_embeds=torch.zeros(1))),
        ('num_images_per_prompt', (PROMPTS[0], ['dog']), dict(num_images_per_prompt=0)),
        ('no prompts', ([], []), {}),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            recorder.generate(*arguments, **more)
    with pytest.raises(NounTruncatedError, match='cut off'):
        recorder.generate('a dog ' * 50 + 'sand', ['sand'])
    with pytest.raises(RuntimeError, match='made without prompts'), recorder:
        pass
    with pytest.raises(TypeError, match='prompts are missing'):
        AttentionRecorder(sd, nouns=['dog'])
    with AttentionRecorder(sd, PROMPTS, NOUNS) as busy, pytest.raises(RuntimeError, match='in use'):
        busy.generate(PROMPTS, WORDS)
    assert hook_count(sd) == 0


def test_images_that_are_cut_from_what_is_generated_are_refused(sd):
    """Their masks would lie beside the objects."""
    inpaint = rebuilt(sd, diffusers.StableDiffusionInpaintPipeline)
    with pytest.raises(
        ValueError, match='call has padding_mask_crop, with which it generates a part'
    ):
        AttentionRecorder(inpaint).generate(PROMPTS[0], ['dog'], padding_mask_crop=8)
    pipe = tiny_pixart(sigma=True)
    pipe.transformer.register_to_config(sample_size=32)  # for which there are shapes
    recorder, call = AttentionRecorder(pipe), dict(height=64, width=640, clean_caption=False)
    with pytest.raises(ValueError, match='generates at another shape than 64x640 .* and cuts the'):
        recorder.generate(PROMPTS[0], ['dog'], **options(), **call)
    with (
        pytest.raises(ValueError, match='generates at another shape than 64x640'),
        AttentionRecorder(pipe, PROMPTS[0], ['dog'], call_options=call),
    ):
        pipe(PROMPTS[0], **options(), **call)
    result = recorder.generate(
        PROMPTS[0], ['dog'], **options(), **call, use_resolution_binning=False
    )
    assert result.masks[0].shape == (1, 8, 80)
    # Of a shape that it has, at half the size.
    call.update(height=64, width=256)
    result = recorder.generate(PROMPTS[0], ['dog'], **options(), **call)
    assert result.masks[0].shape == (1, 16, 64) and result.images.shape[-2:] == (64, 256)


def test_what_is_cut_off_is_told(sd):
    prompt = 'a dog ' + 'red ' * 80 + 'sand'
    result = AttentionRecorder(sd, truncated='skip').generate(
        [PROMPTS[0], prompt], [['dog'], ['dog', 'sand']], num_images_per_prompt=2, **options()
    )
    assert result.truncated == [(2, 1), (3, 1)]
    assert set(result.truncated) <= set(result.flat)


def recording(images=None, masks=None):
    mask = torch.zeros(2, 4, 8)
    mask[0, 1:3, 2:4] = 1
    return Recording(
        images=[Image.new('RGB', (32, 16), 'red')] if images is None else images,
        masks=[mask],
        prompts=['a dog/cat'],
        names=[['dog', '../cat']],
        spans=[[(2, 5), (6, 9)]],
        flat=[(0, 1)],
        truncated=[],
        left_out=[],
    )


def test_repr_is_one_line(sd):
    assert repr(recording()) == 'Recording(1 image, 2 masks of 4x8: dog, ../cat)'
    assert '\n' not in repr(AttentionRecorder(sd)) and 'StableDiff' in repr(AttentionRecorder(sd))


def test_boxes_are_in_pixels_of_the_image():
    assert recording().boxes(0.99) == [[(10.0, 6.0, 14.0, 10.0), None]]
    (((x1, y1, x2, y2), _),) = recording().boxes()
    assert (x1, y1, x2, y2) == (8.0, 4.0, 16.0, 12.0)
    for threshold in (-0.1, 1.1, float('nan'), True, '0.5'):
        with pytest.raises(ValueError, match='threshold must be a number from 0 to 1'):
            recording().boxes(threshold)


def test_overlay_and_notebook():
    shown = recording().overlay(0, size=64)
    assert isinstance(shown, Image.Image) and shown.width > 3 * 64
    assert np.asarray(shown).std() > 0
    assert Image.open(io.BytesIO(recording()._repr_png_())).format == 'PNG'
    with pytest.raises(IndexError, match='no image 1 among 1 image'):
        recording().overlay(1)
    with pytest.raises(ValueError, match='size must be'):
        recording().overlay(size=0)


@pytest.mark.parametrize(
    'images', [torch.rand(1, 3, 16, 32), np.random.default_rng(0).random((1, 16, 32, 3))]
)
def test_images_as_arrays(images):
    assert recording(images)._shown(0).image.size == (32, 16)


def test_latents_are_no_pictures(tmp_path):
    latents = recording(torch.rand(1, 4, 16, 32))
    assert latents._repr_png_() is None
    for look in (latents.overlay, latents.boxes, lambda: latents.save(tmp_path / 'out')):
        with pytest.raises(ValueError, match="no picture.*output_type='pil'"):
            look()
    assert list(tmp_path.iterdir()) == []


def test_save(tmp_path):
    folder = recording().save(tmp_path / 'new' / 'out')
    assert sorted(file.name for file in folder.iterdir()) == ['0-0.png', '0-1.png', '0.png', RECORD]
    (saved,) = json.loads((folder / RECORD).read_text(encoding='utf-8'))['images']
    assert saved['prompt'] == 'a dog/cat' and saved['image'] == '0.png'
    assert saved['nouns'][1] == {'name': '../cat', 'span': [6, 9], 'mask': '0-1.png'}
    mask = np.asarray(Image.open(folder / '0-0.png'))
    assert mask.shape == (16, 32) and mask.dtype == np.uint8 and mask.max() == 255
    assert list(folder.parent.iterdir()) == [folder]


def test_save_overwrites_nothing(tmp_path):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine').write_text('mine')
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'empty')
    for name in ('full', 'file', 'link'):
        with pytest.raises(FileExistsError, match='is there already.*another'):
            recording().save(tmp_path / name)
    assert [file.name for file in (tmp_path / 'full').iterdir()] == ['mine']
    recording().save(tmp_path / 'empty')
    assert (tmp_path / 'empty' / RECORD).is_file()
    assert len(list(tmp_path.iterdir())) == 4
