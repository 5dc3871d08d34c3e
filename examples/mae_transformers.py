"""MAE with attention-guided masks, with transformers' own `ViTMAEForPreTraining`.

    python examples/mae_transformers.py data/synthetic --epochs 100

Needs torch, torchvision, transformers and a store of `freeatm generate`; one GPU or none. The
patches to hide are chosen by `GuidedMasking.noise`; the model is left as it is.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from freeatm_mm.pytorch import GuidedMasking, StoreDataset, collate_views


def make_transform(size: int) -> v2.Transform:
    """MAE's augmentations, as transforms that carry masks."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                size, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
            ),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


def make_model(args: argparse.Namespace) -> ViTMAEForPreTraining:
    """ViT-B, or one of another width."""
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=args.size,
            patch_size=args.patch,
            hidden_size=args.width,
            num_hidden_layers=args.depth,
            num_attention_heads=args.width // 64,
            intermediate_size=4 * args.width,
            mask_ratio=0.75,
            norm_pix_loss=True,
        )
    )


def train(args: argparse.Namespace) -> list[float]:
    """Train, and return the loss of each step."""
    torch.manual_seed(args.seed)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = make_model(args).to(device)
    guided = GuidedMasking(model.config.mask_ratio, ceiling=0.8)
    dataset = StoreDataset(
        args.store, make_transform(args.size), views=1, grid=args.size // args.patch
    )
    loader = DataLoader(
        dataset,
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        collate_fn=collate_views,
    )
    if not len(loader):
        raise SystemExit(f'{args.store} holds fewer images than a batch of {args.batch_size}')
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.05
    )
    total = args.steps or args.epochs * len(loader)
    losses: list[float] = []
    while len(losses) < total:
        for batch in loader:
            batch = batch.to(device)
            noise = guided.noise(batch.masks[0], progress=len(losses) / max(total - 1, 1))
            loss = model(pixel_values=batch.views[0], noise=noise).loss
            if not loss.isfinite():
                raise SystemExit(f'step {len(losses) + 1}: the loss is {loss.item()}: lower --lr')
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) >= total:
                break
        print(f'step {len(losses)}: loss {losses[-1]:.3f}')
        model.save_pretrained(args.out)
    return losses


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('store')
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--patch', type=int, default=16)
    parser.add_argument('--width', type=int, default=768)
    parser.add_argument('--depth', type=int, default=12)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--steps', type=int, help='stop after so many')
    parser.add_argument('--lr', type=float, default=1.5e-4)
    parser.add_argument('--workers', type=int, default=4)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='mae', help='folder of the model')
    train(parser.parse_args())
