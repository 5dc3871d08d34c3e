"""What a pretrained backbone knows about real scenes, its weights frozen.

Four questions, on the train, val and test splits of a world exported in COCO's format
(``<world>/<split>/coco.json`` and ``<world>/<split>/images/``):

* scenes: which nouns are in the image? A linear multi-label classifier (``linear``) and nearest
  neighbours (``knn``) on pooled features, mean average precision over nouns;
* objects: which noun is under this exact mask? Linear (``linear_object``) and nearest neighbours
  (``knn_object``) on features pooled under the mask (equation 2 of the paper), accuracy;
* crops: which noun is in this box, cut out and enlarged? ``linear_crop``, ``knn_crop``, accuracy.
  Pooling under masks is what Free-ATM trains, pooling whole images is what its baseline trains;
  crops show one object to both without a mask;
* segmentation: which noun is at each pixel? A linear classifier on every cell of the feature map
  (``segmentation_miou``), mean IoU over nouns and background.

Images are shown whole, with the config's own preprocessor. Every classifier is trained by
full-batch L-BFGS on standardised features, from zero at the strongest L2 penalty and then from
there to the weaker ones; the penalty that does best on the val split is used. Nothing but the
weights under test is random.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from freeatm_mm.checkpoints import check_finite, fit, fit_positions, load_weights
from freeatm_mm.errors import InputError, first_line, moving_to
from freeatm_mm.files import path_inside
from freeatm_mm.probing.metrics import (
    accuracy,
    confusion_matrix,
    knn_votes,
    mean_average_precision,
    mean_iou,
)
from freeatm_mm.results import pack_outcomes
from freeatm_mm.store.pictures import PICTURE_FORMATS

__all__ = [
    'FeatureModel',
    'Features',
    'Scenes',
    'evaluate_features',
    'evaluate_objects',
    'extract_features',
    'fit_linear',
    'load_model',
    'load_scenes',
    'load_weights',
    'standardise',
]

L2_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""The penalties tried for every linear classifier, strongest first."""

SPLITS = ('train', 'val', 'test')


# --- scenes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenes:
    """Images of one split with their objects.

    Attributes:
        images: (N, H, W, 3) uint8, RGB.
        categories: The C nouns, in the order of their category ids.
        object_image: (M,) which image each object is in.
        object_category: (M,) which noun it is, in [0, C).
        object_masks: (M, H, W) booleans, exact.
        object_boxes: (M, 4) left, top, right, bottom in pixels, right and bottom exclusive.
        skipped_objects: Objects without a visible pixel, left out above.
    """

    images: np.ndarray
    categories: tuple[str, ...]
    object_image: np.ndarray
    object_category: np.ndarray
    object_masks: np.ndarray
    object_boxes: np.ndarray
    skipped_objects: int = 0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> np.ndarray:
        """(N, C) booleans: the noun is in the scene."""
        labels = np.zeros((len(self.images), len(self.categories)), dtype=bool)
        labels[self.object_image, self.object_category] = True
        return labels

    @property
    def label_maps(self) -> np.ndarray:
        """(N, H, W) uint8: 0 is background, c + 1 is noun c; a later object covers an earlier."""
        maps = np.zeros(self.images.shape[:3], dtype=np.uint8)
        for image, category, mask in zip(
            self.object_image, self.object_category, self.object_masks
        ):
            maps[image][mask] = category + 1
        return maps


def load_scenes(folder: str | Path, limit: int | None = None) -> Scenes:
    """Read one split: ``coco.json`` (instances with masks) and the images it names.

    Args:
        folder: Holds ``coco.json`` and ``images/``.
        limit: Read the first so many images, in the order of their ids.

    Raises:
        FileNotFoundError: If the annotations or an image are missing.
        ValueError: If there is no image or object, the images differ in size, a name leads out of
            ``images/``, or a category is not listed.
    """
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    folder = Path(folder)
    annotations = folder / 'coco.json'
    if not annotations.is_file():
        raise FileNotFoundError(f'{annotations} not found: a split needs coco.json and images/.')
    with contextlib.redirect_stdout(io.StringIO()):  # COCO prints its progress
        coco = COCO(str(annotations))
    ids = sorted(coco.getImgIds())[:limit]
    category_ids = sorted(coco.getCatIds())
    if len(category_ids) > 254:
        raise ValueError(
            f'{annotations} has {len(category_ids)} categories, more than the 254 '
            'that fit an 8-bit label map.'
        )
    index = {category: number for number, category in enumerate(category_ids)}
    images, which, category, masks, boxes, skipped = [], [], [], [], [], 0
    for number, info in enumerate(coco.loadImgs(ids)):
        path = path_inside(folder / 'images', info['file_name'])
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            images.append(np.asarray(image.convert('RGB')))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f'{path} is {images[-1].shape[1::-1]} pixels, the first image of the '
                f'split {images[0].shape[1::-1]}: all must have one size.'
            )
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[info['id']])):
            if annotation.get('iscrowd'):
                continue
            if annotation.get('category_id') not in index:
                raise ValueError(
                    f'{annotations}: annotation {annotation["id"]} is of category '
                    f'{annotation.get("category_id")}, which the file does not list.'
                )
            mask = coco.annToMask(annotation).astype(bool)
            if mask.shape != images[-1].shape[:2]:
                raise ValueError(
                    f'{annotations}: the mask of annotation {annotation["id"]} is '
                    f'{mask.shape[::-1]} pixels, its image '
                    f'{images[-1].shape[1::-1]}.'
                )
            if not mask.any():
                skipped += 1
                continue
            left, top, width, height = coco_mask.toBbox(coco.annToRLE(annotation))
            which.append(number)
            category.append(index[annotation['category_id']])
            masks.append(mask)
            boxes.append((left, top, left + width, top + height))
    if not which:
        raise ValueError(f'{annotations} has no image with an object in it.')
    names = tuple(info['name'] for info in coco.loadCats(category_ids))
    return Scenes(
        np.stack(images),
        names,
        np.array(which),
        np.array(category),
        np.stack(masks),
        np.array(boxes),
        skipped,
    )


# --- the model --------------------------------------------------------------------------------


@dataclass
class FeatureModel:
    """A frozen backbone with the preprocessor of its config.

    Attributes:
        backbone: In evaluation mode; gives feature maps.
        preprocessor: The config's data preprocessor, which takes BGR images in [0, 255].
        matched: How many of the backbone's tensors came from the checkpoint, 0 for random weights.
        total: How many tensors the backbone has.
    """

    backbone: nn.Module
    preprocessor: nn.Module
    matched: int
    total: int

    @torch.inference_mode()
    def feature_map(self, images: np.ndarray) -> torch.Tensor:
        """Feature maps of the last stage.

        Args:
            images: (B, H, W, 3) uint8, RGB.

        Returns:
            (B, D, h, w) float32 on the model's device.
        """
        # BGR, as OpenMMLab's image loading gives: the preprocessor turns it as the config says
        bgr = torch.from_numpy(np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2)))
        inputs = self.preprocessor({'inputs': bgr, 'data_samples': None}, False)['inputs']
        if _takes_mask(self.backbone):
            outputs = self.backbone(inputs, mask=None)  # masked models: None shows every patch
        else:
            outputs = self.backbone(inputs)
        features = outputs[-1] if isinstance(outputs, (tuple, list)) else outputs
        if features.ndim != 4:
            raise ValueError(
                f'{type(self.backbone).__name__} gave features of shape '
                f'{tuple(features.shape)}; feature maps (B, D, h, w) are needed.'
            )
        if not features.isfinite().all():
            raise ValueError(f'{type(self.backbone).__name__} gave features that are NaN')
        return features.float()

    def weights_sha256(self) -> str:
        """Digest of the backbone's weights, which tells two of them apart."""
        digest = hashlib.sha256()
        for name, value in sorted(self.backbone.state_dict().items()):
            digest.update(f'{name} {value.dtype} {tuple(value.shape)};'.encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def pad(self, maps: torch.Tensor) -> torch.Tensor:
        """Pad pictures as the backbone does, with zeros, so that cells of the feature map fit.

        A patch embedding pads a picture that its patches don't divide; its last row and column of
        cells reach over the edge.

        Args:
            maps: (B, C, H, W), at the size of the images.

        Returns:
            (B, C, H', W'), the same where nothing is padded.
        """
        embedding = getattr(self.backbone, 'patch_embed', None)
        padding = getattr(embedding, 'adaptive_padding', None)
        return maps if padding is None else padding(maps)


def _takes_mask(backbone: nn.Module) -> bool:
    return 'mask' in inspect.signature(backbone.forward).parameters


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without mmengine's two lines for every tensor that it initialises."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


def load_model(
    config: str | Path | Any,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    prefix: str = 'backbone.',
    device: str | torch.device = 'cpu',
    cfg_options: dict[str, Any] | None = None,
) -> FeatureModel:
    """Build the backbone and preprocessor of a config; load its weights or initialise them.

    Args:
        config: Path of an mmengine config whose ``model`` has a ``backbone``, or the Config.
        checkpoint: The weights, whose position embedding is resized if it is of another grid; None
            leaves the backbone at its random initialisation.
        seed: Of that initialisation.
        prefix: What the backbone's tensors are called by in the checkpoint; names without it are
            tried if none has it.
        device: Where to run.
        cfg_options: Overrides of the backbone or the preprocessor, such as
            ``{'model.backbone.depth': 18}``; a config that was handed over stays as it is.

    Returns:
        The frozen model.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If the checkpoint is of another network (`Match.is_same_network`), naming what
            doesn't fit, or its weights are NaN or infinite, or the config has no backbone, or there
            is no such device, or nothing here reads an override.
    """
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmpretrain.models import BaseClassifier
    from mmpretrain.registry import MODELS

    import freeatm_mm.openmmlab  # noqa: F401 - the backbones, whatever the config imports

    if not isinstance(config, Config):
        if not Path(config).is_file():
            raise FileNotFoundError(f'Config {config} not found.')
        config = Config.fromfile(config)
    own = config.get('model', {}).get('data_preprocessor') or not config.get('data_preprocessor')
    read = ('model.backbone.', 'model.data_preprocessor.' if own else 'data_preprocessor.')
    for key in cfg_options or ():
        if not f'{key}.'.startswith(read):
            raise InputError(
                f'cfg_options {key}: nothing here reads it: what is built of the config is '
                f'{" and ".join(part.rstrip(".") for part in read)}'
            )
    if cfg_options:
        config = copy.deepcopy(config)
        config.merge_from_dict(cfg_options)
    if 'backbone' not in config.get('model', {}):
        raise ValueError('The config has no model.backbone to evaluate.')
    backbone_config = config.model.backbone.copy()
    preprocessor_config = dict(
        config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.random.fork_rng(devices=[]):
        kind = MODELS.get(str(config.model.get('type')))
        classifies = isinstance(kind, type) and issubclass(kind, BaseClassifier)
        preprocessor_config.setdefault(
            'type', 'ClsDataPreprocessor' if classifies else 'SelfSupDataPreprocessor'
        )
        torch.manual_seed(seed)
        try:
            preprocessor = MODELS.build(preprocessor_config)
            backbone = MODELS.build(backbone_config)
        except KeyError as error:  # its message goes on about registries
            raise ValueError(
                f'mmpretrain has not all of {preprocessor_config["type"]} and '
                f'{backbone_config.get("type")}: name the config of a pretraining or a classifier '
                f'({first_line(error)})'
            ) from None
        with _quiet():
            backbone.init_weights()
    if 'featmap' in getattr(backbone, 'OUT_TYPES', ()):
        backbone.out_type = 'featmap'  # transformers: patches on their grid, class token left out

    own, matched = backbone.state_dict(), 0
    if checkpoint is not None:
        weights = load_weights(checkpoint)
        check_finite(weights, checkpoint)
        inside = {
            name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)
        } or weights
        match = fit(backbone, inside, resize=fit_positions)
        matched = len(match.fitting)
        if not match.is_same_network():
            raise ValueError(
                f'{checkpoint} (prefix {prefix!r}) does not fit the {type(backbone).__name__} of '
                f'this config: {match.describe()}. At least 95 % must fit both ways, the first '
                'layer among them, and every shape: is it the checkpoint of this config?'
            )
        match.load(backbone)
    backbone.requires_grad_(False).eval()
    with moving_to(device, f'the {type(backbone).__name__}'):
        return FeatureModel(backbone.to(device), preprocessor.to(device), matched, len(own))


# --- features ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Frozen features of one split, float32.

    Attributes:
        scenes: (N, D) mean over the feature map.
        objects: (M, D) mean under each object's mask, cells weighted by the share of them that
            the object covers (equation 2).
        crops: (M, D) mean over the feature map of each object's box, cut out and enlarged to the
            size of an image.
        maps: (n, D, h, w) feature maps of the first n scenes.
        cells: (n, h, w, C + 1) share of each class in every cell, background first.
        picture: (H', W') booleans, the picture in the area that the cells cover
            (`FeatureModel.pad`).
    """

    scenes: np.ndarray
    objects: np.ndarray
    crops: np.ndarray
    maps: np.ndarray
    cells: np.ndarray
    picture: np.ndarray


def extract_features(
    model: FeatureModel,
    scenes: Scenes,
    batch_size: int = 128,
    maps: int | None = None,
    crop_margin: float = 0.1,
) -> Features:
    """Run the frozen model over whole images and over object crops.

    Args:
        model: From `load_model`.
        scenes: From `load_scenes`.
        batch_size: Images at a time.
        maps: Keep the feature maps of the first so many scenes; None keeps all.
        crop_margin: Share of the box's side left around an object on each side, inside the image.
    """
    maps = len(scenes) if maps is None else min(maps, len(scenes))
    pooled, objects, grids = _pool(model, scenes, batch_size, maps)
    height, width = scenes.images.shape[1:3]
    crops = []
    for start in range(0, len(objects), batch_size):
        batch = []
        for number in range(start, min(start + batch_size, len(objects))):
            left, top, right, bottom = scenes.object_boxes[number]
            across, down = crop_margin * (right - left), crop_margin * (bottom - top)
            box = (
                max(left - across, 0),
                max(top - down, 0),
                min(right + across, width),
                min(bottom + down, height),
            )
            image = Image.fromarray(scenes.images[scenes.object_image[number]])
            batch.append(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box)))
        crops.append(model.feature_map(np.stack(batch)).mean(dim=(2, 3)).cpu().numpy())

    one_hot = F.one_hot(
        torch.from_numpy(scenes.label_maps[:maps]).long(), len(scenes.categories) + 1
    )
    cells = F.adaptive_avg_pool2d(model.pad(one_hot.permute(0, 3, 1, 2).float()), grids.shape[2:])
    cells = cells / cells.sum(dim=1, keepdim=True)  # of the part that isn't padding
    picture = model.pad(torch.ones(1, 1, height, width))[0, 0] > 0
    return Features(
        pooled,
        objects,
        np.concatenate(crops),
        grids,
        cells.permute(0, 2, 3, 1).numpy(),
        picture.numpy(),
    )


def _pool(
    model: FeatureModel, scenes: Scenes, batch_size: int, maps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of whole scenes (N, D), of objects under their masks (M, D), and the first maps."""
    pooled, grids = [], []
    objects: list[Any] = [None] * len(scenes.object_image)
    for start in range(0, len(scenes), batch_size):
        stop = min(start + batch_size, len(scenes))
        features = model.feature_map(scenes.images[start:stop]).cpu()
        pooled.append(features.mean(dim=(2, 3)).numpy())
        grids.append(features[: max(maps - start, 0)].numpy())
        inside = np.flatnonzero((scenes.object_image >= start) & (scenes.object_image < stop))
        if len(inside):
            masks = torch.from_numpy(scenes.object_masks[inside]).float()
            size = features.shape[2], features.shape[3]
            cover = F.adaptive_avg_pool2d(model.pad(masks[:, None]), size)[:, 0]
            own = features[torch.from_numpy(scenes.object_image[inside] - start)]
            weight = cover / cover.sum(dim=(1, 2), keepdim=True)
            for number, row in zip(inside, torch.einsum('mdhw,mhw->md', own, weight).numpy()):
                objects[number] = row
    return np.concatenate(pooled), np.stack(objects), np.concatenate(grids)


# --- linear classifiers -----------------------------------------------------------------------


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Shift and scale each dimension to mean 0 and standard deviation 1 on the train rows.

    Args:
        train: (N, D) features that decide shift and scale.
        others: (n, D) features treated the same way.

    Returns:
        All of them, float32; a dimension that is constant on ``train`` becomes zero everywhere.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    spread = train.std(axis=0, dtype=np.float64)
    constant = spread <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, spread))
    return [((part - mean) * scale).astype(np.float32) for part in (train, *others)]


def fit_linear(
    features: np.ndarray,
    targets: np.ndarray,
    l2: float,
    multi_label: bool,
    start: tuple[torch.Tensor, torch.Tensor] | None = None,
    max_iterations: int = 100,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train a linear classifier by L-BFGS on all rows at once.

    Minimises ``mean over rows of loss + l2 / 2 * |weight|^2``, the loss being the binary cross
    entropy summed over classes (``multi_label``) or the cross entropy with soft targets. Both are
    convex: the start decides how fast, not where to.

    Args:
        features: (N, D), standardised.
        targets: (N, C) 0 or 1 for each class, or shares that sum to one.
        l2: Weight of the penalty; the bias has none.
        multi_label: Several classes of a row can be true.
        start: Weight and bias to start from; zeros without.
        max_iterations: Where to stop if not converged.

    Returns:
        Weight (C, D) and bias (C,), float32.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets):
        raise ValueError(
            'fit_linear needs features (N, D) and targets (N, C), got '
            f'{features.shape} and {targets.shape}.'
        )
    x = torch.as_tensor(features, dtype=torch.float32)
    y = torch.as_tensor(targets, dtype=torch.float32)
    if start is None:
        start = x.new_zeros(y.shape[1], x.shape[1]), x.new_zeros(y.shape[1])
    weight, bias = (part.detach().clone().requires_grad_() for part in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-8,
        history_size=20,
        line_search_fn='strong_wolfe',
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = F.linear(x, weight, bias)
        if multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, y, reduction='sum') / len(x)
        else:
            loss = F.cross_entropy(logits, y)
        loss = loss + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def _best_linear(
    train: tuple[np.ndarray, np.ndarray],
    val: np.ndarray,
    test: np.ndarray,
    score: Callable[[np.ndarray], float],
    multi_label: bool,
    l2_grid: Sequence[float],
    max_iterations: int,
) -> tuple[np.ndarray, float]:
    """Scores on ``test`` of the classifier whose penalty ``score`` likes best on ``val``."""
    (x, y), best, start = train, None, None
    for l2 in sorted(l2_grid, reverse=True):
        start = fit_linear(x, y, l2, multi_label, start, max_iterations)
        weight, bias = (part.numpy() for part in start)
        value = score(val @ weight.T + bias)
        if best is None or value > best[0]:
            best = value, test @ weight.T + bias, l2
    assert best is not None
    return best[1], best[2]


# --- the evaluation ---------------------------------------------------------------------------


def _scene_metrics(
    features: dict[str, np.ndarray], labels: dict[str, np.ndarray], l2_grid: Sequence[float]
) -> tuple[dict[str, float], dict[str, Any]]:
    train, val, test = standardise(*(features[split] for split in SPLITS))
    scores, l2 = _best_linear(
        (train, labels['train']),
        val,
        test,
        lambda s: mean_average_precision(s, labels['val'])[0],
        True,
        l2_grid,
        100,
    )
    linear, each = mean_average_precision(scores, labels['test'])
    knn, _ = mean_average_precision(
        knn_votes(features['train'], labels['train'], features['test']), labels['test']
    )
    return {'linear': linear, 'knn': knn}, {'linear_l2': l2, 'linear_each': each.tolist()}


def _object_scores(
    features: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    classes: int,
    l2_grid: Sequence[float],
) -> tuple[dict[str, np.ndarray], float]:
    """Scores of the test objects by a linear classifier and by neighbours; and the penalty."""
    one_hot = np.eye(classes, dtype=np.float32)
    train, val, test = standardise(*(features[split] for split in SPLITS))
    scores, l2 = _best_linear(
        (train, one_hot[labels['train']]),
        val,
        test,
        lambda s: accuracy(s, labels['val']),
        False,
        l2_grid,
        100,
    )
    votes = knn_votes(features['train'], one_hot[labels['train']], features['test'])
    return {'linear': scores, 'knn': votes}, l2


def _object_metrics(
    features: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    classes: int,
    name: str,
    l2_grid: Sequence[float],
) -> tuple[dict[str, float], dict[str, Any]]:
    scores, l2 = _object_scores(features, labels, classes, l2_grid)
    metrics = {f'{kind}_{name}': accuracy(each, labels['test']) for kind, each in scores.items()}
    return metrics, {f'linear_{name}_l2': l2}


def _segmentation_metrics(
    features: dict[str, Features], label_maps: dict[str, np.ndarray], l2_grid: Sequence[float]
) -> tuple[dict[str, float], dict[str, Any]]:
    def rows(split: str) -> np.ndarray:
        maps = features[split].maps
        return maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])

    classes = features['train'].cells.shape[-1]
    grid, picture = features['train'].maps.shape[2:], features['train'].picture
    train, val, test = standardise(*(rows(split) for split in SPLITS))

    def miou(scores: np.ndarray, exact: np.ndarray) -> tuple[float, np.ndarray]:
        maps = torch.from_numpy(scores.reshape(-1, *grid, classes)).permute(0, 3, 1, 2)
        total = np.zeros((classes, classes), dtype=np.int64)
        for part, truth in zip(maps.split(64), np.array_split(exact, range(64, len(exact), 64))):
            enlarged = F.interpolate(part, picture.shape, mode='bilinear', align_corners=False)
            predicted = enlarged.argmax(dim=1).numpy()[:, picture].reshape(truth.shape)
            total += confusion_matrix(predicted, truth, classes)
        return mean_iou(total)

    val_maps = label_maps['val'][: len(features['val'].maps)]
    scores, l2 = _best_linear(
        (train, features['train'].cells.reshape(-1, classes)),
        val,
        test,
        lambda s: miou(s, val_maps)[0],
        False,
        l2_grid,
        40,
    )
    value, each = miou(scores, label_maps['test'][: len(features['test'].maps)])
    return (
        {'segmentation_miou': value},
        {
            'segmentation_l2': l2,
            'segmentation_each': [None if np.isnan(v) else float(v) for v in each],
        },
    )


def evaluate_features(
    model: FeatureModel,
    world: str | Path,
    limits: dict[str, int | None] | None = None,
    batch_size: int = 128,
    segmentation_scenes: int = 1000,
    l2_grid: Sequence[float] = L2_GRID,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Evaluate a frozen backbone on the real scenes of a world.

    Args:
        model: From `load_model`.
        world: Holds the folders train, val and test.
        limits: At most so many scenes of a split, such as ``{'train': 3000}``.
        batch_size: Images at a time.
        segmentation_scenes: Scenes of each split used for segmentation (every cell of every scene
            is a training row, so some are enough).
        l2_grid: Penalties to choose from.

    Returns:
        The metrics, each in [0, 1]: ``linear``, ``knn``, ``linear_object``, ``knn_object``,
        ``linear_crop``, ``knn_crop``, ``segmentation_miou``; and details: chosen penalties, values
        for each noun, counts, seconds.

    Raises:
        FileNotFoundError: If a split is missing.
        ValueError: If a split cannot be used or the splits' categories differ.
    """
    began = time.perf_counter()
    scenes = {
        split: load_scenes(Path(world) / split, (limits or {}).get(split)) for split in SPLITS
    }
    categories = scenes['train'].categories
    for split in SPLITS[1:]:
        if scenes[split].categories != categories:
            raise ValueError(f'{world}: the categories of {split} differ from those of train.')
    loaded = time.perf_counter()
    features = {
        split: extract_features(model, scenes[split], batch_size, segmentation_scenes)
        for split in SPLITS
    }
    extracted = time.perf_counter()

    object_labels = {split: scenes[split].object_category for split in SPLITS}
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}
    for found, more in (
        _scene_metrics(
            {s: features[s].scenes for s in SPLITS}, {s: scenes[s].labels for s in SPLITS}, l2_grid
        ),
        _object_metrics(
            {s: features[s].objects for s in SPLITS},
            object_labels,
            len(categories),
            'object',
            l2_grid,
        ),
        _object_metrics(
            {s: features[s].crops for s in SPLITS}, object_labels, len(categories), 'crop', l2_grid
        ),
        _segmentation_metrics(features, {s: scenes[s].label_maps for s in SPLITS}, l2_grid),
    ):
        metrics.update(found)
        details.update(more)
    each = details.pop('linear_each')
    segmentation = details.pop('segmentation_each')
    details['average_precision'] = {
        name: None if np.isnan(value) else value for name, value in zip(categories, each)
    }
    details['iou'] = dict(zip(('background', *categories), segmentation))
    details['scenes'] = {split: len(scenes[split]) for split in SPLITS}
    details['objects'] = {split: len(scenes[split].object_image) for split in SPLITS}
    details['skipped_objects'] = {split: scenes[split].skipped_objects for split in SPLITS}
    details['matched_weights'] = [model.matched, model.total]
    details['seconds'] = {
        'load': round(loaded - began, 2),
        'extract': round(extracted - loaded, 2),
        'fit': round(time.perf_counter() - extracted, 2),
    }
    return metrics, json.loads(json.dumps(details, allow_nan=False))


def evaluate_objects(
    model: FeatureModel,
    scenes: dict[str, Scenes],
    name: str,
    batch_size: int = 128,
    l2_grid: Sequence[float] = L2_GRID,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Evaluate a frozen backbone on scenes with one object each.

    Args:
        model: From `load_model`.
        scenes: Those of train, val and test.
        name: What the objects are called in the metrics.
        batch_size: Images at a time.
        l2_grid: Penalties to choose from.

    Returns:
        Accuracies in [0, 1]: ``linear_<name>`` and ``knn_<name>`` on features pooled under the
        exact masks, ``linear_<name>_whole`` and ``knn_<name>_whole`` on those of whole images; and
        details: under ``outcomes`` which test objects each got right
        (`freeatm_mm.results.pack_outcomes`), penalties, counts, seconds.

    Raises:
        ValueError: If a scene has not exactly one object.
    """
    began = time.perf_counter()
    for split, some in scenes.items():
        if not np.array_equal(some.object_image, np.arange(len(some))):
            raise ValueError(f'evaluate_objects needs one object in each scene of {split}.')
    labels = {split: scenes[split].object_category for split in SPLITS}
    pooled = {split: _pool(model, scenes[split], batch_size, 0) for split in SPLITS}
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {'outcomes': {}, f'{name}s': len(labels['test'])}
    for place, suffix in ((1, name), (0, f'{name}_whole')):
        scores, details[f'linear_{suffix}_l2'] = _object_scores(
            {split: pooled[split][place] for split in SPLITS},
            labels,
            len(scenes['test'].categories),
            l2_grid,
        )
        for kind, each in scores.items():
            right = each.argmax(1) == labels['test']
            metrics[f'{kind}_{suffix}'] = float(right.mean())
            details['outcomes'][f'{kind}_{suffix}'] = pack_outcomes(right)
    details['seconds'] = {f'{name}s': round(time.perf_counter() - began, 2)}
    return metrics, details
