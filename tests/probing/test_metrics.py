"""Scores against scikit-learn and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from freeatm_mm.probing.metrics import (
    accuracy,
    average_precision,
    confusion_matrix,
    knn_votes,
    mean_average_precision,
    mean_iou,
)


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=40))
def test_average_precision_is_scikit_learns_with_ties(pairs):
    scores = np.array([score for score, _ in pairs], dtype=float)
    positives = np.array([positive for _, positive in pairs])
    ours = average_precision(scores, positives)
    if positives.any():
        assert ours == pytest.approx(average_precision_score(positives, scores), abs=1e-12)
    else:
        assert np.isnan(ours)


def test_mean_average_precision_leaves_out_classes_that_never_occur():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 4)), rng.random((50, 4)) < 0.3
    labels[:, 2] = False
    mean, each = mean_average_precision(scores, labels)
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in (0, 1, 3)]
    assert mean == pytest.approx(np.mean(expected))
    assert np.isnan(each[2])
    with pytest.raises(ValueError, match='no positive'):
        mean_average_precision(scores, np.zeros_like(labels))


def test_average_precision_rejects_nan():
    with pytest.raises(ValueError, match='finite'):
        average_precision(np.array([0.1, np.nan]), np.array([True, False]))


@pytest.mark.parametrize('chunk', [3, 1000])
def test_knn_votes_equal_scikit_learns_weighted_classifier(chunk):
    rng = np.random.default_rng(1)
    bank, queries = rng.normal(size=(60, 5)), rng.normal(size=(17, 5))
    labels = rng.integers(0, 4, 60)
    votes = knn_votes(bank, np.eye(4)[labels], queries, k=7, temperature=0.1, chunk=chunk)
    reference = KNeighborsClassifier(
        7, metric='cosine', weights=lambda distance: np.exp((1 - distance) / 0.1)
    ).fit(bank, labels)
    np.testing.assert_allclose(votes, reference.predict_proba(queries), atol=1e-5)


def test_knn_votes_with_several_labels_and_a_small_bank():
    bank = np.array([[1.0, 0.0], [0.0, 2.0]])
    votes = knn_votes(
        bank, np.array([[1, 1, 0], [0, 1, 0]]), np.array([[3.0, 0.0]]), k=20, temperature=1.0
    )
    near, far = np.e, 1.0  # cosine 1 and 0
    np.testing.assert_allclose(votes, [[near / (near + far), 1.0, 0.0]], rtol=1e-6)


def test_knn_votes_names_bad_input():
    with pytest.raises(ValueError, match='M > 0'):
        knn_votes(np.zeros((0, 2)), np.zeros((0, 1)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match='bank holds'):
        knn_votes(np.full((1, 2), np.nan), np.zeros((1, 1)), np.zeros((1, 2)))


def test_confusion_and_mean_iou_against_loops():
    rng = np.random.default_rng(2)
    predicted, exact = rng.integers(0, 4, (3, 6, 5)), rng.integers(0, 3, (3, 6, 5))
    matrix = confusion_matrix(predicted[:1], exact[:1], 4)
    matrix = matrix + confusion_matrix(predicted[1:], exact[1:], 4)
    each = []
    for c in range(3):
        union = ((predicted == c) | (exact == c)).sum()
        each.append(((predicted == c) & (exact == c)).sum() / union)
    mean, ious = mean_iou(matrix)
    assert mean == pytest.approx(np.mean(each))
    np.testing.assert_allclose(ious, [*each, np.nan])
    for row in range(4):
        for column in range(4):
            assert matrix[row, column] == ((exact == row) & (predicted == column)).sum()


def test_confusion_rejects_labels_out_of_range():
    with pytest.raises(ValueError, match=r'exact labels must be in \[0, 2\)'):
        confusion_matrix(np.zeros(3, int), np.array([0, 1, 2]), 2)


def test_accuracy():
    assert accuracy(
        np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]), np.array([1, 0, 0])
    ) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match='N > 0'):
        accuracy(np.zeros((0, 2)), np.zeros(0))
