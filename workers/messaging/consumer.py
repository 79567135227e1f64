"""Consuming as a member of a group."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from workers.exceptions import MessagingFault, OffsetLost
from workers.messaging.client import REFUSALS, Client, Start, client_config, connect, some
from workers.messaging.message import Message
from workers.settings import Kafka

log = logging.getLogger(__name__)

# A worker may wait for S3 for hours and still own its partitions: only the watchdog in `workers.health` judges hanging.
_POLL_INTERVAL_MS = 24 * 3600 * 1000

Rebalance = Callable[[set[tuple[str, int]]], None]


class Consumer(Client):
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
        on_lost: Rebalance | None = None,
        start: Start = "earliest",
    ) -> None:
        """
        Args:
            on_assign: called inside `poll` with all (topic, partition) owned now; may `seek` them.
            on_revoke: called inside `poll` or `close` with what is taken away; may still `commit`.
            on_lost: called instead for what somebody else may own already, because the session has ended (default:
                `on_revoke`, whose `commit` then fails).
            start: where a group begins that never committed. `latest` is committed at once, so that a restart before
                the first commit skips nothing.
        """
        self.group = group
        self._start = start
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost or on_revoke
        self._assigned: set[tuple[str, int]] = set()
        self._unresolved: list[TopicPartition] = []
        self._lost: OffsetLost | None = None
        self._refused: MessagingFault | None = None
        self._revocations = 0
        self._quiet: dict[str, float] = {}
        self._client = connect(
            confluent_kafka.Consumer,
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
        )
        self._client.subscribe(list(topics), on_assign=self._given, on_revoke=self._taken, on_lost=self._gone)

    def _given(self, _: Any, partitions: list[TopicPartition]) -> None:
        # The committed offsets are asked for outside of this callback, where a broker that is away can be waited for.
        self._unresolved = partitions
        self._client.assign([])

    def _taken(self, _: Any, partitions: list[TopicPartition]) -> None:
        self._give_up(partitions, self._on_revoke)

    def _gone(self, _: Any, partitions: list[TopicPartition]) -> None:
        self._give_up(partitions, self._on_lost)

    def _give_up(self, partitions: list[TopicPartition], tell: Rebalance | None) -> None:
        self._revocations += 1
        gone = {(p.topic, p.partition) for p in partitions} & self._assigned
        if gone and tell is not None:
            tell(gone)
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

        All are of partitions that are still ours: what was read of others is dropped, and read by their next owner.

        Args:
            linger: once there is one, wait so many seconds more for `most` of them; by default take what is there.

        Raises:
            OffsetLost: the broker dropped what was to be read next; again at each call until `seek`.
            MessagingFault: the group or topic refuses us, or this client is broken for good.
        """
        if self._lost is not None:
            raise self._lost
        if self._refused is not None:
            refused, self._refused = self._refused, None
            raise refused
        before = self._revocations
        records = some(self._client, most, timeout, linger)
        if self._revocations != before:
            # It reads the first record by itself; a rebalance that comes while it waits for others takes that one back.
            # Whoever had it would count as read what lies before it, and was dropped with the partition.
            records = []
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
            elif error.fatal() or error.code() in REFUSALS:
                self._refused = MessagingFault(f"{self.group}: {error.str()}")
            else:
                self._complain(error)
        if good:  # first: nobody would read them again
            return good
        if self._lost is not None:
            raise self._lost
        if self._refused is not None:
            refused, self._refused = self._refused, None
            raise refused
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
