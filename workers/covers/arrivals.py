"""Which offset of each partition has to come next, so that nothing is acked over a message that never came.

Around a rebalance Faust can hide a message: it lets pass what a stopped stream throws away, and takes for read already
what is delivered again. It also commits over a gap of one offset. So the agent looks itself. Pure bookkeeping.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from workers.covers.acks import Partition

ASKS = 3
"""How often one message is asked for."""


class Arrival(Enum):
    NEXT = auto()
    """Handle it."""
    KNOWN = auto()
    """Leave it: it is in hand already, or it will come again behind what is missing."""
    GAP = auto()
    """Something before it is missing: ask for `Arrivals.next` again."""


class Arrivals:
    """Lives on one event loop."""

    def __init__(self) -> None:
        self._next: dict[Partition, int] = {}
        self._gaps: dict[Partition, tuple[int, int]] = {}  # which offset came instead of the next, how often

    def begin(self, partition: Partition, offset: int | None) -> None:
        """Delivery begins (again) at this offset; None where the group has none, then with whatever comes first."""
        self._gaps.pop(partition, None)
        self._next.pop(partition, None)
        if offset is not None:
            self._next[partition] = offset

    def forget(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            self.begin(partition, None)

    def next(self, partition: Partition) -> int | None:
        """The offset to come, None if it is not known."""
        return self._next.get(partition)

    def see(self, partition: Partition, offset: int) -> Arrival:
        """What to do with a message that has come.

        What comes first however often another was asked for has no predecessor: a broker has nothing at the offsets of
        transaction markers, nor of what was deleted.
        """
        expected = self._next.get(partition, offset)
        first, asks = self._gaps.get(partition, (offset, 0))
        if offset < expected or offset > first:
            return Arrival.KNOWN
        if offset > expected and (offset < first or asks < ASKS):
            self._gaps[partition] = (offset, asks + 1 if offset == first else 1)
            return Arrival.GAP
        self._gaps.pop(partition, None)
        self._next[partition] = offset + 1
        return Arrival.NEXT
