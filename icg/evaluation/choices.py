"""What simulated people choose. Choices are all that anybody else gets to see of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icg.evaluation.emoji import Gallery
from icg.evaluation.people import Floats, Population

FEWEST, MOST = 5, 50
"""Choices from which a held-out person's vector is estimated."""


@dataclass(frozen=True)
class Choices:
    """Choices between two pictures of one concept: who, and which rows of a gallery."""

    people: NDArray[np.int64]  # [n]
    chosen: NDArray[np.int64]  # [n]
    rejected: NDArray[np.int64]  # [n]

    def __len__(self) -> int:
        return len(self.people)

    def of(self, person: int) -> Choices:
        mine = self.people == person
        return Choices(self.people[mine], self.chosen[mine], self.rejected[mine])


def choose(
    people: Population, gallery: Gallery, standardised: Floats, counts: Sequence[int] | NDArray[np.int64], seed: int
) -> Choices:
    """Let each person choose between so many random pairs of pictures of one concept.

    Args:
        standardised: [n, 24], attributes of the gallery's pictures.
        counts: choices of each person.
    """
    if len(counts) != len(people.general):
        raise ValueError(f"{len(counts)} counts for {len(people.general)} people")
    rng = np.random.default_rng(seed)
    concepts = gallery.pictures.concepts
    names, index, size = np.unique(concepts, return_inverse=True, return_counts=True)
    by_concept = np.argsort(index, kind="stable")
    start = np.cumsum(size) - size
    several = np.flatnonzero(size >= 2)
    if not len(several):
        raise ValueError(f"no concept among {len(names)} has two pictures to choose between")
    who = np.repeat(np.arange(len(counts)), counts)
    concept = several[rng.integers(len(several), size=len(who))]
    one = rng.integers(size[concept])
    other = (one + 1 + rng.integers(size[concept] - 1)) % size[concept]
    first, second = by_concept[start[concept] + one], by_concept[start[concept] + other]
    taste = people.general[who] + people.by_topic[who, gallery.topics[first]]
    difference = ((standardised[first] - standardised[second]) * taste).sum(axis=1)
    wins = people.prefers_first(difference, rng)
    return Choices(who, np.where(wins, first, second), np.where(wins, second, first))
