"""A noun's cross-attention in BLIP, held to the noun's mask; and how often it points at the object.

While a caption is matched with its picture, each of its words looks at the picture's patches. Where
a mask says which patches a noun's object covers, the share of the noun's attention that lies on
them can be raised by a loss, and the patch of most attention can be looked up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from freeatm_mm.lavis_ext.datasets import batch_items

__all__ = [
    'Matching',
    'Pointing',
    'attention_of_nouns',
    'cross_layers',
    'find_words',
    'mask_consistency',
    'places_in_batch',
    'places_of',
    'point',
    'record_matching',
]

#: Counts as on the object even of attention that is all elsewhere, so that its gradient is finite.
_LEAST = 1e-6


class Matching(NamedTuple):
    """What a text encoder read and how its words looked at the picture.

    Args:
        ids: (B, L) the tokens' numbers.
        attention: Layer -> (B, heads, L, 1 + P) attention to the picture's [CLS] and P patches,
            whose sum is 1.
    """

    ids: Tensor
    attention: dict[int, Tensor]


def cross_layers(text_encoder: Any) -> list[int]:
    """Return the numbers of the layers of LAVIS's text encoder that look at the picture."""
    layers = enumerate(text_encoder.encoder.layer)
    return [number for number, layer in layers if hasattr(layer, 'crossattention')]


@contextmanager
def record_matching(text_encoder: Any, layers: Sequence[int]) -> Iterator[list[Matching]]:
    """Record each time that the text encoder reads texts with pictures.

    Args:
        text_encoder: LAVIS's `XBertEncoder`.
        layers: Numbers of the layers whose cross-attention is kept.

    Yields:
        A list that grows by a `Matching` with each such call, in their order: BLIP's pretraining
        matches the true pairs first. Nothing is computed otherwise than without recording.
    """
    calls: list[Matching] = []

    def begin(module: nn.Module, inputs: tuple, options: dict) -> None:
        if options.get('encoder_hidden_states') is not None:
            calls.append(Matching(inputs[0] if inputs else options['input_ids'], {}))

    def keep(number: int, probabilities: Tensor) -> None:
        calls[-1].attention[number] = probabilities

    def watch(number: int) -> Any:
        # What goes into its dropout are the probabilities, which LAVIS hands out nowhere else.
        dropout = text_encoder.encoder.layer[number].crossattention.self.dropout
        return dropout.register_forward_pre_hook(lambda module, inputs: keep(number, inputs[0]))

    hooks = [text_encoder.register_forward_pre_hook(begin, with_kwargs=True)]
    try:
        hooks += map(watch, layers)
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def find_words(
    ids: Sequence[int], word: Sequence[int], continuing: Collection[int] = ()
) -> list[range]:
    """Find a word in a text.

    Args:
        ids: The text's tokens.
        word: The word's tokens.
        continuing: The tokens that continue the word before them, as BERT's ##s does.

    Returns:
        The places of each of its occurrences, none where a longer word begins like it.
    """
    size = len(word)
    found = []
    for start in range(len(ids) - size + 1 if size else 0):
        after = ids[start + size] if start + size < len(ids) else None
        if list(ids[start : start + size]) == list(word) and after not in continuing:
            found.append(range(start, start + size))
    return found


def places_of(
    tokenizer: Any,
    texts: Sequence[Sequence[int]],
    samples: Sequence[int],
    nouns: Sequence,
    parts: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Find all tokens that write the nouns of a batch, in any of their spellings.

    Where one noun is written within a longer one of the same text, as the dog of a hot dog is, the
    longer one is meant.

    Args:
        tokenizer: A `CountingTokenizer`.
        texts: The tokens of each text.
        samples: The text that each of K nouns is in.
        nouns: The spellings of each.
        parts: For each text the number of the part that each token is in, as `spans_of_tokens` of
            the tokenizer gives it: a noun must be written within one of them, since the block of a
            position prompt is no object. `None` looks everywhere.

    Returns:
        Their places in their texts, in order, each once.
    """
    found = [
        [
            places
            for word in words
            for places in find_words(texts[sample], tokenizer.ids_of(word), tokenizer.continuing)
            if parts is None or _in_one_part(parts[sample][places.start : places.stop])
        ]
        for sample, words in zip(samples, nouns)
    ]
    longest: dict[tuple[int, int], int] = {}
    for sample, occurrences in zip(samples, found):
        for places in occurrences:
            for place in places:
                key = sample, place
                longest[key] = max(longest.get(key, 0), len(places))
    return [
        sorted(
            {
                place
                for places in occurrences
                if any(longest[sample, place] == len(places) for place in places)
                for place in places
            }
        )
        for sample, occurrences in zip(samples, found)
    ]


def _in_one_part(numbers: Sequence[int]) -> bool:
    return len(set(numbers)) == 1 and numbers[0] >= 0


def places_in_batch(tokenizer: Any, ids: Tensor, samples: Mapping[str, Any]) -> list[list[int]]:
    """Find all tokens that write the nouns of a batch of `FreeATMPretrainDataset`.

    Args:
        tokenizer: A `CountingTokenizer`.
        ids: (B, L) the tokens of its texts, which may be cut.
        samples: The batch, with masks; without its `noun_spans`, texts are looked at as a whole.

    Returns:
        As `places_of`.
    """
    parts = None
    if 'noun_spans' in samples:
        pairs = zip(samples['text_input'], samples['noun_spans'], strict=True)
        parts = [tokenizer.spans_of_tokens(text, spans) for text, spans in pairs]
    numbers = samples['noun_samples'].tolist()
    return places_of(tokenizer, ids.tolist(), numbers, samples['nouns'], parts)


def attention_of_nouns(
    attention: Tensor, samples: Sequence[int], places: Sequence[Sequence[int]]
) -> Tensor:
    """Mean attention of nouns to patches, over heads and the noun's tokens.

    Args:
        attention: (B, heads, L, 1 + P) of a `Matching`.
        samples: The text that each of K nouns is in.
        places: Its tokens there, one at least.

    Returns:
        (K, P) float32, each row of sum 1: the [CLS] token, which is no place, is left out.
    """
    patches = attention.mean(1)[:, :, 1:].float()
    rows = [patches[sample, list(there)].mean(0) for sample, there in zip(samples, places)]
    found = torch.stack(rows) if rows else patches.new_zeros(0, patches.shape[-1])
    return found / found.sum(1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)


def mask_consistency(attention: Tensor, masks: Tensor) -> Tensor:
    """Loss of attention that does not lie on its noun's object: minus the logarithm of what does.

    Args:
        attention: (K, P) from `attention_of_nouns`.
        masks: (K, P) share of each patch that the object covers, in [0, 1].

    Returns:
        The mean over nouns, at least 0; exactly 0 where there are none.
    """
    if not len(attention):
        return attention.sum()
    share = (attention * masks).sum(1)
    return -(_LEAST + (1 - _LEAST) * share).log().mean()


# --- pointing -------------------------------------------------------------------------------------


class Pointing(NamedTuple):
    """How often the patch that a noun looks at most lies on its object.

    Args:
        layer: The model's `mask_layer`.
        hits: Layer -> a bool for each noun that counts.
        centre: Whether the patch in the centre, or the one beyond it, lies on the object.
        covered: What share of all patches does: how often a patch drawn at random is right.
        nouns: All nouns that the masks are of, those of one name in a picture being one.
        unwritten: Those left out as the caption doesn't write them, or is cut before them.
        small: Those left out as their object covers no patch by half.
    """

    layer: int
    hits: dict[int, list[bool]]
    centre: list[bool]
    covered: list[float]
    nouns: int
    unwritten: int
    small: int

    def accuracy(self, layer: int) -> float:
        """Share of nouns whose patch of most attention is right."""
        return sum(self.hits[layer]) / max(len(self.hits[layer]), 1)


@torch.no_grad()
def point(model: Any, dataset: Any, batch_size: int = 64, limit: int | None = None) -> Pointing:
    """Let BLIP read captions with their pictures, and see which patches their nouns look at.

    Args:
        model: A `FreeATMBlipPretrain`, in evaluation mode.
        dataset: `FreeATMPretrainDataset` with `mask_grid`; its text should hold no prompts.
        batch_size: Pairs at a time.
        limit: So many pairs at most, from the first on.

    Returns:
        The hits of each layer that looks at pictures. A patch lies on an object that covers half of
        it at least.
    """
    device = next(model.parameters()).device
    layers = cross_layers(model.text_encoder)
    found = Pointing(model.mask_layer, {layer: [] for layer in layers}, [], [], 0, 0, 0)
    nouns = unwritten = small = 0
    count = len(dataset) if limit is None else min(limit, len(dataset))
    for start in range(0, count, batch_size):
        items = batch_items(dataset, range(start, min(start + batch_size, count)))
        batch = dataset.collater(items)
        calls = _read(model, batch['image'].to(device), batch['text_input'], layers)
        places = places_in_batch(model.tokenizer, calls.ids, batch)
        on_object = batch['noun_masks'].flatten(1) >= 0.5
        written = [number for number, there in enumerate(places) if there]
        shown = [number for number in written if on_object[number].any()]
        nouns += len(places)
        unwritten += len(places) - len(written)
        small += len(written) - len(shown)
        on_object, places = on_object[shown], [places[number] for number in shown]
        samples = batch['noun_samples'][shown].tolist()
        for layer in layers:
            looked = attention_of_nouns(calls.attention[layer], samples, places).argmax(1).cpu()
            found.hits[layer].extend(on_object[torch.arange(len(shown)), looked].tolist())
        rows = batch['noun_masks'].shape[-1]
        found.centre.extend(on_object[:, rows // 2 * rows + rows // 2].tolist())
        found.covered.extend(on_object.float().mean(1).tolist())
    return found._replace(nouns=nouns, unwritten=unwritten, small=small)


def _read(model: Any, images: Tensor, texts: Sequence[str], layers: Sequence[int]) -> Matching:
    """What BLIP's matching reads of true pairs."""
    pictures = model.visual_encoder.forward_features(images)
    tokens = model.tokenizer(
        list(texts),
        padding='longest',
        truncation=True,
        max_length=model.max_txt_len,
        return_tensors='pt',
    ).to(images.device)
    ids = tokens.input_ids.clone()
    ids[:, 0] = model.tokenizer.enc_token_id
    with record_matching(model.text_encoder, layers) as calls:
        model.text_encoder(
            ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=pictures,
            encoder_attention_mask=torch.ones(pictures.shape[:-1], dtype=torch.long).to(ids.device),
            return_dict=True,
        )
    return calls[0]
