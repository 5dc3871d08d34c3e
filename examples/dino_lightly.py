"""DINO with instance-level targets in lightly: a student predicts its teacher's view of objects.

    python examples/dino_lightly.py data/synthetic --epochs 100

Needs torch, torchvision, lightly and a store of `freeatm generate`; one GPU or none. Beside
lightly's own example the masks change one line: where features are pooled.
"""

from __future__ import annotations

import argparse
import copy

import torch
import torchvision
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from freeatm_mm.pytorch import InstancePool, StoreDataset, collate_views


def make_transform(size: int, blur: float, solarize: float) -> v2.Transform:
    """Return the augmentations of one of DINO's global views, which carry masks."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.14, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(size // 20 * 2 + 1, (0.1, 2.0))], p=blur),
            v2.RandomSolarize(128, p=solarize),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


class DINO(nn.Module):
    """lightly's DINO, pooling instances by their masks instead of whole images."""

    def __init__(self, name: str, prototypes: int) -> None:
        super().__init__()
        resnet = getattr(torchvision.models, name)()
        width = resnet.fc.in_features
        self.student = nn.Sequential(*list(resnet.children())[:-2])  # keeps the feature map
        self.pool = InstancePool()
        self.student_head = DINOProjectionHead(width, 2048, 256, prototypes, freeze_last_layer=1)
        self.teacher = copy.deepcopy(self.student)
        self.teacher_head = DINOProjectionHead(width, 2048, 256, prototypes)
        self.teacher_head.load_state_dict(self.student_head.state_dict())
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)

    def forward(self, views, masks, places):
        """(M, prototypes) of the student, trained."""
        return self.student_head(self.pool(self.student(views), masks, places))

    @torch.no_grad()
    def forward_teacher(self, views, masks, places):
        """(M, prototypes) of the teacher, the student's moving average."""
        return self.teacher_head(self.pool(self.teacher(views), masks, places))


def train(args: argparse.Namespace) -> list[float]:
    """Train, and return the loss of each step."""
    torch.manual_seed(args.seed)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = DINO(args.backbone, args.prototypes).to(device)
    views = [make_transform(args.size, 1.0, 0.0), make_transform(args.size, 0.1, 0.2)]
    dataset = StoreDataset(args.store, views, grid=-(-args.size // 32))
    options = dict(shuffle=True, drop_last=True, collate_fn=collate_views)
    loader = DataLoader(dataset, args.batch_size, num_workers=args.workers, **options)
    if not len(loader):
        raise SystemExit(f'{args.store} holds fewer images than a batch of {args.batch_size}')
    loss_of = DINOLoss(args.prototypes).to(device)
    trained = [part for part in model.parameters() if part.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=args.lr, momentum=0.9, weight_decay=1e-4)
    losses: list[float] = []
    for epoch in range(args.epochs):
        momentum = cosine_schedule(epoch, args.epochs, 0.996, 1)
        for batch in loader:
            update_momentum(model.student, model.teacher, m=momentum)
            update_momentum(model.student_head, model.teacher_head, m=momentum)
            batch = batch.to(device)
            pairs = list(zip(batch.views, batch.masks))
            student = [model(view, masks, batch.places) for view, masks in pairs]
            teacher = [model.forward_teacher(view, masks, batch.places) for view, masks in pairs]
            loss = loss_of(teacher, student)
            if not loss.isfinite():
                raise SystemExit(f'step {len(losses) + 1}: the loss is {loss.item()}: lower --lr')
            optimizer.zero_grad()
            loss.backward()
            model.student_head.cancel_last_layer_gradients(epoch)
            torch.nn.utils.clip_grad_norm_(trained, 3.0)
            optimizer.step()
            losses.append(loss.item())
        print(f'epoch {epoch + 1}: loss {losses[-1]:.3f}')
        torch.save(model.teacher.state_dict(), args.out)
    return losses


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('store')
    parser.add_argument('--backbone', default='resnet50', help="a ResNet of torchvision's")
    parser.add_argument('--prototypes', type=int, default=65536, help="width of the head's output")
    for name, value in dict(size=224, batch_size=128, epochs=100, workers=4, seed=0).items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=value)
    parser.add_argument('--lr', type=float, default=0.03)
    parser.add_argument('--out', default='backbone.pth', help="the teacher's backbone")
    train(parser.parse_args())
