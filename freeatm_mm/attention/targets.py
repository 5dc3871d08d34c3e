"""What a recorder is told to record: nouns of prompts, and where they stand among the text keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from freeatm_mm.attention.families import Call, Family
from freeatm_mm.attention.parts import whole_number
from freeatm_mm.attention.text import EncoderWatch, TextColumns, find_columns
from freeatm_mm.attention.words import noun_name, spans_of_prompts, word_spans

__all__ = ['Targets', 'check_not_cropped', 'find_targets']

MAX_IMAGES = 2**16
"""Generated at once."""
MAX_PROMPT = 10_000
"""Characters; text encoders keep 77 to some hundred tokens, and following a noun through cleaning
takes time that grows with the square."""
MAX_TEXT_KEYS = 2**20
"""More tokens than any text encoder keeps."""


@dataclass(frozen=True)
class Targets:
    """The nouns of some prompts and their columns among the text keys.

    Args:
        prompts: The prompts.
        nouns: For each prompt its nouns, as they were given or found.
        images_per_prompt: Images generated from each prompt.
        images_in_turn: Whether they come prompt after prompt rather than side by side.
        watches: What notices that the pipeline encodes something else.
        truncated: Pairs (prompt, noun) that the tokenizer cut off.
        left_out: Triples (prompt, noun, reason) whose columns leave out a text encoder.
        positions: For each prompt and noun the columns of its tokens, for each text encoder.
        words: For each prompt the columns of all its words, where these compete.
        columns: For each prompt all columns to record, each once, in order.
    """

    prompts: list[str]
    nouns: list[list[Any]]
    images_per_prompt: int
    images_in_turn: bool
    watches: tuple[EncoderWatch, ...]
    truncated: list[tuple[int, int]]
    left_out: list[tuple[int, int, str]]
    positions: Sequence[Sequence[Sequence[Sequence[int]]]]
    words: list[list[int]]
    columns: list[list[int]]

    @property
    def num_images(self) -> int:
        """Images that the prompts are generated into."""
        return len(self.prompts) * self.images_per_prompt

    @property
    def prompt_of_image(self) -> list[int]:
        """For each image the number of its prompt."""
        prompts = range(len(self.prompts))
        if self.images_in_turn:
            return [*prompts] * self.images_per_prompt
        return [prompt for prompt in prompts for _ in range(self.images_per_prompt)]

    @cached_property
    @torch.inference_mode(False)
    def columns_BT(self) -> Tensor:
        """All columns to record for each image, padded with column 0."""
        width = max(map(len, self.columns))
        rows = [[*columns, *[0] * (width - len(columns))] for columns in self.columns]
        return torch.tensor([rows[prompt] for prompt in self.prompt_of_image], dtype=torch.long)

    @property
    def names(self) -> list[list[str]]:
        """For each prompt the names of its nouns, as the prompt writes them."""
        return [
            [noun_name(prompt, noun) for noun in row]
            for prompt, row in zip(self.prompts, self.nouns)
        ]

    @cached_property
    def last_column(self) -> int:
        """The last column of all; -1 if there is none."""
        return max((columns[-1] for columns in self.columns if columns), default=-1)


def find_targets(
    call: Call,
    family: Family,
    prompts: str | Sequence[str],
    nouns: Any,
    *,
    images_per_prompt: int = 1,
    columns: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]] | None = None,
    check_prompts: bool = True,
    text_encoders: Sequence[str] | None = None,
    truncated: str = 'raise',
    words_compete: bool = False,
) -> Targets:
    """Find the nouns of some prompts among the text keys of a pipeline's call.

    Args:
        call: The call.
        family: The pipeline's family.
        prompts: As of `freeatm_mm.attention.AttentionRecorder`, like all that follow.
        nouns: As there.
        images_per_prompt: As there, ``num_images_per_prompt``.
        columns: As there.
        check_prompts: As there.
        text_encoders: As there.
        truncated: As there.
        words_compete: Whether the columns of all words are wanted too.

    Raises:
        TypeError: As there.
        ValueError: As there.
        ImportError: As there.
        NounTruncatedError: As there.
        NounAlignmentError: As there.
    """
    one_prompt = isinstance(prompts, str)
    if not isinstance(prompts, Iterable):
        raise TypeError(f'prompts must be a text or a list of texts, got {prompts!r}')
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    _check_prompts(prompts)
    whole_number(images_per_prompt, 'num_images_per_prompt', 1, MAX_IMAGES)
    whole_number(len(prompts) * images_per_prompt, 'the number of images', 1, MAX_IMAGES)
    _check_call(call, prompts, images_per_prompt)
    words: list[list[int]] = [[] for _ in prompts]
    if columns is None:
        nouns = spans_of_prompts(prompts, nouns, one_prompt)
        found = find_columns(
            call, family, prompts, nouns, text_encoders=text_encoders, truncated=truncated
        )
        if words_compete:
            words = _words(call, family, prompts, nouns, text_encoders)
    else:
        if words_compete:
            raise ValueError(
                "rescale='words' and maps='output' need the places of all words: give prompts "
                'and nouns rather than columns='
            )
        nouns = [nouns] if one_prompt else nouns
        _check_named(prompts, nouns)
        places: Any = [columns] if one_prompt else columns
        found = TextColumns(_given_columns(places, nouns))
    if (
        not check_prompts
        and columns is None
        and any(encoder.image_token for encoder in family.encoders)
    ):
        raise ValueError(
            f'check_prompts=False does not go with {type(call.pipe).__name__}, which puts '
            "images among the text: what its text encoder gets says where the nouns' keys are"
        )
    # Each image's token columns once, however many nouns share a token.
    wanted = [
        sorted({column for noun in row for columns in noun for column in columns} | set(others))
        for row, others in zip(found.positions, words)
    ]
    return Targets(
        prompts,
        [list(row) for row in nouns],
        images_per_prompt,
        family.images_in_turn,
        found.watches if check_prompts else (),
        list(found.truncated),
        list(found.left_out),
        found.positions,
        words,
        wanted,
    )


def _words(
    call: Call,
    family: Family,
    prompts: Sequence[str],
    nouns: Sequence[Sequence[Any]],
    text_encoders: Sequence[str] | None,
) -> list[list[int]]:
    """Find the columns of each prompt's words."""
    found = find_columns(
        call,
        family,
        prompts,
        [word_spans(prompt) if row else [] for prompt, row in zip(prompts, nouns)],
        text_encoders=text_encoders,
        truncated='skip',
        missing='skip',
    )
    return [
        sorted({column for word in row for columns in word for column in columns})
        for row in found.positions
    ]


def _check_prompts(prompts: Sequence[Any]) -> None:
    if not prompts:
        raise ValueError('no prompts were given')
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f'prompts must be strings, got {prompt!r}')
        if len(prompt) > MAX_PROMPT:
            raise ValueError(
                f'a prompt has {len(prompt)} characters, at most {MAX_PROMPT} are '
                f'taken; it begins {prompt[:40]!r}'
            )


def _check_call(call: Call, prompts: Sequence[str], images: int) -> None:
    """Refuse options of a pipeline's call that say something else than the recorder was told."""
    for name, told in (
        ('prompt', [list(prompts), *prompts[: 1 if len(prompts) == 1 else 0]]),
        ('num_images_per_prompt', [images]),
    ):
        value = call.given(name)
        if value is not None and all(value != other for other in told):
            raise ValueError(
                f'call_options have {name}={value!r}, but the recorder was given {told[0]!r}'
            )
    if call.given('padding_mask_crop') is not None:
        raise ValueError(
            "the pipeline's call has padding_mask_crop, with which it generates a part of the "
            'image and puts it back into the whole, so masks would not lie on their objects: crop '
            'the image yourself, and leave it out'
        )
    embeddings = [
        name
        for name in call.names
        if 'embeds' in name and 'negative' not in name and name.startswith('prompt')
    ]
    for name in embeddings:
        if call.given(name) is not None:
            raise ValueError(
                f"the pipeline's call has {name}, in which the nouns can't be looked for: leave it "
                'out, or use the recorder as a context manager and say with columns=... where '
                'they stand'
            )


def check_not_cropped(call: Call, size: tuple[int, int]) -> None:
    """Refuse a call whose images are cut from those that are generated.

    PixArt, Sana and PRX generate at the nearest of some shapes, and cut the image to the one asked.

    Args:
        call: The call.
        size: Height and width of the largest map.

    Raises:
        ValueError: If masks would be more than half a cell of their map off.
    """
    sides = [call.given(side) for side in ('height', 'width')]
    cuts = hasattr(getattr(call.pipe, 'image_processor', None), 'resize_and_crop_tensor')
    if (
        not cuts
        or not call.option('use_resolution_binning')
        or call.option('output_type') == 'latent'
        or not all(isinstance(side, int) and side > 0 for side in sides)
    ):
        return
    cell = max(side / cells for side, cells in zip(sides, size))
    if any(cell * cells - side > cell for side, cells in zip(sides, size)):
        raise ValueError(
            f'{type(call.pipe).__name__} generates at another shape than {sides[0]}x{sides[1]} '
            '(height x width) and cuts the image to it, so masks would not lie on their objects: '
            'give use_resolution_binning=False, or a size that it has'
        )


def _check_named(prompts: Sequence[str], nouns: Any) -> None:
    """Refuse nouns that don't say what each of the given columns is of."""
    rows = [] if isinstance(nouns, str) or not isinstance(nouns, Sequence) else nouns
    if len(rows) != len(prompts) or any(
        isinstance(row, str) or not isinstance(row, Sequence) for row in rows
    ):
        raise ValueError(
            'columns= says where the keys of each noun are: give a list of the nouns of each '
            f'prompt too, in the same order, got {nouns!r}'
        )
    for prompt, row in zip(prompts, rows):
        for noun in row:
            noun_name(prompt, noun)


def _given_columns(
    columns: Any, nouns: Sequence[Sequence[Any]]
) -> tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]:
    """Places of the nouns' tokens as the caller knows them, as one group of keys each."""
    rows = _as_lists(columns)
    if not isinstance(rows, list) or [
        len(row) if isinstance(row, list) else None for row in rows
    ] != [len(row) for row in nouns]:
        raise ValueError(
            'columns must hold places for each noun of each prompt, which have '
            f'{[len(row) for row in nouns]} nouns: got {columns!r}'
        )
    for row in rows:
        for places in row:
            if (
                not isinstance(places, list)
                or not places
                or not all(
                    isinstance(place, Integral)
                    and not isinstance(place, bool)
                    and 0 <= int(place) < MAX_TEXT_KEYS
                    for place in places
                )
            ):
                raise ValueError(
                    'columns must be numbers of text keys, whole ones from 0 to '
                    f'{MAX_TEXT_KEYS - 1} and at least one for each noun, got {places!r}'
                )
    return tuple(tuple((tuple(sorted({*map(int, places)})),) for places in row) for row in rows)


def _as_lists(values: Any) -> Any:
    """Nested iterables, arrays and tensors as nested lists."""
    if hasattr(values, 'tolist'):
        return values.tolist()
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping)):
        return [_as_lists(value) for value in values]
    return values
