"""AP of mmdet's metrics has the digits that pycocotools computes."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip('mmcv.ops')
pytest.importorskip('mmdet')

import torch  # noqa: E402
from helpers.tiny_downstream import make_tiny_world  # noqa: E402

from freeatm_mm import compat  # noqa: E402
from freeatm_mm.downstream.runs import BENCHMARKS, read_metrics  # noqa: E402


def test_ap_is_not_rounded(tmp_path, monkeypatch):
    from mmdet.evaluation.metrics import CocoMetric, coco_metric, voc_metric
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    for module in (coco_metric, voc_metric):  # and undone afterwards
        monkeypatch.setattr(module, 'round', round, raising=False)
    path = make_tiny_world(tmp_path / 'world', images=8) / 'test/coco.json'
    names = [category['name'] for category in json.loads(path.read_text())['categories']]
    boxes = [entry['bbox'] for entry in json.loads(path.read_text())['annotations']]
    random = np.random.default_rng(0)
    shifted = [
        [x + dx, y + dy, w, h]
        for (x, y, w, h), (dx, dy) in zip(boxes, random.uniform(-4, 4, (8, 2)))
    ]

    def evaluate():
        metric = CocoMetric(ann_file=str(path), metric=['bbox'])
        metric.dataset_meta = {'classes': names}
        for number, (x, y, w, h) in enumerate(shifted):
            found = {
                'bboxes': torch.tensor([[x, y, x + w, y + h]]),
                'scores': torch.tensor([0.9 - 0.1 * number]),
                'labels': torch.tensor([number]),
            }
            metric.process({}, [{'img_id': number, 'ori_shape': (64, 64), 'pred_instances': found}])
        return metric.evaluate(8)

    rounded = evaluate()['coco/bbox_mAP']
    compat.keep_digits_of_ap()
    exact = evaluate()
    truth = COCO(str(path))
    results = [
        {'image_id': n, 'category_id': n + 1, 'bbox': box, 'score': 0.9 - 0.1 * n}
        for n, box in enumerate(shifted)
    ]
    judge = COCOeval(truth, truth.loadRes(results), 'bbox')
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert exact['coco/bbox_mAP'] == pytest.approx(judge.stats[0], abs=1e-9)
    assert rounded == round(exact['coco/bbox_mAP'], 3) != exact['coco/bbox_mAP']
    # and as a row keeps it
    (tmp_path / 'metrics.json').write_text(json.dumps({**exact, 'coco/segm_mAP': 0.5}))
    row = read_metrics(tmp_path / 'metrics.json', BENCHMARKS['mini-coco'])
    assert row['box_ap'] == exact['coco/bbox_mAP']
