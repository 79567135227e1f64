"""How one event ends: read, decide, draw, store, commit, say so. Knows nothing of how messages arrive or are acked.

The order is objects ▸ manifest ▸ Feast ▸ `cover-ready`; whoever called `handle` acks after it has returned. A crash
anywhere in between is healed by handling the same message again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from workers import tracing
from workers.covers import metrics
from workers.covers.acks import Partition
from workers.covers.commit import choose, feast_row, published, ready_event, refreshed
from workers.covers.embeddings import Embeddings
from workers.covers.inflight import DRAW_ALONE, GIVE_UP, InFlight
from workers.covers.loading import Loaded, rendition, sampler_record
from workers.covers.patience import Patience
from workers.covers.plan import (
    Draw,
    Item,
    Keep,
    Retire,
    Vector,
    Wait,
    decide,
    may_write,
    nothing_to_draw,
    plan_covers,
    plan_reference,
    segments_to_draw,
    stale,
    vectors_from,
)
from workers.covers.references import Fetcher, Reference
from workers.covers.rows import Rows
from workers.covers.shelf import Shelf, filling
from workers.covers.studio import Job, Stale, Studio
from workers.events import BadEvent, ItemPublish, ItemRefresh, Outcome, Source
from workers.exceptions import Conflict, Fault
from workers.features import Features
from workers.health import Health
from workers.messaging import Message, Producer
from workers.pictures import decode
from workers.records import (
    Manifest,
    ManifestCover,
    Rendition,
    manifest_key,
    seed_of,
)
from workers.releases import Releases
from workers.settings import Settings
from workers.storage import ObjectStore

log = logging.getLogger(__name__)

VECTORS_SECONDS = 2.0
"""How long the segments' vectors are kept: all items of a busy moment share one call to Feast."""


class _OlderRelease(Exception):
    def __init__(self, wanted: int) -> None:
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside of this process."""

    store: ObjectStore
    features: Features
    producer: Producer
    releases: Releases
    fetcher: Fetcher


class Worker:
    """Handles events, many at a time, those of one item one after the other. Lives on one event loop."""

    def __init__(
        self, settings: Settings, ports: Ports, studio: Studio, inflight: InFlight, patience: Patience, health: Health
    ) -> None:
        self._settings = settings
        self._ports = ports
        self._studio = studio
        self._inflight = inflight
        self._patience = patience
        self._health = health
        self._rendition: Rendition = rendition(settings.covers)
        self._items: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._loading: dict[tuple[str, int], asyncio.Lock] = {}
        self._reading = asyncio.Lock()
        self._embeddings = Embeddings(ports.store)
        self._shelf = Shelf(ports.store, self._embeddings, patience)
        self._vectors: tuple[Loaded | None, float, dict[str, dict[str, Any]]] = (None, 0.0, {})
        self.rows = Rows(ports.store, ports.features, patience, self._row)
        self.drawn = 0
        """Events whose covers are drawn and which only have to be stored and announced."""

    async def handle(self, message: Message, kind: type[ItemPublish] | type[ItemRefresh]) -> Outcome:
        """Bring the event to its one outcome. Returns when everything about it is delivered and it may be acked."""
        begun = time.monotonic()
        with tracing.processing(message.topic, message.partition, message.offset, message.headers) as span:
            try:
                outcome = await self._outcome(message, kind)
            except BadEvent as error:
                await self._refuse(message, str(error))
                outcome = Outcome.DEAD_LETTERED
            span.set_attribute("icg.outcome", outcome.value)
        self._inflight.end((message.topic, message.partition), message.offset)
        metrics.OUTCOMES.labels(outcome=outcome.value).inc()
        metrics.STAGES.labels("event").observe(time.monotonic() - begun)
        self._health.progress()
        return outcome

    async def hand_over(self, partitions: Sequence[Partition]) -> None:
        """These partitions belong to another worker now, who writes their record of what is in flight."""
        await self._patience.briefly("hand over what is in flight", self._inflight.hand_over(partitions))

    async def _outcome(self, message: Message, kind: type[ItemPublish] | type[ItemRefresh]) -> Outcome:
        with metrics.stage("validate"):
            event = kind.decode(message.value)
        deaths = await self._deaths(message)
        lock = self._items.setdefault(event.item_id, asyncio.Lock())
        if lock.locked() and kind is ItemPublish:
            # The item may be busy with a refresh that waits behind all publishes.
            self._studio.batcher.promote(lambda job: job.item_id == event.item_id)
        # Publishes first, then refreshes by their priority, 9 the most urgent.
        memory = _Memory(rank=0 if isinstance(event, ItemPublish) else 10 - event.priority)
        while True:
            try:
                async with lock:
                    return await self._brought(event, message, deaths, memory)
            except _OlderRelease as older:
                await self._reach(event, older.wanted)

    async def _brought(
        self, event: ItemPublish | ItemRefresh, message: Message, deaths: int, memory: _Memory
    ) -> Outcome:
        """Tried until it is there, with the item's lock held: no later event of the item overtakes this one."""
        attempt = 0
        while True:
            try:
                outcome, manifest, reason = await self._settle(event, message, deaths, memory)
                await self._announce(event.item_id, outcome, manifest, message, reason)
                if attempt:
                    self._health.set("worker", True)
                return outcome
            except (Conflict, Stale):
                continue
            except (BadEvent, _OlderRelease, asyncio.CancelledError):
                raise
            except Exception as error:
                # Not foreseen, so ours: to lose the event or to ack it would be worse than to be seen trying.
                attempt += 1
                log.exception("handling %s failed", message.source())
                await self._patience.pause("worker", "handle an event", attempt, error)
            finally:
                self._inflight.rest((message.topic, message.partition), message.offset)
                self.drawn -= memory.counted
                memory.counted = 0

    async def _deaths(self, message: Message) -> int:
        partition = (message.topic, message.partition)
        async with self._loading.setdefault(partition, asyncio.Lock()):
            if not self._inflight.known(partition):
                await self._patience("s3", "read what was in flight", self._inflight.load, partition)
        return self._inflight.deaths(partition, message.offset)

    async def _reach(self, event: ItemPublish | ItemRefresh, wanted: int) -> None:
        """Wait for a release; one that does not exist is the event's mistake."""
        if isinstance(event, ItemRefresh) and event.release == wanted:
            truth = await self._patience("s3", "read the release", self._ports.releases.current)
            newest = truth.number if truth else 0
            if wanted > newest:
                raise BadEvent(f"it wants release {wanted}, the newest is {newest}")
        log.info("%s waits for release %d", event.item_id, wanted)
        await self._studio.current(least=wanted)

    async def _settle(
        self, event: ItemPublish | ItemRefresh, message: Message, deaths: int, memory: _Memory
    ) -> tuple[Outcome, Manifest | None, str | None]:
        """Read, decide, and write the manifest if there is something to write; else say why there is not."""
        loaded = await self._studio.current()
        key = manifest_key(event.item_id)
        stored = await self._patience("s3", "read the manifest", self._ports.store.get, key)
        before = Manifest.decode(stored.data) if stored else None
        source = message.source()
        match decide(event, source, before, loaded.number):
            case Keep(outcome, reason):
                return outcome, before, reason
            case Wait(release):
                raise _OlderRelease(release)
            case Retire(tombstone):
                manifest = tombstone
            case Draw(item, segments):
                refreshing = before if isinstance(event, ItemRefresh) else None
                drawn = await self._covers(item, segments, refreshing, loaded, message, deaths, memory)
                if drawn is None:
                    return Outcome.UNCHANGED, before, nothing_to_draw(segments, loaded.segments, loaded.number)
                reference_sha256, covers = drawn
                if refreshing is not None:
                    merged = refreshed(refreshing, source, loaded.number, covers)
                    if merged is None:
                        return Outcome.UNCHANGED, before, nothing_to_draw(segments, loaded.segments, loaded.number)
                    manifest = merged
                else:
                    manifest = published(item, source, before, loaded.number, reference_sha256, covers)
        if not may_write(before, manifest):
            raise AssertionError(f"the manifest of {event.item_id} would go back")
        etag = stored.etag if stored else None
        with metrics.stage("manifest"):
            await self._patience("s3", "write the manifest", self._ports.store.put_if, key, manifest.encode(), etag)
        return manifest.outcome, manifest, None

    async def _covers(
        self,
        item: Item,
        asked: Sequence[str] | None,
        refreshing: Manifest | None,
        loaded: Loaded,
        message: Message,
        deaths: int,
        memory: _Memory,
    ) -> tuple[str | None, dict[str, dict[str, ManifestCover]]] | None:
        """The item's covers, stored; None if a refresh finds all of them there already.

        Raises:
            BadEvent, Stale.
        """
        segments = segments_to_draw(asked, loaded.segments)
        vectors = {**await self._segment_vectors(loaded, segments), **await self._proposed(loaded, asked)}
        release, sampler, size = loaded.release, sampler_record(loaded.sampler), self._rendition
        if refreshing is not None:
            there = plan_covers(item, refreshing.reference_sha256, vectors, release, sampler, size)
            if not stale(there, refreshing, size.rendition_id):
                return None
        reference = await self._reference(item, refreshing, memory)
        reference_sha256 = reference.sha256 if reference else None
        planned = plan_covers(item, reference_sha256, vectors, release, sampler, size)
        planned = stale(planned, refreshing, size.rendition_id)
        wanted = {cover.cover_id: cover for cover in planned.values()}
        passed = await self._shelf.find(item, wanted)
        missing = [cover for cover_id, cover in wanted.items() if cover_id not in passed]
        if missing:
            # Not before: an event whose covers are there is finished, however many deaths it has seen.
            if deaths >= GIVE_UP:
                raise BadEvent(f"drawing it has ended the worker {deaths} times")
            job = Job(
                item_id=item.item_id,
                partition=(message.topic, message.partition),
                offset=message.offset,
                title=item.title,
                reference=reference.data if reference else None,
                covers=missing,
                seed=seed_of(item.item_id, item.item_version),
                loaded=loaded,
                future=asyncio.get_running_loop().create_future(),
                rank=memory.rank,
                alone=deaths >= DRAW_ALONE,
                trace=tracing.get_current(),
            )
            judged = await self._studio.draw(job)
            memory.counted += 1
            self.drawn += 1
            good = []
            for cover in missing:
                if judged[cover.cover_id].passed:
                    good.append(cover)
                else:
                    metrics.GATE_REFUSALS.labels(kind="neutral" if cover.vector is None else "segment").inc()
            passed |= await self._shelf.put(item, good, judged, loaded, message.source())
        neutral = planned.get("neutral")
        fallback = None
        if neutral is not None and neutral.cover_id not in passed:
            metrics.REFERENCE_FALLBACKS.inc()
            log.warning("%s: the neutral cover is under the gate", item.item_id)
            if reference is not None:
                fallback = await self._platform_picture(item, reference, loaded, message.source())
        return reference_sha256, choose(planned, passed, fallback, refreshing, size.rendition_id)

    async def _segment_vectors(self, loaded: Loaded, segments: Sequence[str]) -> Mapping[str, Vector | None]:
        """Vectors from Feast, all of the release in one call, kept for a moment."""
        async with self._reading:
            owner, until, rows = self._vectors
            if owner is not loaded or time.monotonic() > until:
                entities = [{"segment_id": segment} for segment in loaded.segments]
                read = self._ports.features.read
                found = await self._patience("feast", "read vectors", read, "cover_generation", entities)
                rows = dict(zip(loaded.segments, found, strict=True))
                self._vectors = (loaded, time.monotonic() + VECTORS_SECONDS, rows)
        vectors = vectors_from(segments, rows, loaded.space, loaded.generator.dimension)
        for problem in vectors.problems.values():
            metrics.VECTOR_PROBLEMS.labels(problem=problem).inc()
        if vectors.problems:
            log.warning("drawn neutral for want of a vector: %s", dict(vectors.problems))
        return vectors.by_segment

    async def _proposed(self, loaded: Loaded, asked: Sequence[str] | None) -> Mapping[str, Vector | None]:
        """Vectors of segments that a refresh names and the release does not have: those of a proposed set."""
        others = [segment for segment in asked or () if segment not in {"neutral", *loaded.segments}]
        if not others:
            return {}
        entities = [{"segment_id": segment} for segment in others]
        found = await self._patience("feast", "read vectors", self._ports.features.read, "cover_generation", entities)
        vectors = vectors_from(others, dict(zip(others, found, strict=True)), loaded.space, loaded.generator.dimension)
        # One without a vector is nobody's: its cover would be the neutral one under a name that nobody has.
        return {segment: vector for segment, vector in vectors.by_segment.items() if vector is not None}

    async def _reference(self, item: Item, refreshing: Manifest | None, memory: _Memory) -> Reference | None:
        """The item's own picture, fetched once however often the event is decided again."""
        if item.reference_image is None:
            return None
        if memory.reference is None:
            with metrics.stage("reference"):
                memory.reference = await self._patience(
                    "s3", "fetch a reference image", self._ports.fetcher.fetch, item.reference_image
                )
        if refreshing is not None and memory.reference.sha256 != refreshing.reference_sha256:
            raise BadEvent("reference image: it has changed since the item was published; publish a greater version")
        return memory.reference

    async def _platform_picture(
        self, item: Item, reference: Reference, loaded: Loaded, source: Source
    ) -> ManifestCover:
        """The reference image as a cover in our size and format. The gate does not judge what is not ours."""
        sampler = sampler_record(loaded.sampler)
        cover = plan_reference(item, reference.sha256, loaded.release, sampler, self._rendition)
        found = await self._shelf.find(item, {cover.cover_id: cover})
        if not found:
            picture = await asyncio.to_thread(filling, decode(reference.data), self._rendition)
            [judged] = await self._studio.judge([picture], [item.title])
            found = await self._shelf.put(item, [cover], {cover.cover_id: judged}, loaded, source)
        return found[cover.cover_id]

    async def _announce(
        self, item_id: str, outcome: Outcome, manifest: Manifest | None, message: Message, reason: str | None
    ) -> None:
        """Feast, then `cover-ready`, from the manifest alone."""
        if manifest is not None and outcome in {Outcome.DRAWN, Outcome.RETRACTED}:
            with metrics.stage("feast"):
                await self.rows.follow(manifest)
        event = ready_event(item_id, manifest, message.source(), outcome, self._ports.store.address, reason)
        with metrics.stage("ready"):
            await self._deliver(lambda: self._ports.producer.send_event(event, event.event_id()))
        if message.timestamp_ms > 0:
            metrics.READY.labels(message.topic).observe(max(0.0, time.time() - message.timestamp_ms / 1000))

    async def _row(self, manifest: Manifest) -> dict[str, Any]:
        size = self._rendition.rendition_id
        known = await self._patience("s3", "read embeddings", self._embeddings.of, manifest, size)
        return feast_row(manifest, size, known)

    async def _refuse(self, message: Message, reason: str) -> None:
        log.warning("dead letter from %s[%d]@%d: %s", message.topic, message.partition, message.offset, reason)
        await self._deliver(lambda: self._ports.producer.dead_letter(message, reason, message.attempt))
        metrics.DEAD_LETTERS.inc()

    async def _deliver(self, send: Callable[[], Future[tuple[int, int]]]) -> None:
        """Produce, and wait for the broker to have it. librdkafka tries without limit; we only say that we wait."""
        attempt = 0
        while True:
            try:
                sent = await self._patience("kafka", "produce", send)
                delivery = asyncio.wrap_future(sent)
                await self._patience.until("kafka", delivery, "the broker does not take what we produce")
                return
            except Fault as fault:
                attempt += 1
                await self._patience.pause("kafka", "produce", attempt, fault)


class _Memory:
    """What an event remembers while it is decided again."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.reference: Reference | None = None
        self.counted = 0
