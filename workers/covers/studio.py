"""Where covers are drawn: batches in, pictures with their rewards out.

One thread draws, another judges; while a batch is drawn the next one is prepared and the last one is judged, encoded
and uploaded. Models are swapped on the drawing thread, so a batch is drawn under the release it was planned for or not
at all: then its jobs end in `Stale` and are planned again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image

from icg import Item
from icg.quality import quality
from workers.covers import metrics
from workers.covers.acks import Partition
from workers.covers.batcher import Batcher
from workers.covers.inflight import InFlight
from workers.covers.loading import Loaded
from workers.covers.patience import Patience
from workers.covers.plan import PlannedCover
from workers.events import BadEvent
from workers.health import Health
from workers.pictures import decode
from workers.settings import Covers
from workers.tracing import Context, Lap, Laps

log = logging.getLogger(__name__)

TRIES = 3
"""How often an event is drawn alone and fails, while a trial item succeeds, before the event is bad."""


class Stale(Exception):
    """The release was swapped since the job was planned: plan again."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A drawn cover. Rewards and embedding are there if it passed the gate."""

    image: Image.Image
    quality: float
    rewards: dict[str, float] = field(default_factory=dict)
    embedding: list[float] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.embedding)


@dataclass(eq=False)
class Job:
    """The covers that one event needs drawn."""

    item_id: str
    partition: Partition
    offset: int
    title: str | None
    reference: bytes | None
    covers: Sequence[PlannedCover]
    seed: int
    loaded: Loaded
    future: asyncio.Future[dict[str, Judged]]
    rank: int
    alone: bool
    trace: Context
    since: Laps = field(default_factory=Laps)
    failures: int = 0
    image: Image.Image | None = None


class Studio:
    """Draws jobs in batches. Everything but `_draw` and `_judge` runs on the event loop."""

    def __init__(self, settings: Covers, inflight: InFlight, patience: Patience, health: Health) -> None:
        self._settings = settings
        self._inflight = inflight
        self._patience = patience
        self._health = health
        self._drawer = ThreadPoolExecutor(1, "generator")
        self._judges = ThreadPoolExecutor(1, "judge")
        give_threads(self._drawer, settings.threads)
        self._free = asyncio.Semaphore(1)
        self._prepared = False
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._swapped = asyncio.Event()
        self.batcher: Batcher[Job] = Batcher(settings.batch_items, settings.batch_seconds)
        self.loaded: Loaded | None = None

    async def current(self, least: int = 0) -> Loaded:
        """The models in use, once there are some of release `least` or later."""
        while self.loaded is None or self.loaded.number < least:
            self._swapped.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._swapped.wait(), 30)
            self._health.progress()  # to wait for others is no hanging of ours
        return self.loaded

    async def swap(self, finish: Callable[[], Loaded]) -> Loaded:
        """Run the last step of loading between batches and use its result from the next batch on.

        Raises:
            Refused: from `finish`; nothing has changed.
        """

        def on_drawing_thread() -> Loaded:
            self.loaded = finish()
            return self.loaded

        loaded = await asyncio.get_running_loop().run_in_executor(self._drawer, on_drawing_thread)
        self._swapped.set()
        return loaded

    async def draw(self, job: Job) -> dict[str, Judged]:
        """The job's covers by cover_id.

        Raises:
            Stale: plan again.
            BadEvent: the reference image is broken, or the event cannot be drawn.
        """
        self.batcher.add(job, rank=job.rank, alone=job.alone)
        return await job.future

    async def run(self) -> None:
        """Take batches, prepare them, draw them; until cancelled."""
        while True:
            batch = [job for job in await self.batcher.take() if not job.future.done()]
            self._prepared = True
            self.batcher.set_idle(False)
            alone = any(job.alone for job in batch)
            if alone:
                await self._quiet()
            batch = await self._prepare(batch)
            await self._free.acquire()
            self._prepared = False
            if batch and not self._closing:
                self._spawn(batch)
            else:
                self._release()
            if alone:
                await self._quiet()

    async def _quiet(self) -> None:
        """Until no event is in flight: what kills the process beside a suspect would be taken for the killer."""
        while self._inflight.drawing():
            await asyncio.sleep(0.02)

    async def close(self, seconds: float) -> None:
        """Start no batch any more; wait for the one that is being drawn."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def judge(self, images: Sequence[Image.Image], titles: Sequence[str | None]) -> list[Judged]:
        """Rewards and embeddings of pictures that nobody drew here, whatever their quality."""
        loaded = await self.current()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._judges, self._judge, loaded, images, titles, 0.0)

    async def _prepare(self, batch: list[Job]) -> list[Job]:
        """Write down what is about to be drawn, then decode: from here on a job may kill the process."""
        offsets: dict[Partition, list[int]] = {}
        for job in batch:
            offsets.setdefault(job.partition, []).append(job.offset)
        writes = [
            self._patience("s3", "write down what is in flight", self._inflight.begin, partition, many)
            for partition, many in offsets.items()
        ]
        await asyncio.gather(*writes)
        decoded = await asyncio.gather(*(self._decode(job) for job in batch))
        return [job for job, good in zip(batch, decoded, strict=True) if good]

    async def _decode(self, job: Job) -> bool:
        if job.reference is not None and job.image is None:
            try:
                job.image = await asyncio.to_thread(decode, job.reference)
            except BadEvent as error:
                _fail(job, error)
                return False
        return True

    def _spawn(self, batch: list[Job]) -> None:
        task = asyncio.get_running_loop().create_task(self._process(batch))
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                for job in batch:  # else its event would wait until the watchdog ends the process
                    _fail(job, error)

        task.add_done_callback(done)

    def _release(self) -> None:
        self._free.release()
        self.batcher.set_idle(not self._prepared)

    async def _process(self, batch: list[Job]) -> None:
        loop = asyncio.get_running_loop()
        waited = [(job, job.since.lap("wait")) for job in batch]
        try:
            loaded, fresh, drawn, laps = await loop.run_in_executor(self._drawer, self._draw, batch)
        except Exception as error:
            self._release()
            await self._recover(batch, error)
            return
        self._release()
        self._health.progress()
        self._health.set("generator", True)
        for job in batch:
            if job not in fresh:
                _fail(job, Stale())
        if not fresh:
            return
        metrics.BATCH_ITEMS.observe(len(fresh))
        metrics.BATCH_FILL.observe(len(fresh) / self._settings.batch_items)
        metrics.DRAWN.inc(sum(map(len, drawn)))
        for job, lap in waited:
            metrics.lap(lap)
            lap.record(job.trace)
        self._note(laps, fresh)
        images = [image for row in drawn for image in row]
        titles = [job.title for job in fresh for _ in job.covers]
        judging = Laps()
        try:
            verdicts = await loop.run_in_executor(
                self._judges, self._judge, loaded, images, titles, self._settings.gate
            )
        except Exception as error:
            await self._recover(fresh, error)
            return
        self._note([judging.lap("gate")], fresh)
        judged = iter(verdicts)
        for job in fresh:
            result = {cover.cover_id: next(judged) for cover in job.covers}
            if not job.future.done():
                job.future.set_result(result)

    def _note(self, laps: Sequence[Lap], jobs: Sequence[Job]) -> None:
        """What the batch took, once in the metrics and in each event's trace."""
        covers = sum(len(job.covers) for job in jobs)
        for lap in laps:
            metrics.lap(lap)
            for job in jobs:
                lap.record(job.trace, **{"icg.batch.items": len(jobs), "icg.batch.covers": covers})

    def _draw(self, batch: list[Job]) -> tuple[Loaded, list[Job], list[list[Image.Image]], list[Lap]]:
        """On the drawing thread. Jobs that were planned for other models than those in use are left out."""
        loaded = self.loaded
        assert loaded is not None
        fresh = [job for job in batch if job.loaded is loaded]
        if not fresh:
            return loaded, [], [], []
        begun = time.monotonic()
        watch = Laps()
        try:
            context = loaded.generator.encode([Item(title=job.title, image=job.image) for job in fresh])
            encoded = watch.lap("encode")
            vectors = [[cover.vector for cover in job.covers] for job in fresh]
            drawn = loaded.generator.generate(context, vectors, [job.seed for job in fresh])
        finally:
            metrics.BUSY.inc(time.monotonic() - begun)
        return loaded, fresh, drawn, [encoded, watch.lap("denoise")]

    def _judge(
        self, loaded: Loaded, images: Sequence[Image.Image], titles: Sequence[str | None], gate: float
    ) -> list[Judged]:
        """On the judging thread. What is under the gate is not judged any further."""
        qualities = [quality(image) for image in images]
        good = [index for index, value in enumerate(qualities) if value >= gate]
        judged = [Judged(image, value) for image, value in zip(images, qualities, strict=True)]
        if not good:
            return judged
        rewards = loaded.judge.score([images[index] for index in good], [titles[index] for index in good])
        embeddings = loaded.judge.embed([images[index] for index in good])
        for index, reward, embedding in zip(good, rewards, embeddings, strict=True):
            scores = {name: float(value) for name, value in reward.items()}
            judged[index] = Judged(images[index], qualities[index], scores, [float(value) for value in embedding])
        return judged

    async def _recover(self, batch: list[Job], error: Exception) -> None:
        """Drawing failed: find out whether it is one of the events or us."""
        log.error("drawing %d items failed: %s: %s", len(batch), type(error).__name__, error)
        if len(batch) > 1:
            for job in batch:
                self._again(job)
            return
        [job] = batch
        job.failures += 1
        if not out_of_memory(error) and job.failures >= TRIES and await self._trial(job.loaded):
            self._health.set("generator", True)
            _fail(job, BadEvent(f"it cannot be drawn: {error}"))
            return
        self._inflight.rest(job.partition, job.offset)
        await self._patience.pause("generator", "draw", job.failures, error)
        self._again(job)

    def _again(self, job: Job) -> None:
        """Draw it in a batch of its own."""
        self._inflight.rest(job.partition, job.offset)
        job.alone = True
        self.batcher.add(job, rank=job.rank, alone=True)

    async def _trial(self, loaded: Loaded) -> bool:
        """Whether a harmless item can be drawn."""

        def draw() -> bool:
            context = loaded.generator.encode([Item(title="A red boat on the sea")])
            image = loaded.generator.generate(context, [[None]], [1])[0][0]
            return bool(loaded.judge.score([image], ["A red boat on the sea"]))

        try:
            return await asyncio.get_running_loop().run_in_executor(self._drawer, draw)
        except Exception as error:
            log.error("a trial item cannot be drawn either: %s", error)
            return False


def give_threads(executor: ThreadPoolExecutor, threads: int) -> None:
    """Give torch's threads to an executor's one thread; whichever thread uses torch first from now on works alone.

    Each Python thread that splits work has a team of its own in libgomp. As soon as all teams together have more
    threads than there are cores, those that wait for one another go to sleep instead of spinning: drawing small
    tensors takes a third longer on four cores and twice as long on two (`bench/stream.py`).
    """
    import torch

    threads = threads or torch.get_num_threads()
    executor.submit(torch.get_num_threads).result()  # a thread's first use of torch sets what was last said anywhere
    executor.submit(torch.set_num_threads, threads).result()
    torch.set_num_threads(1)


def out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def _fail(job: Job, error: BaseException) -> None:
    if not job.future.done():
        job.future.set_exception(error)
