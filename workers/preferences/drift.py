"""Whether people, or what the released head says of them, have changed since a while ago.

Two numbers, from verdict to verdict, against a reference that follows slowly: the shift of people's mean vector in
standard deviations, and the population stability index of the predicted probabilities, Σ (p − q) ln(p / q) over ten
bins (above 0.25 is commonly read as a change).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 10
FOLLOWS = 0.1
"""Share of the reference that each verdict's pairs replace."""


@dataclass(slots=True)
class Drift:
    """Sums over people's vectors and margins: of now, and of the reference."""

    dimension: int
    now: NDArray[np.float64] = field(init=False)  # count, sum of |u|², sum of u [d], histogram [BINS]
    reference: NDArray[np.float64] = field(init=False)  # the same, a mean

    def __post_init__(self) -> None:
        self.now = np.zeros(2 + self.dimension + BINS)
        self.reference = np.zeros_like(self.now)

    def add(self, users: NDArray[np.float32], margin: NDArray[np.float32]) -> None:
        place = np.minimum((BINS / (1 + np.exp(-margin.astype(np.float64)))).astype(np.int64), BINS - 1)
        self.now[0] += len(users)
        self.now[1] += float((users.astype(np.float64) ** 2).sum())
        self.now[2:-BINS] += users.sum(axis=0, dtype=np.float64)
        self.now[-BINS:] += np.bincount(place, minlength=BINS)

    def turn(self) -> tuple[float, float]:
        """Population and score drift of what was added since the last turn; 0 at the first one."""
        if not self.now[0]:
            return 0.0, 0.0
        now, reference = self.now / self.now[0], self.reference
        self.now = np.zeros_like(self.now)
        if not reference[0]:
            self.reference = now
            return 0.0, 0.0
        spread = max(reference[1] - float((reference[2:-BINS] ** 2).sum()), 1e-12)
        shift = float(np.linalg.norm(now[2:-BINS] - reference[2:-BINS]) / np.sqrt(spread))
        p, q = (np.maximum(each[-BINS:], 1e-4) for each in (now, reference))
        self.reference = (1 - FOLLOWS) * reference + FOLLOWS * now
        return shift, float(((p - q) * np.log(p / q)).sum())
