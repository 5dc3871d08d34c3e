"""What a store costs: opening and reading one of 14 million samples, bytes of masks, writing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from freeatm_mm.prompts import Noun
from freeatm_mm.store import Sample, StoreWriter, decode_masks, encode_masks, write_store
from freeatm_mm.store.layout import TOTALS, dump_manifest, shard_name

__all__ = [
    'benchmark_large_store',
    'benchmark_masks',
    'benchmark_writing',
    'noisy_maps',
    'simulate_store',
    'stable_diffusion_step_seconds',
]

#: Limits that the project sets itself.
OPEN_SECONDS, OPEN_BYTES, MASK_BYTES, DECODE_SECONDS, LOSS = 10.0, 1e9, 8192, 2e-4, 1 / 255
WRITING_SHARE = 0.05


def noisy_maps(rng: np.random.Generator, count: int, side: int, noise: float) -> np.ndarray:
    """Maps like averaged attention: blobs, plus noise at the four resolutions of a U-Net.

    Args:
        rng: Source of randomness.
        count: Number of maps.
        side: Height and width.
        noise: Standard deviation of the noise of each resolution, where a blob is 1 high.

    Returns:
        float32 (count, side, side).
    """
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    maps = np.zeros((count, side, side), np.float32)
    for level in maps:
        for divisor in (8, 4, 2, 1):
            coarse = rng.standard_normal((side // divisor,) * 2).astype(np.float32)
            level += noise * np.asarray(Image.fromarray(coarse).resize((side, side), 2))
            level += np.exp(-((x - rng.random()) ** 2 + (y - rng.random()) ** 2) / 0.05)
    return maps


def simulate_store(folder: Path, samples: int, samples_per_shard: int = 5000) -> None:
    """A store of any number of samples that takes the room of one shard: all are links to it.

    Args:
        folder: An empty folder.
        samples: Samples to pretend; a multiple of ``samples_per_shard``.
        samples_per_shard: Samples of the one real shard.
    """
    # 256 pixels of pure noise take the 100 kB of a photo of 512.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    encoded = Sample.from_image('x', image, quality=80).image_bytes
    masks = np.zeros((1, 64, 64), np.uint8)

    def sample(number: int) -> Sample:
        return Sample(
            f'{number:08d}',
            encoded,
            'jpg',
            'a dog',
            (Noun('dog', 2, 5, 'dog'),),
            masks,
            np.zeros((1, 2), np.float32),
        )

    write_store(folder, map(sample, range(samples_per_shard)), samples_per_shard)
    manifest = json.loads((folder / 'store.json').read_bytes())
    entry = manifest['shards'][0]
    count = samples // samples_per_shard
    for number in range(1, count):
        for ending in ('.tar', '.index.npy', '.json'):
            os.link(folder / f'{shard_name(0)}{ending}', folder / f'{shard_name(number)}{ending}')
    manifest['shards'] = [entry | {'name': shard_name(number)} for number in range(count)]
    manifest |= {name: count * manifest[name] for name in TOTALS}
    (folder / 'store.json').write_bytes(dump_manifest(manifest))


_OPEN = """
import json, random, re, sys, time
from freeatm_mm.store import Store

def peak():  # not getrusage, whose figure a process inherits from the one that started it
    return 1024 * int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])

before = peak()
start = time.process_time(), time.perf_counter()
store = Store(sys.argv[1])
opened = time.process_time() - start[0], time.perf_counter() - start[1]
dice = random.Random(0)
numbers = [dice.randrange(len(store)) for _ in range(int(sys.argv[2]))]
for number in numbers:  # warm: what is open already stays open
    store.read(number)
start = time.process_time()
for number in numbers:
    store.read(number)
read = (time.process_time() - start) / len(numbers)
print(json.dumps(dict(samples=len(store), open_cpu=opened[0], open_wall=opened[1], read=read,
                      before=before, peak=peak())))
"""


def benchmark_large_store(
    scratch: Path, samples: int = 14_000_000, reads: int = 5000
) -> Iterator[dict[str, Any]]:
    """Open a store of ``samples`` and read at random, against one of a single shard."""
    found = {}
    for name, count in (('small', 5000), ('large', samples)):
        folder = scratch / name
        simulate_store(folder, count)
        runs = []
        for _ in range(3):
            result = subprocess.run(
                [sys.executable, '-c', _OPEN, str(folder), str(reads)],
                check=True,
                capture_output=True,
                text=True,
            )
            runs.append(json.loads(result.stdout))
        found[name] = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
    small, large = found['small'], found['large']
    label = f'{samples:,}-samples'
    yield _row(f'open-{label}', OPEN_SECONDS, large['open_wall'], 's', 1.0, details=large)
    yield _row(f'memory-{label}', OPEN_BYTES, large['peak'], 'bytes', 1.0, details=large)
    # What is left is opening a shard that isn't open yet, the same for any number of them.
    yield _row(
        f'random-read-{label}',
        small['read'],
        large['read'],
        's',
        2.0,
        details={'reads': reads, 'small': small},
    )


def benchmark_masks(side: int = 64, nouns: int = 3, images: int = 100) -> Iterator[dict[str, Any]]:
    """Bytes, loss and decoding time of the masks of an image, on maps of several noise levels.

    The time is the median over images of the best of five: others use the machine's caches too.
    """
    from freeatm_mm.attention import dequantize, quantize

    for noise in (0.0, 0.01, 0.02, 0.05, 0.1):
        rng = np.random.default_rng(0)
        sizes, seconds, worst = [], [], 0.0
        for _ in range(images):
            maps = noisy_maps(rng, nouns, side, noise)
            levels, scales = quantize(maps)
            data = encode_masks(levels)
            sizes.append(len(data))
            seconds.append(
                min(
                    _cpu_seconds(lambda data=data: decode_masks(data, nouns, side, side))
                    for _ in range(5)
                )
            )
            spread = (maps.max((1, 2)) - maps.min((1, 2)))[:, None, None]
            restored = dequantize(decode_masks(data, nouns, side, side), scales)
            worst = max(worst, float((np.abs(restored - maps) / spread).max()))
        label = f'{nouns}-nouns-{side}px-noise-{noise:g}'
        yield _row(
            f'mask-bytes-{label}',
            MASK_BYTES,
            float(np.mean(sizes)),
            'bytes',
            1.0,
            details={'largest': max(sizes)},
        )
        yield _row(f'mask-decode-{label}', DECODE_SECONDS, float(np.median(seconds)), 's', 1.0)
        yield _row(f'mask-loss-{label}', LOSS, worst, 'of the range', 1.0)


def benchmark_writing(
    scratch: Path, generation_seconds: float, how: str, images: int = 20
) -> Iterator[dict[str, Any]]:
    """Encoding, hashing and writing samples of 512x512 with three masks of 64x64.

    Args:
        scratch: An empty folder.
        generation_seconds: CPU seconds that generating one such image takes.
        how: Where that figure comes from.
        images: Samples to write.
    """
    rng = np.random.default_rng(0)
    from freeatm_mm.attention import quantize

    # Smooth colours with some noise, which JPEG finds as hard as a photo (about 100 kB).
    pictures = [
        Image.fromarray(
            np.clip(
                np.stack([noisy_maps(rng, 1, 512, 0.02)[0] for _ in range(3)], -1) * 80, 0, 255
            ).astype(np.uint8)
        )
        for _ in range(4)
    ]
    maps = [noisy_maps(rng, 3, 64, 0.02) for _ in range(4)]
    caption = 'a dog with a cat on the sand'
    nouns = tuple(
        Noun(word, caption.index(word), caption.index(word) + len(word), word)
        for word in ('dog', 'cat', 'sand')
    )

    def sample(number: int) -> Sample:
        levels, scales = quantize(maps[number % 4])
        return Sample.from_image(
            f'{number:06d}',
            pictures[number % 4],
            caption=caption,
            nouns=nouns,
            masks=levels,
            scales=scales,
            meta={'seed': number},
        )

    writer = StoreWriter(scratch / 'written', images)
    seconds, shards = [], []
    for shard in range(3):
        start = time.process_time()
        shards.append(
            writer.write_shard(shard, (sample(shard * images + number) for number in range(images)))
        )
        seconds.append((time.process_time() - start) / images)
    ours = float(np.median(seconds))
    yield _row(
        'write-512px-3-nouns',
        generation_seconds,
        generation_seconds + ours,
        's',
        1 + WRITING_SHARE,
        details={
            'write_seconds': ours,
            'generation': how,
            'image_bytes': shards[0]['image_bytes'] / images,
            'mask_bytes': shards[0]['mask_bytes'] / images,
            'images_a_second_at_which_it_takes_5_percent': WRITING_SHARE / ours,
        },
    )


def stable_diffusion_step_seconds(repeats: int = 1) -> float:
    """CPU seconds of one guided denoising step at Stable Diffusion 1.5's shapes.

    The U-Net has random weights, 859 million of them, and a batch of two latents of 64x64.
    """
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device('meta'):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    unet = unet.to_empty(device='cpu').eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in unet.parameters():
            weight.normal_(0, 0.02, generator=generator)
        latents, text = torch.zeros(2, 4, 64, 64), torch.zeros(2, 77, 768)
        return float(
            np.median([_cpu_seconds(lambda: unet(latents, 500, text)) for _ in range(repeats)])
        )


def _cpu_seconds(action: Callable[[], Any]) -> float:
    """CPU seconds of this process, which others on the machine don't change."""
    start = time.process_time()
    action()
    return time.process_time() - start


def _row(
    case: str,
    baseline: float,
    ours: float,
    unit: str,
    target: float,
    details: dict[str, Any] | None = None,
) -> dict[str, Any]:
    row = {
        'case': case,
        'ratio': ours / baseline,
        'baseline': baseline,
        'ours': ours,
        'unit': unit,
        'target': target,
    }
    return row | ({'details': details} if details else {})
