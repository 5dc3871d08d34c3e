"""Missing folders and images are named before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_stores import make_store
from helpers.tools import load_tool
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from PIL import Image

from freeatm_mm.configs import check_datasets, complete_config, find_datasets, set_data_root
from freeatm_mm.engine import CheckFilesHook
from freeatm_mm.engine.data_files import missing_files
from freeatm_mm.errors import InputError
from freeatm_mm.store import StoreError

ROOT = Path(__file__).parents[2]


class Listed(BaseDataset):
    """Names images, and label maps for the even ones."""

    def __init__(self, names):
        self.names = names
        super().__init__()

    def load_data_list(self):
        return [
            dict(img_path=str(name), **({} if number % 2 else {'seg_map_path': str(name)}))
            for number, name in enumerate(self.names)
        ]


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f'{number}.png' for number in range(4)]
    for path in paths:
        Image.new('RGB', (2, 2)).save(path)
    return paths


def test_all_there(images):
    dataset = Listed(images)
    assert missing_files(dataset) == []
    for wrapped in (RepeatDataset(dataset, 3), ConcatDataset([dataset, Listed(images)])):
        runner = SimpleNamespace(
            train_dataloader=SimpleNamespace(dataset=wrapped), val_loop=None, cfg={}
        )
        CheckFilesHook().before_train(runner)


def test_missing_ones_are_named(images, tmp_path):
    images[1].unlink()
    gone = tmp_path / 'gone/7.png'
    wrapped = ConcatDataset([Listed(images), Listed([images[0], gone])])
    runner = SimpleNamespace(
        train_dataloader=SimpleNamespace(dataset=wrapped), val_loop=None, cfg={}
    )
    with pytest.raises(
        FileNotFoundError,
        match=r'train_dataloader: the annotations name 2 of 6 '
        r'images or label maps that are not there: .*1\.png, .*gone/7\.png; '
        'complete the data set',
    ):
        CheckFilesHook().before_train(runner)
    repeated = RepeatDataset(Listed([images[0], gone]), 3)
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=repeated))
    with pytest.raises(FileNotFoundError, match='test_dataloader: .* name 1 of 2'):
        CheckFilesHook().before_test(runner)


CONFIG = dict(
    train_dataloader=dict(
        dataset=dict(
            type='RepeatDataset',
            times=2,
            dataset=dict(
                type='ConcatDataset',
                datasets=[
                    dict(
                        data_root='data/x/',
                        ann_file='a/train.json',
                        data_prefix=dict(img='images/'),
                    ),
                    dict(data_root='data/x', data_prefix=''),
                ],
            ),
        )
    ),
    val_dataloader=dict(dataset=dict(data_root='data/x', split='val')),
    test_dataloader=None,
    val_evaluator=[dict(ann_file='data/x/a/val.json', other='data/xylophone')],
    test_evaluator=dict(ann_file=None),
)


def test_another_data_root_reaches_loaders_and_evaluators(tmp_path):
    cfg = Config(CONFIG)
    assert [key for key, _ in find_datasets(cfg)] == [
        'train_dataloader.dataset.dataset.datasets.0',
        'train_dataloader.dataset.dataset.datasets.1',
        'val_dataloader.dataset',
    ]
    set_data_root(cfg, tmp_path)
    assert {dataset['data_root'] for _, dataset in find_datasets(cfg)} == {
        str(tmp_path),
        f'{tmp_path}/',
    }
    assert cfg.val_evaluator[0].ann_file == f'{tmp_path}/a/val.json'
    assert cfg.val_evaluator[0].other == 'data/xylophone'
    cfg.val_dataloader.dataset.data_root = 'elsewhere'
    with pytest.raises(ValueError, match='share one; here they have .* and elsewhere'):
        set_data_root(cfg, 'z')
    with pytest.raises(ValueError, match='here they have none'):
        set_data_root(Config(dict(model=dict())), 'z')


def test_missing_folders_are_named(tmp_path):
    cfg = Config(CONFIG)
    set_data_root(cfg, tmp_path)
    for missing, made in (('a/train.json', 'images'), ('val', 'a/train.json')):
        (tmp_path / made).mkdir(parents=True)
        with pytest.raises(
            FileNotFoundError, match=f'there is no {tmp_path}/{missing}: say with --data-root'
        ):
            check_datasets(cfg)
    (tmp_path / 'val').mkdir()
    check_datasets(cfg)


def pretraining(*roots, kind='FreeATMDataset'):
    """A config of one such data set, or several that are joined."""
    datasets = [dict(type=kind, **({'data_root': root} if root else {})) for root in roots]
    joined = dict(type='ConcatDataset', datasets=datasets)
    return Config(dict(train_dataloader=dict(dataset=joined if len(roots) > 1 else datasets[0])))


@pytest.mark.parametrize('root', ['a', ['a', 'b'], None])
@pytest.mark.parametrize('kind', ['FreeATMDataset', 'mmpretrain.FreeATMDataset'])
def test_a_data_root_reaches_pretraining(tmp_path, root, kind):
    store, folder = make_store(tmp_path / 'store'), tmp_path / 'real'
    (folder / 'x').mkdir(parents=True)
    for given in (str(store), f'{store},{folder}'):
        cfg = pretraining(root, kind=kind)
        set_data_root(cfg, given)
        new = cfg.train_dataloader.dataset.data_root
        assert new == (given.split(',') if ',' in given else given)
    with pytest.raises(
        StoreError, match=rf'^train_dataloader\.dataset: {folder} is empty.*--data-root'
    ):
        check_datasets(cfg)
    (folder / 'x/a.png').touch()
    check_datasets(cfg)
    with pytest.raises(ValueError, match='a name of a folder is empty'):
        set_data_root(cfg, f'{store},')


def test_pictures_on_a_gpu_need_one_and_a_loader_without_workers(tmp_path, monkeypatch):
    cfg = pretraining(str(make_store(tmp_path / 'store')))
    cfg.train_dataloader.dataset.update(in_memory=True, device='cuda')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(InputError, match='dataset.device=cuda: there is no GPU'):
        check_datasets(cfg)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    check_datasets(cfg)
    for option in (dict(num_workers=1), dict(pin_memory=True)):
        loader = dict(cfg.train_dataloader, **option)
        with pytest.raises(InputError, match='set train_dataloader.num_workers=0 and train_data'):
            check_datasets(Config(dict(train_dataloader=loader)))


def test_pictures_in_memory_are_kept_by_one_process(tmp_path):
    cfg = pretraining(str(make_store(tmp_path / 'store')))
    cfg.train_dataloader.dataset.in_memory = True
    check_datasets(cfg)
    cfg.train_dataloader.num_workers = 3
    with pytest.raises(InputError, match='of its own: set train_dataloader.num_workers=0'):
        check_datasets(cfg)


def test_a_folder_with_a_comma_is_one_folder(tmp_path):
    (tmp_path / 'a,b').mkdir()
    cfg = pretraining('x')
    set_data_root(cfg, tmp_path / 'a,b')
    assert cfg.train_dataloader.dataset.data_root == str(tmp_path / 'a,b')


def test_several_folders_are_for_pretraining_alone(tmp_path):
    with pytest.raises(ValueError, match='val_dataloader.dataset takes one folder, not 2'):
        set_data_root(Config(dict(val_dataloader=dict(dataset=dict(data_root='x')))), 'a,b')
    with pytest.raises(ValueError, match='share one; here they have a and b, c: set each'):
        set_data_root(pretraining('a', ['b', 'c']), 'd')


def test_a_folder_that_pretraining_and_evaluation_share(tmp_path):
    cfg = pretraining('data')
    cfg.val_dataloader = dict(dataset=dict(type='x', data_root='data/', ann_file='a.txt'))
    set_data_root(cfg, 'data/x')
    assert cfg.train_dataloader.dataset.data_root == 'data/x'
    assert cfg.val_dataloader.dataset.data_root == 'data/x/'


def test_pretraining_without_a_data_root_is_told():
    with pytest.raises(ValueError, match='^train_dataloader.dataset: .*has no data_root'):
        check_datasets(pretraining(None))


def test_batches_of_detection_and_segmentation_keep_their_own_collation():
    for scope, wanted in (('mmpretrain', dict(type='default_collate')), ('mmdet', None)):
        cfg = Config(
            dict(
                default_scope=scope,
                launcher='none',
                val_dataloader=dict(num_workers=0),
                train_dataloader=dict(num_workers=2, dataset=dict(type='x')),
            )
        )
        complete_config(cfg)
        assert cfg.train_dataloader.get('collate_fn') == wanted
        assert cfg.train_dataloader.persistent_workers
        assert not cfg.val_dataloader.persistent_workers


@pytest.mark.parametrize(
    'options, message',
    [
        ([], 'does not say what to start from: set init=random'),
        (['--cfg-options', 'init=no.pth'], 'there is no checkpoint no.pth'),
        (
            ['--cfg-options', 'init=random'],
            'annotations/instances_train2017.json: say with --data-',
        ),
    ],
)
def test_train_tool_tells_what_is_missing(tmp_path, capsys, options, message):
    pytest.importorskip('mmdet')
    (tmp_path / 'train2017').mkdir()
    with pytest.raises(SystemExit) as done:
        load_tool('train').main(
            [
                str(ROOT / 'configs/downstream/mmdet/coco_mask-rcnn_r50-fpn_1x.py'),
                '--data-root',
                str(tmp_path),
                *options,
            ]
        )
    assert done.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    'checkpoint, message',
    [
        ('none.pth', 'there is no checkpoint none.pth'),
        ('', 'train it first'),
        ('lost', 'there is no checkpoint'),
    ],
)
def test_test_tool_tells_what_is_missing(tmp_path, capsys, checkpoint, message):
    if checkpoint == 'lost':
        (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_3.pth')
        message = f'{tmp_path}/last_checkpoint names epoch_3.pth, which is not there'
    with pytest.raises(SystemExit) as done:
        load_tool('test').main(['x.py', checkpoint if checkpoint == 'none.pth' else str(tmp_path)])
    assert done.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_test_tool_refuses_a_checkpoint_of_another_model(tmp_path, capsys, monkeypatch):
    (tmp_path / 'test/objects').mkdir(parents=True)
    torch.save({'state_dict': {'backbone.weight': torch.zeros(2, 3)}}, tmp_path / 'x.pth')
    runner = SimpleNamespace(model=torch.nn.Linear(3, 2))  # and no `test`: it isn't come to
    monkeypatch.setattr('mmengine.runner.Runner.from_cfg', lambda cfg: runner)
    with pytest.raises(SystemExit) as done:
        load_tool('test').main(
            [
                str(ROOT / 'configs/miniature/downstream/linear_resnet.py'),
                str(tmp_path / 'x.pth'),
                '--data-root',
                str(tmp_path),
                '--work-dir',
                str(tmp_path / 'run'),
            ]
        )
    assert done.value.code == 2
    assert 'x.pth is not of this config: it lacks' in capsys.readouterr().err


def test_an_annotation_without_its_image_stops_a_real_run(tmp_path):
    """mmdet itself would stop in the middle of an epoch, in a loading process."""
    pytest.importorskip('mmcv.ops')
    from helpers.tiny_downstream import make_tiny_world, run_downstream

    from freeatm_mm.configs import open_config

    world = make_tiny_world(tmp_path / 'world', images=4)
    content = json.loads((world / 'train/coco.json').read_text())
    content['images'][2]['file_name'] = 'lost.png'
    (world / 'train/coco.json').write_text(json.dumps(content))
    cfg = open_config(
        ROOT / 'configs/miniature/downstream/mask-rcnn_resnet.py', str(tmp_path / 'run')
    )
    complete_config(
        cfg,
        str(world),
        {'init': 'random', 'train_dataloader.num_workers': 0, 'val_dataloader.num_workers': 0},
    )
    cfg.log_level = 'WARNING'
    with pytest.raises(FileNotFoundError, match=r'name 1 of 4 images .*train/images/lost\.png'):
        run_downstream(cfg, 'lost-image')


def tiny_linear(world, run, *options):
    """Arguments of `tools/train.py` for the miniature's linear probe, one step an epoch."""
    return [
        str(ROOT / 'configs/miniature/downstream/linear_resnet.py'),
        '--work-dir',
        str(run),
        '--data-root',
        str(world),
        '--no-validate',
        '--cfg-options',
        'train_dataloader.num_workers=0',
        'train_dataloader.batch_size=4',
        'test_dataloader.num_workers=0',
        'train_cfg.max_epochs=1',
        *options,
    ]


def test_objects_to_be_judged_by_are_looked_for_before_training(tmp_path, capsys):
    """A run without validation would find out after its last epoch."""
    from helpers.tiny_downstream import make_tiny_world

    world = make_tiny_world(tmp_path / 'world', images=2)
    cfg = Config.fromfile(ROOT / 'configs/miniature/downstream/fcn_resnet.py')
    prefix = cfg.test_dataloader.dataset.data_prefix
    lost = next((world / prefix.img_path).iterdir())
    maps = world / prefix.seg_map_path / f'{lost.stem}.png'
    assert maps.exists()
    maps.unlink()
    arguments = tiny_linear(world, tmp_path / 'run', 'init=random')
    arguments[0] = str(ROOT / 'configs/miniature/downstream/fcn_resnet.py')
    arguments[arguments.index('train_cfg.max_epochs=1')] = 'train_cfg.max_iters=1'
    with pytest.raises(SystemExit) as done:
        load_tool('train').main(arguments)
    assert done.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'test_dataloader: the annotations name 1 of 2' in last and maps.name in last


@pytest.mark.parametrize(
    'kind, message',
    [
        ('vit', 'does not fit backbone of this config: 0 of the'),
        ('cut', "cut.pth can't be read: it is damaged or cut off"),
        ('supervised', 'of supervised weights: train it first, or set init=CHECKPOINT'),
    ],
)
def test_weights_that_cannot_be_used_are_told_in_one_sentence(tmp_path, capsys, kind, message):
    from helpers.tiny_downstream import make_tiny_world, pretrained_state

    init = tmp_path / f'{kind}.pth'
    torch.save({'state_dict': pretrained_state('vit')}, init)
    if kind == 'cut':
        init.write_bytes(init.read_bytes()[:-1000])
    if kind == 'supervised':
        init = kind
    with pytest.raises(SystemExit) as done:
        load_tool('train').main(
            tiny_linear(
                make_tiny_world(tmp_path / 'world', images=2), tmp_path / 'run', f'init={init}'
            )
        )
    assert done.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_options_of_an_evaluation_that_is_left_out(tmp_path):
    """They are for all benchmarks of `tools/downstream.py`, and its training has no evaluation."""
    train = load_tool('train')
    args = train.parse_args(tiny_linear('world', tmp_path, 'val_dataloader.num_workers=0'))
    assert train.load_config(args).val_dataloader is None


def test_resuming_looks_where_the_folder_is_now(tmp_path, capsys):
    train = load_tool('train')
    arguments = ['--resume', *tiny_linear('world', tmp_path, 'init=random')]
    arguments = [arguments[1], arguments[0], *arguments[2:]]
    assert train.load_config(train.parse_args(arguments)).load_from is None  # nothing yet
    (tmp_path / 'last_checkpoint').write_text('/where/it/was/epoch_3.pth')
    with pytest.raises(SystemExit):
        train.main(arguments)
    assert 'names epoch_3.pth, which is not there (others: none)' in capsys.readouterr().err
    torch.save(
        {'state_dict': {}, 'meta': {'epoch': 3, 'iter': 9}, 'message_hub': {}},
        tmp_path / 'epoch_3.pth',
    )
    assert train.load_config(train.parse_args(arguments)).load_from == str(tmp_path / 'epoch_3.pth')


def test_no_config_keeps_one_checkpoint_only():
    """mmengine deletes before it writes: a run killed then would have none."""
    for path in (ROOT / 'configs').rglob('*.py'):
        assert 'max_keep_ckpts=1' not in path.read_text().replace(' ', ''), path
    for name in (
        'mocov2_freeatm',
        'mae_freeatm',
        'simclr_freeatm',
        'downstream/mmpretrain/imagenet_linear_r50_100e',
    ):
        hook = Config.fromfile(ROOT / f'configs/{name}.py').default_hooks.checkpoint
        assert hook.get('max_keep_ckpts', -1) != 1, name


@pytest.mark.parametrize(
    'option, message',
    [
        (['--tta'], 'only mmdet and mmseg average over views'),
        (['--show-dir', 'shown'], 'only mmdet and mmseg draw predictions'),
    ],
)
def test_test_tool_tells_what_a_framework_does_not_do(tmp_path, capsys, option, message):
    (tmp_path / 'test/objects').mkdir(parents=True)
    torch.save({'state_dict': {'w': torch.ones(1)}}, tmp_path / 'x.pth')
    with pytest.raises(SystemExit):
        load_tool('test').main(
            [
                str(ROOT / 'configs/miniature/downstream/linear_resnet.py'),
                str(tmp_path / 'x.pth'),
                '--data-root',
                str(tmp_path),
                *option,
            ]
        )
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize('earlier', ['{}', '{\n "accuracy/top1": 1.0\n}'])
def test_test_tool_refuses_options_that_nothing_reads(tmp_path, capsys, earlier):
    """And replaces its own metrics, also those of an evaluation that had none."""
    (tmp_path / 'test/objects').mkdir(parents=True)
    torch.save({'state_dict': {'w': torch.ones(1)}}, tmp_path / 'x.pth')
    (tmp_path / 'metrics.json').write_text(earlier)
    with pytest.raises(SystemExit) as done:
        load_tool('test').main(
            [
                str(ROOT / 'configs/miniature/downstream/linear_resnet.py'),
                str(tmp_path / 'x.pth'),
                '--out',
                str(tmp_path / 'metrics.json'),
                '--cfg-options',
                f'data_root={tmp_path}',
            ]
        )
    assert done.value.code == 2
    assert '--cfg-options data_root: nothing reads data_root' in capsys.readouterr().err
