"""Which offset of each partition has to come next, so that nothing is acked over a message that never came.

Around a rebalance Faust can hide a message: it lets pass what a stopped stream throws away, and takes for read already
what is delivered again. It also commits over a gap of one offset. So the agent looks itself. Pure bookkeeping.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from workers.covers.acks import Partition


class Arrival(Enum):
    NEXT = auto()
    """Handle it."""
    KNOWN = auto()
    """Leave it: it is in hand already, or it will come again behind what is missing."""
    GAP = auto()
    """Something before it is missing: ask for `Arrivals.next` again."""


class Arrivals:
    """Lives on one event loop; `nothing` alone may be called from another thread."""

    def __init__(self) -> None:
        self._next: dict[Partition, int] = {}
        self._given: dict[Partition, int] = {}  # the last one that was NEXT
        self._done: dict[Partition, int] = {}  # up to where all is finished, as far as `after` was asked
        self._came: dict[Partition, int] = {}  # instead of the next one
        self._holes: dict[Partition, dict[int, int]] = {}  # from an offset to the next one that a message can have

    def begin(self, partition: Partition, offset: int | None) -> None:
        """Delivery begins (again) at this offset; None where the group has none, then with whatever comes first."""
        for known in (self._given, self._done, self._came, self._holes, self._next):
            known.pop(partition, None)
        if offset is not None:
            self._next[partition] = self._done[partition] = offset

    def again(self, partition: Partition) -> None:
        """What is awaited was asked for, or could not be: whatever comes instead is a gap anew."""
        self._came.pop(partition, None)

    def forget(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            self.begin(partition, None)

    def nothing(self, partition: Partition, start: int, end: int) -> None:
        """The broker was asked for `start`, and what it has next is `end`: transaction markers, what was aborted, what
        was deleted. If this comes too late it is as if it had not: a gap is asked for, and then it comes again.
        """
        if start >= self._next.get(partition, start):
            self._holes.setdefault(partition, {})[start] = end

    def next(self, partition: Partition) -> int | None:
        """The offset to come, None if it is not known."""
        awaited = self._next.get(partition)
        holes = self._holes.get(partition)
        if awaited is None or not holes:
            return awaited
        while (end := holes.pop(awaited, None)) is not None:
            self._next[partition] = awaited = end
        return awaited

    def after(self, partition: Partition, offset: int) -> int:
        """Where to go on once `offset` and all before it is finished: what is no message is finished, too."""
        end = offset + 1
        if offset == self._given.get(partition):
            end = max(end, self.next(partition) or 0)
        self._done[partition] = end
        return end

    def past(self, partition: Partition) -> int | None:
        """Where to go on, if nothing is in hand and only what is no message has come since; None if nothing has."""
        done, given = self._done.get(partition), self._given.get(partition)
        if done is None or (given is not None and given >= done):
            return None
        end = self.next(partition)
        if end is None or end <= done:
            return None
        self._done[partition] = end
        return end

    def see(self, partition: Partition, offset: int) -> Arrival:
        """What to do with a message that has come."""
        awaited = self.next(partition)
        if awaited is not None:
            if offset < awaited or offset > self._came.get(partition, offset):
                return Arrival.KNOWN
            if offset > awaited:
                self._came[partition] = offset
                return Arrival.GAP
        self._came.pop(partition, None)
        self._given[partition] = offset
        self._next[partition] = offset + 1
        return Arrival.NEXT
