"""Scores as plain functions of numpy arrays: average precision, k-nearest neighbours, mean IoU.

Own code rather than scikit-learn: classes without a positive and sums over batches are treated as
the benchmarks have it; tests compare with scikit-learn where it has the same score.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    'accuracy',
    'average_precision',
    'confusion_matrix',
    'knn_votes',
    'mean_average_precision',
    'mean_iou',
]


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose highest score is at the right label.

    Args:
        scores: (N, C) real numbers, any scale.
        labels: (N,) integers in [0, C).

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If there is no row, or the shapes do not belong together.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(
            f'accuracy needs scores (N, C) and labels (N,) with N > 0, got '
            f'{scores.shape} and {labels.shape}.'
        )
    return float((scores.argmax(axis=1) == labels).mean())


def average_precision(scores: np.ndarray, positives: np.ndarray) -> float:
    """Area under the precision-recall curve, as a sum of steps without interpolation.

    AP = sum over distinct scores s of (recall(s) - recall(next higher s)) * precision(s): equal
    scores enter together, so the order of the rows never matters. This is scikit-learn's
    ``average_precision_score``.

    Args:
        scores: (N,) real numbers, higher means more likely positive.
        positives: (N,) booleans.

    Returns:
        A number in (0, 1], or NaN where nothing is positive.

    Raises:
        ValueError: If the shapes differ or a score is not finite.
    """
    scores, positives = np.asarray(scores), np.asarray(positives, dtype=bool)
    if scores.ndim != 1 or scores.shape != positives.shape:
        raise ValueError(
            'average_precision needs scores and positives of one shape (N,), got '
            f'{scores.shape} and {positives.shape}.'
        )
    if not np.isfinite(scores).all():
        raise ValueError('average_precision got a score that is not finite.')
    if not positives.any():
        return float('nan')
    order = np.argsort(-scores, kind='stable')
    found = np.cumsum(positives[order])
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    recall = found[last_of_ties] / found[-1]
    precision = found[last_of_ties] / (last_of_ties + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Average precision of each class, and its mean over the classes that occur.

    Args:
        scores: (N, C) real numbers.
        labels: (N, C) booleans, several of a row may be true.

    Returns:
        The mean in (0, 1], and the (C,) average precisions, NaN for a class with no positive.

    Raises:
        ValueError: If the shapes differ or no class has a positive.
    """
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            'mean_average_precision needs scores and labels of one shape (N, C), got '
            f'{scores.shape} and {labels.shape}.'
        )
    if not labels.any():
        raise ValueError('mean_average_precision has no positive label to score.')
    each = np.array([average_precision(scores[:, c], labels[:, c]) for c in range(scores.shape[1])])
    return float(np.nanmean(each)), each


def knn_votes(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> np.ndarray:
    """Label votes of the k most similar features, each weighted by exp(cosine / temperature).

    The weighted nearest-neighbour classifier of instance discrimination (Wu et al., CVPR 2018,
    section 3.4). With one-hot labels, the highest vote is the predicted class; with multi-hot
    labels, the votes rank the scenes of each class.

    Args:
        bank: (M, D) features with known labels, of any length: they are normalised here.
        bank_labels: (M, C) one-hot or multi-hot labels.
        queries: (N, D) features to classify.
        k: Neighbours that vote; all of the bank where it holds fewer.
        temperature: Smaller means that near neighbours count more.
        chunk: Queries compared at a time, which bounds memory at ``chunk * M`` numbers.

    Returns:
        (N, C) float64 votes; the weights of a row's neighbours sum to one.

    Raises:
        ValueError: If shapes do not belong together, the bank is empty, or k < 1.
    """
    bank, queries = _unit_rows(bank, 'bank'), _unit_rows(queries, 'queries')
    bank_labels = np.asarray(bank_labels, dtype=np.float64)
    if len(bank) == 0 or len(bank_labels) != len(bank) or bank.shape[1] != queries.shape[1]:
        raise ValueError(
            'knn_votes needs bank (M, D), bank_labels (M, C), queries (N, D) with '
            f'M > 0, got {bank.shape}, {bank_labels.shape}, {queries.shape}.'
        )
    if k < 1 or temperature <= 0:
        raise ValueError(f'knn_votes needs k >= 1 and temperature > 0, got {k}, {temperature}.')
    k = min(k, len(bank))
    votes = np.empty((len(queries), bank_labels.shape[1]))
    for start in range(0, len(queries), chunk):
        cosine = queries[start : start + chunk] @ bank.T
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(cosine, nearest, axis=1).astype(np.float64)
        weight = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
        weight /= weight.sum(axis=1, keepdims=True)
        votes[start : start + chunk] = np.einsum('nk,nkc->nc', weight, bank_labels[nearest])
    return votes


def _unit_rows(features: np.ndarray, name: str) -> np.ndarray:
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2:
        raise ValueError(f'{name} must be (rows, dimensions), got shape {features.shape}.')
    if not np.isfinite(features).all():
        raise ValueError(f'{name} holds a feature that is not finite.')
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(length, 1e-12)


def confusion_matrix(predicted: np.ndarray, exact: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by exact and predicted class.

    Args:
        predicted: Integers in [0, classes), any shape.
        exact: Integers in [0, classes), the same shape.
        classes: Number of classes.

    Returns:
        (classes, classes) int64; row = exact class, column = predicted class. Matrices of parts
        of a data set add up to the matrix of the whole.

    Raises:
        ValueError: If shapes differ or a label is out of range.
    """
    predicted, exact = np.asarray(predicted), np.asarray(exact)
    if predicted.shape != exact.shape:
        raise ValueError(f'confusion_matrix got shapes {predicted.shape} and {exact.shape}.')
    for name, labels in (('predicted', predicted), ('exact', exact)):
        if labels.size and (labels.min() < 0 or labels.max() >= classes):
            raise ValueError(
                f'confusion_matrix: {name} labels must be in [0, {classes}), got '
                f'{labels.min()} to {labels.max()}.'
            )
    pair = exact.astype(np.int64).ravel() * classes + predicted.astype(np.int64).ravel()
    return np.bincount(pair, minlength=classes * classes).reshape(classes, classes)


def mean_iou(confusion: np.ndarray) -> tuple[float, np.ndarray]:
    """Intersection over union of each class over a whole data set, and the mean (VOC's rule).

    Args:
        confusion: (C, C) counts from `confusion_matrix`.

    Returns:
        The mean over the classes that occur in the exact labels, in [0, 1], and the (C,) values,
        NaN for a class that does not occur there.

    Raises:
        ValueError: If the matrix is not square or counts nothing.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or not confusion.sum():
        raise ValueError(
            'mean_iou needs a square matrix with counts in it, got shape '
            f'{confusion.shape}, sum {confusion.sum()}.'
        )
    hit, exact = np.diag(confusion), confusion.sum(axis=1)
    union = exact + confusion.sum(axis=0) - hit
    each = np.where(exact > 0, hit / np.maximum(union, 1), np.nan)
    return float(np.nanmean(each)), each
