"""Free-ATM in plain PyTorch: for training loops of your own, timm, lightly and transformers.

    dataset = StoreDataset('data/synthetic', transform, grid=7)      # any torchvision v2 transform
    loader = DataLoader(dataset, batch_size=64, collate_fn=collate_views, shuffle=True)
    pool, loss_of = InstancePool(), InstanceNTXent(temperature=0.1)
    for batch in loader:
        first, second = (
            head(pool(backbone(view), masks, batch.places))
            for view, masks in zip(batch.views, batch.masks)
        )
        loss = loss_of(first, second, batch.nouns)

- `data`: views of a store's images, and the masks of the nouns that all of them show;
- `pooling`: features of instances from any backbone's map (ResNet, ConvNeXt, ViT, Swin);
- `losses`: the contrastive losses and self-distillation as modules;
- `masking`: attention-guided hiding of patches for any ViT.

examples/ has whole programs. Losses are over the instances of this process, or with `gather=True`
of all; what they compute is in `freeatm_mm.ops`. Needs torch and torchvision alone.
"""

from freeatm_mm.pytorch.data import (
    StoreDataset,
    ViewBatch,
    ViewItem,
    collate_views,
    masks_in_view,
    track_view,
)
from freeatm_mm.pytorch.losses import InstanceDistillation, InstanceInfoNCE, InstanceNTXent
from freeatm_mm.pytorch.masking import GuidedMasking
from freeatm_mm.pytorch.pooling import InstancePool

__all__ = [
    'GuidedMasking',
    'InstanceDistillation',
    'InstanceInfoNCE',
    'InstanceNTXent',
    'InstancePool',
    'StoreDataset',
    'ViewBatch',
    'ViewItem',
    'collate_views',
    'masks_in_view',
    'track_view',
]
