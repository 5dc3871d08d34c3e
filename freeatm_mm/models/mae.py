"""MAE with attention-guided masks, "Free-ATM", section 3.3 (arXiv 2308.06739).

MAE: arXiv 2111.06377; official code: github.com/facebookresearch/mae. Built on
`mmpretrain.models.selfsup.MAE`.
"""

from __future__ import annotations

import torch
from mmpretrain.models.heads import MAEPretrainHead
from mmpretrain.models.necks import MAEPretrainDecoder
from mmpretrain.models.selfsup import MAE, MAEViT
from mmpretrain.registry import MODELS, TASK_UTILS
from mmpretrain.structures import DataSample
from torch import Tensor

from freeatm_mm.ops.choices import check_choice
from freeatm_mm.ops.patch_masking import (
    COMBINE,
    foreground_masked,
    mask_patches,
    num_visible,
    patch_scores,
)


@MODELS.register_module()
class FreeATMMAEViT(MAEViT):
    """mmpretrain's `MAEViT` that can be told which patches to hide.

    Arguments are those of `MAEViT`; so are parameters and their names.
    """

    _order: Tensor | None = None

    def forward(self, x: Tensor, mask: bool | None = True, order: Tensor | None = None):
        """As `MAEViT.forward`.

        Args:
            x: (B, 3, H, W) images.
            mask: None gives the features of the whole images.
            order: (B, L) order of each image's patches, the hidden ones last; None for MAE's own
                random one.

        Returns:
            Visible patches' features, mask (1 is hidden) and `ids_restore`; or features.
        """
        self._order = order
        try:
            return super().forward(x, mask)
        finally:
            self._order = None

    def random_masking(self, x: Tensor, mask_ratio: float = 0.75) -> tuple[Tensor, Tensor, Tensor]:
        """As `MAEViT.random_masking`, but in the order given to `forward`, where there is one."""
        if self._order is None:
            return super().random_masking(x, mask_ratio)
        return mask_patches(x, self._order, num_visible(x.shape[1], mask_ratio))


@MODELS.register_module()
class FreeATMMAE(MAE):
    """MAE that hides foregrounds more and more.

    Without any mask in the batch it is mmpretrain's `MAE`, bit for bit; images without a mask are
    masked at random. (So with `NounGuide` and white noise; others guide without masks, too.)

    Args:
        guide: Config of what scores the patches: `NounGuide` (the paper), `OwnAttentionGuide` or
            `LossGuide`.
        mask_generator: Config of what orders the patches; see `AttentionGuidedMaskGenerator`.
        combine: How the attention of several nouns becomes one score: 'sum', their attention
            together (the attention of one pixel to all words sums to 1, so that this is its
            attention to any of the nouns), or 'max', meant for masks stretched to [0, 1].
        **kwargs: Arguments of `mmpretrain.models.MAE`; the backbone must be a `FreeATMMAEViT`.

    Raises:
        ValueError: If `combine` is unknown, or sizes of backbone, neck and head contradict each
            other.
        TypeError: If the backbone can't be told what to hide.
    """

    def __init__(
        self,
        *,
        guide: dict | None = None,
        mask_generator: dict | None = None,
        combine: str = 'sum',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        check_choice('FreeATMMAE: combine', combine, COMBINE)
        if not isinstance(self.backbone, FreeATMMAEViT):
            raise TypeError(
                f"FreeATMMAE: the backbone {type(self.backbone).__name__} can't be "
                "told which patches to hide: write backbone=dict(type='FreeATMMAEViT', "
                '...).'
            )
        self._check_sizes()
        self.mask_generator = TASK_UTILS.build(
            mask_generator or dict(type='AttentionGuidedMaskGenerator')
        )
        self.combine = combine
        self.guide = MODELS.build(dict(guide or dict(type='NounGuide'), backbone=self.backbone))

    def _check_sizes(self) -> None:
        """Sizes that stand in several places of a config, and that mmpretrain doesn't compare."""
        (height, width), grid = self.backbone.img_size, self.backbone.patch_resolution
        patch = height // grid[0]
        if height != width or patch * grid[0] != height:
            raise ValueError(
                f'FreeATMMAE: img_size {height}x{width} of the backbone must be '
                'square and a multiple of its patch_size.'
            )
        entries = []  # name, what it is, what it should be
        if isinstance(self.neck, MAEPretrainDecoder):
            entries += [
                ('neck.num_patches', self.neck.num_patches, self.backbone.num_patches),
                ('neck.embed_dim', self.neck.decoder_embed.in_features, self.backbone.embed_dims),
            ]
        if isinstance(self.head, MAEPretrainHead):
            entries.append(('head.patch_size', self.head.patch_size, patch))
            if isinstance(self.neck, MAEPretrainDecoder):
                predicted = self.neck.decoder_pred.out_features / self.head.in_channels
                entries.append(('neck.patch_size', round(predicted**0.5), patch))
        wrong = [
            f'{name}={right} (not {found})' for name, found, right in entries if found != right
        ]
        if wrong:
            raise ValueError(
                f'FreeATMMAE: for a backbone of img_size {height}, patch_size {patch} and '
                f'{self.backbone.embed_dims} channels set {", ".join(wrong)}; and in the pipeline '
                f'scale={height} and grid_size={grid[0]}.'
            )

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample] | None, **kwargs
    ) -> dict[str, Tensor]:
        """The loss and what is logged beside it.

        Args:
            inputs: (B, 3, H, W) images.
            data_samples: B data samples of `PackFreeATMInputs`, with or without masks.
            **kwargs: As of the class it extends.

        Returns:
            `loss`, and the guide's own; where patches are guided also `beta`, and where there are
            masks `foreground_masked`, the share of the foreground's patches that is hidden.

        Raises:
            ValueError: If there are several views, images haven't the backbone's size, or masks
                don't lie on the grid of the patches, or are NaN or infinite.
        """
        if not isinstance(inputs, Tensor):
            raise ValueError(
                f'FreeATMMAE takes one view of each image, got {len(inputs)}: leave '
                'FreeATMMultiView out of the pipeline, and its transforms in it.'
            )
        size = tuple(self.backbone.img_size)
        if tuple(inputs.shape[-2:]) != size:
            height, width = inputs.shape[-2:]
            raise ValueError(
                f"Images of {height}x{width} pixels don't fit the backbone, whose "
                f'img_size is {size[0]}x{size[1]}: set scale of '
                f'FreeATMRandomResizedCrop to {size[0]}, or img_size to {height}.'
            )
        length = self.backbone.num_patches
        nouns = self._scores(data_samples, length, inputs.device)
        scores = self.guide.scores(self.backbone, inputs, nouns)
        if scores is None:
            if getattr(self.mask_generator, 'noise', 'white') == 'white':
                return super().loss(inputs, data_samples, **kwargs)
            scores = torch.zeros(len(inputs), length, device=inputs.device)
        beta = self.mask_generator.beta()
        order = self.mask_generator(
            scores, length - num_visible(length, self.backbone.mask_ratio), beta
        )
        latent, mask, restore = self.backbone(inputs, order=order)
        predicted = self.neck(latent, restore)
        losses = dict(loss=self.head.loss(predicted, inputs, mask), beta=torch.tensor(beta))
        if nouns is not None:
            losses['foreground_masked'] = foreground_masked(nouns, mask)
        if self.guide.learns:
            each = (predicted.detach() - self.head.construct_target(inputs)).square().mean(dim=2)
            losses |= self.guide.loss(latent, restore, each, mask)
        return losses

    @torch.compiler.disable  # as `collect_instances`
    def _scores(
        self, data_samples: list[DataSample] | None, length: int, device: torch.device
    ) -> Tensor | None:
        """(B, L) attention of the patches, 0 for images without masks; None without any."""
        if any('trust' in sample for sample in data_samples or ()):
            raise ValueError('FreeATMMAE cannot weigh nouns: set trust=False of LoadFromStore.')
        masks = [sample.get('instance_masks') for sample in data_samples or ()]
        masks = [mask[0] if mask is not None and mask.shape[1] else None for mask in masks]
        side = tuple(self.backbone.patch_resolution)
        grids = {tuple(mask.shape[1:]) for mask in masks if mask is not None}
        if not grids:
            return None
        for height, width in grids - {side}:
            raise ValueError(
                f"Masks on a {height}x{width} grid don't fit the {side[0]}x{side[1]} patches: "
                f'set grid_size of PackFreeATMInputs to {side}.'
            )
        return patch_scores(masks, length, self.combine, device)
