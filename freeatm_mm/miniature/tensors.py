"""Images as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ['images_to_tensor']


def images_to_tensor(images: np.ndarray) -> Tensor:
    """Turn uint8 images (N, h, w, 3) into a float tensor (N, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
