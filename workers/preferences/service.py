"""`icg run preferences`: reads `user-behavior`, keeps tastes in Feast up to date, and releases preference revisions.

One thread reads and learns, one trains, one pushes to Feast, one follows releases. What the process knows is in its
checkpoints; nothing is lost with it.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, TypeVar

from icg.exceptions import BadWeights
from icg.preference import Head
from workers import tracing
from workers.erased import Erased
from workers.exceptions import BadPart, MessagingFault, OffsetLost, Stopped
from workers.features import Features
from workers.following import ReleaseFollower
from workers.forgetting import Forgetting
from workers.health import Health
from workers.messaging import Consumer, Producer
from workers.preferences import metrics
from workers.preferences.checkpoint import BadState, Checkpoints, Superseded
from workers.preferences.erasure import forgetter
from workers.preferences.partitions import TOPIC, Partitions, commit
from workers.preferences.push import Pusher
from workers.preferences.sources import Stores
from workers.preferences.training import Training
from workers.reachable import Reachable
from workers.records import Release
from workers.releases import Releases
from workers.settings import Settings
from workers.storage import ObjectStore, retrying
from workers.topics import ensure_topics

log = logging.getLogger(__name__)

GROUP = "preferences"
TEND_SECONDS = 2.0
STUCK_SECONDS = 900.0

T = TypeVar("T")


def run(settings: Settings, stop: threading.Event) -> int:
    """Run until told to stop. 0 after a drain, 1 where something ended it that a retry does not cure."""
    health = Health(settings.health_port, host=settings.health_host, service="preferences")
    try:
        return _Service(settings, stop, health).run()
    except Stopped:
        return 0
    except (Superseded, OffsetLost, BadState) as error:
        log.error("%s", error)
        return 1
    finally:
        health.close()


class _Service:
    def __init__(self, settings: Settings, stop: threading.Event, health: Health) -> None:
        self._settings, self._stop, self._health = settings, stop, health
        self._servers = Reachable(health)
        self._release: tuple[int, Head] | None = None
        self._has_release = threading.Event()
        self._busy = False
        health.set("release", False, "no release with a preference model yet")
        health.set("partitions", False, "not assigned yet")

    def run(self) -> int:
        settings, stop, fault = self._settings, self._stop, self._servers.fault
        store = ObjectStore(settings.s3)
        self._retrying(lambda: ensure_topics(settings.kafka), "topics")
        producer = Producer(settings.kafka, "preferences")
        self._releases = Releases(store, settings.cache, producer)
        features: Features = self._retrying(lambda: Features(settings.feast), "open the feature store")
        follower = ReleaseFollower(settings.kafka, self._releases, self._told)
        follower.start()
        self._servers.asks |= {
            "s3": ObjectStore(settings.s3, timeout=2, attempts=1).ping,
            "feast": features.ping,
            "kafka": producer.ping,
        }
        self._servers.start()
        pusher = Pusher(features, settings.preferences.push_seconds, fault)
        try:
            while not self._has_release.wait(0.2):
                if stop.is_set():
                    return 0
            number, head = self._newest()
            sources = Stores(store, features, stop, fault)
            checkpoints = Checkpoints(store)
            erased = Erased(settings, store)
            self._retrying(erased.poll, "read who was erased")
            erased.start()
            forget = forgetter(settings, checkpoints, stop)
            forgetting = Forgetting(settings, "preferences", forget, erased, stop, fault)
            partitions = Partitions(
                settings.preferences,
                settings.erasure.retention_days,
                (settings.api.decision_key.get_secret_value().encode(),),
                checkpoints,
                sources,
                producer,
                pusher,
                self._head_of,
                erased,
                stop,
                fault,
            )
            partitions.release = (number, head)
            pusher.start()
            training = Training(settings, checkpoints, self._releases, producer, self._newest, stop, fault)
            training.start()
            forgetting.start()
            gc.collect()
            gc.freeze()  # modules and clients: the collector need not walk them again with every batch
            self._health.watch(STUCK_SECONDS, lambda: self._busy)
            try:
                self._read(partitions, pusher, training)
            finally:
                stop.set()
                training.join(10)
                forgetting.join(10)
                erased.stop()
                pusher.close()
                sources.close()
            if training.failed is not None and not isinstance(training.failed, Stopped):
                raise training.failed
            return 1 if pusher.failed is not None else 0
        finally:
            self._servers.stop()
            follower.stop()
            producer.close(5)
            features.close()

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _read(self, partitions: Partitions, pusher: Pusher, training: Training) -> None:
        settings = self._settings.preferences

        def assigned(owned: set[tuple[str, int]]) -> None:
            partitions.assign(consumer, sorted(partition for _, partition in owned))
            self._health.set("partitions", True)

        def revoked(gone: set[tuple[str, int]]) -> None:
            offsets = partitions.revoke(sorted(partition for _, partition in gone))
            commit(consumer, {(TOPIC, partition): offset for partition, offset in offsets.items()})

        def lost(gone: set[tuple[str, int]]) -> None:
            partitions.drop(sorted(partition for _, partition in gone))

        consumer = Consumer(self._settings.kafka, GROUP, [TOPIC], on_assign=assigned, on_revoke=revoked, on_lost=lost)
        next_push = next_tend = 0.0
        try:
            while not self._stop.is_set() and pusher.failed is None:
                records = self._poll(consumer, settings.batch_events)
                self._busy = bool(records)
                self._learn(partitions, records)
                self._health.progress()
                now = time.monotonic()
                if now >= next_push:
                    next_push = now + settings.push_seconds
                    partitions.push_all()
                if now >= next_tend:
                    next_tend = now + TEND_SECONDS
                    partitions.release = self._newest()
                    partitions.tend()
                    partitions.forget()
                    commit(consumer, partitions.offsets())
                    self._show_lag(consumer)
        finally:
            self._busy = False
            consumer.close()  # revokes, so writes the last checkpoints

    def _poll(self, consumer: Consumer, most: int) -> list[Any]:
        return self._retrying(lambda: consumer.poll_raw(most, 0.2), "read behaviour")

    def _learn(self, partitions: Partitions, records: Sequence[Any]) -> None:
        ordered = sorted(records, key=lambda record: record.partition())  # stable: offsets stay in order
        with tracing.together("learn", map(_headers, records)):
            for partition, each in groupby(ordered, key=lambda record: record.partition()):
                partitions.take(partition, list(each))

    def _show_lag(self, consumer: Consumer) -> None:
        try:
            for (topic, partition), lag in consumer.lag(2.0).items():
                metrics.LAG.labels(topic, str(partition)).set(lag)
        except MessagingFault as fault:
            self._servers.fault(fault)

    # -- releases ----------------------------------------------------------------------------------------------------

    def _told(self, release: Release) -> None:
        """In the follower's thread."""
        if "preference" not in release.parts:
            return
        try:
            head = Head.load(self._releases.fetch("preference", release.parts["preference"]))
            if head.space != release.parts.get("space", head.space):
                raise BadPart("the preference head is of another space than the release")
        except (BadPart, BadWeights) as error:
            metrics.RELEASES.labels("refused").inc()
            log.error("release %d is refused: %s", release.number, error)
            return
        self._release = (release.number, head)
        metrics.RELEASE.set(release.number)
        self._health.set("release", True)
        self._has_release.set()

    def _newest(self) -> tuple[int, Head]:
        assert self._release is not None
        return self._release

    def _head_of(self, number: int) -> Head:
        release = self._releases.release(number)
        return Head.load(self._releases.fetch("preference", release.parts["preference"]))

    def _retrying(self, call: Callable[[], T], what: str) -> T:
        return retrying(call, what=what, stop=self._stop, on_retry=self._servers.fault)


def _headers(record: Any) -> dict[str, bytes]:
    return {name: value or b"" for name, value in record.headers() or ()}
