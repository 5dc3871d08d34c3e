"""Which patches are hidden: exact counts, ties, chance, schedules."""

import math

import numpy as np
import pytest
import torch
from helpers.ops_reference import hidden_patches

from freeatm_mm.ops import (
    SCHEDULES,
    attention_guided_order,
    beta_at,
    foreground_masked,
    green_noise,
    mask_patches,
    num_visible,
    patch_scores,
    relative_order_loss,
)
from freeatm_mm.ops.patch_masking import kth_largest


@pytest.mark.parametrize('beta', [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize('length, masked', [(196, 147), (16, 12), (64, 48)])
def test_exact_counts(length, masked, beta):
    torch.manual_seed(0)
    scores = torch.rand(32, length).argsort(dim=1) / length  # all different
    order = attention_guided_order(scores, masked, beta)
    assert torch.equal(order.sort(dim=1).values, torch.arange(length).expand(32, -1))
    hidden = torch.zeros(32, length, dtype=torch.bool).scatter_(1, order[:, -masked:], True)
    chosen = int(beta * masked + 1e-9)
    top = scores.argsort(dim=1, descending=True)[:, :chosen]
    assert hidden.sum(1).eq(masked).all()
    assert hidden.gather(1, top).all()
    assert chosen == {0.0: 0, 0.3: int(0.3 * masked), 0.8: int(0.8 * masked), 1.0: masked}[beta]


def test_the_papers_counts():
    assert 196 - num_visible(196, 0.75) == 147
    assert int(0.8 * 147) == 117  # by attention; 30 at random of the other 79


def test_the_rest_is_random():
    """Patches not chosen by score are hidden with equal probability."""
    torch.manual_seed(0)
    scores = torch.arange(16.0).expand(4000, -1)
    order = attention_guided_order(scores, 12, 0.5)
    hidden = torch.zeros(4000, 16).scatter_(1, order[:, -12:], 1.0).mean(0)
    assert hidden[10:].eq(1).all()  # 6 by score
    np.testing.assert_allclose(hidden[:10], 6 / 10, atol=0.04)  # five standard deviations


def test_any_finite_numbers_are_scores():
    """Negative, tiny, huge, equal: the highest are hidden, up to a step of the image's range."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(64, 20)).astype(np.float32)
    scores *= 10.0 ** random.integers(-30, 30, (64, 1))
    scores[:, ::4] = [[0.0, -0.0, 1e-40, -1e-40, 1e-30]]
    scores[32:] = np.round(random.normal(size=(32, 20)))  # many equal ones
    order = attention_guided_order(torch.from_numpy(scores), 7, 1.0).numpy()
    hidden = np.take_along_axis(scores, order[:, -7:], 1)
    visible = np.take_along_axis(scores, order[:, :-7], 1)
    assert (np.sort(order, 1) == np.arange(20)).all()
    assert (hidden.min(1) >= visible.max(1) - np.ptp(scores, 1) / 9_999).all()


@pytest.mark.parametrize('beta', [0.0, 0.01, 0.8])
def test_what_is_drawn_after_the_masks_is_the_same_in_both_arms(beta):
    torch.manual_seed(0)
    torch.rand(8, 64)
    expected = torch.rand(3)
    hidden_patches(torch.rand(8, 64), 48, beta)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize('beta', [0.1, 0.5, 0.8])
def test_rounding_does_not_order_equal_scores(beta):
    """Scores equal in exact arithmetic, off by 1e-7 as other processors' sums are."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.randint(0, 21, (300, 196), generator=generator) / 20 * 0.003 + 0.001
    for seed in range(3):
        noise = torch.rand(exact.shape, generator=generator) * 2 - 1
        rounded = exact * (1 + 2e-7 * noise)
        assert not torch.equal(rounded, exact)
        assert torch.equal(
            hidden_patches(rounded, 147, beta, seed), hidden_patches(exact, 147, beta, seed)
        )


def test_small_ranges_count():
    """The attention of all nouns together may differ little from patch to patch."""
    scores = 0.02 + torch.arange(64.0).expand(5, -1) * 1e-5
    assert hidden_patches(scores, 48, 1.0)[:, 16:].all()


@pytest.mark.parametrize('is_cpu', [True, False])
def test_selection_is_the_same_with_numpy_and_torch(monkeypatch, is_cpu):
    """What other devices than CPUs do; of these, CUDA has no deterministic `kthvalue`."""
    keys = torch.randint(-(2**62), 2**62, (50, 33))
    keys[:, 5] = keys[:, 6]
    if not is_cpu:
        monkeypatch.setattr(torch.Tensor, 'is_cpu', False, raising=False)
        monkeypatch.delattr(np, 'partition')
    monkeypatch.setattr(torch.Tensor, 'kthvalue', None, raising=False)
    for number in (1, 10, 33):
        expected = keys.sort(dim=1, descending=True).values[:, number - 1 : number]
        assert torch.equal(kth_largest(keys, number), expected)


def test_nothing_to_hide():
    order = attention_guided_order(torch.rand(3, 5), 0, 0.8)
    assert torch.equal(order.sort(dim=1).values, torch.arange(5).expand(3, -1))


def test_ties_are_broken_at_random():
    """Of equal scores each is as likely; and those not chosen are hidden as any others are.

    Half of the patches share the highest score; of 8 to be hidden 4 are chosen among them, the
    other 4 are any of the 12 that are left.
    """
    scores = torch.zeros(40_000, 16)
    scores[:, 1::2] = 1
    shares = hidden_patches(scores, 8, 0.5).float().mean(0)
    np.testing.assert_allclose(shares[1::2], 4 / 8 + 4 / 8 * 4 / 12, atol=0.012)  # 5 deviations
    np.testing.assert_allclose(shares[::2], 4 / 12, atol=0.012)


def test_pairs_of_tied_patches_are_as_likely():
    """Which two of six are chosen: all fifteen pairs."""
    scores = torch.zeros(30_000, 16)
    scores[:, 10:] = 1
    hidden = hidden_patches(scores, 2, 1.0)
    assert not hidden[:, :10].any()
    codes = (hidden[:, 10:] * 2 ** torch.arange(6)).sum(1)
    counts = torch.unique(codes, return_counts=True)[1]
    assert len(counts) == 15
    assert ((counts - 2000) ** 2 / 2000).sum() < 40  # chi square, 14 degrees of freedom


@pytest.mark.parametrize(
    'schedule, share',
    [
        ('linear', lambda t: t),
        ('constant', lambda t: 1),
        ('reverse', lambda t: 1 - t),
        ('cosine', lambda t: (1 - math.cos(math.pi * t)) / 2),
    ],
)
def test_schedules(schedule, share):
    for progress in (0, 0.1, 0.5, 0.9, 1):
        assert beta_at(progress, schedule=schedule) == pytest.approx(0.8 * share(progress))
        assert beta_at(progress, 0.3, schedule) == pytest.approx(0.3 * share(progress))
    assert schedule in SCHEDULES


def test_scores_are_the_nouns_attention_together():
    masks = [torch.rand(3, 2, 4), None, torch.rand(0, 2, 4), torch.rand(1, 2, 4)]
    for combine, reduce in (('sum', np.sum), ('max', np.max)):
        scores = patch_scores(masks, 8, combine)
        for image, mask in enumerate(masks):
            rows = np.zeros((1, 8)) if mask is None or not len(mask) else mask.flatten(1).numpy()
            np.testing.assert_allclose(scores[image], reduce(rows, axis=0), rtol=1e-6)
    assert patch_scores([None, None], 8).tolist() == [[0.0] * 8] * 2


@pytest.mark.parametrize('visible', [0, 4, 16])
def test_patches_are_hidden_in_order_and_can_be_put_back(visible):
    tokens = torch.randn(3, 16, 5)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    shown, mask, restore = mask_patches(tokens, order, visible)
    for image in range(3):
        kept = order[image, :visible].numpy()
        np.testing.assert_array_equal(shown[image], tokens[image].numpy()[kept])
        np.testing.assert_array_equal(mask[image], ~np.isin(np.arange(16), kept))
        np.testing.assert_array_equal(order[image].numpy()[restore[image]], np.arange(16))
    assert mask.dtype == torch.float32


def test_share_of_the_foreground_that_is_hidden():
    scores = torch.tensor([[0.0, 0.44, 0.45, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert foreground_masked(scores, torch.tensor([[1.0, 1, 0, 1], [1, 1, 1, 1]])) == 0.5
    assert foreground_masked(scores[1:], torch.ones(1, 4)) == 0


def test_wrong_arguments_are_told():
    with pytest.raises(ValueError, match=r'ceiling 1.5 is not in \[0, 1\]'):
        beta_at(0.5, 1.5)
    with pytest.raises(ValueError, match="schedule 'steps' is unknown: use one of linear, "):
        beta_at(0.5, schedule='steps')
    with pytest.raises(ValueError, match="combine 'mean' is unknown"):
        patch_scores([None], 4, 'mean')
    with pytest.raises(ValueError, match='masks of 9 cells do not fit 16 patches'):
        patch_scores([torch.rand(1, 3, 3)], 16)


@pytest.mark.parametrize('beta', [0.0, 0.3, 0.75, 1.0])
def test_a_share_of_each_images_own_foreground(beta):
    """As many as its foreground has of it, the highest first; the rest by the baseline's draw."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(4, 50, generator=generator) * 0.3
    for image, area in enumerate((2, 10, 45)):  # the last image's scores have no such patches
        scores[image, :area] = torch.linspace(1.0, 0.6, area)
    scores[3] = 0.2  # no foreground at all
    torch.manual_seed(5)
    order = attention_guided_order(scores, 30, beta, share_of='foreground')
    torch.manual_seed(5)
    noise = torch.rand(scores.shape)
    assert (order.sort(1).values == torch.arange(50)).all()
    for image, area in enumerate((2, 10, 45, 0)):
        chosen = set(range(min(int(beta * area + 1e-9), 30)))
        rest = [patch for patch in noise[image].argsort().tolist() if patch not in chosen]
        assert set(order[image, 20:].tolist()) == chosen | set(rest[len(rest) - 30 + len(chosen) :])


def test_an_unknown_share_is_told():
    with pytest.raises(ValueError, match='share_of'):
        attention_guided_order(torch.rand(1, 4), 2, 0.5, share_of='image')


def band_passed(noise, side, fine, coarse):
    """The same in Fourier space: blurs that go on round the edges, one after the other."""
    away = np.minimum(np.arange(side), side - np.arange(side))
    spectra = []
    for width in (fine, coarse):
        line = np.exp(-(away**2) / (2 * width**2)) if width else (away == 0).astype(float)
        spectra.append(np.fft.fft2(np.outer(line, line) / line.sum() ** 2))
    grids = noise.reshape(-1, side, side)
    return np.fft.ifft2(np.fft.fft2(grids) * (spectra[0] - spectra[1])).real.reshape(noise.shape)


@pytest.mark.parametrize('side, band', [(14, (1.0, 2.0)), (8, (0.5, 1.5)), (5, (0.0, 1.0))])
def test_green_noise_is_a_band_of_the_white(side, band):
    noise = torch.rand(6, side * side)
    ranks = band_passed(noise.double().numpy(), side, *band).argsort(1).argsort(1)
    found = green_noise(noise, band)
    np.testing.assert_allclose(found, ranks / side**2, atol=1e-6)


def test_green_noise_hides_clumps_all_over_the_image_from_maes_own_draw():
    hidden = {}
    for noise in ('white', 'green'):
        torch.manual_seed(3)
        order = attention_guided_order(torch.zeros(1000, 196), 147, 0.0, noise=noise)
        after = torch.rand(3)
        hidden[noise] = torch.zeros(1000, 196).scatter_(1, order[:, 49:], 1.0)
        assert hidden[noise].sum(1).eq(147).all()
        torch.manual_seed(3)
        white = torch.rand(1000, 196)
        assert torch.equal(torch.rand(3), after)
    assert torch.equal(hidden['white'].bool(), white.argsort(1).argsort(1) >= 49)
    assert (hidden['green'].mean(0) - 0.75).abs().max() < 0.07  # 5 standard errors
    neighbours = {}
    for noise, mask in hidden.items():
        grid = mask.unflatten(1, (14, 14)) - 0.75
        neighbours[noise] = [
            float((grid[:, :, step:] * grid[:, :, :-step]).mean() / 0.1875) for step in (1, 2, 4)
        ]
    assert abs(neighbours['white'][0]) < 0.03
    near, _, far = neighbours['green']
    assert near > 0.35 and far < -0.03  # clumps, and gaps between them


def test_what_is_guided_is_guided_with_green_noise_too():
    scores = torch.rand(32, 64).argsort(1).float()
    for beta, share_of in ((0.5, 'hidden'), (1.0, 'foreground')):
        orders = []
        for noise in ('white', 'green'):
            torch.manual_seed(0)
            orders.append(attention_guided_order(scores, 48, beta, share_of, noise))
            assert orders[-1].sort(1).values.eq(torch.arange(64)).all()
            highest = scores.argsort(1)[:, -24:]
            assert all(
                set(best.tolist()) <= set(order[16:].tolist())
                for best, order in zip(highest, orders[-1])
            )
        assert not torch.equal(*orders)


def test_wrong_noise_is_told():
    with pytest.raises(ValueError, match="noise 'blue' is unknown: use one of white, green"):
        attention_guided_order(torch.zeros(1, 16), 12, 0.0, noise='blue')
    with pytest.raises(ValueError, match='square grid, and 12 patches are none'):
        green_noise(torch.rand(1, 12))
    for band in ((2, 1), (1,), (-1, 2)):
        with pytest.raises(ValueError, match='the smaller first'):
            green_noise(torch.rand(1, 16), band)


def test_relative_order_is_cross_entropy_over_all_pairs():
    rng = np.random.default_rng(0)
    predicted, losses = rng.normal(size=(3, 7)), rng.integers(0, 4, (3, 7)).astype(float)
    terms = []
    for row, true in zip(predicted, losses):
        for i in range(7):
            for j in range(i):
                if true[i] != true[j]:
                    chance = 1 / (1 + np.exp(row[j] - row[i]))
                    terms.append(-np.log(chance if true[i] > true[j] else 1 - chance))
    found = relative_order_loss(torch.from_numpy(predicted), torch.from_numpy(losses))
    assert found.item() == pytest.approx(np.mean(terms))
    assert relative_order_loss(torch.rand(2, 3), torch.ones(2, 3)) == 0


def test_green_noise_is_usable_after_a_run_in_inference_mode():
    """What is kept between calls must not be a tensor of the mode that it was made in."""
    noise = torch.rand(2, 25)
    with torch.inference_mode():
        found = green_noise(noise, (0.5, 1.5))
    filtered = green_noise(noise.requires_grad_(), (0.5, 1.5))
    assert torch.equal(found, filtered)
