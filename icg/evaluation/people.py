"""Simulated people: taste in pixels, never in labels, and a noisy choice. Called simulated wherever they are reported.

    U(user, image, item) = w_user · a(image) + v_user[topic of item] · a(image)

`a` are the attributes of `icg.evaluation.attributes`, standardised. No data set links real people to choices among
covers of one item, so this is what stands in for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icg.evaluation.attributes import NAMES

Floats = NDArray[np.float64]

AGREEMENT = 0.775
"""How often a person repeats a choice between two random pictures; real people in such tests reach 0.75 to 0.80."""


@dataclass(frozen=True)
class Standardiser:
    """Mean and deviation of raw attributes, so that one unit of taste means as much in each."""

    mean: Floats
    deviation: Floats

    @classmethod
    def fit(cls, raw: Floats) -> Standardiser:
        """Fit on raw attributes [n, 24], n >= 2; an attribute that does not vary is left out (standardised to 0)."""
        if raw.ndim != 2 or raw.shape[0] < 2 or raw.shape[1] != len(NAMES):
            raise ValueError(f"raw attributes must be [n >= 2, {len(NAMES)}], got {raw.shape}")
        return cls(raw.mean(axis=0), raw.std(axis=0))

    def __call__(self, raw: Floats) -> Floats:
        """Standardise [..., 24]; clipped to 4 deviations so that one odd picture does not rule a taste."""
        scaled = np.where(self.deviation > 1e-6, (raw - self.mean) / np.maximum(self.deviation, 1e-6), 0.0)
        return np.asarray(np.clip(scaled, -4, 4))


@dataclass(frozen=True)
class Population:
    """Tastes of `n` people.

    Attributes:
        general: [n, 24], the taste that holds for every item.
        by_topic: [n, topics, 24], what a topic adds.
        sharpness: of the Bradley-Terry choice, in 1 / utility.
    """

    general: Floats
    by_topic: Floats
    sharpness: float

    @classmethod
    def drawn(
        cls, n: int, topics: int, seed: int, *, topic_share: float = 0.35, embeddings: Floats | None = None
    ) -> Population:
        """Draw people.

        Args:
            topic_share: part of the utility's variance that is taste x topic, at least 0.3 by the measuring rules.
            embeddings: [n, d]; if given, 70 % of the general taste is a fixed linear image of a person's embedding,
                because an embedding that said nothing of its owner's taste could personalise nothing.
        """
        rng = np.random.default_rng(seed)
        width = len(NAMES)
        general = rng.normal(size=(n, width))
        if embeddings is not None:
            image = np.asarray(embeddings, np.float64) @ rng.normal(size=(embeddings.shape[1], width))
            image /= np.maximum(np.sqrt((image**2).mean(axis=1, keepdims=True)), 1e-9)
            general = np.sqrt(0.7) * image + np.sqrt(0.3) * general
        # Utilities of standardised pictures then have variance 1, the topic's share of it as asked.
        general *= np.sqrt((1 - topic_share) / width)
        by_topic = rng.normal(size=(n, topics, width)) * np.sqrt(topic_share / width)
        return cls(general, by_topic, sharpness_for(AGREEMENT))

    def utility(self, person: int, topic: int, standardised: Floats) -> Floats:
        """U of pictures [..., 24] for one person and topic, variance about 1."""
        return np.asarray(standardised @ (self.general[person] + self.by_topic[person, topic]))

    def prefers_first(self, difference: Floats, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Bradley-Terry choices given U(first) - U(second)."""
        return rng.random(np.shape(difference)) < 1 / (1 + np.exp(-self.sharpness * np.asarray(difference)))


def sharpness_for(agreement: float) -> float:
    """The Bradley-Terry sharpness at which two choices between random pictures agree so often.

    The difference of two utilities of variance 1 is N(0, 2); two independent choices agree with probability
    p² + (1 - p)². Solved by bisection over Gauss-Hermite quadrature.
    """
    if not 0.5 < agreement < 1:
        raise ValueError(f"agreement must lie between 0.5 and 1, got {agreement}")
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        p = 1 / (1 + np.exp(-middle * np.sqrt(2) * nodes))
        if weights @ (p**2 + (1 - p) ** 2) < agreement:
            low = middle
        else:
            high = middle
    return (low + high) / 2
