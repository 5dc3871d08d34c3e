"""The losses over instances and the queue in plain NumPy; what several tests of ops make."""

import numpy as np
import torch

from freeatm_mm.ops import attention_guided_order, object_from_box


def nt_xent(z, allowed, temperature=0.1):
    """Chen et al.: every instance of every view against all others in both views."""
    losses, hits = [], []
    for m in range(len(z)):
        for v in (0, 1):
            anchor, positive = z[m, v], z[m, 1 - v]
            negatives = [z[n, w] for n in range(len(z)) for w in (0, 1) if allowed[m, n]]
            logits = np.array([anchor @ positive, *(anchor @ n for n in negatives)])
            losses.append(
                -np.log(np.exp(logits / temperature)[0] / np.exp(logits / temperature).sum())
            )
            hits.append(logits[0] > logits[1:].max())
    return np.mean(losses), np.mean(hits)


def equation3(z, allowed):
    """As printed: anchors z^m, positives z'^m, negatives z^n of the same view, plain cosines."""
    losses, hits = [], []
    for m in range(len(z)):
        positive = np.exp(z[m, 0] @ z[m, 1])
        negatives = np.array([np.exp(z[m, 0] @ z[n, 0]) for n in range(len(z)) if allowed[m, n]])
        losses.append(-np.log(positive / (positive + negatives.sum())))
        hits.append(positive > negatives.max())
    return np.mean(losses), np.mean(hits)


def info_nce(queries, keys, queue, excluded=None, temperature=0.2):
    """Mean of -log(exp(q.k+/T) / (exp(q.k+/T) + sum exp(q.k-/T)))."""
    losses = []
    for number, (query, key) in enumerate(zip(queries, keys)):
        positive = np.exp(query @ key / temperature)
        negatives = np.exp(query @ queue / temperature)
        if excluded is not None:
            negatives = negatives[~excluded[number]]
        losses.append(-np.log(positive / (positive + negatives.sum())))
    return np.mean(losses)


def several_positives(anchors, candidates, positive, temperature):
    """Khosla et al., equation 2: candidates[a] are vectors, positive[a] which of them are meant."""
    losses = []
    for anchor, others, wanted in zip(anchors, candidates, positive):
        exps = np.exp(np.array([anchor @ other for other in others]) / temperature)
        losses.append(
            -np.mean([np.log(exps[k] / exps.sum()) for k in range(len(others)) if wanted[k]])
        )
    return np.mean(losses)


def nt_xent_of_nouns(z, same, temperature):
    """SimCLR's loss where instances of the same noun are positives in both views; same (M, M)."""
    anchors, candidates, positive = [], [], []
    for view in (0, 1):
        for m in range(len(z)):
            others = [(n, w) for n in range(len(z)) for w in (0, 1) if n != m]
            anchors.append(z[m, view])
            candidates.append([z[m, 1 - view], *(z[n, w] for n, w in others)])
            positive.append([True, *(same[m, n] for n, _ in others)])
    return several_positives(anchors, candidates, positive, temperature)


def equation3_of_nouns(z, same, temperature=1.0):
    """Equation 3 where instances of the same noun are positives."""
    count = range(len(z))
    candidates = [[z[m, 1], *(z[n, 0] for n in count if n != m)] for m in count]
    positive = [[True, *(same[m, n] for n in count if n != m)] for m in count]
    return several_positives(z[:, 0], candidates, positive, temperature)


def queue_reference(queue, pointer, keys):
    """The queue as a list: each key goes over the oldest."""
    queue = list(queue)
    for key in keys:
        queue[pointer] = key
        pointer = (pointer + 1) % len(queue)
    return queue, pointer


def hidden_patches(scores, masked, beta, seed=0):
    """(B, L) which are hidden."""
    torch.manual_seed(seed)
    order = attention_guided_order(scores, masked, beta)
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order[:, -masked:], True)


def things():
    return [
        object_from_box(name, box, (90, 90))
        for name, box in (
            ('dog', (62, 62, 88, 88)),
            ('red ball', (1, 1, 20, 20)),
            ('dog', (61, 61, 85, 80)),
            ('tree', (30, 31, 60, 60)),
        )
    ]
