"""SimCLR with instance features in plain PyTorch, with any backbone of timm's.

    python examples/simclr_timm.py data/synthetic --backbone resnet50 --epochs 100
    python examples/simclr_timm.py data/synthetic --backbone vit_small_patch16_224
    python examples/simclr_timm.py data/synthetic --positives same_noun

Needs torch, torchvision, timm and a store of `freeatm generate`; one GPU or none.
"""

from __future__ import annotations

import argparse

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from freeatm_mm.pytorch import InstanceNTXent, InstancePool, StoreDataset, collate_views


def make_transform(size: int) -> v2.Transform:
    """SimCLR's augmentations, as transforms that carry masks."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(size // 20 * 2 + 1, (0.1, 2.0))], p=0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


class Model(nn.Module):
    """A backbone, the pooling of instances by their masks, and SimCLR's projection."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        options = {'img_size': size} if name.startswith(('vit', 'swin')) else {}
        self.backbone = timm.create_model(name, num_classes=0, **options)
        width = self.backbone.num_features
        self.pool = InstancePool()
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 128)
        )

    def grid(self, size: int) -> tuple[int, int]:
        """The grid of the backbone's features for images of this size."""
        with torch.no_grad():
            found = self.backbone.eval().forward_features(torch.zeros(1, 3, size, size))
        if found.ndim == 3:  # tokens of a plain ViT
            return self.backbone.patch_embed.grid_size
        channels_last = found.shape[-1] == self.backbone.num_features  # Swin
        return tuple(found.shape[1:3] if channels_last else found.shape[2:])

    def forward(self, views: torch.Tensor, masks: torch.Tensor, places: torch.Tensor):
        """(M, 128) embeddings of the instances in one view."""
        return self.head(self.pool(self.backbone.forward_features(views), masks, places))


def train(args: argparse.Namespace) -> list[float]:
    """Train, and return the loss of each step."""
    torch.manual_seed(args.seed)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = Model(args.backbone, args.size)
    dataset = StoreDataset(
        args.store, make_transform(args.size), views=2, grid=model.grid(args.size)
    )
    options = dict(drop_last=True, num_workers=args.workers, collate_fn=collate_views)
    loader = DataLoader(dataset, args.batch_size, shuffle=True, **options)
    if not len(loader):
        raise SystemExit(f'{args.store} holds fewer images than a batch of {args.batch_size}')
    model.to(device).train()
    loss_of = InstanceNTXent(temperature=0.1, positives=args.positives)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=1e-4)
    losses: list[float] = []
    for epoch in range(args.epochs):
        for batch in loader:
            batch = batch.to(device)
            first, second = (
                model(view, masks, batch.places) for view, masks in zip(batch.views, batch.masks)
            )
            loss = loss_of(first, second, batch.nouns)
            if not loss.isfinite():
                raise SystemExit(f'step {len(losses) + 1}: the loss is {loss.item()}: lower --lr')
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if args.steps and len(losses) >= args.steps:
                break
        print(f'epoch {epoch + 1}: loss {losses[-1]:.3f}, {len(first)} instances in the last batch')
        torch.save(model.backbone.state_dict(), args.out)
        if args.steps and len(losses) >= args.steps:
            break
    return losses


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('store')
    parser.add_argument('--backbone', default='resnet50', help="one of timm's")
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--positives', choices=('own', 'same_noun'), default='own')
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--steps', type=int, help='stop after so many')
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--workers', type=int, default=4)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='backbone.pth')
    train(parser.parse_args())
