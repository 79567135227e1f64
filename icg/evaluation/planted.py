"""A generator whose right answer is known: it hands out real pictures of the concept, by a rule.

The figures are tested on it before anything real is judged: who pays no heed to anybody must come out at 0.50, who sees
taste must win, and a filter must be seen for what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from icg.evaluation.contenders.base import Vector
from icg.evaluation.emoji import Gallery
from icg.evaluation.people import Floats
from icg.item import Item
from icg.sampling import SamplerConfig

Rule = Callable[[Floats, Vector | None, np.random.Generator], int]
"""From raw attributes [n, 24] of a concept's pictures, a vector (None: neutral) and the seed's generator, pick one."""


@dataclass
class PlantedGenerator:
    """Takes the place of `icg.CoverGenerator` for contenders; items are known by title."""

    gallery: Gallery
    rule: Rule
    sampler: SamplerConfig

    def encode(self, items: Sequence[Item]) -> list[NDArray[np.int64]]:
        """The rows of each item's real pictures."""
        return [np.flatnonzero(self.gallery.pictures.titles == item.title) for item in items]

    def generate(
        self, context: list[NDArray[np.int64]], vectors: Sequence[Sequence[Vector | None]], seeds: Sequence[int]
    ) -> list[list[Image.Image]]:
        return [
            [self._pick(rows, vector, seed) for vector in row]
            for rows, row, seed in zip(context, vectors, seeds, strict=True)
        ]

    def _pick(self, rows: NDArray[np.int64], vector: Vector | None, seed: int) -> Image.Image:
        return self.gallery.image(int(rows[self.rule(self.gallery.raw[rows], vector, np.random.default_rng(seed))]))


def heedless(raw: Floats, vector: Vector | None, rng: np.random.Generator) -> int:
    """Any of them, whoever asks."""
    return int(rng.integers(len(raw)))


def seeing(deviation: Floats) -> Rule:
    """What a vector of tastes in the attributes themselves likes best; for nobody in particular, any."""

    def rule(raw: Floats, vector: Vector | None, rng: np.random.Generator) -> int:
        if vector is None:
            return heedless(raw, None, rng)
        return int(((raw - raw.mean(axis=0)) / np.maximum(deviation, 1e-6) @ vector).argmax())

    return rule
