"""Regions of images by a network's own features: k-means of the cells of its feature map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from freeatm_mm.probing.features import FeatureModel
from freeatm_mm.store.regions import Segmenter, kmeans

__all__ = ['feature_clusters']


def feature_clusters(model: FeatureModel, clusters: int = 5, seed: int = 0) -> Segmenter:
    """Cut images into clusters of cells that a frozen network sees as alike (as ODIN does).

    Features are brought to length 1, so that directions are compared.

    Args:
        model: From `freeatm_mm.probing.features.load_model`.
        clusters: How many of each image, at most.
        seed: Of the first centres.
    """

    def segment(images: Sequence[np.ndarray], keys: Sequence[str]) -> list[np.ndarray]:
        alike = len({image.shape for image in images}) == 1
        batches = [np.stack(images)] if alike else [image[None] for image in images]
        maps = [each for batch in batches for each in model.feature_map(batch).cpu()]
        labels = []
        for image, features, key in zip(images, maps, keys):
            cells = torch.nn.functional.normalize(features, dim=0).permute(1, 2, 0).numpy()
            found = kmeans(cells, clusters, seed, key)
            # The area that the cells cover: the image, and the padding of a patch embedding.
            covered = model.pad(torch.zeros(1, 1, *image.shape[:2])).shape[2:]
            rows, columns = (
                np.minimum((np.arange(pixels) + 0.5) * count // size, count - 1).astype(int)
                for pixels, count, size in zip(image.shape, found.shape, covered)
            )
            labels.append(found[rows[:, None], columns])
        return labels

    return segment
