"""Reads that wait at the same time become one.

Feast answers one call at a time on a thread of its own, and a call of 32 keys costs hardly more than one of a single
key. So while a read runs, the keys of all requests that arrive are gathered, and the next read takes them together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True, eq=False)
class _Batch(Generic[K, V]):
    done: asyncio.Future[dict[K, V]]
    keys: dict[K, None] = field(default_factory=dict)


class Batcher(Generic[K, V]):
    """Coalesces reads by key.

    Args:
        read: reads so many keys; absent keys may be missing from what it returns. Its exception reaches all who wait.
        most: keys after which a batch is closed and another is opened behind it.
    """

    def __init__(self, read: Callable[[list[K]], Awaitable[dict[K, V]]], most: int = 400) -> None:
        self._read, self._most = read, most
        self._waiting: list[_Batch[K, V]] = []
        self._task: asyncio.Task[None] | None = None

    async def get(self, keys: Iterable[K]) -> dict[K, V]:
        """What `read` returns for these keys, perhaps for others too."""
        if not self._waiting or len(self._waiting[-1].keys) >= self._most:
            self._waiting.append(_Batch(asyncio.get_running_loop().create_future()))
        batch = self._waiting[-1]
        batch.keys.update(dict.fromkeys(keys))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        # Shielded: a client that hangs up must not cancel the others' read.
        return await asyncio.shield(batch.done)

    async def _drain(self) -> None:
        while self._waiting:
            batch = self._waiting.pop(0)
            try:
                found = await self._read(list(batch.keys))
            except Exception as error:
                batch.done.set_exception(error)
                batch.done.exception()  # read once here: if all clients hung up, asyncio would complain about it
            else:
                batch.done.set_result(found)
