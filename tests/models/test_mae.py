"""MAE: stock parity without masks; exact counts, schedules and scores with masks."""
import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from tiny_models import mae, samples, views

from freeatm_mm.models import AttentionGuidedMaskGenerator
from freeatm_mm.models.mae import foreground_masked, num_kept
from freeatm_mm.models.mask_generators import kth_largest


@pytest.fixture
def hub():
    """The running state as mmengine's runner keeps it."""
    hub = MessageHub.get_instance('test_mae')
    MessageHub._instance_dict.move_to_end('test_mae')
    yield hub
    MessageHub._instance_dict.pop('test_mae')


def at(hub, iteration, last=100):
    hub.update_info('iter', iteration)
    hub.update_info('max_iters', last + 1)


@pytest.mark.parametrize('data', [None, samples([None] * 4), samples([0] * 4, number=1)])
def test_without_masks_it_is_mmpretrains_mae_bit_for_bit(data):
    results = []
    for model in (mae(stock=True), mae()):
        optimizer = torch.optim.AdamW(model.parameters())
        torch.manual_seed(4)
        for step in range(3):
            losses = model.loss(views(4, seed=step)[0], data)
            optimizer.zero_grad()
            losses['loss'].backward()
            optimizer.step()
        results.append((losses, [p.grad for p in model.parameters()], model.state_dict()))
    (stock_losses, stock_gradients, stock_state), (losses, gradients, state) = results
    assert list(losses) == list(stock_losses) == ['loss']
    assert torch.equal(losses['loss'], stock_losses['loss'])
    for ours, stock in zip(gradients, stock_gradients):
        assert (ours is None and stock is None) or torch.equal(ours, stock)
    assert state.keys() == stock_state.keys()
    assert all(torch.equal(state[key], stock_state[key]) for key in state)
    features = [model.extract_feat(views(2)[0])[0] for model in (mae(stock=True), mae())]
    assert torch.equal(*features)


@pytest.mark.parametrize('beta', [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize('length, masked', [(196, 147), (16, 12), (64, 48)])
def test_exact_counts(length, masked, beta):
    torch.manual_seed(0)
    scores = torch.rand(32, length)
    order = AttentionGuidedMaskGenerator()(scores, masked, beta)
    assert torch.equal(order.sort(dim=1).values, torch.arange(length).expand(32, -1))
    hidden = torch.zeros(32, length, dtype=torch.bool).scatter_(1, order[:, -masked:], True)
    chosen = int(beta * masked + 1e-9)
    top = scores.argsort(dim=1, descending=True)[:, :chosen]
    assert hidden.sum(1).eq(masked).all()
    assert hidden.gather(1, top).all()
    assert chosen == {0.0: 0, 0.3: int(0.3 * masked), 0.8: int(0.8 * masked),
                      1.0: masked}[beta]


def test_the_papers_counts():
    assert 196 - num_kept(196, 0.75) == 147
    assert int(0.8 * 147) == 117  # by attention; 30 at random of the other 79


def test_the_rest_is_random():
    """Patches not chosen by score are hidden with equal probability."""
    torch.manual_seed(0)
    scores = torch.arange(16.).expand(4000, -1)
    order = AttentionGuidedMaskGenerator()(scores, 12, 0.5)
    hidden = torch.zeros(4000, 16).scatter_(1, order[:, -12:], 1.0).mean(0)
    assert hidden[10:].eq(1).all()  # 6 by score
    np.testing.assert_allclose(hidden[:10], 6 / 10, atol=0.04)  # five standard deviations


def test_any_numbers_are_scores():
    """Negative, tiny, huge, equal: the highest are hidden."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(64, 20)).astype(np.float32)
    scores *= 10.0 ** random.integers(-30, 30, scores.shape)
    scores[:, ::4] = [[0.0, -0.0, 1e-40, -1e-40, np.inf]]
    scores[32:] = np.round(random.normal(size=(32, 20)))  # many equal ones
    order = AttentionGuidedMaskGenerator()(torch.from_numpy(scores), 7, 1.0).numpy()
    hidden = np.take_along_axis(scores, order[:, -7:], 1)
    visible = np.take_along_axis(scores, order[:, :-7], 1)
    assert (np.sort(order, 1) == np.arange(20)).all()
    assert (hidden.min(1) >= visible.max(1)).all()


@pytest.mark.parametrize('is_cpu', [True, False])
def test_selection_is_the_same_with_numpy_and_torch(monkeypatch, is_cpu):
    """What other devices than CPUs do; of these, CUDA has no deterministic `kthvalue`."""
    keys = torch.randint(-2**62, 2**62, (50, 33))
    keys[:, 5] = keys[:, 6]
    if not is_cpu:
        monkeypatch.setattr(torch.Tensor, 'is_cpu', False, raising=False)
        monkeypatch.delattr(np, 'partition')
    monkeypatch.setattr(torch.Tensor, 'kthvalue', None, raising=False)
    for number in (1, 10, 33):
        expected = keys.sort(dim=1, descending=True).values[:, number - 1:number]
        assert torch.equal(kth_largest(keys, number), expected)


def test_nothing_to_hide():
    order = AttentionGuidedMaskGenerator()(torch.rand(3, 5), 0, 0.8)
    assert torch.equal(order, torch.arange(5).expand(3, -1))


def test_ties_are_broken_at_random():
    torch.manual_seed(0)
    order = AttentionGuidedMaskGenerator()(torch.zeros(4000, 16), 12, 0.8)
    hidden = torch.zeros(4000, 16).scatter_(1, order[:, -12:], 1.0).mean(0)
    np.testing.assert_allclose(hidden, 0.75, atol=0.035)


@pytest.mark.parametrize('schedule, expected', [
    ('linear', [0, 0.2, 0.4, 0.8]), ('constant', [0.8] * 4), ('reverse', [0.8, 0.6, 0.4, 0]),
    ('cosine', [0, 0.8 * (1 - np.cos(np.pi / 4)) / 2, 0.4, 0.8])])
def test_schedules_follow_the_running_state(hub, schedule, expected):
    generator = AttentionGuidedMaskGenerator(schedule=schedule)
    for iteration, beta in zip((0, 25, 50, 100), expected):
        at(hub, iteration)
        assert generator.beta() == pytest.approx(beta)
        assert generator.beta(iteration / 100) == pytest.approx(beta)


def test_counts_over_a_whole_training(hub):
    """The foreground's share among the hidden patches follows beta."""
    torch.manual_seed(0)
    generator = AttentionGuidedMaskGenerator()
    scores = torch.zeros(200, 64)
    scores[:, :16] = 1 + torch.rand(200, 16)  # a quarter is foreground
    shares = []
    for iteration in range(0, 101, 10):
        at(hub, iteration)
        order = generator(scores, 48)
        mask = torch.zeros(200, 64).scatter_(1, order[:, -48:], 1.0)
        chosen = min(int(generator.beta() * 48 + 1e-9), 16)
        rest = (16 - chosen) * (48 - int(generator.beta() * 48 + 1e-9)) / (
            64 - int(generator.beta() * 48 + 1e-9))
        shares.append(foreground_masked(scores, mask).item())
        assert shares[-1] == pytest.approx((chosen + rest) / 16, abs=0.03)
    assert shares[0] < 0.8 and shares[-1] == 1 and shares == sorted(shares)


@pytest.mark.parametrize('combine', ['sum', 'max'])
def test_masked_patches_are_the_scores_highest(hub, combine):
    at(hub, 100)
    model = mae(combine=combine, mask_generator=dict(type='AttentionGuidedMaskGenerator',
                                                     ceiling=1.0))
    data = samples([2, None, 1, 0], number=1)
    seen = {}
    loss = model.head.loss
    model.head.loss = lambda pred, target, mask: seen.update(mask=mask) or loss(pred, target, mask)
    losses = model.loss(views(4)[0], data)
    assert losses['loss'].isfinite() and losses['beta'].item() == pytest.approx(1.0)
    assert seen['mask'].sum(1).eq(12).all()
    for image in (0, 2):
        masks = data[image].masks[0].flatten(1)
        scores = masks.sum(0) if combine == 'sum' else masks.amax(0)
        assert seen['mask'][image].bool().nonzero().flatten().tolist() == sorted(
            scores.argsort(descending=True)[:12].tolist())


def test_order_keeps_maes_contract():
    """Visible features, mask and ids_restore fit each other as MAE's own do."""
    backbone = mae().backbone
    tokens = torch.arange(2 * 16.).reshape(2, 16, 1).expand(-1, -1, 16)
    backbone._order = torch.stack([torch.randperm(16) for _ in range(2)])
    visible, mask, restore = backbone.random_masking(tokens, 0.75)
    backbone._order = None
    assert visible.shape == (2, 4, 16) and mask.dtype == torch.float32
    padded = torch.cat([visible, torch.full((2, 12, 16), -1.0)], dim=1)
    restored = padded.gather(1, restore[:, :, None].expand(-1, -1, 16))
    assert torch.equal(restored[mask == 0], tokens[mask == 0])
    assert restored[mask == 1].eq(-1).all()


def test_gradients_flow(hub):
    at(hub, 50)
    model = mae()
    model.loss(views(4)[0], samples([1, 2, None, 1], number=1))['loss'].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0
               for parameter in model.parameters() if parameter.requires_grad)


def test_outside_of_a_training_beta_is_that_of_its_start(hub):
    """Nobody has told the running state of iterations: evaluation, a model tried by hand."""
    assert hub.get_info('iter') is None
    assert AttentionGuidedMaskGenerator().beta() == 0
    assert AttentionGuidedMaskGenerator(schedule='reverse').beta() == 0.8
    at(hub, 0, last=0)  # a training of one iteration
    assert AttentionGuidedMaskGenerator().beta() == 0


def test_longer_than_planned_beta_stays_at_its_ceiling(hub):
    at(hub, 150)
    assert AttentionGuidedMaskGenerator().beta() == 0.8


def test_bad_arguments():
    with pytest.raises(ValueError, match='ceiling 1.2'):
        AttentionGuidedMaskGenerator(ceiling=1.2)
    with pytest.raises(ValueError, match="schedule 'steps'"):
        AttentionGuidedMaskGenerator(schedule='steps')
    with pytest.raises(ValueError, match="combine 'first'"):
        mae(combine='first')
    with pytest.raises(TypeError, match="type='FreeATMMAEViT'"):
        mae(backbone=dict(type='MAEViT', img_size=32, patch_size=8))
    with pytest.raises(ValueError, match=r'5x5.*4x4.*grid_size'):
        mae().loss(views(1)[0], samples([1], grid=5, number=1))
    wide = samples([1], number=1)
    wide[0].masks = wide[0].masks.reshape(1, 1, 2, 8)  # as many cells as there are patches
    with pytest.raises(ValueError, match=r'2x8.*4x4.*grid_size'):
        mae().loss(views(1)[0], wide)
