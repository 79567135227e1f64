"""Pairs that the trainer keeps: a ring of held-out ones that judge, a reservoir of others that are replayed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from workers.preferences.pairs import Ints, Rows

HELD_OUT = 4096
"""Held-out pairs kept, the newest."""
REPLAYED = 2048
"""Pairs kept for replay."""
ENTER = 1 / 16
"""Chance of a new pair, once the reservoir has seen 16 times its size: its memory is then about 33,000 pairs long, and
fades exponentially (Aggarwal, "On biased reservoir sampling", 2006) instead of holding on to all of the past."""


@dataclass(slots=True)
class Kept:
    """Rows in places, with the partition that each came from."""

    dimension: int
    room: int
    total: int = 0  # offered so far
    size: int = 0
    rows: Rows = field(init=False)
    sources: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.rows, self.sources = Rows.empty(self.room, self.dimension), np.zeros(self.room, np.int64)

    def __len__(self) -> int:
        return self.size

    def held(self) -> Rows:
        """Those that are there, as a view."""
        return self.rows.take(slice(0, self.size))

    def add(self, rows: Rows, source: int) -> None:
        """The newest rows take the places of the oldest."""
        at = (self.total + np.arange(len(rows))) % self.room
        self._put(at, rows, source)

    def sample(self, rows: Rows, source: int, random: np.random.Generator) -> None:
        """A biased reservoir: each row may take a random place."""
        number = self.total + np.arange(len(rows))
        enters = random.random(len(rows)) < np.maximum(ENTER, self.room / (number + 1))
        at = np.where(number < self.room, number, random.integers(self.room, size=len(rows)))
        chosen = np.flatnonzero(enters)
        last = dict(zip(at[chosen].tolist(), chosen.tolist(), strict=True))  # of two for one place the later
        self._put(np.array(list(last), np.int64), rows.take(np.array(list(last.values()), np.int64)), source)
        self.total += len(rows) - len(last)

    def _put(self, at: Ints, rows: Rows, source: int) -> None:
        self.rows.put(at, rows)
        self.sources[at] = source
        self.total += len(rows)
        self.size = max(self.size, int(at.max(initial=-1)) + 1)

    def forget(self, source: int, numbers: Iterable[int]) -> None:
        """Drop every row that one of these people is part of."""
        held, people = self.held(), np.fromiter(numbers, np.int64)
        theirs = np.isin(held.winners, people) | np.isin(held.losers, people)
        theirs &= self.sources[: self.size] == source
        if not theirs.any():
            return
        kept, sources = held.take(~theirs), self.sources[: self.size][~theirs]
        self.rows, self.sources = Rows.empty(self.room, self.dimension), np.zeros(self.room, np.int64)
        self.rows.put(np.arange(len(kept)), kept)
        self.sources[: len(kept)] = sources
        self.total = self.size = len(kept)

    def judges(self) -> Ints:
        """[n] the held-out person of each row, as a number that no other partition's has."""
        held = self.held()
        person = np.where(held.held_out == 2, held.losers, held.winners)
        return (self.sources[: self.size] << 32) | person
