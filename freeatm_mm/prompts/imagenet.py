"""ImageNet's 1,000 classes: a name that a generator understands, and WordNet's hierarchy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from freeatm_mm.prompts.templates import Subject

__all__ = ['ImageNetClass', 'load_classes', 'select_classes']


@dataclass(frozen=True)
class ImageNetClass:
    """One class of ImageNet-1k.

    Args:
        index: Its label, 0 to 999.
        wnid: Its WordNet 3.0 synset (``'n02099601'``), the name of its folder in ImageNet.
        label: Its name as it stands in a prompt (``'golden retriever'``).
        determiner: The words before it (``'a'``, ``'some'``, ``'a pair of'``).
        kind: Key of `freeatm_mm.prompts.kinds.KINDS`.
        path: From a general level of WordNet's hierarchy down to the class.
    """

    index: int
    wnid: str
    label: str
    determiner: str
    kind: str
    path: tuple[str, ...]

    @property
    def subject(self) -> Subject:
        """The class as a subject for a template."""
        return Subject(self.label, category=self.label, determiner=self.determiner)


@cache
def load_classes() -> tuple[ImageNetClass, ...]:
    """Return the 1,000 classes in the order of their labels."""
    classes: list[ImageNetClass] = []
    text = files(__package__).joinpath('imagenet.txt').read_text(encoding='utf-8')
    for line in text.splitlines():
        if not line.startswith('#'):
            wnid, label, determiner, kind, path = line.split('\t')
            classes.append(
                ImageNetClass(len(classes), wnid, label, determiner, kind, tuple(path.split('/')))
            )
    return tuple(classes)


def select_classes(under: str | None = None) -> tuple[ImageNetClass, ...]:
    """Return the classes below a level of the hierarchy, in the order of their labels.

    Args:
        under: A level's name (``'dog'``, ``'musical instrument'``), a kind, a label or a synset;
            all classes where ``None``.

    Raises:
        ValueError: If nothing has that name.
    """
    classes = load_classes()
    if under is None:
        return classes
    chosen = tuple(c for c in classes if under in (c.wnid, c.label, c.kind, *c.path))
    if not chosen:
        raise ValueError(
            f"no class of ImageNet stands under {under!r}; use a level of WordNet's "
            'hierarchy such as animal, dog, bird, vehicle, musical instrument, food'
        )
    return chosen
