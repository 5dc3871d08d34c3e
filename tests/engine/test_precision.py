"""bfloat16 in backbones: where it is, where it isn't, and what it changes of a training."""

import math

import pytest
import torch
from helpers.tiny_runs import config
from helpers.tiny_stores import make_store
from mmengine.hooks import Hook
from mmengine.runner import Runner

from freeatm_mm.cli.train import load_config, parse_args
from freeatm_mm.engine import BFloat16Hook
from freeatm_mm.errors import InputError

pytestmark = pytest.mark.filterwarnings('ignore')


class Spy(Hook):
    """Notes the precision that parts of the model compute in, and the losses."""

    def __init__(self):
        self.found, self.losses, self.learned = {}, [], []

    def before_train(self, runner):
        for name, module in runner.model.named_modules():
            kind = type(module).__name__
            if kind in ('Conv2d', 'Linear', 'ContrastiveHead', 'MAEPretrainHead'):
                module.register_forward_hook(self.note(f'{name} {kind}'))
            if 'Neck' in kind:
                module.register_forward_pre_hook(self.note(f'input of {name} {kind}'))

    def note(self, name):
        def hook(module, inputs, output=None):
            value = inputs if output is None else output
            while isinstance(value, (tuple, list)):
                value = value[0]
            self.found[name] = value.dtype

        return hook

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs['loss']))
        gradients = [each.grad for each in runner.model.parameters() if each.grad is not None]
        self.learned.append(all(gradient.dtype == torch.float32 for gradient in gradients))


def trained(store, folder, method, masks, *hooks):
    cfg = config(store, folder, method)
    cfg.train_dataloader.dataset.masks = masks
    cfg.experiment_name = folder.name
    runner, spy = Runner.from_cfg(cfg), Spy()
    for hook in (*hooks, spy):
        runner.register_hook(hook, 'LOW')
    runner.train()
    return runner, spy


@pytest.mark.parametrize('masks', [True, False], ids=['masks', 'whole images'])
@pytest.mark.parametrize('method', ['mocov2', 'simclr', 'mae', 'dino'])
def test_backbones_alone_are_computed_in_bfloat16(tmp_path, method, masks):
    """Of the momentum encoder, too; a loss stays near float32's, as long as weights are equal."""
    store = make_store(tmp_path / 'store', count=20)
    _, plain = trained(store, tmp_path / f'{method}_plain', method, masks)
    runner, spy = trained(store, tmp_path / f'{method}_bf16', method, masks, BFloat16Hook())
    assert set(plain.found.values()) == {torch.float32}
    inside = {name for name, dtype in spy.found.items() if dtype == torch.bfloat16}
    assert plain.found.keys() == spy.found.keys()
    layers = {name for name in spy.found if name.endswith(('Conv2d', 'Linear'))}
    network = ('neck.' if method == 'mae' else 'no neck', 'backbone.', 'encoder_k.module.0.')
    assert inside == {name for name in layers if name.startswith((*network, 'teacher.module.0.'))}
    assert len(inside) > 4 and (method == 'mae' or len(layers) > len(inside))
    assert spy.learned and all(spy.learned)
    assert spy.losses[0] != plain.losses[0] == pytest.approx(spy.losses[0], rel=0.1)
    assert all(map(math.isfinite, spy.losses))
    state = runner.model.state_dict().values()
    assert not any(value.dtype == torch.bfloat16 for value in state)
    assert not any('forward' in vars(module) for module in runner.model.modules())


def loaded(*arguments):
    return load_config(parse_args(['configs/miniature/mocov2_freeatm.py', *arguments]))


@pytest.mark.parametrize('option', ['--amp', '--bf16'])
def test_the_training_tool_puts_it_into_the_config(option, monkeypatch):
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cpu')
    changes = ('--cfg-options', 'optim_wrapper.type=AmpOptimWrapper')
    cfg = loaded(option, *changes, 'optim_wrapper.dtype=bfloat16')
    assert cfg.optim_wrapper.type == 'OptimWrapper' and 'dtype' not in cfg.optim_wrapper
    assert [hook.type for hook in cfg.custom_hooks].count('mmengine.BFloat16Hook') == 1
    with pytest.raises(InputError, match='dtype=float16 contradicts bfloat16.*needs a GPU'):
        loaded(option, *changes, 'optim_wrapper.dtype=float16')
    with pytest.raises(InputError, match='loss_scale is for float16.*leave it out'):
        loaded(option, '--cfg-options', 'optim_wrapper.loss_scale=512.')


def test_on_a_gpu_amp_is_mmengines(monkeypatch):
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cuda')
    cfg = loaded('--amp')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert 'mmengine.BFloat16Hook' not in [hook.type for hook in cfg.custom_hooks]
    with pytest.raises(InputError, match='two precisions'):
        loaded('--amp', '--bf16')


def test_a_model_without_a_backbone_is_refused():
    class Plain:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(InputError, match='Linear has no backbone.*leave out --amp and --bf16'):
        BFloat16Hook().before_train(Plain())
