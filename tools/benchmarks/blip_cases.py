"""What position prompts cost: a training step and loading, against LAVIS's own in the same run."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lavis.models.blip_models.blip_pretrain import BlipPretrain
from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageTrainProcessor
from pretraining_cases import alternate
from torch.utils.data import default_collate

from freeatm_mm.lavis_ext.builders import FreeATMPretrainBuilder
from freeatm_mm.lavis_ext.datasets import FreeATMPretrainDataset
from freeatm_mm.lavis_ext.launch import load_config
from freeatm_mm.lavis_ext.models import FreeATMBlipPretrain

__all__ = ['TARGET', 'benchmark_blip']

TARGET = 1.02
"""The largest ratio of a step, ours to LAVIS's, at equal text length."""
_LAVIS_LENGTH = 30  # LAVIS's own max_txt_len


def _lavis_model(cfg, length: int) -> BlipPretrain:
    """LAVIS's own model of the same sizes, with what it would download handed over."""
    ours = FreeATMBlipPretrain.from_config(cfg)
    with (
        mock.patch.object(BlipPretrain, 'init_tokenizer', lambda self: ours.tokenizer),
        redirect_stdout(io.StringIO()),
    ):  # LAVIS prints a line for each layer that it ties
        return BlipPretrain(
            copy.deepcopy(ours.visual_encoder),
            copy.deepcopy(ours.text_encoder),
            copy.deepcopy(ours.text_decoder),
            queue_size=ours.queue_size,
            embed_dim=ours.vision_proj.out_features,
            max_txt_len=length,
        )


class _Steps:
    """A model, its optimiser and a batch."""

    def __init__(self, model: torch.nn.Module, batch: dict[str, Any], device: str) -> None:
        self.model = model.to(device).train()
        self.batch = {
            **batch,
            'image': batch['image'].to(device),
            'epoch': 0,
            'iters': 0,
            'num_iters_per_epoch': 1,
        }
        self.optimizer = torch.optim.AdamW(
            [value for value in model.parameters() if value.requires_grad], lr=1e-4
        )

    def __call__(self) -> None:
        self.model(self.batch)['loss'].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def benchmark_blip(
    config: str | Path, options: list[str], batch_size: int, repeats: int = 5, device: str = 'cpu'
) -> Iterator[dict[str, Any]]:
    """Measure what position prompts cost, case by case, by turns with LAVIS's own.

    Args:
        config: A pretraining yaml with position prompts.
        options: Changes to it; they name the store.
        batch_size: Images of a step, and images that one turn of the loading case loads.
        repeats: Pairs of each case.
        device: 'cpu' or 'cuda'.

    Yields:
        Rows of a result file: `step-blip` (equal text length), `step-blip-longer-text` (ours at
        the yaml's `max_txt_len`, LAVIS's at its 30) and `loading-blip`.
    """
    # LAVIS's own augmentation on both sides.
    cfg = load_config(
        config, [*options, 'datasets.freeatm_pretrain.vis_processor.train.augment=True']
    )
    data_cfg = cfg.datasets_cfg.freeatm_pretrain
    ours = FreeATMPretrainBuilder(data_cfg).build_datasets()['train']
    image_size = data_cfg.vis_processor.train.image_size
    lavis = FreeATMPretrainDataset(
        BlipImageTrainProcessor(image_size), BlipCaptionProcessor(), ours.sources
    )
    batches = [
        default_collate([data[number % len(data)] for number in range(batch_size)])
        for data in (lavis, ours)
    ]
    for case, length in (
        ('step-blip', cfg.model_cfg.max_txt_len),
        ('step-blip-longer-text', _LAVIS_LENGTH),
    ):
        baseline, mine = alternate(
            _Steps(_lavis_model(cfg.model_cfg, length), batches[0], device),
            _Steps(FreeATMBlipPretrain.from_config(cfg.model_cfg), batches[1], device),
            repeats,
            device,
        )
        target = {'target': TARGET} if case == 'step-blip' else {}
        yield _row(case, baseline, mine, target)

    def load(data: FreeATMPretrainDataset) -> None:
        for number in range(batch_size):
            data[number % len(data)]

    baseline, mine = alternate(lambda: load(lavis), lambda: load(ours), repeats)
    yield _row('loading-blip', baseline, mine, {})


def _row(case: str, baseline: float, ours: float, more: dict[str, float]) -> dict[str, Any]:
    return {
        'case': case,
        'ratio': ours / baseline,
        'baseline': baseline,
        'ours': ours,
        'unit': 's',
        **more,
    }
