"""Copying stores and checkpoints to the Hub, and drafts of their cards to look at before."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freeatm_mm.addresses import RemoteFolder, check_address
from freeatm_mm.attention.overlay import contact_sheet
from freeatm_mm.checkpoints import backbone_of, read_state
from freeatm_mm.downstream.conversion import (
    check_heads,
    convert_checkpoint,
    resnet_settings,
    resnet_shape,
    vit_shape,
)
from freeatm_mm.errors import InputError
from freeatm_mm.files import atomic_write, file_sha256
from freeatm_mm.hub.cards import Terms, checkpoint_card, store_card
from freeatm_mm.origins import origin_of
from freeatm_mm.store import Store
from freeatm_mm.store.transfer import TransferReport, push_store

__all__ = ['draft_checkpoint', 'draft_store', 'push_checkpoint_to_hub', 'push_store_to_hub']

#: Samples in the picture of a store's card.
PREVIEWS = 8


def draft_store(
    path: str | Path,
    address: str,
    out: str | Path,
    terms: Terms,
    *,
    previews: int = PREVIEWS,
    **options: Any,
) -> list[Path]:
    """Write what a store gets on the Hub beside its own files: `README.md` and `preview.jpg`.

    Args:
        path: The store's folder.
        address: Where it will be, `hf://datasets/USER/NAME`.
        out: The folder to write them into.
        terms: The licence.
        previews: Samples in the picture.
        options: `title` and `text` of `freeatm_mm.hub.store_card`.

    Returns:
        The files.

    Raises:
        StoreError: If there is no finished store, or a sample is damaged.
        InputError: If that is no address of a data set on the Hub.
    """
    address, store, out = _data_set(address), Store(path), Path(out)
    numbers = np.unique(np.linspace(0, len(store) - 1, previews).astype(int)).tolist()
    sheet = contact_sheet((store[number] for number in numbers), columns=2)
    files = [out / 'preview.jpg', out / 'README.md']
    with atomic_write(files[0]) as file:
        sheet.convert('RGB').save(file, 'JPEG', quality=90)
    with atomic_write(files[1]) as file:
        file.write(store_card(store, address, terms, **options).encode())
    return files


def push_store_to_hub(
    path: str | Path,
    address: str,
    terms: Terms,
    *,
    private: bool = False,
    replace: bool = False,
    jobs: int = 4,
    **options: Any,
) -> TransferReport:
    """Copy a store to a data set on the Hub, with its card.

    Args:
        path: The store's folder.
        address: `hf://datasets/USER/NAME`; the data set is made if there is none.
        terms: The licence.
        private: Whether a data set that is made can be seen by its owner alone.
        replace: As for `freeatm_mm.store.push_store`.
        jobs: Likewise.
        options: As for `draft_store`.

    Returns:
        What was copied.

    Raises:
        StoreError: As `freeatm_mm.store.push_store`.
        InputError: If the Hub refuses.
    """
    address = _data_set(address)
    with tempfile.TemporaryDirectory(prefix='freeatm-card-') as folder:
        files = draft_store(path, address, folder, terms, **options)
        RemoteFolder(address).create(private)
        beside = [(file, file.name) for file in files]
        return push_store(path, address, replace=replace, jobs=jobs, beside=beside)


def _data_set(address: str) -> str:
    address = check_address(address)
    if not address.startswith('hf://datasets/') or address.count('/') != 4 or '@' in address:
        raise InputError(f'{address} is no data set of the Hub: hf://datasets/USER/NAME')
    return address


def draft_checkpoint(
    checkpoint: str | Path,
    address: str,
    out: str | Path,
    terms: Terms,
    *,
    figures: Mapping[str, float] | None = None,
    data: Sequence[str] = (),
    heads: int | None = None,
    title: str | None = None,
    text: str | None = None,
) -> list[Path]:
    """Write a checkpoint's backbone in the layouts of other libraries, and its card.

    Args:
        checkpoint: Of a pretraining.
        address: Where it will be, `hf://USER/NAME`.
        out: The folder to write into.
        terms: The licence.
        figures: What was measured with it, name -> value.
        data: Data sets on the Hub that it was trained on, `USER/NAME`.
        heads: A ViT's attention heads, for transformers; see `convert_checkpoint`.
        title: Of the card; by default the last part of the address.
        text: What the card says first.

    Returns:
        The files: `model.safetensors` and `config.json` for transformers, `timm.safetensors`,
        `backbone.pth` for mmpretrain, mmdet and mmseg, as far as a library has such a model, and
        `README.md`.

    Raises:
        InputError: If the checkpoint can't be used, or no library has such a model.
    """
    address, out = _model(address), Path(out)
    content = read_state(checkpoint)
    backbone = backbone_of(content, checkpoint)
    check_heads(content, heads, checkpoint)
    made: dict[str, str] = {}
    reasons = []
    for layout, name, files in (
        ('huggingface', '', {'config.json': 'transformers', 'model.safetensors': 'transformers'}),
        ('timm', 'timm.safetensors', {'timm.safetensors': 'timm'}),
        ('mmdet', 'backbone.pth', {'backbone.pth': 'mmpretrain, mmdet, mmseg (tensors alone)'}),
    ):
        try:
            convert_checkpoint(checkpoint, out / name, layout, heads)
            made |= files
        except ValueError as error:
            reasons.append(f'{layout}: {error}')
    if not made:
        raise InputError(f'{checkpoint} fits no library ({"; ".join(reasons)})')
    for reason in reasons:
        print(f'left out: {reason}')
    meta = content.get('meta') if isinstance(content, Mapping) else None
    steps = meta.get('iter') if isinstance(meta, Mapping) else None
    card = checkpoint_card(
        origin_of(content),
        address,
        terms,
        made,
        architecture=_architecture(backbone),
        settings=resnet_settings(backbone, content),
        steps=steps if isinstance(steps, int) and steps > 0 else None,
        figures=figures,
        data=data,
        title=title,
        text=text,
    )
    with atomic_write(out / 'README.md') as file:
        file.write(card.encode())
    return [out / name for name in (*made, 'README.md')]


def _architecture(backbone: Mapping[str, Any]) -> str:
    """What the tensors are, in a few words."""
    if 'cls_token' in backbone:
        shape = vit_shape(backbone)
        return (
            f'ViT of {shape["num_hidden_layers"]} layers, {shape["hidden_size"]} channels, '
            f'patches of {shape["patch_size"]}'
        )
    shape = resnet_shape(backbone)
    per_block = 3 if shape['layer_type'] == 'bottleneck' else 2
    inner, taken = backbone['layer1.0.conv2.weight'].shape[:2]
    name = f'{"ResNet" if inner == taken else "ResNeXt"}-{per_block * sum(shape["depths"]) + 2}'
    usual = inner == 64 or inner != taken  # whose groups change the first stage's channels, too
    return name if usual else f'{name} of {inner} channels in its first stage'


def push_checkpoint_to_hub(
    checkpoint: str | Path, address: str, terms: Terms, *, private: bool = False, **options: Any
) -> TransferReport:
    """Copy a checkpoint's backbone to a model on the Hub, with its card.

    Args:
        checkpoint: Of a pretraining.
        address: `hf://USER/NAME`; the model is made if there is none.
        terms: The licence.
        private: Whether a model that is made can be seen by its owner alone.
        options: As for `draft_checkpoint`.

    Returns:
        What was copied.

    Raises:
        InputError: As `draft_checkpoint`, or if the Hub refuses.
    """
    address = _model(address)
    with tempfile.TemporaryDirectory(prefix='freeatm-card-') as folder:
        files = draft_checkpoint(checkpoint, address, folder, terms, **options)
        remote = RemoteFolder(address)
        remote.create(private)
        sums = {file: file_sha256(file) for file in files}
        due = [file for file in files if not remote.holds(file, file.name, sums[file])]
        remote.upload_many([(file, file.name, sums[file]) for file in due])
        size = sum(file.stat().st_size for file in due)
        return TransferReport(len(due), len(files) - len(due), size, complete=True)


def _model(address: str) -> str:
    address = check_address(address)
    if not address.startswith('hf://') or address.count('/') != 3 or '@' in address:
        raise InputError(f'{address} is no model of the Hub: hf://USER/NAME')
    return address
