r"""BLIP with and without position prompts, in miniature.

Pretrained on generated images, evaluated by retrieval on real scenes whose objects no training has
seen.

Arms: without prompts (baseline), Free-ATM (freeatm), PTP's prompts, and between the two one change
at a time: a detector's boxes (boxes), PTP's template (template), one object a text (one), no flips
(noflip), a loss that holds the nouns' attention to their masks (mask_loss); controls: Free-ATM
with the positions of other images (shuffled), and with exact masks (exact, exact_mask_loss),
without which nothing is to be learnt.

    python tools/miniature/blip.py --store work_dirs/miniature/synthetic \
        --world work_dirs/miniature/world --seeds 3 --jobs 2

Runs the project's own tools one after the other, or the arms side by side, and says which; started
again, it goes on where it was. Every caption of the retrieval set belongs to one picture; each
picture has a mirrored twin, so that identity alone can't tell (docs/lavis.md). The figures are kept
in OUT/results.json.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import whole
from freeatm_mm.cli._paths import path_option
from freeatm_mm.errors import InputError, tool
from freeatm_mm.files import file_sha256
from freeatm_mm.miniature.export import export_positions
from freeatm_mm.miniature.job import Job, check_same_pictures, keep_settings, store_sha256
from freeatm_mm.miniature.sources import fetch_sources
from freeatm_mm.results import (
    add_row,
    new_results,
    read_results,
    to_markdown,
    write_results,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path('configs/lavis/miniature')
DETECTOR = 'configs/miniature/downstream/mask-rcnn_resnet.py'
VIT, VIT_EPOCHS = 'configs/miniature/supervised/vit_blip.py', 10
DATA, READ = 'datasets.freeatm_pretrain', 'datasets.freeatm_retrieval.build_info'
TEXT, VIEW = f'{DATA}.text_processor.train', f'{DATA}.vis_processor.train'
MASK_LOSS = ['model.mask_loss=1', f'{DATA}.build_info.mask_grid=8']
#: Arm -> what the results call its masks, and the options that make it.
ARMS = {
    'baseline': ('false', [f'{TEXT}.preset=none']),
    'freeatm': ('true', []),
    # Each differs from `freeatm` in one thing:
    'shuffled': ('positions of other images', [f'{TEXT}.positions=others']),
    'exact': ('exact', [f'{DATA}.build_info.store=EXACT']),
    'boxes': ('boxes', [f'{DATA}.build_info.detections=DETECTIONS']),
    'template': ("PTP's template", [f'{TEXT}.template=". The block [P] has a [O] ."']),
    'one': ('one object', [f'{TEXT}.max_objects=1']),
    'noflip': ('no flips', [f'{VIEW}.hflip=False']),
    'mask_loss': ('mask_loss', MASK_LOSS),
    'exact_mask_loss': ('exact_mask_loss', [f'{DATA}.build_info.store=EXACT', *MASK_LOSS]),
    # All at once, and what it is to be compared with, which differs from `baseline` in its flips:
    'ptp': (
        'PTP',
        [f'{TEXT}.preset=ptp', f'{DATA}.build_info.detections=DETECTIONS', f'{VIEW}.hflip=False'],
    ),
    'baseline_noflip': ('no prompts, no flips', [f'{TEXT}.preset=none', f'{VIEW}.hflip=False']),
}
DEFAULT = ['baseline', 'freeatm', 'shuffled', 'boxes', 'ptp']


def take(arms: Sequence[str], what: str) -> bool:
    """Whether one of the arms takes EXACT or DETECTIONS."""
    return any(what in option for arm in arms for option in ARMS[arm][1])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--store', type=Path, required=True, help='store of generated images')
    parser.add_argument(
        '--exact',
        type=Path,
        help='store of the same images with exact masks, for the arms exact: that of a world made '
        "with --exact, where --store has the masks that tools/add_masks.py adds to the world's",
    )
    parser.add_argument(
        '--point',
        type=Path,
        metavar='STORE',
        help='also measure how often nouns attend to their objects (freeatm lavis-point) in this '
        'store, best of scenes with exact masks that no training has seen',
    )
    parser.add_argument(
        '--world',
        type=Path,
        required=True,
        help='world that the detector is trained on (tools/miniature/make_world.py)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/miniature-blip'),
        help='output folder (%(default)s)',
    )
    parser.add_argument(
        '--arms',
        nargs='+',
        choices=list(ARMS),
        default=DEFAULT,
        help=f'which ({" ".join(DEFAULT)})',
    )
    parser.add_argument('--seeds', type=whole(1, 1000), default=1, help='how many (%(default)s)')
    parser.add_argument(
        '--jobs', type=whole(1, 1024), default=1, help='arms side by side (%(default)s)'
    )
    parser.add_argument(
        '--epochs', type=whole(0, 10**6), default=20, help='of pretraining (%(default)s)'
    )
    parser.add_argument(
        '--finetune-epochs',
        type=whole(0, 10**6),
        default=10,
        help='of fine-tuning (%(default)s); 0: none',
    )
    parser.add_argument(
        '--detector-epochs', type=whole(0, 10**6), default=12, help='of the detector (%(default)s)'
    )
    parser.add_argument(
        '--scenes',
        type=whole(1, 10**7),
        nargs=3,
        default=[1500, 150, 500],
        metavar=('TRAIN', 'VAL', 'TEST'),
        help='scenes composed for retrieval (1500 150 500)',
    )
    parser.add_argument(
        '--regime',
        default='synthetic',
        choices=('real', 'synthetic'),
        help='what the store holds (%(default)s)',
    )
    parser.add_argument(
        '--start-trained',
        action='store_true',
        help='start all arms from a ViT and a BERT that are trained on the world first (its '
        'objects by their nouns, its prompts by masked words), as the paper starts from DeiT and '
        'BERT, and not from random weights; runs and results are kept in OUT/start-trained',
    )
    parser.add_argument(
        '--detections', help="boxes of the store's images, instead of a detector trained here"
    )
    parser.add_argument(
        '--sources', help='folder with the unpacked Debian packages, where apt is missing'
    )
    parser.add_argument('--cache', default='.cache', help='where to unpack them (%(default)s)')
    parser.add_argument(
        '--options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='change entries of all yamls, for example run.num_workers=0',
    )
    args = parser.parse_args(argv)
    named = named_options(args, parser, argv)
    refuse_idle(named, not take(args.arms, 'EXACT'), 'without the arms exact', 'exact')
    none = 'without an arm that takes boxes'
    refuse_idle(named, not take(args.arms, 'DETECTIONS'), none, 'detections', 'detector_epochs')
    refuse_idle(named, bool(args.detections), 'with --detections', 'detector_epochs')
    return args


@tool(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    for name in ('out', 'store', 'exact', 'point', 'world', 'detections', 'sources'):
        if getattr(args, name):  # the same from any folder
            setattr(args, name, Path(getattr(args, name)).resolve())
    if take(args.arms, 'EXACT'):
        if not args.exact:
            raise InputError('the arms exact need --exact, the store that has exact masks')
        check_same_pictures(args.store, args.exact)
    os.chdir(ROOT)
    # Arms side by side shouldn't fight for cores.
    os.environ.setdefault('OMP_NUM_THREADS', str(max((os.cpu_count() or 1) // args.jobs, 1)))
    keep_settings(args.out, settings(args))
    job = Job(args.out)
    counts = dict(zip(('train', 'val', 'test'), args.scenes))
    positions = export_positions(
        fetch_sources(args.cache, args.sources), args.out / 'positions', counts
    )
    detections = args.detections
    if not detections and take(args.arms, 'DETECTIONS'):
        detections = args.out / 'detections.json'
        detect(job, args, detections)
    start = train_start(job, args) if args.start_trained else []
    runs = args.out / 'start-trained' if args.start_trained else args.out
    job.run_side_by_side(
        [
            partial(run_arm, job, args, arm, seed, positions, detections, runs, start)
            for seed in range(args.seeds)
            for arm in args.arms
        ],
        args.jobs,
    )
    results = new_results(
        'miniature-lavis', shlex.join(['python', 'tools/miniature/blip.py', *sys.argv[1:]])
    )
    for path in sorted((runs / 'rows').glob('*.json')):
        for row in read_results(path)['rows']:
            add_row(results, row)
    write_results(runs / 'results.json', results)
    print('\n' + to_markdown(results))
    return 0


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs in one folder share, whichever arms and seeds are trained."""
    boxes = take(args.arms, 'DETECTIONS')
    found = {
        '--store': store_sha256(args.store),
        '--epochs': args.epochs,
        '--finetune-epochs': args.finetune_epochs,
        '--scenes': [str(count) for count in args.scenes],
        '--regime': [args.regime],
        '--options': sorted(args.options),
    }
    if take(args.arms, 'EXACT'):
        found['--exact'] = store_sha256(args.exact)
    if args.point:
        found['--point'] = store_sha256(args.point)
    if boxes:
        found['--detections'] = file_sha256(args.detections) if args.detections else None
    if boxes and not args.detections:
        found['--detector-epochs'] = args.detector_epochs
    if boxes and not args.detections or args.start_trained:
        found['--world'] = file_sha256(args.world / 'train' / 'coco.json')
    return found


def detect(job: Job, args: argparse.Namespace, out: Path) -> None:
    """Train the detector on all real scenes and detect objects in the store's images."""
    work, epochs = args.out / 'detector', args.detector_epochs
    job.run(
        'Train the detector',
        'tools/train.py',
        DETECTOR,
        '--data-root',
        args.world,
        '--work-dir',
        work,
        '--resume',
        '--cfg-options',
        'init=random',
        'train_dataloader.dataset.indices=None',
        f'train_cfg.max_epochs={epochs}',
        f'train_cfg.val_interval={epochs}',
        f'param_scheduler.1.T_max={epochs}',
        f'param_scheduler.1.end={epochs}',
    )
    job.run(
        'Detect objects',
        'tools/convert/detect_objects.py',
        DETECTOR,
        work / f'epoch_{epochs}.pth',
        args.store,
        out,
    )


def train_start(job: Job, args: argparse.Namespace) -> list[str]:
    """Train what all arms and seeds start from; return BLIP's options that name it."""
    work = args.out / 'start'
    job.run(
        'Train the ViT',
        'tools/train.py',
        VIT,
        '--data-root',
        args.world,
        '--work-dir',
        work / 'vit',
        '--resume',
    )
    if not (work / 'vit.safetensors').exists():  # the converter replaces nothing
        job.run(
            'Convert the ViT',
            'tools/convert/checkpoint.py',
            work / 'vit' / f'epoch_{VIT_EPOCHS}.pth',
            work / 'vit.safetensors',
            '--to',
            'timm',
        )
    job.run(
        'Train the BERT',
        'tools/miniature/train_bert.py',
        args.world / 'prompts.jsonl',
        work / 'bert',
    )
    return [
        path_option('model.image_weights', work / 'vit.safetensors'),
        path_option('model.text_weights', work / 'bert'),
    ]


def run_arm(
    job: Job,
    args: argparse.Namespace,
    arm: str,
    seed: int,
    positions: Path,
    detections: Path | None,
    runs: Path,
    start: list[str],
) -> None:
    """Pretrain, evaluate zero-shot, fine-tune and evaluate again; `start` names first weights."""
    name, work = f'{arm}-{seed}', runs / f'{arm}-{seed}'
    options = [
        *start,
        path_option(f'{DATA}.build_info.store', args.store),
        f'run.max_epoch={args.epochs}',
        'run.keep_checkpoints=1',
    ]
    files = {'DETECTIONS': detections, 'EXACT': args.exact}
    for option in ARMS[arm][1]:
        key, _, value = option.partition('=')
        options.append(path_option(key, files[value]) if value in files else option)
    job.run(
        f'Pretrain {name}',
        'tools/lavis_train.py',
        CONFIGS / 'blip_pretrain_freeatm.yaml',
        '--work-dir',
        work / 'pretrain',
        '--seed',
        seed,
        '--resume',
        '--options',
        *options,
        *args.options,
        label=name,
    )
    checkpoint = work / 'pretrain' / f'checkpoint_{args.epochs - 1}.pth'
    row = [
        '--out',
        runs / f'rows/{name}.json',
        '--masks',
        ARMS[arm][0],
        '--seed',
        seed,
        '--epochs',
        args.epochs,
        '--regime',
        args.regime,
        '--generator',
        'miniature',
    ]

    def evaluate(what: str, wording: str, *model: str) -> None:
        job.run(
            f'Evaluate {name}, {what}',
            'tools/lavis_evaluate.py',
            CONFIGS / 'retrieval_zeroshot.yaml',
            '--what',
            what,
            *row,
            '--options',
            path_option(f'{READ}.annotations.test', positions / 'test' / f'{wording}.json'),
            path_option(f'{READ}.images', positions),
            path_option('run.output_dir', work / what),
            *model,
            *args.options,
            label=name,
        )

    pretrained = path_option('model.pretrained', checkpoint)
    evaluate('zeroshot', 'words', pretrained)
    # The same scenes, positions told as the prompts tell them: what the prompts have taught.
    evaluate('zeroshot_blocks', 'blocks', pretrained)
    if args.point:
        job.run(
            f'Point {name}',
            'tools/lavis_point.py',
            CONFIGS / 'blip_pretrain_freeatm.yaml',
            args.point,
            *row,
            '--options',
            pretrained,
            *args.options,
            label=name,
        )
    if not args.finetune_epochs:
        return
    job.run(
        f'Fine-tune {name}',
        'tools/lavis_train.py',
        CONFIGS / 'retrieval_finetune.yaml',
        '--work-dir',
        work / 'finetune',
        '--seed',
        seed,
        '--resume',
        '--options',
        path_option(f'{READ}.annotations.train', positions / 'train/words.json'),
        path_option(f'{READ}.annotations.val', positions / 'val/words.json'),
        f'{READ}.annotations.test=null',
        path_option(f'{READ}.images', positions),
        'run.test_splits=[]',
        pretrained,
        f'run.max_epoch={args.finetune_epochs}',
        *args.options,
        label=name,
    )
    evaluate(
        'finetuned',
        'words',
        'model.load_finetuned=True',
        path_option('model.finetuned', work / 'finetune/checkpoint_best.pth'),
    )


if __name__ == '__main__':
    sys.exit(main())
