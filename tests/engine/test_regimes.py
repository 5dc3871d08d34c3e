"""Real, synthetic, mixed: trainings on stores and folders, one after the other or together."""

import copy

import numpy as np
import pytest
import torch
from helpers.tiny_models import GRID
from helpers.tiny_runs import config, different, run, state, train
from helpers.tiny_stores import make_store
from PIL import Image

METHODS = ('mocov2', 'simclr', 'mae')

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / 'store', count=20)


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(5)
    for number in range(20):
        path = tmp_path / 'real' / f'class_{number % 2}' / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path / 'real'


@pytest.mark.parametrize('method', METHODS)
def test_mixed_goes_on_from_the_real_images(tmp_path, store, folder, method):
    """Half of the real images, then half of the others: all of stage 1's state is taken over."""
    first = config(folder, tmp_path / 'first', method)
    first.train_dataloader.dataset.update(share=0.5, masks=False)
    learned = train(first, f'{method}_mixed_first')
    second = config(store, tmp_path / 'second', method)
    second.train_dataloader.dataset.share = 0.5
    second.model.pretrained = str(tmp_path / 'first' / 'epoch_3.pth')
    begun = copy.deepcopy(second)
    begun.work_dir = str(tmp_path / 'begun')
    assert not different(learned, train(begun, f'{method}_mixed_begun', killed_at=0))

    runner, watch = run(second, f'{method}_mixed_second')
    assert runner.iter == 3 and set(watch.outputs[0]) > {'loss'}
    begun.resume = True  # without a checkpoint yet it begins after stage 1; then it is stopped
    train(begun, f'{method}_mixed_stopped', killed_at=2)
    assert not different(state(runner), train(begun, f'{method}_mixed_resumed'))


@pytest.mark.parametrize('method', METHODS)
def test_real_images_alone_train_as_without_masks(tmp_path, folder, method):
    _, watch = run(config(folder, tmp_path / 'run', method), f'{method}_real')
    assert [list(output) for output in watch.outputs] == [['loss']] * 6


@pytest.mark.parametrize('method', METHODS)
def test_joint_mixing_in_one_epoch(tmp_path, store, folder, method):
    """Batches of samples with and without masks; each image once an epoch."""
    cfg = config([folder, store], tmp_path / 'run', method)
    runner, watch = run(cfg, f'{method}_joint')
    assert runner.iter == 12
    seen = [
        (sample.img_path, 'instance_masks' in sample)
        for batch in watch.batches[:4]
        for sample in batch['data_samples']
    ]
    real = [with_masks for path, with_masks in seen if path.endswith('.png')]
    generated = [with_masks for path, with_masks in seen if not path.endswith('.png')]
    assert len({path for path, _ in seen}) == 40 and len(real) == len(generated) == 20
    assert not any(real) and any(generated)
    both = [
        {'instance_masks' in sample for sample in batch['data_samples']} for batch in watch.batches
    ]
    assert {True, False} in both
    assert all(np.isfinite(output['loss']) for output in watch.outputs)
    for batch, output in zip(watch.batches, watch.outputs):
        found = [
            sample.instance_masks.shape[1:]
            for sample in batch['data_samples']
            if 'instance_masks' in sample
        ]
        assert all(shape[1:] == (GRID, GRID) for shape in found)
        if method != 'mae' and found:
            assert output['instances_per_image'] == pytest.approx(
                sum(shape[0] for shape in found) / 10
            )
            assert output['pooled_whole'] == pytest.approx(1 - len(found) / 10)


@pytest.mark.parametrize('method', METHODS)
def test_gradients_of_several_batches_add_up(tmp_path, store, method):
    """`accumulative_counts=2`: the weights change at every second batch alone."""
    cfg = config(store, tmp_path / 'run', method)
    cfg.optim_wrapper.accumulative_counts = 2
    start = train(cfg, f'{method}_accumulate_0', killed_at=0)
    one = train(cfg, f'{method}_accumulate_1', killed_at=1)
    two = train(cfg, f'{method}_accumulate_2', killed_at=2)
    name = 'backbone.conv1.weight' if method != 'mae' else 'backbone.patch_embed.projection.weight'
    assert torch.equal(start[name], one[name]) and not torch.equal(one[name], two[name])


@pytest.mark.parametrize('method', METHODS)
def test_mixed_precision(tmp_path, store, method):
    """Under bfloat16 autocast losses stay near those of float32, gradients and queue finite.

    On a GPU `tools/train.py --amp` does this; mmengine refuses to on a CPU, torch does not.
    """
    from mmengine.runner import Runner

    results = []
    for amp in (False, True):
        cfg = config(store, tmp_path / f'{method}_{amp}', method)
        cfg.experiment_name = f'{method}_amp_{amp}'
        runner = Runner.from_cfg(cfg)
        model = runner.model
        model.init_weights()
        torch.manual_seed(0)
        data = next(iter(runner.build_dataloader(cfg.train_dataloader)))
        data = model.data_preprocessor(data, True)
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            losses = model(**data, mode='loss')
        losses['loss'].backward()
        assert losses['loss'].dtype == torch.float32
        gradients = [
            parameter.grad for parameter in model.parameters() if parameter.grad is not None
        ]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        assert all(value.isfinite().all() for value in state(runner).values())
        results.append(losses['loss'].item())
    assert results[0] != results[1] == pytest.approx(results[0], rel=0.05)
