"""What each method of pretraining is called, and what its network is: one entry a method."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ['METHODS', 'UNTRAINED', 'Method', 'method_title', 'methods_of']


@dataclass(frozen=True)
class Method:
    """What tables, checkpoints and long jobs have to know of a method.

    Attributes:
        title: In tables and plots.
        model: Its class is ``FreeATM<model>``, of mmpretrain's ``<model>`` where there is one;
            empty for methods of other frameworks.
        architecture: Of the network, ``'resnet'``, ``'vit'`` or ``'blip'``: which benchmarks it is
            measured by (the suite of this name), and in which of the paper's tables.
    """

    title: str
    model: str
    architecture: str


METHODS: dict[str, Method] = {
    'simclr': Method('SimCLR', 'SimCLR', 'resnet'),
    'mocov2': Method('MoCo v2', 'MoCo', 'resnet'),
    'mae': Method('MAE', 'MAE', 'vit'),
    'simsiam': Method('SimSiam', 'SimSiam', 'resnet'),
    'dino': Method('DINO', 'DINO', 'resnet'),
    'blip': Method('BLIP', '', 'blip'),
}
"""The methods by their names in result files and of their configs, ``configs/<name>_freeatm.py``
and ``configs/miniature/<name>_freeatm.py``."""

UNTRAINED: dict[str, str] = {'resnet': 'random', 'vit': 'random-vit'}
"""What random weights are called in rows that do not show the architecture by their metrics."""

_OTHERS = {'random': 'Random weights', 'random-vit': 'Random ViT', 'supervised': 'Supervised'}


def method_title(name: str) -> str:
    """The title of a method, which is its name where it has none."""
    return METHODS[name].title if name in METHODS else _OTHERS.get(name, name)


def methods_of(architecture: str) -> tuple[str, ...]:
    """The methods that pretrain a backbone of an architecture."""
    return tuple(name for name, method in METHODS.items() if method.architecture == architecture)
