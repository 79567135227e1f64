"""The one trainer of the shared weights W and b: messages of `preference-pairs` in, candidates for a release out.

Its state follows from partition 0 of that topic alone. A learner that was killed sends the same messages again; a
trainer that was killed reads them again: a sequence that was seen is dropped, so no pair counts twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icg.preference import Head
from workers.preferences.pairs import Floats, Pairs, lean, margins

Reals = NDArray[np.floating[Any]]

RATE = 0.5
"""Of a step, over the energy of what W multiplies: a logistic loss has a curvature of at most 1/4, so 4 is stable."""
SETTLE, FLOOR = 50, 0.3
"""The rate falls as 1/sqrt(1 + steps/SETTLE) to this share of it, from where it follows drift."""
DECAY = 1e-3
"""Pull back to the first head a step, so that chance does not add up: random clicks leave the head near its start."""
SMOOTH = 0.98
"""Of the average that serves; it begins as a plain mean, so that early releases are not mostly the start."""
HELD_OUT = 4096
"""Held-out pairs kept, the newest."""
ENOUGH = 50
"""Held-out pairs under which the pairs that were scored before they trained judge instead."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate may be released, and on what grounds. Losses are log losses a pair in nats."""

    accepted: bool
    pairs: int  # that the candidate has trained on, all in all
    judged: int  # pairs that judged
    by: str  # "held-out people" or "pairs not yet trained on"
    loss_before: float
    loss_after: float
    worst: float  # upper end of the one-sided 95 % interval of after − before
    margin: float
    auc_before: float  # share of judged pairs that the head orders as the person did
    auc_after: float

    def metrics(self) -> dict[str, float]:
        return {
            "pairs": self.pairs,
            "judged_pairs": self.judged,
            "log_loss_before": self.loss_before,
            "log_loss_after": self.loss_after,
            "log_loss_difference_upper": self.worst,
            "margin": self.margin,
            "auc_before": self.auc_before,
            "auc_after": self.auc_after,
        }

    def __str__(self) -> str:
        return (
            f"log loss {self.loss_before:.4f} -> {self.loss_after:.4f} (difference at most {self.worst:+.4f}, margin "
            f"{self.margin:g}), AUC {self.auc_before:.3f} -> {self.auc_after:.3f} on {self.judged} {self.by}"
        )


@dataclass(slots=True)
class Held:
    """A ring of held-out pairs."""

    dimension: int
    total: int = 0
    users: Floats = field(init=False)
    others: Floats = field(init=False)
    chosen: Floats = field(init=False)
    rejected: Floats = field(init=False)
    weights: Floats = field(init=False)

    def __post_init__(self) -> None:
        shape = (HELD_OUT, self.dimension)
        self.users, self.others = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.chosen, self.rejected = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.weights = np.zeros(HELD_OUT, np.float32)

    def __len__(self) -> int:
        return min(self.total, HELD_OUT)

    def add(self, pairs: Pairs) -> None:
        rows = np.flatnonzero(pairs.held_out)
        at = (self.total + np.arange(len(rows))) % HELD_OUT
        for mine, theirs in (
            (self.users, pairs.users),
            (self.others, pairs.others),
            (self.chosen, pairs.chosen),
            (self.rejected, pairs.rejected),
            (self.weights, pairs.weights),
        ):
            mine[at] = theirs[rows]
        self.total += len(rows)

    def margins(self, head: Head) -> Floats:
        n = len(self)
        return margins(head, self.users[:n], self.chosen[:n], self.others[:n], self.rejected[:n])


@dataclass(slots=True)
class Trainer:
    """State of the trainer. `offset` is the next of the topic's partition 0 to read."""

    start: Head  # what DECAY pulls to
    head: Head
    average: Head
    offset: int = 0
    steps: int = 0
    pairs: int = 0  # trained on
    since: int = 0  # trained on since the last verdict
    repeated: int = 0  # messages seen before
    other_space: int = 0  # messages
    seen: dict[int, int] = field(default_factory=dict)  # source partition -> last sequence
    held: Held = field(init=False)
    fresh: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    """Of each step since the last verdict, scored before it: weight, loss of the released head and of the average, and
    the same two as shares of pairs put in order."""

    def __post_init__(self) -> None:
        self.held = Held(self.head.dimension)

    @classmethod
    def of(cls, head: Head) -> Trainer:
        """Begin where a released head stands."""
        return cls(head.copy(), head.copy(), head.copy())

    def take(self, pairs: Pairs, released: Head) -> bool:
        """One message. False: seen before, or of another space."""
        if pairs.sequence <= self.seen.get(pairs.partition, -1):
            self.repeated += 1
            return False
        self.seen[pairs.partition] = pairs.sequence
        if pairs.space != self.head.space or pairs.users.shape[1] != self.head.dimension:
            self.other_space += 1
            return False
        self.held.add(pairs)
        weight = np.where(pairs.held_out, np.float32(0), pairs.weights)
        if weight.sum() > 0:
            self._score(pairs, weight, released)
            self._step(pairs, weight)
            trained = int(np.count_nonzero(weight))
            self.pairs += trained
            self.since += trained
        return True

    def _score(self, pairs: Pairs, weight: Floats, released: Head) -> None:
        total = float(weight.sum())
        share = weight / total
        before, after = (
            margins(head, pairs.users, pairs.chosen, pairs.others, pairs.rejected) for head in (released, self.average)
        )
        loss = [float(share @ np.logaddexp(0, -margin)) for margin in (before, after)]
        order = [float(share @ _ordered(margin)) for margin in (before, after)]
        self.fresh.append((total, loss[0], loss[1], order[0], order[1]))

    def _step(self, pairs: Pairs, weight: Floats) -> None:
        head = self.head
        margin = margins(head, pairs.users, pairs.chosen, pairs.others, pairs.rejected)
        share = weight / weight.sum()
        pull = (share * lean(margin))[:, None]
        # |∂margin/∂W|² <= 2 (|u|²|c|² + |o|²|r|²): what a step means does not depend on the scale of the vectors.
        size = [(vectors**2).sum(1) for vectors in (pairs.users, pairs.chosen, pairs.others, pairs.rejected)]
        energy = float(share @ (size[0] * size[1] + size[2] * size[3])) + 1e-12
        up = (pull * pairs.users).T @ pairs.chosen - (pull * pairs.others).T @ pairs.rejected
        rate = RATE * max(FLOOR, (1 + self.steps / SETTLE) ** -0.5)
        head.weight += np.float32(rate / energy) * up + np.float32(DECAY) * (self.start.weight - head.weight)
        spread = float(share @ ((pairs.chosen - pairs.rejected) ** 2).sum(1)) + 1e-12
        head.bias += np.float32(rate / max(spread, energy)) * (pull * (pairs.chosen - pairs.rejected)).sum(0)
        head.bias += np.float32(DECAY) * (self.start.bias - head.bias)
        self.steps += 1
        keep = np.float32(min(SMOOTH, self.steps / (self.steps + 1)))
        self.average.weight = keep * self.average.weight + (1 - keep) * head.weight
        self.average.bias = keep * self.average.bias + (1 - keep) * head.bias

    def judge(self, released: Head, margin: float) -> Verdict:
        """Is the average not worse than what is released, by more than `margin` nats a pair? Starts a new count."""
        grounds = self._by_people if len(self.held) >= ENOUGH else self._by_order
        verdict = grounds(released, margin)
        self.since = 0
        self.fresh.clear()
        return verdict

    def _by_people(self, released: Head, margin: float) -> Verdict:
        before, after = self.held.margins(released), self.held.margins(self.average)
        weight = self.held.weights[: len(self.held)]
        loss_before, loss_after = np.logaddexp(0, -before), np.logaddexp(0, -after)
        auc = [float(np.average(_ordered(values), weights=weight)) for values in (before, after)]
        return self._verdict(loss_before, loss_after, weight, auc, len(self.held), "pairs of held-out people", margin)

    def _by_order(self, released: Head, margin: float) -> Verdict:
        fresh = np.array(self.fresh, np.float64).reshape(-1, 5)
        auc = [float(np.average(fresh[:, column], weights=fresh[:, 0])) for column in (3, 4)]
        return self._verdict(fresh[:, 1], fresh[:, 2], fresh[:, 0], auc, self.since, "pairs not yet trained on", margin)

    def _verdict(
        self, before: Reals, after: Reals, weight: Reals, auc: list[float], judged: int, by: str, margin: float
    ) -> Verdict:
        share = weight / weight.sum()
        worse = (after - before).astype(np.float64)
        mean = float(share @ worse)
        # Of a weighted mean; where the units are messages their pairs count as one.
        error = float(np.sqrt((share**2) @ (worse - mean) ** 2))
        worst = mean + 1.645 * error
        finite = np.isfinite(self.average.weight).all() and np.isfinite(self.average.bias).all()
        return Verdict(
            accepted=bool(finite and worst <= margin),
            pairs=self.pairs,
            judged=judged,
            by=by,
            loss_before=float(share @ before),
            loss_after=float(share @ after),
            worst=worst,
            margin=margin,
            auc_before=auc[0],
            auc_after=auc[1],
        )


def _ordered(margin: Floats) -> Floats:
    """1 where the head puts the pair in the person's order, a half where it cannot tell."""
    return np.where(margin > 0, np.float32(1), np.where(margin == 0, np.float32(0.5), np.float32(0)))
