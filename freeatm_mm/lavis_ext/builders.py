"""The builders: from a yaml's paths to datasets. Nothing is ever downloaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder, load_dataset_config
from omegaconf import OmegaConf

from freeatm_mm.errors import InputError, MissingFileError, counted
from freeatm_mm.lavis_ext.datasets import (
    CaptionFile,
    FreeATMPretrainDataset,
    FreeATMRetrievalDataset,
    FreeATMRetrievalEvalDataset,
    StorePairs,
)
from freeatm_mm.lavis_ext.settings import (
    Check,
    check_entries,
    check_processors,
    check_values,
    count,
    number,
    plain,
    text,
    truth,
)
from freeatm_mm.ops.masks import THRESHOLD

__all__ = ['FreeATMPretrainBuilder', 'FreeATMRetrievalBuilder']

_CONFIGS = Path(__file__).parent / 'configs'


def _paths(value: Any) -> str | None:
    """One path or a list of them."""
    fits = not any(map(text, value)) if isinstance(value, list) else text(value) is None
    return None if fits else 'a path, or a list of paths'


def _as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _tell_missing(missing: int, where: str) -> None:
    if missing:
        logging.warning('%s: %d entries are left out, their pictures are not there', where, missing)


class _Builder(BaseDatasetBuilder):
    """What the two builders share: a configuration that may be partial, and is checked."""

    NAME: str
    KINDS: tuple[str, ...]
    INFO: dict[str, Check]

    def __init__(self, cfg=None) -> None:
        if cfg is not None and not isinstance(cfg, str):  # as LAVIS's `Config` lays it
            given = {
                name: value
                for name, value in plain(cfg, f'datasets.{self.NAME}').items()
                if value is not None
            }
            cfg = OmegaConf.merge(
                load_dataset_config(self.default_config_path()), OmegaConf.create(given)
            )
        super().__init__(cfg)

    def read_info(self) -> dict[str, Any]:
        """Make the processors; the checked `build_info`."""
        check_processors(self.config, self.KINDS, self.NAME)
        self.build_processors()
        where = f'datasets.{self.NAME}.build_info'
        info = plain(self.config.get('build_info'), where)
        check_entries(info, self.INFO, where)
        check_values(info, self.INFO, where)
        return {name: value for name, value in info.items() if value is not None}


@registry.register_builder('freeatm_pretrain')
class FreeATMPretrainBuilder(_Builder):
    """Pairs for pretraining.

    `build_info` takes:

    - `store`: folder of a store, or a list of them;
    - `annotations`: LAVIS's caption JSON, or a list, with `images`, the folder (or one for each)
      that the images' paths start from;
    - `detections`: files of detections in the place of masks and `objects`, one for each store and
      caption file, in this order;
    - `threshold`: of a mask's foreground (0.45);
    - `share`: of the pairs to use (1.0);
    - `skip_unreadable`: take the next pair for one whose picture, or sample of a store, can't be
      read, and count it (False: stop);
    - `mask_grid`: give the objects' masks too, on as many cells a side as the image encoder has
      patches, for `model.mask_loss` (null: none).
    """

    train_dataset_cls = FreeATMPretrainDataset
    DATASET_CONFIG_DICT = {'default': str(_CONFIGS / 'freeatm_pretrain.yaml')}
    NAME, KINDS = 'freeatm_pretrain', ('train',)
    INFO = {
        'store': _paths,
        'annotations': _paths,
        'images': _paths,
        'detections': _paths,
        'threshold': number(0, 1),
        'share': number(0, 1, above=True),
        'skip_unreadable': truth,
        'mask_grid': count(1, 1 << 10),
    }

    def build_datasets(self) -> dict[str, FreeATMPretrainDataset]:
        """The one split, 'train'.

        Raises:
            InputError: If the lists in `build_info` don't fit each other or name nothing, a file
                can't be used, or a picture isn't there.
            StoreError: If a store can't be used.
        """
        info = self.read_info()
        stores, files = _as_list(info.get('store')), _as_list(info.get('annotations'))
        folders = _as_list(info.get('images'))
        detections: list[str | None] = [*_as_list(info.get('detections'))]
        if not stores and not files:
            raise InputError(
                'freeatm_pretrain: build_info names no pairs; set store or '
                'annotations (--options '
                'datasets.freeatm_pretrain.build_info.store=FOLDER)'
            )
        if len(folders) == 1 and files:
            folders *= len(files)
        if len(folders) != len(files):
            raise InputError(
                f'freeatm_pretrain: {counted(len(files), "file")} of annotations and '
                f'{counted(len(folders), "folder")} of images: give as many folders as files, or '
                'one for all'
            )
        if detections and len(detections) != len(stores) + len(files):
            raise InputError(
                f'freeatm_pretrain: {counted(len(stores), "store")} and '
                f'{counted(len(files), "file")} of annotations take as many files of detections in '
                f'all, got {len(detections)}'
            )
        detections = detections or [None] * (len(stores) + len(files))
        threshold, pass_over = info.get('threshold', THRESHOLD), info.get('skip_unreadable', False)
        pairs = [
            StorePairs(store, found, float(threshold)) for store, found in zip(stores, detections)
        ]
        captions = [
            CaptionFile(file, folder, found, pass_over)
            for file, folder, found in zip(files, folders, detections[len(stores) :])
        ]
        for source in captions:
            _tell_missing(source.missing, str(source.path))
        return {
            'train': FreeATMPretrainDataset(
                self.vis_processors['train'],
                self.text_processors['train'],
                [*pairs, *captions],
                float(info.get('share', 1.0)),
                pass_over,
                info.get('mask_grid'),
            )
        }


@registry.register_builder('freeatm_retrieval')
class FreeATMRetrievalBuilder(_Builder):
    """LAVIS's retrieval datasets, from local files.

    `build_info` takes:

    - `annotations`: for each of the splits train, val and test that is wanted, LAVIS's retrieval
      JSON (COCO's are its coco_karpathy_*.json): a list of `image`, `caption` (a list of captions
      in val and test) and, for training, `image_id`;
    - `images`: folder that the images' paths start from;
    - `skip_unreadable`: in training, take the next entry for one whose picture can't be read, and
      count it (False: stop). In val and test every picture counts.
    """

    train_dataset_cls = FreeATMRetrievalDataset
    eval_dataset_cls = FreeATMRetrievalEvalDataset
    DATASET_CONFIG_DICT = {'default': str(_CONFIGS / 'freeatm_retrieval.yaml')}
    NAME, KINDS = 'freeatm_retrieval', ('train', 'eval')
    INFO = {
        'annotations': lambda value: (
            None if isinstance(value, dict) else 'a file for each split, for example {test: FILE}'
        ),
        'images': text,
        'skip_unreadable': truth,
    }

    def build_datasets(self) -> dict[str, FreeATMRetrievalDataset | FreeATMRetrievalEvalDataset]:
        """One dataset for each split that is named.

        Raises:
            InputError: If no split is named or an unknown one, a file can't be used, or a picture
                isn't there.
        """
        info = self.read_info()
        splits = {split: path for split, path in info.get('annotations', {}).items() if path}
        where = 'datasets.freeatm_retrieval.build_info.annotations'
        check_entries(splits, ('train', 'val', 'test'), where)
        check_values(splits, dict.fromkeys(splits, text), where)
        if not splits:
            raise InputError(
                'freeatm_retrieval: build_info.annotations must name files for '
                'train, val or test, got none'
            )
        folder = Path(info.get('images') or '')
        if not info.get('images') or not folder.is_dir():
            raise MissingFileError(
                f'freeatm_retrieval: there is no image folder {folder}; set build_info.images'
            )
        datasets = {}
        for split, path in splits.items():
            if split == 'train':
                datasets[split] = self.train_dataset_cls(
                    self.vis_processors['train'],
                    self.text_processors['train'],
                    folder,
                    path,
                    info.get('skip_unreadable', False),
                )
                _tell_missing(datasets[split].missing, path)
            else:
                datasets[split] = self.eval_dataset_cls(
                    self.vis_processors['eval'], self.text_processors['eval'], folder, path
                )
        return datasets
