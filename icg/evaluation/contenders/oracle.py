"""Ceilings: the best of many neutral covers, and of the real pictures.

Told the true utility, which nothing else that draws ever is, they bound what drawing could reach. Told only what a
person's few choices tell, by the stack's own preference model or by the very attributes that tastes are made of, the
best of the real pictures shows how far what is *known* of people carries. It is no bound for who draws: real pictures
are few, and not liked as neutral covers are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from icg.evaluation.contenders.base import Case, Drawn, Generator, Reader, Worth, clock, evaluations
from icg.evaluation.contenders.conditioned import TOGETHER
from icg.evaluation.emoji import Gallery
from icg.evaluation.utility import Utility
from icg.item import Item
from icg.slots import chunks


class Oracle:
    """The best of 64 neutral covers by true utility."""

    name = "oracle"

    def __init__(self, generator: Generator, utility: Utility, count: int = 64) -> None:
        self.generator = generator
        self.utility = utility
        self.count = count

    def draw(self, items: Sequence[Case], users: Sequence[Reader], seeds: Sequence[int]) -> Drawn:
        images = []
        calls = 0
        with clock() as seconds:
            for case, seed in zip(items, seeds, strict=True):
                row: dict[int, Image.Image] = {}
                for item, positions in case.groups(users):
                    covers = several(self.generator, item, seed, self.count)
                    calls += self.count * evaluations(self.generator.sampler, 1)
                    found = self.utility.of(case.concept, case.topic, [users[p].number for p in positions], covers)
                    best = found.argmax(axis=1)
                    row |= {position: covers[best[k]] for k, position in enumerate(positions)}
                images.append([row[position] for position in range(len(users))])
            return Drawn(images, calls, seconds())


class Planted:
    """The best of the concept's real pictures: what perfect drawing would give who knows taste as `worth` does."""

    def __init__(self, gallery: Gallery, worth: Worth, name: str = "planted") -> None:
        self.gallery = gallery
        self.worth = worth
        self.name = name

    def draw(self, items: Sequence[Case], users: Sequence[Reader], seeds: Sequence[int]) -> Drawn:
        with clock() as seconds:
            images = []
            for case in items:
                real = [self.gallery.image(int(row)) for row in self.gallery.rows(case.concept)]
                images.append([real[best] for best in self.worth(case, users, real).argmax(axis=1)])
            return Drawn(images, 0, seconds())


def several(generator: Generator, item: Item, seed: int, count: int) -> list[Image.Image]:
    """Neutral covers of one item from `count` seeds that follow from `seed`, the first of them `seed` itself."""
    more = np.random.default_rng(seed).integers(2**62, size=count - 1).tolist()
    covers = []
    for some in chunks(count, TOGETHER):
        part = [seed, *more][some.start : some.stop]
        drawn = generator.generate(generator.encode([item] * len(part)), [[None]] * len(part), part)
        covers += [row[0] for row in drawn]
    return covers
