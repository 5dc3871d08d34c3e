"""ImageNet's classes: complete, unambiguous, each of a kind the grammar knows."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest

from freeatm_mm.prompts.imagenet import load_classes, select_classes
from freeatm_mm.prompts.kinds import CIRCUMSTANCES, KINDS, SETTINGS

CLASSES = load_classes()


def test_there_are_the_thousand_classes_in_their_order():
    """ImageNet's labels are numbered in the order of the synsets' names."""
    wnids = [c.wnid for c in CLASSES]
    assert len(wnids) == 1000 and wnids == sorted(set(wnids))
    assert all(re.fullmatch(r'n\d{8}', wnid) for wnid in wnids)
    assert [c.index for c in CLASSES] == list(range(1000))


def test_the_synsets_are_those_that_timm_lists():
    spec = find_spec('timm')
    if spec is None:
        pytest.skip('timm is not installed')
    # Looked up without importing timm, which takes long.
    path = Path(spec.submodule_search_locations[0], 'data/_info/imagenet_synsets.txt')
    listed = path.read_text(encoding='utf-8').split()
    assert [c.wnid for c in CLASSES] == listed


def test_labels_are_distinct_and_clean():
    labels = [c.label.casefold() for c in CLASSES]
    assert len(set(labels)) == 1000
    for label in labels:
        assert re.fullmatch(r"[a-z][a-z' -]*[a-z]", label), label


@pytest.mark.parametrize(
    'index, label',
    [
        (0, 'tench'),
        (134, 'crane bird'),
        (517, 'construction crane'),
        (207, 'golden retriever'),
        (264, 'Cardigan Welsh corgi'),
        (474, 'cardigan'),
        (638, 'tights'),
        (639, 'one-piece swimsuit'),
        (920, 'traffic light'),
        (999, 'toilet tissue'),
    ],
)
def test_known_classes_have_their_numbers(index, label):
    assert CLASSES[index].label == label


def test_articles_agree():
    for c in CLASSES:
        assert c.determiner in ('a', 'an', 'some', 'a pair of', 'a set of'), c
        if c.determiner in ('a', 'an'):
            vowel = c.label[0].lower() in 'aeiou'
            if c.label.startswith(('one-', 'unicycle', 'European')):
                vowel = False
            elif c.label == 'hourglass':
                vowel = True
            assert c.determiner == ('an' if vowel else 'a'), c


def test_the_hierarchy_and_the_kinds_agree():
    """What WordNet calls an animal has an animal's kind, and nothing else has."""
    animals = {c.kind for c in CLASSES if 'animal' in c.path}
    others = {c.kind for c in CLASSES if 'animal' not in c.path}
    assert not animals & others
    assert {c.kind for c in CLASSES if 'dog' in c.path} == {'dog'}
    assert len(select_classes('dog')) == 118
    # Wolves are of the genus, hyenas are not.
    assert len([c for c in CLASSES if c.kind == 'cat']) == len(select_classes('domestic cat'))


def test_a_level_of_the_hierarchy_selects():
    assert select_classes() == CLASSES
    assert [c.label for c in select_classes('n02099601')] == ['golden retriever']
    assert {'violin', 'drum'} <= {c.label for c in select_classes('musical instrument')}
    with pytest.raises(ValueError, match="no class of ImageNet stands under 'unicorn'"):
        select_classes('unicorn')


def test_all_kinds_and_settings_are_whole_and_used():
    assert {c.kind for c in CLASSES} == set(KINDS)
    used = set()
    for name, kind in KINDS.items():
        assert 0 <= kind.size <= 4 and kind.settings, name
        assert set(kind.only) <= set(kind.settings), name
        used.update(kind.settings)
        for words in (*kind.actions, *(w for a in kind.only.values() for w in a)):
            assert re.match(r'(\w+ing|showing)\b', words), (name, words)
    assert used == set(SETTINGS)
    for name, setting in SETTINGS.items():
        assert setting.where in CIRCUMSTANCES and len(set(setting.places)) >= 3, name


def test_the_licence_of_wordnet_comes_along():
    text = files('freeatm_mm.prompts').joinpath('WORDNET-LICENSE.txt').read_text()
    assert 'WordNet 3.0 Copyright 2006 by Princeton University' in text
