"""One way of getting attention maps, measured against the same pipeline without it.

Run as a script, so that it also runs in environments that hold another tool and another diffusers::

    python -P tools/benchmarks/recording_case.py daam --steps 1 --repeats 1

prints one JSON object: seconds of processor time and peak memory of plain runs and of recording
runs, pair by pair, and whether the latents are the same bit for bit. With --callgrind, under
valgrind, also the instructions. It imports torch, diffusers
and transformers; the package itself only where its own recorder is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PROMPT = 'a photo of a red dog with a bird and a shoe on the sand'
WORDS = ('dog', 'bird', 'shoe')
MIB = 2**20


def build_pipeline(quick: bool = False, narrower: int = 1) -> Any:
    """A ``StableDiffusionPipeline`` of version 1.5's shapes with random weights.

    Args:
        quick: Narrow and small, to see that it runs.
        narrower: What the UNet's channels are divided by: 1, 2 or 4.
    """
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    width, layers = (64, 1) if quick else (768, 12)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=width,
        **(
            dict(block_out_channels=(32, 32, 64, 64), norm_num_groups=8, layers_per_block=1)
            if quick
            else dict(
                block_out_channels=tuple(side // narrower for side in (320, 640, 1280, 1280)),
                norm_num_groups=32 // narrower,
            )
        ),
    )
    # Never run: latents are compared, for equal latents are equal images.
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=('DownEncoderBlock2D',) * 4,
        up_block_types=('UpDecoderBlock2D',) * 4,
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(
            beta_schedule='scaled_linear',
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _tokenizer() -> Any:
    """A CLIP tokenizer to which each word of the prompt is one token."""
    from transformers import CLIPTokenizer

    words = sorted(set(PROMPT.split()))
    letters = sorted({letter for word in words for letter in word})
    merges, pieces = [], []
    for word in words:
        symbols = [*word[:-1], word[-1] + '</w>']
        while len(symbols) > 1:
            if (symbols[0], symbols[1]) not in merges:
                merges.append((symbols[0], symbols[1]))
            symbols[:2] = [symbols[0] + symbols[1]]
            pieces.append(symbols[0])
    tokens = [
        *letters,
        *(letter + '</w>' for letter in letters),
        *dict.fromkeys(pieces),
        '<|startoftext|>',
        '<|endoftext|>',
    ]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, rules = Path(folder) / 'vocab.json', Path(folder) / 'merges.txt'
        places = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
        vocabulary.write_text(json.dumps(places))
        rules.write_text('\n'.join(['#version: 0.2', *map(' '.join, merges)]) + '\n')
        return CLIPTokenizer(
            str(vocabulary), str(rules), model_max_length=77, pad_token='<|endoftext|>'
        )


# The ways. Each is a context manager round the pipeline's call that yields a function, which makes
# the nouns' maps of what was recorded and returns extra figures.

Ending = Callable[[], dict]


@contextmanager
def plain(pipe: Any) -> Iterator[Ending]:
    """Nothing recorded."""
    yield dict


@contextmanager
def ours(pipe: Any, **options: Any) -> Iterator[Ending]:
    """This package's recorder: running sums of the nouns' columns."""
    from freeatm_mm.attention import AttentionRecorder

    spans = [(PROMPT.index(word), PROMPT.index(word) + len(word)) for word in WORDS]
    with AttentionRecorder(pipe, [PROMPT], [spans], **options) as recorder:

        def end() -> dict:
            recorder.masks(propagate=4 if options else 0)
            return {}

        yield end


def ours_refined(pipe: Any) -> Any:
    """The same with self-attention at 32x32, and maps propagated along it."""
    return ours(pipe, self_attention=32)


@contextmanager
def keep_all(pipe: Any) -> Iterator[Ending]:
    """The obvious way: explicit softmax in the cross-attention, every map kept for the end."""
    stock, kept = dict(pipe.unet.attn_processors), []

    class KeepingProcessor:
        def __call__(
            self,
            attn,
            hidden_states,
            encoder_hidden_states=None,
            attention_mask=None,
            temb=None,
            **options,
        ):
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
            probabilities = attn.get_attention_scores(query, key, attention_mask)
            kept.append(probabilities)
            output = attn.batch_to_head_dim(torch.bmm(probabilities, value))
            return attn.to_out[1](attn.to_out[0](output))

    def end() -> dict:
        tokens = [1 + PROMPT.split().index(word) for word in WORDS]
        total = torch.zeros(len(tokens), 64, 64)
        for probabilities in kept:
            maps = probabilities[len(probabilities) // 2 :, :, tokens].float().mean(0).T
            side = int(maps.shape[1] ** 0.5)
            total += torch.nn.functional.interpolate(
                maps.reshape(1, -1, side, side), size=(64, 64), mode='bilinear'
            )[0]
        return {}

    pipe.unet.set_attn_processor(
        {
            name: KeepingProcessor() if 'attn2' in name else processor
            for name, processor in stock.items()
        }
    )
    try:
        yield end
    finally:
        pipe.unet.set_attn_processor(stock)


@contextmanager
def daam(pipe: Any) -> Iterator[Ending]:
    """daam, as its README says."""
    from daam import trace

    with trace(pipe) as traced:

        def end() -> dict:
            heat_map = traced.compute_global_heat_map()
            for word in WORDS:
                heat_map.compute_word_heat_map(word)
            return {}

        yield end


@contextmanager
def attention_map_diffusers(pipe: Any) -> Iterator[Ending]:
    """attention-map-diffusers: all steps, mean over heads, as our maps are."""
    from attention_map_diffusers import AttentionCapture

    with AttentionCapture(pipe, timesteps='all', heads='mean') as capture:

        def end() -> dict:
            capture.compute()
            return {}

        yield end


WAYS = {
    'ours': ours,
    'ours-compiled': ours,
    'ours-refined': ours_refined,
    'keep-all': keep_all,
    'daam': daam,
    'attention-map-diffusers': attention_map_diffusers,
}


def _status(name: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(name + ':'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no {name}: memory is measured on Linux only')


class Callgrind:
    """Counts the instructions of this process, which runs under valgrind's callgrind.

    Args:
        out: What callgrind was given as ``--callgrind-out-file``.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._dumps = 0
        self._control('--instr=on')
        self.begin()
        self._own = self.end()  # of beginning and ending

    def begin(self) -> None:
        """Begin to count."""
        self._control('--zero')

    def end(self) -> float:
        """Return the instructions since `begin`, in millions."""
        self._control('--dump')
        self._dumps += 1
        text = self._out.with_name(f'{self._out.name}.{self._dumps}').read_text()
        (total,) = (line for line in text.splitlines() if line.startswith('totals: '))
        return int(total.split()[1]) / 1e6 - getattr(self, '_own', 0)

    def _control(self, what: str) -> None:
        command = ['callgrind_control', what, str(os.getpid())]
        subprocess.run(command, check=True, capture_output=True)


def run(
    pipe: Any, way: Callable, steps: int, counter: Callgrind | None = None
) -> tuple[dict, torch.Tensor]:
    """One image: figures, and its latents.

    Args:
        pipe: The pipeline.
        way: One of `WAYS`.
        steps: Denoising steps.
        counter: What counts ``instructions``, in millions.

    Returns:
        ``seconds`` of processor time, ``peak`` memory of the process and ``work``, its part above
        what was there before (both MiB), and what the way adds; and the latents.
    """
    before = _status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    if counter is not None:
        counter.begin()
    start = time.process_time()
    with way(pipe) as end:
        latents = pipe(
            PROMPT,
            num_inference_steps=steps,
            guidance_scale=7.5,
            output_type='latent',
            generator=torch.Generator().manual_seed(1),
        ).images
        extra = end()
    seconds = time.process_time() - start
    if counter is not None:
        extra['instructions'] = counter.end()
    peak = _status('VmHWM')
    return {'seconds': seconds, 'peak': peak / MIB, 'work': (peak - before) / MIB, **extra}, latents


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('way', choices=WAYS, help='what is measured')
    parser.add_argument('--steps', type=int, default=1, help='denoising steps (%(default)s)')
    parser.add_argument('--repeats', type=int, default=1, help='pairs of runs (%(default)s)')
    parser.add_argument('--quick', action='store_true', help='a small network')
    parser.add_argument('--side', type=int, default=64, help='side of the latents (%(default)s)')
    parser.add_argument(
        '--narrower',
        type=int,
        default=1,
        help="what the network's channels are divided by (%(default)s)",
    )
    parser.add_argument(
        '--callgrind', type=Path, help='count instructions; the --callgrind-out-file'
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = build_pipeline(args.quick, args.narrower)
    pipe.unet.register_to_config(sample_size=args.side)
    if args.way == 'ours-compiled':  # both sides: with the recorder against without
        pipe.unet.compile_repeated_blocks()
    for way in (plain, WAYS[args.way]):  # nothing is made for the first time while it is measured
        run(pipe, way, 1)
    counter = None if args.callgrind is None else Callgrind(args.callgrind)
    found: dict[str, Any] = {'plain': [], 'recording': [], 'identical': True}
    for turn in range(args.repeats):
        pair = [('plain', plain), ('recording', WAYS[args.way])]
        latents = {}
        for name, way in pair[::-1] if turn % 2 else pair:
            figures, latents[name] = run(pipe, way, args.steps, counter)
            found[name].append(figures)
        found['identical'] &= torch.equal(latents['plain'], latents['recording'])
    import diffusers
    import transformers

    found['versions'] = {
        'torch': torch.__version__,
        'diffusers': diffusers.__version__,
        'transformers': transformers.__version__,
    }
    print(json.dumps(found))


if __name__ == '__main__':
    main()
