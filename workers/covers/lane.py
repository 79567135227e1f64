"""A bounded pool of events in the making, acked in order. Both topics have one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from workers.covers.acks import Acks, Partition, Ticket
from workers.covers.worker import Worker
from workers.events import ItemPublish, ItemRefresh
from workers.messaging import Message

T = TypeVar("T")


class Lane(Generic[T]):
    """Hands messages to the worker, `most` at a time, and acks the finished prefix of each partition."""

    def __init__(
        self, worker: Worker, kind: type[ItemPublish] | type[ItemRefresh], most: int, ack: Callable[[Ticket[T]], None]
    ) -> None:
        self._worker = worker
        self._kind = kind
        self._ack = ack
        self._slots = asyncio.Semaphore(most)
        self._acks: Acks[T] = Acks()
        self._tasks: set[asyncio.Task[None]] = set()
        self._drops: Counter[Partition] = Counter()

    async def take(self, message: Message, value: T) -> None:
        """Begin with a message once there is room; in the order of these calls within an item.

        Not if its partition is dropped meanwhile. It will be delivered again, to us perhaps, and then it must not be
        acked before those that come before it.
        """
        partition = (message.topic, message.partition)
        drops = self._drops[partition]
        await self._slots.acquire()
        if self._drops[partition] != drops:
            self._slots.release()
            return
        ticket = self._acks.deliver(partition, message.offset, value)
        task = asyncio.get_running_loop().create_task(self._one(ticket, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, ticket: Ticket[T], message: Message) -> None:
        try:
            await self._worker.handle(message, self._kind)
            for ready in self._acks.finish(ticket):
                self._ack(ready)
        finally:
            self._slots.release()

    @property
    def busy(self) -> int:
        """Events begun and not finished."""
        return len(self._tasks)

    @property
    def full(self) -> bool:
        return self._slots.locked()

    async def drop(self, partitions: Iterable[Partition]) -> None:
        """These are somebody else's now: what finishes from here on is not acked."""
        gone = list(partitions)
        self._drops.update(gone)
        self._acks.drop(gone)
        await self._worker.hand_over(gone)

    async def cancel(self) -> None:
        """Give up what is not finished; it will be delivered again."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
