"""Simulated people: taste in pixels, never in labels, and a noisy choice. Called simulated wherever they are reported.

    U(user, image, item) = w_user · a(image) + v_user[topic of item] · a(image)

`a` are the attributes of `icg.evaluation.attributes`, standardised. No data set links real people to choices among
covers of one item, so this is what stands in for them.

Measured on the emoji pictures of the train concepts, standardised within a concept, topic = Unicode group, 600
calibrated people in 12 archetypes, four seeds (`python -m icg.evaluation.emoji --seed N`; the measuring page's limits
in brackets): taste x topic is 0.39 to 0.41 of the utility's variance (at least 0.30), the name of the style explains
0.24 to 0.30 of it (at most 0.50; 0.48 to 0.52 when style and topic are both told), people repeat a choice in 0.776 of
cases (0.75 to 0.80). Without `calibrated`, correlated attributes (10.6 of 24 units of variance lie on one axis) made
some people ten times as decided as others, and agreement was 0.752.
"""

from __future__ import annotations

from collections.abc import Sequence
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
class WithinConcept:
    """Attributes standardised within a concept: how a picture differs from the others of the same thing.

    The mean is the concept's own; the deviation is shared, since ten pictures are too few to measure 24 of them.
    """

    means: dict[str, Floats]
    deviation: Floats

    @classmethod
    def fit(cls, raw: Floats, concepts: Sequence[str] | NDArray[np.str_], fewest: int = 4) -> WithinConcept:
        """Fit on raw attributes [n, 24] of real pictures; the deviation is pooled over concepts of `fewest` or more."""
        means = concept_means(raw, concepts)
        names, counts = np.unique(np.asarray(concepts), return_counts=True)
        many = np.isin(np.asarray(concepts), names[counts >= fewest])
        if not many.any():
            raise ValueError(f"no concept has {fewest} pictures")
        centres = np.stack([means[name] for name in np.asarray(concepts)[many]])
        return cls(means, np.asarray((raw[many] - centres).std(axis=0)))

    def joined(self, raw: Floats, concepts: Sequence[str] | NDArray[np.str_]) -> WithinConcept:
        """The same scale for further concepts, of which raw attributes [n, 24] of real pictures are given."""
        return WithinConcept({**self.means, **concept_means(raw, concepts)}, self.deviation)

    def __call__(self, raw: Floats, concept: str) -> Floats:
        """Standardise [..., 24] of pictures of one concept, drawn or real; clipped to 4 deviations.

        Raises:
            ValueError: no real picture of this concept was given, so nothing says what is usual for it.
        """
        if concept not in self.means:
            raise ValueError(f"no real picture of concept {concept!r} to standardise by")
        return Standardiser(self.means[concept], self.deviation)(raw)

    def each(self, raw: Floats, concepts: Sequence[str] | NDArray[np.str_]) -> Floats:
        """Standardise raw attributes [n, 24], each picture within its own concept."""
        return np.stack([self(row, str(concept)) for row, concept in zip(raw, concepts, strict=True)])


def concept_means(raw: Floats, concepts: Sequence[str] | NDArray[np.str_]) -> dict[str, Floats]:
    """Mean raw attributes of each concept's pictures."""
    names, index = np.unique(np.asarray(concepts), return_inverse=True)
    sums = np.zeros((len(names), raw.shape[1]))
    np.add.at(sums, index, raw)
    means = sums / np.bincount(index)[:, None]
    return dict(zip(names.tolist(), means, strict=True))


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
        cls,
        n: int,
        topics: int,
        seed: int,
        *,
        topic_share: float = 0.35,
        embeddings: Floats | None = None,
        archetypes: int | None = None,
    ) -> Population:
        """Draw people.

        Args:
            topic_share: part of the utility's variance that is taste x topic, at least 0.3 by the measuring rules.
            embeddings: [n, d]; if given, 70 % of the general taste is a fixed linear image of a person's embedding,
                because an embedding that said nothing of its owner's taste could personalise nothing.
            archetypes: if given, half of the variance of a taste, general and by topic, is shared with everybody of
                the same one of so many kinds of people. A taste by topic that nobody shared could be learned from no
                50 choices over nine topics, and segments would group nothing.
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
        if archetypes is not None:
            kind = rng.integers(archetypes, size=n)
            shared = rng.normal(size=(archetypes, width)) * np.sqrt((1 - topic_share) / width)
            shared_by_topic = rng.normal(size=(archetypes, topics, width)) * np.sqrt(topic_share / width)
            general = np.sqrt(0.5) * shared[kind] + np.sqrt(0.5) * general
            by_topic = np.sqrt(0.5) * shared_by_topic[kind] + np.sqrt(0.5) * by_topic
        return cls(general, by_topic, sharpness_for(AGREEMENT))

    def part(self, people: Sequence[int] | NDArray[np.int64] | slice) -> Population:
        """Some of the people."""
        return Population(self.general[people], self.by_topic[people], self.sharpness)

    def drifted(self, share: float, seed: int) -> Population:
        """The same people after their tastes turned: of each one's taste so much of the variance is drawn anew.

        Half of what is new is the same for all, a fashion. Everybody stays as decided as before.
        """
        people, topics, _ = self.by_topic.shape
        new = Population.drawn(people, topics, seed, archetypes=1)

        def turned(old: Floats, fresh: Floats) -> Floats:
            size = np.linalg.norm(old, axis=-1, keepdims=True)
            unit = fresh / np.maximum(np.linalg.norm(fresh, axis=-1, keepdims=True), 1e-9)
            mixed = np.sqrt(1 - share) * old + np.sqrt(share) * size * unit
            return np.asarray(mixed * size / np.maximum(np.linalg.norm(mixed, axis=-1, keepdims=True), 1e-9))

        return Population(turned(self.general, new.general), turned(self.by_topic, new.by_topic), self.sharpness)

    def calibrated(self, pictures: Floats, topics: NDArray[np.int64], concepts: NDArray[np.str_]) -> Population:
        """Scale each person to utilities of variance 1 over real pictures, and set how sharply they choose.

        Attributes are correlated, so tastes drawn alike make some people ten times as decided as others; after this
        each of them repeats about `AGREEMENT` of the choices between two pictures of one concept.

        Args:
            pictures: [n, 24], standardised.
            topics: [n], of the pictures.
            concepts: [n], of the pictures; choices are made within a concept.
        """
        scale = 1 / np.maximum(self.utilities(pictures, topics).std(axis=1), 1e-9)
        people = Population(
            self.general * scale[:, None], self.by_topic * scale[:, None, None], sharpness=self.sharpness
        )
        first, second = neighbours(concepts, np.random.default_rng(0))
        utilities = people.utilities(pictures, topics)
        differences = utilities[:, first] - utilities[:, second]
        return Population(people.general, people.by_topic, sharpness_on(differences, AGREEMENT))

    def utilities(self, pictures: Floats, topics: NDArray[np.int64]) -> Floats:
        """U of every picture [n, 24] with its topic [n] for every person: [people, n]."""
        utilities = self.general @ pictures.T
        for topic in np.unique(topics):
            of_topic = topics == topic
            utilities[:, of_topic] += self.by_topic[:, topic] @ pictures[of_topic].T
        return np.asarray(utilities)

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
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    return sharpness_on(np.sqrt(2) * nodes, agreement, weights / weights.sum())


def sharpness_on(differences: Floats, agreement: float, weights: Floats | None = None) -> float:
    """The Bradley-Terry sharpness at which two choices at these differences of utility agree so often.

    Args:
        differences: of utility, any shape.
        weights: how likely each is, summing to 1; all alike if not given.
    """
    if not 0.5 < agreement < 1:
        raise ValueError(f"agreement must lie between 0.5 and 1, got {agreement}")
    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        p = 1 / (1 + np.exp(-middle * differences))
        if np.average(p**2 + (1 - p) ** 2, weights=weights) < agreement:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def neighbours(concepts: NDArray[np.str_], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random pairs of pictures of one concept, as two arrays of rows; a picture is in at most two of them."""
    order = np.lexsort((rng.random(len(concepts)), concepts))
    first, second = order[:-1], order[1:]
    same = concepts[first] == concepts[second]
    return first[same], second[same]


@dataclass(frozen=True)
class Shares:
    """What a population's utilities over real pictures are made of; see `shares`."""

    topical: float  # of the variance, that of taste x topic
    style: float  # of the variance, what the name of the style explains
    style_and_topic: float  # of the variance, what the names of style and topic together explain
    agreement: float  # how often a person repeats a choice between two pictures of a concept


def shares(
    people: Population,
    pictures: Floats,
    topics: NDArray[np.int64],
    concepts: NDArray[np.str_],
    styles: NDArray[np.str_],
) -> Shares:
    """Measure on real pictures [n, 24], standardised, whether people are what the measuring rules ask for.

    Variances are each person's, over pictures; the shares are of their sums over people.
    """
    utilities = people.utilities(pictures, topics)
    general = people.general @ pictures.T
    topical = (utilities - general).var(axis=1).sum()
    style = np.unique(styles, return_inverse=True)[1]
    cell = np.unique(style * people.by_topic.shape[1] + topics, return_inverse=True)[1]
    whole = utilities.var(axis=1).sum()
    first, second = neighbours(concepts, np.random.default_rng(1))
    p = 1 / (1 + np.exp(-people.sharpness * (utilities[:, first] - utilities[:, second])))
    return Shares(
        float(topical / (topical + general.var(axis=1).sum())),
        float(_explained(utilities, style) / whole),
        float(_explained(utilities, cell) / whole),
        float((p**2 + (1 - p) ** 2).mean()),
    )


def _explained(utilities: Floats, label: NDArray[np.int64]) -> float:
    """Variance between the labels' means, summed over people; utilities [people, n], label [n] from 0."""
    count = np.bincount(label)
    means = np.stack([np.bincount(label, row) for row in utilities]) / count
    return float((count * (means - utilities.mean(axis=1, keepdims=True)) ** 2).sum() / len(label))
