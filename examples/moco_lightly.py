"""MoCo v2 with instance features in lightly: its heads, its loss and memory bank, its momentum.

    python examples/moco_lightly.py data/synthetic --epochs 100

Needs torch, torchvision, lightly and a store of `freeatm generate`; one GPU or none. Beside
lightly's own example the masks change one line: where features are pooled.
"""

from __future__ import annotations

import argparse
import copy

import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from freeatm_mm.pytorch import InstancePool, StoreDataset, collate_views


def make_transform(size: int) -> v2.Transform:
    """MoCo v2's augmentations, as transforms that carry masks."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(size // 20 * 2 + 1, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


class MoCo(nn.Module):
    """lightly's MoCo, pooling instances by their masks instead of whole images."""

    def __init__(self, name: str) -> None:
        super().__init__()
        resnet = getattr(torchvision.models, name)()
        width = resnet.fc.in_features
        self.backbone = nn.Sequential(*list(resnet.children())[:-2])  # keeps the feature map
        self.pool = InstancePool()
        self.head = MoCoProjectionHead(width, width, 128)
        self.momentum_backbone = copy.deepcopy(self.backbone)
        self.momentum_head = copy.deepcopy(self.head)
        deactivate_requires_grad(self.momentum_backbone)
        deactivate_requires_grad(self.momentum_head)

    def queries(self, views, masks, places):
        """(M, 128) of the trained encoder."""
        return self.head(self.pool(self.backbone(views), masks, places))

    @torch.no_grad()
    def keys(self, views, masks, places):
        """(M, 128) of the momentum encoder."""
        return self.momentum_head(self.pool(self.momentum_backbone(views), masks, places))


def train(args: argparse.Namespace) -> list[float]:
    """Train, and return the loss of each step."""
    torch.manual_seed(args.seed)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = MoCo(args.backbone).to(device)
    dataset = StoreDataset(args.store, make_transform(args.size), grid=-(-args.size // 32))
    options = dict(drop_last=True, num_workers=args.workers, collate_fn=collate_views)
    loader = DataLoader(dataset, args.batch_size, shuffle=True, **options)
    if not len(loader):
        raise SystemExit(f'{args.store} holds fewer images than a batch of {args.batch_size}')
    loss_of = NTXentLoss(temperature=0.2, memory_bank_size=(args.bank, 128)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    losses: list[float] = []
    for epoch in range(args.epochs):
        momentum = cosine_schedule(epoch, args.epochs, 0.996, 1)
        for batch in loader:
            update_momentum(model.backbone, model.momentum_backbone, m=momentum)
            update_momentum(model.head, model.momentum_head, m=momentum)
            batch = batch.to(device)
            queries = model.queries(batch.views[0], batch.masks[0], batch.places)
            keys = model.keys(batch.views[1], batch.masks[1], batch.places)
            loss = loss_of(queries, keys)
            if not loss.isfinite():
                raise SystemExit(f'step {len(losses) + 1}: the loss is {loss.item()}: lower --lr')
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if args.steps and len(losses) >= args.steps:
                break
        print(f'epoch {epoch + 1}: loss {losses[-1]:.3f}')
        torch.save(model.backbone.state_dict(), args.out)
        if args.steps and len(losses) >= args.steps:
            break
    return losses


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('store')
    parser.add_argument('--backbone', default='resnet50', help="a ResNet of torchvision's")
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--bank', type=int, default=65536, help='keys in the memory bank')
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--steps', type=int, help='stop after so many')
    parser.add_argument('--lr', type=float, default=0.03)
    parser.add_argument('--workers', type=int, default=4)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='backbone.pth')
    train(parser.parse_args())
