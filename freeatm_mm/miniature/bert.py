"""A small BERT of the miniature world for BLIP to start from, as the paper's starts from BERT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    get_cosine_schedule_with_warmup,
)

from freeatm_mm.errors import InputError
from freeatm_mm.ops.position import WHOLE_VIEW, PlacedObject, PositionPrompts
from freeatm_mm.progress import progress_bar
from freeatm_mm.prompts import PromptRecord

__all__ = ['make_texts', 'train_bert']


def make_texts(records: Iterable[PromptRecord], seed: int = 0) -> list[str]:
    """Write captions as BLIP reads them, half of them with position prompts of drawn blocks.

    Words and template are known to the BERT then, as English is to the paper's; where anything is
    in a picture is not, as there are no pictures.

    Args:
        records: The prompts of the world.
        seed: Of the blocks.
    """
    rng, prompts = np.random.default_rng(seed), PositionPrompts()
    texts = []
    for record in records:
        told = record.nouns if rng.random() < 0.5 else ()
        objects = [
            PlacedObject(noun.text, np.array([[x, y, x, y]]) + [[-1e-6, -1e-6, 1e-6, 1e-6]])
            for noun in told
            for x, y in [rng.uniform(0.01, 0.99, 2)]
        ]
        text = prompts.join(record.prompt, objects, WHOLE_VIEW)
        texts.append(re.sub(r'[.!"()*#:;~\s]+', ' ', text.lower()).strip())  # as LAVIS cleans it
    return texts


def train_bert(
    texts: Sequence[str],
    tokenizer: str | Path,
    sizes: Mapping[str, Any],
    out: str | Path,
    steps: int = 2000,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train a BERT by masked language modelling and save it as transformers does.

    Args:
        texts: What it reads.
        tokenizer: Folder with its vocabulary, ``vocab.txt``.
        sizes: Entries of transformers' `BertConfig`, such as BLIP's ``model.bert``.
        out: Folder for the weights.
        steps: How many batches.
        batch_size: Texts in each.
        lr: Peak learning rate (AdamW; cosine, 5 percent warm-up).
        seed: Of weights, order and masks.

    Returns:
        The loss of each step, in nats a masked token.

    Raises:
        InputError: If a text has a word that the vocabulary lacks, or the loss is not finite.
    """
    words = BertTokenizer(str(Path(tokenizer, 'vocab.txt')))
    tokens = words(list(texts), return_attention_mask=False, return_token_type_ids=False).input_ids
    for text, ids in zip(texts, tokens):
        if words.unk_token_id in ids:
            raise InputError(f'the vocabulary in {tokenizer} lacks a word of {text!r}')
    torch.manual_seed(seed)
    model = BertForMaskedLM(BertConfig(vocab_size=len(words), **sizes))
    collate = DataCollatorForLanguageModeling(words, mlm_probability=0.15)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    losses = []
    for _ in progress_bar(range(steps), 'training BERT', mininterval=2.0):
        picked = torch.randint(len(tokens), (batch_size,)).tolist()
        loss = model(**collate([{'input_ids': tokens[number]} for number in picked])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss))
    if not np.isfinite(losses).all():
        raise InputError('the loss of BERT is NaN or infinite: choose a lower rate')
    model.save_pretrained(out)
    return losses
