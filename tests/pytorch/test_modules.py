"""Pooling of any layout, losses as modules, guided masking: against `ops` and transformers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from freeatm_mm import ops
from freeatm_mm.errors import InputError
from freeatm_mm.pytorch import (
    GuidedMasking,
    InstanceDistillation,
    InstanceInfoNCE,
    InstanceNTXent,
    InstancePool,
)

FEATURES = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
MASKS = torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(1))
PLACES = torch.tensor([0, 3, 4])


class Output:
    """As transformers' outputs."""

    last_hidden_state = torch.cat([torch.zeros(2, 1, 5), FEATURES.flatten(2).transpose(1, 2)], 1)


@pytest.mark.parametrize(
    'features, options',
    [
        (FEATURES, {}),
        ([torch.zeros(1), FEATURES], {}),
        (FEATURES.permute(0, 2, 3, 1), {}),
        (FEATURES.permute(0, 2, 3, 1), {'layout': 'nhwc'}),
        (FEATURES.flatten(2).transpose(1, 2), {}),
        (Output(), {}),
        (Output(), {'layout': 'tokens', 'prefix_tokens': 1}),
        ({'x_norm_patchtokens': FEATURES.flatten(2).transpose(1, 2), 'masks': None}, {}),
    ],
)
def test_every_layout_pools_as_equation_2(features, options):
    expected = ops.pool_instances(FEATURES, MASKS, PLACES)
    assert torch.equal(InstancePool(**options)(features, MASKS, PLACES), expected)


@pytest.mark.parametrize(
    'features, options, said',
    [
        (torch.zeros(2, 3, 4, 3), {}, None),
        (torch.zeros(2, 3, 3, 3), {}, 'both ways: name the layout'),
        (torch.zeros(2, 5, 7, 7), {}, 'no such grid'),
        (torch.zeros(2, 40, 5), {}, '40 tokens do not fit'),
        (torch.zeros(2, 13, 5), {'prefix_tokens': 0}, '13 tokens do not fit'),
        (torch.zeros(2, 13, 5), {'prefix_tokens': 2}, '13 tokens do not fit'),
        (torch.zeros(2, 5), {}, 'forward_features'),
        (torch.zeros(2, 13, 5), {'layout': 'nhwc'}, 'are tokens'),
        (torch.zeros(2, 16, 5), {}, '16 tokens could be a grid of 3x4, .* or of 4x4'),
        (torch.zeros(2, 5, 3, 4), {'layout': 'nhwc'}, 'read as nhwc'),
        (torch.zeros(2, 5, 3, 4), {'layout': 'tokens'}, 'a map, not tokens'),
        (torch.zeros(2, 5, 3, 4, dtype=torch.uint8), {}, 'not floating point'),
        (torch.zeros(1, 5, 3, 4), {}, 'masks of 2 images and features of 1'),
    ],
)
def test_what_does_not_fit_is_told(features, options, said):
    masks = torch.rand(2, 1, 3, 3) if said and 'both' in said else MASKS
    if said is None:
        InstancePool()(features, masks)
        return
    with pytest.raises(InputError, match=said):
        InstancePool(**options)(features, masks)
    with pytest.raises(InputError, match='layout'):
        InstancePool('hwc')
    with pytest.raises(InputError, match=r'masks must be \(B, K, h, w\)'):
        InstancePool(**options)(features, masks[0])
    for wrong in (-1, 1.0, True):
        with pytest.raises(InputError, match='no number of tokens'):
            InstancePool(prefix_tokens=wrong)


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -1.0])
def test_masks_that_are_no_weights_are_told(value):
    masks = MASKS.clone()
    masks[1, 2, 0, 0] = value
    with pytest.raises(InputError, match='masks are (NaN|negative)'):
        InstancePool()(FEATURES, masks)


def test_masks_on_another_device_are_told():
    with pytest.raises(InputError, match='masks lie on meta and the features on cpu: move'):
        InstancePool()(FEATURES, MASKS.to('meta'))


@pytest.mark.parametrize('tokens', [17, 16, 65, 18])
def test_tokens_of_another_grid_are_not_pooled_as_if_of_this(tokens):
    """A ViT of 8x8 patches and a class token, and masks on the usual grid of 7x7, say."""
    side = 7 if tokens > 20 else 2
    with pytest.raises(InputError, match=f'{tokens} tokens do not fit masks on a {side}x{side}'):
        InstancePool()(torch.zeros(1, tokens, 5), torch.rand(1, 1, side, side))


def test_registers_are_told_from_patches():
    masks, tokens = torch.rand(1, 1, 3, 3), torch.rand(1, 18, 5)
    with pytest.raises(InputError, match='3x3, as the masks have, or of 4x4: .* prefix_tokens'):
        InstancePool()(tokens, masks)
    expected = InstancePool()(tokens[:, 9:], masks)
    assert torch.equal(InstancePool(prefix_tokens=9)(tokens, masks), expected)
    registers = torch.rand(1, 7 * 7 + 5, 5)
    masks = torch.rand(1, 1, 7, 7)
    assert torch.equal(InstancePool()(registers, masks), InstancePool()(registers[:, 5:], masks))


@pytest.mark.parametrize(
    'name, size, grid, options',
    [
        ('resnet10t', 64, 2, {}),
        ('convnext_atto', 64, 2, {}),
        ('vit_tiny_patch16_224', 64, 4, {'img_size': 64}),
        ('swin_tiny_patch4_window7_224', 64, 2, {'img_size': 64, 'depths': (1, 1, 1, 1)}),
    ],
)
def test_backbones_of_timm(name, size, grid, options):
    timm = pytest.importorskip('timm')
    model = timm.create_model(name, num_classes=0, **options).eval()
    masks = torch.rand(1, 2, grid, grid)
    with torch.no_grad():
        features = model.forward_features(torch.randn(1, 3, size, size))
        pooled = InstancePool()(features, masks)
        assert pooled.shape == (2, model.num_features)
        whole = InstancePool()(features, torch.ones(1, 1, grid, grid))
    tokens = features[:, -grid * grid :] if features.ndim == 3 else features
    axes = (1,) if features.ndim == 3 else (1, 2) if tokens.shape[1] == grid else (2, 3)
    torch.testing.assert_close(whole, tokens.mean(axes))


def test_nt_xent_and_equation_3():
    first, second, nouns = torch.randn(6, 8), torch.randn(6, 8), torch.tensor([1, 1, 2, 3, 2, -1])
    for negatives in ops.NEGATIVES:
        expected = ops.instance_nt_xent(first, second, nouns, temperature=0.3, negatives=negatives)
        assert InstanceNTXent(0.3, negatives)(first, second, nouns) == expected
    expected = ops.instance_equation3(first, second)
    assert InstanceNTXent(1.0, equation3=True)(first, second) == expected
    for options in ({'temperature': 0}, {'temperature': torch.inf}, {'negatives': 'some'}):
        with pytest.raises(InputError):
            InstanceNTXent(**options)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [True, False])
def test_losses_are_computed_in_float32(dtype, autocast):
    """float16 normalises a zero to NaN, and at a temperature of 0.01 loses half of the loss."""
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 8).to(dtype)
    first[0] = 0
    nce, single = InstanceInfoNCE(8, 10), InstanceInfoNCE(8, 10)
    single.load_state_dict(nce.state_dict())
    calls = [
        (InstanceNTXent(0.01), InstanceNTXent(0.01), (first, second)),
        (InstanceNTXent(1, equation3=True), InstanceNTXent(1, equation3=True), (first, second)),
        (nce, single, (first, second)),
        (InstanceDistillation(8), InstanceDistillation(8), ([first, second],) * 2),
    ]
    for loss_of, other, arguments in calls:
        with torch.autocast('cpu', dtype, enabled=autocast):
            found = loss_of(*arguments)
        expected = other(
            *[
                [part.float() for part in given] if isinstance(given, list) else given.float()
                for given in arguments
            ]
        )
        assert found.dtype == torch.float32 and torch.equal(found, expected), loss_of
        assert found.isfinite()


def test_a_step_that_overflowed_is_over_after_it():
    """As a scaler of gradients expects, which leaves out such a step."""
    first, second = torch.randn(2, 4, 6)
    second[1, 2] = torch.inf
    nce, distillation = InstanceInfoNCE(6, 8), InstanceDistillation(6)
    assert nce(first, second).isnan() and nce.queue.isfinite().all()
    assert nce.queue[:, 1].eq(0).all() and nce(first, first).isfinite()
    assert distillation([first, second], [first, second]).isnan()
    assert not distillation.center.any() and distillation([first] * 2, [first] * 2).isfinite()


def test_info_nce_keeps_its_queue_in_training_alone():
    loss_of = InstanceInfoNCE(8, 10, negatives='other_nouns')
    queries, keys, nouns = torch.randn(3, 8), torch.randn(3, 8), torch.tensor([4, 5, 4])
    before = loss_of.queue.clone()
    expected = ops.instance_info_nce(
        queries, keys, before, nouns, loss_of.queue_nouns.clone(), negatives='other_nouns'
    )
    assert loss_of.eval()(queries, keys, nouns) == expected
    assert torch.equal(loss_of.queue, before) and loss_of.pointer == 0
    assert loss_of.train()(queries, keys, nouns) == expected
    assert torch.equal(loss_of.queue[:, :3], F.normalize(keys, dim=1).T) and loss_of.pointer == 3
    assert loss_of.queue_nouns.tolist() == [4, 5, 4] + [-1] * 7
    assert set(loss_of.state_dict()) == {'queue', 'pointer', 'queue_nouns'}


def test_positives_of_one_noun_are_those_of_the_ops():
    first, second = torch.randn(2, 5, 6)
    nouns, queue_nouns = torch.tensor([4, 5, 4, -1, -1]), torch.tensor([5, 4, 4, -1, 7, 5, 5, 5])
    same = {'positives': 'same_noun'}
    found = InstanceNTXent(0.2, **same)(first, second, nouns)
    assert found == ops.instance_nt_xent(first, second, nouns, temperature=0.2, **same)
    assert found != InstanceNTXent(0.2)(first, second, nouns)
    found = InstanceNTXent(1, equation3=True, **same)(first, second, nouns)
    assert found == ops.instance_equation3(first, second, nouns, **same)
    loss_of = InstanceInfoNCE(6, 8, **same)
    loss_of.queue_nouns.copy_(queue_nouns)
    expected = ops.instance_info_nce(
        first, second, loss_of.queue.clone(), nouns, queue_nouns, **same
    )
    assert loss_of(first, second, nouns) == expected
    # By hand: the mean over positives of the log-softmax over all others.
    rows = F.normalize(torch.cat([first, second]), dim=1)
    logits = (rows @ rows.T / 0.2).fill_diagonal_(-torch.inf).log_softmax(1)
    label = [*nouns[:3].tolist(), 'a', 'b'] * 2  # of an unknown noun there is one instance
    losses = []
    for anchor in range(10):
        others = [n for n in range(10) if n != anchor and label[n] == label[anchor]]
        losses.append(-logits[anchor, others].mean())
    torch.testing.assert_close(
        InstanceNTXent(0.2, **same)(first, second, nouns), torch.stack(losses).mean()
    )
    for wrong, said in (
        ({'positives': 'all'}, "positives 'all' is none of own, same_noun"),
        ({**same, 'negatives': 'other_nouns'}, 'choose one of the two'),
    ):
        with pytest.raises(InputError, match=said):
            InstanceNTXent(**wrong)
        with pytest.raises(InputError, match=said):
            InstanceInfoNCE(**wrong)
    with pytest.raises(InputError, match="positives 'same_noun' needs the nouns"):
        InstanceNTXent(**same)(first, second)


def test_distillation_is_dinos_cross_entropy():
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(3, 4, 6)), random.normal(size=(2, 4, 6))

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    center = teacher.reshape(-1, 6).mean(0)
    pairs = [(t, s) for t in range(2) for s in range(3) if t != s]
    expected = np.mean(
        [
            -(softmax((teacher[t] - 0.1 * center) / 0.04) * np.log(softmax(student[s] / 0.1)))
            .sum(-1)
            .mean()
            for t, s in pairs
        ]
    )
    loss_of = InstanceDistillation(6)
    students = [torch.tensor(part, requires_grad=True) for part in student]
    teachers = [torch.tensor(part, requires_grad=True) for part in teacher]
    loss_of(students, teachers)  # moves the centre from 0 to a tenth of the mean
    np.testing.assert_allclose(loss_of.center[0], 0.1 * center, rtol=1e-5)
    loss = loss_of.eval()(students, teachers)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert teachers[0].grad is None and all(part.grad.abs().sum() > 0 for part in students)
    with pytest.raises(ValueError, match='two different views'):
        loss_of(students[:1], teachers[:1])
    with pytest.raises(ValueError, match='one for each view'):
        loss_of(students, [teachers[0][:2]])
    with pytest.raises(InputError):
        InstanceDistillation(6, teacher_temperature=0.2)


@pytest.mark.parametrize('progress', [0.0, 1.0])
def test_vit_mae_hides_what_the_attention_marks(progress):
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTMAEConfig(
        image_size=32,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    model = transformers.ViTMAEForPreTraining(config)
    masks = torch.zeros(2, 2, 8, 8)
    masks[0, 0, 2:5, 2:5] = torch.rand(3, 3) + 1
    guided = GuidedMasking(config.mask_ratio)
    torch.manual_seed(0)
    noise = guided.noise(masks, progress)
    torch.manual_seed(0)
    tokens = torch.randn(2, 64, 3)
    torch.manual_seed(0)
    _, hidden, restore = guided(tokens, masks, progress)
    output = model(pixel_values=torch.rand(2, 3, 32, 32), noise=noise)
    assert torch.equal(output.mask, hidden) and torch.equal(output.ids_restore, restore)
    assert output.mask.sum(1).tolist() == [48, 48] and torch.isfinite(output.loss)
    foreground = masks[0, 0].flatten() > 0
    assert (output.mask[0][foreground].mean() == 1) == (progress == 1.0)


def test_guided_masking_says_what_is_wrong():
    for options in ({'mask_ratio': 1}, {'combine': 'mean'}, {'ceiling': 2}, {'schedule': 'x'}):
        with pytest.raises(InputError):
            GuidedMasking(**options)
    with pytest.raises(InputError, match='leave out the class token'):
        GuidedMasking()(torch.randn(1, 17, 4), torch.rand(1, 1, 4, 4), 0.5)
    for progress in (-0.1, 1.1, float('nan')):
        with pytest.raises(InputError, match='progress'):
            GuidedMasking().noise(torch.rand(1, 1, 4, 4), progress)
    with pytest.raises(InputError, match='masks are NaN'):
        GuidedMasking().noise(torch.full((1, 1, 4, 4), torch.nan), 0.5)
    with pytest.raises(InputError, match='none visible'):
        GuidedMasking()(torch.randn(1, 1, 4), torch.rand(1, 1, 1, 1), 0.5)
    with pytest.raises(InputError, match=r'must be \(B, K, h, w\)'):
        GuidedMasking().noise(torch.rand(1, 4, 4), 0.5)


def test_a_batch_without_instances_has_no_loss_and_spoils_nothing():
    """The mean of nothing is no number: weights, queue and centre would be lost for good."""
    none = torch.zeros(0, 6, requires_grad=True)
    queue, distillation = InstanceInfoNCE(6, 8), InstanceDistillation(6)
    before = queue.queue.clone()
    for loss in (
        InstanceNTXent()(none, none),
        InstanceNTXent(1, equation3=True)(none, none),
        queue(none, none.detach()),
        distillation([none, none], [none, none]),
    ):
        assert loss.item() == 0
        loss.backward()
    assert torch.equal(queue.queue, before) and not distillation.center.any()


def test_embeddings_that_do_not_belong_together_are_told():
    five = torch.randn(5, 6)
    for loss, arguments in (
        (InstanceNTXent(), (five, five[:3])),
        (InstanceNTXent(), (five, torch.randn(5, 4))),
        (InstanceNTXent(negatives='other_nouns'), (five, five, torch.zeros(3, dtype=torch.long))),
        (InstanceInfoNCE(8, 16), (five, five)),
        (InstanceNTXent(), (five.long(), five.long())),
    ):
        with pytest.raises(InputError, match='embeddings must be'):
            loss(*arguments)
    for loss in (InstanceNTXent(negatives='other_nouns'), InstanceInfoNCE(6, 8, 1, 'other_nouns')):
        with pytest.raises(InputError, match='needs the nouns'):
            loss(five, five)


@pytest.mark.parametrize(
    'student, teacher, temperature, said',
    [
        (torch.zeros(5, 6), torch.zeros(5, 6), None, r'outputs \(M, 6\), one for each view'),
        ([torch.zeros(5, 4)] * 2, [torch.zeros(5, 4)] * 2, None, r'outputs \(M, 6\)'),
        ([torch.zeros(5, 6)] * 2, [torch.zeros(4, 6)] * 2, None, r'outputs \(M, 6\)'),
        ([torch.zeros(5, 6)] * 2, [], None, "student's, got 0 and 2"),
        ([torch.zeros(5, 6)], [torch.zeros(5, 6)], None, 'two different views'),
        ([torch.zeros(5, 6)] * 2, [torch.zeros(5, 6)] * 2, 0, 'teacher_temperature 0 is not'),
        ([torch.zeros(5, 6)] * 2, [torch.zeros(5, 6)] * 2, torch.nan, 'teacher_temperature nan'),
    ],
)
def test_outputs_that_are_not_those_of_views_are_told(student, teacher, temperature, said):
    with pytest.raises(InputError, match=said):
        InstanceDistillation(6)(student, teacher, temperature)


def test_guided_masking_takes_the_options_of_the_order():
    masks = torch.rand(3, 2, 4, 4)
    module = GuidedMasking(ceiling=1.0, share_of='foreground', noise='green')
    torch.manual_seed(0)
    found = module.order(masks, 0.7)
    torch.manual_seed(0)
    scores = ops.patch_scores(list(masks), 16)
    assert torch.equal(found, ops.attention_guided_order(scores, 12, 0.7, 'foreground', 'green'))
    for wrong in ({'share_of': 'image'}, {'noise': 'red'}):
        with pytest.raises(InputError, match='is none of'):
            GuidedMasking(**wrong)


@pytest.mark.filterwarnings('ignore')
def test_modules_are_compiled_whole():
    """Without a graph break, but for the queue's pointer and the choice of patches."""
    torch.compiler.reset()

    def compiled(module, whole=True):
        return torch.compile(module, backend='eager', fullgraph=whole)

    first, second = torch.randn(2, 4, 6)
    queue = InstanceInfoNCE(6, 8, negatives='other_nouns').eval()
    for module, inputs in (
        (InstancePool(), (FEATURES, MASKS, PLACES)),
        (InstanceNTXent(negatives='other_nouns'), (first, second, torch.arange(4))),
        (queue, (first, second, torch.arange(4))),
        (InstanceDistillation(6), ([first, second], [first])),
    ):
        expected = copy.deepcopy(module)(*inputs)
        torch.testing.assert_close(compiled(module)(*inputs), expected)
    results = []
    for wrap in (lambda module: module, lambda module: compiled(module, whole=False)):
        torch.manual_seed(0)
        modules = InstanceInfoNCE(6, 8), GuidedMasking()
        queue, guided = map(wrap, modules)
        with torch._dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True):
            for step in range(6):
                found = guided(torch.rand(2, 16, 3), torch.rand(2, 3, 4, 4), step / 6)
                queue(torch.randn(3 + step, 6), torch.randn(3 + step, 6))
        results.append([*found, modules[0].queue, modules[0].pointer])
    for plain, fast in zip(*results):
        torch.testing.assert_close(plain, fast)
