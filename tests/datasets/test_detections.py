"""Detections by an mmdet detector: a tiny one with random weights, on a tiny store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_stores import make_store
from helpers.tools import load_tool

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops', reason='mmcv without its ops', exc_type=ImportError)

from freeatm_mm import compat  # noqa: E402
from freeatm_mm.errors import InputError  # noqa: E402
from freeatm_mm.store import StoreError  # noqa: E402

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/miniature/downstream/mask-rcnn_resnet.py'

tool = load_tool('convert/detect_objects')


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    """A store of ten images and the miniature's detector with random weights."""
    import mmdet.models  # noqa: F401
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    compat.accept_mmseg_fork()
    folder = tmp_path_factory.mktemp('detector')
    init_default_scope('mmdet')
    cfg = Config.fromfile(CONFIG)
    torch.manual_seed(0)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    init_default_scope('mmpretrain')
    torch.save(
        {
            'state_dict': model.state_dict(),
            'meta': {'dataset_meta': {'classes': list(cfg.classes)}},
        },
        folder / 'weights.pth',
    )
    return make_store(folder / 'store', count=10, size=(48, 64)), folder / 'weights.pth'


def detect(parts, out, *options):
    store, weights = parts
    tool.main([str(CONFIG), str(weights), str(store), str(out), *map(str, options)])
    return json.loads(out.read_text())


def test_every_image_has_its_boxes(parts, tmp_path):
    content = detect(parts, tmp_path / 'found.json', '--score', 0.04, '--most', 3)
    assert list(content['images']) == [f'{number:06d}' for number in range(10)]
    assert any(content['images'].values())
    for objects in content['images'].values():
        assert len(objects) <= 3
        scores = [thing['score'] for thing in objects]
        assert scores == sorted(scores, reverse=True) and all(score >= 0.04 for score in scores)
        for thing in objects:
            x1, y1, x2, y2 = thing['box']
            assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 48
            assert isinstance(thing['name'], str)
    assert not (tmp_path / 'found.json.part').exists()


def test_boxes_are_those_of_mmdet(parts, tmp_path):
    from mmdet.apis import inference_detector

    from freeatm_mm.datasets.detections import Detector
    from freeatm_mm.store import Store

    detector = Detector(CONFIG, parts[1])
    image = np.asarray(Store(parts[0])[3].image)[..., ::-1]
    (ours,) = detector([np.ascontiguousarray(image)], 0.0, 5)
    theirs = inference_detector(detector.model, image, test_pipeline=detector.pipeline)
    np.testing.assert_allclose(
        [thing['box'] for thing in ours], theirs.pred_instances.bboxes[:5].numpy(), atol=0.01
    )


def test_an_interrupted_run_goes_on(parts, tmp_path, monkeypatch, capsys):
    whole = detect(parts, tmp_path / 'whole.json', '--score', 0.04)
    from freeatm_mm.datasets import detections

    calls = []
    real = detections.Detector.__call__

    def counted(self, images, *rest):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, images, *rest)

    monkeypatch.setattr(detections.Detector, '__call__', counted)
    options = ['--score', 0.04, '--batch-size', 3]
    with pytest.raises(SystemExit) as ended:
        detect(parts, tmp_path / 'parts.json', *options)
    assert ended.value.code == 130
    part = tmp_path / 'parts.json.part'
    part.write_bytes(part.read_bytes() + b'{"key": "0000')  # killed while it wrote
    with pytest.raises(SystemExit):
        detect(parts, tmp_path / 'parts.json', '--score', 0.05)
    assert 'other settings' in capsys.readouterr().err
    found = detect(parts, tmp_path / 'parts.json', *options)
    assert sum(calls[3:]) == 4  # six were done
    assert found['images'].keys() == whole['images'].keys()


class NoObjects:
    """A detector that finds nothing."""

    model = torch.nn.Linear(1, 1)

    def __call__(self, images, score, most):
        return [[] for _ in images]


@pytest.fixture
def photos(tmp_path):
    from PIL import Image

    (tmp_path / 'photos').mkdir()
    for name in 'abc':
        Image.new('RGB', (40, 20)).save(tmp_path / f'photos/{name}.png')
    return tmp_path / 'photos'


def found_in(source, out, **options):
    from freeatm_mm.datasets.detections import detect_objects

    return list(detect_objects(NoObjects(), source, out, 'none', **options))


@pytest.mark.parametrize(
    'options, message',
    [
        ({'score': float('nan')}, 'score must be from 0 to 1, got nan'),
        ({'score': 2}, 'score must be from 0 to 1, got 2'),
        ({'most': 0}, 'most must be at least 1, got 0'),
        ({'batch_size': 0}, 'batch_size must be at least 1, got 0'),
    ],
)
def test_numbers_out_of_range_are_refused(photos, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        found_in(photos, tmp_path / 'found.json', **options)
    with pytest.raises(InputError, match='is a folder, where a file is to be written'):
        found_in(photos, tmp_path)


@pytest.mark.parametrize(
    'line, message',
    [
        (b'nonsense\n', 'found.json.part, line 2: '),
        (b'[]\n', 'line 2 must be an object'),
        (b'{"key": "a"}\n', "line 2: the field 'objects' is missing"),
        (b'{"key": "a", "objects": [{"name": "dog"}]}\n', "the field 'box' is missing"),
        (b'\xff\n', 'line 2: it is not UTF-8'),
    ],
)
def test_a_damaged_part_is_one_sentence(photos, tmp_path, line, message):
    part = tmp_path / 'found.json.part'
    (photos / 'd.png').write_bytes(b'no picture')
    with pytest.raises(StoreError, match="the image '.*d.*' can't be decoded"):
        found_in(photos, tmp_path / 'found.json', batch_size=1)
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b''.join([lines[0], line, *lines[1:]]))
    with pytest.raises(InputError, match=message) as told:
        found_in(photos, tmp_path / 'found.json', batch_size=1)
    assert '\n' not in str(told.value)


@pytest.mark.parametrize('content', [b'no picture', b''])
def test_unreadable_pictures_are_counted_if_asked(photos, tmp_path, caplog, content):
    (photos / 'b.png').write_bytes(content)
    from freeatm_mm.datasets.detections import detect_objects

    with pytest.raises(StoreError, match="the image '.*b.*' can't be decoded"):
        found_in(photos, tmp_path / 'found.json', batch_size=1)
    run = detect_objects(
        NoObjects(), photos, tmp_path / 'found.json', 'none', batch_size=1, skip_unreadable=True
    )
    next(run), next(run)
    run.close()  # stopped after the second picture
    found_in(photos, tmp_path / 'found.json', skip_unreadable=True, batch_size=1)
    content = json.loads((tmp_path / 'found.json').read_text())
    assert content['unreadable'] == 1 and len(content['images']) == 3
    assert "1 pictures can't be decoded" in caplog.text


def test_a_turned_photo_is_seen_as_it_is_stored(tmp_path):
    """LAVIS reads its pixels unturned; boxes of a turned one would lie elsewhere, or outside."""
    from PIL import Image

    from freeatm_mm.datasets.detections import detect_objects

    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter to the right
    (tmp_path / 'photos').mkdir()
    Image.new('RGB', (40, 20)).save(tmp_path / 'photos/a.jpg', exif=turned)
    seen = []

    class Recorder:
        model = torch.nn.Linear(1, 1)

        def __call__(self, images, score, most):
            seen.extend(image.shape for image in images)
            return [[] for _ in images]

    list(detect_objects(Recorder(), tmp_path / 'photos', tmp_path / 'found.json', 'x'))
    assert seen == [(20, 40, 3)]
    assert list(json.loads((tmp_path / 'found.json').read_text())['images']) == ['a.jpg']


@pytest.mark.parametrize(
    'config, checkpoint, store, message',
    [
        ('no.py', None, None, 'there is no file no.py'),
        (None, 'no.pth', None, 'no file no.pth'),
        (None, None, 'no/store', 'no/store: no such folder'),
    ],
)
def test_wrong_paths_are_told(parts, tmp_path, capsys, config, checkpoint, store, message):
    with pytest.raises(SystemExit):
        tool.main(
            [
                config or str(CONFIG),
                checkpoint or str(parts[1]),
                store or str(parts[0]),
                str(tmp_path / 'out.json'),
            ]
        )
    assert message in capsys.readouterr().err


def test_weights_of_another_detector_are_refused(parts, tmp_path):
    content = torch.load(parts[1], weights_only=True)
    weights = {key: value for key, value in content['state_dict'].items() if 'bbox_head' not in key}
    assert len(weights) < len(content['state_dict'])
    torch.save({**content, 'state_dict': weights}, tmp_path / 'other.pth')
    from freeatm_mm.datasets.detections import Detector

    with pytest.raises(InputError, match='other.pth is not of .* it lacks roi_head.bbox_head'):
        Detector(CONFIG, tmp_path / 'other.pth')
    name = next(name for name, value in weights.items() if value.is_floating_point())
    content['state_dict'][name] = content['state_dict'][name] * float('nan')
    torch.save(content, tmp_path / 'nan.pth')
    with pytest.raises(InputError, match='NaN'):
        Detector(CONFIG, tmp_path / 'nan.pth')


def test_a_device_that_is_not_there_is_one_sentence(parts, tmp_path, capsys):
    with pytest.raises(SystemExit):
        detect(parts, tmp_path / 'out.json', '--device', 'cuda:99')
    assert "resnet.py can't be moved to the device cuda:99: " in capsys.readouterr().err
