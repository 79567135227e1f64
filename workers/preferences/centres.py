"""The mean of an item's covers. A cover counts once, when it first comes up in a pair.

A score is u ᵀ W (c − m) with m this mean: what covers of one item have in common is the item, and belongs to the item's
own term. Centred, and weighted so that every cover is as likely, what was shown has mean 0 for everybody.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

KEPT = 32
"""Beyond so many covers each new one takes the weight of a 1/32: an item's former covers fade."""


class Centres:
    """By item number."""

    def __init__(self, dimension: int) -> None:
        self.mean: Floats = np.zeros((0, dimension), np.float32)
        self.count: Ints = np.zeros(0, np.int64)
        self.counted: set[int] = set()  # covers, as `item << 32 | cover`

    def add(self, covers: Ints, embeddings: Floats) -> None:
        """Count those that are new, in the order given, which is the stream's."""
        codes = covers.tolist()
        if self.counted.issuperset(codes):
            return
        for row, code in enumerate(codes):
            if code in self.counted:
                continue
            self.counted.add(code)
            item = code >> 32
            if item >= len(self.count):
                self._make_room(item + 1)
            self.count[item] += 1
            share = np.float32(1 / min(int(self.count[item]), KEPT))
            self.mean[item] += share * (embeddings[row] - self.mean[item])

    def of(self, items: Ints) -> Floats:
        """[n, d], of items that have had a cover."""
        return self.mean[items]

    def _make_room(self, items: int) -> None:
        more = max(1024, len(self.count), items - len(self.count))
        self.mean = np.concatenate([self.mean, np.zeros((more, self.mean.shape[1]), np.float32)])
        self.count = np.concatenate([self.count, np.zeros(more, np.int64)])

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of it, for a checkpoint."""
        used = int(np.flatnonzero(self.count)[-1]) + 1 if self.count.any() else 0
        counted = np.fromiter(sorted(self.counted), np.int64, len(self.counted))
        return {"mean": self.mean[:used], "count": self.count[:used], "counted": counted}

    @classmethod
    def restored(cls, dimension: int, arrays: dict[str, NDArray[np.generic]]) -> Centres:
        """From `arrays`."""
        centres = cls(dimension)
        centres.mean, centres.count = np.array(arrays["mean"], np.float32), np.array(arrays["count"], np.int64)
        centres.counted = set(arrays["counted"].tolist())
        if centres.mean.shape != (len(centres.count), dimension):
            raise ValueError(f"means of shape {centres.mean.shape} for {len(centres.count)} items")
        return centres
