"""Boxes of a store's images, by any mmdet detector: what PTP's position prompts are made of.

The boxes go to one JSON file, read by `freeatm_mm.lavis_ext`::

    {"detector": ..., "images": {"000000": [{"name": "dog", "box": [x1, y1, x2, y2],
                                             "score": 0.93}, ...], ...}}

with boxes in pixels of the stored image, best first, and an entry for every image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch

from freeatm_mm.checkpoints import check_finite, load_weights
from freeatm_mm.compat import read_checkpoints_safely
from freeatm_mm.datasets.dataset import open_source
from freeatm_mm.errors import InputError, MissingFileError, listed, moving_to
from freeatm_mm.files import (
    atomic_write,
    check_json,
    check_replaceable,
    parse_json,
    read_lines,
)
from freeatm_mm.store import StoreError

__all__ = ['Detector', 'detect_objects']


class Detector:
    """An mmdet detector that takes pictures in memory, several at a time.

    Args:
        config: Its config; the test pipeline is used, without loading annotations.
        checkpoint: Its weights; the names of its classes are looked for there first.
        device: Where it runs.

    Raises:
        FileNotFoundError: If config or checkpoint don't exist.
        ValueError: If the checkpoint isn't of the config or holds NaN, the names of the classes
            are nowhere to be found, or there is no such device.
    """

    def __init__(self, config: str | Path, checkpoint: str | Path, device: str = 'cpu') -> None:
        for path in (config, checkpoint):
            if not Path(path).is_file():
                raise MissingFileError.of('file', path)
        from mmcv.transforms import Compose
        from mmdet.apis import init_detector
        from mmdet.utils import get_test_pipeline_cfg

        read_checkpoints_safely()

        self.model = init_detector(str(config), str(checkpoint), device='cpu')
        with moving_to(device, f'the detector of {config}'):
            self.model.to(device)
        # mmdet would warn, and go on with random weights in the place of what doesn't fit.
        weights = load_weights(checkpoint)
        check_finite(weights, checkpoint)
        missing = self.model.load_state_dict(weights, strict=False).missing_keys
        missing = [name for name in missing if not name.endswith('num_batches_tracked')]
        if missing:
            raise InputError(f'{checkpoint} is not of {config}: it lacks {listed(missing)}')
        self.classes: Any = (self.model.dataset_meta or {}).get('classes')
        if not self.classes:
            raise ValueError(f'{checkpoint} does not say what its classes are called')
        steps = [
            step
            for step in get_test_pipeline_cfg(self.model.cfg)
            if 'Annotations' not in step['type']
        ]
        steps[0] = dict(type='mmdet.LoadImageFromNDArray')
        self.pipeline = Compose(steps)

    @torch.no_grad()
    def __call__(
        self, images: list[np.ndarray], score: float, most: int
    ) -> list[list[dict[str, Any]]]:
        """The objects in some pictures.

        Args:
            images: (h, w, 3) uint8 BGR each.
            score: Least score of an object.
            most: At most so many objects a picture, those with the best scores.

        Returns:
            For each picture its objects, best first: `name`, `box`, `score`.
        """
        packed = [self.pipeline(dict(img=image, img_id=0)) for image in images]
        results = self.model.test_step(
            {name: [one[name] for one in packed] for name in ('inputs', 'data_samples')}
        )
        found = []
        for image, result in zip(images, results):
            instances = result.pred_instances.cpu().numpy()
            # Rounding may leave a box a hair outside, or without any inside.
            edges = np.tile(image.shape[1::-1], 2)
            boxes = np.clip(instances.bboxes, 0, edges)
            real = (boxes[:, 2:] > boxes[:, :2]).all(1) & (instances.scores >= score)
            order = np.argsort(-instances.scores[real], kind='stable')[:most]
            found.append(
                [
                    {
                        'name': self.classes[label],
                        'box': [round(float(edge), 2) for edge in box],
                        'score': round(float(value), 4),
                    }
                    for label, box, value in zip(
                        instances.labels[real][order],
                        boxes[real][order],
                        instances.scores[real][order],
                    )
                ]
            )
        return found


def _finished(path: Path, header: dict[str, Any]) -> tuple[dict[str, list], set[str]]:
    """What an interrupted run with the same settings has found, and what it couldn't read.

    Its last line may be cut off.

    Raises:
        InputError: If it had other settings, or a line other than the last is damaged.
    """
    done: dict[str, list] = {}
    unreadable: set[str] = set()
    if not os.path.lexists(path):
        return done, unreadable
    damaged = f'delete {path}, which is what an interrupted run has found'
    lines: list[tuple[int, Any]] = []
    wrong = None
    for number, line in read_lines(path):
        if wrong is not None:
            raise InputError(f'{path}, line {number - 1}: {wrong}; {damaged}')
        try:
            lines.append((number, parse_json(line)))
        except InputError as error:
            wrong = error
    if lines and lines[0][1] != header:
        raise InputError(f'{path} is of a run with other settings: delete it, or name another file')
    for number, entry in lines[1:]:
        check_json(
            entry,
            {
                'key': str,
                'objects': [{'name': str, 'box': [float], 'score': float}],
                'unreadable?': bool,
            },
            f'{path}, line {number}',
        )
        done[entry['key']] = entry['objects']
        if entry.get('unreadable'):
            unreadable.add(entry['key'])
    return done, unreadable


def _decoded(data: bytes) -> np.ndarray | None:
    """The pixels of a picture; None if it can't be decoded.

    Cameras' notes on turning are passed over, as LAVIS does: boxes fit the stored pixels.
    """
    try:
        return mmcv.imfrombytes(data, flag='color_ignore_orientation')
    except cv2.error:  # of an empty file, or one too large
        return None


def _line(key: str, objects: list, unreadable: bool) -> bytes:
    more = {'unreadable': True} if unreadable else {}
    return json.dumps({'key': key, 'objects': objects, **more}).encode() + b'\n'


def detect_objects(
    detector: Detector,
    source: str | Path,
    out: str | Path,
    described: str,
    score: float = 0.3,
    most: int = 10,
    batch_size: int = 8,
    skip_unreadable: bool = False,
) -> Iterator[int]:
    """Detect objects in all images of a store or image folder and write them to a file.

    Stopped and started again, it goes on where it was: finished images stand in `OUT.part`.

    Args:
        detector: The detector.
        source: Folder of a store, or of plain images.
        out: The JSON file.
        described: What detector it is, kept in the file.
        score: Least score of an object.
        most: At most so many objects an image (PTP: 10).
        batch_size: Images at a time.
        skip_unreadable: Whether a picture that can't be decoded has no objects, and is counted
            under `unreadable`; otherwise it is an error.

    Yields:
        How many images are done, now and then.

    Raises:
        StoreError: If the source or one of its pictures can't be read.
        InputError: If a number is out of range, `out` is a folder, or `OUT.part` is damaged or of a
            run with other settings.
    """
    if not 0 <= score <= 1:
        raise InputError(f'score must be from 0 to 1, got {score}')
    for name, value in (('most', most), ('batch_size', batch_size)):
        if value < 1:
            raise InputError(f'{name} must be at least 1, got {value}')
    out = Path(out)
    if out.is_dir():
        raise InputError(f'{out} is a folder, where a file is to be written')
    check_replaceable(out, 'a file of detections', '"weights_sha256": ')
    images = open_source(source)
    part = out.with_name(out.name + '.part')
    weights = hashlib.sha256()
    for name, value in sorted(detector.model.state_dict().items()):
        weights.update(name.encode() + value.cpu().numpy().tobytes())
    header = {
        'detector': described,
        'weights_sha256': weights.hexdigest(),
        'score': score,
        'most': most,
        'images': len(images),
    }
    found, unreadable = _finished(part, header)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(part) as file:  # without what was cut off
        file.write(json.dumps(header).encode() + b'\n')
        for key, objects in found.items():
            file.write(_line(key, objects, key in unreadable))
    with part.open('ab') as file:
        for start in range(0, len(images), batch_size):
            batch = [
                images.read(number) for number in range(start, min(start + batch_size, len(images)))
            ]
            batch = [raw for raw in batch if raw.key not in found]
            pictures = [_decoded(raw.image_bytes) for raw in batch]
            for raw, picture in zip(batch, pictures):
                if picture is None and not skip_unreadable:
                    raise StoreError(f"{source}: the image {raw.key!r} can't be decoded")
            if batch:
                readable = [picture for picture in pictures if picture is not None]
                detected = iter(detector(readable, score, most) if readable else ())
                for raw, picture in zip(batch, pictures):
                    objects = [] if picture is None else next(detected)
                    found[raw.key] = objects
                    if picture is None:
                        unreadable.add(raw.key)
                    file.write(_line(raw.key, objects, picture is None))
                file.flush()
            yield len(found)
    with atomic_write(out) as file:
        file.write(
            json.dumps(
                {
                    **header,
                    **({'unreadable': len(unreadable)} if unreadable else {}),
                    'images': found,
                }
            ).encode()
        )
    part.unlink()
    if unreadable:
        logging.warning(
            "%s: %d pictures can't be decoded and have no objects", source, len(unreadable)
        )
