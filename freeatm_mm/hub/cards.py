"""The cards: what a store or a checkpoint is, in the form that the Hub shows."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from freeatm_mm import __version__
from freeatm_mm.errors import InputError
from freeatm_mm.origins import Origin
from freeatm_mm.store import Store

__all__ = ['Terms', 'checkpoint_card', 'store_card']

#: Samples that are read to count the nouns, evenly spread over the store.
_COUNTED = 10_000
_MOST_NOUNS, _MOST_TEXT = 30, 200
_PAPER = 'https://arxiv.org/abs/2308.06739'


@dataclass(frozen=True)
class Terms:
    """Under which licence something is given, in the Hub's words.

    Args:
        license: The Hub's name of it, such as `cc-by-4.0`, `apache-2.0` or `other`.
        name: Its name, where it is `other`.
        link: Where its text is, where it is `other`.

    Raises:
        InputError: If that is no name, or an `other` licence has no name or link.
    """

    license: str
    name: str | None = None
    link: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r'[a-z0-9][a-z0-9.+-]{0,40}', self.license):
            raise InputError(
                f'{self.license!r} is no name of a licence as the Hub has them, such as cc-by-4.0, '
                'apache-2.0, or other'
            )
        if (self.license == 'other') != bool(self.name and self.link):
            raise InputError('a licence called other, and no other, has a name and a link')

    def fields(self) -> dict[str, Any]:
        """The fields of a card that say it."""
        named = {'license_name': self.name, 'license_link': self.link}
        return {'license': self.license, **{key: value for key, value in named.items() if value}}


def store_card(
    store: Store, address: str, terms: Terms, *, title: str | None = None, text: str | None = None
) -> str:
    """Write a store's card: its counts, nouns and settings, and how to read it.

    Args:
        store: The store.
        address: Where it will be, `hf://datasets/USER/NAME`.
        terms: The licence.
        title: By default the last part of the address.
        text: What to say first.

    Returns:
        The Markdown of `README.md`, with the fields that the Hub and `datasets` read.

    Raises:
        StoreError: If a sample is damaged.
    """
    from huggingface_hub import DatasetCardData

    count = len(store)
    looked_at = np.unique(np.linspace(0, count - 1, min(count, _COUNTED)).astype(int)).tolist()
    nouns: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    masks: Counter[str] = Counter()
    for start in range(0, len(looked_at), 64):
        for raw in store.read_many(looked_at[start : start + 64]):
            nouns.update(raw.names())
            for sizes_of, field in ((sizes, 'image'), (masks, 'masks')):
                size = raw.info.get(field, {})
                sizes_of[f'{size.get("width", "?")} x {size.get("height", "?")}'] += 1
    repo = address.removeprefix('hf://datasets/')
    title = title or repo.rpartition('/')[2]
    fields = DatasetCardData(
        **terms.fields(),
        pretty_name=title,
        task_categories=['image-segmentation', 'text-to-image'],
        tags=['webdataset', 'freeatm', 'attention-masks', 'synthetic'],
        size_categories=_size_category(count),
        annotations_creators='machine-generated',
        configs=[
            {
                'config_name': 'default',
                'data_files': [{'split': 'train', 'path': 'shard-*.tar'}],
            }
        ],
    )
    manifest = store.manifest
    return _template('store_card.md').render(
        fields=fields.to_yaml(),
        title=title,
        text=text,
        repo=repo,
        count=count,
        instances=manifest['nouns'],
        bytes=manifest['bytes'],
        shards=len(manifest['shards']),
        looked_at=len(looked_at),
        different=len(nouns),
        nouns=nouns.most_common(_MOST_NOUNS),
        sizes=[size for size, _ in sizes.most_common(3)],
        masks=[size for size, _ in masks.most_common(3)],
        settings=json.dumps(_without_places(store.config), indent=1, ensure_ascii=False),
        terms=terms,
        paper=_PAPER,
        version=__version__,
    )


def checkpoint_card(
    origin: Origin,
    address: str,
    terms: Terms,
    files: Mapping[str, str],
    *,
    architecture: str,
    settings: str = '',
    steps: int | None = None,
    figures: Mapping[str, float] | None = None,
    data: Sequence[str] = (),
    title: str | None = None,
    text: str | None = None,
) -> str:
    """Write a checkpoint's card: method, data, length, figures, and how to load it.

    Args:
        origin: What the checkpoint says of its pretraining.
        address: Where it will be, `hf://USER/NAME`.
        terms: The licence.
        files: Name of each file -> the library that reads it.
        architecture: Such as 'ResNet-50', for text and code.
        settings: What OpenMMLab's backbone must be given beside its depth.
        steps: How many steps were trained, if known.
        figures: What was measured, name -> value.
        data: Data sets on the Hub that it was trained on, `USER/NAME`.
        title: By default the last part of the address.
        text: What to say first.

    Returns:
        The Markdown of `README.md`.
    """
    from huggingface_hub import ModelCardData

    repo = address.removeprefix('hf://')
    title = title or repo.rpartition('/')[2]
    fields = ModelCardData(
        **terms.fields(),
        pipeline_tag='image-feature-extraction',
        library_name='transformers' if 'config.json' in files else None,
        tags=['freeatm', *([origin.method] if origin.method else [])],
        datasets=list(data) or None,
    )
    facts = {key: value for key, value in asdict(origin).items() if value is not None}
    return _template('checkpoint_card.md').render(
        fields=fields.to_yaml(),
        title=title,
        text=text,
        repo=repo,
        facts=facts,
        settings=settings,
        steps=steps,
        figures=figures or {},
        data=data,
        files=files,
        architecture=architecture,
        terms=terms,
        paper=_PAPER,
        version=__version__,
    )


def _template(name: str) -> Any:
    # Markdown, so not escaped as HTML: what comes as data goes through `plain`.
    environment = Environment(
        loader=PackageLoader('freeatm_mm.hub', '.'),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters['plain'] = _plain
    environment.filters['fenced'] = lambda text: text.replace('```', "'''")
    return environment.get_template(name)


def _plain(text: object) -> str:
    """A text that is neither HTML nor Markdown, on one line."""
    line = ' '.join(str(text).split())[:_MOST_TEXT]
    return re.sub(r'([\\`*_\[\]|#!~])', r'\\\1', html.escape(line, quote=False))


def _without_places(value: Any) -> Any:
    """Settings without the folders of the machine that they come from."""
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    if isinstance(value, str) and value.startswith(('/', '~')):
        return Path(value).name
    return value


def _size_category(count: int) -> str:
    names = ['1K', '10K', '100K', '1M', '10M', '100M', '1B', '10B', '100B', '1T']
    for power, name in enumerate(names):
        if count < 10 ** (power + 3):
            return f'{names[power - 1]}<n<{name}' if power else 'n<1K'
    return 'n>1T'
