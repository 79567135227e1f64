"""What simulated people choose, and the vector estimated from it. Choices are all that anybody else gets to see.

    u = argmax Σ log σ(score(u, chosen) − score(u, rejected)) − precision / 2 · |u|²

with the score of the preference model: the same pairwise logistic that the learner minimises, solved to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icg.evaluation.emoji import Gallery
from icg.evaluation.people import Floats, Population
from icg.preference import Head

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


def estimate(head: Head, chosen: ArrayLike, rejected: ArrayLike, precision: float = 1.0) -> NDArray[np.float32]:
    """A person's vector from their choices alone: no taste, no label, nobody else's choices but through the head.

    Args:
        head: the preference model in whose space the vector means something.
        chosen: [n, d], embeddings of the chosen pictures.
        rejected: [n, d], of the others.
        precision: of the prior, one over the variance of each of the vector's numbers.

    Returns:
        [d]; zeros from no choices.
    """
    steps = np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64)
    if steps.ndim != 2 or steps.shape[1] != head.dimension:
        raise ValueError(f"choices of shape {steps.shape}: [n, {head.dimension}] is wanted")
    features, offset = steps @ head.weight.T.astype(np.float64), steps @ head.bias.astype(np.float64)
    return logistic(features, offset, precision).astype(np.float32)


def logistic(features: Floats, offset: Floats, precision: float, steps: int = 50) -> Floats:
    """argmin over u [d] of Σ −log σ(features u + offset) + precision / 2 · |u|², by Newton's method."""
    if precision <= 0:
        raise ValueError(f"precision is {precision}, more than 0 is wanted")
    u = np.zeros(features.shape[1])
    loss = _loss(features, offset, precision, u)
    for _ in range(steps):
        p = 0.5 * (1 + np.tanh((features @ u + offset) / 2))
        gradient = precision * u - features.T @ (1 - p)
        hessian = precision * np.eye(len(u)) + (features.T * (p * (1 - p))) @ features
        move = np.linalg.solve(hessian, gradient)
        # Far from the optimum Newton may overshoot; the problem is convex, so halving finds a decrease. Close to it
        # rounding may let the loss stand still.
        for _ in range(30):
            nearer = _loss(features, offset, precision, u - move)
            if nearer <= loss + 1e-9 * abs(loss):
                break
            move = move / 2
        u = u - move
        if np.abs(move).max() < 1e-7:
            break
        loss = nearer
    return np.asarray(u)


def _loss(features: Floats, offset: Floats, precision: float, u: Floats) -> float:
    return float(np.logaddexp(0, -(features @ u + offset)).sum() + precision / 2 * u @ u)
