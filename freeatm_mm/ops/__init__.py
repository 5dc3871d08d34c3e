"""What Free-ATM is, in plain PyTorch and NumPy: for any framework, and for none.

    >>> import numpy as np, torch
    >>> masks, crop = np.eye(2, dtype=np.uint8)[:, :, None] * 255, (0.0, 0.9, 0.1, 1.0)
    >>> views = masks_on_views(masks, [WHOLE, crop], (7, 7))  # two nouns, two views of one image
    >>> batch, maps = pad_instances([torch.from_numpy(views.values)]), torch.randn(2, 1, 64, 7, 7)
    >>> first, second = (pool_instances(maps[v], batch.masks[v], batch.places) for v in (0, 1))
    >>> loss = instance_nt_xent(first, second)  # after an encoder's head, in earnest

- `geometry`: where a view lies in its image, and masks on its feature grid;
- `pooling`: features of instances (equation 2);
- `losses`: NT-Xent, equation 3, InfoNCE with a queue, and self-distillation over instances;
- `gathering`: rows of all processes;
- `patch_masking`: which patches a masked autoencoder hides;
- `position`: which block of a picture an object is in, and the sentences that say so;
- `masks`: resize, stretch, quantise, binarise, box;
- `nouns`: nouns as numbers.

Everything is imported from here. Nothing of it knows OpenMMLab, LAVIS, diffusers or the rest of
this package; `freeatm_mm.models`, `datasets` and `lavis_ext` bring it to their frameworks.
"""

from __future__ import annotations

from freeatm_mm.ops.gathering import (
    count_rows,
    gather_rows,
    gather_rows_with_gradient,
    process_rank,
)
from freeatm_mm.ops.geometry import (
    MASK_VALUES,
    WHOLE,
    ViewMasks,
    Window,
    centred_boxes,
    choose_object,
    crop_window,
    flip_window,
    masks_on_views,
    object_boxes,
    view_masks,
    visible_share,
)
from freeatm_mm.ops.losses import (
    NEGATIVES,
    POSITIVES,
    ContrastiveLogits,
    at_least_float32,
    contrastive_accuracy,
    contrastive_loss,
    distillation_loss,
    enqueue,
    equation3_logits,
    info_nce_logits,
    instance_equation3,
    instance_info_nce,
    instance_nt_xent,
    multi_positive_loss,
    nt_xent_logits,
    other_positives,
)
from freeatm_mm.ops.masks import (
    THRESHOLD,
    binarize,
    box_of,
    dequantize,
    minmax,
    peakedness,
    quantize,
    resize,
)
from freeatm_mm.ops.nouns import (
    UNKNOWN_NOUN,
    mean_of_known,
    noun_id,
    region_name,
    same_noun,
    same_noun_counts,
)
from freeatm_mm.ops.patch_masking import (
    BAND,
    COMBINE,
    NOISES,
    SCHEDULES,
    SHARES,
    attention_guided_order,
    beta_at,
    foreground_masked,
    green_noise,
    mask_patches,
    num_visible,
    patch_scores,
    relative_order_loss,
)
from freeatm_mm.ops.pooling import (
    PaddedInstances,
    check_masks,
    pad_instances,
    pool_instances,
)
from freeatm_mm.ops.position import (
    ORDERS,
    POSITIONS,
    PRESETS,
    WHOLE_VIEW,
    PlacedObject,
    PositionPrompts,
    box_in_view,
    cover_in_view,
    crop_matrix,
    flip_matrix,
    object_from_box,
    objects_from_masks,
    pixel_matrix,
    preset_prompts,
)

__all__ = [
    'BAND',
    'COMBINE',
    'MASK_VALUES',
    'NEGATIVES',
    'NOISES',
    'ORDERS',
    'POSITIONS',
    'POSITIVES',
    'PRESETS',
    'SCHEDULES',
    'SHARES',
    'THRESHOLD',
    'UNKNOWN_NOUN',
    'WHOLE',
    'WHOLE_VIEW',
    'ContrastiveLogits',
    'PaddedInstances',
    'PlacedObject',
    'PositionPrompts',
    'ViewMasks',
    'Window',
    'at_least_float32',
    'attention_guided_order',
    'beta_at',
    'binarize',
    'box_in_view',
    'box_of',
    'centred_boxes',
    'check_masks',
    'choose_object',
    'contrastive_accuracy',
    'contrastive_loss',
    'count_rows',
    'cover_in_view',
    'crop_matrix',
    'crop_window',
    'dequantize',
    'distillation_loss',
    'enqueue',
    'equation3_logits',
    'flip_matrix',
    'flip_window',
    'foreground_masked',
    'gather_rows',
    'gather_rows_with_gradient',
    'green_noise',
    'info_nce_logits',
    'instance_equation3',
    'instance_info_nce',
    'instance_nt_xent',
    'mask_patches',
    'masks_on_views',
    'mean_of_known',
    'minmax',
    'multi_positive_loss',
    'noun_id',
    'nt_xent_logits',
    'num_visible',
    'object_boxes',
    'object_from_box',
    'objects_from_masks',
    'other_positives',
    'pad_instances',
    'patch_scores',
    'peakedness',
    'pixel_matrix',
    'pool_instances',
    'preset_prompts',
    'process_rank',
    'quantize',
    'region_name',
    'relative_order_loss',
    'resize',
    'same_noun',
    'same_noun_counts',
    'view_masks',
    'visible_share',
]
