"""Whether the files of a downstream data set are there, before hours have passed."""

from __future__ import annotations

import os
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner

from freeatm_mm.errors import MissingFileError, listed

__all__ = ['CheckFilesHook', 'missing_files']


def missing_files(dataset: Any) -> list[str]:
    """Images and label maps that a built data set names and that aren't there.

    Folders are listed once each instead of asking for every file; data sets that were made by
    listing a folder cost nothing else.

    Args:
        dataset: A data set of mmengine's kind, or a wrapper of such.
    """
    listed: dict[str, set[str]] = {}
    missing = []
    dataset.full_init()
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        for name in (info.get('img_path'), info.get('seg_map_path')):
            if not isinstance(name, str) or '://' in name:
                continue
            folder, file = os.path.split(name)
            if folder not in listed:
                listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
            if file not in listed[folder]:
                missing.append(name)
    return missing


@HOOKS.register_module()
class CheckFilesHook(Hook):
    """Stops a run at its start if the annotations name images that aren't there."""

    def before_train(self, runner: Runner) -> None:
        """Check the images for training, and those that it will be evaluated on.

        These are the validation's, or where training has none, the test's.

        Raises:
            MissingFileError: Naming the first missing files and their number.
        """
        self._check(runner.train_dataloader.dataset, 'train_dataloader')
        if runner.val_loop is not None:
            self._check(runner.val_dataloader.dataset, 'val_dataloader')
        elif runner.cfg.get('test_dataloader') and is_main_process():
            self._check(DATASETS.build(runner.cfg.test_dataloader.dataset), 'test_dataloader')

    def before_test(self, runner: Runner) -> None:
        """Check the images for testing; raise likewise."""
        self._check(runner.test_dataloader.dataset, 'test_dataloader')

    @staticmethod
    def _check(dataset: Any, loader: str) -> None:
        if not is_main_process():
            return
        while hasattr(dataset, 'dataset'):  # a set that is repeated names the same files each time
            dataset = dataset.dataset
        missing = missing_files(dataset)
        if missing:
            raise MissingFileError(
                f'{loader}: the annotations name {len(missing)} of {len(dataset)} images or label '
                f'maps that are not there: {listed(missing)}; complete the data set, '
                'or take them out of its annotations'
            )
