"""The neutral cover through the best global colour and contrast filter for each reader: the trap of a colour metric.

The filter is chosen on covers of other items: by *true* utility, which ICG never sees, so that this control is beaten
with that handicap; or by the stack's own preference model (`filtered_by_reward`), which tells what stands in the way
where ICG is beaten: whoever beats it with the same reward says that the adapter does not do what it was asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from icg.evaluation.contenders.base import Case, Contender, Drawn, Reader, Worth, clock


@dataclass(frozen=True)
class Filter:
    """A global filter that leaves white as it is, so that the background stays one."""

    saturation: float = 1.0  # 0: grey
    contrast: float = 1.0  # of the distance from white
    gamma: float = 1.0  # above 1: darker in the middle
    warmth: float = 0.0  # gamma of blue up, of red down

    def __call__(self, image: Image.Image) -> Image.Image:
        rgb = np.asarray(image.convert("RGB"), np.float64) / 255
        grey = rgb @ np.array([0.299, 0.587, 0.114])
        rgb = grey[..., None] + self.saturation * (rgb - grey[..., None])
        rgb = np.clip(1 - self.contrast * (1 - rgb), 0, 1)
        rgb = rgb ** (self.gamma * np.exp(np.array([-self.warmth, 0.0, self.warmth])))
        return Image.fromarray((255 * rgb).round().astype(np.uint8))


FILTERS = tuple(
    Filter(*values)
    for values in itertools.product((0.0, 0.5, 1.0, 1.7), (0.5, 1.0, 1.5), (0.6, 1.0, 1.6), (-0.35, 0.0, 0.35))
)
"""108 filters, from grey to vivid, pale to dark, cold to warm; the one that does nothing is among them."""


class FilteredNeutral:
    """Filters chosen once, on items that are not judged.

    Args:
        neutral: draws the covers that are filtered.
        worth: chooses the filters.
        practice: items of other concepts, on whose neutral covers the filters are chosen.
        seeds: one for each of them.
    """

    def __init__(
        self,
        neutral: Contender,
        worth: Worth,
        practice: Sequence[Case],
        seeds: Sequence[int],
        name: str = "filtered_neutral",
    ) -> None:
        if not practice:
            raise ValueError("no items to choose filters on")
        self.neutral = neutral
        self.worth = worth
        self.name = name
        self.practice = practice
        self.seeds = seeds
        self._chosen: dict[int, Filter] = {}

    def choose(self, users: Sequence[Reader]) -> None:
        """Find the filter of each reader that has none yet."""
        new = [reader for reader in users if reader.number not in self._chosen]
        if not new:
            return
        total = np.zeros((len(new), len(FILTERS)))
        drawn = self.neutral.draw(self.practice, new[:1], self.seeds)
        for case, row in zip(self.practice, drawn.images, strict=True):
            filtered = [one(row[0]) for one in FILTERS]
            total += self.worth(case, new, filtered)
        for reader, best in zip(new, total.argmax(axis=1), strict=True):
            self._chosen[reader.number] = FILTERS[best]

    def chosen(self, reader: Reader) -> Filter:
        return self._chosen[reader.number]

    def draw(self, items: Sequence[Case], users: Sequence[Reader], seeds: Sequence[int]) -> Drawn:
        self.choose(users)
        with clock() as seconds:
            drawn = self.neutral.draw(items, users, seeds)
            images = [
                [self._chosen[reader.number](image) for reader, image in zip(users, row, strict=True)]
                for row in drawn.images
            ]
            return Drawn(images, drawn.evaluations, seconds())
