"""The source photos: checked, split by cut-out and by background crop."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from freeatm_mm.miniature import sources
from freeatm_mm.miniature.sources import (
    COLOURS,
    NOUNS,
    cut_garment,
    fetch_sources,
    load_cutouts,
    source_files,
)


def test_a_folder_with_the_right_files_is_taken(known_sources, tmp_path):
    assert fetch_sources(tmp_path, known_sources) == known_sources
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(known_sources, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(known_sources, copy)
    name = source_files(copy)[3]
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f'{name} is missing: the folder must hold'):
        fetch_sources(tmp_path, copy)


def test_a_changed_file_is_named(known_sources, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(known_sources, copy)
    name = source_files(copy)[3]
    (copy / name).write_bytes(b'something else')
    with pytest.raises(ValueError, match=f'{name} is not the file this world is made of'):
        fetch_sources(tmp_path, copy)


def test_without_apt_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, 'which', lambda program: None)
    with pytest.raises(RuntimeError, match='apt-get is missing.*--sources'):
        fetch_sources(tmp_path)


def test_a_failed_download_says_what_to_do_and_leaves_nothing(monkeypatch, tmp_path):
    fake = tmp_path / 'bin'
    fake.mkdir()
    for program in ('apt-get', 'dpkg-deb'):
        (fake / program).write_text('#!/bin/sh\necho "no such host" >&2\nexit 100\n')
        (fake / program).chmod(0o755)
    monkeypatch.setenv('PATH', f'{fake}:/usr/bin:/bin')
    with pytest.raises(RuntimeError, match='no such host.*--sources'):
        fetch_sources(tmp_path / 'cache')
    assert not list((tmp_path / 'cache').iterdir())


def test_the_committed_table_names_real_files_of_every_noun():
    names = list(sources.checksum_table())
    assert len(names) > 200 and all(name.startswith('usr/share/') for name in names)
    assert sum('fashion-mnist' in name for name in names) == 4
    assert sum('backgrounds' in name for name in names) == len(sources.BACKGROUNDS)
    assert len(NOUNS) >= 20 and len(set(NOUNS)) == len(NOUNS)


def test_no_test_object_or_background_was_seen_in_training(source_folder):
    train, val, test = (load_cutouts(source_folder, split) for split in ('train', 'val', 'test'))
    for noun in sources.STAMPS:
        seen = {cutout.name for cutout in train.stamps[noun]}
        unseen = {cutout.name for cutout in test.stamps[noun]}
        assert seen and unseen and not seen & unseen
        assert {cutout.name for cutout in val.stamps[noun]} == seen
    assert {len(array) for array in train.garments.values()} == {5000}
    assert {len(array) for array in val.garments.values()} == {100}
    assert {len(array) for array in test.garments.values()} == {4}
    for place, pixels in train.backgrounds.items():
        # The red channel holds the column.
        assert pixels[..., 0].max() <= test.backgrounds[place][..., 0].min() + 4


def test_an_unknown_split_is_refused(source_folder):
    with pytest.raises(ValueError, match="no split 'tests'; known are train, val and test"):
        load_cutouts(source_folder, 'tests')


def test_a_garment_is_cropped_and_tinted():
    grey = np.zeros((28, 28), np.uint8)
    grey[5:15, 10:14] = 255
    grey[8:10, 11:13] = 0  # a black print: a hole in the brightness, not in the shirt
    pixels = cut_garment(grey, 'red')
    assert pixels.shape == (10, 4, 4) and (pixels[..., 3] == 255).all()
    assert tuple(pixels[0, 0, :3]) == COLOURS['red']
    assert (pixels[4, 1, :3] < pixels[0, 0, :3]).all() and pixels[4, 1, 0] > 0
