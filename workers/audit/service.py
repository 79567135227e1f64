"""The audit service: every topic but two, appended to its table, each message once.

One loop in one thread: poll, decode, append, commit the Kafka offsets, compact. An append that is repeated (a kill
between append and commit, a rebalance) is recognised by the offsets inside the table, see `workers.audit.delta`.
"""

from __future__ import annotations

import logging
import threading
import time

from prometheus_client import Counter, Gauge, Histogram

from workers import tracing
from workers.audit.erasure import forgetter
from workers.audit.sink import TOPICS, Partition, Sink
from workers.erased import Erased
from workers.exceptions import Fault, MessagingFault, OffsetLost, Stopped, StorageFault
from workers.forgetting import Forgetting
from workers.health import Health
from workers.messaging import Consumer
from workers.settings import Settings
from workers.storage import ObjectStore, retrying
from workers.supervisor import ends_within

log = logging.getLogger(__name__)

GROUP = "audit"
STUCK_SECONDS = 900.0
DRAIN_SECONDS = 10.0
"""For the last rows and offsets at SIGTERM, whatever hangs. What is unwritten then is read again, once."""
PATIENCE_SECONDS = 3.0
"""How long broker and store may take to say that they are there, and how often they are asked."""

_ROWS = Counter("icg_audit_rows", "Rows appended.", ["table"])
_APPEND = Histogram("icg_audit_append_seconds", "One flush of all tables.", buckets=(0.1, 0.3, 1, 3, 10, 30))
_LAG = Gauge("icg_audit_lag", "Messages not read yet.", ["topic"])
_COMPACTED = Counter("icg_audit_compacted_days", "Days whose small files were merged.", ["table"])


def run(settings: Settings, stop: threading.Event) -> int:
    """Run until `stop`; the exit status."""
    health = Health(settings.health_port, host=settings.health_host, service="audit")
    try:
        with ends_within(DRAIN_SECONDS, stop):
            return Audit(settings, health, stop).run()
    finally:
        health.close()


class Audit:
    """The loop, and what it holds."""

    def __init__(self, settings: Settings, health: Health, stop: threading.Event) -> None:
        self._settings = settings
        self._health = health
        self._stop = stop
        self._erased = Erased(settings, ObjectStore(settings.s3, timeout=PATIENCE_SECONDS))
        self._forgetting = Forgetting(settings, "audit", forgetter(settings), self._erased, stop, self._away)
        self._sink = Sink(settings, self._erased)
        self._store = ObjectStore(settings.s3, timeout=PATIENCE_SECONDS)
        self._uncommitted: dict[Partition, int] = {}
        self._asked = 0.0
        for condition in ("kafka", "storage"):
            health.set(condition, False, "starting")

    def run(self) -> int:
        self._health.watch(STUCK_SECONDS, lambda: True)
        try:
            retrying(self._store.ensure_bucket, what="bucket", stop=self._stop, on_retry=self._away)
        except Stopped:
            return 0
        self._health.set("storage", True)
        self._erased.start()
        self._forgetting.start()
        consumer = Consumer(self._settings.kafka, GROUP, TOPICS, on_revoke=self._revoked)
        try:
            while not self._stop.is_set() and self._forgetting.failed is None:
                self._step(consumer)
            self._flush(consumer)
        except Stopped as error:
            log.warning("ends with %d messages unwritten, they will be read again: %s", self._sink.messages, error)
        except OffsetLost as error:
            log.error("%s. Messages are gone; to go on without them, reset the offsets of group %s.", error, GROUP)
            return 1
        finally:
            consumer.close()
            self._stop.set()
            self._forgetting.join(5)
            self._erased.stop()
        return 0 if self._forgetting.failed is None else 1

    def _step(self, consumer: Consumer) -> None:
        limits = self._settings.audit
        try:
            self._sink.take(consumer.poll(max(1, limits.batch_rows - self._sink.messages), 0.2))
        except MessagingFault as fault:
            self._health.set("kafka", False, str(fault))
            self._stop.wait(1.0)
            return
        self._check_servers(consumer)
        self._health.progress()
        if self._sink.messages >= limits.batch_rows or self._sink.age >= limits.batch_seconds:
            self._flush(consumer)
        elif self._uncommitted:
            self._commit(consumer)

    def _flush(self, consumer: Consumer) -> None:
        """Rows, then offsets, then compaction. Blocks while S3 is away; the group does not mind, heartbeats go on."""
        self._sink.forget()
        if not self._sink.messages:
            self._uncommitted |= self._sink.take_offsets()  # of messages that were dropped
            self._commit(consumer)
            return
        with _APPEND.time(), tracing.together("append", self._sink.headers()):
            new = retrying(self._append, what="append", stop=self._stop, on_retry=self._away)
        self._health.set("storage", True)
        for table, rows in new.items():
            _ROWS.labels(table).inc(rows)
        self._uncommitted |= self._sink.take_offsets()
        self._commit(consumer)
        if self._stop.is_set():
            return
        try:
            for table, days in self._sink.compact(new).items():
                _COMPACTED.labels(table).inc(len(days))
                log.info("audit/%s: compacted %s", table, ", ".join(map(str, days)))
        except StorageFault as fault:
            log.warning("compaction is left for later: %s", fault)

    def _append(self) -> dict[str, int]:
        # Asked first: a write that S3 does not answer takes delta-rs longer to give up, and it panics on stderr.
        if not self._store.ping():
            raise StorageFault(f"no answer from bucket {self._settings.s3.bucket}")
        return self._sink.flush()

    def _commit(self, consumer: Consumer) -> None:
        owned = consumer.assignment()
        # What was taken away while it was being written is for its new owner to commit; the table knows its rows.
        self._uncommitted = {each: offset for each, offset in self._uncommitted.items() if each in owned}
        try:
            consumer.commit(self._uncommitted)
            self._uncommitted.clear()
        except MessagingFault as fault:
            # Kept for the next round. Nothing is doubled: the tables know their offsets.
            log.warning("%s", fault)
            self._stop.wait(0.2)

    def _revoked(self, partitions: set[Partition]) -> None:
        self._sink.drop(partitions)
        for partition in partitions:
            self._uncommitted.pop(partition, None)

    def _away(self, fault: Fault) -> None:
        self._health.set("storage", False, str(fault))
        self._health.progress()

    def _check_servers(self, consumer: Consumer) -> None:
        """A quiet topic and a broker that is gone look the same to `poll`, so both are asked now and then."""
        if time.monotonic() - self._asked > PATIENCE_SECONDS:
            broker, store = consumer.ping(), self._store.ping()
            why = "no answer" if not broker else "no partitions assigned"
            self._health.set("kafka", broker and bool(consumer.assignment()), why)
            self._health.set("storage", store, "no answer")
            if broker:
                self._show_lag(consumer)
            self._asked = time.monotonic()

    def _show_lag(self, consumer: Consumer) -> None:
        behind = dict.fromkeys(TOPICS, 0)
        try:
            for (topic, _), lag in consumer.lag(PATIENCE_SECONDS).items():
                behind[topic] += lag
        except MessagingFault as fault:
            log.info("%s", fault)  # the ping beside this says that the broker is away
            return
        for topic, lag in behind.items():
            _LAG.labels(topic).set(lag)
