"""A very small BLIP, and the yaml options that make it; for tests of `freeatm_mm.lavis_ext`."""

from __future__ import annotations

from pathlib import Path

import torch

from helpers.tiny_stores import make_store

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = ROOT / 'configs/lavis/miniature/blip_pretrain_freeatm.yaml'
FINETUNE = ROOT / 'configs/lavis/miniature/retrieval_finetune.yaml'
ZEROSHOT = ROOT / 'configs/lavis/miniature/retrieval_zeroshot.yaml'
WORDS = 'a photo of dog bird shoe lamp boat drum the is in block has 0 1 2 3 4 5 6 7 8'

torch.set_num_threads(1)


def make_tokenizer(folder: Path) -> Path:
    """A folder with a vocabulary that knows the captions of `tiny_stores`."""
    from freeatm_mm.lavis_ext.tokenizer import make_vocabulary

    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'vocab.txt').write_text('\n'.join(make_vocabulary([WORDS])) + '\n')
    return folder


def model_options(tokenizer: Path) -> list[str]:
    """Options for the smallest model: one layer each, 16 pixels in four patches."""
    return [
        f'model.tokenizer={tokenizer}',
        'model.image_size=16',
        'model.vit.embed_dim=8',
        'model.vit.depth=1',
        'model.vit.num_heads=2',
        'model.bert.hidden_size=8',
        'model.bert.num_hidden_layers=1',
        'model.bert.num_attention_heads=2',
        'model.bert.intermediate_size=16',
        'model.embed_dim=6',
        'model.queue_size=24',
    ]


def pretrain_options(store: Path, tokenizer: Path, out: Path) -> list[str]:
    """Options for a pretraining of two epochs of three steps."""
    data = 'datasets.freeatm_pretrain'
    return [
        *model_options(tokenizer),
        f'{data}.build_info.store={store}',
        f'{data}.vis_processor.train.image_size=16',
        'run.batch_size_train=4',
        'run.num_workers=0',
        'run.max_epoch=2',
        'run.keep_checkpoints=0',
        f'run.output_dir={out}',
        'run.device=cpu',
    ]


def make_parts(folder: Path, count: int = 12) -> tuple[Path, Path]:
    """A store and a tokenizer."""
    return (
        make_store(folder / 'store', count=count, size=(20, 20)),
        make_tokenizer(folder / 'tokenizer'),
    )


def train_as_process(options: list[str], rank: int) -> dict:
    """One of two processes that train: first batch, gradients and what is there at the end.

    A function of an importable module, for `two_processes`.
    """
    import os

    from freeatm_mm.lavis_ext import launch

    os.environ.update(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank))
    cfg = launch.load_config(PRETRAIN, options)
    launch.start_processes(cfg)
    runner = launch.build_runner(cfg)
    inner = runner.unwrap_dist_model(runner.model)
    start = {name: value.clone() for name, value in inner.state_dict().items()}
    batches, gradients = [], []
    runner.model.register_forward_pre_hook(
        lambda module, inputs: batches.append(
            {'image': inputs[0]['image'].clone(), 'text_input': list(inputs[0]['text_input'])}
        )
    )
    runner.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(
            {
                name: value.grad.clone()
                for name, value in inner.named_parameters()
                if value.grad is not None
            }
        )
    )
    runner.train()
    return {
        'start': start,
        'batch': batches[0],
        'gradients': gradients[0],
        'end': dict(inner.state_dict()),
        'log': (runner.output_dir / 'log.txt').read_text(),
    }


def evaluate_as_process(options: list[str], rank: int) -> dict[str, float]:
    """One of two processes that evaluate; what the first found, nothing of the other."""
    import os

    from freeatm_mm.lavis_ext import launch

    os.environ.update(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank))
    cfg = launch.load_config(ZEROSHOT, [*options, 'run.evaluate=True'])
    launch.start_processes(cfg)
    found = launch.build_runner(cfg).train()
    return dict(found['test']) if rank == 0 else {}
