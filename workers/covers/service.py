"""The service `covers`: everything started, watched, and ended in order.

One event loop runs Faust's agent, the refresh consumer and all waiting; one thread draws, one judges, a pool does what
blocks (S3, Feast, WebP). SIGTERM drains: nothing new is begun, what is drawn is stored and acked, the rest is delivered
again to whoever comes next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from workers.covers import metrics
from workers.covers.groups import Group
from workers.covers.inflight import InFlight
from workers.covers.lane import Lane
from workers.covers.loading import Loader, MakeGenerator, Refused, make_generator
from workers.covers.patience import Patience
from workers.covers.publishes import GROUP, OVERDUE_SECONDS, Publishes, ack
from workers.covers.references import Fetcher
from workers.covers.refreshes import GROUP as REFRESH_GROUP
from workers.covers.refreshes import Refreshes
from workers.covers.studio import Studio
from workers.covers.worker import Ports, Worker
from workers.events import ItemPublish, ItemRefresh
from workers.exceptions import Fault, OffsetLost
from workers.features import Features
from workers.following import ReleaseFollower
from workers.health import Health
from workers.messaging import Producer
from workers.records import Release
from workers.releases import Releases
from workers.settings import Settings
from workers.storage import ObjectStore

log = logging.getLogger(__name__)

DRAIN_SECONDS = 8.0
"""For what is being drawn and stored at SIGTERM; two more are left for leaving the groups."""
LAG_SECONDS = 5.0
ASK_SECONDS = 5.0
BATCHES_IN_THE_MAKING = 4
"""One filling, one prepared, one drawn, one stored."""
SWITCH_SECONDS = 0.001
"""The drawing thread takes the interpreter back thousands of times a batch, by default waiting up to 5 ms each time."""


def run(settings: Settings, stop: threading.Event, make: MakeGenerator = make_generator) -> int:
    """Run until `stop` is set.

    Args:
        make: builds the generator of a release.

    Returns:
        The exit status: 0 when it was told to stop, 1 when it cannot go on.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    health = Health(settings.health_port, host=settings.health_host, service="covers")
    # Not asyncio.run: it waits without limit for what is left at the end, and a crashed Faust leaves tasks that stay.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(_main(settings, stop, make, health))
    finally:
        loop.close()
        health.close()


async def _main(settings: Settings, stop: threading.Event, make: MakeGenerator, health: Health) -> int:
    status = await _Service(settings, stop, make, health).main()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=1.0)
    return status


class _Service:
    def __init__(self, settings: Settings, stop: threading.Event, make: MakeGenerator, health: Health) -> None:
        covers = settings.covers
        settings.cache.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.stop = stop
        self.health = health
        self.pool = ThreadPoolExecutor(covers.upload_threads, "io")
        self.patience = Patience(self.pool, health)
        # Less patient than others: what waits here is tried again anyway, and SIGTERM waits for the last try.
        store = ObjectStore(settings.s3, timeout=5.0, attempts=2)
        self.producer = Producer(settings.kafka, "covers")
        self.features = Features(settings.feast)
        self.releases = Releases(store, settings.cache)
        self.ports = Ports(store, self.features, self.producer, self.releases, Fetcher(settings.references, store))
        self.loader = Loader(covers, self.releases, make)
        self.inflight = InFlight(store)
        self.studio = Studio(covers, self.inflight, self.patience, health)
        self.worker = Worker(settings, self.ports, self.studio, self.inflight, self.patience, health)
        most = BATCHES_IN_THE_MAKING * covers.batch_items
        self.publish_lane: Lane[Any] = Lane(self.worker, ItemPublish, most, ack)
        self.refresh_lane: Lane[None] | None = None
        self.groups = [
            Group(settings.kafka, GROUP, ItemPublish.topic),
            Group(settings.kafka, REFRESH_GROUP, ItemRefresh.topic),
        ]
        self.lag = 0
        self.wanted: Release | None = None
        self.wanted_there = asyncio.Event()

    async def main(self) -> int:
        self.health.set("release", False, "no release yet")
        self.health.set("partitions", False, "not assigned yet")
        failed: list[BaseException] = []
        tasks: list[asyncio.Task[None]] = []
        ended = asyncio.Event()

        def background(coroutine: Coroutine[Any, Any, None]) -> None:
            task = asyncio.get_running_loop().create_task(coroutine)
            tasks.append(task)

            def done(task: asyncio.Task[None]) -> None:
                if not task.cancelled() and (error := task.exception()) is not None:
                    failed.append(error)
                    ended.set()

            task.add_done_callback(done)

        background(self._until_stopped(ended))
        background(self._follow_releases())
        background(self.studio.run())
        background(self.worker.rows.run())
        loop = asyncio.get_running_loop()

        def offer(release: Release) -> None:
            loop.call_soon_threadsafe(self._offer, release)

        follower = ReleaseFollower(self.settings.kafka, self.releases, offer)
        publishes: Publishes | None = None
        refreshes: Refreshes | None = None
        try:
            follower.start()
            begun = await self._begin(ended)
            if begun is not None:
                publishes, refreshes = self._intakes(begun)
                background(refreshes.run(self._refresh_lane(refreshes)))
                background(self._measure_lag())
                background(self._ask_stores())
                background(self._watch_faust(publishes))
                background(self._look_after(publishes))
                self.health.watch(self.settings.covers.stuck_seconds, self._busy)
                await publishes.start()
                log.info("covers is up")
                await ended.wait()
        except Exception as error:
            failed.append(error)
        for each in failed:
            known = isinstance(each, Fault | OffsetLost)
            log.error("covers cannot go on: %s", each, exc_info=None if known else each)
        await self._end(follower, publishes, refreshes, tasks)
        return 1 if failed else 0

    async def _until_stopped(self, ended: asyncio.Event) -> None:
        # An asyncio loop cannot wait for a threading event; ten looks a second cost nothing.
        while not self.stop.is_set():
            await asyncio.sleep(0.1)
        ended.set()

    async def _begin(self, ended: asyncio.Event) -> list[bool] | None:
        """See to it that the groups have committed offsets; None if the service is stopped meanwhile."""
        calls = [self.patience("kafka", "ask for offsets", group.begin) for group in self.groups]
        beginning = asyncio.gather(*calls)
        ended_first = asyncio.get_running_loop().create_task(ended.wait())
        ended_first.add_done_callback(lambda _: beginning.cancel())
        try:
            return await beginning
        except asyncio.CancelledError:
            return None
        finally:
            ended_first.cancel()

    def _intakes(self, begun: list[bool]) -> tuple[Publishes, Refreshes]:
        kafka, covers = self.settings.kafka, self.settings.covers
        datadir = self.settings.cache / "faust"
        publishes = Publishes(kafka, self.publish_lane, covers.batch_items, datadir)
        return publishes, Refreshes(kafka, self._publish_waits, lose_nothing=begun[1])

    def _refresh_lane(self, refreshes: Refreshes) -> Lane[None]:
        most = 2 * self.settings.covers.batch_items
        self.refresh_lane = Lane(self.worker, ItemRefresh, most, refreshes.ack)
        return self.refresh_lane

    def _publish_waits(self) -> bool:
        return self.studio.batcher.waiting(0) > 0 or self.publish_lane.full

    def _busy(self) -> bool:
        return self.publish_lane.busy > 0 or self.lag > 0

    async def _watch_faust(self, publishes: Publishes) -> None:
        while publishes.crashed is None:
            self.health.set("partitions", publishes.assigned, "not assigned yet")
            await asyncio.sleep(0.5)
        raise publishes.crashed

    async def _look_after(self, publishes: Publishes) -> None:
        while True:
            await asyncio.sleep(OVERDUE_SECONDS)
            await publishes.look()

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                for group in self.groups:
                    lag = await loop.run_in_executor(self.pool, group.lag)
                    metrics.LAG.labels(topic=group.topic).set(lag)
                    if group.topic == ItemPublish.topic:
                        self.lag = lag
                self.patience.answered("kafka")
            except Fault as fault:
                self.health.set("kafka", False, str(fault))
                self.health.progress()
            refreshing = self.refresh_lane.busy if self.refresh_lane else 0
            metrics.PENDING.set(self.publish_lane.busy + refreshing)
            await asyncio.sleep(LAG_SECONDS)

    async def _ask_stores(self) -> None:
        """A worker without work would not notice that S3 or Feast is away, nor that it is back."""
        loop = asyncio.get_running_loop()
        asks = {"s3": self.ports.store.ping, "feast": self.features.ping}
        while True:
            for name, ask in asks.items():
                answers = await loop.run_in_executor(self.pool, ask)
                if not self.patience.waits(name):  # whoever waits knows better, and says why
                    self.health.set(name, answers, "no answer")
            await asyncio.sleep(ASK_SECONDS)

    def _offer(self, release: Release) -> None:
        self.wanted = release
        self.wanted_there.set()

    async def _follow_releases(self) -> None:
        """Take each new release into use, or refuse it and keep the old one."""
        while True:
            await self.wanted_there.wait()
            self.wanted_there.clear()
            release, current = self.wanted, self.studio.loaded
            if release is None or (current is not None and release.number <= current.number):
                continue
            begun = time.monotonic()
            try:
                finish = await self.patience("s3", "load a release", self.loader.prepare, release, current)
                loaded = await self.studio.swap(finish)
            except Refused as error:
                log.error("release %d is refused: %s", release.number, error)
                metrics.REFUSED.inc()
                if current is None:
                    self.health.set("release", False, f"release {release.number} is refused: {error}")
                continue
            metrics.SWAPS.inc()
            metrics.RELEASE.set(loaded.number)
            metrics.STAGES.labels("load").observe(time.monotonic() - begun)
            self.health.set("release", True)
            self.health.progress()
            log.info("release %d is in use, %d segments", loaded.number, len(loaded.segments))

    async def _end(
        self,
        follower: ReleaseFollower,
        publishes: Publishes | None,
        refreshes: Refreshes | None,
        tasks: list[asyncio.Task[None]],
    ) -> None:
        """Drain: finish what is drawn, give up the rest, commit, leave."""
        self.health.set("running", False, "stopping")
        until = time.monotonic() + DRAIN_SECONDS
        if publishes is not None:
            publishes.stop_taking()
        await self.studio.close(DRAIN_SECONDS)
        await asyncio.sleep(0.05)  # what has just been drawn is counted by its own task
        while self.worker.drawn > 0 and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await self.publish_lane.cancel()
        if self.refresh_lane is not None:
            await self.refresh_lane.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(
            _within(2.0, "leave item-publish", publishes.stop() if publishes else None),
            _within(2.0, "leave item-refresh", refreshes.stop() if refreshes else None),
            _within(2.0, "clear what was in flight", self._in_thread(self.inflight.clear)),
            _within(2.0, "stop following releases", self._in_thread(follower.stop)),
        )
        await _within(2.0, "close the producer", self._in_thread(self.producer.close))
        for group in self.groups:
            group.close()
        self.features.close()
        self.pool.shutdown(wait=False, cancel_futures=True)
        log.info("covers has stopped")

    async def _in_thread(self, call: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(None, call)


async def _within(seconds: float, what: str, step: Coroutine[Any, Any, Any] | None) -> None:
    """One step of the end, which must not hold up the others."""
    if step is None:
        return
    try:
        async with asyncio.timeout(seconds):
            await step
    except TimeoutError:
        log.warning("gave up after %g s: %s", seconds, what)
    except Exception as error:
        with contextlib.suppress(Exception):
            log.warning("%s: %s", what, error)
