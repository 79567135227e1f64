"""Off-policy estimates: how often would another policy's covers have been clicked, from a log with propensities? Pure.

With r the reward of a shown cover, p its logged propensity, π the policy in question and w = π / p:

* IPS: mean of w r (Horvitz and Thompson, 1952). Unbiased, and wild where p is small.
* SNIPS: Σ w r / Σ w (Swaminathan and Joachims, 2015). Bounded by the rewards that were seen, with a small bias.
* DR: mean of Σ_c π(c) q(c) + w (r − q(shown)) (Dudík, Langford and Li, 2011). Unbiased whatever the model q says, and
  the steadier the better q is. Here q is a click rate by (reader's segment, cover), shrunk to the cover's, shrunk to
  that of all, counted on the other half of the people, so that nobody's own click speaks for their estimate.

Intervals are percentiles of a bootstrap over *people* (Poisson weights): one person's impressions are not independent,
since the choice for them and an item is the same all day.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHRINK = 50.0
"""Impressions that the coarser rate counts as, at each level of q."""
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Log:
    """n impressions with m candidates altogether, those of one impression side by side.

    Attributes:
        user: [n], a number a person.
        reward: [n].
        start: [n + 1], where an impression's candidates begin.
        shown: [n], which candidate was shown, as a place in the arrays [m].
        propensity: [m], logged.
        cover, cell: [m], numbers of the cover and of (reader's segment, cover), from 0.
    """

    user: Ints
    reward: Floats
    start: Ints
    shown: Ints
    propensity: Floats
    cover: Ints
    cell: Ints

    def __len__(self) -> int:
        return len(self.user)

    def sums(self, values: Floats) -> Floats:
        """[m] to [n]: over the candidates of each impression, of which there is at least one."""
        return np.asarray(np.add.reduceat(values, self.start[:-1]) if len(self) else np.zeros(0))

    @cached_property
    def model(self) -> Floats:
        """q, [m]."""
        people, user = np.unique(self.user, return_inverse=True)
        half = np.random.default_rng(0).integers(0, 2, len(people))[user]
        q = np.zeros(len(self.cover))
        of = np.repeat(half, np.diff(self.start))
        for side in (0, 1):
            seen = half != side
            rate = float(self.reward[seen].mean()) if seen.any() else float(self.reward.mean())
            by_cover = self._shrunk(self.cover, seen, np.full(int(self.cover.max()) + 1, rate))
            coarse = np.zeros(int(self.cell.max()) + 1)
            coarse[self.cell] = by_cover[self.cover]
            q[of == side] = self._shrunk(self.cell, seen, coarse)[self.cell[of == side]]
        return q

    def _shrunk(self, group: Ints, seen: NDArray[np.bool_], towards: Floats) -> Floats:
        rows = group[self.shown[seen]]
        clicks = np.bincount(rows, self.reward[seen], len(towards))
        return np.asarray((clicks + SHRINK * towards) / (np.bincount(rows, minlength=len(towards)) + SHRINK))


@dataclass(frozen=True)
class Value:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimates:
    """Attributes:
    ess: effective sample size, (Σ w)² / Σ w²: so many impressions of the policy itself would say as much.
    unsupported: share of what the policy would show that the log could never have shown there.
    """

    ips: Value
    snips: Value
    dr: Value
    logged: Value
    ess: float
    largest_weight: float
    impressions: int
    people: int
    unsupported: float


def unsupported(log: Log, target: Floats) -> float:
    """Share of the policy's choices [m] where the logged propensity is 0, or that no candidate stands for."""
    there = np.where(log.propensity > 0, target, 0.0)
    return float(np.clip(1 - log.sums(there), 0, 1).mean())


def estimate(log: Log, target: Floats, *, draws: int = 1000, seed: int = 0) -> Estimates:
    """The policy's reward an impression.

    Args:
        target: [m], its probabilities of the candidates.
        draws: of the bootstrap.

    Raises:
        ValueError: an empty log, or a target of another shape.
    """
    if not len(log) or target.shape != log.propensity.shape:
        raise ValueError(f"{len(log)} impressions, target of shape {target.shape}, candidates {log.propensity.shape}")
    weight = target[log.shown] / log.propensity[log.shown]
    q = log.model
    direct = log.sums(target * q)
    doubly = direct + weight * (log.reward - q[log.shown])
    people, user = np.unique(log.user, return_inverse=True)
    columns = (np.ones(len(log)), log.reward, weight, weight * log.reward, doubly)
    sums = np.stack([np.bincount(user, column, len(people)) for column in columns], 1)
    middle = _ratios(sums.sum(0)[None])[0]
    rng = np.random.default_rng(seed)
    drawn = []
    for at in range(0, draws, _CHUNK):
        times = rng.poisson(1.0, (min(_CHUNK, draws - at), len(people)))
        drawn.append(_ratios(np.asarray(times @ sums, np.float64)))
    low, high = np.nanpercentile(np.concatenate(drawn), (2.5, 97.5), axis=0)
    logged, ips, snips, dr = (Value(float(m), float(a), float(b)) for m, a, b in zip(middle, low, high, strict=True))
    return Estimates(
        ips=ips,
        snips=snips,
        dr=dr,
        logged=logged,
        ess=float(weight.sum() ** 2 / max(float((weight**2).sum()), 1e-300)),
        largest_weight=float(weight.max()),
        impressions=len(log),
        people=len(people),
        unsupported=unsupported(log, target),
    )


def _ratios(sums: Floats) -> Floats:
    """[k, 5] sums of 1, r, w, w r, doubly robust term to [k, 4]: logged, IPS, SNIPS, DR. NaN where nobody was drawn."""
    with np.errstate(divide="ignore", invalid="ignore"):
        count, reward, weight, weighted, doubly = sums.T
        return np.stack([reward / count, weighted / count, weighted / weight, doubly / count], 1)
