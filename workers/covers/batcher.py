"""The micro-batcher: jobs wait here until a batch is full, or until the generator has nothing better to do.

While the generator is busy a batch only fills. Where it need not wait for one to fill it begins with the first item
alone, which with all its segments is a batch already: of many that arrive together one is ready early, and the others,
which fill the next batches, hardly later. A job that is suspected of killing the process is drawn alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

J = TypeVar("J")


@dataclass(frozen=True, slots=True)
class Waiting(Generic[J]):
    """A job in the queue. Lower rank goes first; equal ranks in order of arrival (`since`, seconds)."""

    job: J
    rank: int
    alone: bool
    since: float


def pick(
    queue: Sequence[Waiting[J]], now: float, *, size: int, seconds: float, idle: bool
) -> tuple[list[Waiting[J]], float | None]:
    """The next batch, or how long to wait until the time alone would make one (None: until something changes).

    A suspect at the head of the queue goes alone and at once; further back it is passed over until it is the head.
    """
    if not queue:
        return [], None
    ordered = sorted(queue, key=lambda waiting: (waiting.rank, waiting.since))
    if ordered[0].alone:
        return ordered[:1], 0.0
    batch = [waiting for waiting in ordered if not waiting.alone][:size]
    if len(batch) == size:
        return batch, 0.0
    if not idle:
        return [], None
    left = min(waiting.since for waiting in batch) + seconds - now
    return (batch, 0.0) if left <= 0 else ([], left)


class Batcher(Generic[J]):
    """An asyncio queue of jobs that hands out batches. One taker."""

    def __init__(self, size: int, seconds: float) -> None:
        self.size = size
        self.seconds = seconds
        self._queue: list[Waiting[J]] = []
        self._idle = True
        self._changed = asyncio.Event()

    def add(self, job: J, *, rank: int = 0, alone: bool = False) -> None:
        """Queue a job: rank 0 for a publish, higher ones for refreshes, the most urgent first."""
        self._queue.append(Waiting(job, rank, alone, asyncio.get_running_loop().time()))
        self._changed.set()

    def promote(self, which: Callable[[J], bool]) -> None:
        """Give the first rank to jobs that a publish of the same item has to wait for."""
        self._queue = [replace(waiting, rank=0) if which(waiting.job) else waiting for waiting in self._queue]
        self._changed.set()

    def set_idle(self, idle: bool) -> None:
        """Whether the generator would start a batch at once."""
        self._idle = idle
        self._changed.set()

    def waiting(self, rank: int = 0) -> int:
        """How many jobs of this rank wait."""
        return sum(waiting.rank == rank for waiting in self._queue)

    async def take(self) -> list[J]:
        """The next batch, at least one job, at most `size`."""
        clock = asyncio.get_running_loop().time
        size = self.size
        while True:
            if self._idle and not self._queue and self.seconds == 0:
                size = 1
            batch, wait = pick(self._queue, clock(), size=size, seconds=self.seconds, idle=self._idle)
            if batch:
                taken = set(map(id, batch))
                self._queue = [waiting for waiting in self._queue if id(waiting) not in taken]
                return [waiting.job for waiting in batch]
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue
