"""The one trainer of the shared weights W and b: messages of `preference-pairs` in, candidates for a release out.

Its state follows from partition 0 of that topic alone. A learner that was killed sends the same messages again; a
trainer that was killed reads them again: a sequence that was seen is dropped, so no pair counts twice.

The pair's model is in `pairs`. Beside W and b the trainer fits V, what people think of an item whatever its cover, so
that W has not to explain it; V is released to nobody. Each side of a pair moves W with the weight of its own choice
propensity: where W is 0 and V wrong, the step still has mean 0, because weighted covers less their mean are independent
of who looked (the argument of action-centred bandits: Greenewald et al. 2017).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from icg.preference import Head
from workers.preferences.drift import Drift
from workers.preferences.judging import Margins, Scored, Verdict, judge
from workers.preferences.pairs import BATCH, Floats, Pairs, Rows, interest, lean, margins_of
from workers.preferences.store import HELD_OUT, REPLAYED, Kept

RATE = 0.5
"""Of a step, over the energy of what W multiplies: a logistic loss has a curvature of at most 1/4, so 4 is stable."""
SETTLE, FLOOR = 50, 0.3
"""The rate falls as 1/sqrt(1 + steps/SETTLE) to this share of it, from where it follows drift."""
DECAY = 1e-3
"""Pull back to the first head a step, so that chance does not add up: random clicks leave the head near its start."""
SMOOTH = 0.98
"""Of the average that serves; it begins as a plain mean, so that early releases are not mostly the start."""
ENOUGH, ENOUGH_PEOPLE = 100, 20
"""Held-out pairs, and people, under which the pairs that were scored before they trained judge instead."""
LOUDEST = 20.0
"""A pair's weight over the usual one is clipped here: a step must stay stable."""
MOST_JUDGED = 10.0
"""The product of a judged pair's two choice weights is clipped here."""


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
    usual: float = 0.0  # weight of a pair, a moving mean
    seen: dict[int, int] = field(default_factory=dict)  # source partition -> last sequence
    interest: Floats = field(init=False)  # V
    held: Kept = field(init=False)
    replay: Kept = field(init=False)
    drift: Drift = field(init=False)
    fresh: list[Scored] = field(default_factory=list)
    """Pairs since the last verdict, each scored before it trained."""

    def __post_init__(self) -> None:
        d = self.head.dimension
        self.interest = np.zeros((d, d), np.float32)
        self.held, self.replay, self.drift = Kept(d, HELD_OUT), Kept(d, REPLAYED), Drift(d)

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
        if pairs.forget:
            self.held.forget(pairs.partition, pairs.forget)
            self.replay.forget(pairs.partition, pairs.forget)
        rows = pairs.rows
        if not len(rows):
            return True
        if pairs.space != self.head.space or rows.users.shape[1] != self.head.dimension:
            self.other_space += 1
            return False
        judges = np.flatnonzero(rows.held_out > 0)
        if len(judges):
            self.held.add(rows.take(judges), pairs.partition)
        rows = rows.take(np.flatnonzero((rows.held_out == 0) & (rows.weights > 0)))
        if len(rows):
            people = (pairs.partition << 32) | rows.winners
            scored = self._scored(rows, people, released)
            self.fresh.append(scored)
            self.drift.add(rows.users, scored.covers_before.astype(np.float32))
            self._train(rows, pairs.partition)
            self.pairs += len(rows)
            self.since += len(rows)
        return True

    def _scored(self, rows: Rows, people: np.ndarray[tuple[int], np.dtype[np.int64]], released: Head) -> Scored:
        before, after, item = margins_of(released, rows), margins_of(self.average, rows), interest(self.interest, rows)
        weight = rows.weights * np.minimum(rows.chosen_weights * rows.rejected_weights, np.float32(MOST_JUDGED))
        return Scored(before + item, after + item, before, after, weight, people)

    def _train(self, rows: Rows, partition: int) -> None:
        """One step on new pairs and as many old ones."""
        random = np.random.default_rng([self.steps, 5])  # nothing to write down: the step's number is the state
        batch = rows
        if len(self.replay) >= 4 * BATCH:
            batch = rows + self.replay.rows.take(random.integers(len(self.replay), size=len(rows)))
        self.replay.sample(rows, partition, random)
        self._step(batch)

    def _step(self, rows: Rows) -> None:
        head, n = self.head, len(rows)
        weight = float((rows.weights * (rows.chosen_weights + rows.rejected_weights)).mean() / 2)
        # A scale from before this batch: to divide by the batch's own would let pairs of small weight speak up where
        # they are among themselves.
        self.usual = self.usual or weight
        scale = max(self.usual, 1e-6)
        self.usual += 0.05 * (weight - self.usual)
        loudest = np.float32(LOUDEST * scale)
        pull = lean(margins_of(head, rows) + interest(self.interest, rows)) / np.float32(n * scale)
        towards = (pull * np.minimum(rows.weights * rows.chosen_weights, loudest))[:, None]
        away = (pull * np.minimum(rows.weights * rows.rejected_weights, loudest))[:, None]
        # |∂margin/∂W|² <= 2 (|u|²|c|² + |o|²|r|²): what a step means does not depend on the scale of the vectors.
        size = [(each**2).sum(1) for each in (rows.users, rows.chosen, rows.others, rows.rejected)]
        energy = float((size[0] * size[1] + size[2] * size[3]).mean()) + 1e-12
        spread = float((size[1] + size[3]).mean()) + 1e-12
        rate = RATE * max(FLOOR, (1 + self.steps / SETTLE) ** -0.5)
        up = (towards * rows.users).T @ rows.chosen - (away * rows.others).T @ rows.rejected
        head.weight += np.float32(rate / energy) * up + np.float32(DECAY) * (self.start.weight - head.weight)
        bias = (towards * rows.chosen - away * rows.rejected).sum(0)
        head.bias += np.float32(rate / spread) * bias  # its own energy: with long vectors W's would hold b still
        head.bias += np.float32(DECAY) * (self.start.bias - head.bias)
        self._step_interest(rows, pull * np.minimum(rows.weights, loudest), rate)
        self.steps += 1
        keep = np.float32(min(SMOOTH, self.steps / (self.steps + 1)))
        self.average.weight = keep * self.average.weight + (1 - keep) * head.weight
        self.average.bias = keep * self.average.bias + (1 - keep) * head.bias

    def _step_interest(self, rows: Rows, pull: Floats, rate: float) -> None:
        apart = rows.users - rows.others
        energy = float(((apart**2).sum(1) * (rows.items**2).sum(1)).mean()) + 1e-12
        up = (pull[:, None] * apart).T @ rows.items
        self.interest += np.float32(rate / energy) * up - np.float32(DECAY) * self.interest

    def judge(self, released: Head, margins: Margins) -> Verdict:
        """Is the average not inferior to what is released, by more than the margins? Starts a new count."""
        judges = self.held.judges()
        if len(judges) >= ENOUGH and len(np.unique(judges)) >= ENOUGH_PEOPLE:
            scored, by = self._scored(self.held.held(), judges, released), "pairs of held-out people"
        else:
            scored = Scored.of(np.concatenate([each.columns() for each in self.fresh]))
            by = "pairs not yet trained on"
        finite = bool(np.isfinite(self.average.weight).all() and np.isfinite(self.average.bias).all())
        verdict = judge(scored, by, margins, pairs=self.pairs, finite=finite)
        self.since = 0
        self.fresh.clear()
        return verdict
