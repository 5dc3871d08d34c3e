"""VOC's difficult objects: trained on, as MoCo's protocol does, and ignored when judging."""

import xml.etree.ElementTree as ElementTree

import pytest


def test_difficult_objects_are_trained_on(tmp_path):
    pytest.importorskip('mmcv.ops')
    pytest.importorskip('mmdet')
    from mmdet.datasets import VOCDataset

    from freeatm_mm.downstream.tiny_datasets import make_tiny_dataset
    from freeatm_mm.engine.voc import VOCWithDifficult

    root = make_tiny_dataset('voc', tmp_path / 'voc', 2, 64)
    for path in (root / 'VOC2007/Annotations').glob('*.xml'):
        tree = ElementTree.parse(path)
        for node in tree.iter('difficult'):
            node.text = '1'
        tree.write(path)
    options = dict(
        data_root=str(root),
        ann_file='VOC2007/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        pipeline=[],
    )
    flags = [
        {
            instance['ignore_flag']
            for image in kind(**options).load_data_list()
            for instance in image['instances']
        }
        for kind in (VOCDataset, VOCWithDifficult)
    ]
    assert flags == [{1}, {0}]
