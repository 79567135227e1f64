"""Intervals by resampling. Whatever is compared is compared within the same people and items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from icg.evaluation.people import Floats

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A figure and the middle 95 % of what it could as well have been."""

    value: float
    low: float
    high: float

    @property
    def gain(self) -> float:
        """The value where it stands apart from 0; 0, "none", where the interval includes 0."""
        return 0.0 if self.low <= 0 <= self.high else self.value


def over_rows(values: Floats, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Of the mean of [n], its n rows (people) resampled."""
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("nobody to resample")
    rng = np.random.default_rng(seed)
    means = [float(values[rng.integers(len(values), size=len(values))].mean()) for _ in range(resamples)]
    return Interval(float(values.mean()), *np.quantile(means, [0.025, 0.975]).tolist())


def over_pairs(values: Floats, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Of the mean of [people, concepts], both resampled: more people on few concepts do not narrow it for ever."""
    return of_means(np.asarray(values, np.float64)[None], lambda means: float(means[0]), seed, resamples)


def of_means(
    tables: Floats, statistic: Callable[[Floats], float], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Of a statistic of the means [k] of several tables [k, people, concepts] that are resampled alike."""
    _, people, concepts = tables.shape
    if not people or not concepts:
        raise ValueError(f"{people} people and {concepts} concepts: there is nothing to resample")
    rng = np.random.default_rng(seed)
    # A resample is how often each row and each column is taken: all of them are one product.
    rows = rng.multinomial(people, np.full(people, 1 / people), size=resamples) / people
    columns = rng.multinomial(concepts, np.full(concepts, 1 / concepts), size=resamples) / concepts
    means = np.einsum("rp,kpc,rc->rk", rows, np.asarray(tables, np.float64), columns, optimize=True)
    found = [statistic(row) for row in means]
    return Interval(statistic(tables.mean(axis=(1, 2))), *np.quantile(found, [0.025, 0.975]).tolist())
