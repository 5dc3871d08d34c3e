"""Two prompts of words that are single tokens of every tiny tokenizer, and their recording checked.

A noun's column is counted by hand: `word_place` plus what stands before.
"""

from __future__ import annotations

import functools
import inspect
import re

import numpy as np
import torch

from freeatm_mm.attention import AttentionRecorder
from freeatm_mm.attention.recording import generated_images
from helpers.attention_reference import mean_map

PROMPTS = ['a red dog on the sand', 'a photo of a cat and a blue bird on the tree']


def spans(prompt, *words):
    return [(prompt.index(word), prompt.index(word) + len(word)) for word in words]


NOUNS = [spans(PROMPTS[0], 'dog', 'sand'), spans(PROMPTS[1], 'cat', 'bird', 'tree')]


def word_place(prompt, span):
    """Which word of the prompt a span is, all of them single tokens."""
    return len(prompt[: span[0]].split())


SQUARE = dict(num_inference_steps=2, height=64, width=64, output_type='pt')


def block_attention(name):
    return re.search(r'blocks\.\d+\.attn$', name) is not None


def attn2(name):
    return name.endswith('.attn2')


def images_of(pipe, images=1, seed=1, prompts=PROMPTS, **options):
    """Draws prompts, always the same images."""
    unit = 'videos' if 'num_frames' in options else 'images'
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for what a pipeline takes at random without its generator
        out = pipe(
            prompt=list(prompts),
            generator=torch.Generator().manual_seed(seed),
            **({f'num_{unit}_per_prompt': images} if images > 1 else {}),
            **options,
        )
    prior = getattr(out, 'image_embeddings', None)
    generated = generated_images(out) if prior is None else prior
    return torch.as_tensor(np.asarray(generated) if isinstance(generated, list) else generated)


def hook_count(whole):
    """Counts the forward hooks of a module, or of all modules of a pipeline."""
    modules = [whole] if isinstance(whole, torch.nn.Module) else whole.components.values()
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks)
        for module in modules
        if isinstance(module, torch.nn.Module)
        for part in module.modules()
    )


def check(
    pipe,
    reference,
    columns,
    size,
    *,
    images=1,
    first_row=0,
    probability='joint',
    text_keys=None,
    options=None,
    recorder_options=None,
    expected_steps=None,
    calls=slice(None),
    in_turn=False,
):
    """Checks masks and images of a run with the recorder against runs without it.

    Args:
        reference: Makes a context manager that collects ``(name, probabilities)``, text keys first.
        columns: ``(word place) -> key columns``, a tuple for each text encoder; or ``(word place,
            prompt) -> ...``.
        size: Of the largest map.
        first_row: First conditional row of the batch.
        text_keys: Renormalise over so many keys.
        options: Arguments of the pipeline's call.
        calls: Which denoiser calls are the conditional ones.
        in_turn: Whether the images come prompt after prompt rather than side by side.
    """
    generate = functools.partial(images_of, pipe, images, **(options or {}))
    plain = generate()
    hooks = hook_count(pipe)  # transformers may leave some of its own
    with AttentionRecorder(
        pipe,
        PROMPTS,
        NOUNS,
        num_images_per_prompt=images,
        probability=probability,
        **(recorder_options or {}),
    ) as recorder:
        generated = generate()
    assert torch.equal(plain, generated)
    assert hook_count(pipe) == hooks
    if expected_steps is not None:
        assert recorder.num_steps == expected_steps
    with reference() as seen:
        generate()
    takes_prompt = len(inspect.signature(columns).parameters) > 1
    places = columns if takes_prompt else lambda word, prompt: columns(word)
    layers = len(recorder.layers)
    assert len(seen) % layers == 0
    by_call = [seen[start : start + layers] for start in range(0, len(seen), layers)]
    seen = [item for call in by_call[calls] for item in call]
    masks = recorder.masks()
    assert len(masks) == len(PROMPTS) * images
    for image, mask in enumerate(masks):
        index = image % len(PROMPTS) if in_turn else image // images
        prompt, nouns = PROMPTS[index], NOUNS[index]
        assert mask.shape == (len(nouns), *size) and mask.dtype == torch.float32
        for noun, span in enumerate(nouns):
            expected = np.mean(
                [
                    mean_map(seen, first_row + image, tokens, size, text_keys)
                    for tokens in places(word_place(prompt, span), prompt)
                ],
                axis=0,
            )
            np.testing.assert_allclose(mask[noun].numpy(), expected, rtol=0, atol=1e-6)
            # A flat map would fit any noun. (Sana and Kandinsky 3 of diffusers 0.35 give the second
            # image of a prompt the next prompt's mask, which may hide the noun.)
            assert images > 1 or expected.std() > 1e-9
    return recorder
