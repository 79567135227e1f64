"""Ack the finished prefix of each partition, whatever the order in which messages finish.

Pure bookkeeping: what a finished prefix is good for (a Faust ack, an offset to commit) is the caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
Partition = tuple[str, int]


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """One delivery of one message. A message that is delivered again after a rebalance has a ticket of its own."""

    partition: Partition
    offset: int
    value: T
    done: bool = False


@dataclass(slots=True)
class Acks(Generic[T]):
    """Tickets in the order of their delivery, a lane for each partition."""

    lanes: dict[Partition, deque[Ticket[T]]] = field(default_factory=dict)

    def deliver(self, partition: Partition, offset: int, value: T) -> Ticket[T]:
        ticket = Ticket(partition, offset, value)
        self.lanes.setdefault(partition, deque()).append(ticket)
        return ticket

    def finish(self, ticket: Ticket[T]) -> list[Ticket[T]]:
        """Mark a ticket done; the tickets that may be acked now, in order: the lane's finished prefix.

        A ticket of a partition that was taken away meanwhile (`drop`) acks nothing: its lane is gone.
        """
        ticket.done = True
        lane = self.lanes.get(ticket.partition)
        ready: list[Ticket[T]] = []
        while lane and lane[0].done:
            ready.append(lane.popleft())
        return ready

    def drop(self, partitions: Iterable[Partition]) -> None:
        """Forget partitions that now belong to somebody else."""
        for partition in partitions:
            self.lanes.pop(partition, None)

    def pending(self) -> int:
        """How many delivered messages are not acked yet."""
        return sum(len(lane) for lane in self.lanes.values())
