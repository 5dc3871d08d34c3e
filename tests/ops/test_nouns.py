"""Nouns as numbers."""

import numpy as np
import pytest
import torch

from freeatm_mm.ops import UNKNOWN_NOUN, mean_of_known, noun_id, same_noun, same_noun_counts


def test_noun_ids_are_stable():
    assert noun_id('dog') == noun_id('dog') != noun_id('dogs')
    assert noun_id('dog') == 2072328596179865167
    assert 0 <= noun_id('Straße') < 2**63


def test_counts_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    nouns, among = rng.integers(-1, 6, 20), rng.integers(-1, 6, 50)
    pairs = (nouns[:, None] == among) & (nouns[:, None] != UNKNOWN_NOUN)
    nouns, among = torch.from_numpy(nouns), torch.from_numpy(among)
    assert torch.equal(same_noun(nouns, among), torch.from_numpy(pairs))
    assert same_noun_counts(nouns, among).tolist() == pairs.sum(1).tolist()
    assert same_noun_counts(nouns[:0], among).tolist() == []


def test_mean_leaves_whole_images_out():
    nouns = torch.tensor([3, UNKNOWN_NOUN, 4])
    assert mean_of_known(torch.tensor([1.0, 9.0, 2.0]), nouns).item() == pytest.approx(1.5)
    assert mean_of_known(torch.tensor([9.0]), torch.tensor([UNKNOWN_NOUN])) == 0
