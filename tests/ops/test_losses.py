"""The losses over instances and the queue against plain NumPy."""

import numpy as np
import pytest
import torch
from helpers.ops_reference import (
    equation3,
    equation3_of_nouns,
    info_nce,
    nt_xent,
    nt_xent_of_nouns,
    queue_reference,
    several_positives,
)

from freeatm_mm.ops import (
    UNKNOWN_NOUN,
    contrastive_accuracy,
    contrastive_loss,
    enqueue,
    equation3_logits,
    info_nce_logits,
    instance_equation3,
    instance_info_nce,
    instance_nt_xent,
    multi_positive_loss,
    nt_xent_logits,
)

NOUNS = np.array([4, 7, UNKNOWN_NOUN, 4, UNKNOWN_NOUN, 9])


def normalised(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pairs(seed=0, count=6, width=5):
    """(count, 2, width) embeddings of any length, in double precision."""
    return np.random.default_rng(seed).normal(size=(count, 2, width)) * 3


def allowed(negatives):
    """(M, M) which instances are negatives of which."""
    same = (NOUNS[:, None] == NOUNS) & (NOUNS != UNKNOWN_NOUN)
    return ~np.eye(6, dtype=bool) & ~(same & (negatives == 'other_nouns'))


@pytest.mark.parametrize('negatives', ['all', 'other_nouns'])
@pytest.mark.parametrize('temperature', [0.1, 0.5])
def test_nt_xent_equals_plain_numpy(negatives, temperature):
    z = pairs()
    expected, hits = nt_xent(normalised(z), allowed(negatives), temperature)
    first, second = torch.from_numpy(z).unbind(1)
    nouns = torch.from_numpy(NOUNS)
    loss = instance_nt_xent(first, second, nouns, temperature=temperature, negatives=negatives)
    assert loss.item() == pytest.approx(expected)
    logits = nt_xent_logits(torch.from_numpy(normalised(z)), nouns, negatives)
    assert contrastive_accuracy(*logits).item() == pytest.approx(hits)


@pytest.mark.parametrize('negatives', ['all', 'other_nouns'])
def test_equation3_equals_plain_numpy(negatives):
    z = pairs()
    expected, hits = equation3(normalised(z), allowed(negatives))
    first, second = torch.from_numpy(z).unbind(1)
    nouns = torch.from_numpy(NOUNS)
    loss = instance_equation3(first, second, nouns, negatives=negatives)
    assert loss.item() == pytest.approx(expected)
    logits = equation3_logits(torch.from_numpy(normalised(z)), nouns, negatives)
    assert contrastive_accuracy(*logits).item() == pytest.approx(hits)


@pytest.mark.parametrize('negatives', ['all', 'other_nouns'])
def test_info_nce_equals_plain_numpy(negatives):
    z, queue = pairs(), normalised(pairs(1, 20)[:, 0]).T
    queue_nouns = np.arange(20) % 8 + 3
    queue_nouns[15:] = UNKNOWN_NOUN
    same = (NOUNS[:, None] == queue_nouns) & (NOUNS[:, None] != UNKNOWN_NOUN)
    queries, keys = normalised(z).swapaxes(0, 1)
    expected = info_nce(queries, keys, queue, same if negatives == 'other_nouns' else None)
    queries, keys = torch.from_numpy(z).unbind(1)
    loss = instance_info_nce(
        queries,
        keys,
        torch.from_numpy(queue),
        torch.from_numpy(NOUNS),
        torch.from_numpy(queue_nouns),
        negatives=negatives,
    )
    assert same.any() and loss.item() == pytest.approx(expected)


@pytest.mark.parametrize('logits_of', [nt_xent_logits, equation3_logits])
@pytest.mark.parametrize('negatives', ['all', 'other_nouns'])
def test_the_parts_of_several_processes_are_the_whole(logits_of, negatives):
    z, nouns = torch.from_numpy(normalised(pairs())), torch.from_numpy(NOUNS)
    whole = contrastive_loss(*logits_of(z, nouns, negatives), 0.2)
    losses = []
    for part in (slice(0, 2), slice(2, 6)):
        logits = logits_of(
            z[part], nouns[part], negatives, everything=z, every_noun=nouns, offset=part.start
        )
        losses.append(contrastive_loss(*logits, 0.2) * len(z[part]) / 6)
    assert sum(losses).item() == pytest.approx(whole.item())


def test_gradients_reach_both_views_but_no_key():
    first, second = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    queue = torch.randn(3, 8, requires_grad=True)
    for loss in (instance_nt_xent, instance_equation3):
        gradients = torch.autograd.grad(loss(first, second), (first, second))
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
    instance_info_nce(first, second, queue).backward()
    assert first.grad.abs().sum() > 0 and second.grad is None and queue.grad is None


def test_a_queue_of_the_own_noun_alone_leaves_no_negative():
    queue, nouns = torch.randn(3, 5), torch.ones(2, dtype=torch.int64)
    z = torch.randn(2, 3)
    loss = instance_info_nce(z, z, queue, nouns, torch.ones(5).long(), negatives='other_nouns')
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_queue_may_change_after_the_logits():
    """The backward pass of a step comes after its keys were put into the queue."""
    queries, queue, pointer = (
        torch.randn(2, 3, requires_grad=True),
        torch.randn(3, 4),
        torch.tensor([0]),
    )
    loss = contrastive_loss(*info_nce_logits(queries, queries.detach(), queue))
    enqueue(queue, pointer, torch.randn(2, 3))
    loss.backward()
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize('with_nouns', [True, False])
def test_a_queue_takes_any_number_of_keys(with_nouns):
    rng = np.random.default_rng(0)
    queue, pointer = torch.zeros(6, 11), torch.zeros(1, dtype=torch.int64)
    queue_nouns = torch.full((11,), 5)
    expected, names, place = list(queue.T.numpy().copy()), [5] * 11, 0
    for count in (3, 7, 4, 1, 11, 30, 2, 23, 9, 22, 0):
        keys = rng.normal(size=(count, 6)).astype(np.float32)
        nouns = rng.integers(0, 5, count) if with_nouns else np.full(count, UNKNOWN_NOUN)
        given = torch.from_numpy(nouns).int() if with_nouns else None  # of any integer type
        enqueue(queue, pointer, torch.from_numpy(keys), queue_nouns, given)
        names, _ = queue_reference(names, place, nouns)
        expected, place = queue_reference(expected, place, keys)
        np.testing.assert_array_equal(queue.T.numpy(), expected)
        assert queue_nouns.tolist() == names and int(pointer) == place


def test_a_key_that_is_no_number_joins_as_zeros_of_no_noun():
    """As the positive of its noun's queries it would be a vector that nothing is near to."""
    queue, pointer = torch.zeros(3, 4), torch.tensor([2])
    queue_nouns, keys = torch.full((4,), 5), torch.eye(3)
    keys[0, 1], keys[2, 0] = torch.inf, torch.nan
    enqueue(queue, pointer, keys, queue_nouns, torch.tensor([7, 8, 9], dtype=torch.int32))
    assert queue_nouns.tolist() == [UNKNOWN_NOUN, 5, UNKNOWN_NOUN, 8]
    assert queue.T.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]]
    enqueue(queue, pointer, keys[:1].repeat(6, 1), queue_nouns, torch.arange(6))
    assert queue_nouns.tolist() == [UNKNOWN_NOUN] * 4


def test_wrong_arguments_are_told():
    z = torch.randn(3, 4)
    for loss in (instance_nt_xent, instance_equation3):
        with pytest.raises(ValueError, match=r'one shape \(M, D\), got \(3, 4\) and \(2, 4\)'):
            loss(z, z[:2])
        with pytest.raises(ValueError, match="negatives 'some' is unknown: use one of all, other"):
            loss(z, z, negatives='some')
        with pytest.raises(ValueError, match='needs the nouns'):
            loss(z, z, negatives='other_nouns')
    with pytest.raises(ValueError, match='needs the nouns'):
        instance_info_nce(z, z, torch.randn(4, 5), torch.zeros(3), negatives='other_nouns')


def test_positives_of_the_same_noun_equal_plain_numpy():
    """SimCLR's views and MoCo's queue; whole images are positives of nobody else."""
    z, same = pairs(), ~allowed('other_nouns') & ~np.eye(6, dtype=bool)
    assert same.any() and (NOUNS == UNKNOWN_NOUN).any()
    unit = normalised(z)
    first, second = torch.from_numpy(z).unbind(1)
    nouns = torch.from_numpy(NOUNS)
    loss = instance_nt_xent(first, second, nouns, temperature=0.3, positives='same_noun')
    assert loss.item() == pytest.approx(nt_xent_of_nouns(unit, same, 0.3))
    loss = instance_equation3(first, second, nouns, positives='same_noun')
    assert loss.item() == pytest.approx(equation3_of_nouns(unit, same))

    queue, queue_nouns = normalised(pairs(1, 20)[:, 0]), np.arange(20) % 8 + 3
    queue_nouns[15:] = UNKNOWN_NOUN
    same = (NOUNS[:, None] == queue_nouns) & (NOUNS[:, None] != UNKNOWN_NOUN)
    loss = instance_info_nce(
        first,
        second,
        torch.from_numpy(queue.T),
        nouns,
        torch.from_numpy(queue_nouns),
        positives='same_noun',
    )
    wanted = np.pad(same, ((0, 0), (1, 0)), constant_values=True)
    candidates = [[key, *queue] for key in unit[:, 1]]
    expected = several_positives(unit[:, 0], candidates, wanted, 0.2)
    assert loss.item() == pytest.approx(expected)


def test_without_another_of_the_same_noun_the_loss_is_the_usual_one():
    first, second = torch.from_numpy(pairs()).unbind(1)
    nouns = torch.arange(6)
    assert instance_nt_xent(first, second, nouns, positives='same_noun').item() == pytest.approx(
        instance_nt_xent(first, second).item()
    )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(positives='all'), 'positives'),
        (dict(positives='same_noun', negatives='other_nouns'), 'exclude each other'),
        (dict(positives='same_noun'), 'needs the nouns'),
    ],
    ids=['unknown', 'both', 'no nouns'],
)
def test_wrong_positives_are_told(options, message):
    first, second = torch.from_numpy(pairs()).unbind(1)
    nouns = None if 'needs' in message else torch.arange(6)
    with pytest.raises(ValueError, match=message):
        instance_nt_xent(first, second, nouns, **options)


def test_weights_of_anchors_are_those_of_a_mean():
    """A weight of two is an anchor that is there twice; one of zero is one that isn't."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = (
        torch.rand(4, 1, generator=generator),
        torch.rand(4, 7, generator=generator),
    )
    same = torch.rand(4, 7, generator=generator) < 0.3
    rows, weights = torch.tensor([0, 0, 1, 3]), torch.tensor([2.0, 1.0, 0.0, 1.0])
    for loss, parts in (
        (contrastive_loss, (positive, negative)),
        (multi_positive_loss, (positive, negative, same)),
    ):
        found = loss(*parts, temperature=0.2, weights=weights)
        torch.testing.assert_close(found, loss(*(part[rows] for part in parts), temperature=0.2))
        assert loss(*parts, weights=torch.zeros(4)) == 0
