"""Variants of one recording (layers, steps, heads kept apart) against explicit attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.attention_reference import bilinear, explicit_attention
from helpers.tiny_pipelines import tiny_if, tiny_stable_diffusion

from freeatm_mm.attention import AttentionRecorder
from freeatm_mm.attention.parts import Part, choose_parts, heads_of

PROMPT = 'a red dog on the sand'
NOUNS = [(6, 9), (17, 21)]
TOKENS = [3, 6]  # after the start token
STEPS = 3
LAYERS = 7


@pytest.fixture(scope='module')
def sd():
    return tiny_stable_diffusion()


def generate(pipe, steps=STEPS):
    return pipe(
        [PROMPT],
        num_inference_steps=steps,
        output_type='pt',
        generator=torch.Generator().manual_seed(1),
    ).images


@pytest.fixture(scope='module')
def seen(sd):
    """(step, layer, probabilities (heads, pixels, tokens)) of the conditional row."""
    with explicit_attention(sd) as everything:
        generate(sd)
    # The default scheduler of the tiny pipeline calls the UNet once a step, or once more.
    calls = len(everything) // LAYERS
    assert len(everything) == calls * LAYERS
    return [
        (index // LAYERS, name, probabilities[1].astype(np.float64))
        for index, (name, probabilities) in enumerate(everything)
    ]


@pytest.fixture(scope='module')
def apart(sd):
    with AttentionRecorder(sd, [PROMPT], [NOUNS], separate='heads') as heads:
        generate(sd)
    with AttentionRecorder(sd, [PROMPT], [NOUNS], separate=('steps', 'layers')) as steps:
        generate(sd)
    return {'heads': heads, 'steps': steps}


def reference(seen, noun, size=(16, 16), keep=lambda step, layer, head: True):
    """Mean over the kept heads of each layer and step, then over those."""
    maps = []
    for step, layer, attention in seen:
        heads = [head for head in range(len(attention)) if keep(step, layer, head)]
        if heads:
            plane = attention[heads][..., TOKENS[noun]].mean(0)
            side = round(plane.size**0.5)
            maps.append(bilinear(plane.reshape(side, side), size))
    return np.mean(maps, axis=0)


def check(masks, seen, size=(16, 16), keep=lambda step, layer, head: True):
    for noun in range(2):
        np.testing.assert_allclose(
            masks[0][noun], reference(seen, noun, size, keep), rtol=0, atol=1e-6
        )


def test_figure_5_from_one_run(sd, seen, apart):
    recorder = apart['steps']
    # (a) one step, one block
    check(
        recorder.masks(steps=[1], blocks='up_blocks.1'),
        seen,
        keep=lambda step, layer, head: step == 1 and layer.startswith('up_blocks.1.'),
    )
    # (b) all steps, down blocks
    check(
        recorder.masks(blocks='down'), seen, keep=lambda step, layer, head: layer.startswith('down')
    )
    # (c) all steps, all blocks
    check(recorder.masks(), seen)


def test_window_and_stride_of_steps(sd, seen, apart):
    for steps in (range(1, STEPS), range(0, STEPS, 2), [2]):

        def keep(step, layer, head, steps=steps):
            return step in steps

        check(apart['steps'].masks(steps=steps), seen, keep=keep)
        with AttentionRecorder(sd, [PROMPT], [NOUNS], steps=steps) as recorder:
            generate(sd)
        check(recorder.masks(), seen, keep=keep)


def test_heads_of_all_layers_and_of_each(sd, seen, apart):
    choices = {
        'all layers': [0, 3],
        'by block': {'up_blocks': [1], 'down_blocks.0': [0, 2]},
        'the longer name counts': {'up_blocks': [1], 'up_blocks.1.attentions.0': [2, 3]},
    }
    for heads in choices.values():

        def keep(step, layer, head, heads=heads):
            return head in (heads_of(heads, layer) if isinstance(heads, dict) else heads)

        with AttentionRecorder(sd, [PROMPT], [NOUNS], heads=heads) as recorder:
            generate(sd)
        check(recorder.masks(), seen, keep=keep)
        check(apart['heads'].masks(heads=heads), seen, keep=keep)
    names = {name for _, name, _ in seen}
    assert apart['heads'].layers == dict.fromkeys(names, 4)


def test_heads_of_a_joint_softmax():
    pipe = tiny_if()
    with explicit_attention(pipe) as everything:
        generate(pipe, 1)
    with AttentionRecorder(pipe, [PROMPT], [NOUNS], heads=[0]) as recorder:
        generate(pipe, 1)
    first = everything[: len(recorder.layers)]
    seen = [(0, name, probabilities[1].astype(np.float64)) for name, probabilities in first]
    assert {len(attention) for _, _, attention in seen} != {1}
    for noun in range(2):
        maps = []
        for _, _, attention in seen:
            plane = attention[0, :, TOKENS[noun] - 1]  # no start token
            side = round(plane.size**0.5)
            maps.append(bilinear(plane.reshape(side, side), (16, 16)))
        np.testing.assert_allclose(recorder.masks()[0][noun], np.mean(maps, 0), rtol=0, atol=1e-6)


def test_keeping_apart_changes_no_average(sd, apart):
    with AttentionRecorder(sd, [PROMPT], [NOUNS]) as plain:
        generate(sd)
    for recorder in apart.values():
        for options in (
            {},
            {'weights': 'resolution'},
            {'weights': {16: 1.0, 8: 3.0}},
            {'blocks': ['mid', 'up']},
        ):
            torch.testing.assert_close(
                recorder.masks(**options), plain.masks(**options), rtol=0, atol=1e-7
            )


def test_layers_with_different_numbers_of_heads_count_the_same():
    counts = {Part('down', (8, 8), 'down.0', None, head): 5 for head in range(2)}
    counts |= {Part('up', (8, 8), 'up.0', None, head): 5 for head in range(8)}
    for weights in (None, 'resolution', {8: 1.0}):
        weight = choose_parts(counts, weights=weights)
        total = {
            group: sum(value for part, value in weight.items() if part.group == group)
            for group in ('down', 'up')
        }
        assert total['down'] == pytest.approx(total['up'])
    assert set(choose_parts(counts, heads={'up': [7]})) == {Part('up', (8, 8), 'up.0', None, 7)}


def test_names_do_not_match_by_their_beginning():
    assert heads_of({'blocks.1': [0]}, 'blocks.11.attn2') == frozenset()
    assert heads_of({'blocks.1': [0]}, 'blocks.1.attn2') == {0}


class TestErrors:
    def test_choice_of_what_was_not_kept_apart(self, sd, apart):
        with AttentionRecorder(sd, [PROMPT], [NOUNS]) as recorder:
            generate(sd, 1)
        for options, name in (
            ({'steps': [0]}, 'steps'),
            ({'heads': [0]}, 'heads'),
            ({'blocks': 'up_blocks.1'}, 'layers'),
        ):
            with pytest.raises(ValueError, match=f'{name} were not kept apart'):
                recorder.masks(**options)
        with pytest.raises(ValueError, match='leave nothing'):
            apart['steps'].masks(steps=[99])

    def test_names_that_are_unknown(self, sd):
        with pytest.raises(ValueError, match="separate must be of.*'head'"):
            AttentionRecorder(sd, [PROMPT], [NOUNS], separate='head')
        with pytest.raises(ValueError, match="blocks must be of.*'up_blocks.9'"):
            AttentionRecorder(sd, [PROMPT], [NOUNS], blocks='up_blocks.9')
        with pytest.raises(ValueError, match='has heads 0 to 3.*asks for .7.'):
            AttentionRecorder(sd, [PROMPT], [NOUNS], heads=[1, 7])
        with pytest.raises(ValueError, match="heads name 'elsewhere'.*none of the layers"):
            AttentionRecorder(sd, [PROMPT], [NOUNS], heads={'elsewhere': [0], 'up_blocks': [1]})

    @pytest.mark.parametrize(
        'options',
        [
            dict(num_images_per_prompt=10**12),
            dict(num_images_per_prompt=True),
            dict(num_images_per_prompt=1.0),
            dict(num_images_per_prompt='2'),
            dict(resolutions=[]),
            dict(resolutions='16'),
            dict(resolutions=16),
            dict(resolutions=[0]),
            dict(resolutions=[10**12]),
            dict(resolutions=[16.0]),
            dict(resolutions=['16']),
            dict(resolutions=[(16,)]),
            dict(resolutions=[(16, -1)]),
            dict(resolutions=[None]),
            dict(steps=[]),
            dict(steps=range(0)),
            dict(steps=range(-3, 5)),
            dict(steps='0:50'),
            dict(steps=[-1]),
            dict(steps=[0.5]),
            dict(steps={0: 1}),
            dict(steps=3),
            dict(steps=range(5, -2, -1)),
            dict(steps=bytearray(2 * 10**6)),
            dict(heads=[]),
            dict(heads='0'),
            dict(heads=[-1]),
            dict(heads=[10**12]),
            dict(heads=[0.0]),
            dict(heads=[False]),
            dict(heads={'up_blocks': []}),
            dict(heads={'up_blocks': 1}),
            dict(heads={3: [1]}),
            dict(self_attention=0),
            dict(self_attention=10**9),
            dict(self_attention='32'),
            dict(self_attention=1.5),
            dict(blocks=5),
            dict(blocks=[]),
            dict(blocks=[3]),
            dict(separate=3),
            dict(separate=['layers', None]),
        ],
    )
    def test_options_out_of_range_are_refused_at_once(self, sd, options):
        with pytest.raises(ValueError, match=f'{next(iter(options)).split("_")[0]}') as caught:
            AttentionRecorder(sd, [PROMPT], [NOUNS], **options)
        assert len(str(caught.value)) < 1000

    def test_options_at_the_limits(self, sd):
        for options in (
            dict(steps=range(0, 10**30)),
            dict(steps={0, 1}),
            dict(heads=iter([0, 3])),
            dict(resolutions=iter([16, (8, 8)])),
            dict(blocks=iter(['up', 'down'])),
        ):
            with AttentionRecorder(sd, [PROMPT], [NOUNS], **options) as recorder:
                sd([PROMPT], num_inference_steps=1, output_type='latent')
            assert len(recorder.masks()) == 1

    @pytest.mark.parametrize(
        'options',
        [
            dict(propagate=10**9),
            dict(propagate=-1),
            dict(propagate=1.5),
            dict(propagate=True),
            dict(size=(10**9, 10**9)),
            dict(size=(0, 4)),
            dict(size=16),
            dict(size='16'),
            dict(weights={16: float('nan')}),
            dict(weights={16: 1e300}),
            dict(weights={'16': 1.0}),
            dict(weights={16: '1'}),
            dict(steps=[-1]),
            dict(heads=[99]),
            dict(resolutions=[0]),
        ],
    )
    def test_options_of_masks_out_of_range(self, sd, options):
        with AttentionRecorder(
            sd, [PROMPT], [NOUNS], self_attention=8, separate=('heads', 'steps')
        ) as recorder:
            sd([PROMPT], num_inference_steps=1, output_type='latent')
        with pytest.raises(ValueError, match=next(iter(options))):
            recorder.masks(**options)

    def test_prompts_out_of_range(self, sd):
        with pytest.raises(ValueError, match="10000000 characters, at most 10000.*begins 'dog"):
            AttentionRecorder(sd, ['dog' + ' a' * 4999998 + 'b'], [[]])
        with pytest.raises(TypeError, match='prompts must be strings, got None'):
            AttentionRecorder(sd, [None], [[]])
