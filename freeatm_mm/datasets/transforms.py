"""Transforms that carry masks: every geometric step is recorded, masks are resampled once.

The geometric transforms are mmpretrain's and mmcv's own classes; they draw the same random numbers
and give the same pixels, and note in `results['window']` which part of the image is left
(`freeatm_mm.ops.geometry`). `PackFreeATMInputs` brings the stored masks straight to
the encoder's feature grid, for all views at once: no mask of image size is ever made.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose, RandomApply, RandomFlip, RandomGrayscale
from mmpretrain.datasets.transforms import ColorJitter, MultiView, PackInputs, RandomResizedCrop
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample
from PIL import Image

from freeatm_mm.datasets.samplers import mix_seed
from freeatm_mm.errors import one_sentence
from freeatm_mm.ops.choices import check_choice
from freeatm_mm.ops.geometry import (
    MASK_VALUES,
    WHOLE,
    ViewMasks,
    centred_boxes,
    choose_object,
    crop_window,
    flip_window,
    masks_on_views,
    object_boxes,
)
from freeatm_mm.ops.masks import dequantize, peakedness
from freeatm_mm.ops.nouns import noun_id
from freeatm_mm.store import RawSample, Store, StoreError
from freeatm_mm.store.pictures import PICTURE_FORMATS

MUTABLE = (list, dict, set, np.ndarray)


@TRANSFORMS.register_module()
class LoadFromStore(BaseTransform):
    """Reads a sample of `freeatm_mm.datasets.FreeATMDataset` and decodes it.

    Required keys: `source`, `source_idx`, `with_masks` (removed), and `mask_source`,
    `mask_source_idx` (removed) where the masks are another sample's. Added keys: `img` (H, W, 3)
    uint8 BGR, `img_shape`, `ori_shape`, `img_path` (the sample's key), `window`, and with masks
    `stored_masks` (K, h, w) uint8, `mask_scales` (K, 2) float32 (lowest and highest attention) and
    `noun_ids` (K,) int64, and `mask_trust` (K,) float32 if asked for. K is 0 where a sample has no
    nouns.

    Images are read as mmpretrain's `LoadImageFromFile` reads them: 8 bits a channel, transparency
    left out, a camera's note on turning followed; but a store's are never turned, as its masks lie
    on the pixels as they are stored.

    Args:
        imdecode_backend: mmcv's decoder: 'cv2', 'pillow', 'turbojpeg', 'tifffile'.
        color_type: mmcv's flag: 'color', 'grayscale', ...
        centred_box: As a control, in place of each mask a box in the image's centre, of the image's
            proportions: its share of the image's area, in (0, 1], or 'own' for that of the mask's
            own foreground. The noun's lowest and highest attention stay.
        trust: Also tell how far each mask can be trusted (`freeatm_mm.ops.peakedness`): contrastive
            methods weigh each instance's loss by it, whole images by 1. Of controls: a centred box
            has the trust of the mask in whose place it is, so that the weights stay; another
            image's mask (`mask_source` of `FreeATMDataset`) has its own, as it has its noun.

    Raises:
        ValueError: If `centred_box` is out of range.
    """

    def __init__(
        self,
        imdecode_backend: str = 'cv2',
        color_type: str = 'color',
        centred_box: float | str | None = None,
        trust: bool = False,
    ) -> None:
        if centred_box not in (None, 'own') and not (
            isinstance(centred_box, (int, float)) and 0 < centred_box <= 1
        ):
            raise ValueError(
                f"LoadFromStore: centred_box {centred_box!r} must be 'own' or a share "
                'of the image, above 0 and at most 1.'
            )
        self.imdecode_backend = imdecode_backend
        self.color_type = color_type
        self.centred_box = centred_box
        self.trust = trust

    def transform(self, results: dict) -> dict:
        """Read and decode one sample.

        Raises:
            StoreError: If the sample can't be read, or its image or masks can't be decoded.
        """
        return self.decode_image(self.decode_masks(self.read(results)))

    def read(self, results: dict) -> dict:
        """Read one sample, decoding neither image nor masks.

        Added keys: `encoded` and, with masks, `encoded_masks`.

        Raises:
            StoreError: If the sample can't be read.
        """
        source, number = results.pop('source'), results.pop('source_idx')
        encoded = results['encoded'] = source, source.read(number)
        if 'mask_source' in results:
            source = results.pop('mask_source')
            encoded = source, source.read(results.pop('mask_source_idx'))
        if results.pop('with_masks'):
            results['encoded_masks'] = encoded
        return results

    def decode_masks(self, results: dict) -> dict:
        """Decode the masks of a sample that was read, where it is to have any.

        Raises:
            StoreError: If they can't be decoded.
        """
        if 'encoded_masks' in results:
            source, raw = results.pop('encoded_masks')
            try:
                self._add_masks(raw, results)
            except StoreError as error:
                raise StoreError(f'{source.path}: {error}') from None
        return results

    def decode_image(self, results: dict) -> dict:
        """Decode the image of a sample that was read.

        Raises:
            StoreError: If it can't be decoded.
        """
        source, raw = results.pop('encoded')
        flag = self.color_type
        if (
            isinstance(source, Store)
            and flag in ('color', 'grayscale')
            and self.imdecode_backend in ('cv2', 'pillow')
        ):
            flag += '_ignore_orientation'
        try:
            if self.imdecode_backend == 'pillow':  # mmcv would let Pillow try every format
                Image.open(io.BytesIO(raw.image_bytes), formats=PICTURE_FORMATS)
            image = mmcv.imfrombytes(raw.image_bytes, flag=flag, backend=self.imdecode_backend)
        except Exception as error:
            reason = one_sentence(error) if raw.image_bytes else 'it is empty'
            raise StoreError(
                f"{source.path}: the image of sample {raw.key!r} can't be decoded ({reason})"
            ) from error
        if image is None:
            raise StoreError(f"{source.path}: the image of sample {raw.key!r} can't be decoded")
        results.update(
            img=image,
            img_shape=image.shape[:2],
            ori_shape=image.shape[:2],
            img_path=raw.key,
            window=WHOLE,
        )
        return results

    def _add_masks(self, raw: RawSample, results: dict) -> None:
        """Add the masks of a sample to results, where it has any."""
        names = raw.names()
        if not names:
            return
        masks = raw.masks()
        if self.trust:  # of the masks that boxes stand for: a control changes the masks alone
            results['mask_trust'] = peakedness(dequantize(masks, raw.scales()))
        if self.centred_box:
            area = self.centred_box
            masks = centred_boxes(masks, None if isinstance(area, str) else area)
        results.update(
            stored_masks=masks,
            mask_scales=raw.scales(),
            noun_ids=np.array([noun_id(name) for name in names], np.int64),
        )

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(imdecode_backend={self.imdecode_backend!r}, '
            f'color_type={self.color_type!r}, centred_box={self.centred_box!r}, '
            f'trust={self.trust})'
        )


@TRANSFORMS.register_module()
class FreeATMRandomResizedCrop(RandomResizedCrop):
    """mmpretrain's `RandomResizedCrop`, bit for bit, that also notes where the crop lies.

    Changed keys: `img`, `img_shape` as there, and `window`. Where `FreeATMMultiView` has chosen an
    object to crop around (`object_weights`, removed), the crop is moved there; its size stays. Of
    several crops in a view the first alone is moved.
    """

    def transform(self, results: dict) -> dict:
        """Crop and resize; see the class."""
        image = results['img']
        # Drawn here, not by overriding `rand_crop_params`: an overriding method is registered a
        # second time with mmcv's `cache_randomness`, which then refuses to share draws.
        box = self.rand_crop_params(image)
        if 'object_weights' in results:  # of the whole image, which a second crop would not see
            weights = results.pop('object_weights')[None]
            box = tuple(object_boxes(np.array([box]), image.shape[:2], weights)[0].tolist())
        y, x, height, width = box
        crop = image[y : y + height, x : x + width]
        view = mmcv.imresize(
            # Pillow copies what isn't contiguous, too, but byte by byte.
            np.ascontiguousarray(crop) if self.backend == 'pillow' else crop,
            tuple(self.scale[::-1]),
            interpolation=self.interpolation,
            backend=self.backend,
        )
        results['window'] = crop_window(results.get('window', WHOLE), box, image.shape[:2])
        results.update(img=view, img_shape=view.shape)
        return results


@TRANSFORMS.register_module()
class FreeATMRandomFlip(RandomFlip):
    """mmcv's `RandomFlip`, bit for bit, that also notes the flip.

    Changed keys: those of `RandomFlip`, and `window`.
    """

    def transform(self, results: dict) -> dict:
        """Flip or not; see the class."""
        results = super().transform(results)
        if results['flip']:
            results['window'] = flip_window(results.get('window', WHOLE), results['flip_direction'])
        return results


@TRANSFORMS.register_module()
class FreeATMColorJitter(ColorJitter):
    """mmpretrain's `ColorJitter`, bit for bit, and faster with Pillow.

    mmcv hands Pillow the colours in reversed order, and Pillow copies an array byte by byte unless
    its bytes lie in a row. Here they do, and so do those of what is returned.

    Changed keys: `img`.
    """

    def transform(self, results: dict) -> dict:
        """Change the colours; see the class."""
        image = results['img']
        if self.backend != 'pillow' or image.dtype != np.uint8 or image.shape[2:] != (3,):
            return super().transform(results)
        rgb = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2RGB)
        results['img'] = rgb[..., ::-1]
        results = super().transform(results)
        results['img'] = cv2.cvtColor(results['img'][..., ::-1], cv2.COLOR_RGB2BGR)
        return results


@TRANSFORMS.register_module()
class FreeATMRandomGrayscale(RandomGrayscale):
    """mmcv's `RandomGrayscale`, bit for bit, and faster.

    Changed keys: `img`.
    """

    def transform(self, results: dict) -> dict:
        """Take the colours away or not; see the class."""
        image, weights = results['img'], np.array(self.channel_weights)
        if (
            self.color_format == 'hsv'
            or image.dtype != np.uint8
            or image.shape[2:] != (3,)
            or len(weights) != 3
        ):
            return super().transform(results)
        if self._random_prob() < self.prob:
            weights = weights / sum(self.channel_weights)
            # Added up in the order of NumPy's sum over the last axis, which is slow on three.
            grey = weights[0] * image[..., 0]
            grey += weights[1] * image[..., 1]
            grey += weights[2] * image[..., 2]
            image = grey.astype('uint8')
            image = cv2.merge([image] * 3) if self.keep_channels else image
        results['img'] = image
        return results


#: What `FreeATMMultiView` puts in place of transforms that give the same more slowly.
FASTER = {ColorJitter: FreeATMColorJitter, RandomGrayscale: FreeATMRandomGrayscale}


def _hasten(transforms: Sequence) -> None:
    for transform in transforms:
        if type(transform) in FASTER:
            transform.__class__ = FASTER[type(transform)]  # they hold the same
        elif type(transform) in (Compose, RandomApply):
            inner = transform.transforms
            _hasten([inner] if isinstance(inner, Compose) else inner)


TRACKED = (
    'LoadFromStore',
    'FreeATMRandomResizedCrop',
    'FreeATMRandomFlip',
    'FreeATMMultiView',
    'PackFreeATMInputs',
    'Resize',
    'ResizeEdge',
)
"""Transforms that keep `window` true; resizing the whole picture leaves it as it is."""

#: What of mmcv's and mmpretrain's loses masks, and what to use.
_INSTEAD = {'LoadImageFromFile': 'LoadFromStore', 'PackInputs': 'PackFreeATMInputs'}

PHOTOMETRIC = (
    'ColorJitter',
    'FreeATMColorJitter',
    'FreeATMRandomGrayscale',
    'RandomGrayscale',
    'GaussianBlur',
    'RandomSolarize',
    'Solarize',
    'SolarizeAdd',
    'Posterize',
    'Equalize',
    'AutoContrast',
    'Invert',
    'ColorTransform',
    'Contrast',
    'Brightness',
    'Sharpness',
    'Lighting',
    'Normalize',
    'PhotoMetricDistortion',
)
"""Transforms that leave every pixel where it is."""


def check_loading(transforms: Sequence) -> None:
    """Make sure that a pipeline begins by reading a store; one of unknown transforms may.

    Raises:
        ValueError: If it begins with a transform that needs a picture, or mmcv's loading.
    """
    name = type(transforms[0]).__name__ if transforms else 'LoadFromStore'
    if name != 'LoadFromStore' and name in (*TRACKED, *PHOTOMETRIC, *_INSTEAD):
        raise ValueError(f'the pipeline must begin with LoadFromStore, not {name}')


def check_tracked(transforms: Sequence, photometric: Sequence[str] = ()) -> None:
    """Make sure that no transform moves pixels without moving the masks.

    Args:
        transforms: Transforms of a view, with lists, `Compose` and `RandomApply` around them.
        photometric: Further class names that are known to leave pixels where they are.

    Raises:
        ValueError: Naming the first transform that isn't known to be safe.
    """
    for transform in transforms:
        name = type(transform).__name__
        inner = getattr(transform, 'transforms', None)
        if inner is not None and name in ('Compose', 'RandomApply', 'RandomChoice'):
            check_tracked([inner] if isinstance(inner, Compose) else inner, photometric)
        elif isinstance(transform, (list, tuple)):
            check_tracked(transform, photometric)
        elif name in _INSTEAD:
            raise ValueError(f'{name} would leave the masks out: use {_INSTEAD[name]} instead.')
        elif name not in (*TRACKED, *PHOTOMETRIC, *photometric):
            hint = (
                f'use FreeATM{name} instead'
                if f'FreeATM{name}' in TRACKED
                else f'if it leaves every pixel where it is, say photometric=[{name!r}]'
            )
            raise ValueError(f'{name} would move the image and not its masks: {hint}.')


@TRANSFORMS.register_module()
class FreeATMMultiView(MultiView):
    """mmpretrain's `MultiView`, with the window of every view.

    Changed keys: `img`, a list of views, and `windows`, a list of as many windows. Stored masks are
    left alone. `ColorJitter` and `RandomGrayscale` are run by `FreeATMColorJitter` and
    `FreeATMRandomGrayscale`, which give the same faster.

    Args:
        transforms: As in `MultiView`: for each kind of view its transforms.
        num_views: As in `MultiView`: how many views of each kind.
        photometric: Names of further transforms that leave every pixel where it is.
        object_crops: Share of the images, in [0, 1], all of whose views are cropped around one of
            their nouns, drawn anew each time: `FreeATMRandomResizedCrop` has its centres where that
            noun's mask is. Sizes of crops and all other random numbers stay as without.

    Raises:
        ValueError: If a transform would move the image and not its masks, or `object_crops` is out
            of range, or asked for where a view doesn't begin with `FreeATMRandomResizedCrop`.
    """

    def __init__(
        self,
        transforms: list[list],
        num_views: int | list[int],
        photometric: Sequence[str] = (),
        object_crops: float = 0.0,
    ) -> None:
        super().__init__(transforms, num_views)
        for pipeline in self.pipelines:
            check_tracked(pipeline.transforms, photometric)
            _hasten(pipeline.transforms)
        if not 0 <= object_crops <= 1:
            raise ValueError(
                f'FreeATMMultiView: object_crops {object_crops!r} must be a share from 0 to 1.'
            )
        if object_crops and not all(
            isinstance(first, FreeATMRandomResizedCrop)
            for first in (next(iter(pipeline.transforms), None) for pipeline in self.pipelines)
        ):
            raise ValueError(
                'FreeATMMultiView: object_crops needs views that begin with '
                'FreeATMRandomResizedCrop.'
            )
        self.object_crops = object_crops

    def transform(self, results: dict) -> dict:
        """Make the views."""
        image = results['img']
        shared = ('img', 'stored_masks', 'mask_scales', 'mask_trust', 'noun_ids')
        rest = [
            (key, value, isinstance(value, MUTABLE))
            for key, value in results.items()
            if key not in shared
        ]
        weights = None
        if self.object_crops and 'stored_masks' in results:
            if not np.array_equal(results.get('window', WHOLE), WHOLE):
                raise ValueError(
                    'FreeATMMultiView: object_crops crops around objects of the whole image: put '
                    'what crops or flips it before the views into the views (transforms)'
                )
            draw = _draw_apart()
            weights = choose_object(results['stored_masks'], draw, self.object_crops)
        images, windows = [], []
        for transform in self.transforms:
            # As in MultiView each view starts from its own copy, here without copying the masks.
            view = {key: copy.deepcopy(value) if mutable else value for key, value, mutable in rest}
            # A crop makes a new picture, and leaves the one that it cuts from alone.
            first = transform.transforms[0] if transform.transforms else None
            view['img'] = image if type(first) is FreeATMRandomResizedCrop else image.copy()
            if weights is not None:
                view['object_weights'] = weights
            view = transform(view)
            images.append(view['img'])
            windows.append(view['window'])
        results.update(img=images, windows=windows)
        return results


def _draw_apart() -> float:
    """A number in [0, 1) that follows from NumPy's random state, which stays as it is."""
    state = np.random.RandomState()
    state.set_state(np.random.get_state())
    return mix_seed(int(state.randint(2**32, dtype=np.uint64))) / 2**32


@TRANSFORMS.register_module()
class PackFreeATMInputs(PackInputs):
    """mmpretrain's `PackInputs`, with the masks of all views on the encoder's feature grid.

    Adds to the data sample, where the sample has masks and at least one instance is left:

    - `instance_masks`: (V, K, gh, gw) float32, view by view, for the K instances
      that every view shows;
    - `noun_ids`: (K,) int64, equal for equal nouns;
    - `trust`: (K,) float32, if `LoadFromStore` told it;
    - `visible` (metainfo): (V, K) float32 array, the share of each instance's foreground that each
      view shows.

    Instances that a view cut away are left out in all views, as a pair needs both; `num_nouns`
    (metainfo) is their number before that. A noun whose mask is flat has no foreground and is left
    out too. Without any instance left, models treat the image as a whole.

    Args:
        grid_size: Height and width of the encoder's feature map; one number if they are equal.
        mask_values: 'attention' is the averaged attention itself, the paper's choice for
            contrastive learning and MAE (section 3.3); 'normalized' is stretched to [0, 1] per
            noun; 'binary' is 1 where that is 0.45 or more (section 4.1).
        min_visible: Smallest share of the foreground that each view must show. Must be above 0.
        input_key: As in `PackInputs`.
        algorithm_keys: As in `PackInputs`.
        meta_keys: As in `PackInputs`.
        with_masks: False hands the model no masks, so that it treats images as a whole: a control
            for what uses masks before (`object_crops` of `FreeATMMultiView`).
        one_noun: Of the instances that are left, hand over one alone, drawn anew each time: with
            `centred_box=1.0` of `LoadFromStore` a control, nouns as labels of whole images.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        grid_size: int | tuple[int, int],
        mask_values: str = 'attention',
        min_visible: float = 0.05,
        input_key: str = 'img',
        algorithm_keys: Sequence[str] = (),
        meta_keys: Sequence[str] = ('sample_idx', 'img_path'),
        with_masks: bool = True,
        one_noun: bool = False,
    ) -> None:
        super().__init__(input_key, algorithm_keys, meta_keys)
        sides = grid_size if isinstance(grid_size, (tuple, list)) else (grid_size, grid_size)
        self.grid_size: Any = tuple(sides)
        if len(sides) != 2 or not all(
            isinstance(side, (int, np.integer)) and side > 0 for side in sides
        ):
            raise ValueError(
                f'grid_size {grid_size!r} is not the height and width of a feature map.'
            )
        check_choice('mask_values', mask_values, MASK_VALUES)
        if self.grid_size == (1, 1):
            raise ValueError('grid_size 1 leaves nothing of a mask: it is a mean over the image.')
        if not 0 < min_visible <= 1:
            raise ValueError(f'min_visible {min_visible!r} must be above 0 and at most 1.')
        self.mask_values = mask_values
        self.min_visible = min_visible
        self.with_masks = with_masks
        self.one_noun = one_noun

    def transform(self, results: dict) -> dict:
        """Pack image or views, and the masks where there are any."""
        packed = self.pack_image(results)
        if 'stored_masks' in results:
            self.pack_masks(results, packed['data_samples'])
        return packed

    def pack_image(self, results: dict) -> dict:
        """Pack image or views without the masks, as `PackInputs` does.

        Added key: `noun_draw`, with `one_noun`. It follows from the random state that the sample's
        own views leave; `pack_masks` may be called once those of other samples are drawn.
        """
        packed = super().transform(results)
        if self.one_noun:
            results['noun_draw'] = _draw_apart()
        return packed

    def pack_masks(self, results: dict, data_sample: DataSample) -> None:
        """Add the masks of a sample to its data sample, which is changed in place.

        Args:
            results: After `pack_image`.
            data_sample: Of what that returned.
        """
        if not self.with_masks:
            return
        windows = np.array(results.get('windows') or [results['window']])
        views = self.on_views(results['stored_masks'], windows, results['mask_scales'])
        draw = results['noun_draw'] if self.one_noun else 0.0
        self.add_instances(data_sample, views, results['noun_ids'], results.get('mask_trust'), draw)

    def on_views(self, masks: np.ndarray, windows: np.ndarray, scales: np.ndarray) -> ViewMasks:
        """Bring masks to the grid of views; see `masks_on_views`."""
        return masks_on_views(
            masks,
            windows,
            self.grid_size,
            scales=scales,
            values=self.mask_values,
            min_visible=self.min_visible,
        )

    def add_instances(
        self,
        data_sample: DataSample,
        views: ViewMasks,
        nouns: np.ndarray,
        trust: np.ndarray | None = None,
        draw: float = 0.0,
    ) -> None:
        """Add what is left of a sample's masks to its data sample.

        Args:
            data_sample: Changed in place.
            views: The masks on the grid of its views.
            nouns: (K,) of all its nouns, whatever is left.
            trust: (K,) in their masks, if it is told.
            draw: A random number in [0, 1), which chooses where one noun is handed over.
        """
        left, named = len(views.kept), len(nouns)
        if self.one_noun and left:
            chosen = slice(place := int(draw * left), place + 1)
            views = ViewMasks(views.values[:, chosen], views.visible[:, chosen], views.kept[chosen])
            named -= left - 1  # those passed over were not cut away
        data_sample.set_field(named, 'num_nouns', field_type='metainfo')
        if not left:
            return
        # Not `masks`: mmpretrain's own field `mask` is something else.
        data_sample.instance_masks = torch.from_numpy(views.values)
        # As metainfo it isn't moved to the GPU, sample by sample, where nobody needs it.
        data_sample.set_field(views.visible, 'visible', field_type='metainfo')
        data_sample.noun_ids = torch.from_numpy(nouns[views.kept])
        if trust is not None:
            data_sample.trust = torch.from_numpy(trust[views.kept])

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(grid_size={self.grid_size}, '
            f'mask_values={self.mask_values!r}, min_visible={self.min_visible}, '
            f'with_masks={self.with_masks}, one_noun={self.one_noun})'
        )
