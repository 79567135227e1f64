"""Tastes: a residual of bounded norm on each person's imported embedding, learned online and forgotten slowly.

    r ← r · 2^(−Δt / half-life)                                            by event time, before it is used
    r ← r + η · w · w_c · σ(−margin) · W c / s,   then |r| ≤ bound · |embedding|

for whoever saw the preferred cover, with the opposite sign for whoever saw the other one; c is the cover less the mean
of its item's covers, w the pair's weight and w_c the inverse propensity of the cover's choice. So what a person thinks
of the item moves them nowhere: over the covers that they might have been shown, w_c · c has mean 0. For the same reason
the scale s is one for the whole batch, the mean of |W c|²: with it a step moves the pair's margin by about η / 2,
whatever the scale of W and c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from icg.preference import Head
from workers.preferences.decode import CLICK, DISLIKE, LIKE, keys_of
from workers.preferences.history import History
from workers.preferences.names import Ints, Names
from workers.preferences.pairs import Floats, lean, margins

RATE = 0.1
REFRESH = 24 * 3600 * 1_000_000
"""µs of event time after which a person's imported embedding is asked for again."""
HOUR = 3600 * 1_000_000
HUNDREDTHS = 100
NEVER = -(2**62)

Lookup = Callable[[list[str]], Floats]
"""Vectors [n, d] of people; zeros for whom nothing is known."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a person's part in what is learned."""

    holdout: float  # share of people who never train
    bound: float  # of a residual, as a share of the embedding's norm
    pairs_per_hour: int = 20  # of event time, from a person's own answers
    half_life: int = 30 * 24 * HOUR  # of a residual


@dataclass(slots=True)
class Tastes:
    """People who were part of a pair or answered. Rows of all arrays are `names`' numbers."""

    dimension: int
    limits: Limits
    names: Names = field(default_factory=Names)
    base: Floats = field(init=False)
    residual: Floats = field(init=False)
    pairs: Ints = field(init=False)
    asked: Ints = field(init=False)  # event time at which `base` was asked for
    touched: Ints = field(init=False)  # event time of which the residual is
    hour: Ints = field(init=False)  # of the person's last answer that made a pair, and
    answers: Ints = field(init=False)  # pairs from their answers in it, in hundredths
    held_out: NDArray[np.bool_] = field(init=False)
    history: History = field(default_factory=History)  # of covers, as the window's numbers: item << 32 | cover
    dirty: set[int] = field(default_factory=set)  # not pushed yet
    dirty_history: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        room = max(1024, len(self.names))
        self.base = np.zeros((room, self.dimension), np.float32)
        self.residual = np.zeros((room, self.dimension), np.float32)
        self.pairs = np.zeros(room, np.int64)
        self.asked = np.full(room, NEVER, np.int64)
        self.touched = np.zeros(room, np.int64)
        self.hour = np.zeros(room, np.int64)
        self.answers = np.zeros(room, np.int64)
        self.held_out = np.zeros(room, bool)

    def numbers(self, names: list[str]) -> Ints:
        """People by name; new ones have no vector yet."""
        known = len(self.names)
        numbers = self.names.of(names)
        if len(self.names) > known:
            self._make_room()
            new = slice(known, len(self.names))
            self.held_out[new] = is_held_out(self.names.listed[known:], self.limits.holdout)
        return numbers

    def restore(self, listed: list[str]) -> None:
        """People by number, from a checkpoint; "" stood for one who was forgotten."""
        self.names = Names(listed)
        self._make_room()
        self.held_out[: len(listed)] = is_held_out(listed, self.limits.holdout)

    def _make_room(self) -> None:
        known = room = len(self.pairs)
        while room < len(self.names):
            room *= 2
        if room == known:
            return
        for name in ("base", "residual", "pairs", "asked", "touched", "hour", "answers", "held_out"):
            column = getattr(self, name)
            grown = np.zeros((room, *column.shape[1:]), column.dtype)  # what is not used yet takes no memory
            grown[:known] = column
            setattr(self, name, grown)
        self.asked[known:] = NEVER

    def admit(self, answered: Ints, time: Ints, weight: Floats) -> NDArray[np.bool_]:
        """Which pairs, by who answered and when, are among the first of that person in that hour.

        A pair counts as much as it weighs, and as one at least: else who answers rarely explored covers alone would
        speak several times as loud as others.
        """
        if not len(answered):
            return np.zeros(0, bool)
        hour = time // HOUR
        order = np.lexsort((hour, answered))  # stable
        people, hours = answered[order], hour[order]
        counts = np.rint(HUNDREDTHS * np.maximum(weight[order], 1)).astype(np.int64)  # exact, however batches are cut
        first = np.concatenate([[True], (people[1:] != people[:-1]) | (hours[1:] != hours[:-1])])
        starts = np.flatnonzero(first)
        group = np.cumsum(first) - 1
        said = np.where(self.hour[people[starts]] == hours[starts], self.answers[people[starts]], 0)
        through = np.cumsum(counts)
        before = through - counts + (said - (through - counts)[starts])[group]
        ends = np.append(starts[1:], len(order)) - 1
        self.hour[people[ends]], self.answers[people[ends]] = hours[ends], before[ends] + counts[ends]
        admitted = np.empty(len(order), bool)
        admitted[order] = before < HUNDREDTHS * self.limits.pairs_per_hour
        return admitted

    def ask(self, numbers: Ints, time: int, lookup: Lookup) -> None:
        """See that these people have a vector no older than `REFRESH`, and a residual that has decayed until `time`."""
        people = np.unique(numbers)
        wanted = people[self.asked[people] < time - REFRESH]
        if len(wanted):
            self.base[wanted] = lookup([self.names.listed[number] for number in wanted.tolist()])
            self.asked[wanted] = time
            self._bound(wanted)
        # In steps of a thousandth: a float32 would not notice what a second forgets.
        due = people[(time - self.touched[people]) * 1000 >= self.limits.half_life]
        age = (time - self.touched[due]) / self.limits.half_life
        self.residual[due] *= np.exp2(-age).astype(np.float32)[:, None]
        self.touched[due] = time

    def vectors(self, numbers: Ints) -> Floats:
        """Imported embedding plus residual, [n, d]."""
        return self.base[numbers] + self.residual[numbers]

    def learn(
        self,
        head: Head,
        people: tuple[Ints, Ints],
        covers: tuple[Floats, Floats],
        weight: Floats,
        sides: tuple[Floats, Floats],
    ) -> None:
        """One step on pairs [n]. Weight 0 moves nobody.

        Args:
            people: winners and losers.
            covers: what each of them saw, less the mean of the item's covers.
            sides: weight of each one's choice.
        """
        (winner, loser), (chosen, rejected) = people, covers
        users, others = self.vectors(winner), self.vectors(loser)
        pull = np.float32(RATE) * weight * lean(margins(head, users, chosen, others, rejected))
        towards, away = chosen @ head.weight.T, rejected @ head.weight.T
        scale = np.float32(((towards**2).sum() + (away**2).sum()) / (2 * len(winner)))
        numbers = np.concatenate([winner, loser])
        if scale > 0:
            up, down = (pull * sides[0] / scale)[:, None] * towards, (pull * sides[1] / scale)[:, None] * away
            steps = np.concatenate([up, -down])
            if len(np.unique(numbers)) == len(numbers):
                self.residual[numbers] += steps
            else:  # somebody is there twice: eight times slower
                np.add.at(self.residual, numbers, steps)
        moved = numbers[np.tile(weight > 0, 2)]
        np.add.at(self.pairs, moved, 1)
        changed = np.unique(moved)
        self._bound(changed)
        self.dirty.update(changed.tolist())

    def _bound(self, numbers: Ints) -> None:
        size = np.linalg.norm(self.residual[numbers], axis=1)
        unit = np.linalg.norm(self.base[numbers], axis=1)
        # Nobody's vector is zero: the bound is taken as of a unit one.
        most = self.limits.bound * np.where(unit > 0, unit, 1)
        over = np.flatnonzero(size > most)
        if len(over):
            # A float's width under the bound, so that rounding never ends above it.
            shrink = most[over] / size[over] * (1 - 1e-6)
            self.residual[numbers[over]] *= shrink[:, None].astype(np.float32)

    def remember(self, number: int, cover: int, kind: int) -> None:
        """Clicks and likes go into a person's history, a dislike takes the cover out."""
        if kind in (CLICK, LIKE):
            self.history.add(number, cover)
        elif kind != DISLIKE or not self.history.drop(number, cover):
            return
        self.dirty_history.add(number)

    def erase(self, name: str) -> int | None:
        """Forget a person; the number that was theirs."""
        number = self.names.forget(name)
        if number is not None:
            self.base[number], self.residual[number], self.pairs[number] = 0, 0, 0
            self.asked[number], self.touched[number], self.hour[number], self.answers[number] = NEVER, 0, 0, 0
            self.held_out[number] = False
            self.history.forget(number)
            self.dirty.discard(number)
            self.dirty_history.discard(number)
        return number

    def move(self, dimension: int) -> None:
        """The space has changed: what was learned means nothing in the new one. Histories stay."""
        self.dimension = dimension
        self.base = np.zeros((len(self.pairs), dimension), np.float32)
        self.residual = np.zeros_like(self.base)
        self.pairs[:] = 0
        self.asked[:] = NEVER


def is_held_out(names: list[str], share: float) -> NDArray[np.bool_]:
    """By hash of the person's id: the same people for every learner, for ever."""
    held: NDArray[np.bool_] = keys_of(names)[:, 1] % 10_000 < round(share * 10_000)
    return held
