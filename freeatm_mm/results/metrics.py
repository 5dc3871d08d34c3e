"""What each metric is called, wherever it is shown."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ['METRICS', 'Metric', 'metric_title']


@dataclass(frozen=True)
class Metric:
    """What a metric is called; its values are shares in [0, 1], higher being better.

    Attributes:
        title: In tables and plots of results, by itself.
        column: In the paper's tables, behind the name of the data set that a table measures it on;
            empty for metrics that the paper doesn't have.
    """

    title: str
    column: str = ''


def _retrieval() -> dict[str, Metric]:
    """The figures of retrieval, each before and after fine-tuning."""
    return {
        f'{what}_{figure}': Metric(f'{title}, {figure}', f'{title.lower()} {figure}')
        for what, title in (
            ('zeroshot', 'Zero-shot'),
            ('zeroshot_blocks', 'Zero-shot, blocks'),
            ('finetuned', 'Fine-tuned'),
        )
        for figure in ('TR@1', 'TR@5', 'TR@10', 'IR@1', 'IR@5', 'IR@10', 'mirror')
    }


METRICS: dict[str, Metric] = {
    'linear': Metric('Scenes, linear (mAP)'),
    'knn': Metric('Scenes, k-NN (mAP)'),
    'linear_object': Metric('Objects, linear (acc.)'),
    'knn_object': Metric('Objects, k-NN (acc.)'),
    'linear_crop': Metric('Crops, linear (acc.)'),
    'knn_crop': Metric('Crops, k-NN (acc.)'),
    'linear_garment': Metric('Garments, linear (acc.)'),
    'knn_garment': Metric('Garments, k-NN (acc.)'),
    'linear_garment_whole': Metric('Garments in whole images, linear (acc.)'),
    'knn_garment_whole': Metric('Garments in whole images, k-NN (acc.)'),
    'segmentation_miou': Metric('Segmentation (mIoU)'),
    'finetune_top1': Metric('Objects, fine-tuned (acc.)', 'fine-tuned'),
    'box_ap': Metric('Detection (box AP)', 'box AP'),
    'mask_ap': Metric('Detection (mask AP)', 'mask AP'),
    'box_ap50': Metric('Detection (box AP50)', 'box AP50'),
    'voc_ap50': Metric('VOC (AP50)', 'AP50'),
    'miou': Metric('Segmentor (mIoU)', 'mIoU'),
    'linear_top1': Metric('Classifier, linear (acc.)', 'linear'),
    **_retrieval(),
    'pointing': Metric('Pointing (acc.)', 'pointing'),
}
"""The metrics by their names in result files, in the order of tables."""


def metric_title(name: str) -> str:
    """The title of a metric, which is its name where it has none."""
    return METRICS[name].title if name in METRICS else name
