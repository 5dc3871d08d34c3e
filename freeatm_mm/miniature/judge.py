"""Judging a generator of the miniature world.

Does it draw what the prompt names? A classifier trained on real scenes looks for the nouns in
generated images. Are its attention masks where the objects are? Real scenes are noised, the UNet
looks at them, and the recorded masks are compared with the exact ones.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import nn
from torchvision.models.resnet import BasicBlock
from tqdm import tqdm

from freeatm_mm.attention import AttentionRecorder
from freeatm_mm.evaluation.mask_quality import mask_quality, mean_box_size, summarise
from freeatm_mm.store import Store

from .scenes import SIDE, Scene
from .sources import NOUNS
from .tensors import images_to_tensor

__all__ = ['NounClassifier', 'found_nouns', 'masks_on_noised_scenes']

TIMESTEPS = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
"""Of 1,000: evenly spread, as the paper averages over all denoising steps."""


class NounClassifier:
    """A small residual net that says which nouns a scene shows, trained on real scenes.

    Its first maps are 32x32, since objects are small. Half of the batches are blurred, so that it
    looks at shapes: an autoencoder's images are less sharp than photos.

    Args:
        seed: Seed of its weights and of the order of training.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            BasicBlock(32, 32), _halving(32), _halving(64), _halving(128),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, len(NOUNS)))

    def fit(self, scenes: Iterable[Scene], epochs: int = 10, batch_size: int = 64,
            lr: float = 2e-3) -> NounClassifier:
        """Train on scenes, flipped, shifted and blurred at random; return the classifier."""
        scenes = list(scenes)
        images = np.stack([scene.image for scene in scenes])
        labels = torch.from_numpy(np.stack([noun_labels(scene.record.nouns) for scene in scenes]))
        optimizer = torch.optim.AdamW(self.net.parameters(), lr, weight_decay=0.01)
        steps = epochs * (len(images) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(1, steps))
        rng = np.random.default_rng(self.seed)
        self.net.train()
        with tqdm(total=steps, desc='training the judge', mininterval=2.0) as bar:
            for _ in range(epochs):
                order = rng.permutation(len(images))
                for start in range(0, len(order) - batch_size + 1, batch_size):
                    picked = order[start:start + batch_size]
                    view = images_to_tensor(images[picked])
                    if rng.random() < 0.5:
                        view = view.flip(3)
                    view = torch.roll(view, tuple(rng.integers(-6, 7, 2).tolist()), (2, 3))
                    if rng.random() < 0.5:
                        view = _blurred(view, int(rng.integers(24, SIDE)))
                    loss = F.binary_cross_entropy_with_logits(self.net(view), labels[picked])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
        self.net.eval()
        return self

    @torch.no_grad()
    def scores(self, images: np.ndarray) -> np.ndarray:
        """Score uint8 images (N, 64, 64, 3): float array (N, nouns), higher is likelier."""
        parts = [self.net(images_to_tensor(images[i:i + 256])) for i in range(0, len(images), 256)]
        return torch.cat(parts).numpy()


def _halving(channels: int) -> BasicBlock:
    """A residual block with half the side and twice the channels."""
    shortcut = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False),
                             nn.BatchNorm2d(2 * channels))
    return BasicBlock(channels, 2 * channels, stride=2, downsample=shortcut)


def _blurred(images: torch.Tensor, side: int) -> torch.Tensor:
    """Shrink (N, 3, 64, 64) images to a side, and enlarge them again."""
    small = F.interpolate(images, size=side, mode='bilinear', antialias=True)
    return F.interpolate(small, size=images.shape[2:], mode='bilinear')


def noun_labels(nouns: Sequence) -> np.ndarray:
    """Return float32 (nouns of the world,): 1 where a record's nouns name it."""
    labels = np.zeros(len(NOUNS), np.float32)
    labels[[NOUNS.index(noun.category) for noun in nouns]] = 1
    return labels


def found_nouns(scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How often the named nouns are found in images.

    A noun is found if it is among the K highest-scored nouns of an image that names K.

    Args:
        scores: (N, nouns), higher is likelier.
        labels: (N, nouns), 1 where the prompt names the noun.

    Returns:
        ``found`` (share of all named nouns), ``chance`` (the same for random scores),
        ``found_by_count`` (by the number of nouns named) and ``found_by_noun``.
    """
    labels = labels.astype(bool)
    counts = labels.sum(1)
    ranks = (-scores).argsort(1, kind='stable').argsort(1)
    found = labels & (ranks < counts[:, None])

    def share(rows: np.ndarray) -> float:
        return float(found[rows].sum() / labels[rows].sum())

    return {'found': share(np.ones(len(labels), bool)),
            'chance': float((counts ** 2 / labels.shape[1]).sum() / counts.sum()),
            'found_by_count': {int(k): share(counts == k) for k in np.unique(counts)},
            'found_by_noun': {noun: float(found[:, i].sum() / labels[:, i].sum())
                              for i, noun in enumerate(NOUNS) if labels[:, i].any()}}


def judge_store(classifier: NounClassifier, store: str | Path) -> dict[str, Any]:
    """Look for the prompted nouns in the images of a store (see :func:`found_nouns`)."""
    samples = list(Store(store))
    images = np.stack([np.asarray(sample.image.convert('RGB')) for sample in samples])
    return found_nouns(classifier.scores(images),
                       np.stack([noun_labels(sample.nouns) for sample in samples]))


def judge_scenes(classifier: NounClassifier, scenes: Sequence[Scene]) -> dict[str, Any]:
    """The same on real scenes: what a perfect generator would score."""
    return found_nouns(classifier.scores(np.stack([scene.image for scene in scenes])),
                       np.stack([noun_labels(scene.record.nouns) for scene in scenes]))


@torch.no_grad()
def masks_on_noised_scenes(pipeline: StableDiffusionPipeline, scenes: Sequence[Scene],
                           timesteps: Sequence[int] = TIMESTEPS, batch_size: int = 50,
                           seed: int = 0) -> dict[str, Any]:
    """Compare attention masks on noised real scenes with the exact masks.

    Args:
        pipeline: The generator.
        scenes: Real scenes.
        timesteps: Where on the noise schedule to look; the masks are averaged over them.
        batch_size: Scenes at once.
        seed: Seed of the noise.

    Returns:
        ``all`` and one entry for each attention resolution (``'8x8'``, ...): what
        :func:`~freeatm_mm.evaluation.mask_quality.summarise` says, controls included.
    """
    box_size = mean_box_size(scene.masks for scene in scenes)
    sides = sorted(pipeline.unet.config.sample_size // 2 ** level
                   for level, block in enumerate(pipeline.unet.config.down_block_types)
                   if 'CrossAttn' in block)
    qualities: dict[str, list] = {'all': [], **{f'{side}x{side}': [] for side in sides}}
    for recorder, batch in record_noised_scenes(pipeline, scenes, timesteps, batch_size, seed):
        for name, found in qualities.items():
            side = None if name == 'all' else [int(name.split('x')[0])]
            for masks, scene in zip(recorder.masks(resolutions=side), batch):
                found.append(mask_quality(masks.numpy(), scene.masks, box_size=box_size))
    return {name: summarise(found) for name, found in qualities.items()}


@torch.no_grad()
def record_noised_scenes(
        pipeline: StableDiffusionPipeline, scenes: Sequence[Scene],
        timesteps: Sequence[int] = TIMESTEPS, batch_size: int = 50, seed: int = 0,
        **options: Any) -> Iterator[tuple[AttentionRecorder, Sequence[Scene]]]:
    """Let the UNet look at noised real scenes, and record its attention.

    Args:
        pipeline: The generator.
        scenes: Real scenes.
        timesteps: Where on the noise schedule to look; each is one step of the recorder.
        batch_size: Scenes at once.
        seed: Seed of the noise.
        options: Of the recorder.

    Yields:
        A recorder that has seen a batch of scenes at all timesteps, and the scenes.
    """
    generator = torch.Generator().manual_seed(seed)
    for start in tqdm(range(0, len(scenes), batch_size), 'masks on noised scenes'):
        batch = scenes[start:start + batch_size]
        prompts = [scene.record.prompt for scene in batch]
        tokens = pipeline.tokenizer(prompts, padding='max_length', return_tensors='pt',
                                    max_length=pipeline.tokenizer.model_max_length).input_ids
        text = pipeline.text_encoder(tokens)[0]
        images = images_to_tensor(np.stack([scene.image for scene in batch]))
        clean = pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config.scaling_factor
        recorder = AttentionRecorder(pipeline, prompts, [s.record.nouns for s in batch], **options)
        with recorder:
            for timestep in timesteps:
                noise = torch.randn(clean.shape, generator=generator)
                t = torch.full((len(batch),), timestep)
                noised = pipeline.scheduler.add_noise(clean, noise, t)
                pipeline.unet(noised, t, encoder_hidden_states=text)
        yield recorder, batch
