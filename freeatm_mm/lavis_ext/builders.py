"""The builders: from a yaml's paths to datasets. Nothing is ever downloaded."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.retrieval_datasets import RetrievalDataset, RetrievalEvalDataset
from omegaconf import OmegaConf

from freeatm_mm.attention.masks import THRESHOLD
from freeatm_mm.lavis_ext.datasets import CaptionFile, FreeATMPretrainDataset, StorePairs

__all__ = ['FreeATMPretrainBuilder', 'FreeATMRetrievalBuilder']

_CONFIGS = Path(__file__).parent / 'configs'


def _as_list(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    return [str(item) for item in items]


def _build_info(config, known: tuple[str, ...], name: str) -> dict[str, Any]:
    """A builder's `build_info`.

    Raises:
        ValueError: If it holds something that the builder doesn't know.
    """
    info = OmegaConf.to_container(config.build_info, resolve=True)
    unknown = sorted(set(info) - set(known))
    if unknown:
        raise ValueError(f'{name}: build_info has no {", ".join(unknown)}; known are '
                         f'{", ".join(known)}')
    return info


@registry.register_builder('freeatm_pretrain')
class FreeATMPretrainBuilder(BaseDatasetBuilder):
    """Pairs for pretraining. `build_info` takes:

    - `store`: folder of a store, or a list of them;
    - `annotations`: LAVIS's caption JSON, or a list, with `images`, the folder (or one for each)
      that the images' paths start from;
    - `detections`: files of detections in the place of masks and `objects`, one for each store and
      caption file, in this order;
    - `threshold`: of a mask's foreground (0.45);
    - `share`: of the pairs to use (1.0).
    """

    train_dataset_cls = FreeATMPretrainDataset
    DATASET_CONFIG_DICT = {'default': str(_CONFIGS / 'freeatm_pretrain.yaml')}
    KNOWN = ('store', 'annotations', 'images', 'detections', 'threshold', 'share')

    def build_datasets(self) -> dict[str, FreeATMPretrainDataset]:
        """The one split, 'train'.

        Raises:
            ValueError: If the lists in `build_info` don't fit each other, or name nothing.
            StoreError, FileNotFoundError: If a path is wrong.
        """
        self.build_processors()
        info = _build_info(self.config, self.KNOWN, 'freeatm_pretrain')
        stores, files = _as_list(info.get('store')), _as_list(info.get('annotations'))
        folders, detections = _as_list(info.get('images')), _as_list(info.get('detections'))
        if not stores and not files:
            raise ValueError('freeatm_pretrain: build_info names no pairs; set store or '
                             'annotations (--options '
                             'datasets.freeatm_pretrain.build_info.store=FOLDER)')
        if len(folders) == 1:
            folders *= len(files)
        if len(folders) != len(files):
            raise ValueError(f'freeatm_pretrain: {len(files)} files of annotations need as many '
                             f'folders of images, or one for all; got {len(folders)}')
        if detections and len(detections) != len(stores) + len(files):
            raise ValueError(f'freeatm_pretrain: {len(stores)} stores and {len(files)} files of '
                             'annotations need as many files of detections in all, got '
                             f'{len(detections)}')
        detections = detections or [None] * (len(stores) + len(files))
        threshold = float(info.get('threshold', THRESHOLD))
        sources = [StorePairs(store, found, threshold)
                   for store, found in zip(stores, detections)]
        sources += [CaptionFile(file, folder, found) for file, folder, found in zip(
            files, folders, detections[len(stores):])]
        return {'train': FreeATMPretrainDataset(
            self.vis_processors['train'], self.text_processors['train'], sources,
            float(info.get('share', 1.0)))}


@registry.register_builder('freeatm_retrieval')
class FreeATMRetrievalBuilder(BaseDatasetBuilder):
    """LAVIS's retrieval datasets, from local files. `build_info` takes:

    - `annotations`: for each of the splits train, val and test that is wanted, LAVIS's retrieval
      JSON (COCO's are its coco_karpathy_*.json): a list of `image`, `caption` (a list of captions
      in val and test) and, for training, `image_id`;
    - `images`: folder that the images' paths start from.
    """

    train_dataset_cls = RetrievalDataset
    eval_dataset_cls = RetrievalEvalDataset
    DATASET_CONFIG_DICT = {'default': str(_CONFIGS / 'freeatm_retrieval.yaml')}

    def build_datasets(self) -> dict[str, RetrievalDataset | RetrievalEvalDataset]:
        """One dataset for each split that is named.

        Raises:
            ValueError: If no split is named, or an unknown one.
            FileNotFoundError: If a path is wrong.
        """
        self.build_processors()
        info = _build_info(self.config, ('annotations', 'images'), 'freeatm_retrieval')
        splits = {split: path for split, path in (info.get('annotations') or {}).items() if path}
        unknown = sorted(set(splits) - {'train', 'val', 'test'})
        if unknown or not splits:
            raise ValueError('freeatm_retrieval: build_info.annotations must name files for '
                             f'train, val or test, got {", ".join(splits) or "none"}')
        folder = Path(info.get('images') or '')
        if not info.get('images') or not folder.is_dir():
            raise FileNotFoundError(f'freeatm_retrieval: there is no image folder {folder}; set '
                                    'build_info.images')
        datasets = {}
        for split, path in splits.items():
            if not Path(path).is_file():
                raise FileNotFoundError(f'freeatm_retrieval: there is no annotation file {path}')
            kind = 'train' if split == 'train' else 'eval'
            make = self.train_dataset_cls if split == 'train' else self.eval_dataset_cls
            datasets[split] = make(vis_processor=self.vis_processors[kind],
                                   text_processor=self.text_processors[kind],
                                   vis_root=str(folder), ann_paths=[str(path)])
            if not len(datasets[split]):
                raise ValueError(f'freeatm_retrieval: {path} holds no image')
        return datasets
