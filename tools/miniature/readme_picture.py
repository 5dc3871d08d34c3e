"""Make the picture of the README: prompts, generated images and the mask of each noun.

    python tools/miniature/readme_picture.py

The images come from the shipped generator with the seeds below, so the picture can be made again
at any time; it takes half a minute on one CPU core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.errors import tool
from freeatm_mm.files import atomic_write

EXAMPLES = [
    ('a red trouser with a purple bag is on a leaf', ('trouser', 'bag'), 3),
    ('a green boot and a planet are in the water', ('boot', 'planet'), 10),
    ('a fruit with a green sneaker is on the road', ('fruit', 'sneaker'), 3),
    ('a fruit and a blue sneaker are on the grass', ('fruit', 'sneaker'), 6),
]
"""Prompts with their nouns and seeds, chosen by eye among fourteen seeds each."""

PANEL = 160
GAP = 10
MARGIN = 28
LINE = 30
TEXT = (36, 41, 47)
COLUMNS = 2


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'generator',
        nargs='?',
        default='weights/miniature-generator',
        help='its folder (%(default)s)',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('docs/images/masks.png'), help='the picture (%(default)s)'
    )
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Generate the images and write the picture."""
    args = parse_args(argv)
    from freeatm_mm.generation import load_pipeline

    pipe = load_pipeline(args.generator).pipe
    pipe.set_progress_bar_config(disable=True)
    picture = lay_out([panels(pipe, *example) for example in EXAMPLES])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out) as part:
        picture.save(part, 'PNG', optimize=True)
    print(f'{args.out}: {picture.width}x{picture.height}')
    return 0


def panels(pipe, prompt: str, words: tuple[str, ...], seed: int):
    """Generate one image and return its prompt, the spans of its nouns and its panels."""
    import torch

    from freeatm_mm.attention import AttentionRecorder
    from freeatm_mm.attention.overlay import NOUN_COLOURS, overlay
    from freeatm_mm.ops.masks import minmax

    spans = [(prompt.index(word), prompt.index(word) + len(word)) for word in words]
    with AttentionRecorder(pipe, prompts=[prompt], nouns=[spans]) as recorder:
        (image,) = pipe(
            [prompt],
            num_inference_steps=12,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(seed),
        ).images
    masks, _ = minmax(recorder.masks()[0])
    large = image.convert('RGB').resize((PANEL, PANEL), Image.Resampling.LANCZOS)
    masked = [
        overlay(image, mask.numpy(), colour, PANEL)
        for mask, colour in zip(masks, NOUN_COLOURS, strict=False)
    ]
    return prompt, spans, [large, *masked]


def lay_out(examples) -> Image.Image:
    """Set the examples side by side, each prompt above its panels."""
    count = max(len(row) for _, _, row in examples)
    width = count * PANEL + (count - 1) * GAP
    height = LINE + PANEL
    rows = -(-len(examples) // COLUMNS)
    sheet = Image.new(
        'RGB',
        (COLUMNS * (width + MARGIN) - MARGIN + 2 * GAP, rows * (height + 2 * GAP)),
        'white',
    )
    draw = ImageDraw.Draw(sheet)
    for number, (prompt, spans, row) in enumerate(examples):
        left = GAP + number % COLUMNS * (width + MARGIN)
        top = GAP + number // COLUMNS * (height + 2 * GAP)
        write_prompt(draw, (left, top), prompt, spans)
        for place, panel in enumerate(row):
            sheet.paste(panel, (left + place * (PANEL + GAP), top + LINE))
    return sheet


def write_prompt(draw: ImageDraw.ImageDraw, corner: tuple[int, int], prompt: str, spans) -> None:
    """Write a prompt with every noun underlined in the colour of its mask."""
    from freeatm_mm.attention.overlay import NOUN_COLOURS

    left, top = corner
    plain, bold = (font(name) for name in ('DejaVuSans', 'DejaVuSans-Bold'))
    begin = 0
    for (start, end), colour in zip(spans, NOUN_COLOURS, strict=False):
        left = write(draw, (left, top), prompt[begin:start], plain)
        right = write(draw, (left, top), prompt[start:end], bold)
        draw.rectangle((left, top + 20, right - 1, top + 23), fill=colour)
        left, begin = right, end
    write(draw, (left, top), prompt[begin:], plain)


def write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, face) -> int:
    """Write a piece of text and return where the next one begins."""
    draw.text(corner, text, TEXT, face)
    return round(corner[0] + face.getlength(text))


def font(name: str) -> ImageFont.FreeTypeFont:
    """Load a font that comes with matplotlib, so that the picture needs none of the system's."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', f'{name}.ttf')), 17
    )


if __name__ == '__main__':
    sys.exit(main())
