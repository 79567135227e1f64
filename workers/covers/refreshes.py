"""`item-refresh` by a plain aiokafka consumer in the same event loop, with its own group.

Not by Faust: it has one drain loop, and a held-back second stream would stop the first. Refreshes wait while a publish
does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from workers.covers.acks import Ticket
from workers.covers.lane import Lane
from workers.covers.publishes import ssl_context
from workers.events import ItemRefresh
from workers.exceptions import OffsetLost
from workers.messaging import Message
from workers.settings import Kafka

log = logging.getLogger(__name__)

GROUP = "icg-covers-refresh"
COMMIT_SECONDS = 0.5
_DAY_MS = 24 * 3600 * 1000


class Refreshes(ConsumerRebalanceListener):  # type: ignore[misc]
    """Feeds a lane from `item-refresh`. The lane's acks are the offsets that it commits."""

    def __init__(self, settings: Kafka, held_back: Callable[[], bool], *, lose_nothing: bool) -> None:
        """
        Args:
            held_back: whether a publish waits.
            lose_nothing: an offset that the broker no longer has is an error; only for a group that has committed.
        """
        self._held_back = held_back
        self._lane: Lane[None] | None = None
        self._done: dict[TopicPartition, int] = {}
        self._consumer = AIOKafkaConsumer(
            client_id=GROUP,
            group_id=GROUP,
            bootstrap_servers=settings.bootstrap_servers.split(","),
            security_protocol=settings.security_protocol,
            sasl_mechanism=settings.sasl_mechanism,
            sasl_plain_username=settings.sasl_username,
            sasl_plain_password=settings.sasl_password.get_secret_value() if settings.sasl_password else None,
            ssl_context=ssl_context(settings),
            enable_auto_commit=False,
            auto_offset_reset="none" if lose_nothing else "earliest",
            session_timeout_ms=int(settings.session_timeout_seconds * 1000),
            heartbeat_interval_ms=int(settings.heartbeat_seconds * 1000),
            max_poll_interval_ms=_DAY_MS,
            fetch_max_wait_ms=100,
            isolation_level="read_committed",
        )

    def ack(self, ticket: Ticket[None]) -> None:
        """The next offset to read, to be committed soon."""
        topic, partition = ticket.partition
        self._done[TopicPartition(topic, partition)] = ticket.offset + 1

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        gone = list(revoked)
        with contextlib.suppress(KafkaError):
            await self.commit()
        for partition in gone:
            self._done.pop(partition, None)
        if self._lane is not None:
            await self._lane.drop((partition.topic, partition.partition) for partition in gone)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        pass

    async def commit(self) -> None:
        taken, self._done = self._done, {}
        mine = {partition: offset for partition, offset in taken.items() if partition in self._consumer.assignment()}
        if not mine:
            return
        try:
            await self._consumer.commit(mine)
        except KafkaError:
            self._done = {**mine, **self._done}
            raise

    async def run(self, lane: Lane[None]) -> None:
        """Read and commit until cancelled.

        Raises:
            OffsetLost: the broker no longer has what was to be read next.
        """
        self._lane = lane
        await self._start()
        committing = asyncio.get_running_loop().create_task(self._commit_often())
        try:
            while True:
                if lane.full or self._held_back():
                    await asyncio.sleep(0.02)
                    continue
                await self._read(lane)
        finally:
            committing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await committing

    async def stop(self) -> None:
        """Commit what is finished and leave the group."""
        with contextlib.suppress(KafkaError):
            await self.commit()
        await self._consumer.stop()

    async def _start(self) -> None:
        while True:
            try:
                await self._consumer.start()
                break
            except KafkaError as error:
                log.warning("item-refresh: %s", error)
                await asyncio.sleep(2)
        self._consumer.subscribe([ItemRefresh.topic], listener=self)

    async def _read(self, lane: Lane[None]) -> None:
        try:
            # One at a time: what is not asked for stays with the consumer, and a publish may come any moment.
            found = await self._consumer.getmany(timeout_ms=200, max_records=1)
        except OffsetOutOfRangeError as error:
            raise OffsetLost(f"{ItemRefresh.topic}: the broker no longer has the next offset: {error}") from None
        except KafkaError as error:
            log.warning("item-refresh: %s", error)
            await asyncio.sleep(1)
            return
        for records in found.values():
            for record in records:
                message = Message(
                    record.topic,
                    record.partition,
                    record.offset,
                    record.key,
                    record.value,
                    {name: value or b"" for name, value in record.headers},
                    record.timestamp,
                )
                await lane.take(message, None)

    async def _commit_often(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            try:
                await self.commit()
            except KafkaError as error:
                log.warning("item-refresh: commit: %s", error)
