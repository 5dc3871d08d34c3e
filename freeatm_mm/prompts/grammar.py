"""Prompts without end from ImageNet's classes and the paper's templates, by a grammar alone.

Sec. 3.2: "Our templates are adapted to ImageNet's class hierarchy, with formats like '[Class (with
other class)] is/are [somewhere]' or '[Class] with [other class] is/are [doing something]
[somewhere]'". What can be where, do what and meet whom is in `freeatm_mm.prompts.kinds`.

Any record can be made alone from its number, so a run of millions needs no memory and goes on
anywhere. No sentence comes twice before its class has no new one left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd

from freeatm_mm.prompts.imagenet import ImageNetClass, load_classes
from freeatm_mm.prompts.kinds import CIRCUMSTANCES, KINDS, SETTINGS
from freeatm_mm.prompts.record import PromptRecord
from freeatm_mm.prompts.templates import fill_template

__all__ = ['PHOTO_TEMPLATE', 'PromptGrammar', 'photo_prompts', 'shuffled', 'take_turns']

#: Table 6's plain prompt, for the ablation.
PHOTO_TEMPLATE = 'a photo of {0}'


@dataclass(frozen=True)
class _Choice:
    """Sentences of one form about one class in one setting, numbered 0 to ``size - 1``.

    Any tuple may hold ``''`` or ``None`` for "nothing here".
    """

    key: str
    partners: tuple[ImageNetClass | None, ...]
    places: tuple[str, ...]
    circumstances: tuple[str, ...]
    actions: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.partners) * len(self.places) * len(self.circumstances) * len(self.actions)

    def __getitem__(self, number: int) -> tuple[ImageNetClass | None, str]:
        """The partner and the words after "is" of one sentence."""
        number, partner = divmod(number, len(self.partners))
        number, place = divmod(number, len(self.places))
        action, circumstance = divmod(number, len(self.circumstances))
        words = (self.actions[action], self.places[place], self.circumstances[circumstance])
        return self.partners[partner], ' '.join(word for word in words if word)


class PromptGrammar:
    """The sentences about some classes, by number.

    Classes take turns, each round in another order; for each class, the four forms (alone or with
    another class, doing something or not) take turns, and so do the settings of a form.

    Args:
        classes: What the sentences are about.
        seed: Another seed gives other sentences in another order.
        partners: The "other classes"; all of ImageNet's where not given.
        name: Records are called ``name-00000000`` and so on.

    Raises:
        ValueError: If there is no class.
    """

    def __init__(
        self,
        classes: Sequence[ImageNetClass],
        seed: int = 0,
        partners: Sequence[ImageNetClass] | None = None,
        name: str = 'imagenet',
    ) -> None:
        if not classes:
            raise ValueError('a grammar needs at least one class')
        self.classes = tuple(classes)
        self.seed = seed
        self.name = name
        self._others = tuple(load_classes() if partners is None else partners)
        self._forms: dict[int, list[list[_Choice]]] = {}

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many different sentences each class has."""
        return tuple(self._size(number) for number in range(len(self.classes)))

    def repeats(self, count: int) -> int:
        """Return how many of the first ``count`` records say what one before them said."""
        rounds, rest = divmod(count, len(self.classes))
        # Who comes in the last, unfinished round depends on its order.
        last = {shuffled(turn, len(self.classes), f'{self.seed}/{rounds}') for turn in range(rest)}
        return sum(
            max(0, rounds + (number in last) - size) for number, size in enumerate(self.sizes)
        )

    def __getitem__(self, number: int) -> PromptRecord:
        """Make one record.

        Args:
            number: Any number from 0.
        """
        if number < 0:
            raise IndexError(f'prompts are numbered from 0, got {number}')
        turn, place = divmod(number, len(self.classes))
        index = shuffled(place, len(self.classes), f'{self.seed}/{turn}')
        forms = self._forms_of(index)
        turn %= self._size(index)
        which, turn = take_turns(tuple(sum(c.size for c in form) for form in forms), turn)
        form = forms[which]
        which, turn = take_turns(tuple(choice.size for choice in form), turn)
        choice = form[which]
        partner, rest = choice[shuffled(turn, choice.size, f'{self.seed}/{choice.key}')]
        subjects = [self.classes[index].subject]
        if partner is not None:
            subjects.append(partner.subject)
        template = '{0} with {1} {be} {place}' if partner is not None else '{0} {be} {place}'
        return fill_template(f'{self.name}-{number:08d}', template, subjects, rest)

    def records(self, start: int, stop: int) -> Iterator[PromptRecord]:
        """Yield records ``start`` to ``stop - 1``."""
        return (self[number] for number in range(start, stop))

    def _size(self, index: int) -> int:
        return sum(choice.size for form in self._forms_of(index) for choice in form)

    def _forms_of(self, index: int) -> list[list[_Choice]]:
        if index not in self._forms:
            subject = self.classes[index]
            kind = KINDS[subject.kind]
            forms: list[list[_Choice]] = [[], [], [], []]
            for name in kind.settings:
                setting = SETTINGS[name]
                actions = kind.only.get(name, kind.actions)
                partners = self._partners(subject, name)
                places = (setting.places, CIRCUMSTANCES[setting.where])
                for form, (others, doing) in enumerate(
                    (((None,), ('',)), ((None,), actions), (partners, ('',)), (partners, actions))
                ):
                    if others:
                        forms[form].append(
                            _Choice(f'{subject.wnid}/{name}/{form}', others, *places, doing)
                        )
            # Classes begin with different forms and settings, so that any stretch is mixed.
            self._forms[index] = [
                _rotated(form, subject.index // 4)
                for form in _rotated(forms, subject.index)
                if form
            ]
        return self._forms[index]

    def _partners(self, subject: ImageNetClass, setting: str) -> tuple[ImageNetClass, ...]:
        size = KINDS[subject.kind].size
        return tuple(
            other
            for other in self._others
            if other.index != subject.index
            and setting in KINDS[other.kind].settings
            and abs(KINDS[other.kind].size - size) <= 1
        )


def photo_prompts(
    classes: Sequence[ImageNetClass], start: int, stop: int, name: str = 'photo'
) -> Iterator[PromptRecord]:
    """Yield "a photo of [class]" (Table 6), records ``start`` to ``stop - 1``, in turns."""
    for number in range(start, stop):
        chosen = classes[number % len(classes)]
        yield fill_template(f'{name}-{number:08d}', PHOTO_TEMPLATE, [chosen.subject], '')


def _rotated(items: list, by: int) -> list:
    by %= max(1, len(items))
    return items[by:] + items[:by]


def take_turns(sizes: Sequence[int], turn: int) -> tuple[int, int]:
    """Say who is on at a turn, where several take turns and leave when they have had theirs.

    Args:
        sizes: How many turns each has in all.
        turn: Which turn, from 0 to the sum of ``sizes`` less one.

    Returns:
        Who, and how many turns they had before this one.

    Raises:
        IndexError: If all have had their turns before.
    """
    had = 0
    while True:
        playing = [who for who, size in enumerate(sizes) if size > had]
        if not playing:
            raise IndexError('all have had their turns')
        rounds = min(sizes[who] for who in playing) - had
        if turn < rounds * len(playing):
            return playing[turn % len(playing)], had + turn // len(playing)
        turn -= rounds * len(playing)
        had += rounds


def shuffled(number: int, size: int, key: str) -> int:
    """Return where a number goes when 0 to ``size - 1`` are put into another order.

    Each number goes to another place; the order depends on ``key`` alone and needs no memory.
    """
    factor, shift = _order(size, key)
    return (factor * number + shift) % size


@lru_cache(maxsize=1 << 14)
def _order(size: int, key: str) -> tuple[int, int]:
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    factor = int.from_bytes(digest[:8], 'big') % size
    while gcd(factor, size) != 1:
        factor += 1
    return factor, int.from_bytes(digest[8:], 'big') % size
