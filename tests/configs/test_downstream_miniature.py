"""Every downstream config of the miniature: what pretrains fits, and it trains and evaluates."""

from __future__ import annotations

import math

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

pytest.importorskip('mmcv.ops')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from helpers.tiny_downstream import CONFIGS, make_tiny_world, run_downstream  # noqa: E402

from freeatm_mm.configs import complete_config, open_config  # noqa: E402
from freeatm_mm.downstream.runs import BENCHMARKS, suites  # noqa: E402
from freeatm_mm.miniature.sources import NOUNS  # noqa: E402

SMALL = sorted(
    path.relative_to(CONFIGS).as_posix()
    for folder in ('downstream', 'supervised')
    for path in (CONFIGS / 'miniature' / folder).glob('*.py')
)
FILLED = {'resnet': 80, 'vit': 76}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    return make_tiny_world(tmp_path_factory.mktemp('world'))


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """What the miniature's own pretrainings leave behind."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for kind, name in (('resnet', 'mocov2'), ('vit', 'mae')):
        cfg = Config.fromfile(CONFIGS / f'miniature/{name}_freeatm.py')
        backbone = MODELS.build(cfg.model.backbone)
        backbone.init_weights()
        torch.save(
            {
                'state_dict': {
                    f'backbone.{name}': value for name, value in backbone.state_dict().items()
                }
            },
            folder / f'{kind}.pth',
        )
    return folder


def small(name, world, work_dir, **options):
    cfg = open_config(CONFIGS / name, str(work_dir))
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    complete_config(
        cfg,
        str(world),
        {
            **{f'{loader}.num_workers': 0 for loader in loaders},
            'train_dataloader.batch_size': 8,
            'train_dataloader.dataset.indices': 16,
            **options,
        },
    )
    cfg.log_level, cfg.default_hooks.checkpoint = 'WARNING', None
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        cfg.train_cfg.update(max_epochs=2, val_interval=2)
    return cfg


@pytest.mark.parametrize('name', SMALL)
def test_it_trains_and_evaluates(name, world, checkpoints, tmp_path):
    kind = 'vit' if 'vit' in name else 'resnet'
    supervised = 'supervised' in name
    options = {} if supervised else {'init': str(checkpoints / f'{kind}.pth')}
    if 'objects' not in open_config(CONFIGS / name).train_dataloader.dataset.data_prefix:
        options['train_dataloader.dataset.indices'] = 8
    if 'rcnn' in name:  # mmdet gives no metrics where nothing at all is found
        options['model.test_cfg.rcnn.score_thr'] = 0.0
    runner, losses, metrics = run_downstream(
        small(name, world, tmp_path, **options), f'small-{name.replace("/", "-")}'
    )
    assert len(losses) >= 2 and all(map(math.isfinite, losses))
    report = runner.message_hub.runtime_info.get('initial_weights')
    if supervised:
        assert report is None
        return
    total = FILLED[kind] - ('rcnn_vit' in name)  # no class token there
    assert report.startswith(f'{total} of the {total} tensors'), report
    (benchmark,) = (known for known in BENCHMARKS.values() if known.config == name)
    assert set(benchmark.metrics) <= set(metrics)


def test_a_small_detector_learns_the_squares(world, tmp_path):
    """Boxes and masks reach the loss and the metric the right way round: AP rises."""
    cfg = small(
        'miniature/downstream/mask-rcnn_resnet.py',
        world,
        tmp_path,
        init='random',
        **{'train_dataloader.dataset.indices': 8},
    )
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.update(ann_file='train/coco.json', data_prefix=dict(img='train/images/'))
    cfg.val_evaluator.ann_file = str(world / 'train/coco.json')
    cfg.train_cfg.update(max_epochs=80, val_interval=80)
    cfg.param_scheduler = None
    _, losses, metrics = run_downstream(cfg, 'small-learns')
    assert losses[-1] < 0.5 * losses[0]
    assert set(BENCHMARKS['mini-coco'].metrics) <= set(metrics)
    assert metrics['coco/bbox_mAP_50'] > 0.1 and metrics['coco/segm_mAP'] > 0.03


def test_the_linear_probe_does_not_see_the_scale_of_features():
    """A rate that fits one scale would rank pretrainings by theirs."""
    torch.manual_seed(0)
    cfg = open_config(CONFIGS / 'miniature/downstream/linear_resnet.py')
    model = MODELS.build({**cfg.model, 'data_preprocessor': None})
    features = torch.rand(8, cfg.model.head.in_channels, 5, 5)
    model.backbone = torch.nn.Identity()
    small, large = (model((features * scale,), mode='tensor') for scale in (1, 40))
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)
    assert not list(model.neck.parameters())
    supervised = open_config(CONFIGS / 'miniature/supervised/resnet.py')
    assert supervised.model.neck == dict(type='GlobalAveragePooling')  # nothing of the probe's


@pytest.mark.parametrize('name', [name for name in SMALL if 'downstream' in name])
def test_classes_are_the_worlds(name):
    cfg = open_config(CONFIGS / name)
    if cfg.default_scope == 'mmdet':
        assert cfg.train_dataloader.dataset.metainfo.classes == NOUNS
    elif cfg.default_scope == 'mmseg':
        assert cfg.train_dataloader.dataset.metainfo.classes == ('background', *NOUNS)
    else:
        assert cfg.model.head.num_classes == len(NOUNS)


def test_every_suite_has_its_miniature():
    for suite in ('resnet', 'vit'):
        assert suites()[f'mini-{suite}'] == tuple(
            f'mini-{name}' for name in suites()[suite] if name != 'voc'
        )  # its AP50 is mini-coco's
        assert {f'mini-{name}' for name in suites()[suite]} <= set(BENCHMARKS)
    for benchmark in BENCHMARKS.values():
        assert (CONFIGS / benchmark.config).is_file()


@pytest.mark.parametrize('name', [name for name in SMALL if 'downstream' in name])
def test_supervised_weights_are_where_their_config_leaves_them(name):
    kind = 'vit' if 'vit' in name else 'resnet'
    epochs = open_config(CONFIGS / f'miniature/supervised/{kind}.py').train_cfg.max_epochs
    hook = open_config(CONFIGS / name).custom_hooks[0]
    assert hook.supervised == f'work_dirs/miniature/supervised/{kind}/epoch_{epochs}.pth'
