"""Tastes: a residual of bounded norm on each person's imported embedding, learned online.

    r ← r + η · w · σ(−margin) · W c / |W c|²,   then |r| ≤ bound · |embedding|

for whoever saw the preferred cover, with the opposite sign for whoever saw the other one. The division makes a step
mean the same for every scale of W and c: without bound, a step moves the pair's margin by about η/2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from icg.preference import Head
from workers.preferences.decode import CLICK, DISLIKE, LIKE, keys_of
from workers.preferences.history import History
from workers.preferences.pairs import Floats, lean, margins
from workers.preferences.window import Ints, Names

RATE = 0.05
REFRESH = 24 * 3600 * 1_000_000
"""µs of event time after which a person's imported embedding is asked for again."""

Lookup = Callable[[list[str]], Floats]
"""Vectors [n, d] of people; zeros for whom nothing is known."""


@dataclass(slots=True)
class Tastes:
    """People who were part of a pair or answered. Rows of all arrays are `names`' numbers."""

    dimension: int
    holdout: float
    bound: float
    names: Names = field(default_factory=Names)
    base: Floats = field(init=False)
    residual: Floats = field(init=False)
    pairs: Ints = field(init=False)
    asked: Ints = field(init=False)  # event time at which `base` was asked for
    held_out: NDArray[np.bool_] = field(init=False)
    history: History = field(default_factory=History)  # of covers, as the window's numbers: item << 32 | cover
    dirty: set[int] = field(default_factory=set)  # not pushed yet
    dirty_history: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        room = max(1024, len(self.names))
        self.base = np.zeros((room, self.dimension), np.float32)
        self.residual = np.zeros((room, self.dimension), np.float32)
        self.pairs = np.zeros(room, np.int64)
        self.asked = np.full(room, -(2**62), np.int64)
        self.held_out = np.zeros(room, bool)

    def numbers(self, names: list[str]) -> Ints:
        """People by name; new ones have no vector yet."""
        known = len(self.names)
        numbers = self.names.of(names)
        if len(self.names) > known:
            self._make_room()
            new = slice(known, len(self.names))
            self.held_out[new] = is_held_out(self.names.listed[known:], self.holdout)
        return numbers

    def _make_room(self) -> None:
        while len(self.names) > len(self.pairs):
            self.base = np.concatenate([self.base, np.zeros_like(self.base)])
            self.residual = np.concatenate([self.residual, np.zeros_like(self.residual)])
            self.pairs = np.concatenate([self.pairs, np.zeros_like(self.pairs)])
            self.asked = np.concatenate([self.asked, np.full_like(self.asked, -(2**62))])
            self.held_out = np.concatenate([self.held_out, np.zeros_like(self.held_out)])

    def ask(self, numbers: Ints, time: int, lookup: Lookup) -> None:
        """See that these people have a vector, no older than `REFRESH` of event time."""
        wanted = np.unique(numbers)
        wanted = wanted[self.asked[wanted] < time - REFRESH]
        if len(wanted):
            self.base[wanted] = lookup([self.names.listed[number] for number in wanted.tolist()])
            self.asked[wanted] = time
            self._bound(wanted)

    def vectors(self, numbers: Ints) -> Floats:
        """Imported embedding plus residual, [n, d]."""
        return self.base[numbers] + self.residual[numbers]

    def learn(self, head: Head, winner: Ints, loser: Ints, chosen: Floats, rejected: Floats, weight: Floats) -> None:
        """One step on pairs [n]. Weight 0 moves nobody."""
        margin = margins(head, self.vectors(winner), chosen, self.vectors(loser), rejected)
        pull = (np.float32(RATE) * np.minimum(weight, 4) * lean(margin))[:, None]
        np.add.at(self.residual, winner, pull * _direction(head, chosen))
        np.subtract.at(self.residual, loser, pull * _direction(head, rejected))
        moved = weight > 0
        np.add.at(self.pairs, winner[moved], 1)
        np.add.at(self.pairs, loser[moved], 1)
        changed = np.unique(np.concatenate([winner[moved], loser[moved]]))
        self._bound(changed)
        self.dirty.update(changed.tolist())

    def _bound(self, numbers: Ints) -> None:
        size = np.linalg.norm(self.residual[numbers], axis=1)
        unit = np.linalg.norm(self.base[numbers], axis=1)
        most = self.bound * np.where(unit > 0, unit, 1)  # nobody's vector is zero: the bound is taken as of a unit one
        # A float's width under the bound, so that rounding never ends above it.
        shrink = np.minimum(1, most / np.maximum(size, 1e-12) * (1 - 1e-6))
        self.residual[numbers] *= np.where(size > most, shrink, 1)[:, None].astype(np.float32)

    def remember(self, number: int, cover: int, kind: int) -> None:
        """Clicks and likes go into a person's history, a dislike takes the cover out."""
        if kind in (CLICK, LIKE):
            self.history.add(number, cover)
        elif kind != DISLIKE or not self.history.drop(number, cover):
            return
        self.dirty_history.add(number)

    def move(self, dimension: int) -> None:
        """The space has changed: what was learned means nothing in the new one. Histories stay."""
        self.dimension = dimension
        self.base = np.zeros((len(self.pairs), dimension), np.float32)
        self.residual = np.zeros_like(self.base)
        self.pairs[:] = 0
        self.asked[:] = -(2**62)


def is_held_out(names: list[str], share: float) -> NDArray[np.bool_]:
    """By hash of the person's id: the same people for every learner, for ever."""
    held: NDArray[np.bool_] = keys_of(names)[:, 1] % 10_000 < round(share * 10_000)
    return held


def _direction(head: Head, covers: Floats) -> Floats:
    """W c / |W c|², [n, d]."""
    pulled = covers @ head.weight.T
    return np.asarray(pulled / np.maximum((pulled**2).sum(1, keepdims=True), 1e-12), np.float32)
