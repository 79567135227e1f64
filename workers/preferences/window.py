"""The last minutes of one partition: which events were seen, which impression a click answers, which covers met.

What comes out does not depend on how the stream was cut into batches: all that is decided about an event is decided as
of that event's place in the stream. The window's lower end moves in steps (`_epochs`), cut by watermark and offset, and
between two of them it stands still; rows are freed in their own time, which nobody can see from outside.

**Late.** The watermark is the greatest event time so far. An event older than it by more than `horizon` is late.

**Seen.** An event whose id is in the window is a duplicate. The window reaches back at least as far as events are not
late, so that no duplicate slips through, unless more than `most` events lie in it: then those are forgotten first.

**Couples.** The impressions of one item form a chain in stream order. An answered impression x is paired with its
neighbours y up to LAGS places away, before and after: x won for a click or like, y for a dislike. y may be another
person's. Three rules keep this sound, and all are easy to lose:

* *Fixed lags, not "the nearest with another cover"*: then the pair (x, y) arises from a click on x exactly where (y, x)
  arises from a click on y, so random clicks give no cover an edge, however often the policy shows it.
* *Whether y was answered too does not matter*: if it was, its own answer makes the opposite pair and the two cancel. To
  look would favour whichever had more time to be clicked. So P(x beats y) = rate_x / (rate_x + rate_y), the
  conditional likelihood of two Poisson rates, in which the item's appeal to everybody has gone.
* *Whether y showed the same cover does not matter*: among those that showed another one than x did, covers depend on
  what x showed, so no weight could make them independent of who looked. Only one person with one cover is left out.

Two people of one item differ in what they think of the *item*, and the policy showed them covers accordingly. So each
side carries the weight of its own choice propensity (1 on both sides for one person's pair), and a pair of two people
without a logged choice on both sides is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import compress, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.preferences.couples import NO_ANSWERS, NO_COUPLES, Answers, Couples
from workers.preferences.decode import CLICK, DISLIKE, DWELL, IMPRESSION, LIKE, Columns, keys_of
from workers.preferences.names import Ints, Names
from workers.preferences.propensity import Weights
from workers.preferences.table import Table

LAGS = 1
"""Neighbours on each side: up to two couples a click. More of them say little new (they share the click) and cost as
much; what a couple costs is the largest part of an event's time beside its decoding."""
KIND_WEIGHT = np.array([0, 1, 2, 2, 0], np.float32)
"""By kind: a like or dislike is said on purpose and counts twice."""
MOST_SHOWN = 60
"""Impressions of one person in the window beyond which further ones join no chain, by default: a person looks at a few
pages in ten minutes, a bot at a hundred, and would be everybody's neighbour."""
STRIDES = 60
"""The window's lower end moves when the watermark enters another sixtieth of the horizon, 10 s by default,"""
OFFSET_STRIDE = 16_384
"""or the offset another stride."""


@dataclass(slots=True)
class Counts:
    """What became of the events of a partition. Part of its state, so that it too survives."""

    events: int = 0
    bad: int = 0
    without_cover: int = 0
    late: int = 0
    duplicates: int = 0
    impressions: int = 0
    answers: int = 0
    unjoined: int = 0  # a click that names no impression, or one that never came, or a second one on the same
    mismatched: int = 0  # an answer by another user or to another cover than the impression it names
    couples: int = 0
    crowding: int = 0  # impressions of people who look at more than a person can
    unlogged: int = 0  # couples of two people without a logged choice on both sides
    erased: int = 0  # events of people who were erased

    def as_dict(self) -> dict[str, int]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


NAMED = 128
LEAST_ROOM = 32_768  # keys: more than a batch

# One row an accepted event. `link` is what an answer names and what an impression is named by.
_COLUMNS: dict[str, tuple[type, int]] = {
    "key": (np.uint64, 2),
    "link": (np.uint64, 2),
    "time": (np.int64, 0),
    "offset": (np.int64, 0),
    "user": (np.int32, 0),
    "item": (np.int32, 0),
    "cover": (np.int32, 0),
    "kind": (np.int8, 0),
    "answered": (np.uint8, 0),  # bit by kind; NAMED: `named` leads here
    "choice": (np.float32, 0),
    "position": (np.float32, 0),
    "before": (np.int64, 0),  # the impression of the same item before this one, -1: none
    "after": (np.int64, 0),
}
OPEN = ("row", "kind", "since", "last", "steps")


@dataclass(slots=True)
class Window:
    """State and rules. Times in µs; a row's number is its place among the accepted events of the partition."""

    horizon: int
    most: int = 2_000_000
    most_shown: int = MOST_SHOWN
    watermark: int = -(2**62)
    mark: int = -(2**62)  # the watermark and
    floor: int = -(2**62)  # the offset that bound the window in this epoch
    end: int = 0  # number of the next row
    base: int = 0  # number of the first row kept
    counts: Counts = field(default_factory=Counts)
    users: Names = field(default_factory=Names)
    items: Names = field(default_factory=Names)
    covers: Names = field(default_factory=Names)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    newest: Ints = field(default_factory=lambda: np.full(1024, -1, np.int64))  # by item: its last impression
    waiting: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # answers whose impression has not come
    open: dict[str, Ints] = field(default_factory=lambda: {name: np.empty(0, np.int64) for name in OPEN})
    seen: Table = field(default_factory=Table)
    named: Table = field(default_factory=Table)  # impressions known by another id than their event's
    _shown: Ints = field(default_factory=lambda: np.zeros(1024, np.int64))  # by user: at least their impressions held

    def __post_init__(self) -> None:
        if not self.columns:
            self.columns = _allocate(4096)

    # -- a batch ---------------------------------------------------------------------------------------------------

    def add(self, batch: Columns, weights: Weights) -> tuple[list[Couples], list[Answers]]:
        """Take a batch in.

        Returns:
            Couples and answers in stream order, in parts whose sizes mean nothing. Their numbers hold until the next
            call.
        """
        self._free()  # here alone: it numbers users anew, and what is returned names them by number
        couples: list[Couples] = []
        answers: list[Answers] = []
        high = np.maximum.accumulate(np.maximum(batch.time, self.watermark))
        for start, end in self._epochs(batch.offset, high):
            part = self._add(batch.span(start, end), weights.span(start, end), high[start:end])
            couples += [part[0]] if len(part[0]) else []
            answers += [part[1]] if len(part[1]) else []
        return couples, answers

    def _epochs(self, offset: Ints, high: Ints) -> list[tuple[int, int]]:
        """Where the window's lower end moves: when the watermark or the offset enters another stride."""
        if not len(offset):
            return []
        stride = max(1, self.horizon // STRIDES)
        steps = (np.diff(high // stride) != 0) | (np.diff(offset // OFFSET_STRIDE) != 0)
        cuts = [0, *(np.flatnonzero(steps) + 1).tolist(), len(offset)]
        return list(pairwise(cuts))

    def _add(self, batch: Columns, weights: Weights, high: Ints) -> tuple[Couples, Answers]:
        stride = max(1, self.horizon // STRIDES)
        self.watermark = int(high[-1])
        self.mark = self.watermark // stride * stride - self.horizon
        self.floor = int(batch.offset[0]) // OFFSET_STRIDE * OFFSET_STRIDE - self.most
        useful = batch.kind != DWELL
        if None in batch.cover:
            useful &= np.fromiter(map(bool, batch.cover), bool, len(batch))
        late = useful & (batch.time < high - self.horizon)
        self.counts.events += len(batch)
        self.counts.without_cover += int(np.count_nonzero(~useful))
        self.counts.late += int(np.count_nonzero(late))
        self._make_room(len(batch))
        rows = np.flatnonzero(useful & ~late)
        key = batch.key[rows]
        repeats = _repeats(key)
        known, slots = self.seen.find(key)
        repeats |= self._living(known) >= 0
        self.counts.duplicates += int(np.count_nonzero(repeats))
        rows, key, slots = rows[~repeats], key[~repeats], slots[~repeats]
        self._append(batch, rows, key, slots, weights)
        joined = self._join()
        couples = self._couple(joined)
        return couples, self._answers(joined)

    def _append(
        self,
        batch: Columns,
        rows: Ints,
        key: NDArray[np.uint64],
        slots: NDArray[np.intp],
        weights: Weights,
    ) -> None:
        n = len(rows)
        if not n:
            return
        taken = np.zeros(len(batch), bool)
        taken[rows] = True
        chosen = taken.tobytes()  # to iterate over bytes is faster than over a list

        def names(values: list[Any]) -> list[Any]:
            return values if n == len(batch) else list(compress(values, chosen))

        kind = batch.kind[rows]
        item = self.items.of(names(batch.item))
        cover = self.covers.of(names(batch.cover))
        link = key.copy()
        links = names(batch.impression)
        linked = list(compress(range(n), links))
        has_link = np.zeros(n, bool)
        has_link[linked] = True
        if linked:
            link[linked] = keys_of([name for name in links if name])
        # A like or dislike that names no impression is its own: the person saw what they judged.
        own = ((kind == LIKE) | (kind == DISLIKE)) & ~has_link
        shown = (kind == IMPRESSION) | own
        number = np.arange(self.end, self.end + n)
        span = slice(self.end - self.base, self.end - self.base + n)
        columns = self.columns
        columns["key"][span] = key
        columns["link"][span] = link
        columns["time"][span] = batch.time[rows]
        columns["offset"][span] = batch.offset[rows]
        columns["user"][span] = self.users.of(names(batch.user))
        columns["item"][span] = np.where(shown, item, -1)
        columns["cover"][span] = cover
        columns["kind"][span] = kind
        columns["answered"][span] = 0
        columns["choice"][span] = weights.choice[rows]
        columns["position"][span] = weights.position[rows]
        columns["before"][span] = -1
        columns["after"][span] = -1
        self.end += n
        self.seen.put(key, number, slots)
        renamed = np.flatnonzero((kind == IMPRESSION) & has_link & (link != key).any(axis=1))
        if len(renamed):
            renamed = renamed[~_repeats(link[renamed])]  # two impressions of one name: the first is meant
            fresh = self._living(self.named.get(link[renamed])) < 0
            self.named.put(link[renamed[fresh]], number[renamed[fresh]])
            self.columns["answered"][number[renamed[fresh]] - self.base] |= NAMED
        chained = np.flatnonzero(shown)
        chained = chained[self._is_seldom(number[0], number[chained])]
        self._chain(number[chained], item[chained])
        self.counts.crowding += int(np.count_nonzero(shown)) - len(chained)
        joinable = ((kind != IMPRESSION) & has_link) | own
        self.counts.impressions += int(np.count_nonzero(kind == IMPRESSION))
        self.counts.answers += int(np.count_nonzero(kind != IMPRESSION))
        self.counts.unjoined += int(np.count_nonzero((kind == CLICK) & ~has_link))
        self.waiting = np.concatenate([self.waiting, number[joinable]])

    def _is_seldom(self, before: int, rows: Ints) -> NDArray[np.bool_]:
        """Which of these impressions are among the first `most_shown` of their person, in a window that ends with each.

        Args:
            before: number of the first row of this part: those in front of it are counted as of this epoch.
        """
        user = self._column("user", rows)
        room = len(self.users) - len(self._shown)
        if room > 0:
            self._shown = np.concatenate([self._shown, np.zeros(max(room, len(self._shown)), np.int64)])
        np.add.at(self._shown, user, 1)
        if not len(rows) or self._shown[user].max() <= self.most_shown:
            return np.ones(len(rows), bool)
        held = int(before) - self.base
        columns = self.columns
        living = (columns["time"][:held] >= self.mark) & (columns["item"][:held] >= 0)
        living &= columns["offset"][:held] >= self.floor
        shown = np.bincount(columns["user"][:held][living], minlength=len(self.users))
        self._shown = shown + np.bincount(user, minlength=len(shown))
        order = np.argsort(user, kind="stable")
        ordered = user[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(rows) else rows
        rank = np.empty(len(rows), np.int64)
        lengths = np.diff(np.append(starts, len(rows)))
        rank[order] = np.arange(len(rows)) - np.repeat(starts, lengths)
        seldom: NDArray[np.bool_] = shown[user] + rank < self.most_shown
        return seldom

    def _chain(self, number: Ints, item: Ints) -> None:
        """Link each impression with the one of the same item before it."""
        if len(self.items) > len(self.newest):
            self.newest = np.concatenate([self.newest, np.full(len(self.items), -1, np.int64)])
        if not len(number):
            return
        # Radix sort where 16 bits hold the item: 8 ns an entry instead of 57.
        order = np.argsort(item.astype(np.uint16) if len(self.items) <= 2**16 else item, kind="stable")
        by_item, row = item[order], number[order]
        starts = np.concatenate([[True], by_item[1:] != by_item[:-1]])
        before = np.concatenate([[-1], row[:-1]])
        before[starts] = self.newest[by_item[starts]]
        before[before < self.base] = -1
        self.columns["before"][row - self.base] = before
        linked = before >= 0
        self.columns["after"][before[linked] - self.base] = row[linked]
        ends = np.concatenate([starts[1:], [True]])
        self.newest[by_item[ends]] = row[ends]

    # -- joining ---------------------------------------------------------------------------------------------------

    def _join(self) -> dict[str, Ints]:
        """Answers of which both sides are here: the answer's row, the impression's, the kind, the later row of both."""
        answer = self.waiting
        if not len(answer):
            return {name: np.empty(0, np.int64) for name in ("answer", "row", "kind", "at")}
        link, kind = self._column("link", answer), self._column("kind", answer).astype(np.int64)
        named, seen = self._living(self.named.get(link)), self._living(self.seen.get(link))
        # An id may name one impression and be the event id of another: the one that was there first is meant.
        sooner = np.maximum(named, answer) <= np.maximum(seen, answer)
        row = np.where((named >= self.base) & (sooner | (seen < self.base)), named, seen)
        row = np.where(self._column("item", answer) >= 0, answer, row)  # a like or dislike that is its own impression
        found = row >= self.base
        found[found] = self._column("item", row[found]) >= 0
        living = self.alive(answer)
        found &= living
        self.counts.unjoined += int(np.count_nonzero(~living))
        self.waiting = answer[living & ~found]
        at = np.maximum(answer, row)

        answer, row, kind, at = answer[found], row[found], kind[found], at[found]
        fits = (self._column("user", answer) == self._column("user", row)) & (
            self._column("cover", answer) == self._column("cover", row)
        )
        self.counts.mismatched += int(np.count_nonzero(~fits))
        answer, row, kind, at = answer[fits], row[fits], kind[fits], at[fits]
        order = np.lexsort((answer, at))
        answer, row, kind, at = answer[order], row[order], kind[order], at[order]
        # One answer of a kind an impression: the first.
        bit = (1 << kind).astype(np.uint8)
        again = (self._column("answered", row) & bit) != 0
        again |= _repeats_of(row * 8 + kind)
        self.counts.unjoined += int(np.count_nonzero(again))
        answer, row, kind, at, bit = answer[~again], row[~again], kind[~again], at[~again], bit[~again]
        np.bitwise_or.at(self.columns["answered"], row - self.base, bit)
        return {"answer": answer, "row": row, "kind": kind, "at": at}

    def _answers(self, joined: dict[str, Ints]) -> Answers:
        row = joined["row"]
        if not len(row):
            return NO_ANSWERS
        user, item, cover = (self._column(name, row).astype(np.int64) for name in ("user", "item", "cover"))
        return Answers(user, item, cover, joined["kind"], joined["at"])

    # -- couples ---------------------------------------------------------------------------------------------------

    def _couple(self, joined: dict[str, Ints]) -> Couples:
        made: list[tuple[Ints, ...]] = []  # (place, row, lag, kind, other)
        row, kind, at = joined["row"], joined["kind"], joined["at"]
        other = row
        for lag in range(1, LAGS + 1):
            other = np.where(other >= self.base, self._column("before", np.maximum(other, self.base)), -1)
            has = other >= self.base
            made.append((at[has], row[has], np.full(int(has.sum()), -lag), kind[has], other[has]))
        fresh = {"row": row, "kind": kind, "since": at, "last": row, "steps": np.zeros(len(row), np.int64)}
        going = {name: np.concatenate([self.open[name], fresh[name]]) for name in OPEN}
        for _ in range(LAGS):
            if not len(going["row"]):
                break
            after = self._column("after", going["last"])
            has = (after >= self.base) & (going["steps"] < LAGS)
            going["last"] = np.where(has, after, going["last"])
            going["steps"] = going["steps"] + has
            place = np.maximum(going["since"], going["last"])[has]
            made.append((place, going["row"][has], going["steps"][has], going["kind"][has], going["last"][has]))
        keep = (going["steps"] < LAGS) & self.alive(going["row"])
        self.open = {name: column[keep] for name, column in going.items()}
        place, row, lags, kind, other = (np.concatenate(parts) for parts in zip(*made, strict=True))
        if not len(place):
            return NO_COUPLES
        good = self.alive(row) & self.alive(other)
        one = self._column("user", row) == self._column("user", other)
        good &= ~one | (self._column("cover", row) != self._column("cover", other))
        logged = one | ((self._column("choice", row) > 0) & (self._column("choice", other) > 0))
        self.counts.unlogged += int(np.count_nonzero(good & ~logged))
        order = np.flatnonzero(good & logged)
        order = order[np.lexsort((lags[order], kind[order], row[order], place[order]))]
        row, kind, other, one, place = row[order], kind[order], other[order], one[order], place[order]
        self.counts.couples += len(order)
        lost = kind == DISLIKE
        winner, loser = np.where(lost, other, row), np.where(lost, row, other)
        return Couples(
            winner=self._column("user", winner).astype(np.int64),
            loser=self._column("user", loser).astype(np.int64),
            item=self._column("item", row).astype(np.int64),
            chosen=self._column("cover", winner).astype(np.int64),
            rejected=self._column("cover", loser).astype(np.int64),
            weight=KIND_WEIGHT[kind] * self._column("position", row),
            chosen_weight=np.where(one, np.float32(1), self._column("choice", winner)),
            rejected_weight=np.where(one, np.float32(1), self._column("choice", loser)),
            won=~lost,
            hash=self._column("key", row)[:, 1],
            time=np.full(len(order), self.mark + self.horizon),
            place=place,
        )

    # -- rows ------------------------------------------------------------------------------------------------------

    def _column(self, name: str, rows: Ints) -> NDArray[Any]:
        column: NDArray[Any] = self.columns[name][rows - self.base]
        return column

    def alive(self, rows: Ints) -> NDArray[np.bool_]:
        """Which rows are in the window of this epoch."""
        kept: NDArray[np.bool_] = (self._column("time", rows) >= self.mark) & (
            self._column("offset", rows) >= self.floor
        )
        return kept

    def erase(self, user: str) -> None:
        """Forget a person: their rows are dead at once and say nothing."""
        number = self.users.forget(user)
        if number is None:
            return
        held = self.end - self.base
        rows = np.flatnonzero(self.columns["user"][:held] == number)
        self.columns["time"][rows] = -(2**63)
        for name in ("key", "link", "answered"):
            self.columns[name][rows] = 0

    def restore(self, columns: dict[str, NDArray[Any]]) -> None:
        """Take rows `base` to `end` back from a checkpoint."""
        held = self.end - self.base
        self.columns = _allocate(max(4096, 2 * held))
        for name, column in columns.items():
            self.columns[name][:held] = column
        shown = self.columns["user"][:held][self.columns["item"][:held] >= 0]
        self._shown = np.bincount(shown, minlength=len(self.users)).astype(np.int64)
        self._rebuild_seen(0)
        self._rebuild_named(0)

    def _make_room(self, more: int) -> None:
        held = self.end - self.base
        size = len(self.columns["time"])
        if held + more > size:
            room = _allocate(max(2 * size, held + more))
            for name, column in self.columns.items():
                room[name][:held] = column[:held]
            self.columns = room
        if self.seen.crowded(more):
            self._rebuild_seen(more)
        if self.named.crowded(more):
            self._rebuild_named(more)

    def _free(self) -> None:
        """Give up dead rows at the front once they are a quarter of all that is held: so at most a third more rows are
        held than are alive, besides a batch."""
        held = self.end - self.base
        if held < 8192:
            return
        if self.alive(np.array([self.base + held // 4]))[0]:
            return
        alive = self.alive(np.arange(self.base, self.end))
        first = int(np.argmax(alive)) if alive.any() else held
        # What waits or goes on is alive by definition; whatever the flags say, its row stays.
        for numbers in (self.waiting, self.open["row"], self.open["last"]):
            if len(numbers):
                first = min(first, int(numbers.min()) - self.base)
        if first < held // 4:
            return
        for column in self.columns.values():
            column[: held - first] = column[first:held].copy()
        self.base += first
        self._forget_names()

    # A table is built anew from what lives, once it is crowded with what does not, with room for half as many more.
    # When that happens shows nowhere: a row that is dead counts as one that is not in.

    def _rebuild_seen(self, more: int) -> None:
        living = self._held_and_living()
        keys, rows = _last_of(self.columns["key"][living], self.base + living)
        self.seen.rebuild(keys, rows, room=max(LEAST_ROOM, more + len(rows) + len(rows) // 2))

    def _rebuild_named(self, more: int) -> None:
        living = self._held_and_living()
        named = living[(self.columns["answered"][living] & NAMED) > 0]
        keys, rows = _last_of(self.columns["link"][named], self.base + named)
        self.named.rebuild(keys, rows, room=max(LEAST_ROOM, more + len(rows) + len(rows) // 2))

    def _held_and_living(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.alive(np.arange(self.base, self.end)))

    def _living(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same, with -1 for rows that are given up or dead."""
        found = np.where(rows >= self.base, rows, -1)
        there = np.flatnonzero(found >= 0)
        found[there[~self.alive(found[there])]] = -1
        return found

    def _forget_names(self) -> None:
        """Users are numbered for the window only: those no longer in it lose their number."""
        held = self.end - self.base
        user = self.columns["user"][:held]
        if len(self.users) < 65_536:
            return
        is_there = np.zeros(len(self.users), bool)  # 50 times as fast as np.unique
        is_there[user] = True
        living = np.flatnonzero(is_there)
        if 2 * len(living) > len(self.users):
            return
        self.users = Names(self.users.listed[number] for number in living.tolist())
        self._shown = np.concatenate([self._shown, np.zeros(len(living), np.int64)])[living]
        self.columns["user"][:held] = np.searchsorted(living, user)


def _allocate(size: int) -> dict[str, NDArray[Any]]:
    return {name: np.zeros((size, width) if width else size, dtype) for name, (dtype, width) in _COLUMNS.items()}


def _repeats_of(values: Ints) -> NDArray[np.bool_]:
    """Which entries have an equal one before them."""
    repeats = np.ones(len(values), bool)
    repeats[np.unique(values, return_index=True)[1]] = False
    return repeats


def _repeats(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which keys [n, 2] have an equal one before them."""
    repeats = np.zeros(len(keys), bool)
    by_first = np.argsort(keys[:, 0])  # not stable, but 24 ns a key; the rest is for the few that meet
    first = keys[by_first, 0]
    met = np.flatnonzero(first[1:] == first[:-1])
    if len(met):
        rows = np.unique(np.concatenate([by_first[met], by_first[met + 1]]))
        order = np.lexsort((keys[rows, 1], keys[rows, 0]))  # stable: the first of equals stays first
        ordered = keys[rows[order]]
        repeats[rows[order[1:][(ordered[1:] == ordered[:-1]).all(axis=1)]]] = True
    return repeats


def _last_of(keys: NDArray[np.uint64], rows: Ints) -> tuple[NDArray[np.uint64], Ints]:
    """An id may come twice in a window that has forgotten the first; the later row is the one that counts."""
    again = _repeats(keys[::-1])[::-1]
    return keys[~again], rows[~again]
