"""Scenes of the miniature world: photo cut-outs on photo backgrounds, with exact masks."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from freeatm_mm.miniature.sources import (
    BACKGROUNDS,
    COLOURS,
    GARMENTS,
    NOUNS,
    Cutouts,
    cut_garment,
    load_cutouts,
)
from freeatm_mm.prompts import TEMPLATES, PromptRecord, Subject, fill_template
from freeatm_mm.prompts.grammar import PHOTO_TEMPLATE

__all__ = ['SIDE', 'Scene', 'SceneMaker', 'noun_probabilities', 'sample_prompt']

SIDE = 64  # pixels
_OBJECT_COUNTS = (0.35, 0.4, 0.25)  # probabilities of one, two and three objects
#: Garments come twice as often as the nouns with few photos, so that fewer negatives of an
#: instance show the very same photo.
_NOUN_WEIGHTS = np.array([2.0 if noun in GARMENTS else 1.0 for noun in NOUNS])
_LONG_SIDES = {1: (32, 52), 2: (26, 40), 3: (22, 34)}  # pixels, by number of objects
_VISIBLE = 0.65  # least share of each object that the objects in front must leave uncovered
_TRIES = 30


@dataclass(frozen=True)
class Scene:
    """One scene and all that is known of it.

    Args:
        image: uint8 array (64, 64, 3).
        masks: bool array (K, 64, 64): the visible pixels of each object.
        record: The caption with the span of each noun; ``record.nouns[k]`` is ``masks[k]``'s.
        objects: The cut-out that each object was made from.
    """

    image: np.ndarray
    masks: np.ndarray
    record: PromptRecord
    objects: tuple[str, ...]


class SceneMaker:
    """Makes the scenes of one split; the same ``(seed, split, index)`` gives the same scene.

    Args:
        sources: What `freeatm_mm.miniature.sources.fetch_sources` returned.
        split: ``'train'``, ``'val'`` or ``'test'``.
        seed: Number of the world.
    """

    def __init__(self, sources: str | Path, split: str, seed: int = 0) -> None:
        self.split = split
        self.seed = seed
        self.cutouts: Cutouts = load_cutouts(sources, split)

    def scene(self, index: int) -> Scene:
        """Make the scene with this number."""
        rng = np.random.default_rng([zlib.crc32(self.split.encode()), self.seed, index])
        subjects, place = _sample_subjects(rng)
        return self._compose(rng, index, subjects, place)

    def garment(self, index: int) -> Scene:
        """Make a scene with one garment; each photo of the split has its own.

        Nouns alternate: with N of them, scene number ``index`` shows photo number ``index // N`` of
        noun ``index % N`` of `freeatm_mm.miniature.sources.GARMENTS`.

        Raises:
            IndexError: If there is no such photo.
        """
        rng = np.random.default_rng(
            [zlib.crc32(f'garment {self.split}'.encode()), self.seed, index]
        )
        noun, number = list(GARMENTS)[index % len(GARMENTS)], index // len(GARMENTS)
        if number >= len(self.cutouts.garments[noun]):
            raise IndexError(f'the split {self.split} has no photo number {number} of a {noun}')
        subjects = [Subject(noun, str(rng.choice(list(COLOURS))))]
        place = str(rng.choice(list(BACKGROUNDS.values())))
        return self._compose(rng, index, subjects, place, number)

    def _compose(
        self,
        rng: np.random.Generator,
        index: int,
        subjects: list[Subject],
        place: str,
        photo: int | None = None,
    ) -> Scene:
        """Put subjects on a place: any photos of them, or of garments that with this number."""
        image = self._background(rng, place)
        layers, objects = self._place(rng, subjects, photo)
        masks = np.zeros((len(subjects), SIDE, SIDE), bool)
        for k, (pixels, left, top) in enumerate(layers):
            alpha = np.zeros((SIDE, SIDE, 1), np.float32)
            colour = np.zeros((SIDE, SIDE, 3), np.float32)
            h, w = pixels.shape[:2]
            alpha[top : top + h, left : left + w, 0] = pixels[..., 3] / 255
            colour[top : top + h, left : left + w] = pixels[..., :3]
            image = image * (1 - alpha) + colour * alpha
            covered = alpha[..., 0] >= 0.5
            masks &= ~covered
            masks[k] = covered
        record = _caption(rng, f'{self.split}-{index:07d}', subjects, place)
        return Scene(np.clip(image + 0.5, 0, 255).astype(np.uint8), masks, record, objects)

    def _background(self, rng: np.random.Generator, place: str) -> np.ndarray:
        photo = self.cutouts.backgrounds[place]
        height, width = photo.shape[:2]
        side = int(rng.integers(SIDE, min(height, width) + 1))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        crop = Image.fromarray(photo[top : top + side, left : left + side])
        crop = crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(_relight(rng, crop), np.float32)

    def _place(
        self,
        rng: np.random.Generator,
        subjects: list[Subject],
        photo: int | None = None,
    ) -> tuple[list[tuple[np.ndarray, int, int]], tuple[str, ...]]:
        """Choose, turn, scale and place the cut-outs so that none is mostly hidden."""
        layers: list[tuple[np.ndarray, int, int]] = []
        shown: list[np.ndarray] = []  # what is still visible of each object so far
        areas: list[int] = []
        names = []
        for subject in subjects:
            name, pixels = self._cutout(rng, subject, photo)
            names.append(name)
            best: tuple[float, tuple[np.ndarray, int, int], np.ndarray] | None = None
            for _ in range(_TRIES):
                turned = _turn(rng, pixels, _LONG_SIDES[len(subjects)])
                h, w = turned.shape[:2]
                top, left = int(rng.integers(SIDE - h + 1)), int(rng.integers(SIDE - w + 1))
                mask = np.zeros((SIDE, SIDE), bool)
                mask[top : top + h, left : left + w] = turned[..., 3] >= 128
                kept = min(
                    ((old & ~mask).sum() / area for old, area in zip(shown, areas)), default=1.0
                )
                if best is None or kept > best[0]:
                    best = (kept, (turned, left, top), mask)
                if kept >= _VISIBLE:
                    break
            assert best is not None
            _, layer, mask = best
            layers.append(layer)
            shown = [old & ~mask for old in shown] + [mask]
            areas.append(max(1, int(mask.sum())))
        return layers, tuple(names)

    def _cutout(
        self, rng: np.random.Generator, subject: Subject, photo: int | None
    ) -> tuple[str, np.ndarray]:
        if subject.noun in GARMENTS:
            photos = self.cutouts.garments[subject.noun]
            number = int(rng.integers(len(photos))) if photo is None else photo
            return f'{subject.noun}-{number}', cut_garment(photos[number], subject.modifier)
        stamps = self.cutouts.stamps[subject.noun]
        stamp = stamps[int(rng.integers(len(stamps)))]
        return stamp.name, stamp.pixels


def sample_prompt(record_id: str, seed: int, plain: bool = False) -> PromptRecord:
    """Draw a caption as the world's scenes have them, without making the scene.

    Args:
        record_id: The record's id.
        seed: Number of the world; with the id it decides the caption.
        plain: "a photo of a dress" (Table 6) instead, of the caption's first noun.
    """
    rng = np.random.default_rng([zlib.crc32(b'prompt'), seed, zlib.crc32(record_id.encode())])
    subjects, place = _sample_subjects(rng)
    if plain:
        return fill_template(record_id, PHOTO_TEMPLATE, [Subject(subjects[0].noun)], '')
    return _caption(rng, record_id, subjects, place)


def noun_probabilities() -> np.ndarray:
    """Return the probability of each noun of `freeatm_mm.miniature.sources.NOUNS`."""
    return _NOUN_WEIGHTS / _NOUN_WEIGHTS.sum()


def _sample_subjects(rng: np.random.Generator) -> tuple[list[Subject], str]:
    count = 1 + int(rng.choice(3, p=_OBJECT_COUNTS))
    chosen = rng.choice(len(NOUNS), count, replace=False, p=noun_probabilities())
    subjects = []
    for number in chosen:
        noun = NOUNS[number]
        colour = str(rng.choice(list(COLOURS))) if noun in GARMENTS else ''
        subjects.append(Subject(noun, colour))
    return subjects, str(rng.choice(list(BACKGROUNDS.values())))


def _caption(
    rng: np.random.Generator, record_id: str, subjects: list[Subject], place: str
) -> PromptRecord:
    templates = TEMPLATES[len(subjects)]
    return fill_template(record_id, templates[int(rng.integers(len(templates)))], subjects, place)


def _turn(rng: np.random.Generator, pixels: np.ndarray, long_side: tuple[int, int]) -> np.ndarray:
    """Scale, stretch, flip, rotate and relight a cut-out; at most ``SIDE`` pixels come back."""
    image = Image.fromarray(pixels)
    scale = rng.uniform(*long_side) / max(image.size)
    stretch = np.sqrt(rng.uniform(0.8, 1.25))
    size = (
        max(4, round(image.width * scale * stretch)),
        max(4, round(image.height * scale / stretch)),
    )
    image = image.convert('RGBa').resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR, expand=True)
    image = image.convert('RGBA')
    image = image.crop(image.getchannel('A').getbbox())
    image.thumbnail((SIDE, SIDE))
    alpha = image.getchannel('A')
    image = _relight(rng, image.convert('RGB'))
    image.putalpha(alpha)
    return np.asarray(image)


def _relight(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Vary brightness, contrast and saturation, mildly: colour names must stay true."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.75, 1.25))
    return image
