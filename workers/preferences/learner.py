"""One partition's learner: columns in, pairs out; tastes learned on the way. No I/O of its own.

Everything here belongs to the partition and follows from its messages alone, however they were batched: the window's
rules are cut by offset and watermark, the steps by the number of pairs. What comes from outside (a new head, a sidecar
that came late) is taken in only by `adopt` and `retry`, and the caller writes the state down before going on, so a
replay finds it at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from icg.preference import Head
from workers.preferences.centres import Centres
from workers.preferences.couples import Answers, Couples
from workers.preferences.decode import Columns
from workers.preferences.erased import Erased
from workers.preferences.names import Ints
from workers.preferences.pairs import BATCH, Floats, Pairs, Rows
from workers.preferences.propensity import Weights
from workers.preferences.sample import Budget, drawn
from workers.preferences.tastes import Tastes
from workers.preferences.window import Window

MOST_PENDING = 100_000
"""Couples that wait for a cover's sidecar; a cover that never was would otherwise fill the memory."""
ASKED_AGAIN = 512
"""Pairs whose covers are asked for again at once: a second of S3 at worst, while nothing else is learned."""


QUEUED = ["winner", "loser", "chosen", "rejected", "weight", "chosen_weight", "rejected_weight", "hash", "time"]


class OtherSpace:
    """Stands for the embedding of a cover that is of another space than the learner's."""


class Sources(Protocol):
    """Where vectors come from. Both calls are retried until they have an answer."""

    def covers(self, wanted: Sequence[tuple[str, str]], space: str) -> list[Floats | OtherSpace | None]:
        """Embeddings of (item_id, cover_id); None where there is no sidecar (yet)."""
        ...

    def people(self, user_ids: list[str], space: str, dimension: int) -> Floats:
        """[n, dimension]: the imported embedding, else the segment's vector, else zeros."""
        ...


@dataclass(slots=True)
class Queue:
    """Couples as columns, first in first out. People are `Tastes`' numbers, covers `item << 32 | cover`."""

    winner: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    loser: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    chosen: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    rejected: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    weight: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    chosen_weight: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    rejected_weight: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    hash: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    time: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    def columns(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in QUEUED}

    def __len__(self) -> int:
        return len(self.winner)

    def take(self, rows: NDArray[np.bool_] | slice) -> Queue:
        return Queue(**{name: column[rows] for name, column in self.columns().items()})

    def __add__(self, more: Queue) -> Queue:
        other = more.columns()
        return Queue(**{name: np.concatenate([column, other[name]]) for name, column in self.columns().items()})


@dataclass(slots=True)
class Learner:
    """State of one partition. `offset` is the next to read."""

    partition: int
    head: Head
    release: int
    window: Window
    tastes: Tastes
    budget: Budget
    offset: int = 0
    sequence: int = 0  # of the next message of pairs
    cut_offset: int = 0  # where the last scheduled checkpoint was, and
    cut_time: int = 0  # the watermark there
    queue: Queue = field(default_factory=Queue)
    pending: Queue = field(default_factory=Queue)
    outgoing: Rows = field(init=False)  # pairs for the trainer, until they fill a message
    centres: Centres = field(init=False)
    erased: Erased = field(default_factory=Erased)
    other_space: int = 0
    pending_dropped: int = 0
    bad_tokens: int = 0
    capped: int = 0  # couples beyond a person's hourly share
    sampled: int = 0  # pairs sent to the trainer
    _known: dict[int, int] = field(default_factory=dict)  # cover -> row of _embeddings, ABSENT or OTHER
    _embeddings: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    _stored: int = 0

    def __post_init__(self) -> None:
        self.outgoing = Rows.empty(0, self.head.dimension)
        self.centres = Centres(self.head.dimension)

    def take(self, batch: Columns, weights: Weights, sources: Sources) -> list[Pairs]:
        """Learn from a batch whose first offset is at or after `offset`; the pairs that are now complete.

        Raises:
            ValueError: the batch goes back, so an event would count twice.
        """
        if not len(batch):
            return []
        if batch.offset[0] < self.offset:
            raise ValueError(f"partition {self.partition}: offset {batch.offset[0]} after {self.offset - 1}")
        self.offset = int(batch.offset[-1]) + 1
        self.bad_tokens += int(np.count_nonzero(weights.bad))
        kept = self.erased.keep(batch)
        if kept is not None:
            self.window.counts.erased += int(np.count_nonzero(~kept))
            rows = np.flatnonzero(kept)
            batch, weights = batch.take(rows), weights.take(rows)
        couples, answers = self.window.add(batch, weights)
        self._number(couples, answers)
        for part in answers:
            self._remember(part)
        made: list[Pairs] = []
        for couple in couples:
            self._couple(couple, sources)
            made += self._steps(sources)
        return made

    def skip(self, offset: int) -> None:
        """Go on at `offset`: what lies before held nothing to learn (bad events, a gap of the log)."""
        self.offset = max(self.offset, offset)

    def _number(self, couples: Sequence[Couples], answers: Sequence[Answers]) -> None:
        """Give people their numbers in the stream's order: the trainer knows them by these, so they have to be the same
        however the stream is cut, and whoever reads it again."""
        if not (couples or answers):
            return
        users = [
            *(part.user for part in answers),
            *(part.winner for part in couples),
            *(part.loser for part in couples),
        ]
        places = [*(2 * part.place for part in answers), *(2 * part.place + 1 for part in (*couples, *couples))]
        ordered = np.concatenate(users)[np.argsort(np.concatenate(places), kind="stable")]
        listed = self.window.users.listed
        self.tastes.numbers([listed[user] for user in ordered.tolist()])

    def _remember(self, answers: Answers) -> None:
        window, tastes = self.window, self.tastes
        users = tastes.numbers([window.users.listed[user] for user in answers.user.tolist()])
        covers = (answers.item << 32 | answers.cover).tolist()
        for user, cover, kind in zip(users.tolist(), covers, answers.kind.tolist(), strict=True):
            tastes.remember(user, cover, kind)

    def liked(self, person: int) -> list[tuple[str, str]]:
        """Item and cover ids that a person liked, the newest last."""
        items, covers = self.window.items.listed, self.window.covers.listed
        return [(items[code >> 32], covers[code & 0xFFFFFFFF]) for code in self.tastes.history.of(person)]

    def _couple(self, couples: Couples, sources: Sources) -> None:
        listed = self.window.users.listed
        winner = self.tastes.numbers([listed[user] for user in couples.winner.tolist()])
        loser = self.tastes.numbers([listed[user] for user in couples.loser.tolist()])
        item = couples.item << 32
        queue = Queue(
            winner,
            loser,
            item | couples.chosen,
            item | couples.rejected,
            couples.weight,
            couples.chosen_weight,
            couples.rejected_weight,
            couples.hash,
            couples.time,
        )
        loudest: Floats = couples.weight * np.maximum(couples.chosen_weight, couples.rejected_weight)
        admitted = self.tastes.admit(np.where(couples.won, winner, loser), couples.time, loudest)
        self.capped += len(queue) - int(np.count_nonzero(admitted))
        self._sort_in(queue if admitted.all() else queue.take(admitted), sources)

    def _sort_in(self, queue: Queue, sources: Sources) -> None:
        """Known covers to the queue, missing ones to pending, those of another space away."""
        self._learn_covers(np.concatenate([queue.chosen, queue.rejected]), sources)
        chosen, rejected = self._rows(queue.chosen), self._rows(queue.rejected)
        other = (chosen == OTHER) | (rejected == OTHER)
        absent = ~other & ((chosen == ABSENT) | (rejected == ABSENT))
        self.other_space += int(np.count_nonzero(other))
        if absent.any():
            self.pending += queue.take(absent)
            surplus = len(self.pending) - MOST_PENDING
            if surplus > 0:
                self.pending_dropped += surplus
                self.pending = self.pending.take(slice(surplus, None))
        self.queue += queue.take(~other & ~absent)

    def _rows(self, covers: Ints) -> Ints:
        return np.fromiter(map(self._known.__getitem__, covers.tolist()), np.int64, len(covers))

    def _learn_covers(self, covers: Ints, sources: Sources, again: bool = False) -> None:
        wanted = [code for code in np.unique(covers).tolist() if code not in self._known or again]
        if not wanted:
            return
        window = self.window
        names = [(window.items.listed[code >> 32], window.covers.listed[code & 0xFFFFFFFF]) for code in wanted]
        for code, found in zip(wanted, sources.covers(names, self.head.space), strict=True):
            if found is None:
                self._known[code] = ABSENT
            elif isinstance(found, OtherSpace) or found.shape != (self.head.dimension,):
                self._known[code] = OTHER
            else:
                self._known[code] = self._store(found)

    def _store(self, embedding: Floats) -> int:
        row = self._stored
        if row == len(self._embeddings):
            # By a quarter, not to twice: a cover is 4 d bytes, and there are tens of thousands.
            grown = np.zeros((max(1024, row + row // 4), self.head.dimension), np.float32)
            if row:
                grown[:row] = self._embeddings
            self._embeddings = grown
        self._embeddings[row] = embedding
        self._stored += 1
        return row

    def _steps(self, sources: Sources) -> list[Pairs]:
        """One step for every `BATCH` pairs of the queue."""
        whole = len(self.queue) // BATCH * BATCH
        for start in range(0, whole, BATCH):
            self._step(self.queue.take(slice(start, start + BATCH)), sources)
        if whole:
            self.queue = self.queue.take(slice(whole, None))
        full = len(self.outgoing) // BATCH * BATCH
        made = [self._message(self.outgoing.take(slice(start, start + BATCH))) for start in range(0, full, BATCH)]
        if full:
            self.outgoing = self.outgoing.take(slice(full, None))
        return made

    def _message(self, rows: Rows, forget: tuple[int, ...] = ()) -> Pairs:
        self.sequence += 1
        return Pairs(self.sequence - 1, self.partition, self.head.space, rows, forget)

    def _step(self, queue: Queue, sources: Sources) -> None:
        """Tastes learn from these pairs; a sample of them is laid out for the trainer as they were before that."""
        tastes, space = self.tastes, self.head.space
        time = int(queue.time.max())
        people = np.concatenate([queue.winner, queue.loser])
        tastes.ask(people, time, lambda names: sources.people(names, space, self.head.dimension))
        seen = self._embeddings[self._rows(np.concatenate([queue.chosen, queue.rejected]))]
        self.centres.add(np.concatenate([queue.chosen, queue.rejected]), seen)
        items = self.centres.of(queue.chosen >> 32)
        chosen, rejected = seen[: len(queue)] - items, seen[len(queue) :] - items
        held_out = np.where(tastes.held_out[queue.winner], 1, np.where(tastes.held_out[queue.loser], 2, 0))
        importance: Floats = queue.weight * (queue.chosen_weight + queue.rejected_weight) * np.float32(0.5)
        chance = self.budget.chances(importance, time)
        sent = np.flatnonzero(drawn(queue.hash, chance))
        if len(sent):
            self.budget.spend(len(sent))
            self.sampled += len(sent)
            winner, loser = queue.winner[sent], queue.loser[sent]
            self.outgoing += Rows(
                users=tastes.vectors(winner),
                others=tastes.vectors(loser),
                chosen=chosen[sent],
                rejected=rejected[sent],
                items=items[sent],
                weights=(queue.weight[sent] / chance[sent]).astype(np.float32),
                chosen_weights=queue.chosen_weight[sent],
                rejected_weights=queue.rejected_weight[sent],
                winners=winner,
                losers=loser,
                held_out=held_out[sent],
            )
        trains = np.where(held_out > 0, np.float32(0), queue.weight)
        sides = queue.chosen_weight, queue.rejected_weight
        tastes.learn(self.head, (queue.winner, queue.loser), (chosen, rejected), trains, sides)

    # -- what comes from outside: the caller writes a checkpoint before it goes on ---------------------------------

    def adopt(self, head: Head, release: int) -> None:
        """Learn tastes under another released head. In another space all that was learned is given up."""
        if head.space != self.head.space:
            self.other_space += len(self.queue) + len(self.pending)
            self.queue, self.pending = Queue(), Queue()
            self.tastes.move(head.dimension)
            self._known, self._stored = {}, 0
            self._embeddings = np.empty((0, head.dimension), np.float32)
            self.outgoing, self.centres = Rows.empty(0, head.dimension), Centres(head.dimension)
        self.head, self.release = head, release

    def erase(self, user: str, until: int) -> list[Pairs]:
        """Forget a person, and drop their events until the watermark passes `until`; a message that makes the trainer
        forget them too."""
        self.erased.add(user, until)
        self.window.erase(user)
        number = self.tastes.erase(user)
        if number is None:
            return []
        self.queue = self.queue.take((self.queue.winner != number) & (self.queue.loser != number))
        self.pending = self.pending.take((self.pending.winner != number) & (self.pending.loser != number))
        self.outgoing = self.outgoing.take((self.outgoing.winners != number) & (self.outgoing.losers != number))
        return [self._message(Rows.empty(0, self.head.dimension), (number,))]

    def retry(self, sources: Sources) -> int:
        """Ask again for covers that were missing, those of the `ASKED_AGAIN` pairs that waited longest since they were
        last asked for; how many pairs need wait no longer."""
        waiting = self.pending.take(slice(0, ASKED_AGAIN))
        if not len(waiting):
            return 0
        missing = np.concatenate([waiting.chosen, waiting.rejected])
        missing = missing[self._rows_or_absent(missing) == ABSENT]
        self._learn_covers(missing, sources, again=True)
        self.pending = self.pending.take(slice(ASKED_AGAIN, None))
        before = len(self.queue)
        self._sort_in(waiting, sources)  # what is still missing goes to the end
        return len(self.queue) - before

    def resume(self, sources: Sources) -> None:
        """After a checkpoint was read: fetch the covers of the pairs that were waiting for their turn."""
        queue, self.queue = self.queue, Queue()
        self._sort_in(queue, sources)

    def _rows_or_absent(self, covers: Ints) -> Ints:
        return np.array([self._known.get(code, ABSENT) for code in covers.tolist()], np.int64)

    # -- where to write it down ------------------------------------------------------------------------------------

    def cut(self, batch: Columns, events: int, microseconds: int) -> int | None:
        """The row of the batch before which a checkpoint is due, if any: a matter of offsets and event time alone.

        Due at every multiple of `events`; and after `microseconds` of event time where the stream is slow: with
        at least a fiftieth and at most a twentieth of `events` since the last one, so that a replay at full speed
        does not write one after the other.
        """
        kept = self.erased.keep(batch)
        if kept is not None:
            batch = batch.take(np.flatnonzero(kept))  # their time counts for nothing
        if not len(batch):
            return None
        since = batch.offset - self.cut_offset
        high = np.maximum.accumulate(np.maximum(batch.time, self.window.watermark))
        due = batch.offset // events != self.cut_offset // events
        due |= (high - self.cut_time >= microseconds) & (since >= events // 50) & (since <= events // 20)
        rows = np.flatnonzero(due)
        if not len(rows):
            return None
        row = int(rows[0])
        self.cut_offset, self.cut_time = int(batch.offset[row]), int(high[row])
        return row if kept is None else int(np.flatnonzero(kept)[row])


ABSENT, OTHER = -1, -2
"""In place of an embedding's row."""
