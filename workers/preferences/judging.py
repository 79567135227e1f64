"""Is a candidate not inferior to what is released? In log loss, order within an item, and calibration, all three.

Every person weighs the same. The intervals are a bootstrap over people (Efron, 1979): pairs of one person are not
independent. A pair counts with its weight and the product of its two choice weights, so that the judged pairs are those
of a uniform choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.floating[Any]]

RESAMPLES = 400
AT_ONCE = 20
"""Resamples drawn at once: 4,000 people then take 1 MB, where all 400 would leave 25 MB with the process for good."""
LEVEL = 0.95
"""Of each one-sided interval."""
BINS = 4
"""Of the favourite's probability, from 0.5 to 1, for the calibration error (Naeini, Cooper, Hauskrecht, 2015)."""


@dataclass(frozen=True, slots=True)
class Margins:
    """By how much a candidate may be worse."""

    loss: float = 0.02  # nats a pair
    order: float = 0.05  # AUC
    calibration: float = 0.1


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of both heads; `worst` is that end of the interval of after − before which is against the candidate."""

    before: float
    after: float
    worst: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate may be released, and on what grounds."""

    accepted: bool
    pairs: int  # that the candidate has trained on, all in all
    judged: int  # pairs that judged
    people: int  # whose they are
    by: str
    loss: Measure  # log loss a pair in nats
    order: Measure  # AUC within an item: share of pairs that the covers' term alone puts in order
    calibration: Measure  # expected calibration error
    margins: Margins

    def metrics(self) -> dict[str, float]:
        return {
            "pairs": self.pairs,
            "judged_pairs": self.judged,
            "judged_people": self.people,
            "log_loss_before": self.loss.before,
            "log_loss_after": self.loss.after,
            "log_loss_difference_upper": self.loss.worst,
            "margin": self.margins.loss,
            "auc_before": self.order.before,
            "auc_after": self.order.after,
            "auc_difference_lower": self.order.worst,
            "auc_margin": self.margins.order,
            "calibration_error_before": self.calibration.before,
            "calibration_error_after": self.calibration.after,
            "calibration_error_difference_upper": self.calibration.worst,
            "calibration_margin": self.margins.calibration,
        }

    def __str__(self) -> str:
        def told(name: str, of: Measure, word: str, margin: float) -> str:
            return f"{name} {of.before:.4f} -> {of.after:.4f} (difference {word} {of.worst:+.4f}, margin {margin:g})"

        return (
            f"{told('log loss', self.loss, 'at most', self.margins.loss)}, "
            f"{told('AUC', self.order, 'at least', self.margins.order)}, "
            f"{told('calibration error', self.calibration, 'at most', self.margins.calibration)} "
            f"on {self.judged} {self.by} of {self.people} people"
        )


@dataclass(frozen=True, slots=True)
class Scored:
    """n pairs as two heads see them: the whole margins and the covers' part of them."""

    before: Reals  # [n]
    after: Reals
    covers_before: Reals
    covers_after: Reals
    weight: Reals
    people: NDArray[np.int64]  # [n], any numbers

    def columns(self) -> NDArray[np.float64]:
        """[n, 6]."""
        columns = (self.before, self.after, self.covers_before, self.covers_after, self.weight, self.people)
        return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)

    @classmethod
    def of(cls, columns: NDArray[np.float64]) -> Scored:
        before, after, covers_before, covers_after, weight, people = columns.T
        return cls(before, after, covers_before, covers_after, weight, people.astype(np.int64))


def judge(scored: Scored, by: str, margins: Margins, *, pairs: int, finite: bool) -> Verdict:
    """A verdict on n >= 1 pairs with a weight above 0.

    Args:
        pairs: that the candidate has trained on; seeds the bootstrap too, so that a replay judges the same.
        finite: whether the candidate's weights are.
    """
    people, owner = np.unique(scored.people, return_inverse=True)
    m = len(people)
    total = np.bincount(owner, scored.weight.astype(np.float64), m)
    share = scored.weight / np.maximum(total[owner], 1e-30)  # sums to 1 for each person

    def of(values: Reals) -> NDArray[np.float64]:
        """[m] each person's mean."""
        return np.bincount(owner, share * values, m).astype(np.float64)

    loss = [of(np.logaddexp(0, -margin)) for margin in (scored.before, scored.after)]
    order = [of(ordered(margin)) for margin in (scored.covers_before, scored.covers_after)]
    gaps = [_gaps(margin, share, owner, m) for margin in (scored.before, scored.after)]
    random = np.random.default_rng([20, pairs])
    everybody = np.full((1, m), 1 / m)

    def error(draws: NDArray[np.float64], which: int) -> NDArray[np.float64]:
        return np.asarray(np.abs(draws @ gaps[which]).sum(axis=1))

    differences = np.empty((3, RESAMPLES))
    for start in range(0, RESAMPLES, AT_ONCE):
        counts = random.multinomial(m, np.full(m, 1 / m), AT_ONCE) / m
        differences[:, start : start + AT_ONCE] = (
            counts @ (loss[1] - loss[0]),
            counts @ (order[1] - order[0]),
            error(counts, 1) - error(counts, 0),
        )
    upper = {"loss": np.quantile(differences[0], LEVEL), "calibration": np.quantile(differences[2], LEVEL)}
    lower = np.quantile(differences[1], 1 - LEVEL)
    found = Verdict(
        accepted=False,
        pairs=pairs,
        judged=len(owner),
        people=m,
        by=by,
        loss=Measure(float(loss[0].mean()), float(loss[1].mean()), float(upper["loss"])),
        order=Measure(float(order[0].mean()), float(order[1].mean()), float(lower)),
        calibration=Measure(float(error(everybody, 0)[0]), float(error(everybody, 1)[0]), float(upper["calibration"])),
        margins=margins,
    )
    accepted = (
        finite
        and found.loss.worst <= margins.loss
        and found.order.worst >= -margins.order
        and found.calibration.worst <= margins.calibration
    )
    return Verdict(
        accepted, found.pairs, found.judged, found.people, by, found.loss, found.order, found.calibration, margins
    )


def ordered(margin: Reals) -> Reals:
    """1 where a head puts the pair in the person's order, a half where it cannot tell."""
    return np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0))


def _gaps(margin: Reals, share: Reals, owner: NDArray[np.int64], people: int) -> NDArray[np.float64]:
    """[people, BINS] hits less predicted hits of the favourite, by the probability that it was given."""
    favourite = 1 / (1 + np.exp(-np.abs(margin)))
    place = np.minimum(((favourite - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    gap = share * (ordered(margin) - favourite)
    return np.bincount(owner * BINS + place, gap, people * BINS).astype(np.float64).reshape(people, BINS)
