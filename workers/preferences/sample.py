"""Which of a partition's pairs go to the trainer: a sample that is bounded, weighted by importance and unbiased.

A pair of importance w is sent with probability p and weight w / p, so every sum over pairs keeps its expectation.
Whether is a matter of the hash of its event id: the same pair meets the same fate in every replay. p falls as the
budget runs low, and the budget fills by event time: over a stretch of it at most `BURST` + `rate` · seconds are sent,
and of a flood beyond that one in 64.

    p = min(1, max(LEAST, 4 w s / (1 − s)))        s: how full the budget is
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BURST = 4096.0
"""Pairs that may be sent at once after a quiet time."""
LEAST = 1 / 64
"""No pair speaks for more than 64."""


@dataclass(slots=True)
class Budget:
    """State of a partition's sampling.

    Attributes:
        rate: pairs a second of event time.
        left: pairs that may be sent now.
        time: event time in µs until which it has been filled.
    """

    rate: float
    left: float = BURST
    time: int = -(2**62)

    def chances(self, importance: Floats, time: int) -> NDArray[np.float64]:
        """[n] probabilities of pairs at an event time. A pair of no importance is not sent."""
        if time > self.time:
            self.left = min(BURST, self.left + self.rate * min((time - self.time) / 1e6, BURST / self.rate))
            self.time = time
        full = max(0.0, self.left / BURST)
        weight = importance.astype(np.float64)
        odds = np.inf if full >= 1 else 4 * full / (1 - full)
        chance = np.ones(len(weight)) if np.isinf(odds) else np.minimum(1, np.maximum(LEAST, odds * weight))
        return np.where(weight > 0, chance, 0.0)

    def spend(self, pairs: int) -> None:
        self.left -= pairs


def drawn(hashes: NDArray[np.uint64], chance: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which pairs are sent: the upper 53 bits of the hash as a number in [0, 1)."""
    unit = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(unit < chance)
