"""Producing: idempotent, traced, and what is refused with its reasons to `dead-letters`."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException
from opentelemetry.trace import Span

from workers import tracing
from workers.events import (
    DEAD_LETTERS,
    CoverReady,
    Event,
    PreferencePairs,
    UserBehavior,
    dead_letter_headers,
    headers_for,
)
from workers.exceptions import MessageTooLarge, MessagingFault
from workers.messaging.client import Client, client_config, connect
from workers.messaging.message import Message
from workers.settings import Kafka

log = logging.getLogger(__name__)

MOST_BYTES = 1_000_000
"""Of one message with key and headers: librdkafka's default, just below the broker's 1,048,588."""
ASK_SECONDS = 1.0
"""What is undelivered at two looks in a row, so far apart, has waited for longer than a broker takes."""


class Producer(Client):
    """Idempotent, acknowledged by all replicas, retried without limit. Thread-safe.

    A thread of its own serves delivery reports, so futures complete without anybody polling. Another one asks for
    metadata while something stays undelivered: librdkafka waits by the wall clock, so where that is put back its main
    thread sleeps for as long, and with it what begins there (a new topic, another leader). An answer wakes it.
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
        self._asker = threading.Thread(target=self._ask, name=f"producer-{name}-asks", daemon=True)
        self._asker.start()

    def _connect(self) -> confluent_kafka.Producer:
        return connect(
            confluent_kafka.Producer,
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
        )

    def _serve(self) -> None:
        while not self._closed.is_set():
            self._client.poll(0.1)

    def _ask(self) -> None:
        waits = 0
        while not self._closed.wait(ASK_SECONDS):
            waits = waits + 1 if len(self._client) else 0
            if waits > 1:
                self.ping()

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
        self._asker.join()
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
