"""The miniature's arms: which commands are run, and that their options fit the yaml files."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from helpers.tools import load_tool

pytest.importorskip('lavis')
pytest.importorskip('mmpretrain')

from lavis.processors.blip_processors import BlipImageTrainProcessor  # noqa: E402
from mmengine import Config  # noqa: E402

from freeatm_mm.downstream.conversion import convert_checkpoint  # noqa: E402
from freeatm_mm.lavis_ext.launch import load_config  # noqa: E402
from freeatm_mm.lavis_ext.models import FreeATMBlipPretrain  # noqa: E402
from freeatm_mm.ops.position import PRESETS  # noqa: E402
from freeatm_mm.origins import Origin, describe_blip, settle_label  # noqa: E402
from freeatm_mm.results import (  # noqa: E402
    add_row,
    new_results,
    read_results,
    write_results,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    return load_tool('miniature/blip')


def run(tool, monkeypatch, tmp_path, *arguments):
    """The commands that the tool runs."""
    commands = []

    def record(self, what, script, *rest, label=''):
        commands.append((what, [str(script), *map(str, rest)]))
        if 'lavis_evaluate' in str(script):  # as the tool itself would
            options = dict(zip(commands[-1][1], commands[-1][1][1:]))
            out = Path(options['--out'])
            results = read_results(out) if out.exists() else new_results('x', 'python x')
            masks = {'true': True, 'false': False}.get(options['--masks'], options['--masks'])
            add_row(
                results,
                {
                    'method': 'blip',
                    'regime': options['--regime'],
                    'masks': masks,
                    'seed': int(options['--seed']),
                    'epochs': 2,
                    'metrics': {'zeroshot_TR@1': 0.5},
                },
            )
            write_results(options['--out'], results)

    monkeypatch.setattr(tool.Job, 'run', record)
    monkeypatch.setattr(tool, 'fetch_sources', lambda cache, sources: 'sources')
    monkeypatch.setattr(tool, 'export_positions', lambda sources, out, counts: out)
    for name in ('store_sha256', 'file_sha256'):
        monkeypatch.setattr(tool, name, lambda path: f'that of {Path(path).name}')
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        sys,
        'argv',
        [
            'tools/miniature/blip.py',
            '--store',
            'S',
            '--world',
            'W',
            '--out',
            str(tmp_path),
            '--epochs',
            '2',
            *arguments,
        ],
    )
    tool.main()
    return commands


def test_every_arm_is_trained_and_judged_alike(tool, monkeypatch, tmp_path):
    commands = run(
        tool, monkeypatch, tmp_path, '--seeds', '2', '--jobs', '2', '--options', 'run.num_workers=0'
    )
    names = [what for what, _ in commands]
    # Arms run side by side, each with its own row; what they all need comes before.
    assert names[:2] == ['Train the detector', 'Detect objects']
    assert len(names) == 2 + 2 * len(tool.DEFAULT) * 5
    shared = []
    for what, command in commands[2:]:
        options = command[command.index('--options') + 1 :]
        cfg = load_config(ROOT / command[1], options)
        assert cfg.run_cfg.num_workers == 0
        if what.startswith('Pretrain'):
            arm = what.split()[1].split('-')[0]
            data = cfg.datasets_cfg.freeatm_pretrain
            text, view = data.text_processor.train, data.vis_processor.train
            assert text.preset == {'baseline': 'none', 'ptp': 'ptp'}.get(arm, 'freeatm')
            assert view.get('hflip', True) == (arm != 'ptp')
            assert ('detections' in data.build_info) == (arm in ('ptp', 'boxes'))
            shared.append(
                (
                    cfg.run_cfg.max_epoch,
                    cfg.run_cfg.batch_size_train,
                    cfg.model_cfg.max_txt_len,
                    data.build_info.store,
                    view.image_size,
                )
            )
        if what.startswith('Fine-tune'):
            assert set(cfg.datasets_cfg.freeatm_retrieval.build_info.annotations) >= {
                'train',
                'val',
            }
            assert list(cfg.run_cfg.test_splits) == []
    assert len(shared) == 10 and len(set(shared)) == 1
    rows = read_results(tmp_path / 'results.json')['rows']
    assert {(row['masks'], row['seed']) for row in rows} == {
        (masks, seed)
        for masks in (False, True, 'positions of other images', 'boxes', 'PTP')
        for seed in (0, 1)
    }


def test_arms_change_one_thing_at_a_time(tool, monkeypatch, tmp_path):
    """Against `freeatm`, and the two without flips against each other's."""
    monkeypatch.setattr(tool, 'check_same_pictures', lambda one, two: None)
    commands = run(tool, monkeypatch, tmp_path, '--exact', 'E', '--arms', *tool.ARMS)
    content, origins = {}, {}
    for what, command in commands:
        if what.startswith('Pretrain'):
            arm = what.split()[1].rpartition('-')[0]
            config = load_config(
                ROOT / command[1], command[command.index('--options') + 1 :]
            ).to_dict()
            stores = [{'scenes': 5, 'mask_side': 8}] if arm.startswith('exact') else None
            content[arm], origins[arm] = flat(config), describe_blip(config, stores)['masks']
    data = 'datasets.freeatm_pretrain'
    text = f'{data}.text_processor.train'
    assert {
        arm: {
            name
            for name in {**content['freeatm'], **config}
            if content['freeatm'].get(name) != config.get(name)
        }
        for arm, config in content.items()
    } == {
        'baseline': {f'{text}.preset'},
        'freeatm': set(),
        'shuffled': {f'{text}.positions'},
        'exact': {f'{data}.build_info.store'},
        'mask_loss': {'model.mask_loss', f'{data}.build_info.mask_grid'},
        'exact_mask_loss': {
            f'{data}.build_info.store',
            'model.mask_loss',
            f'{data}.build_info.mask_grid',
        },
        'boxes': {f'{data}.build_info.detections'},
        'template': {f'{text}.template'},
        'one': {f'{text}.max_objects'},
        'noflip': {f'{data}.vis_processor.train.hflip'},
        'ptp': {
            f'{text}.preset',
            f'{data}.build_info.detections',
            f'{data}.vis_processor.train.hflip',
        },
        'baseline_noflip': {f'{text}.preset', f'{data}.vis_processor.train.hflip'},
    }
    # PTP's preset is template and number of objects; and all rows can be called what the tool does.
    ptp = PRESETS['ptp']
    assert content['template'][f'{text}.template'] == ptp.template
    assert content['one'][f'{text}.max_objects'] == ptp.max_objects
    assert ptp == dataclasses.replace(
        PRESETS['freeatm'], template=ptp.template, max_objects=ptp.max_objects
    )
    for arm, masks in origins.items():
        given = {'true': True, 'false': False}.get(tool.ARMS[arm][0], tool.ARMS[arm][0])
        origin = Origin('blip', 'synthetic', masks)
        assert settle_label(origin, {'masks': given}, 'x')['masks'] == given


def flat(config, start=''):
    found = {}
    for name, value in config.items():
        found |= (
            flat(value, f'{start}{name}.') if isinstance(value, dict) else {f'{start}{name}': value}
        )
    return found


def test_a_folder_holds_to_what_its_runs_share(tool, monkeypatch, tmp_path, capsys):
    run(tool, monkeypatch, tmp_path, '--options', 'run.num_workers=0')
    same = ['--options', 'run.num_workers=0']
    for changed, told in (
        ([], 'was begun with --options run.num_workers=0, not without --options'),
        ([*same, '--epochs', '3'], 'was begun with --epochs 2, not with --epochs 3'),
        ([*same, '--finetune-epochs', '0'], 'with --finetune-epochs 10, not without'),
        ([*same, '--store', 'T'], 'with --store of sha256 that of S, not with --store of sha256'),
        ([*same, '--scenes', '9', '9', '9'], 'with --scenes 1500 150 500, not with --scenes 9 9 9'),
        ([*same, '--regime', 'real'], 'with --regime synthetic, not with --regime real'),
        ([*same, '--detector-epochs', '3'], 'with --detector-epochs 12, not'),
        ([*same, '--detections', 'D'], 'not with --detections of sha256 that of D'),
    ):
        with pytest.raises(SystemExit):
            run(tool, monkeypatch, tmp_path, *changed)
        assert told in capsys.readouterr().err
    # Further arms and seeds are no other settings.
    assert run(tool, monkeypatch, tmp_path, *same, '--seeds', '2', '--arms', 'freeatm', 'template')


def test_given_detections_need_no_detector(tool, monkeypatch, tmp_path):
    commands = run(tool, monkeypatch, tmp_path, '--arms', 'ptp', '--detections', 'boxes.json')
    assert [what.split(',')[0] for what, _ in commands] == [
        'Pretrain ptp-0',
        'Evaluate ptp-0',
        'Evaluate ptp-0',
        'Fine-tune ptp-0',
        'Evaluate ptp-0',
    ]
    # The same from any folder.
    boxes = Path('boxes.json').resolve()
    assert f'datasets.freeatm_pretrain.build_info.detections={boxes}' in commands[0][1]


def test_exact_masks_are_asked_for_and_of_the_same_pictures(tool, monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        run(tool, monkeypatch, tmp_path, '--arms', 'exact')
    checked = []
    monkeypatch.setattr(tool, 'check_same_pictures', lambda *stores: checked.append(stores))
    (what, command), *_ = run(tool, monkeypatch, tmp_path, '--arms', 'exact', '--exact', 'E')
    assert what == 'Pretrain exact-0'
    assert f'datasets.freeatm_pretrain.build_info.store={Path("E").resolve()}' in command
    assert checked == [(Path('S').resolve(), Path('E').resolve())]


def test_all_arms_start_from_what_was_trained_once(tool, monkeypatch, tmp_path):
    commands = run(
        tool,
        monkeypatch,
        tmp_path,
        '--arms',
        'freeatm',
        'baseline',
        '--seeds',
        '2',
        '--start-trained',
    )
    assert [what for what, _ in commands[:3]] == [
        'Train the ViT',
        'Convert the ViT',
        'Train the BERT',
    ]
    assert len(commands) == 3 + 4 * 5
    trained, converted, bert = (command for _, command in commands[:3])
    assert Config.fromfile(trained[1]).train_cfg.max_epochs == tool.VIT_EPOCHS
    assert converted[1] == f'{tmp_path}/start/vit/epoch_{tool.VIT_EPOCHS}.pth'
    for what, command in commands[3:]:
        if what.startswith('Pretrain'):
            model = load_config(
                ROOT / command[1], command[command.index('--options') + 1 :]
            ).model_cfg
            assert (model.image_weights, model.text_weights) == (converted[2], bert[2])
    # Rows of another start are not among the results, and no checkpoint of one is gone on from.
    (tmp_path / 'start/vit.safetensors').parent.mkdir()
    (tmp_path / 'start/vit.safetensors').touch()  # of a folder that notes other paths: it is done
    again = run(tool, monkeypatch, tmp_path, '--start-trained', '--arms', 'freeatm')
    assert 'Convert the ViT' in [what for what, _ in commands]
    assert 'Convert the ViT' not in [what for what, _ in again]
    rows = read_results(tmp_path / 'start-trained' / 'results.json')['rows']
    assert len(rows) == 4 and not (tmp_path / 'rows').exists()


def test_the_vit_is_one_that_blip_takes(tmp_path):
    """Its class token comes out equal, and it sees the colours that BLIP sees."""
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    init_default_scope('mmpretrain')
    cfg = Config.fromfile(ROOT / 'configs/miniature/supervised/vit_blip.py')
    theirs = BlipImageTrainProcessor().normalize
    for ours, plain in zip(
        (cfg.data_preprocessor.mean, cfg.data_preprocessor.std), (theirs.mean, theirs.std)
    ):
        assert ours == pytest.approx([255 * value for value in plain])
    torch.manual_seed(0)
    vit = MODELS.build(cfg.model)
    images = torch.randn(2, 3, 64, 64)
    samples = [DataSample().set_gt_label(number) for number in (0, 20)]
    vit(images, samples, mode='loss')['loss'].backward()
    assert all(part.grad is not None for part in vit.parameters())
    torch.save({'state_dict': vit.state_dict()}, tmp_path / 'vit.pth')
    convert_checkpoint(tmp_path / 'vit.pth', tmp_path / 'vit.safetensors', 'timm')
    config = load_config(
        ROOT / 'configs/lavis/miniature/blip_pretrain_freeatm.yaml',
        [f'model.image_weights={tmp_path}/vit.safetensors'],
    )
    blip = FreeATMBlipPretrain.from_config(config.model_cfg)
    vit.eval(), blip.eval()
    with torch.no_grad():
        (expected,) = vit.backbone(images)
        found = blip.visual_encoder.forward_features(images)[:, 0]
    assert torch.allclose(found, expected, atol=1e-5)
