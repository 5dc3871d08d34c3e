"""Evaluating a generator of the miniature world.

Does it generate what the prompt names? A classifier trained on real scenes looks for the nouns in
generated images. Are its attention masks where the objects are? Real scenes are noised, the UNet
looks at them, and the recorded masks are compared with the exact ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save
from torch import nn
from torchvision.models.resnet import BasicBlock

from freeatm_mm.attention import AttentionRecorder
from freeatm_mm.files import atomic_write
from freeatm_mm.generation.calls import quiet, sampling_options
from freeatm_mm.generation.levels import ShownImages
from freeatm_mm.miniature.scenes import SIDE, Scene
from freeatm_mm.miniature.sources import NOUNS
from freeatm_mm.miniature.tensors import images_to_tensor
from freeatm_mm.probing.mask_quality import MaskQuality, mask_quality, mean_box_size, summarise
from freeatm_mm.progress import progress_bar
from freeatm_mm.prompts import Noun, PromptRecord
from freeatm_mm.store import Store

__all__ = [
    'NounClassifier',
    'NounSegmenter',
    'evaluate_reconstructions',
    'evaluate_scenes',
    'evaluate_store',
    'found_nouns',
    'masks_on_noised_scenes',
    'record_generated_scenes',
    'record_noised_scenes',
    'trained',
]

Trained = TypeVar('Trained', 'NounClassifier', 'NounSegmenter')

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
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            BasicBlock(32, 32),
            _halving(32),
            _halving(64),
            _halving(128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(256, len(NOUNS)),
        )

    def fit(
        self, scenes: Iterable[Scene], epochs: int = 10, batch_size: int = 64, lr: float = 2e-3
    ) -> NounClassifier:
        """Train on scenes, flipped, shifted and blurred at random; return the classifier."""
        scenes = list(scenes)
        labels = torch.from_numpy(np.stack([noun_labels(scene.record.nouns) for scene in scenes]))
        _fit(
            self.net,
            np.stack([scene.image for scene in scenes]),
            labels,
            F.binary_cross_entropy_with_logits,
            epochs,
            batch_size,
            lr,
            self.seed,
        )
        return self

    @torch.no_grad()
    def scores(self, images: np.ndarray) -> np.ndarray:
        """Score uint8 images (N, 64, 64, 3): float array (N, nouns), higher is likelier."""
        parts = [
            self.net(images_to_tensor(images[i : i + 256])) for i in range(0, len(images), 256)
        ]
        return torch.cat(parts).numpy()


class NounSegmenter:
    """A small U-shaped net that says where the named nouns are, trained on real scenes.

    It marks objects in generated images, whose exact masks nobody knows. What is named is told to
    it: each pixel belongs to one of the nouns named or to the background.

    Args:
        seed: Seed of its weights and of the order of training.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        torch.manual_seed(seed)
        self.net = _SegmenterNet(len(NOUNS) + 1)

    def fit(
        self, scenes: Iterable[Scene], epochs: int = 5, batch_size: int = 64, lr: float = 2e-3
    ) -> NounSegmenter:
        """Train on scenes, flipped, shifted and blurred at random; return the segmenter."""
        scenes = list(scenes)
        maps = np.zeros((len(scenes), SIDE, SIDE), np.int64)  # 0 is the background
        for labels, scene in zip(maps, scenes):
            for noun, mask in zip(scene.record.nouns, scene.masks):
                labels[mask] = NOUNS.index(noun.category) + 1
        _fit(
            self.net,
            np.stack([scene.image for scene in scenes]),
            torch.from_numpy(maps),
            F.cross_entropy,
            epochs,
            batch_size,
            lr,
            self.seed,
        )
        return self

    @torch.no_grad()
    def masks(self, image: np.ndarray, nouns: Sequence[Noun], least: float = 0.01) -> np.ndarray:
        """Mark the named nouns in one image.

        Args:
            image: uint8 (64, 64, 3).
            nouns: With the ``category`` of each; two of one category get the same mask.
            least: Share of the image below which a noun's pixels are no object.

        Returns:
            Booleans (K, 64, 64); all false for a noun that it doesn't see.
        """
        classes = [NOUNS.index(noun.category) + 1 for noun in nouns]
        scores = self.net(images_to_tensor(image[None]))[0]
        named = scores[[0, *dict.fromkeys(classes)]].argmax(0)
        places = {each: place + 1 for place, each in enumerate(dict.fromkeys(classes))}
        masks = np.stack([(named == places[each]).numpy() for each in classes])
        return masks & (masks.mean((1, 2), keepdims=True) >= least)


def trained(
    network: Trained, path: str | Path, scenes: Callable[[], Iterable[Scene]], epochs: int
) -> Trained:
    """Load a network's weights from a file, or train it and keep them there.

    Args:
        network: A classifier or segmenter, untrained.
        path: The safetensors file; its name has to tell one training from another.
        scenes: Makes the scenes to train on.
        epochs: How often to go over them.
    """
    path = Path(path)
    if path.exists():
        network.net.load_state_dict(load_file(path))
        network.net.eval()
        return network
    network.fit(scenes(), epochs)
    with atomic_write(path) as file:
        file.write(save(network.net.state_dict()))
    return network


class _SegmenterNet(nn.Module):
    """Scores (N, classes, 64, 64) of images (N, 3, 64, 64)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            BasicBlock(32, 32),
        )
        self.middle, self.coarse = _halving(32), nn.Sequential(_halving(64), BasicBlock(128, 128))
        self.to_middle, self.join_middle = nn.Conv2d(128, 64, 1), BasicBlock(64, 64)
        self.to_fine, self.join_fine = nn.Conv2d(64, 32, 1), BasicBlock(32, 32)
        self.classify = nn.Conv2d(32, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        fine = self.fine(images)
        middle = self.middle(fine)
        middle = self.join_middle(middle + _doubled(self.to_middle(self.coarse(middle))))
        return _doubled(self.classify(self.join_fine(fine + _doubled(self.to_fine(middle)))))


def _doubled(maps: torch.Tensor) -> torch.Tensor:
    """Maps (N, C, h, w) at twice the side."""
    return F.interpolate(maps, scale_factor=2, mode='bilinear')


def _fit(
    net: nn.Module,
    images: np.ndarray,
    targets: torch.Tensor,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> None:
    """Train a net on images (N, 64, 64, 3); targets (N, 64, 64) move along with them."""
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=0.01)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(1, steps))
    rng = np.random.default_rng(seed)
    are_maps = targets.ndim == 3
    net.train()
    with progress_bar(total=steps, desc='training the network', mininterval=2.0) as bar:
        for _ in range(epochs):
            order = rng.permutation(len(images))
            for start in range(0, len(order) - batch_size + 1, batch_size):
                picked = order[start : start + batch_size]
                view, target = images_to_tensor(images[picked]), targets[picked]
                if rng.random() < 0.5:
                    view = view.flip(3)
                    target = target.flip(2) if are_maps else target
                shift = tuple(rng.integers(-6, 7, 2).tolist())
                view = torch.roll(view, shift, (2, 3))
                target = torch.roll(target, shift, (1, 2)) if are_maps else target
                if rng.random() < 0.5:
                    view = _blurred(view, int(rng.integers(24, SIDE)))
                loss = loss_of(net(view), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    if not all(bool(part.isfinite().all()) for part in net.parameters()):
        raise ValueError(f'after {steps} steps the network is NaN: nothing can be judged by it')
    net.eval()


def _halving(channels: int) -> BasicBlock:
    """A residual block with half the side and twice the channels."""
    shortcut = nn.Sequential(
        nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False), nn.BatchNorm2d(2 * channels)
    )
    return BasicBlock(channels, 2 * channels, stride=2, downsample=shortcut)


def _blurred(images: torch.Tensor, side: int) -> torch.Tensor:
    """Shrink (N, 3, 64, 64) images to a side, and enlarge them again."""
    small = F.interpolate(images, size=side, mode='bilinear', antialias=True)
    return F.interpolate(small, size=images.shape[2:], mode='bilinear')


def noun_labels(nouns: Sequence[Noun]) -> np.ndarray:
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

    return {
        'found': share(np.ones(len(labels), bool)),
        'chance': float((counts**2 / labels.shape[1]).sum() / counts.sum()),
        'found_by_count': {int(k): share(counts == k) for k in np.unique(counts)},
        'found_by_noun': {
            noun: float(found[:, i].sum() / labels[:, i].sum())
            for i, noun in enumerate(NOUNS)
            if labels[:, i].any()
        },
    }


def evaluate_store(classifier: NounClassifier, store: str | Path) -> dict[str, Any]:
    """Look for the prompted nouns in the images of a store (see `found_nouns`)."""
    samples = list(Store(store))
    images = np.stack([np.asarray(sample.image.convert('RGB')) for sample in samples])
    return found_nouns(
        classifier.scores(images), np.stack([noun_labels(sample.nouns) for sample in samples])
    )


def evaluate_scenes(classifier: NounClassifier, scenes: Sequence[Scene]) -> dict[str, Any]:
    """The same on real scenes: what a perfect generator would score."""
    return found_nouns(
        classifier.scores(np.stack([scene.image for scene in scenes])),
        np.stack([noun_labels(scene.record.nouns) for scene in scenes]),
    )


@torch.no_grad()
def evaluate_reconstructions(
    classifier: NounClassifier,
    pipeline: StableDiffusionPipeline,
    scenes: Sequence[Scene],
    batch_size: int = 50,
) -> dict[str, Any]:
    """The same on real scenes that went through the autoencoder: the most that a UNet can reach."""
    parts = []
    for start in range(0, len(scenes), batch_size):
        batch = np.stack([scene.image for scene in scenes[start : start + batch_size]])
        latents = pipeline.vae.encode(images_to_tensor(batch)).latent_dist.mean
        parts.append(
            pipeline.image_processor.postprocess(
                pipeline.vae.decode(latents).sample, output_type='np'
            )
        )
    images = (np.concatenate(parts) * 255).round().astype(np.uint8)
    return found_nouns(
        classifier.scores(images), np.stack([noun_labels(scene.record.nouns) for scene in scenes])
    )


@torch.no_grad()
def masks_on_noised_scenes(
    pipeline: StableDiffusionPipeline,
    scenes: Sequence[Scene],
    timesteps: Sequence[int] = TIMESTEPS,
    batch_size: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare attention masks on noised real scenes with the exact masks.

    Args:
        pipeline: The generator.
        scenes: Real scenes.
        timesteps: Where on the noise schedule to look; the masks are averaged over them.
        batch_size: Scenes at once.
        seed: Seed of the noise.

    Returns:
        ``all`` and one entry for each attention resolution (``'8x8'``, ...): what
        `freeatm_mm.probing.mask_quality.summarise` says, controls included.
    """
    box_size = mean_box_size(scene.masks for scene in scenes)
    sides = sorted(
        pipeline.unet.config.sample_size // 2**level
        for level, block in enumerate(pipeline.unet.config.down_block_types)
        if 'CrossAttn' in block
    )
    qualities: dict[str, list[MaskQuality]] = {
        'all': [],
        **{f'{side}x{side}': [] for side in sides},
    }
    for recorder, batch in record_noised_scenes(pipeline, scenes, timesteps, batch_size, seed):
        for name, found in qualities.items():
            side = None if name == 'all' else [int(name.split('x')[0])]
            for masks, scene in zip(recorder.masks(resolutions=side), batch):
                found.append(mask_quality(masks.numpy(), scene.masks, box_size=box_size))
    return {name: summarise(found) for name, found in qualities.items()}


@torch.no_grad()
def record_noised_scenes(
    pipeline: Any,
    scenes: Sequence[Scene],
    timesteps: Sequence[int] = TIMESTEPS,
    batch_size: int = 50,
    seed: int = 0,
    **options: Any,
) -> Iterator[tuple[AttentionRecorder, Sequence[Scene]]]:
    """Let the denoiser look at noised real scenes, and record its attention.

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
    shown = ShownImages(pipeline, timesteps)
    call = sampling_options(pipeline, steps=len(timesteps), guidance=1.0)
    generator = torch.Generator().manual_seed(seed)
    for start in progress_bar(range(0, len(scenes), batch_size), 'masks on noised scenes'):
        batch = scenes[start : start + batch_size]
        prompts = [scene.record.prompt for scene in batch]
        nouns = [scene.record.nouns for scene in batch]
        images = images_to_tensor(np.stack([scene.image for scene in batch]))
        recorder = AttentionRecorder(pipeline, prompts, nouns, call_options=call, **options)
        with recorder, quiet([pipeline]):
            shown.show(images, prompts, [generator] * len(batch), call)
        yield recorder, batch


@torch.no_grad()
def record_generated_scenes(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[PromptRecord],
    segmenter: NounSegmenter,
    steps: int,
    guidance: float,
    batch_size: int = 50,
    seed: int = 0,
    **options: Any,
) -> Iterator[tuple[AttentionRecorder, list[Scene]]]:
    """Let the generator sample, record its attention, and have the objects marked.

    Args:
        pipeline: The generator.
        prompts: What to generate.
        segmenter: Marks the named nouns in what was generated, in place of exact masks.
        steps: Denoising steps.
        guidance: Guidance scale.
        batch_size: Images at once.
        seed: Seed of the noise.
        options: Of the recorder.

    Yields:
        A recorder that has seen a batch being generated, and the images as scenes.
    """
    generator = torch.Generator().manual_seed(seed)
    for start in progress_bar(range(0, len(prompts), batch_size), 'generating'):
        batch = prompts[start : start + batch_size]
        texts = [record.prompt for record in batch]
        with AttentionRecorder(pipeline, texts, [r.nouns for r in batch], **options) as recorder:
            images = pipeline(
                texts,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generator,
                output_type='np',
            ).images
        images = (images * 255).round().astype(np.uint8)
        yield (
            recorder,
            [
                Scene(image, segmenter.masks(image, record.nouns), record, ())
                for image, record in zip(images, batch)
            ],
        )
