"""Kafka through confluent-kafka: produce, consume in a group, follow without one.

Left out on purpose: transactions (an event's effects are idempotent instead), schema registries (`workers.events` is
the schema) and asyncio (`workers.covers` consumes with Faust).
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from opentelemetry.trace import Span

from workers import tracing
from workers.events import (
    DEAD_LETTERS,
    CoverReady,
    Event,
    PreferencePairs,
    Source,
    UserBehavior,
    dead_letter_headers,
    headers_for,
)
from workers.exceptions import MessageTooLarge, MessagingFault, OffsetLost
from workers.settings import Kafka

log = logging.getLogger(__name__)

MOST_BYTES = 1_000_000
"""Of one message with key and headers: librdkafka's default, just below the broker's 1,048,588."""

# A worker may wait for S3 for hours and still own its partitions: only the watchdog in `workers.health` judges hanging.
_POLL_INTERVAL_MS = 24 * 3600 * 1000

Start = Literal["earliest", "latest"]
Rebalance = Callable[[set[tuple[str, int]]], None]


def client_config(settings: Kafka) -> dict[str, Any]:
    """What every librdkafka client of ours has in common: address, security, time limits."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "security.protocol": settings.security_protocol,
        # A broker that hangs (a paused process, a dropped route) is noticed after 10 s, not after a minute.
        "socket.timeout.ms": 10_000,
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": 2_000,
        "topic.metadata.refresh.interval.ms": 30_000,
        "log_level": 4,
    }
    if settings.embedded:
        config["broker.address.family"] = "v4"  # the mock cluster listens on 127.0.0.1 alone
    if settings.security_protocol.startswith("SASL"):
        config["sasl.mechanism"] = settings.sasl_mechanism
        config["sasl.username"] = settings.sasl_username or ""
        config["sasl.password"] = settings.sasl_password.get_secret_value() if settings.sasl_password else ""
    if settings.ssl_ca_location is not None:
        config["ssl.ca.location"] = str(settings.ssl_ca_location)
    return config


@dataclass(frozen=True, slots=True)
class Message:
    """One consumed record. Of a header that is there twice the last value counts."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes] = field(default_factory=dict)
    timestamp_ms: int = 0

    @classmethod
    def of(cls, record: confluent_kafka.Message) -> Message:
        return cls(
            record.topic(),
            record.partition(),
            record.offset(),
            record.key(),
            record.value(),
            {name: value or b"" for name, value in record.headers() or ()},
            record.timestamp()[1],
        )

    def source(self) -> Source:
        """Where it lies, and its producer's own id (`ce_id`) if it has one."""
        given = self.headers.get("ce_id")
        return Source(
            topic=self.topic,
            partition=self.partition,
            offset=self.offset,
            event_id=given.decode("utf-8", "replace") if given else None,
        )


class _Reachable:
    """The part that all clients share: is the broker there?"""

    _client: Any

    def ping(self, timeout: float = 2.0) -> bool:
        """Ask the broker for its metadata. Blocks for `timeout` seconds at most; for readiness checks."""
        try:
            return bool(self._client.list_topics(timeout=timeout).brokers)
        except KafkaException:
            return False


def _some(client: Any, most: int, timeout: float, linger: float = 0.0) -> list[confluent_kafka.Message]:
    # `consume` alone waits for `most` records or the whole timeout, which would delay each event by it.
    first = client.poll(timeout)
    if first is None:
        return []
    return [first, *client.consume(most - 1, linger)] if most > 1 else [first]


class Producer(_Reachable):
    """Idempotent, acknowledged by all replicas, retried without limit. Thread-safe.

    A thread of its own serves delivery reports, so futures complete without anybody polling.
    """

    def __init__(self, settings: Kafka, name: str) -> None:
        """
        Args:
            name: the service: becomes `client.id` and the `ce_source` `/icg/<name>`.
        """
        self.name = name
        self._settings = settings
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._client = self._connect()
        self._thread = threading.Thread(target=self._serve, name=f"producer-{name}", daemon=True)
        self._thread.start()

    def _connect(self) -> confluent_kafka.Producer:
        return confluent_kafka.Producer(
            {
                **client_config(self._settings),
                "client.id": self.name,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 20,
                "message.timeout.ms": 0,  # without limit
                "message.max.bytes": MOST_BYTES,
                "compression.type": "gzip",  # aiokafka, under Faust, reads lz4 and zstd only with a package more
            },
            logger=log,
        )

    def _serve(self) -> None:
        while not self._closed.is_set():
            self._client.poll(0.1)

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: str | bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        partition: int | None = None,
    ) -> Future[tuple[int, int]]:
        """Queue a message.

        Returns:
            A future of (partition, offset), completed once all replicas have it. Its exceptions: `MessageTooLarge`,
            `MessagingFault` (only what librdkafka does not retry by itself, or a `close` before the delivery).

        Raises:
            MessageTooLarge: at once, when librdkafka itself refuses the size.
            MessagingFault: when the local queue stays full for 10 s, or after `close`.
        """
        future: Future[tuple[int, int]] = Future()
        future.set_running_or_notify_cancel()

        def delivered(error: KafkaError | None, record: confluent_kafka.Message) -> None:
            if error is None:
                future.set_result((record.partition(), record.offset()))
            elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                future.set_exception(_too_large(topic, value))
            else:
                future.set_exception(MessagingFault(f"{topic}: {error.str()}"))

        options: dict[str, Any] = {} if partition is None else {"partition": partition}
        until = time.monotonic() + 10
        while True:
            if self._closed.is_set():
                raise MessagingFault(f"{topic}: the producer is closed")
            client = self._client
            try:
                client.produce(topic, value, key, on_delivery=delivered, headers=dict(headers or {}), **options)
                return future
            except BufferError:
                if time.monotonic() > until:
                    raise MessagingFault(f"{topic}: the producer's queue stays full") from None
                time.sleep(0.02)
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise _too_large(topic, value) from None
                if code != KafkaError._FATAL or time.monotonic() > until:
                    raise MessagingFault(f"{topic}: {error.args[0].str()}") from None
                self._renew(client)

    def _renew(self, broken: confluent_kafka.Producer) -> None:
        """After a fatal error of the idempotent protocol only a new producer helps; the old one fails its messages."""
        with self._lock:
            if self._client is broken:
                log.warning("producer %s starts anew after a fatal error", self.name)
                self._client = self._connect()
                broken.flush(5)

    def send_event(self, event: Event, event_id: str | None = None) -> Future[tuple[int, int]]:
        """Queue an event under its own topic and key, with CloudEvents headers and the current trace.

        Args:
            event_id: default: the event's own, a new UUID where it has none.
        """
        if event_id is None:
            event_id = _own_id(event) or str(uuid.uuid4())
        partition = 0 if isinstance(event, PreferencePairs) else None
        span = tracing.sending(event.topic, event.key(), event_id)
        headers = headers_for(event, event_id, f"/icg/{self.name}", tracing.headers_of(span))
        return self._traced(span, event.topic, event.encode(), event.key(), headers, partition)

    def _traced(
        self,
        span: Span,
        topic: str,
        value: bytes | None,
        key: str | bytes | None,
        headers: Mapping[str, bytes],
        partition: int | None = None,
    ) -> Future[tuple[int, int]]:
        """Send; the span ends with the delivery."""
        try:
            future = self.send(topic, value, key, headers, partition)
        except BaseException as error:
            span.record_exception(error)
            span.end()
            raise
        if span.is_recording():
            future.add_done_callback(lambda _: span.end())
        return future

    def dead_letter(self, message: Message, reason: str, attempt: int = 1) -> Future[tuple[int, int]]:
        """Queue the original bytes under the original key to `dead-letters`; the headers say why and where from.

        What would not fit beside those headers is cut, and `dlq_truncated` says from how many bytes: a dead letter that
        cannot be written would hold back its partition for ever. Its trace is the current one, else the message's own.
        """
        parent = None if tracing.current_trace_id() else tracing.context_of(message.headers)
        span = tracing.sending(DEAD_LETTERS, message.key, message.source().event_id or "", parent)
        traced = {name: value.encode() for name, value in tracing.headers_of(span).items()}
        headers = dead_letter_headers(reason, message.source(), self.name, attempt, message.headers | traced)
        room = MOST_BYTES - 1_000 - len(message.key or b"") - _size(headers)
        if room < 100_000:  # the headers themselves are the attack
            headers = dead_letter_headers(reason, message.source(), self.name, attempt, traced)
            headers["dlq_headers_dropped"] = b"1"
            room = MOST_BYTES - 1_000 - len(message.key or b"") - _size(headers)
        value, key = message.value, message.key
        if key is not None and len(key) > 100_000:
            key, room = key[:1_000], room + len(key) - 1_000
        if value is not None and len(value) > room - 100:
            headers["dlq_truncated"] = str(len(value)).encode()
            value = value[: room - 100]
        return self._traced(span, DEAD_LETTERS, value, key, headers)

    def flush(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for deliveries; how many messages are still on the way."""
        return int(self._client.flush(timeout))

    def close(self, timeout: float = 10.0) -> None:
        """Deliver what is queued, for `timeout` seconds at most; what is left then fails with `MessagingFault`."""
        left = self.flush(timeout)
        self._closed.set()
        self._thread.join()
        if left:
            log.error("producer %s closes with %d messages undelivered", self.name, left)
            self._client.purge()
            self._client.flush(2)


def _too_large(topic: str, value: bytes | None) -> MessageTooLarge:
    return MessageTooLarge(f"{topic}: a message of {len(value or b''):,} bytes is larger than the broker takes")


def _size(headers: Mapping[str, bytes]) -> int:
    return sum(len(name) + len(value) + 10 for name, value in headers.items())


def _own_id(event: Event) -> str | None:
    if isinstance(event, UserBehavior):
        return event.event_id
    if isinstance(event, CoverReady):
        return event.event_id()
    return None


class Consumer(_Reachable):
    """A member of a consumer group. Commits only what it is told to. For one thread, `close` included.

    A partition without any committed offset begins at `start`; from then on an offset that the broker no longer has is
    `OffsetLost`, never a silent jump (`auto.offset.reset=error`). Partitions of several topics are assigned by range:
    partition n of each goes to the same member.
    """

    def __init__(
        self,
        settings: Kafka,
        group: str,
        topics: Sequence[str],
        *,
        on_assign: Rebalance | None = None,
        on_revoke: Rebalance | None = None,
        start: Start = "earliest",
    ) -> None:
        """
        Args:
            on_assign: called inside `poll` with all (topic, partition) owned now; may `seek` them.
            on_revoke: called inside `poll` or `close` with what is taken away; may still `commit`, except after a
                session that is lost already.
            start: where a group begins that never committed. `latest` is committed at once, so that a restart before
                the first commit skips nothing.
        """
        self.group = group
        self._start = start
        self._on_assign, self._on_revoke = on_assign, on_revoke
        self._assigned: set[tuple[str, int]] = set()
        self._unresolved: list[TopicPartition] = []
        self._lost: OffsetLost | None = None
        self._quiet: dict[str, float] = {}
        self._client = confluent_kafka.Consumer(
            {
                **client_config(settings),
                "client.id": group,
                "group.id": group,
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "partition.assignment.strategy": "range",
                "session.timeout.ms": int(settings.session_timeout_seconds * 1000),
                "heartbeat.interval.ms": int(settings.heartbeat_seconds * 1000),
                "max.poll.interval.ms": _POLL_INTERVAL_MS,
                "fetch.wait.max.ms": 100,
                "fetch.error.backoff.ms": 100,
            },
            logger=log,
        )
        self._client.subscribe(list(topics), on_assign=self._given, on_revoke=self._taken, on_lost=self._taken)

    def _given(self, _: Any, partitions: list[TopicPartition]) -> None:
        # The committed offsets are asked for outside of this callback, where a broker that is away can be waited for.
        self._unresolved = partitions
        self._client.assign([])

    def _taken(self, _: Any, partitions: list[TopicPartition]) -> None:
        gone = {(p.topic, p.partition) for p in partitions} & self._assigned
        if gone and self._on_revoke is not None:
            self._on_revoke(gone)
        self._assigned -= gone
        self._unresolved = []
        self._lost = None
        self._client.unassign()

    def _resolve(self, timeout: float) -> None:
        """Begin each new partition at its committed offset, or at `start` where there is none."""
        try:
            found = self._client.committed(self._unresolved, timeout=max(timeout, 1.0))
            fresh = []
            for partition in found:
                if partition.error is not None:
                    raise KafkaException(partition.error)
                if partition.offset < 0:
                    low, high = self._client.get_watermark_offsets(partition, timeout=max(timeout, 1.0))
                    partition.offset = low if self._start == "earliest" else high
                    fresh.append(partition)
            if fresh and self._start == "latest":
                self._client.commit(offsets=fresh, asynchronous=False)
        except KafkaException as error:
            self._complain(error.args[0])
            return
        self._unresolved = []
        self._client.assign(found)
        self._assigned = {(p.topic, p.partition) for p in found}
        if self._on_assign is not None:
            self._on_assign(set(self._assigned))

    def _complain(self, error: KafkaError) -> None:
        """One line per kind of trouble and half minute."""
        now = time.monotonic()
        if now - self._quiet.get(error.name(), -60.0) > 30:
            self._quiet[error.name()] = now
            log.warning("%s: %s", self.group, error.str())

    def poll_raw(self, most: int, timeout: float, linger: float = 0.0) -> list[confluent_kafka.Message]:
        """Up to `most` records as librdkafka gives them, in order within each partition; [] after `timeout` seconds.

        Args:
            linger: once there is one, wait so many seconds more for `most` of them; by default take what is there.

        Raises:
            OffsetLost: the broker dropped what was to be read next; again at each call until `seek`.
            MessagingFault: the group or topic refuses us, or this client is broken for good.
        """
        if self._lost is not None:
            raise self._lost
        records = _some(self._client, most, timeout, linger)
        if self._unresolved:
            self._resolve(timeout)
        for at, record in enumerate(records):
            if record.error() is not None:
                return self._without_errors(records, at)
        return list(records)

    def _without_errors(self, records: list[confluent_kafka.Message], first: int) -> list[confluent_kafka.Message]:
        good = records[:first]
        for record in records[first:]:
            error = record.error()
            if error is None:
                good.append(record)
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                if self._go_on(record.topic() or "", record.partition() or 0, record.offset()):
                    continue
                self._lost = OffsetLost(
                    f"{record.topic()}[{record.partition()}]: the broker no longer has the next offset of group "
                    f"{self.group}: {error.str()}"
                )
            elif error.fatal() or error.code() in _REFUSALS:
                raise MessagingFault(f"{self.group}: {error.str()}")
            else:
                self._complain(error)
        if self._lost is not None and not good:
            raise self._lost
        return good

    def _go_on(self, topic: str, partition: int, offset: int | None) -> bool:
        """Read on at an offset that librdkafka takes for gone, if the broker has it after all.

        After two minutes without the embedded broker it takes an empty partition for truncated: that broker answers the
        question where a leader's epoch ended with -1.
        """
        try:
            low, high = self._client.get_watermark_offsets(TopicPartition(topic, partition), timeout=5)
            if offset is None or not max(low, 0) <= offset <= high:
                return False
            self._client.seek(TopicPartition(topic, partition, offset))
        except KafkaException as error:
            self._complain(error.args[0])
            return False
        log.warning("%s: %s[%d] goes on at %d, which the broker has after all", self.group, topic, partition, offset)
        return True

    def poll(self, most: int, timeout: float, linger: float = 0.0) -> list[Message]:
        """`poll_raw` as `Message`s."""
        return [Message.of(record) for record in self.poll_raw(most, timeout, linger)]

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Commit, synchronously, the NEXT offset to read of each (topic, partition).

        Raises:
            MessagingFault: not committed; if the partition has been revoked, its next owner reads again from before.
        """
        wanted = [TopicPartition(topic, partition, offset) for (topic, partition), offset in offsets.items()]
        if not wanted:
            return
        try:
            for partition in self._client.commit(offsets=wanted, asynchronous=False) or ():
                if partition.error is not None:
                    raise KafkaException(partition.error)
        except KafkaException as error:
            raise MessagingFault(f"{self.group}: commit: {error.args[0].str()}") from None

    def committed(self, timeout: float = 5.0) -> dict[tuple[str, int], int]:
        """The group's committed offsets of what this member owns; a partition without one is absent."""
        owned = [TopicPartition(*each) for each in self._assigned]
        try:
            found = self._client.committed(owned, timeout=timeout) if owned else []
        except KafkaException as error:
            raise MessagingFault(f"{self.group}: {error.args[0].str()}") from None
        return {(p.topic, p.partition): p.offset for p in found if p.offset >= 0}

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Read `offset` next. The partition must be assigned.

        Raises:
            MessagingFault: it is not assigned, or its fetcher has not begun within 5 s.
        """
        until = time.monotonic() + 5
        while True:
            try:
                self._client.seek(TopicPartition(topic, partition, offset))
                self._lost = None
                return
            except KafkaException as error:
                # Right after an assignment the fetcher may not run yet: "Erroneous state".
                if error.args[0].code() != KafkaError._STATE or time.monotonic() > until:
                    raise MessagingFault(f"{topic}[{partition}]: seek: {error.args[0].str()}") from None
                time.sleep(0.02)

    def pause(self, partitions: Sequence[tuple[str, int]] | None = None) -> None:
        """Deliver nothing from these (default: all assigned) until `resume`."""
        self._client.pause([TopicPartition(*each) for each in partitions or self._assigned])

    def resume(self, partitions: Sequence[tuple[str, int]] | None = None) -> None:
        self._client.resume([TopicPartition(*each) for each in partitions or self._assigned])

    def assignment(self) -> set[tuple[str, int]]:
        """The (topic, partition) that this member owns now."""
        return set(self._assigned)

    def lag(self, timeout: float = 5.0) -> dict[tuple[str, int], int]:
        """Messages of each owned partition that `poll` has not returned yet.

        Raises:
            MessagingFault: the broker does not answer within `timeout` seconds.
        """
        behind = {}
        try:
            for at in self._client.position([TopicPartition(*each) for each in self._assigned]):
                low, high = self._client.get_watermark_offsets(at, timeout=timeout)
                if at.offset >= 0:
                    behind[at.topic, at.partition] = max(0, high - at.offset)
                else:  # nothing read yet since the assignment
                    begun = self._client.committed([at], timeout=timeout)[0].offset
                    behind[at.topic, at.partition] = max(0, high - (begun if begun >= 0 else low))
        except KafkaException as error:
            raise MessagingFault(f"{self.group}: lag: {error.args[0].str()}") from None
        return behind

    def close(self) -> None:
        """Leave the group; the others take over at once."""
        self._client.close()


_REFUSALS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._FATAL,
}


class Follower(_Reachable):
    """All partitions of one topic WITHOUT a group: every follower sees every message, nothing is committed.

    It begins with what the broker still has: a follower that was away too long goes on at the oldest message left.
    """

    def __init__(self, settings: Kafka, topic: str, start: Start = "earliest", timeout: float = 10.0) -> None:
        """
        Args:
            start: `latest` means: messages produced after this call has returned, none of them missed.
            timeout: seconds for each question to the broker.

        Raises:
            MessagingFault: the broker does not answer, or the topic is not there within `timeout` seconds.
        """
        self.topic = topic
        self._client = confluent_kafka.Consumer(
            {
                **client_config(settings),
                "group.id": f"icg-follower-{uuid.uuid4()}",  # librdkafka wants one; without subscribe it joins nothing
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
                "fetch.error.backoff.ms": 100,
            },
            logger=log,
        )
        try:
            partitions = [TopicPartition(topic, number) for number in self._partitions(timeout)]
            for each in partitions:
                low, high = self._ends(each, timeout)
                each.offset = low if start == "earliest" else high
            self._client.assign(partitions)
        except KafkaException as error:
            self._client.close()
            raise MessagingFault(f"{topic}: {error.args[0].str()}") from None
        self._next = {each.partition: each.offset for each in partitions}

    def _partitions(self, timeout: float) -> list[int]:
        until = time.monotonic() + timeout
        while True:
            found = self._client.list_topics(self.topic, timeout=timeout).topics[self.topic]
            if found.error is None and found.partitions:
                return sorted(found.partitions)
            if time.monotonic() > until:
                raise KafkaException(found.error)
            time.sleep(0.1)

    def _ends(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        until = time.monotonic() + timeout
        while True:
            try:
                low, high = self._client.get_watermark_offsets(partition, timeout=timeout)
                return low, high
            except KafkaException:
                # A topic made a moment ago: its metadata names the partition before its leader knows that it leads.
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def poll(self, most: int, timeout: float) -> list[Message]:
        """Up to `most` messages; [] after `timeout` seconds.

        Raises:
            MessagingFault: the broker refuses us.
        """
        good = []
        for record in _some(self._client, most, timeout):
            error = record.error()
            if error is None:
                self._next[record.partition()] = record.offset() + 1
                good.append(Message.of(record))
            elif error.fatal() or error.code() in _REFUSALS:
                raise MessagingFault(f"{self.topic}: {error.str()}")
        return good

    def caught_up(self, timeout: float = 5.0) -> bool:
        """Has `poll` returned everything that the topic holds at this moment?

        Raises:
            MessagingFault: the broker does not answer within `timeout` seconds.
        """
        try:
            for number, position in self._next.items():
                _, high = self._client.get_watermark_offsets(TopicPartition(self.topic, number), timeout=timeout)
                if position < high:
                    return False
        except KafkaException as error:
            raise MessagingFault(f"{self.topic}: {error.args[0].str()}") from None
        return True

    def close(self) -> None:
        self._client.close()


def wait_for_broker(settings: Kafka, timeout: float) -> None:
    """Return once the broker answers.

    Raises:
        MessagingFault: it does not within `timeout` seconds.
    """
    client = AdminClient(client_config(settings), logger=log)
    until = time.monotonic() + timeout
    while True:
        try:
            client.list_topics(timeout=max(0.1, min(2.0, until - time.monotonic())))
            return
        except KafkaException as error:
            if time.monotonic() > until:
                raise MessagingFault(
                    f"no broker at {settings.bootstrap_servers} within {timeout:g} s: {error.args[0].str()}"
                ) from None
            time.sleep(0.1)
