"""Slot attention, Table 4's peer, at the miniature's scale: objects found without labels or words.

The architecture is the published one (Locatello et al. 2020, arXiv 2006.15055): a convolutional
encoder with soft positions, slots that compete for its cells over three iterations, and a spatial
broadcast decoder for each slot, trained by the reconstruction alone. Sizes are smaller, for a CPU:
pictures are shrunk to 32x32, the encoder's first layer has stride 2, and layers have 32 channels,
as the paper's for its smallest pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freeatm_mm.errors import InputError, moving_to
from freeatm_mm.miniature.tensors import images_to_tensor
from freeatm_mm.progress import progress_bar
from freeatm_mm.store.regions import Segmenter

__all__ = ['SlotAttention', 'slot_regions', 'train_slots']

_SIDE = 32  # of the pictures that are read and made, in pixels
_BROADCAST = 8  # cells along a side that a slot is broadcast to


class SlotAttention(nn.Module):
    """Take a picture apart into slots, each of which draws its part of it.

    Args:
        slots: How many parts, the background among them.
        width: Channels of convolutions.
        size: Of a slot.
        iterations: Of the competition.
    """

    def __init__(
        self, slots: int = 4, width: int = 32, size: int = 64, iterations: int = 3
    ) -> None:
        super().__init__()
        self.slots, self.size, self.iterations = slots, size, iterations
        self.encode = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            nn.ReLU(),
            *(
                layer
                for _ in range(3)
                for layer in (nn.Conv2d(width, width, 5, padding=2), nn.ReLU())
            ),
        )
        self.place = nn.Linear(4, width)
        self.read = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.mean, self.spread = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, size))) for _ in range(2)
        )
        self.inputs = nn.LayerNorm(width)
        self.keys, self.values = (nn.Linear(width, size, bias=False) for _ in range(2))
        self.queries = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size, bias=False))
        self.update = nn.GRUCell(size, size)
        self.refine = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.ReLU(), nn.Linear(2 * size, size)
        )
        self.place_slot = nn.Linear(4, size)
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(size, width, 5, 2, 2, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 5, 2, 2, output_padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 4, 3, padding=1),
        )

    def forward(self, images: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Take pictures apart and put them together again.

        Args:
            images: (B, 3, 32, 32).
            start: (B, slots, size) standard normal numbers, which the slots begin with.

        Returns:
            (B, 3, 32, 32) the pictures as they are drawn; (B, slots, 32, 32) the share of each slot
            in each pixel, which add up to 1.
        """
        features = self.encode(images)
        features = features + self.place(_places(features)).permute(2, 0, 1)
        slots = self.compete(self.read(features.flatten(2).mT), start)
        grid = slots.flatten(0, 1)[:, :, None, None].expand(-1, -1, _BROADCAST, _BROADCAST)
        drawn = self.decode(grid + self.place_slot(_places(grid)).permute(2, 0, 1))
        drawn = drawn.unflatten(0, (len(images), self.slots))
        colours, shares = drawn[:, :, :3], drawn[:, :, 3:].softmax(1)
        return (colours * shares).sum(1), shares[:, :, 0]

    def compete(self, cells: Tensor, start: Tensor) -> Tensor:
        """Let slots compete for (B, N, width) cells; returns them, (B, slots, size)."""
        slots = self.mean + self.spread.exp() * start
        cells = self.inputs(cells)
        keys, values = self.keys(cells), self.values(cells)
        for _ in range(self.iterations):
            scores = keys @ self.queries(slots).mT * self.size**-0.5
            weights = scores.softmax(-1) + 1e-8  # over slots
            found = (weights / weights.sum(1, keepdim=True)).mT @ values
            slots = self.update(found.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.refine(slots)
        return slots


def _places(features: Tensor) -> Tensor:
    """Return (h, w, 4) distances of each cell of a map from the four edges, in [0, 1]."""
    rows, columns = (
        torch.linspace(0, 1, side, device=features.device) for side in features.shape[2:]
    )
    y, x = torch.meshgrid(rows, columns, indexing='ij')
    return torch.stack([y, x, 1 - y, 1 - x], -1)


def _read_images(images: np.ndarray | Sequence[np.ndarray]) -> Tensor:
    """Return (B, 3, 32, 32) in [-1, 1] of uint8 pictures (H, W, 3) of one size."""
    return F.interpolate(
        images_to_tensor(np.stack(list(images))), (_SIDE, _SIDE), mode='bilinear', antialias=True
    )


def train_slots(
    network: SlotAttention,
    images: np.ndarray,
    steps: int,
    batch_size: int = 64,
    lr: float = 4e-4,
    seed: int = 0,
    device: str = 'cpu',
) -> list[float]:
    """Train by the mean squared error of the reconstruction, as published (Adam).

    The published 500,000 steps begin with 2 percent of warm-up, and the rate is halved five times.

    Args:
        network: Changed in place.
        images: (N, H, W, 3) uint8.
        steps: How many.
        batch_size: Pictures in each.
        lr: Peak learning rate.
        seed: Of the order and of what slots begin with.
        device: Where to train; the network stays there.

    Returns:
        The loss of each step.

    Raises:
        InputError: If the loss is not finite.
    """
    pictures = torch.cat([_read_images(images[i : i + 256]) for i in range(0, len(images), 256)])
    with moving_to(device, 'the network'):
        pictures, network = pictures.to(device), network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr)
    warm = max(steps // 50, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 1.0) * 0.5 ** (5 * step / steps)
    )
    torch.manual_seed(seed)
    losses = []
    for _ in progress_bar(range(steps), 'training slot attention', mininterval=2.0):
        batch = pictures[torch.randint(len(pictures), (batch_size,), device=device)]
        start = torch.randn(batch_size, network.slots, network.size, device=device)
        loss = F.mse_loss(network(batch, start)[0], batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss))
    if not np.isfinite(losses).all():
        raise InputError('the loss of slot attention is NaN or infinite: choose a lower rate')
    network.eval()
    return losses


def slot_regions(network: SlotAttention, seed: int = 0) -> Segmenter:
    """Cut images into the slots that have the largest share in each pixel.

    Args:
        network: Trained.
        seed: Of what slots begin with, the same for every image.
    """
    device = network.mean.device
    start = torch.randn(
        1, network.slots, network.size, generator=torch.Generator().manual_seed(seed)
    ).to(device)

    @torch.inference_mode()
    def segment(images: Sequence[np.ndarray], keys: Sequence[str]) -> list[np.ndarray]:
        labels = []
        for image in images:
            shares = network(_read_images([image]).to(device), start)[1]
            large = F.interpolate(shares, image.shape[:2], mode='bilinear')
            labels.append(large[0].argmax(0).cpu().numpy())
        return labels

    return segment
