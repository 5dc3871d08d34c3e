"""What tells a masked autoencoder which patches to hide: masks of nouns, or the network itself.

Free-ATM's guide is the attention of the nouns. The others need no masks and are there to compare
with: AttMask (arXiv 2203.12719), the attention of the encoder's own class token, and HPM (arXiv
2304.05919), a predictor of how hard each patch is to reconstruct.

Shapes: B images, L patches, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModule, ExponentialMovingAverage
from mmpretrain.models.necks import MAEPretrainDecoder
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from freeatm_mm.ops.patch_masking import relative_order_loss


@MODELS.register_module()
class NounGuide(BaseModule):
    """The attention of the image's nouns, Free-ATM's.

    Args:
        backbone: The encoder.

    Attributes:
        learns: Whether it has a loss of its own.
    """

    learns = False

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()

    def scores(self, backbone: nn.Module, images: Tensor, nouns: Tensor | None) -> Tensor | None:
        """Score the patches; those of high scores are hidden first.

        Args:
            backbone: The encoder.
            images: (B, 3, H, W).
            nouns: (B, L) attention of the nouns; None without any masks.

        Returns:
            (B, L), or None where nothing is known of any image.
        """
        return nouns


@MODELS.register_module()
class OwnAttentionGuide(NounGuide):
    """The attention that the encoder's class token pays each patch, as AttMask's.

    The encoder sees the whole image for it, without gradient: about one more forward pass over all
    patches. AttMask takes the attention of a teacher that is trained to distil; MAE has none, and
    trains its class token by the decoder alone.

    Args:
        backbone: The encoder.
    """

    @torch.compiler.disable  # a hook
    def scores(self, backbone: nn.Module, images: Tensor, nouns: Tensor | None) -> Tensor:
        """Score the patches by the last layer's mean over heads; (B, L), at most 1 together."""
        layers: Any = backbone.layers
        attention = layers[-1].attn
        inputs: list[Tensor] = []
        hook = attention.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
        training = backbone.training
        backbone.eval()  # no drop path, and no random numbers that others don't draw
        try:
            with torch.no_grad():
                backbone(images, mask=None)
                return class_attention(attention, inputs[0])
        finally:
            hook.remove()
            backbone.train(training)


def class_attention(attention: Any, tokens: Tensor) -> Tensor:
    """Return what mmpretrain's `MultiheadAttention` has the first token attend to.

    Args:
        attention: The module.
        tokens: (B, 1 + L, C) its input, class token first.

    Returns:
        (B, L) the mean over heads of the attention to the other tokens.
    """
    batch, length, _ = tokens.shape
    parts = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, attention.head_dims))
    query, key = parts[:, 0, 0], parts[:, :, 1]  # (B, heads, D), (B, 1 + L, heads, D)
    logits = torch.einsum('bhd,blhd->bhl', query, key).float() * attention.head_dims**-0.5
    return logits.softmax(dim=2).mean(dim=1)[:, 1:]


@MODELS.register_module()
class LossGuide(NounGuide):
    """What a small network predicts of each patch's reconstruction loss, as HPM's.

    The predictor, a decoder like MAE's with one number for each patch, learns from the visible
    patches which of the hidden ones are harder than others (`freeatm_mm.ops.relative_order_loss`,
    added to MAE's loss as `loss_predictor`; the encoder learns from it, too). An exponential moving
    average of encoder and predictor, which sees whole images, scores them.

    Args:
        backbone: The encoder.
        channels: Width of the predictor.
        depth: Its layers; HPM has as many as MAE's decoder, 8.
        heads: Its attention heads.
        momentum: Share of the new weights in the moving average at each step.
    """

    learns = True

    def __init__(
        self,
        backbone: nn.Module,
        channels: int = 64,
        depth: int = 1,
        heads: int = 4,
        momentum: float = 0.001,
    ) -> None:
        super().__init__(backbone)
        # The network's own initial weights are to be the same with any guide.
        with torch.random.fork_rng(devices=[]):
            self.predictor = MAEPretrainDecoder(
                num_patches=backbone.num_patches,
                patch_size=1,
                in_chans=1,
                embed_dim=backbone.embed_dims,
                decoder_embed_dim=channels,
                decoder_depth=depth,
                decoder_num_heads=heads,
            )
        self.teacher = ExponentialMovingAverage(self._together(backbone), momentum)

    def _together(self, backbone: nn.Module) -> nn.Module:
        return nn.ModuleDict({'backbone': backbone, 'predictor': self.predictor})

    def init_weights(self) -> None:
        """Initialise the predictor; the teacher begins as a copy at the first step."""
        with torch.random.fork_rng(devices=[]):
            super().init_weights()

    def train(self, mode: bool = True) -> LossGuide:
        """Set the mode; the teacher has no drop path at any time."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.compiler.disable  # as the momentum encoder of MoCo
    @torch.no_grad()
    def scores(self, backbone: nn.Module, images: Tensor, nouns: Tensor | None) -> Tensor:
        """Score the patches by the teacher's prediction; in training the teacher moves on first."""
        if self.training:
            self.teacher.update_parameters(self._together(backbone))
        teacher: Any = self.teacher.module
        latent = teacher['backbone'](images, mask=None)[-1]
        order = torch.arange(latent.shape[1] - 1, device=latent.device).expand(len(latent), -1)
        return teacher['predictor'](latent, order)[..., 0].float()

    def loss(
        self, latent: Tensor, restore: Tensor, losses: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """Return the predictor's loss over the hidden patches.

        Args:
            latent: (B, 1 + visible, C) the encoder's features, class token first.
            restore: (B, L) where each patch stands in the order (MAE's `ids_restore`).
            losses: (B, L) each patch's reconstruction loss, without gradient.
            mask: (B, L) 1 where a patch is hidden, as often in each image.
        """
        hidden, shape = mask.bool(), (len(mask), -1)
        predicted = self.predictor(latent, restore)[..., 0][hidden].reshape(shape)
        return {
            'loss_predictor': relative_order_loss(
                predicted.float(), losses[hidden].reshape(shape).float()
            )
        }
