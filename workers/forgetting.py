"""The loop that forgets: `user-erasure` in, two passes over a service's own stores, a receipt that names nobody.

Each service that holds something of people runs one of these over what it owns. The second pass comes after
`ICG_ERASURE_SETTLE_SECONDS`: by then whoever had the person in hand when the first one ran (an append under way, a push
to Feast, a segment job that had read the table) has put it down, and has known for as long who is erased. Only then is
the offset committed, so the id itself is kept by Kafka alone and a crash begins anew; both passes may be repeated.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import Counter, Gauge
from pydantic import AwareDatetime

from workers.erased import Erased
from workers.events import BadEvent, Source, UserErasure
from workers.exceptions import Fault, MessagingFault, OffsetLost, Stopped
from workers.messaging import Consumer, Message, Producer
from workers.records import Record
from workers.settings import Settings
from workers.storage import ObjectStore, retrying

log = logging.getLogger(__name__)

DELIVERY_SECONDS = 10.0
"""After which the broker counts as away; the letter is waited for all the same."""

Forget = Callable[[str], Mapping[str, int]]
"""Removes a user_id from the stores of one service; what it removed, counted. May be called again at any time."""

_DONE = Counter("icg_erasure_finished", "People forgotten, both passes.", ["service"])
_WAITING = Gauge("icg_erasure_waiting", "People between the two passes.", ["service"])
_OLDEST = Gauge("icg_erasure_oldest_seconds", "Age of the oldest erasure that is not finished.", ["service"])


class Receipt(Record):
    """What was done about one erasure by one service. Names nobody."""

    service: str
    source: Source
    asked: AwareDatetime
    finished: AwareDatetime
    removed: dict[str, int]


def receipt_key(service: str, partition: int, offset: int) -> str:
    return f"erasure/receipts/{partition}-{offset}.{service}.json"


@dataclass(slots=True)
class _Pending:
    offset: int
    asked: datetime
    user_id: str | None  # None: nothing to be done, only its place in the order
    due: float
    removed: dict[str, int]


class Forgetting:
    """A thread. `failed` is what ended it, if something did."""

    def __init__(
        self,
        settings: Settings,
        service: str,
        forget: Forget,
        erased: Erased,
        stop: threading.Event,
        on_fault: Callable[[Fault], None] | None = None,
    ) -> None:
        self._settings, self._service, self._forget, self._erased = settings, service, forget, erased
        self._stop, self._on_fault = stop, on_fault
        self._store = ObjectStore(settings.s3)
        self._waiting: dict[tuple[str, int], deque[_Pending]] = defaultdict(deque)
        self._thread = threading.Thread(target=self._run, name="forgetting", daemon=True)
        self.failed: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float) -> None:
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._loop()
        except Stopped:
            pass
        except OffsetLost as error:
            self.failed = error
            log.error("%s. Erasures are gone unread: ask for them again, then reset the group's offsets.", error)
        except BaseException as error:
            self.failed = error
            log.exception("forgetting ends")

    def _loop(self) -> None:
        def revoked(gone: set[tuple[str, int]]) -> None:
            for partition in gone:
                self._waiting.pop(partition, None)

        group = f"{self._service}-erasure"
        consumer = Consumer(self._settings.kafka, group, [UserErasure.topic], on_revoke=revoked)
        try:
            while not self._stop.is_set():
                for message in self._poll(consumer):
                    self._begin(message)
                for partition in list(self._waiting):
                    self._finish(consumer, partition)
                self._show()
        finally:
            consumer.close()

    def _poll(self, consumer: Consumer) -> list[Message]:
        try:
            return consumer.poll(100, 0.5)
        except MessagingFault as fault:
            if self._on_fault is not None:
                self._on_fault(fault)
            self._stop.wait(1.0)
            return []

    def _begin(self, message: Message) -> None:
        now = time.monotonic()
        asked = datetime.fromtimestamp(max(0, message.timestamp_ms) / 1000, UTC)
        pending = _Pending(message.offset, asked, None, now, {})
        try:
            pending.user_id = UserErasure.decode(message.value).user_id
        except BadEvent as error:
            log.warning("%s[%d]@%d is no erasure: %s", message.topic, message.partition, message.offset, error)
            self._refuse(message, str(error))
        else:
            pending.removed = self._pass(pending.user_id)
            pending.due = time.monotonic() + self._settings.erasure.settle_seconds
        self._waiting[message.topic, message.partition].append(pending)

    def _pass(self, user_id: str) -> dict[str, int]:
        def once() -> dict[str, int]:
            self._erased.add(user_id)
            return dict(self._forget(user_id))

        # Named by no message: the log would be one more place that knows who it was.
        return retrying(once, what="forget somebody", stop=self._stop, on_retry=self._on_fault)

    def _finish(self, consumer: Consumer, partition: tuple[str, int]) -> None:
        queue = self._waiting[partition]
        reached: int | None = None
        while queue and queue[0].due <= time.monotonic():
            pending = queue[0]
            if pending.user_id is not None:
                for name, count in self._pass(pending.user_id).items():
                    pending.removed[name] = pending.removed.get(name, 0) + count
                self._write(partition, pending)
            queue.popleft()
            reached = pending.offset + 1
        if reached is not None and partition in consumer.assignment():
            try:
                consumer.commit({partition: reached})
            except MessagingFault as fault:
                log.warning("%s; the same erasures are done again after a restart", fault)

    def _write(self, partition: tuple[str, int], pending: _Pending) -> None:
        receipt = Receipt(
            service=self._service,
            source=Source(topic=partition[0], partition=partition[1], offset=pending.offset),
            asked=pending.asked,
            finished=datetime.now(UTC),
            removed=pending.removed,
        )
        key = receipt_key(self._service, partition[1], pending.offset)
        write = lambda: self._store.put_new(key, receipt.encode(), "application/json")  # noqa: E731
        retrying(write, what="write a receipt", stop=self._stop, on_retry=self._on_fault)
        _DONE.labels(self._service).inc()
        log.info("somebody is forgotten (%s): %s", self._service, receipt.removed)

    def _refuse(self, message: Message, reason: str) -> None:
        producer = Producer(self._settings.kafka, self._service)
        try:
            delivery = producer.dead_letter(message, reason)

            def delivered() -> None:
                try:
                    delivery.result(DELIVERY_SECONDS)
                except TimeoutError:
                    raise MessagingFault(f"not acknowledged for {DELIVERY_SECONDS:g} s") from None

            retrying(delivered, what="send a dead letter", stop=self._stop, on_retry=self._on_fault)
        finally:
            producer.close()

    def _show(self) -> None:
        waiting = [pending for queue in self._waiting.values() for pending in queue]
        _WAITING.labels(self._service).set(len(waiting))
        oldest = min((pending.asked for pending in waiting), default=None)
        _OLDEST.labels(self._service).set((datetime.now(UTC) - oldest).total_seconds() if oldest else 0)
