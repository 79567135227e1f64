"""Calls that block, off the event loop, tried again without limit while the fault is ours."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from workers.covers import metrics
from workers.exceptions import Fault
from workers.health import Health

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_PAUSE = 10.0


class Patience:
    """Waits for what is away; meanwhile the worker is not ready, and nothing is dead-lettered."""

    def __init__(self, pool: Executor, health: Health) -> None:
        self._pool = pool
        self._health = health
        self._waiting: Counter[str] = Counter()

    def waits(self, condition: str) -> bool:
        """Whether a call that failed still waits. Others may succeed meanwhile: a locked store can be read."""
        return self._waiting[condition] > 0

    async def __call__(self, condition: str, what: str, call: Callable[..., T], *args: object) -> T:
        """Call in a thread until it raises no `Fault`.

        Args:
            condition: of readiness, such as "s3".
            what: for the log: "write the manifest".
        """
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()  # the trace goes along into the thread
        attempt = 0
        try:
            while True:
                try:
                    result = await loop.run_in_executor(self._pool, context.run, call, *args)
                    break
                except Fault as fault:
                    attempt += 1
                    self._waiting[condition] += attempt == 1
                    await self.pause(condition, what, attempt, fault)
        finally:
            self._waiting[condition] -= attempt > 0
        if attempt:
            log.info("%s: done after %d tries", what, attempt + 1)
        self.answered(condition)
        return result

    async def briefly(self, what: str, call: Callable[..., object], *args: object, seconds: float = 2.0) -> None:
        """Call in a thread, once, and wait no longer than this: for what helps but is not needed."""
        running = asyncio.get_running_loop().run_in_executor(self._pool, call, *args)
        done, _ = await asyncio.wait({running}, timeout=seconds)
        if not done:
            log.warning("%s: not done in %g s", what, seconds)
        elif (error := running.exception()) is not None:
            log.warning("%s: %s", what, error)

    def answered(self, condition: str) -> None:
        """Something succeeded: ready again, unless another call still waits, which knows better and says why."""
        if not self.waits(condition):
            self._health.set(condition, True)

    async def until(self, condition: str, future: asyncio.Future[T], why: str, seconds: float = 5.0) -> T:
        """Wait for a future for as long as it takes; after so many seconds the worker is not ready.

        Raises:
            Exception: the future's.
        """
        late = False
        try:
            while not (await asyncio.wait({future}, timeout=seconds))[0]:
                self._waiting[condition] += not late
                late = True
                self._health.set(condition, False, why)
                self._health.progress()  # to wait for others is no hanging of ours
        finally:
            self._waiting[condition] -= late
        result = future.result()
        self.answered(condition)
        return result

    async def pause(self, condition: str, what: str, attempt: int, error: BaseException) -> None:
        """Say that it failed and wait: 0.1 s, 0.2 s, … `LONGEST_PAUSE`, with jitter."""
        metrics.FAULTS.labels(kind=condition).inc()
        self._health.set(condition, False, f"{what}: {error}")
        # To wait for others is no hanging of ours.
        self._health.progress()
        if attempt == 1 or attempt % 10 == 0:
            log.warning("%s fails, try %d: %s", what, attempt, error)
        await asyncio.sleep(min(LONGEST_PAUSE, 0.1 * 2 ** min(attempt - 1, 10)) * random.uniform(0.5, 1.0))
