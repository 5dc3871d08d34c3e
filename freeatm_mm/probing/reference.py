"""A store's masks against those of a segmenter: Table 4 of the paper, for any generator.

Nobody knows the exact masks of generated images. The reference is SAM (arXiv 2304.02643) by
transformers' `SamModel`, asked at the pixel that a noun's mask is highest at. Two controls have the
same reference: a centred box of the objects' mean size, and the mask of another image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from freeatm_mm.attention import dense_crf, minmax, resize
from freeatm_mm.compat import no_code_from_data
from freeatm_mm.errors import InputError, counted, one_sentence
from freeatm_mm.probing.mask_quality import THRESHOLD, centred_box, mean_box_size
from freeatm_mm.prompts import Noun
from freeatm_mm.prompts.imagenet import select_classes
from freeatm_mm.prompts.language_models import model_folder
from freeatm_mm.store import Sample

__all__ = ['Reference', 'Sam', 'choose_nouns', 'compare_with_reference', 'judged_samples']


class Reference(Protocol):
    """What says where objects are."""

    def masks(self, image: Image.Image, points: np.ndarray) -> np.ndarray:
        """Segment what is at each of (K, 2) pixels, x and y: (K, H, W) booleans."""
        ...


class Sam:
    """SAM by transformers, with weights of a folder or the hub; only tensors are read of them.

    Of the three masks that it offers for a point, the one that it trusts most is taken.

    Args:
        name: A folder, or a hub id such as ``facebook/sam-vit-huge``.
        device: Where to run.

    Raises:
        InputError: If it can't be had.
    """

    def __init__(self, name: str, device: str = 'cpu') -> None:
        try:
            from transformers import SamImageProcessor, SamModel, SamProcessor

            with no_code_from_data():
                folder = model_folder(name)
                self.images = SamImageProcessor.from_pretrained(folder, trust_remote_code=False)
                model = SamModel.from_pretrained(
                    folder, use_safetensors=True, trust_remote_code=False
                )
            self.processor = SamProcessor(self.images)
            self.model = model.to(device).eval()
        except Exception as error:  # of the hub, of a file that anybody wrote
            raise InputError(f"the SAM {name} can't be had: {one_sentence(error)}") from None
        self.device = device

    @torch.inference_mode()
    def masks(self, image: Image.Image, points: np.ndarray) -> np.ndarray:
        """Segment what is at each of (K, 2) pixels, x and y: (K, H, W) booleans."""
        places = [[[point] for point in np.asarray(points, float).tolist()]]
        inputs = self.processor([image], input_points=places, return_tensors='pt')
        sizes = [inputs.pop(name) for name in ('original_sizes', 'reshaped_input_sizes')]
        inputs['input_points'] = inputs['input_points'].to(torch.float32)
        found = self.model(**inputs.to(self.device))
        masks = self.images.post_process_masks(found.pred_masks.cpu(), *sizes)[0]
        best = found.iou_scores[0].argmax(-1).cpu()
        return masks[torch.arange(len(best)), best].numpy()


def choose_nouns(under: str | None, names: Sequence[str] = ()) -> Callable[[Noun], bool]:
    """Which nouns to look at.

    Args:
        under: A level of WordNet's hierarchy as ImageNet's classes have it, such as ``animal``; the
            nouns' categories are then compared with the classes below it. None for all.
        names: Names of nouns, instead or besides.

    Raises:
        ValueError: If no class stands under that level.
    """
    if under is None and not names:
        return lambda noun: True
    wanted = set(names)
    if under is not None:
        chosen = select_classes(under)
        wanted |= {name for each in chosen for name in (each.label, each.wnid, each.kind)}
        wanted |= {
            level
            for each in chosen
            if under in each.path
            for level in each.path[each.path.index(under) :]
        }
    return lambda noun: noun.name in wanted


def judged_samples(
    samples: Iterable[Sample], wanted: Callable[[Noun], bool], one_instance: bool
) -> Iterable[tuple[Sample, np.ndarray]]:
    """Yield the samples that have nouns to look at, with these nouns' soft masks.

    Args:
        samples: A store's.
        wanted: Which nouns.
        one_instance: Only samples that have a single noun in all, and one that is wanted.

    Yields:
        The sample, and (K, h, w) soft masks in [0, 1] of its K nouns that are wanted; a flat mask
        of a noun marks nothing and is left out.
    """
    for sample in samples:
        if one_instance and len(sample.nouns) != 1:
            continue
        soft = minmax(sample.masks.astype(np.float32))[0] if len(sample.masks) else sample.masks
        places = [
            place
            for place, noun in enumerate(sample.nouns)
            if wanted(noun) and soft[place].max() > 0
        ]
        if places:
            yield sample, np.asarray(soft[places])


def compare_with_reference(
    chosen: Iterable[tuple[Sample, np.ndarray]],
    reference: Reference,
    crf_size: int = 64,
    threshold: float = THRESHOLD,
    repeats: int = 1000,
    progress: Callable[[Any], Any] = iter,
) -> dict[str, Any]:
    """Overlap of nouns' masks with a reference's, plain and after a DenseCRF, and of two controls.

    Args:
        chosen: Of `judged_samples`, two or more.
        reference: What says where objects are.
        crf_size: Longer side of the masks that the CRF sees, 96 at most.
        threshold: Where masks are made binary.
        repeats: Of the bootstrap over images.
        progress: Wraps the samples, to show how far it is.

    Returns:
        ``images``, ``nouns`` (scored), ``unmarked`` (the reference marks no pixel there, left out);
        ``iou`` of ``refined``, ``plain``, ``centred_box`` and ``other_image``, each with mean and
        95 % interval; ``differences`` of ``refined`` to each of the others, likewise.

    Raises:
        InputError: If there are fewer than two images that the reference marks something in.
    """
    rest = iter(chosen)
    first = next(rest, None)
    scored: list[list[np.ndarray]] = []
    exact_masks: list[tuple[tuple[int, ...], np.ndarray]] = []
    unmarked, before = 0, first
    # The first image comes last, so that each has another one before it.
    for sample, soft in progress(chain(rest, [first] if first else [])):
        image = sample.image.convert('RGB')
        shape = image.size[::-1]
        large = np.asarray(resize(soft, shape))
        peaks = np.array([np.unravel_index(mask.argmax(), shape)[::-1] for mask in large])
        exact = np.asarray(reference.masks(image, peaks), bool)
        marked = exact.any((1, 2))
        unmarked += int((~marked).sum())
        assert before is not None
        other, before = np.asarray(resize(before[1][:1], shape)), (sample, soft)
        if not marked.any():
            continue
        exact, soft, large = exact[marked], soft[marked], large[marked]
        ratio = crf_size / max(shape)
        small = tuple(max(round(side * ratio), 1) for side in shape)
        refined = dense_crf(np.asarray(resize(soft, small)), np.asarray(image), threshold=threshold)
        refined = np.asarray(resize(refined, shape))
        exact_masks.append((exact.shape, np.packbits(exact)))
        scored.append([_overlap(masks >= threshold, exact) for masks in (refined, large, other)])
    if len(scored) < 2:
        raise InputError(
            f'{counted(len(scored), "image")} with nouns that the reference marks a pixel of: '
            'two or more are needed'
        )

    def unpacked() -> Iterator[np.ndarray]:
        for shape, packed in exact_masks:
            count = int(np.prod(shape))
            yield np.unpackbits(packed, count=count).astype(bool).reshape(shape)

    size = mean_box_size(unpacked())
    boxes = [_overlap(centred_box(each.shape[1:], size)[None], each) for each in unpacked()]
    figures = dict(zip(('refined', 'plain', 'other_image'), zip(*scored)), centred_box=boxes)
    # Images are drawn anew, with all of their nouns.
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(scored), (repeats, len(scored)))
    counts = np.array([len(each) for each in boxes])
    totals = {name: np.array([each.sum() for each in parts]) for name, parts in figures.items()}

    def interval(values: np.ndarray) -> dict[str, float]:
        means = values[draws].sum(1) / counts[draws].sum(1)
        low, high = np.quantile(means, [0.025, 0.975])
        return {'mean': float(values.sum() / counts.sum()), 'low': float(low), 'high': float(high)}

    return {
        'images': len(scored),
        'nouns': int(counts.sum()),
        'unmarked': unmarked,
        'threshold': threshold,
        'iou': {name: interval(values) for name, values in totals.items()},
        'differences': {
            name: interval(totals['refined'] - values)
            for name, values in totals.items()
            if name != 'refined'
        },
    }


def _overlap(masks: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return the (K,) intersection over union of (K or 1, H, W) with (K, H, W) booleans."""
    both = (masks & exact).sum((1, 2))
    return both / (masks | exact).sum((1, 2))
