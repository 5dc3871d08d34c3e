"""PASCAL VOC as detectron2's protocols train on it. Needs mmdet."""

from __future__ import annotations

from mmdet.datasets import VOCDataset
from mmdet.registry import DATASETS

__all__ = ['VOCWithDifficult']


@DATASETS.register_module()
class VOCWithDifficult(VOCDataset):
    """mmdet's VOC with the objects marked `difficult`, which mmdet ignores in training.

    MoCo's protocol, detectron2's, trains on all boxes; both evaluate without the difficult ones.
    For training sets alone: an evaluation must know which they are. Arguments as `VOCDataset`'s.
    """

    def load_data_list(self) -> list[dict]:
        """As `VOCDataset`'s, with no box ignored; boxes too small are dropped by `filter_cfg`."""
        images = super().load_data_list()
        for image in images:
            for instance in image['instances']:
                instance['ignore_flag'] = 0
        return images
