"""A noun in what each text encoder really read: other prompts, grown prompts, other embeddings."""

from __future__ import annotations

import functools

import diffusers
import numpy as np
import pytest
import torch
from helpers import tiny_generators as tiny
from helpers import tiny_transformers
from helpers.attention_reference import explicit_attention, mean_map
from helpers.numpy_attention import attention_of, sequence
from helpers.tiny_pipelines import tiny_stable_diffusion, tiny_stable_diffusion_xl
from helpers.two_prompts import NOUNS, PROMPTS, SQUARE, block_attention, hook_count, spans

from freeatm_mm.attention import AttentionRecorder, NounAlignmentError, NounTruncatedError
from freeatm_mm.attention.embeddings import EmbeddingWatch
from freeatm_mm.attention.nouns import find_again

STEPS = dict(num_inference_steps=2, output_type='pt')
# The nouns at the same places, all else another: only these keys are a noun's own in both.
SAME_PLACES = ['the blue dog in a sand sky', 'the sky with the cat is the red bird in a tree']


def places(text, *words):
    """Columns of words in a CLIP's 77 tokens, each word a token, by counting."""
    tokens = text.split()
    return [1 + tokens.index(word) for word in words]


def generate(pipe, *args, **options):
    return pipe(*args, generator=torch.Generator().manual_seed(1), **{**STEPS, **options}).images


def expect(masks, seen, columns, size, first_row=2, images=1):
    """Compares masks with explicit attention at columns counted by hand.

    Args:
        columns: For each prompt and noun, the columns of each text encoder's place among the keys.
    """
    assert len(masks) == len(columns) * images
    for image, mask in enumerate(masks):
        for noun, groups in enumerate(columns[image // images]):
            expected = np.mean(
                [mean_map(seen, first_row + image, group, size) for group in groups], axis=0
            )
            np.testing.assert_allclose(mask[noun], expected, rtol=0, atol=1e-6)
            assert expected.std() > 1e-9


# Embeddings that a callback changes ---------------------------------------------------------------


CHANGED = 'prompts were changed in the middle of the run'


def plus(embeds, first):
    """Other embeddings of the rows from `first` on, in tensors of their own."""
    embeds = embeds.clone()
    embeds[first:] += 0.01
    return embeds


def write(embeds, rows=slice(None)):
    """Other embeddings in the same tensors."""
    for tensor in [embeds] if isinstance(embeds, torch.Tensor) else embeds:
        tensor[rows].mul_(0.5)


def after_a_step(name, change):
    """Options of a call in which a callback sees one of the pipeline's tensors after each step."""

    def callback(pipe, step, timestep, values):
        changed = change(pipe, values[name])
        return {} if changed is None else {name: changed}

    return dict(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[name])


def unguided(pipe, embeds):
    """What `SDCFGCutoffCallback` of diffusers does."""
    pipe._guidance_scale = 0.0
    return embeds[-1:]


CHANGES = {
    'others': (lambda pipe, embeds: plus(embeds, 1), True),
    'written into': (lambda pipe, embeds: write(embeds, slice(1, 2)), True),
    'swapped halves': (lambda pipe, embeds: embeds.flip(0), True),
    'equal ones': (lambda pipe, embeds: embeds.clone(), False),
    'another negative prompt': (
        lambda pipe, embeds: torch.cat([embeds[:1] + 1, embeds[1:]]),
        False,
    ),
    'negative prompt written into': (lambda pipe, embeds: write(embeds, slice(1)), False),
    'guidance off': (unguided, False),
}


@pytest.mark.parametrize(
    ('name', 'inference'),
    [*((name, False) for name in CHANGES), ('written into', True), ('equal ones', True)],
)
def test_embeddings_that_a_callback_changes_are_refused(name, inference):
    pipe, (change, refused) = tiny_stable_diffusion(), CHANGES[name]
    generate_changed = functools.partial(
        pipe, PROMPTS[0], num_inference_steps=3, **after_a_step('prompt_embeds', change)
    )
    with torch.inference_mode(inference):
        if refused:
            with (
                pytest.raises(ValueError, match=CHANGED),
                AttentionRecorder(pipe, PROMPTS[0], NOUNS[0]) as recorder,
            ):
                generate_changed()
            assert recorder.num_steps == 1
        with AttentionRecorder(pipe, PROMPTS[0], NOUNS[0], check_prompts=not refused) as recorder:
            generate_changed()
            assert recorder.num_steps == 3
            with torch.no_grad():
                [*pipe.text_encoder.parameters()][-1].add_(0.1)
            generate_changed()  # of the same prompts, encoded anew
    assert recorder.num_steps == 6


def other_list(pipe, embeds):
    """A list in which the last prompt has another's embeddings."""
    return [*embeds[:-1], embeds[-1] + 1]


#: Class, pipeline, options of its call, what a callback gets hold of and what it does with it.
OTHERWISE_NAMED = {
    'Llama of HiDream': (
        'HiDreamImagePipeline',
        tiny.tiny_hidream,
        SQUARE,
        'prompt_embeds_llama3',
        lambda pipe, embeds: plus(embeds.transpose(0, 1), -1).transpose(0, 1),
    ),
    'T5 of HunyuanDiT': (
        'HunyuanDiTPipeline',
        tiny.tiny_hunyuan_dit,
        dict(SQUARE, height=128, width=128, use_resolution_binning=False),
        'prompt_embeds_2',
        lambda pipe, embeds: plus(embeds, -1),
    ),
    "Stable Cascade's prior": (
        'StableCascadePriorPipeline',
        lambda: tiny.tiny_cascade('StableCascade').prior_pipe,
        dict(height=128, width=128, num_inference_steps=2),
        'text_encoder_hidden_states',
        lambda pipe, embeds: write(embeds),
    ),
    'a list of Z-Image': ('ZImagePipeline', tiny.tiny_z_image, SQUARE, 'prompt_embeds', other_list),
    'tensors in a list of Z-Image': (
        'ZImagePipeline',
        tiny.tiny_z_image,
        SQUARE,
        'prompt_embeds',
        lambda pipe, embeds: write(embeds, slice(5)),
    ),
    'ERNIE-Image': (
        'ErnieImagePipeline',
        tiny_transformers.tiny_ernie_image,
        dict(SQUARE, use_pe=False),
        'text_bth',
        lambda pipe, embeds: write(embeds),
    ),
}


@pytest.mark.parametrize('name', OTHERWISE_NAMED)
def test_changed_embeddings_of_other_names_are_refused(name):
    pipeline, make, options, tensor, change = OTHERWISE_NAMED[name]
    if not hasattr(diffusers, pipeline):
        pytest.skip(f'diffusers {diffusers.__version__} has no {pipeline}')
    pipe = make()
    with pytest.raises(ValueError, match=CHANGED), AttentionRecorder(pipe, PROMPTS, NOUNS):
        pipe(prompt=list(PROMPTS), **options, **after_a_step(tensor, change))


def test_lists_of_layers_with_rows_of_a_batch():
    """As Bria FIBO's text for each block."""
    watch, dims = EmbeddingWatch(), {'layers': 1, 'absent': 0}
    layers = [torch.zeros(4, 5, 2) for _ in range(3)]
    look = functools.partial(watch.check, dims=dims, rows=slice(2, 4), batch=4)
    look({'layers': layers, 'absent': None})
    layers[1][:2] += 1  # of other prompts
    look({'layers': [*layers], 'absent': None})
    layers[2][3] += torch.nan
    with pytest.raises(ValueError, match=CHANGED):
        look({'layers': layers, 'absent': None})
    with pytest.raises(ValueError, match=CHANGED):  # as diffusers' callback for several prompts
        look({'layers': [layer[-1:] for layer in layers], 'absent': None})
    watch.forget()
    for _ in range(2):
        look({'layers': [layer.clone() for layer in layers], 'absent': None})


# Stable Diffusion XL: two texts, one key ---------------------------------------------------------


@pytest.fixture(scope='module')
def sdxl():
    return tiny_stable_diffusion_xl()


@pytest.mark.parametrize('images', [1, 2])
def test_sdxl_with_another_second_prompt(sdxl, images):
    options = dict(
        prompt_2=SAME_PLACES,
        num_images_per_prompt=images,
        clip_skip=1,
        negative_prompt=['a bag'] * 2,
        negative_prompt_2=['a table'] * 2,
    )
    plain = generate(sdxl, PROMPTS, **options)
    with AttentionRecorder(
        sdxl, PROMPTS, NOUNS, num_images_per_prompt=images, call_options=dict(prompt_2=SAME_PLACES)
    ) as recorder:
        assert torch.equal(plain, generate(sdxl, PROMPTS, **options))
    with explicit_attention(sdxl) as seen:
        generate(sdxl, PROMPTS, **options)
    columns = [
        [[[place]] for place in places(PROMPTS[0], 'dog', 'sand')],
        [[[place]] for place in places(PROMPTS[1], 'cat', 'bird', 'tree')],
    ]
    expect(recorder.masks(), seen, columns, (8, 8), first_row=2 * images, images=images)
    assert recorder.left_out == []


@pytest.mark.parametrize(
    ('second', 'where'),
    [
        (
            'a dog on the sand',
            r'text_encoder has it at 3, text_encoder_2 has it at 2.*share one key',
        ),
        (
            'photo of the beach',
            "text_encoder_2 read prompt_2 'photo of the beach', which does not hold "
            'it exactly once',
        ),
        ('dog a dog on the sand', 'does not hold it exactly once'),
    ],
)
def test_sdxl_refuses_a_key_of_two_words(sdxl, second, where):
    prompt, span = PROMPTS[0], NOUNS[0][:1]
    with pytest.raises(NounAlignmentError, match=f"prompt 0: the noun 'dog' has no key.*{where}"):
        AttentionRecorder(sdxl, [prompt], [span], call_options=dict(prompt_2=second))
    # Whose place counts can be chosen.
    with AttentionRecorder(
        sdxl, [prompt], [span], call_options=dict(prompt_2=second), text_encoders=['text_encoder']
    ) as recorder:
        generate(sdxl, prompt, prompt_2=second)
    with explicit_attention(sdxl) as seen:
        generate(sdxl, prompt, prompt_2=second)
    expect(recorder.masks(), seen, [[[[3]]]], (8, 8), first_row=1)


def test_sdxl_with_words_after_the_nouns_only(sdxl):
    """The usual second prompt: the first and a style. A noun that stands twice keeps its place."""
    prompt = 'a dog on the dog bag'
    second, nouns = prompt + ' in blue', [[(13, 16)]]
    with AttentionRecorder(sdxl, [prompt], nouns, call_options={'prompt_2': [second]}) as recorder:
        generate(sdxl, prompt, second)  # by position
    with explicit_attention(sdxl) as seen:
        generate(sdxl, prompt, second)
    expect(recorder.masks(), seen, [[[[5]]]], (8, 8), first_row=1)


@pytest.mark.parametrize('how', ['keyword', 'position', 'only to the recorder', 'another'])
def test_a_second_prompt_that_the_recorder_was_not_told(sdxl, how):
    generate(sdxl, PROMPTS)
    hooks = hook_count(sdxl)  # that transformers 5 leaves in text encoders
    told = {'only to the recorder': SAME_PLACES, 'another': SAME_PLACES}.get(how)
    with pytest.raises(
        ValueError, match="text_encoder_2 encoded other prompts.*call_options={'prompt_2'"
    ):
        with AttentionRecorder(sdxl, PROMPTS, NOUNS, call_options=dict(prompt_2=told)):
            if how == 'position':
                generate(sdxl, PROMPTS, SAME_PLACES)
            elif how == 'only to the recorder':
                generate(sdxl, PROMPTS)
            else:
                generate(sdxl, PROMPTS, prompt_2=SAME_PLACES[::-1])
    assert hook_count(sdxl) == hooks


@pytest.mark.parametrize('empty', [None, '', []])
def test_a_second_prompt_of_nothing_is_the_first(sdxl, empty):
    with AttentionRecorder(sdxl, PROMPTS, NOUNS, call_options=dict(prompt_2=empty)) as recorder:
        generate(sdxl, PROMPTS, prompt_2=empty)
    assert recorder.num_steps == 2


def test_second_prompts_of_another_number(sdxl):
    for second in (['a dog'], ['a dog'] * 3, 'a dog', ['a dog', None]):
        with pytest.raises(ValueError, match='prompt_2 must hold a text for each prompt .2.'):
            AttentionRecorder(sdxl, PROMPTS, NOUNS, call_options=dict(prompt_2=second))


def test_options_that_contradict_the_recorder(sdxl):
    for options, match in (
        (dict(prompt=['a cat', 'a dog']), 'call_options have prompt='),
        (dict(num_images_per_prompt=3), 'have num_images_per_prompt=3'),
        (dict(prompt_embeds=torch.zeros(2, 77, 64)), 'has prompt_embeds.*col'),
    ):
        with pytest.raises(ValueError, match=match):
            AttentionRecorder(sdxl, PROMPTS, NOUNS, call_options=options)
    AttentionRecorder(
        sdxl, PROMPTS, NOUNS, call_options=dict(prompt=PROMPTS, num_images_per_prompt=1)
    )


def test_the_refiner_has_the_second_text_encoder_alone(sdxl):
    """It reads ``prompt``, and ``prompt_2`` isn't looked at."""
    pipe = tiny_stable_diffusion_xl()
    pipe.tokenizer = pipe.text_encoder = None
    AttentionRecorder(pipe, PROMPTS, NOUNS, call_options=dict(prompt_2=['a dog'] * 2))
    with pytest.raises(ValueError, match='text_encoder_2 encoded other prompts'):
        with AttentionRecorder(pipe, PROMPTS, NOUNS):
            generate(pipe, SAME_PLACES)


def test_sdxl_prompt_that_is_cut_off_in_one_text(sdxl):
    prompt, second = 'a dog', ' '.join(['the'] * 80) + ' dog'
    with pytest.raises(NounAlignmentError, match='at 2, text_encoder_2 cuts it off'):
        AttentionRecorder(sdxl, [prompt], [[(2, 5)]], call_options=dict(prompt_2=second))


def test_cut_off_in_both_texts(sdxl):
    prompt = ' '.join(['a'] * 80) + ' dog'
    second, noun = 'the ' + prompt, [[(len(prompt) - 3, len(prompt))]]
    with pytest.raises(NounTruncatedError, match="prompt 0.*'dog'.*cut off"):
        AttentionRecorder(sdxl, [prompt], noun, call_options=dict(prompt_2=second))
    with AttentionRecorder(
        sdxl, [prompt], noun, call_options=dict(prompt_2=second), truncated='skip'
    ) as recorder:
        generate(sdxl, prompt, prompt_2=second)
    assert recorder.truncated == [(0, 0)] and float(recorder.masks()[0].abs().max()) == 0


# Stable Diffusion 3: T5's keys are its own -------------------------------------------------------


def sd3_attention(pipe):
    return attention_of(pipe.transformer, block_attention, functools.partial(sequence, text=333))


@pytest.mark.parametrize(
    ('second', 'third', 'columns', 'left_out'),
    [
        # Each noun at its own place of T5's text.
        (
            None,
            ['the photo of the red dog', 'sand in a bag with the blue cat'],
            [[[[3], [77 + 5]]], [[[5], [77 + 7]]]],
            [],
        ),
        # CLIP's key would be two words': T5 alone.
        (
            ['a dog', 'a cat'],
            None,
            [[[[77 + 2]]], [[[77 + 4]]]],
            [(0, 'at 3, text_encoder_2 has it at 2'), (1, 'at 5, text_encoder_2 has it at 2')],
        ),
        # T5's text is without the first noun and has the second twice: CLIP alone.
        (
            None,
            ['the beach', 'a cat and a cat'],
            [[[[3]]], [[[5]]]],
            [
                (0, "text_encoder_3 read prompt_3 'the beach'"),
                (1, "read prompt_3 'a cat and a cat'"),
            ],
        ),
    ],
)
def test_stable_diffusion_3_with_other_prompts(second, third, columns, left_out):
    pipe = tiny.tiny_stable_diffusion_3()
    prompts = PROMPTS if second is None else ['a red dog', 'the photo of a cat']
    nouns = [spans(prompts[0], 'dog'), spans(prompts[1], 'cat')]
    options = dict(SQUARE, prompt_2=second, prompt_3=third)
    with (
        AttentionRecorder(
            pipe, prompts, nouns, call_options=dict(prompt_2=second, prompt_3=third)
        ) as recorder,
        sd3_attention(pipe) as seen,
    ):
        generate(pipe, prompts, **options)
    expect(recorder.masks(), seen, columns, (8, 8))
    assert [(prompt, noun) for prompt, noun, _ in recorder.left_out] == [
        (prompt, 0) for prompt, _ in left_out
    ]
    for (_, _, reason), (_, part) in zip(recorder.left_out, left_out):
        assert part in reason
    with pytest.raises(ValueError, match='text_encoder_[23] encoded other prompts'):
        with AttentionRecorder(pipe, prompts, nouns):
            generate(pipe, prompts, **options)


def test_a_noun_that_one_encoder_cuts_off_is_said():
    pipe = tiny.tiny_stable_diffusion_3()
    prompt = ' '.join(['a'] * 80) + ' dog'
    recorder = AttentionRecorder(pipe, [prompt], [[(len(prompt) - 3, len(prompt))]])
    assert recorder.left_out == [(0, 0, 'text_encoder and text_encoder_2 cut it off')]


# Flux: T5 reads the second prompt ----------------------------------------------------------------


def test_flux_with_another_second_prompt():
    pipe = tiny.tiny_flux()
    second = ['sand with the blue dog', 'bird in a sky and a cat on a bag']
    nouns = [spans(PROMPTS[0], 'dog', 'sand'), spans(PROMPTS[1], 'cat', 'bird')]
    with (
        AttentionRecorder(pipe, PROMPTS, nouns, call_options=dict(prompt_2=second)) as recorder,
        attention_of(
            pipe.transformer, block_attention, functools.partial(sequence, text=512)
        ) as seen,
    ):
        generate(pipe, PROMPTS, second, **SQUARE)
    expect(recorder.masks(), seen, [[[[4]], [[0]]], [[[6]], [[0]]]], (8, 8), first_row=0)
    # Spans of the second prompt itself are as good: the first one makes no keys.
    with AttentionRecorder(pipe, second, [spans(second[0], 'dog'), []]) as recorder:
        generate(pipe, PROMPTS, second, **SQUARE)
    np.testing.assert_allclose(recorder.masks()[0][0], mean_map(seen, 0, [4], (8, 8)), atol=1e-6)
    with pytest.raises(NounAlignmentError, match="noun 'tree' has no key of its own"):
        AttentionRecorder(pipe, PROMPTS, NOUNS, call_options=dict(prompt_2=second))
    with pytest.raises(ValueError, match='text_encoder_2 encoded other prompts'):
        with AttentionRecorder(pipe, PROMPTS, NOUNS):
            generate(pipe, PROMPTS, second, **SQUARE)


# Textual inversion: a placeholder becomes several tokens -----------------------------------------


def teach(pipe, token, vectors, second=None):
    """Loads a placeholder of several vectors, for both text encoders or for the first alone."""
    generator = torch.Generator().manual_seed(5)
    pipe.load_textual_inversion(torch.randn(vectors, 32, generator=generator), token=token)
    if second:
        pipe.load_textual_inversion(
            torch.randn(second, 32, generator=generator),
            token=token,
            text_encoder=pipe.text_encoder_2,
            tokenizer=pipe.tokenizer_2,
        )


@pytest.mark.parametrize('fast', [False, True])
def test_textual_inversion_with_several_vectors(fast):
    pipe = tiny_stable_diffusion(fast_tokenizer=fast)
    teach(pipe, '<toy>', 3)
    teach(pipe, '<style>', 1)
    prompts = ['a <toy> on the <style> sand', '<toy> and a dog with a <toy>']
    nouns = [[(2, 7), (23, 27)], [(0, 5), (12, 15), (23, 28)]]
    columns = [[[[2, 3, 4]], [[8]]], [[[1, 2, 3]], [[6]], [[9, 10, 11]]]]
    with AttentionRecorder(pipe, prompts, nouns) as recorder:
        generate(pipe, prompts)
    with explicit_attention(pipe) as seen:
        generate(pipe, prompts)
    expect(recorder.masks(), seen, columns, (16, 16))
    # The placeholder's middle, and a noun of two words that begins with it.
    for span, tokens in (((3, 6), [1, 2, 3]), ((0, 9), [1, 2, 3, 4])):
        with AttentionRecorder(pipe, ['<toy> dog on the sand'], [[span]]) as recorder:
            generate(pipe, ['<toy> dog on the sand'])
        with explicit_attention(pipe) as seen:
            generate(pipe, ['<toy> dog on the sand'])
        expect(recorder.masks(), seen, [[[tokens]]], (16, 16), first_row=1)


def test_textual_inversion_grows_a_prompt_past_the_end():
    pipe = tiny_stable_diffusion()
    teach(pipe, '<toy>', 5)
    prompt = ' '.join(['<toy>'] * 15) + ' a dog'
    recorder = AttentionRecorder(
        pipe, [prompt], [[(len(prompt) - 3, len(prompt))]], truncated='skip'
    )
    assert recorder.truncated == [(0, 0)]


def test_textual_inversion_of_both_text_encoders():
    pipe = tiny_stable_diffusion_xl()
    teach(pipe, '<toy>', 3, second=3)
    prompt, nouns = 'a <toy> on the sand', [[(2, 7), (15, 19)]]
    with AttentionRecorder(pipe, [prompt], nouns) as recorder:
        generate(pipe, prompt)
    with explicit_attention(pipe) as seen:
        generate(pipe, prompt)
    expect(recorder.masks(), seen, [[[[2, 3, 4]], [[7]]]], (8, 8), first_row=1)


def test_textual_inversion_of_another_length_in_the_second_text_encoder():
    pipe = tiny_stable_diffusion_xl()
    teach(pipe, '<toy>', 3, second=2)
    with pytest.raises(
        NounAlignmentError,
        match="'sand' has no key of its own: text_encoder has it at 7, text_encoder_2 has it at 6",
    ):
        AttentionRecorder(pipe, ['a <toy> on the sand'], [[(15, 19)]])
    # Nouns before it stand where they stood.
    AttentionRecorder(pipe, ['a dog on the <toy>'], [[(2, 5)]])


# Embeddings made elsewhere -----------------------------------------------------------------------


def embeddings_of(pipe, prompts, scale=1.0):
    prompt, negative = pipe.encode_prompt(prompts, 'cpu', 1, True)[:2]
    return dict(prompt_embeds=prompt * scale, negative_prompt_embeds=negative)


def test_embeddings_made_elsewhere():
    pipe = tiny_stable_diffusion()
    options = embeddings_of(pipe, PROMPTS, 1.5)
    for some in (options, {'prompt_embeds': options['prompt_embeds']}):
        with pytest.raises(
            ValueError,
            match='text_encoder encoded no prompt inside the with block'
            '.*columns=.*check_prompts=False',
        ):
            with AttentionRecorder(pipe, PROMPTS, NOUNS):
                generate(pipe, **some)
    columns = [[[3], [6]], [[5], [9, 8], [12]]]
    with explicit_attention(pipe) as seen:
        generate(pipe, **options)
    with AttentionRecorder(pipe, ['', ''], NOUNS, columns=columns) as recorder:
        generate(pipe, **options)
    expect(recorder.masks(), seen, [[[place] for place in row] for row in columns], (16, 16))
    with AttentionRecorder(pipe, PROMPTS, NOUNS, check_prompts=False) as unchecked:
        generate(pipe, **options)
    assert torch.equal(recorder.masks()[0], unchecked.masks()[0])


def test_a_pipeline_without_its_text_encoder():
    pipe = tiny_stable_diffusion()
    options = embeddings_of(pipe, PROMPTS)
    with AttentionRecorder(pipe, PROMPTS, NOUNS) as usual:
        generate(pipe, PROMPTS)
    pipe.text_encoder = None
    with pytest.raises(ValueError, match='text_encoder encoded no prompt inside the with block'):
        with AttentionRecorder(pipe, PROMPTS, NOUNS):
            generate(pipe, **options)
    with AttentionRecorder(pipe, PROMPTS, NOUNS, check_prompts=False) as recorder:
        generate(pipe, **options)
    for mask, expected in zip(recorder.masks(), usual.masks()):
        torch.testing.assert_close(mask, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    'columns',
    [
        [np.array([2, 3]), [np.int64(5)]],
        [list(np.array([3, 2])), (5,)],
        (torch.tensor([2, 3]), [torch.tensor(5)]),
        [range(2, 4), {5}],
    ],
)
def test_columns_of_any_whole_numbers(columns):
    pipe = tiny_stable_diffusion()
    nouns = [('dog', 2), 'a cat']
    for prompts, nouns_, columns_ in (('', nouns, columns), ([''], [nouns], [columns])):
        recorder = AttentionRecorder(pipe, prompts, nouns_, columns=columns_)
        assert recorder._targets.positions == ((((2, 3),), ((5,),)),)
        places_ = [place for row in recorder._targets.columns for place in row]
        assert {*map(type, places_)} == {int}
        assert recorder._targets.names == [['dog', 'a cat']]
    array = np.array([[[2, 3], [4, 5]]])
    recorder = AttentionRecorder(pipe, [''], [nouns], columns=array)
    assert recorder._targets.columns == [[2, 3, 4, 5]]


def test_columns_are_checked():
    pipe = tiny_stable_diffusion()
    for columns in (5, [5, 5], [[[1], [2]], 'dog'], np.array(5)):
        with pytest.raises(ValueError, match='columns must hold places for each noun'):
            AttentionRecorder(pipe, PROMPTS, NOUNS, columns=columns)
    for nouns in (None, ['dog', 'auto'], [['dog']]):
        with pytest.raises(ValueError, match='give a list of the nouns of each prompt too'):
            AttentionRecorder(pipe, PROMPTS, nouns, columns=[[[1]], [[2]]])
    with pytest.raises(TypeError, match='a noun must be a word'):
        AttentionRecorder(pipe, 'a dog', [5], columns=[[1]])
    for columns in ([[[1], [2]]], [[[1]], [[1], [2], [3]]]):
        with pytest.raises(ValueError, match='columns must hold places for each noun'):
            AttentionRecorder(pipe, PROMPTS, NOUNS, columns=columns)
    wrong = ([], [-1], [1.0], [True], [2**40], ['1'], 1, np.array([1.0]), np.array([True]), [[1]])
    for places_ in wrong:
        with pytest.raises(ValueError, match='columns must be numbers of text keys'):
            AttentionRecorder(pipe, PROMPTS[:1], [NOUNS[0][:1]], columns=[[places_]])
    with pytest.raises(ValueError, match='give a list of the nouns of each prompt too'):
        AttentionRecorder(pipe, 'a dog', columns=[[1], [2], [3], [4]])
    with pytest.raises(ValueError, match='hold only 77 text keys'):
        with AttentionRecorder(pipe, PROMPTS[:1], [NOUNS[0][:1]], columns=[[[77]]]):
            generate(pipe, PROMPTS[:1])


@pytest.mark.parametrize('in_place', [True, False])
def test_a_compiled_text_encoder_is_watched_from_outside(in_place):
    pipe, options = tiny_stable_diffusion(), dict(backend='eager', fullgraph=True)
    with AttentionRecorder(pipe, PROMPTS[:1], NOUNS[:1]) as usual:
        generate(pipe, PROMPTS[:1])
    if in_place:
        pipe.text_encoder.compile(**options)
    else:
        pipe.text_encoder = torch.compile(pipe.text_encoder, **options)
    before = vars(pipe.text_encoder)['_compiled_call_impl' if in_place else 'forward']
    generate(pipe, PROMPTS[:1])
    with torch.compiler.set_stance('fail_on_recompile'):
        with AttentionRecorder(pipe, PROMPTS[:1], NOUNS[:1]) as recorder:
            generate(pipe, PROMPTS[:1])
        with pytest.raises(ValueError, match='encoded other prompts'):
            with AttentionRecorder(pipe, PROMPTS[:1], NOUNS[:1]):
                generate(pipe, PROMPTS[1:])
    torch.testing.assert_close(recorder.masks()[0], usual.masks()[0])
    assert vars(pipe.text_encoder)['_compiled_call_impl' if in_place else 'forward'] is before


def test_a_second_call_with_other_prompts():
    """Each call is checked, not the first alone."""
    pipe = tiny_stable_diffusion()
    for second in (['a dog', 'a cat'], PROMPTS[::-1]):
        with pytest.raises(ValueError, match='encoded other prompts'):
            with AttentionRecorder(pipe, PROMPTS, NOUNS):
                generate(pipe, PROMPTS)
                generate(pipe, second)
    embeddings = embeddings_of(pipe, ['a dog', 'a cat'])['prompt_embeds']
    with pytest.raises(ValueError, match='encoded no prompt'):
        with AttentionRecorder(pipe, PROMPTS, NOUNS):
            generate(pipe, PROMPTS)
            generate(pipe, prompt_embeds=embeddings)


# Spellings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('prompt', 'noun', 'columns'),
    [
        ('  a   RED\tDog\non the sand', 'Dog', [3]),
        ('a (dog:1.3) on the sand', 'dog', [3]),
        ('((a)) [dog] AND sand', 'dog', None),
        ('a ｄog on', 'ｄog', None),
        ('a do\u0308g on the sand', 'sand', None),
    ],
)
@pytest.mark.parametrize('make', [tiny_stable_diffusion, tiny_stable_diffusion_xl])
def test_spellings_of_a_prompt(make, prompt, noun, columns):
    pipe, start = make(), prompt.index(noun)
    if columns is None:  # by what the pieces read
        ids = pipe.tokenizer(prompt).input_ids
        want = pipe.tokenizer(noun, add_special_tokens=False).input_ids
        columns = next(
            list(range(place, place + len(want)))
            for place in range(len(ids))
            if ids[place : place + len(want)] == want
        )
    size = (16, 16) if make is tiny_stable_diffusion else (8, 8)
    with AttentionRecorder(pipe, [prompt], [[(start, start + len(noun))]]) as recorder:
        generate(pipe, prompt)
    with explicit_attention(pipe) as seen:
        generate(pipe, prompt)
    expect(recorder.masks(), seen, [[[columns]]], size, first_row=1)


@pytest.mark.parametrize(
    ('prompt', 'span', 'text', 'found'),
    [
        ('a dog', (2, 5), 'A  big Dog.', (7, 10)),
        ('a fire engine', (2, 13), 'the fire\nengine', (4, 15)),
        ('a dog', (2, 5), 'dogs and a hotdog', None),
        ('a dog', (2, 5), 'a dogma', None),
        ('a dog and a dog', (2, 5), 'a dog and a dog, at night', (2, 5)),
        ('a dog and a dog', (12, 15), 'A Dog and a dog, at night', (12, 15)),
        ('a dog and a dog', (12, 15), 'at night a dog and a dog', None),
        ('a <toy>', (2, 7), 'the <toy>', (4, 9)),
        ('a dog', (2, 5), '', None),
    ],
)
def test_find_again(prompt, span, text, found):
    assert find_again(prompt, span, text) == found
